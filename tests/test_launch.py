"""Launches on a real Ray: the grid, local mode with reused processes, worker groups, failures."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch

from helpers.launches import RAY_WARNS, final_losses, planned, run, undisturbed
from helpers.sweeps import write_sweep
from tinyscale.analysis.runs import keep_final
from tinyscale.data import TokenizedCorpus, prepare
from tinyscale.errors import LaunchError
from tinyscale.reporting.tables import provenance_of
from tinyscale.results.launches import read_launches
from tinyscale.results.store import Results, read_results
from tinyscale.spec.trial import Trial
from tinyscale.training.loop import WEIGHTS, train
from tinyscale.training.progress import Outcome

pytestmark = RAY_WARNS


def test_a_launch_finishes_each_trial_of_the_grid_and_a_second_one_trains_nothing(tmp_path, cluster):
    path, results = write_sweep(tmp_path, seeds="[0, 1]"), Results(str(tmp_path / "results"))
    summary = run(planned(path, results), results, cluster)
    frame = read_results(str(tmp_path / "results"))
    assert set(summary.states.values()) == {"finished"}
    assert frame.groupby(["d_model", "seed"]).size().eq(2).all()  # two points each
    assert frame["val_loss"].notna().all()
    again = planned(path, results)
    assert again.to_run == []
    assert run(again, results, None).states == {}
    (record,) = read_launches(results.launches)
    assert (record.trials, record.states, record.slots) == (4, {"finished": 4}, 2)
    assert record.train_seconds == pytest.approx(summary.train_seconds)
    assert record.efficiency == pytest.approx(summary.efficiency)


def test_seconds_that_a_resumed_trial_was_trained_before_are_not_this_launchs(tmp_path, cluster):
    results = Results(str(tmp_path / "results"))

    def train_long(*args: Any, **options: Any) -> Outcome:
        return replace(train(*args, **options), seconds=10_000.0)

    summary = run(planned(write_sweep(tmp_path, widths="[8]"), results), results, cluster, train=train_long)
    assert summary.train_seconds < summary.wall_seconds
    assert summary.efficiency <= 1
    assert summary.overhead_per_trial >= 0


def test_an_extended_sweep_trains_only_what_is_new(tmp_path, cluster):
    results = Results(str(tmp_path / "results"))
    run(planned(write_sweep(tmp_path, widths="[8]"), results), results, cluster)
    extended = planned(write_sweep(tmp_path, widths="[8, 16]"), results)
    assert [each.cell.axes["d_model"] for each in extended.to_run] == [16]


@pytest.mark.slow
def test_a_process_that_served_other_trials_gives_the_numbers_of_a_fresh_one(tmp_path, cluster):
    """Ten trials share two processes; the last one's losses are those of training it alone, bit for bit."""
    path, results = write_sweep(tmp_path, seeds=str(list(range(10))), widths="[8]"), Results(str(tmp_path / "results"))
    plan = planned(path, results)
    summary = run(plan, results, cluster)
    assert len({timing.process for timing in summary.timings}) < 10
    last = max(summary.timings, key=lambda timing: timing.began)
    ended_last = {timing.ended: timing for timing in summary.timings}[last.ended]
    assert ended_last is last
    losses = final_losses(tmp_path / "results")
    trial = plan.to_run[-1].trial
    alone = train(trial, prepare(trial.config.data), lambda _: None)
    assert losses[trial.identity] == alone.points[-1].val_loss


@pytest.mark.slow
def test_a_trial_that_raises_becomes_a_failed_row_and_the_others_go_on(tmp_path, cluster):
    path, results = write_sweep(tmp_path, seeds="[0, 1]"), Results(str(tmp_path / "results"))
    plan = planned(path, results)
    broken = plan.to_run[1].trial
    in_the_way = tmp_path / "results" / "checkpoints" / broken.identity  # a file where its weights' folder must go
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("")
    summary = run(plan, results, cluster)
    assert summary.failed == 1
    assert sorted(summary.states.values()) == ["failed", "finished", "finished", "finished"]
    rows, _ = results.read_trial(broken.identity)
    assert rows[-1]["val_loss"] is None
    assert "cannot be used" in rows[-1]["reason"]
    in_the_way.unlink()
    again = planned(path, results)
    assert [each.trial.identity for each in again.to_run] == [broken.identity]
    assert again.to_run[0].state == "failed"
    run(again, results, cluster)
    assert len(final_losses(tmp_path / "results")) == 4


@pytest.mark.slow
def test_a_loss_that_is_no_number_any_more_ends_its_trial_as_diverged_for_good_and_the_others_go_on(tmp_path, cluster):
    path, results = write_sweep(tmp_path, tokens="80K", widths="[8]", seeds="[0]"), Results(str(tmp_path / "results"))
    wild = "{train: {lr: 10, weight_decay: 1000, grad_clip: 0}}"
    path.write_text(f"{path.read_text()}arms: {{wild: {wild}, calm: {{}}}}\n")
    plan = planned(path, results)
    summary = run(plan, results, cluster)
    diverged, calm = (each.trial.identity for each in plan.to_run)
    assert summary.states == {diverged: "diverged", calm: "finished"}
    assert "loss not finite" in summary.reasons[diverged]
    assert results.states()[diverged] == ("diverged", summary.reasons[diverged])
    assert planned(path, results).to_run == []


def test_a_text_that_changed_after_planning_fails_its_trials_in_words(tmp_path, cluster):
    path, results = write_sweep(tmp_path, widths="[8]"), Results(str(tmp_path / "results"))
    plan = planned(path, results)
    with (tmp_path / "text.txt").open("a") as text:
        text.write(" and more")
    summary = run(plan, results, cluster)
    assert "is another here than at planning" in next(iter(summary.reasons.values()))


