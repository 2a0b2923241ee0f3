"""Launches on a Ray that was started apart, with a token, from the command line and as a job."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator

import pytest
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from helpers.launches import RAY, RAY_WARNS, Head, planned, ray_head, run
from helpers.programs import PATIENCE, free_port, tinyscale
from helpers.sweeps import write_sweep
from tinyscale.orchestration.session import ray_session
from tinyscale.results.store import Results

pytestmark = [*RAY_WARNS, pytest.mark.slow]

# Ray's first autoscaler, which raises no flag of its own, with nodes that are processes of this machine.
AUTOSCALING = {
    "cluster_name": "growing",
    "max_workers": 1,
    "idle_timeout_minutes": 5,
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "large": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    },
    **{name: {} for name in ("auth", "docker", "file_mounts")},
    **{name: [] for name in ("cluster_synced_files", "worker_setup_commands", "worker_start_ray_commands")},
}


@pytest.fixture
def head(tmp_path, monkeypatch) -> Iterator[Head]:
    """A head with a token, in a home of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(secrets.token_hex(32))
    with ray_head("--num-cpus=2", RAY_AUTH_MODE="token") as running:
        yield running


def test_a_launch_at_an_address_finds_the_token_and_a_job_needs_none_of_its_own(tmp_path, head):
    path = write_sweep(tmp_path, widths="[8]")
    program = tinyscale("launch", "-y", str(path), "--results", "r", "--address", head.address, cwd=tmp_path)
    output, _ = program.communicate(timeout=PATIENCE)
    assert program.returncode == 0, output
    assert "starting Ray" not in output
    write_sweep(tmp_path, widths="[8, 16]")
    launch = [sys.executable, "-m", "tinyscale", "launch", "-y", str(path), "--results", str(tmp_path / "r")]
    submit = [RAY, "job", "submit", "--address", head.dashboard, "--", *launch]
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    job = subprocess.run(submit, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert job.returncode == 0, job.stdout + job.stderr
    assert [state for state, _ in Results(str(tmp_path / "r")).states().values()] == ["finished"] * 2


def test_a_trial_that_only_a_node_to_come_can_hold_waits_for_the_autoscaler(tmp_path):
    port, scaling = free_port(), tmp_path / "scaling.yaml"
    provider = {"type": "fake_multinode", "head_node_id": FAKE_HEAD_NODE_ID, "use_node_id_as_ip": True}
    scaling.write_text(json.dumps(AUTOSCALING | {"provider": provider | {"gcs_address": f"127.0.0.1:{port}"}}))
    head = ray_head("--num-cpus=1", f"--autoscaling-config={scaling}", port=port, RAY_FAKE_CLUSTER="1")
    path, results = write_sweep(tmp_path, widths="[8]"), Results(str(tmp_path / "r"))
    with head as running, ray_session(running.address) as cluster:
        assert (cluster.capacity.cpus, cluster.capacity.grows) == (1, True)
        summary = run(planned(path, results, "resources.cpu=2"), results, cluster)
    assert set(summary.states.values()) == {"finished"}
