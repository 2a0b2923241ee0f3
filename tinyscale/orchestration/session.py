"""A Ray to work on: the one at an address, or one of our own that is started quietly and stopped at the end."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tinyscale.errors import LaunchError
from tinyscale.forecast import this_machine

# Read by Ray when it is imported or when a trial starts; what each one is for stands beside it.
ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the other output engine prints whatever verbosity is asked for
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative corpus paths keep their meaning
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the record is our Parquet
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours lets trials write a checkpoint first
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # failures are shown as they happen, with their reason
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # else a worker group passes on one report in two seconds
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's future default; silences the notice of the change
}


ANSWER_SECONDS = 5.0  # for a head to accept a connection; Ray itself would try for half a minute


@dataclass(frozen=True)
class Cluster:
    """What trials may use, and where the dashboard is."""

    cpus: float
    gpus: float
    dashboard_url: str | None
    own: bool
    nodes: tuple[tuple[float, float], ...] = ()  # cores and GPUs of each; left out: one has it all
    grows: bool = False  # an autoscaler adds nodes as trials wait

    def holds(self, cpu: float, gpu: float) -> bool:
        """Whether one node has so much."""
        each = self.nodes or ((self.cpus, self.gpus),)
        return any(cpu <= cpus and gpu <= gpus for cpus, gpus in each)


@contextmanager
def ray_session(address: str | None) -> Iterator[Cluster]:
    """Attach to the Ray at `address` (`host:port`, `auto`), or start one here with all cores and stop it at the end."""
    os.environ |= {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    import ray

    logging.getLogger("ray").setLevel(logging.CRITICAL)  # failures are shown by the launch, with their reasons
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    cpus, gpus = this_machine()
    try:
        if address:
            _use_token_if_there_is_one()
            _require_answer(address)
            context = ray.init(address=address, **quiet)
        else:
            context = ray.init(address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=True, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise LaunchError(_explain(address, error)) from error
    try:
        dashboard = f"http://{context.dashboard_url}" if context.dashboard_url else None
        yield _cluster(dashboard, own=not address)
    finally:
        ray.shutdown()


def _cluster(dashboard: str | None, *, own: bool) -> Cluster:
    import ray
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = tuple((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in alive)
    cpus, gpus = (sum(column) for column in zip(*nodes, strict=True))
    return Cluster(cpus, gpus, dashboard, own, nodes, grows=not own and is_autoscaler_v2(fetch_from_server=True))


def _require_answer(address: str) -> None:
    """OSError within seconds when nothing listens at a spelled-out address."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()


def _use_token_if_there_is_one() -> None:
    """Ray looks for its token by itself only at address auto, not at one that is spelled out."""
    places = [os.environ.get("RAY_AUTH_TOKEN_PATH"), "~/.ray/auth_token"]
    has_token = os.environ.get("RAY_AUTH_TOKEN") or any(p and Path(p).expanduser().exists() for p in places)
    if has_token:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _explain(address: str | None, error: Exception) -> str:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    if address is None:
        return f"Ray could not be started on this machine: {first}"
    return (
        f"no Ray at {address}: {first}\n  start one with `ray start --head` or `ray up cluster.yaml`, or leave out "
        "--address and RAY_ADDRESS to run here; a cluster with a token needs RAY_AUTH_MODE=token and the token"
    )
