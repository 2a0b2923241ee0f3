"""Each fault is injected for real: processes killed, launchers killed, two launches at once, Ctrl-C."""

from __future__ import annotations

import errno
import io
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from helpers.launches import (
    RAY_WARNS,
    final_losses,
    has_points,
    kill_process_of,
    planned,
    run,
    undisturbed,
)
from helpers.programs import PATIENCE, tinyscale, wait_for
from helpers.sweeps import write_sweep
from tinyscale import storage
from tinyscale.errors import ResultsError
from tinyscale.results.store import Results
from tinyscale.spec.trial import Trial
from tinyscale.training.loop import RESUME, train
from tinyscale.training.progress import Outcome

pytestmark = [*RAY_WARNS, pytest.mark.slow]

LONG = "400K"  # tokens of a trial that lasts some seconds


def launch_command(path: Path, results: str) -> list[str]:
    return ["launch", "-y", "--quiet", str(path), "--results", results]


@pytest.mark.parametrize("send", [lambda pid: os.killpg(pid, signal.SIGINT), lambda pid: os.kill(pid, signal.SIGTERM)])
def test_ctrl_c_and_sigterm_stop_with_a_checkpoint_and_the_next_launch_goes_on_to_the_same_numbers(tmp_path, send):
    path = write_sweep(tmp_path, tokens=LONG, widths="[8]", seeds="[0, 1, 2]")
    program = tinyscale(*launch_command(path, "interrupted"), cwd=tmp_path)
    interrupted = Results(str(tmp_path / "interrupted"))
    wait_for(lambda: len(interrupted.trials.names()) > 0, program=program)
    send(program.pid)
    output, _ = program.communicate(timeout=PATIENCE)
    assert program.returncode == 130, output
    assert "Traceback" not in output
    assert any(interrupted.checkpoints(trial).names() == [RESUME] for trial in interrupted.states())
    assert tinyscale(*launch_command(path, "interrupted"), cwd=tmp_path).wait(timeout=PATIENCE) == 0
    pd.testing.assert_series_equal(final_losses(tmp_path / "interrupted"), undisturbed(path))


def test_ctrl_c_twice_stops_at_once_and_leaves_no_ray_behind(tmp_path):
    path = write_sweep(tmp_path, tokens="600K", widths="[8]", seeds="[0, 1]")
    program = tinyscale(*launch_command(path, "stopped"), cwd=tmp_path)
    stopped = Results(str(tmp_path / "stopped"))
    wait_for(lambda: bool((stopped.folder / "leases").names(".json")), program=program)
    pids = [each.name for each in Path("/proc").glob("[0-9]*") if _cwd(each.name) == str(tmp_path)]
    os.killpg(program.pid, signal.SIGINT)
    os.killpg(program.pid, signal.SIGINT)
    output, _ = program.communicate(timeout=PATIENCE)
    assert program.returncode != 0
    assert "Traceback" not in output
    wait_for(lambda: not any(_cwd(pid) == str(tmp_path) for pid in pids))


def _cwd(pid: str) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:
        return None


def test_a_trial_whose_process_is_killed_is_retried_and_ends_with_the_same_numbers(tmp_path, cluster):
    path, results = write_sweep(tmp_path, tokens=LONG), Results(str(tmp_path / "results"))
    plan = planned(path, results)
    victim = plan.to_run[0].trial.identity

    def kill() -> None:
        wait_for(lambda: has_points(results, victim))
        kill_process_of(victim, results)

    killer = threading.Thread(target=kill)
    killer.start()
    summary = run(plan, results, cluster)
    killer.join()
    assert set(summary.states.values()) == {"finished"}
    pd.testing.assert_series_equal(final_losses(tmp_path / "results"), undisturbed(path))


def test_a_trial_whose_process_keeps_dying_becomes_a_failed_row_and_the_others_go_on(tmp_path, cluster):
    path, results = write_sweep(tmp_path, tokens=LONG), Results(str(tmp_path / "results"))
    plan = planned(path, results)
    victim, lease = plan.to_run[0].trial.identity, results.folder / "leases"

    def kill_each() -> None:
        killed: set[bytes] = set()
        for _ in range(3):
            wait_for(lambda: lease.exists(f"{victim}.json") and lease.read(f"{victim}.json") not in killed)
            killed.add(lease.read(f"{victim}.json"))
            kill_process_of(victim, results)

    killer = threading.Thread(target=kill_each)
    killer.start()
    summary = run(plan, results, cluster)
    killer.join()
    assert sorted(summary.states.values()) == ["failed", "finished"]
    assert "process died 3 times" in summary.reasons[victim]
    rows, _ = results.read_trial(victim)
    assert rows[-1]["val_loss"] is None


