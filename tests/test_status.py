"""What a results folder tells without Ray, and forgetting trials so that they are trained again."""

from __future__ import annotations

import json

import pytest

from helpers.programs import invoke
from helpers.sweeps import write_sweep
from tinyscale.formatting import duration
from tinyscale.machine import Capacity
from tinyscale.orchestration.record import record_sweep
from tinyscale.planning.make_plan import make_plan
from tinyscale.planning.plan import WHY, Plan
from tinyscale.results.leases import Lease
from tinyscale.results.status import read_status
from tinyscale.spec.state import State
from tinyscale.spec.sweep import load_sweep

POINT = {"tokens": 512, "val_loss": 2.0, "decayed": True}


@pytest.fixture
def plan(tmp_path, results) -> Plan:
    """Six trials: one finished, one failed, one diverged, one interrupted, one running, one missing."""
    made = planned(tmp_path, results)
    for state, each in zip(("finished", "failed", "diverged", "running", "running"), made.trials, strict=False):
        points = [] if state == "failed" else [POINT]
        results.write_trial(each.trial, points, state, "why" if state in ("failed", "diverged") else None, {})
    assert Lease(results.folder / "leases", made.trials[4].trial.identity).claim()
    record_sweep(made, results, {})
    return made


def planned(folder, results, *overrides: str) -> Plan:
    sweep = load_sweep(write_sweep(folder, seeds="[0, 1, 2]"), overrides=overrides)
    return make_plan(sweep, results, Capacity(2, 0), measure=False)


def test_each_trial_is_in_its_state_and_failures_have_reasons(results, plan):
    status = read_status(results)
    expected = ("finished", "failed", "diverged", "interrupted", "running", "missing")
    assert status.counts(status.sweeps[0]) == dict.fromkeys(expected, 1)
    assert status.failures() == ["failed: small d_model=8 seed=1: why", "diverged: small d_model=8 seed=2: why"]
    trials = status.as_json()["sweeps"][0]["trials"]
    assert [trial["state"] for trial in trials] == list(expected)
    json.dumps(status.as_json())


def test_a_running_trial_shows_how_far_it_is_by_its_lease_and_its_last_evaluation(results, plan):
    running, unstarted = plan.trials[4].trial, plan.trials[5].trial
    point = {**POINT, "tokens": 512, "tokens_per_second": 100.0}
    results.write_trial(running, [point], "running", None, {})
    lease = Lease(results.folder / "leases", running.identity)
    (results.folder / "leases").delete(f"{running.identity}.json")
    assert lease.claim()
    lease.renewed = -1e9
    lease.keep(running.tokens // 4)
    other = Lease(results.folder / "leases", unstarted.identity)
    assert other.claim()
    status = read_status(results)
    assert status.of(unstarted.identity)[0] == "running", "also before its first evaluation"
    found = status.progress[running.identity]
    assert (found.share, found.val_loss) == (pytest.approx(0.25, abs=0.01), 2.0)
    assert found.seconds_left == pytest.approx(0.75 * running.tokens / 100, rel=0.02)
    printed = invoke("status", results.location).output
    (line,) = (line for line in printed.splitlines() if line.startswith("small d_model=16 seed=1"))
    assert line.split()[3:] == ["25%", "2.0000", "100", duration(found.seconds_left)]
    json.dumps(status.as_json())


def test_forgotten_trials_are_new_again_and_the_others_stay(tmp_path, results, plan):
    forgotten = read_status(results).trials_in(["diverged"], None)
    assert forgotten == [plan.trials[2].trial.identity]
    kept = results.checkpoints(forgotten[0])
    kept.write("weights.pt", b"")
    results.forget(forgotten[0])
    assert kept.names() == []
    assert [each.state for each in planned(tmp_path, results).trials] == [
        "finished", "failed", "new", "running", "running", "new",
    ]  # fmt: skip


def test_retry_leaves_the_trials_that_a_launch_is_training(results, plan):
    interrupted, running = (each.trial.identity for each in plan.trials[3:5])
    printed = invoke("retry", results.location, "--state", "running").output
    assert "deleted 1 trials" in printed
    assert "left 1 that a launch is training" in printed
    assert results.state(interrupted) is None
    assert results.state(running) == "running"
    assert (results.folder / "leases").names(".json") == [f"{running}.json"]


def test_trials_can_be_chosen_by_sweep(results, plan):
    assert read_status(results).trials_in(["finished", "failed"], "other") == []
    assert len(read_status(results).trials_in(["finished", "failed"], "small")) == 2


def test_a_plan_says_which_field_changed_since_a_trial_was_trained(tmp_path, results, plan):
    first, *_ = planned(tmp_path, results, "lr=0.02").trials
    assert (first.state, first.reason) == ("changed", "train.lr was 0.01, is 0.02")


def test_a_plan_says_that_the_text_changed(tmp_path, results, plan):
    with (tmp_path / "text.txt").open("a") as text:
        text.write(" and more")
    assert planned(tmp_path, results).trials[0].reason == "the text changed"


def test_a_launch_trains_what_is_neither_kept_nor_given_up() -> None:
    recorded = {state for state in State if state.is_recorded}
    assert {state for state in recorded if not state.is_trained} == {"finished", "diverged", "stopped"}
    assert all(state.is_trained for state in WHY)
