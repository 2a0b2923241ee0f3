"""Reaching a Ray that runs elsewhere, and knowing what it can hold."""

from __future__ import annotations

import socket

import pytest

from helpers.launches import RAY_WARNS, planned, run
from helpers.sweeps import write_sweep
from tinyscale.errors import LaunchError
from tinyscale.machine import Capacity
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
        (["resources.gpu=1"], "needs 1 GPUs at once where there are 0: .*or use a larger cluster"),
        (["resources.cpu=9"], "needs 9 CPU cores at once where there are 8"),
        (["resources.cpu=6"], "needs 6 CPU cores and 0 GPUs on one node"),
    ],
)
def test_trials_that_no_node_can_ever_hold_are_refused_with_what_is_missing(tmp_path, overrides, missing):
    results = Results(str(tmp_path / "results"))
    attached = Cluster(Capacity(8, 0), dashboard_url=None, own=False, nodes=((4, 0), (4, 0)))
    with pytest.raises(LaunchError, match=missing):
        run(planned(write_sweep(tmp_path), results, *overrides), results, attached)