def test_launching_again_after_the_launcher_was_killed_finishes_the_sweep(tmp_path):
    path = write_sweep(tmp_path, tokens=LONG, seeds="[0, 1]")
    program = tinyscale(*launch_command(path, "killed"), cwd=tmp_path)
    killed = Results(str(tmp_path / "killed"))
    wait_for(lambda: any(state == "finished" for state, _ in killed.states().values()), program=program)
    os.kill(program.pid, signal.SIGKILL)
    program.communicate(timeout=PATIENCE)
    done = {name: (killed.trials.path, name) for name, (state, _) in killed.states().items() if state == "finished"}
    stamps = {name: Path(folder, f"{name}.parquet").stat().st_mtime_ns for name, (folder, _) in done.items()}
    assert tinyscale(*launch_command(path, "killed"), cwd=tmp_path).wait(timeout=PATIENCE) == 0
    assert {state for state, _ in killed.states().values()} == {"finished"}
    assert stamps == {name: Path(killed.trials.path, f"{name}.parquet").stat().st_mtime_ns for name in stamps}
    assert (killed.folder / "leases").names(".json") == []
    pd.testing.assert_series_equal(final_losses(tmp_path / "killed"), undisturbed(path))


def test_a_disk_that_fills_up_stops_the_launch_with_one_error_and_nothing_is_lost(tmp_path, cluster):
    """Simulated: a process whose second trial has begun finds no room for what it writes."""
    path = write_sweep(tmp_path, tokens=LONG, widths="[8]", seeds="[0, 1, 2, 3, 4, 5, 6, 7]")
    results, begun, out = Results(str(tmp_path / "results")), tmp_path / "begun", io.StringIO()

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def train_on_a_small_disk(trial: Trial, *arguments: Any, **options: Any) -> Outcome:
        with begun.open("a") as file:
            file.write(f"{os.getpid()} {trial.identity}\n")
        if begun.read_text().count(f"{os.getpid()} ") > 1:
            storage.sync = full
        return train(trial, *arguments, **options)

    says = r"cannot be used \(No space left on device\); free space there.*\n  [1-4] of 8 trials finished; launch again"
    with pytest.raises(ResultsError, match=says):
        run(planned(path, results), results, cluster, train=train_on_a_small_disk, console=Console(file=out))
    assert "failed" not in out.getvalue()
    assert len(begun.read_text().splitlines()) <= 5, "two at once, their successors, and at most one more"
    states = [state for state, _ in results.states().values()]
    assert set(states) <= {"finished", "running"}
    assert "finished" in states
    assert set(run(planned(path, results), results, cluster).states.values()) == {"finished"}
    pd.testing.assert_series_equal(final_losses(tmp_path / "results"), undisturbed(path))


def test_the_user_sees_that_a_checkpoint_was_damaged_and_its_trial_begins_again(tmp_path, cluster):
    path, results, out = write_sweep(tmp_path, widths="[8]"), Results(str(tmp_path / "results")), io.StringIO()
    plan = planned(path, results)
    (planned_trial,) = plan.trials
    results.checkpoints(planned_trial.trial.identity).write(RESUME, b"no checkpoint")
    assert set(run(plan, results, cluster, console=Console(file=out, width=400)).states.values()) == {"finished"}
    assert out.getvalue().count("the trial begins again") == 1
    assert f"{planned_trial.label}: " in out.getvalue()


def test_two_launches_of_one_sweep_at_once_train_no_trial_twice(tmp_path):
    path = write_sweep(tmp_path, tokens="100K", seeds="[0, 1, 2]")
    both = [tinyscale(*launch_command(path, "shared"), cwd=tmp_path) for _ in range(2)]
    outputs = [program.communicate(timeout=PATIENCE)[0] for program in both]
    assert [program.returncode for program in both] == [0, 0], outputs
    shared = Results(str(tmp_path / "shared"))
    assert {state for state, _ in shared.states().values()} == {"finished"}
    assert sum(output.count(" finished: ") for output in outputs) <= 6
    trained = [int(word) for output in outputs for word in _counts(output, "finished")]
    assert sum(trained) == 6
    pd.testing.assert_series_equal(final_losses(tmp_path / "shared"), undisturbed(path))


def _counts(output: str, state: str) -> list[str]:
    """The numbers before a state's name in a launch's summary line, such as `6 trials: 4 finished, 2 elsewhere`."""
    line = next(line for line in output.splitlines() if " trials: " in line and "to run" not in line)
    return [part.split()[0] for part in line.split(": ")[1].split(", ") if part.endswith(state)]
