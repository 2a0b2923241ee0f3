"""The study of one cell, without a cluster: what it samples, how it goes on, what it keeps of how trials ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from helpers.sweeps import SWEEP, write_tiny_sweep
from helpers.text import words
from tinyscale.machine import Capacity
from tinyscale.orchestration.record import record_sampled, record_sweep
from tinyscale.orchestration.studies import CellStudy, StudyFile
from tinyscale.planning.make_plan import make_plan
from tinyscale.planning.plan import Plan, PlannedTrial
from tinyscale.results.leases import Lease
from tinyscale.results.schema import point_columns
from tinyscale.results.store import Results
from tinyscale.spec.state import State
from tinyscale.spec.sweep import load_sweep

SEARCHED = (
    SWEEP.replace(", lr: 1e-2", "")
    + """\
search:
  fields: {train.lr: FIELD}
  trials: 8
seeds: [0, 1]
"""
)
RANGE = "{low: 1e-4, high: 1e-1, log: true}"


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(str(tmp_path / "results"))


@pytest.fixture
def storage() -> InMemoryStorage:
    return InMemoryStorage()


def plan_of(folder: Path, results: Results, field: str = RANGE) -> Plan:
    corpus = folder / "text.txt"
    if not corpus.exists():
        corpus.write_text("\n<|endoftext|>\n".join(words(1500, seed) for seed in range(200)))
    path = write_tiny_sweep(folder, SEARCHED.replace("FIELD", field), corpus)
    return make_plan(load_sweep(path), results, Capacity(2, 0), measure=False)


def study_of(plan: Plan, results: Results, storage: BaseStorage) -> CellStudy:
    assert plan.sweep.search is not None
    return CellStudy(plan.sweep.search, plan.trials, storage, results, plan.sweep.name)


def finish(results: Results, planned: PlannedTrial, state: State = State.FINISHED) -> float:
    """The rows of a trial that ended: its loss is lowest at a rate of 0.01."""
    loss = 2 + abs(planned.cell.axes["lr"] - 0.01)
    point = {"step": 20, "tokens": planned.trial.tokens, "val_loss": loss, "decayed": True}
    results.write_trial(planned.trial, [point_columns(planned.trial, point, 10, 10)], state, None, {})
    return loss


def run_all(study: CellStudy, results: Results) -> list[PlannedTrial]:
    """Trials in the order suggested, each of which finishes before the next one."""
    trained = []
    while planned := study.suggest(str(len(trained))):
        finish(results, planned)
        study.end(str(len(trained)))
        trained.append(planned)
    return trained


def test_a_study_samples_as_many_new_trials_as_the_cell_has_and_the_same_ones_each_time(tmp_path, results):
    plan = plan_of(tmp_path, results)
    first = run_all(study_of(plan, results, InMemoryStorage()), results)
    assert len({planned.trial.identity for planned in first}) == 8
    assert [planned.cell.seed for planned in first] == [0, 1] * 4
    other = Results(str(tmp_path / "other"))
    assert [each.cell for each in run_all(study_of(plan, other, InMemoryStorage()), other)] == [
        each.cell for each in first
    ]


def test_a_study_keeps_each_loss_on_the_way_and_how_each_trial_ended(tmp_path, results, storage):
    study = study_of(plan_of(tmp_path, results), results, storage)
    states = [State.FINISHED, State.DIVERGED, State.STOPPED, State.FAILED]
    planned = [study.suggest(state) for state in states]
    for state, each in zip(states, planned, strict=True):
        assert each is not None
        study.report(state, 3.0, 512)
        study.report(state, 9.0, 512)  # sent again after a resume
        study.report(state, 2.5, 1024)
        finish(results, each, state)
        study.end(state)
    kept = study.study.get_trials()
    assert [trial.state.name for trial in kept] == ["COMPLETE", "PRUNED", "PRUNED", "FAIL"]
    assert kept[0].value == 2 + abs(kept[0].params["train.lr"] - 0.01)
    assert all(trial.intermediate_values == {512: 3.0, 1024: 2.5} for trial in kept)


def test_a_study_goes_on_with_what_a_killed_launch_left_before_it_samples_anew(tmp_path, results, storage):
    plan = plan_of(tmp_path, results)
    study = study_of(plan, results, storage)
    done, left = study.suggest("done"), study.suggest("left")
    assert done is not None
    assert left is not None
    finish(results, done)
    study.end("done")
    record_sweep(Plan(plan.sweep, (done, left, *plan.trials[2:]), 2, ()), results, {})

    plan = plan_of(tmp_path, results)
    again = study_of(plan, results, storage)
    assert [trial.state.name for trial in again.study.get_trials()] == ["COMPLETE", "FAIL"]
    trained = run_all(again, results)
    assert trained[0].trial.identity == left.trial.identity
    assert len(trained) == 7
    known = {trial.user_attrs["trial"] for trial in again.study.get_trials(states=(TrialState.COMPLETE,))}
    assert known == {planned.trial.identity for planned in (done, *trained)}


def test_a_trial_that_another_launch_is_training_stays_open(tmp_path, results, storage):
    plan = plan_of(tmp_path, results)
    planned = study_of(plan, results, storage).suggest("elsewhere")
    assert planned is not None
    assert Lease(results.leases, planned.trial.identity).claim()
    assert [trial.state.name for trial in study_of(plan, results, storage).study.get_trials()] == ["RUNNING"]


def test_what_another_launch_has_sampled_since_counts_also_when_it_has_ended_by_then(tmp_path, results, storage):
    plan = plan_of(tmp_path, results)
    record_sweep(plan, results, {})
    trained = run_all(study_of(plan, results, storage), results)[:7]
    for planned in trained:
        record_sampled(plan, results, planned)
    later = study_of(plan, results, storage)  # planned before any of them
    assert later.suggest("last") is not None
    assert later.suggest("more") is None


def test_a_trial_that_another_launch_trains_keeps_the_end_that_the_other_one_records(tmp_path, results, storage):
    plan = plan_of(tmp_path, results)
    mine = study_of(plan, results, storage)
    planned = mine.suggest("mine")
    assert planned is not None
    record_sweep(Plan(plan.sweep, (planned,), 2, ()), results, {})
    lease = Lease(results.leases, planned.trial.identity)
    assert lease.claim()
    other = study_of(plan_of(tmp_path, results), results, storage)
    again = other.suggest("again")
    assert again is not None
    assert again.trial.identity == planned.trial.identity
    other.end("again")  # it was elsewhere
    finish(results, planned)
    lease.release()
    mine.end("mine")
    assert [trial.state.name for trial in other.study.get_trials()] == ["COMPLETE"]


def test_a_study_that_is_lost_is_made_again_from_the_results(tmp_path, results):
    plan = plan_of(tmp_path, results)
    trained = run_all(study_of(plan, results, InMemoryStorage()), results)
    record_sweep(Plan(plan.sweep, tuple(trained), 2, ()), results, {})
    again = study_of(plan_of(tmp_path, results), results, InMemoryStorage())
    kept = {trial.user_attrs["trial"]: trial.params["train.lr"] for trial in again.study.get_trials()}
    assert kept == {planned.trial.identity: planned.cell.axes["lr"] for planned in trained}
    assert again.suggest("more") is None


def test_choices_that_run_out_end_the_cell(tmp_path, results, storage):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = study_of(plan_of(tmp_path, results, "{choices: [1e-3, 1e-2]}"), results, storage)
    cells = [planned.cell.key for planned in run_all(study, results)]
    assert 1 < len(cells) <= 4
    assert len(set(cells)) == len(cells)
    assert study.work_left == 0


@pytest.mark.parametrize(
    "damage", [lambda it: it[:-9], lambda it: it.replace("high", "hygh"), lambda _: "[]\n", lambda it: it + "{x\n"]
)
def test_a_damaged_journal_is_set_aside_and_the_study_begins_again(
    tmp_path: Path, results: Results, damage: Callable[[str], str]
) -> None:
    plan = plan_of(tmp_path, results)
    assert study_of(plan, results, StudyFile(results, "tiny", "").storage).suggest("0")
    path = tmp_path / "results" / "optuna" / "tiny.log"
    path.write_text(damage(path.read_text()))
    assert study_of(plan, results, StudyFile(results, "tiny", "").storage).suggest("0")
    assert path.with_suffix(".damaged").exists()