def test_a_trial_too_large_for_the_machine_is_refused_before_anything_starts(tmp_path, cluster):
    path, results = write_sweep(tmp_path), Results(str(tmp_path / "results"))
    with pytest.raises(LaunchError, match=r"needs 999 CPU cores at once where there are"):
        run(planned(path, results, "resources.cpu=999"), results, cluster)
    with pytest.raises(LaunchError, match="needs 1 GPU at once where there is none"):
        run(planned(path, results, "resources.gpu=1"), results, cluster)


@pytest.mark.slow
def test_all_trials_of_a_launch_have_one_provenance_also_one_whose_process_died(tmp_path, cluster):
    path, results = write_sweep(tmp_path, widths="[8]", seeds="[0, 1]"), Results(str(tmp_path / "results"))
    plan = planned(path, results)
    doomed = plan.to_run[0].trial.identity

    def train_or_die(trial: Trial, *arguments: Any, **options: Any) -> Outcome:
        if trial.identity == doomed:
            os.kill(os.getpid(), signal.SIGKILL)
        return train(trial, *arguments, **options)

    summary = run(plan, results, cluster, train=train_or_die)
    assert sorted(summary.states.values()) == ["failed", "finished"]
    origins = [results.read_trial(each.trial.identity)[1]["provenance"] for each in plan.trials]
    assert origins[0] == origins[1]
    (sweep,), (launched,) = results.read_sweeps(), read_launches(results.launches)
    assert sweep.provenance == launched.provenance
    assert {**origins[0], **launched.provenance} == origins[0]
    table = provenance_of(results).frame
    assert set(table["launch"]) == {"all"}


@pytest.mark.slow
def test_final_weights_are_kept_unless_told_otherwise(tmp_path, cluster):
    results = Results(str(tmp_path / "results"))
    plan = planned(write_sweep(tmp_path, widths="[8]"), results)
    run(plan, results, cluster)
    checkpoints = results.checkpoints(plan.trials[0].trial.identity)
    assert checkpoints.names() == [WEIGHTS]
    assert "embedding.weight" in torch.load(f"{checkpoints.path}/{WEIGHTS}", weights_only=True)
    other = Results(str(tmp_path / "other"))
    run(planned(tmp_path / "small.yaml", other), other, cluster, keep_weights=False)
    assert other.checkpoints(plan.trials[0].trial.identity).names() == []


@pytest.mark.slow
def test_a_trial_that_no_memory_is_left_for_is_a_failed_row_and_the_next_one_trains_in_its_process(tmp_path, cluster):
    path, results = write_sweep(tmp_path, widths="[8]", seeds="[0, 1]"), Results(str(tmp_path / "results"))
    plan = planned(path, results)
    huge = plan.to_run[0].trial.identity

    def train_one_huge(trial: Trial, corpus: TokenizedCorpus, report: Any, **options: Any) -> Outcome:
        if trial.identity == huge:
            torch.empty(2**50)
        return train(trial, corpus, report, **options)

    summary = run(plan, results, cluster, train=train_one_huge)
    assert sorted(summary.states.values()) == ["failed", "finished"]
    assert "can't allocate memory" in summary.reasons[huge]


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["compile=false", "compile=true"])
def test_two_workers_reach_the_loss_of_one_with_the_same_global_batch(tmp_path, cluster, compiled):
    path = write_sweep(tmp_path, tokens="40K", widths="[8]")
    one, two = Results(str(tmp_path / "one")), Results(str(tmp_path / "two"))
    run(planned(path, one), one, cluster)
    summary = run(planned(path, two, "resources.workers=2", compiled), two, cluster)
    assert set(summary.states.values()) == {"finished"}
    losses = [final_losses(tmp_path / name) for name in ("one", "two")]
    assert losses[0].index.equals(losses[1].index)  # workers are no part of the identity
    assert losses[0].iloc[0] == pytest.approx(losses[1].iloc[0], abs=1e-3)


@pytest.mark.slow
def test_a_trial_out_of_patience_is_stopped_left_out_of_fits_and_trained_on_without_it(tmp_path, cluster):
    path = write_sweep(tmp_path, widths="[8]", tokens="40K")
    path.write_text(path.read_text().replace("lr: 1e-2, eval_points: 2", "lr: 3, eval_points: 6, grad_clip: 0"))
    results = Results(str(tmp_path / "results"))
    alone = undisturbed(path)
    (stopped,) = run(planned(path, results), results, cluster, patience=1).states
    (planned_again,) = planned(path, results).to_run
    assert results.state(stopped) == "stopped"
    assert planned_again.reason == "out of patience: no lower val_loss in 1 evaluation"
    assert run(planned(path, results), results, cluster, patience=1).states == {}, "it stays stopped"
    kept, dropped = keep_final(read_results(results.location))
    assert kept.empty
    assert list(dropped) == ["trial stopped, out of patience"]
    run(planned(path, results), results, cluster)
    pd.testing.assert_series_equal(final_losses(tmp_path / "results"), alone)


def test_patience_is_refused_for_trials_that_are_trained_as_one(tmp_path, cluster):
    path, results = write_sweep(tmp_path, widths="[8]", seeds="[0, 1]"), Results(str(tmp_path / "results"))
    path.write_text(f"{path.read_text()}fuse: [seed]\n")
    with pytest.raises(LaunchError, match="--patience stops one at a time: remove fuse"):
        run(planned(path, results), results, cluster, patience=1)
