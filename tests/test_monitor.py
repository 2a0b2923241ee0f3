"""What a launch shows: a line a running trial that fits the terminal, failures at once, plain lines without one."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from helpers.trials import known_trial
from tinyscale.orchestration.monitor import Monitor, devices
from tinyscale.planning.plan import PlannedTrial
from tinyscale.spec.cell import Cell
from tinyscale.spec.config import Resources
from tinyscale.spec.state import State


def planned(**axes: int) -> PlannedTrial:
    return PlannedTrial(known_trial(**axes), Cell("base", axes, 0), State.NEW, None, seconds=10.0)


TRIALS = [planned(d_model=width) for width in (16, 32)]
LONG = replace(TRIALS[0], cell=Cell("base", {f"a_field_with_a_long_name_{k}": 1_000_000 for k in range(5)}, 0))


def watch(width: int = 80, *, terminal: bool = True, quiet: bool = False) -> tuple[Monitor, io.StringIO]:
    out = io.StringIO()
    look = {"width": width, "force_terminal": terminal, "highlight": False, "soft_wrap": True, "color_system": None}
    console = Console(file=out, **look)  # type: ignore[arg-type]
    return Monitor([*TRIALS, LONG], console, quiet=quiet), out


def shown(monitor: Monitor) -> list[str]:
    """The lines of the live part."""
    with monitor.console.capture() as capture:
        monitor.console.print(monitor.render(), soft_wrap=False)
    return capture.get().rstrip().splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_each_running_trial_is_one_line_that_fits_the_terminal(width: int) -> None:
    monitor, _ = watch(width)
    for each in (TRIALS[0], LONG):
        monitor.started(each)
        identity = each.trial.identity
        for tokens in (0, each.trial.tokens // 4):
            monitor.running[identity].reported -= 2.0  # two seconds ago
            monitor.on_report(identity, {"tokens": tokens, "val_loss": 3.21987})
    lines = shown(monitor)
    assert len(lines) == 2, "both are one trial"
    assert all(len(line) <= width for line in lines)
    for word in ("25%", "loss 3.220", "tok/s", "1 core", "left"):
        assert word in lines[1], word


def test_a_name_too_long_is_cut_and_the_numbers_stay() -> None:
    monitor, _ = watch(80)
    monitor.started(LONG)
    (_, line) = shown(monitor)
    assert "…" in line
    assert "1 core" in line


def test_totals_count_what_ended_runs_and_failed() -> None:
    monitor, _ = watch()
    monitor.started(TRIALS[0])
    monitor.started(TRIALS[1])
    monitor.end(TRIALS[0], State.FINISHED, None)
    monitor.end(TRIALS[1], State.FAILED, "the disk is full")
    assert shown(monitor)[0].startswith("1/3 finished, 0 running, 1 waiting, 1 failed; ")


def test_a_resumed_trial_has_the_speed_of_this_attempt() -> None:
    monitor, _ = watch(120)
    resumed = replace(TRIALS[0], state=State.RUNNING)
    monitor.started(resumed)
    running, tokens = monitor.running[resumed.trial.identity], resumed.trial.tokens
    for share, seconds in ((0.1, 0.0), (0.4, 0.0), (0.5, 2.0), (0.6, 2.0)):  # two points of before, then two of now
        running.reported -= seconds
        monitor.on_report(resumed.trial.identity, {"tokens": round(share * tokens)})
    assert running.tokens_per_second == pytest.approx(0.1 * tokens / 2, rel=0.05)
    assert running.share_here == pytest.approx(0.2), "of the half that was left"


def test_a_trial_that_was_asked_to_stop_has_not_ended() -> None:
    monitor, _ = watch()
    monitor.started(TRIALS[0])
    monitor.end(TRIALS[0], State.RUNNING, "stopped on request")
    assert shown(monitor)[0].startswith("0/3 finished, 0 running, 2 waiting, 1 interrupted; ")


def test_losses_of_finished_trials_stay_in_a_table_by_cell() -> None:
    monitor, _ = watch()
    for seed, loss in enumerate((3.25, 3.5)):
        each = replace(TRIALS[0], trial=known_trial(d_model=16, seed=seed), cell=replace(TRIALS[0].cell, seed=seed))
        monitor.started(each)
        monitor.on_report(each.trial.identity, {"tokens": each.trial.tokens, "val_loss": loss})
        monitor.end(each, State.FINISHED, None)
    assert shown(monitor)[-2:] == ["finished, with the loss of each seed:", "d_model=16  3.2500  3.5000"]


def test_no_column_moves_as_the_numbers_of_a_trial_change() -> None:
    monitor, _ = watch(120)
    monitor.started(TRIALS[0])
    lines = []
    for tokens, loss in ((0, 5.5), (TRIALS[0].trial.tokens // 2, 3.25)):
        monitor.running[TRIALS[0].trial.identity].reported -= 2.0
        monitor.on_report(TRIALS[0].trial.identity, {"tokens": tokens, "val_loss": loss})
        lines.append(shown(monitor)[1])
    assert [line.index("loss ") for line in lines] == [lines[0].index("loss ")] * 2
    assert [line.index("%") for line in lines] == [lines[0].index("%")] * 2
    assert all(len(line) <= 120 - len("^C") for line in lines), "what a terminal shows of Ctrl-C wraps no line"


def test_the_time_left_is_the_forecasts_until_there_is_any_work_done() -> None:
    out = Console(file=io.StringIO(), width=80, force_terminal=True)
    assert "about 15s left" in shown(Monitor([*TRIALS, LONG], out, quiet=False, at_once=2))[0]
    assert "unknown time left" in shown(Monitor([*TRIALS, LONG], out, quiet=False))[0]


def test_a_loss_above_that_of_a_model_that_knows_nothing_is_pointed_out_once() -> None:
    monitor, out = watch(400)
    monitor.started(TRIALS[0])
    for loss in (5.0, 268.4, 270.0):
        monitor.on_report(TRIALS[0].trial.identity, {"tokens": 512, "val_loss": loss})
    (line,) = out.getvalue().splitlines()
    assert line.startswith("d_model=16 seed=0: loss 268.4 at 512 tokens, above the 5.55 of a model that knows nothing")


@pytest.mark.parametrize("quiet", [True, False])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_failure_is_told_at_once_with_its_reason(terminal: bool, quiet: bool) -> None:
    monitor, out = watch(terminal=terminal, quiet=quiet)
    with monitor:
        monitor.started(TRIALS[0])
        monitor.end(TRIALS[0], State.FAILED, "out of GPU memory at a peak of 3.1 GiB")
        assert "failed: d_model=16 seed=0: out of GPU memory at a peak of 3.1 GiB" in out.getvalue()


def test_without_a_terminal_each_end_is_a_plain_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monitor, out = watch(terminal=False)
    with monitor:
        monitor.started(TRIALS[0])
        monitor.end(TRIALS[0], State.FINISHED, None)
    assert out.getvalue() == "1/3 finished: d_model=16 seed=0, unknown time left\n"


def test_continuous_integration_gets_plain_lines_even_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    monitor, out = watch(terminal=True)
    with monitor:
        monitor.started(TRIALS[0])
        monitor.end(TRIALS[0], State.FINISHED, None)
    assert out.getvalue() == "1/3 finished: d_model=16 seed=0, unknown time left\n"


def test_quiet_says_nothing_of_what_goes_well() -> None:
    monitor, out = watch(terminal=False, quiet=True)
    with monitor:
        monitor.started(TRIALS[0])
        monitor.end(TRIALS[0], State.FINISHED, None)
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("resources", "words"),
    [({}, "1 core"), ({"cpu": 2}, "2 cores"), ({"gpu": 0.25}, "0.25 GPU"), ({"gpu": 1, "workers": 4}, "4 x 1 GPU")],
)
def test_a_trials_share_of_a_device_is_in_words(resources: dict[str, float], words: str) -> None:
    assert devices(Resources.model_validate(resources)) == words
