"""Faults of memory and of a GPU, each on a Ray of its own: a node, a share of a GPU, a process has none left."""

from __future__ import annotations

import os
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.launches import RAY_WARNS, planned, run
from helpers.sweeps import write_sweep
from tinyscale.machine import Capacity
from tinyscale.orchestration import session
from tinyscale.orchestration.session import ray_session
from tinyscale.planning.make_plan import make_plan
from tinyscale.results.store import Results
from tinyscale.spec.sweep import load_sweep
from tinyscale.spec.trial import Trial
from tinyscale.training.progress import Outcome

pytestmark = [*RAY_WARNS, pytest.mark.slow]

LONG = "400K"  # tokens of a trial that lasts some seconds


def test_a_trial_that_its_node_has_no_memory_for_fails_with_the_bytes_and_trains_where_there_is_some(
    tmp_path, monkeypatch
):
    path, results = write_sweep(tmp_path, tokens=LONG, widths="[8]"), Results(str(tmp_path / "results"))
    with monkeypatch.context() as patch:
        patch.setenv("RAY_memory_usage_threshold", "0.001")  # of the node's memory: less than is in use already
        with ray_session(None) as cluster:
            summary = run(planned(path, results), results, cluster)
    (reason,) = summary.reasons.values()
    assert re.match(r"out of memory: Ray ended its process 3 times, as [\d.]+GB of the node's [\d.]+GB", reason)
    assert [(state, why) for state, why in results.states().values()] == [("failed", reason)]
    with ray_session(None) as cluster:
        assert set(run(planned(path, results), results, cluster).states.values()) == {"finished"}


def test_a_trial_out_of_memory_on_its_share_of_a_gpu_is_trained_once_more_on_a_larger_one(tmp_path, monkeypatch):
    """Simulated: Ray and torch are only told of a GPU, and what stands in for the training says that it is full."""
    path, results = write_sweep(tmp_path, widths="[8]", seeds="[0, 1, 2]"), Results(str(tmp_path / "results"))
    small, tight, hopeless = (each.trial.identity for each in planned(path, results).trials)
    needs = {small: 0.25, tight: 0.5, hopeless: 2.0}

    def train_in_memory(trial: Trial, *_: Any, **__: Any) -> Outcome:
        torch.cuda.current_device = lambda: 0
        torch.cuda.max_memory_allocated = lambda _: int(1.5 * 2**30)
        torch.cuda.get_device_properties = lambda _: SimpleNamespace(name="a GPU", total_memory=8 * 2**30)
        if trial.config.resources.gpu < needs[trial.identity]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return Outcome("finished", None, [], 0.0)

    monkeypatch.setattr(session, "this_machine", lambda: Capacity(2, 1))
    with ray_session(None) as cluster:
        plan = make_plan(load_sweep(path, overrides=["gpu=0.25"]), results, cluster.capacity, measure=False)
        summary = run(plan, results, cluster, train=train_in_memory)
    assert summary.states == {small: "finished", tight: "finished", hopeless: "failed"}
    assert [results.read_trial(trial)[0][-1]["gpu"] for trial in (small, tight, hopeless)] == [0.25, 0.5, 0.5]
    assert len(summary.timings) == 5, "one trial once, two twice"
    reason = summary.reasons[hopeless]
    assert "out of memory on 0.5 of a GPU of 8.0 GiB at a peak of 1.50 GiB; 1 of it would have done" in reason


def test_a_trial_whose_process_lost_its_gpu_is_trained_in_a_new_one(tmp_path, monkeypatch):
    """Simulated: what stands in for the training fails once as CUDA does, and then so does each call of CUDA."""
    path, results = write_sweep(tmp_path, widths="[8]"), Results(str(tmp_path / "results"))
    processes = tmp_path / "processes"

    def lost(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def train_with_one_loss(trial: Trial, *_: Any, **__: Any) -> Outcome:
        first = not processes.exists()
        with processes.open("a") as file:
            file.write(f"{os.getpid()}\n")
        torch.cuda.current_device = lambda: 0
        torch.cuda.get_device_properties = lambda _: SimpleNamespace(name="a GPU", total_memory=8 * 2**30)
        if first:
            torch.cuda.synchronize = lost
            lost()
        return Outcome("finished", None, [], 0.0)

    monkeypatch.setattr(session, "this_machine", lambda: Capacity(2, 1))
    with ray_session(None) as cluster:
        plan = make_plan(load_sweep(path, overrides=["gpu=1"]), results, cluster.capacity, measure=False)
        summary = run(plan, results, cluster, train=train_with_one_loss)
    assert list(summary.states.values()) == ["finished"]
    assert len(set(processes.read_text().split())) == 2
