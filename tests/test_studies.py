"""Searches on a real Ray: draws become trials, a study goes on after a relaunch, and what asha stops feeds no fit."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from helpers.launches import RAY_WARNS, planned, run
from helpers.programs import PATIENCE, tinyscale, wait_for
from helpers.sweeps import write_search
from tinyscale.analysis.runs import read_groups
from tinyscale.orchestration.session import Cluster
from tinyscale.orchestration.studies import ending
from tinyscale.results.launches import read_launches
from tinyscale.results.leases import held_trials
from tinyscale.results.status import read_status
from tinyscale.results.store import Results
from tinyscale.results.sweep_record import SweepRecord
from tinyscale.training.progress import Outcome

pytestmark = RAY_WARNS


def record_of(results: Results) -> SweepRecord:
    (record,) = results.read_sweeps()
    return record


def studies_of(folder: Path) -> dict[str, optuna.Study]:
    storage = JournalStorage(JournalFileBackend(str(folder / "results/optuna/rates.log")))
    return {name: optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)}


def told(study: optuna.Study) -> list[tuple[str, str, float | None]]:
    return [(t.user_attrs["trial"], t.state.name, t.value) for t in study.get_trials(deepcopy=False)]


@pytest.mark.slow
def test_each_draw_is_a_trial_of_the_sweep_and_a_relaunch_draws_only_what_is_missing(
    tmp_path: Path, cluster: Cluster
) -> None:
    results = Results(str(tmp_path / "results"))
    plan = planned(write_search(tmp_path), results)
    assert [each.state for each in plan.trials] == ["unsampled"] * 6
    assert set(run(plan, results, cluster).states.values()) == {"finished"}
    first = record_of(results)
    assert (first.axes, first.searched) == (("d_model", "lr"), ("lr",))
    frame, _ = results.read()
    for entry in first.entries:
        rows, lr = frame[frame["trial"] == entry.trial], entry.cell.axes["lr"]
        assert set(rows["lr"]) == {lr}
        assert float(f"{lr:.3g}") == lr
        assert set(rows["seed"]) == {entry.cell.seed}
    assert planned(tmp_path / "rates.yaml", results).to_run == []

    again = planned(tmp_path / "rates.yaml", results, "search.trials=5")
    assert len(again.to_run) == 4
    summary = run(again, results, cluster)
    second = record_of(results)
    assert list(second.entries[:6]) == sorted(first.entries, key=lambda entry: second.trials.index(entry.trial))
    assert len(set(second.trials)) == 10
    assert set(summary.states) == set(second.trials) - set(first.trials), "nothing that ended is trained again"
    last = frame[frame["decayed"]].set_index("trial")["val_loss"]
    for study in studies_of(tmp_path).values():
        assert len(study.trials) == 5
        assert {state for _, state, _ in told(study)} == {"COMPLETE"}
        assert all(last.get(trial, value) == value for trial, _, value in told(study))
        assert list(optuna.importance.get_param_importances(study)) == ["train.lr"]
    assert {name.split()[0] for name in studies_of(tmp_path)} == {"d_model=8", "d_model=16"}


@pytest.mark.slow
def test_a_study_that_is_lost_or_cut_off_is_told_again_from_the_results(tmp_path: Path, cluster: Cluster) -> None:
    results, path = Results(str(tmp_path / "results")), write_search(tmp_path, trials=2)
    run(planned(path, results), results, cluster)
    journal = tmp_path / "results/optuna/rates.log"
    before = {name: sorted(told(study)) for name, study in studies_of(tmp_path).items()}
    journal.write_bytes(journal.read_bytes()[:-20])
    run(planned(path, results, "search.trials=3"), results, cluster)
    assert journal.with_suffix(".damaged").exists()
    for name, study in studies_of(tmp_path).items():
        assert set(before[name]) < set(told(study))
        assert len(study.trials) == 3


@pytest.mark.slow
def test_a_draw_that_diverges_is_pruned_and_is_a_result(tmp_path: Path, cluster: Cluster) -> None:
    results, path = Results(str(tmp_path / "results")), write_search(tmp_path, low="9.9", high="10", trials=2)
    beyond_all_numbers = ("train.grad_clip=0", "train.weight_decay=1e3")
    summary = run(planned(path, results, *beyond_all_numbers), results, cluster)
    assert set(summary.states.values()) == {"diverged"}
    states = [state for study in studies_of(tmp_path).values() for _, state, _ in told(study)]
    assert states == ["PRUNED"] * 4
    assert planned(path, results, *beyond_all_numbers).to_run == []


@pytest.mark.slow
def test_a_draw_that_fails_is_told_so_and_trained_again_as_it_was_drawn(tmp_path: Path, cluster: Cluster) -> None:
    results, path = Results(str(tmp_path / "results")), write_search(tmp_path, trials=2)

    def fail(*_: Any, **__: Any) -> Outcome:
        raise ValueError("no such thing")

    assert set(run(planned(path, results), results, cluster, train=fail).states.values()) == {"failed"}
    drawn = record_of(results).trials
    assert [state for study in studies_of(tmp_path).values() for _, state, _ in told(study)] == ["FAIL"] * 4
    again = planned(path, results)
    assert sorted(each.trial.identity for each in again.to_run) == sorted(drawn)
    assert {each.state for each in again.to_run} == {"failed"}
    assert set(run(again, results, cluster).states.values()) == {"finished"}
    for study in studies_of(tmp_path).values():
        assert sorted(state for _, state, _ in told(study)) == ["COMPLETE", "COMPLETE", "FAIL", "FAIL"]


@pytest.mark.slow
def test_what_a_killed_launch_left_open_is_told_fail_and_goes_on(tmp_path: Path, cluster: Cluster) -> None:
    results, path = Results(str(tmp_path / "results")), write_search(tmp_path, tokens="700K", trials=2)
    program = tinyscale("launch", "-y", str(path), cwd=tmp_path)
    wait_for(lambda: len(list((tmp_path / "results/trials").glob("*.parquet"))) >= 2, program=program)
    program.send_signal(signal.SIGKILL)
    program.communicate()
    wait_for(lambda: not held_trials(results.folder / "leases"))  # the processes that trained end a moment later
    left = record_of(results).trials
    assert [state for study in studies_of(tmp_path).values() for _, state, _ in told(study)] == ["RUNNING"] * 2
    plan = planned(path, results)
    assert {each.trial.identity for each in plan.to_run if each.state == "running"} == set(left)
    summary = run(plan, results, cluster)
    assert set(summary.states.values()) == {"finished"}
    assert set(left) < set(summary.states)
    for study in studies_of(tmp_path).values():
        assert sorted(state for _, state, _ in told(study)) == ["COMPLETE", "COMPLETE", "FAIL"]


@pytest.mark.slow
def test_two_launches_of_one_search_at_once_train_as_many_trials_as_it_asks_for(tmp_path: Path) -> None:
    path, results = write_search(tmp_path, tokens="50K", trials=4), Results(str(tmp_path / "results"))
    both = [tinyscale("launch", "-y", "--quiet", str(path), cwd=tmp_path) for _ in range(2)]
    outputs = [program.communicate(timeout=PATIENCE)[0] for program in both]
    assert [program.returncode for program in both] == [0, 0], outputs
    sampled = record_of(results).trials
    assert len(sampled) == len(set(sampled)) == 8
    assert {trial: state for trial, (state, _) in results.states().items()} == dict.fromkeys(sampled, "finished")
    assert sum(record.states["finished"] for record in read_launches(results.launches)) == 8, "none is trained twice"
    ended = {(trial, state) for study in studies_of(tmp_path).values() for trial, state, _ in told(study)}
    assert ended == {(trial, "COMPLETE") for trial in sampled}, "twice where both launches drew the same"


@pytest.mark.slow
def test_asha_stops_trials_that_are_behind_and_no_fit_reads_them(tmp_path: Path, cluster: Cluster) -> None:
    results = Results(str(tmp_path / "results"))
    path = write_search(tmp_path, tokens="150K", low="1e-6", trials=6)
    plan = planned(path, results, "search.scheduler=asha")
    summary = run(plan, results, cluster)
    stopped = {trial for trial, state in summary.states.items() if state == "stopped"}
    assert stopped
    assert "behind the others of its search at" in summary.reasons[min(stopped)]
    frame, _ = results.read()
    rows = frame[frame["trial"].isin(stopped)]
    assert set(rows["state"]) == {"stopped"}
    assert not rows["decayed"].any()
    assert rows["val_loss"].notna().all()
    (group,) = read_groups(str(tmp_path / "results"))
    assert not stopped & set(group.frame["trial"])
    assert group.dropped["trial stopped"] == len(rows)
    assert {ending(results, trial)[0] for trial in stopped} == {TrialState.PRUNED}
    assert read_status(results).counts(record_of(results))["stopped"] == len(stopped)
    assert planned(path, results, "search.scheduler=asha").to_run == [], "a stopped draw has told what it was drawn for"

    lr = next(entry.cell.axes["lr"] for entry in record_of(results).entries if entry.trial in stopped)
    grid = path.with_name("grid.yaml")
    text = path.read_text().partition("search:")[0].replace("rates", "grid").replace("eval", f"lr: {lr}, eval")
    grid.write_text(text + "seeds: [0, 1]")
    left = [each for each in planned(grid, results).to_run if each.trial.identity in stopped]
    assert left, "another sweep trains it to its end"
    assert {each.state for each in left} == {"running"}


@pytest.mark.slow
def test_choices_that_run_out_end_the_search(tmp_path: Path, cluster: Cluster) -> None:
    results, path = Results(str(tmp_path / "results")), write_search(tmp_path, trials=6)
    path.write_text(path.read_text().replace("{low: 1e-4, high: 1, log: true}", "{choices: [1e-3, 1e-2]}"))
    run(planned(path, results), results, cluster)
    drawn = pd.DataFrame([{**entry.cell.axes, "seed": entry.cell.seed} for entry in record_of(results).entries])
    assert not drawn.duplicated().any()
    assert set(drawn["lr"]) == {1e-3, 1e-2}
