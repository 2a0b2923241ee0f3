"""A Ray to work on: the one at an address, or one of our own that is started quietly and stopped at the end."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tinyscale.errors import LaunchError
from tinyscale.formatting import plural
from tinyscale.machine import FEWEST_OPEN_FILES, Capacity, gpu_bytes, open_files, this_machine, usable_cores
from tinyscale.orchestration.ray_internals import asks_for_token, autoscaled_node_types, has_autoscaler_v2, job, start

# Read by Ray when it is imported or when a trial starts.
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
REPORT_SECONDS = 15.0  # for the first report of an autoscaler that was just started


@dataclass(frozen=True)
class Cluster:
    """A Ray to work on: what trials may use of it, and where the dashboard is."""

    capacity: Capacity
    dashboard_url: str | None
    own: bool
    nodes: tuple[tuple[float, float], ...] = ()  # cores and GPUs of each; left out: one has it all

    def holds(self, cpu: float, gpu: float) -> bool:
        """Whether one node has so much."""
        each = self.nodes or ((self.capacity.cpus, self.capacity.gpus),)
        return any(cpu <= cpus and gpu <= gpus for cpus, gpus in each)


@contextmanager
def ray_session(address: str | None) -> Iterator[Cluster]:
    """Attach to the Ray at `address` (`host:port`, `auto`), or start one here with all cores and stop it at the end."""
    os.environ |= {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    if not address:
        _require_open_files()
    else:
        _require_answer(address)
        _use_token_if_asked_for(address)
    import ray  # reads the environment

    logging.getLogger("ray").setLevel(logging.CRITICAL)  # failures are shown by the launch, with their reasons
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL, "job_config": job()}
    machine = this_machine()
    try:
        if address:
            context = start(address=address, **quiet)
        else:
            own = {"num_cpus": machine.cpus, "num_gpus": machine.gpus, "include_dashboard": True}
            context = start(address="local", **own, **quiet)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise LaunchError(_explain(address, error)) from error
    try:
        dashboard = f"http://{context.dashboard_url}" if context.dashboard_url else None
        yield _cluster(dashboard, own=not address)
    finally:
        ray.shutdown()


def _cluster(dashboard: str | None, *, own: bool) -> Cluster:
    import ray

    from tinyscale.orchestration.nodes import least_gpu_bytes

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = tuple((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in alive)
    cpus, gpus = (sum(column) for column in zip(*nodes, strict=True))
    memory = (gpu_bytes() if own else least_gpu_bytes()) if gpus else None
    capacity = Capacity(cpus, gpus, memory, grows=not own and _has_autoscaler())
    return Cluster(capacity, dashboard, own, nodes)


def _has_autoscaler() -> bool:
    """Whether nodes are added as trials wait: the second autoscaler leaves a flag, the first reports its node types."""
    if has_autoscaler_v2():
        return True
    deadline = time.monotonic() + REPORT_SECONDS
    while (types := autoscaled_node_types()) is None and time.monotonic() < deadline:
        time.sleep(0.5)
    return bool(types)


def _require_answer(address: str) -> None:
    """LaunchError within seconds when nothing listens at a spelled-out address."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise LaunchError(_explain(address, error)) from error


def _require_open_files() -> None:
    """LaunchError where this process may open so few files that Ray's processes would end without a word."""
    if (most := open_files()) < FEWEST_OPEN_FILES:
        raise LaunchError(
            f"Ray could not be started on this machine: a process may open {most:.0f} files, and Ray needs at least "
            f"{FEWEST_OPEN_FILES}; raise the limit with ulimit -n 65536, or in limits.conf"
        )


def _use_token_if_asked_for(address: str) -> None:
    """Ray looks for its token by itself only at address auto, and a token breaks a cluster that has none."""
    if "/" not in address and ":" in address and asks_for_token(address, ANSWER_SECONDS):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _explain(address: str | None, error: Exception) -> str:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    if address is None:
        load, cores = os.getloadavg()[0], usable_cores()
        busy = f"; {load:.0f} programs share its {plural(cores, 'core')}" if load > 2 * cores else ""
        return (
            f"Ray could not be started on this machine: {first}{busy}\n"
            "  nothing was trained; launch again, and if it stays so, see what `tinyscale doctor` finds"
        )
    return (
        f"no Ray at {address}: {first}\n  start one with `ray start --head` or `ray up cluster.yaml`, or leave out "
        "--address and RAY_ADDRESS to run here; a cluster with a token needs RAY_AUTH_MODE=token and the token"
    )
