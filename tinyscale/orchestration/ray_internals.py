"""Ray's private and experimental interfaces, one function each; nothing else in tinyscale imports them.

`tests/test_ray_internals.py` holds each function against the Ray that is installed: run it when the pin of Ray moves.
Functions import Ray themselves: it reads the environment at its first import, and a session sets that before.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import grpc

HEAD_NODE = "node:__internal_head__"  # a resource that only the head node has, 1.0 of it
ANY_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # the first that each process makes to a head
NAMESPACE = b"tinyscale"  # of our flags in the cluster's key-value store


def start(**settings: Any) -> Any:
    """`ray.init`, whose bare Exception, of processes that did not come up in time, becomes a RuntimeError.

    A Ray that is started here (address: local) listens on loopback only, as Ray does by itself on macOS and Windows;
    elsewhere `ray.init` replaces a loopback address that it is given by the machine's own.
    """
    import ray
    from ray._private import ray_constants

    clusters = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = clusters and settings.get("address") != "local"
    try:
        return ray.init(**settings)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise RuntimeError(str(error)) from error
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


def set_flag(key: bytes, value: bytes) -> None:
    """Write a value that each process of the cluster can read."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(key, value, namespace=NAMESPACE)


def read_flag(key: bytes) -> bytes | None:
    """The value that `set_flag` wrote; None without one. It takes about a millisecond."""
    from ray.experimental.internal_kv import _internal_kv_get

    value: bytes | None = _internal_kv_get(key, namespace=NAMESPACE)
    return value


def clear_flag(key: bytes) -> None:
    """Remove what `set_flag` wrote, if anything."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(key, namespace=NAMESPACE)


def draining_nodes() -> frozenset[str]:
    """Ids of the nodes that are about to go away."""
    from ray._private.state import state

    return frozenset(state.get_draining_nodes())


def has_autoscaler_v2() -> bool:
    """Whether the second version of Ray's autoscaler runs in the cluster."""
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    return bool(is_autoscaler_v2(fetch_from_server=True))


def autoscaled_node_types() -> list[str] | None:
    """Node types that the first version of Ray's autoscaler can add; None before its first report.

    Its monitor also runs where nobody adds nodes; it then makes up a type for each node, which is left out here.
    """
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.autoscaler._private.util import format_readonly_node_type
    from ray.experimental.internal_kv import _internal_kv_get

    status = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or b"{}")
    types = status.get("autoscaler_report", {}).get("active_nodes")
    return [name for name in types if not name.startswith(format_readonly_node_type(""))] if types else None


def asks_for_token(address: str, timeout: float) -> bool:
    """Whether the head at host:port refuses a call without a token; False where none answers in `timeout` seconds."""
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(ANY_CALL)(b"", timeout=timeout)
        except grpc.RpcError as error:
            return bool(error.code() is grpc.StatusCode.UNAUTHENTICATED)
    return False


def job() -> Any:
    """Settings of a job whose workers import what the launcher does: Ray would put the working directory before all."""
    from ray.job_config import JobConfig

    config = JobConfig()
    config._client_job = {"", str(Path.cwd())}.isdisjoint(sys.path)  # to such a job Ray adds no directory
    return config
