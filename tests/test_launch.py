"""Launches on a real Ray: the grid, local mode with reused processes, worker groups, failures, interruption."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from launching import tinyscale, write_sweep
from rich.console import Console

from tinyscale.data import prepare
from tinyscale.errors import LaunchError
from tinyscale.orchestration.launch import Summary, launch
from tinyscale.orchestration.session import Cluster, ray_session
from tinyscale.plan import Plan, make_plan
from tinyscale.results import Results, read_results
from tinyscale.sweep import load_sweep
from tinyscale.train import RESUME, WEIGHTS, train

# Ray's own modules warn of their future and leave sockets to the garbage collector; neither is ours to mend.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_session(None) as running:
        yield running


def planned(path: Path, results: Results, *overrides: str) -> Plan:
    return make_plan(load_sweep(path, overrides=overrides), results, cpus=2, gpus=0, with_forecast=False)


def run(plan: Plan, results: Results, cluster: Cluster, **options: bool) -> Summary:
    return launch(plan, results, cluster, console=Console(quiet=True), quiet=True, **options)


def final_losses(results: Path) -> pd.Series:
    frame = read_results(str(results))
    return frame[frame["decayed"].astype(bool)].set_index("trial")["val_loss"].sort_index()


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


def test_an_extended_sweep_trains_only_what_is_new(tmp_path, cluster):
    results = Results(str(tmp_path / "results"))
    run(planned(write_sweep(tmp_path, widths="[8]"), results), results, cluster)
    extended = planned(write_sweep(tmp_path, widths="[8, 16]"), results)
    assert [each.axes["d_model"] for each in extended.to_run] == [16]


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
    assert rows[-1]["reason"].startswith("FileExistsError")
    in_the_way.unlink()
    again = planned(path, results)
    assert [each.trial.identity for each in again.to_run] == [broken.identity]
    assert again.to_run[0].state == "failed"
    run(again, results, cluster)
    assert len(final_losses(tmp_path / "results")) == 4


def test_a_text_that_changed_after_planning_fails_its_trials_in_words(tmp_path, cluster):
    path, results = write_sweep(tmp_path, widths="[8]"), Results(str(tmp_path / "results"))
    plan = planned(path, results)
    with (tmp_path / "text.txt").open("a") as text:
        text.write(" and more")
    summary = run(plan, results, cluster)
    assert "is another here than at planning" in next(iter(summary.reasons.values()))


def test_a_trial_whose_process_is_killed_becomes_a_failed_row_and_the_others_go_on(tmp_path, cluster):
    path, results = write_sweep(tmp_path, tokens="150K"), Results(str(tmp_path / "results"))
    plan = planned(path, results)
    killer = threading.Thread(target=_kill_the_process_of, args=(plan.to_run[0].trial.identity, results))
    killer.start()
    summary = run(plan, results, cluster)
    killer.join()
    assert sorted(summary.states.values()) == ["failed", "finished"]
    assert "process died" in summary.reasons[plan.to_run[0].trial.identity]


def _kill_the_process_of(identity: str, results: Results) -> None:
    """SIGKILL the process that trains a trial, once it has written its first point."""
    wait_for(lambda: results.trials.exists(f"{identity}.parquet"))
    from ray.util.state import list_actors

    actors = list_actors(filters=[("state", "=", "ALIVE")], detail=True)
    # Tune's trials run in actors named after the function; the longest trial was placed first.
    trainers = sorted(
        (a for a in actors if a.class_name and "ImplicitFunc" in a.class_name), key=lambda a: a.start_time_ms
    )
    os.kill(trainers[0].pid, signal.SIGKILL)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_trial_too_large_for_the_machine_is_refused_before_anything_starts(tmp_path, cluster):
    path, results = write_sweep(tmp_path), Results(str(tmp_path / "results"))
    with pytest.raises(LaunchError, match=r"needs 999 CPU cores at once and this machine has"):
        run(planned(path, results, "resources.cpu=999"), results, cluster)
    with pytest.raises(LaunchError, match="needs 1 GPUs"):
        run(planned(path, results, "resources.gpu=1"), results, cluster)


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


def test_ctrl_c_stops_with_a_checkpoint_and_the_next_launch_goes_on_to_the_same_numbers(tmp_path):
    path = write_sweep(tmp_path, tokens="400K", widths="[8]", seeds="[0, 1, 2]")
    command = ["launch", "-y", str(path), "--results", "interrupted"]
    program = tinyscale(*command, cwd=tmp_path)
    interrupted = Results(str(tmp_path / "interrupted"))
    wait_for(lambda: len(interrupted.trials.names()) > 0, seconds=90)
    os.killpg(program.pid, signal.SIGINT)
    output, _ = program.communicate(timeout=60)
    assert program.returncode == 130, output
    assert "Traceback" not in output
    assert any(folder.names() == [RESUME] for folder in map(interrupted.checkpoints, interrupted.states()))
    assert tinyscale(*command, cwd=tmp_path).wait(timeout=120) == 0
    assert tinyscale("launch", "-y", str(path), "--results", "undisturbed", cwd=tmp_path).wait(timeout=120) == 0
    pd.testing.assert_series_equal(final_losses(tmp_path / "interrupted"), final_losses(tmp_path / "undisturbed"))


@pytest.mark.slow
def test_two_workers_reach_the_loss_of_one_with_the_same_global_batch(tmp_path, cluster):
    path = write_sweep(tmp_path, tokens="40K", widths="[8]")
    one, two = Results(str(tmp_path / "one")), Results(str(tmp_path / "two"))
    run(planned(path, one), one, cluster)
    summary = run(planned(path, two, "resources.workers=2"), two, cluster)
    assert set(summary.states.values()) == {"finished"}
    losses = [final_losses(tmp_path / name) for name in ("one", "two")]
    assert losses[0].index.equals(losses[1].index)  # workers are no part of the identity
    assert losses[0].iloc[0] == pytest.approx(losses[1].iloc[0], abs=1e-3)
