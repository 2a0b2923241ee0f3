"""Launches of sweeps that say `fuse`, on a real Ray: one process trains a group, each trial keeps rows of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.launches import RAY_WARNS, final_losses, has_points, kill_process_of, planned, run
from helpers.programs import tinyscale, wait_for
from helpers.sweeps import write_sweep
from tinyscale.data import prepare
from tinyscale.results.status import read_status
from tinyscale.results.store import Results, read_results
from tinyscale.training.loop import WEIGHTS, train

pytestmark = RAY_WARNS


def fused_sweep(folder: Path, fuse: str = "[seed]", **settings: str) -> Path:
    path = write_sweep(folder, **settings)
    path.write_text(f"{path.read_text()}fuse: {fuse}\n")
    return path


def test_a_fused_group_is_one_process_and_each_of_its_trials_a_trial_like_any_other(tmp_path, cluster):
    path = fused_sweep(tmp_path, "[lr, seed]", widths="[8]", seeds="[0, 1]")
    path.write_text(path.read_text().replace("lr: 1e-2", "lr: 1e-2, weight_decay: 150, grad_clip: 0"))
    path.write_text(path.read_text().replace("model.d_model: [8]", "train.lr: [1e-3, 10]"))
    results = Results(str(tmp_path / "results"))
    plan = planned(path, results)
    assert [len(group) for group in plan.batched_sets] == [4]
    summary = run(plan, results, cluster)
    assert len({timing.process for timing in summary.timings}) == 1
    frame = read_results(results.location)
    ends = frame.groupby(["lr", "seed"])["state"].last().to_dict()
    assert ends == {(1e-3, 0): "finished", (1e-3, 1): "finished", (10, 0): "diverged", (10, 1): "diverged"}
    assert {summary.states[trial] for trial in frame["trial"]} == {"finished", "diverged"}
    assert frame.loc[frame["val_loss"].notna(), "fused"].eq(4).all()
    assert frame.loc[frame["state"] == "diverged", "reason"].str.contains("loss not finite").all()
    for each in plan.trials[:2]:
        alone = train(each.trial, prepare(each.trial.config.data), lambda _: None)
        assert final_losses(tmp_path / "results")[each.trial.identity] == pytest.approx(alone.points[-1].val_loss, 1e-3)
        assert results.checkpoints(each.trial.identity).names() == [WEIGHTS]
    assert read_status(results).trials_in(["running"], None) == []
    assert (results.folder / "leases").names(".json") == []
    assert planned(path, results).to_run == []


@pytest.mark.slow
def test_a_trial_of_a_group_that_raises_fails_with_the_others_and_the_next_launch_trains_them(tmp_path, cluster):
    path, results = fused_sweep(tmp_path, widths="[8]", seeds="[0, 1]"), Results(str(tmp_path / "results"))
    plan = planned(path, results)
    with (tmp_path / "text.txt").open("a") as text:
        text.write(" and more")
    summary = run(plan, results, cluster)
    assert set(summary.states.values()) == {"failed"}
    assert all("is another here than at planning" in reason for reason in summary.reasons.values())
    again = planned(path, results)
    assert set(run(again, results, cluster).states.values()) == {"finished"}


@pytest.mark.slow
def test_a_group_whose_process_is_killed_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    path = fused_sweep(tmp_path, tokens="600K", widths="[8]", seeds="[0, 1, 2]")
    results, whole = Results(str(tmp_path / "results")), Results(str(tmp_path / "whole"))
    first = planned(path, results).to_run[0].trial.identity
    program = tinyscale("launch", "-y", str(path), "--results", results.location, cwd=tmp_path)
    wait_for(lambda: has_points(results, first), program=program)
    kill_process_of(first, results)
    output, _ = program.communicate()
    assert program.returncode == 0, output
    assert "3 trials: 3 finished" in output
    done = tinyscale("launch", "-y", str(path), "--results", whole.location, cwd=tmp_path)
    assert "3 trials: 3 finished" in done.communicate()[0]
    assert final_losses(tmp_path / "results").to_dict() == final_losses(tmp_path / "whole").to_dict()
