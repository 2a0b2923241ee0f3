"""Ray's private interfaces are used in one file, and each does on the Ray installed what we rely on."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS

from helpers import ROOT
from helpers.launches import RAY_WARNS
from helpers.programs import wait_for
from tinyscale.orchestration import ray_internals
from tinyscale.orchestration.session import Cluster

pytestmark = RAY_WARNS

DOOR = "ray_internals.py"


def private_names(source: Path) -> list[str]:
    """What a file takes from Ray that Ray does not offer to everyone."""
    used: list[str] = []
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            used += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            used += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            used.append(ast.unparse(node))
    of_ray = [name.split(".") for name in used if name.split(".")[0] in ("ray", "grpc")]
    hidden = ("experimental", "autoscaler", "core", "grpc")
    return [".".join(parts) for parts in of_ray if any(part.startswith("_") or part in hidden for part in parts)]


def test_rays_private_interfaces_are_used_in_one_file_only() -> None:
    found = {source.name: private_names(source) for source in (ROOT / "tinyscale").rglob("*.py")}
    assert [name for name, used in found.items() if used] == [DOOR]


def test_a_ray_of_our_own_listens_on_loopback_only(cluster: Cluster) -> None:
    worker = ray.get(ray.remote(num_cpus=0)(lambda: psutil.Process().pid).remote())
    here = psutil.Process()
    ours = [here, *here.children(recursive=True)]
    listening = [each for process in ours for each in _sockets(process) if each.status == psutil.CONN_LISTEN]
    assert worker in {process.pid for process in ours}
    assert len(listening) > 5, "those of Ray's processes are among them"
    assert {each.laddr.ip.removeprefix("::ffff:") for each in listening} <= {"127.0.0.1", "::1"}


def _sockets(process: psutil.Process) -> list[Any]:
    try:
        return process.net_connections("inet")
    except psutil.NoSuchProcess:
        return []


def test_a_flag_is_read_by_every_process_of_the_cluster_until_it_is_cleared(cluster: Cluster) -> None:
    elsewhere = ray.remote(num_cpus=0)(lambda: ray_internals.read_flag(b"contract"))
    assert ray_internals.read_flag(b"contract") is None
    ray_internals.set_flag(b"contract", b"first")
    ray_internals.set_flag(b"contract", b"second")
    assert ray_internals.read_flag(b"contract") == b"second"
    assert ray.get(elsewhere.remote()) == b"second"
    ray_internals.clear_flag(b"contract")
    ray_internals.clear_flag(b"contract")
    assert ray_internals.read_flag(b"contract") is None


def test_no_node_is_draining_where_none_goes_away(cluster: Cluster) -> None:
    assert ray_internals.draining_nodes() == frozenset()  # test_cluster.py drains one


def test_the_head_has_one_of_the_resource_that_places_a_process_there(cluster: Cluster) -> None:
    (head,) = ray.nodes()
    assert head["Resources"][ray_internals.HEAD_NODE] == 1.0


def test_without_an_autoscaler_no_node_type_can_be_added(cluster: Cluster) -> None:
    assert not ray_internals.has_autoscaler_v2()
    wait_for(lambda: ray_internals.autoscaled_node_types() is not None)
    assert ray_internals.autoscaled_node_types() == []


def test_node_types_are_those_of_the_first_autoscalers_report(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = b'{"autoscaler_report": {"active_nodes": {"node_ab12": 1, "large": 0}}}'
    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_get", {DEBUG_AUTOSCALING_STATUS: report}.get)
    assert ray_internals.autoscaled_node_types() == ["large"]


def test_a_head_without_a_token_answers_the_call_that_one_with_a_token_refuses(cluster: Cluster) -> None:
    address = ray.get_runtime_context().gcs_address
    with grpc.insecure_channel(address) as channel:
        assert channel.unary_unary(ray_internals.ANY_CALL)(b"", timeout=5.0)
    assert not ray_internals.asks_for_token(address, 5.0)
    with refusing_head() as refusing:
        assert ray_internals.asks_for_token(refusing, 5.0)  # test_attach.py asks a real one


@contextmanager
def refusing_head() -> Iterator[str]:
    """The address of a server that answers every call as a head does that wants a token."""

    def refuse(request: bytes, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")

    _, service, method = ray_internals.ANY_CALL.split("/")
    answers = {method: grpc.unary_unary_rpc_method_handler(refuse)}
    handler = grpc.method_handlers_generic_handler(service, answers)
    server = grpc.server(ThreadPoolExecutor(1), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()
