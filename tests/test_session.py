"""Reaching a Ray that runs elsewhere, and knowing what it can hold."""

from __future__ import annotations

import os
import socket

import pytest
import ray

from helpers.launches import RAY_WARNS, planned, run
from helpers.sweeps import write_sweep
from tinyscale.errors import LaunchError
from tinyscale.machine import Capacity
from tinyscale.orchestration import session
from tinyscale.orchestration.session import Cluster, ray_session
from tinyscale.results.store import Results

pytestmark = RAY_WARNS


def test_an_address_where_no_ray_listens_is_an_error_that_says_what_to_do():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"  # bound and not listening: connections are refused
        with (
            pytest.raises(LaunchError, match=f"no Ray at {address}: .*refused\n.*`ray start --head`"),
            ray_session(address),
        ):
            pass


@pytest.mark.parametrize(
    ("overrides", "missing"),
    [
        (["resources.gpu=1"], "needs 1 GPU at once where there is none: .*or use a larger cluster"),
        (["resources.cpu=9"], "needs 9 CPU cores at once where there are 8"),
        (["resources.cpu=6"], "needs 6 CPU cores and 0 GPUs on one node"),
    ],
)
def test_trials_that_no_node_can_ever_hold_are_refused_with_what_is_missing(tmp_path, overrides, missing):
    results = Results(str(tmp_path / "results"))
    attached = Cluster(Capacity(8, 0), dashboard_url=None, own=False, nodes=((4, 0), (4, 0)))
    with pytest.raises(LaunchError, match=missing):
        run(planned(write_sweep(tmp_path), results, *overrides), results, attached)


def test_a_ray_that_does_not_come_up_in_time_is_one_error_that_names_the_load(monkeypatch):
    def slow(**_):
        raise Exception("The current node timed out during startup. The GCS may be overloaded.\nmore")

    monkeypatch.setattr(ray, "init", slow)
    monkeypatch.setattr(os, "getloadavg", lambda: (20.4, 0.0, 0.0))
    monkeypatch.setattr(session, "usable_cores", lambda: 2)
    says = r"could not be started.*timed out during startup.*overloaded.; 20 programs share its 2 cores\n  nothing"
    with pytest.raises(LaunchError, match=says), ray_session(None):
        pass


def test_a_mistake_in_starting_ray_is_not_taken_for_a_slow_machine(monkeypatch):
    def wrong(**_):
        raise KeyError("num_cpus")

    monkeypatch.setattr(ray, "init", wrong)
    with pytest.raises(KeyError), ray_session(None):
        pass


def test_too_few_open_files_are_said_before_ray_starts(monkeypatch):
    monkeypatch.setattr(session, "open_files", lambda: 64)
    says = "a process may open 64 files, and Ray needs at least 256; raise the limit"
    with pytest.raises(LaunchError, match=says), ray_session(None):
        pass
