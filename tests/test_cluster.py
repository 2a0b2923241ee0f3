"""Two Ray nodes on one machine: trials spread over both, and move when a node is lost or drained."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from ray._private.node import Node
from ray._private.state import state as ray_state
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster as Nodes
from ray.core.generated import autoscaler_pb2

from helpers.launches import RAY_WARNS, final_losses, planned, run, undisturbed
from helpers.programs import wait_for
from helpers.sweeps import write_sweep
from tinyscale.cli import cli
from tinyscale.doctor import examine_node
from tinyscale.orchestration.session import ray_session
from tinyscale.results.store import Results
from tinyscale.training.loop import RESUME

pytestmark = [*RAY_WARNS, pytest.mark.slow]

LONG = "900K"  # tokens of a trial that lasts until a slow machine has started the other one as well


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A head and a worker, a core each, without a token."""
    running = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    running.add_node(num_cpus=1)
    yield running
    running.shutdown()


def places(results: Results) -> dict[str, str]:
    """The node of each trial under way: its lease names the process, Ray the node of that."""
    leases = results.folder / "leases"
    pids = {name.removesuffix(".json"): json.loads(leases.read(name))["pid"] for name in leases.names(".json")}
    node_of = {actor["Pid"]: actor["Address"]["NodeID"] for actor in ray_state.actor_table(None, None, None).values()}
    return {trial: node_of[pid] for trial, pid in pids.items() if pid in node_of}


def lose(worker: Node, nodes: Nodes) -> None:
    nodes.remove_node(worker, allow_graceful=False)


def drain(worker: Node, nodes: Nodes) -> None:
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=nodes.gcs_address).drain_node(
        worker.node_id, reason, "spot", int((time.time() + 300) * 1000)
    )
    assert accepted, why


@pytest.mark.parametrize("fault", [lose, drain])
def test_trials_of_a_node_that_goes_away_continue_on_the_other_to_the_same_numbers(tmp_path, nodes, fault):
    path, results = write_sweep(tmp_path, tokens=LONG, widths="[8]", seeds="[0, 1]"), Results(str(tmp_path / "results"))
    path.write_text(path.read_text().replace("eval_points: 2", "repeats: true, eval_points: 6"))
    (worker,) = nodes.worker_nodes
    moved: list[str] = []

    def disturb() -> None:
        wait_for(lambda: len(set(places(results).values())) == 2 and len(results.trials.names()) == 2)
        (victim,) = (trial for trial, node in places(results).items() if node == worker.node_id)
        fault(worker, nodes)
        if fault is drain:
            wait_for(lambda: results.checkpoints(victim).exists(RESUME))
        wait_for(lambda: places(results).get(victim) == nodes.head_node.node_id)
        moved.append(victim)

    thread = threading.Thread(target=disturb)
    with ray_session(nodes.address) as cluster:
        assert (cluster.own, cluster.capacity.grows, cluster.nodes) == (False, False, ((1, 0), (1, 0)))
        thread.start()
        summary = run(planned(path, results), results, cluster)
    thread.join()
    assert set(summary.states.values()) == {"finished"}, summary.reasons
    assert len(moved) == 1
    pd.testing.assert_series_equal(final_losses(tmp_path / "results"), undisturbed(path))


def test_the_doctor_says_of_each_node_whether_it_shares_the_results_folder(tmp_path, nodes):
    def says(results: Path) -> list[str]:
        command = ["doctor", "--address", nodes.address, "--results", str(results)]
        return CliRunner().invoke(cli, command).output.splitlines()

    told = says(tmp_path / "results")
    for node in (nodes.head_node, *nodes.worker_nodes):
        of_node = [line for line in told if node.node_id[:6] in line]
        assert [line.split()[0] for line in of_node] == ["ok"] * 3, of_node
        assert [line.split(", ")[1].split(":")[0] for line in of_node] == ["threads", "results", "disk"]
    assert [path for path in (tmp_path / "results").rglob("*") if path.is_file()] == []


def test_a_node_that_mounts_another_folder_fails_with_a_remedy(tmp_path):
    (_, results, _) = examine_node(str(tmp_path), "written-elsewhere.txt")
    assert results.level == "fail"
    assert "choose a --results that all nodes mount" in str(results)
