"""Text of users on a terminal: printed as it is, read as no markup, obeyed by no terminal."""

from __future__ import annotations

import io

import pytest

from helpers.trials import known_trial
from tinyscale.cli.tables import plan_summary, plan_table, results_table, status_table
from tinyscale.errors import ConfigError
from tinyscale.orchestration.monitor import Monitor
from tinyscale.planning.plan import Plan, PlannedTrial
from tinyscale.reporting.terminal import PlainConsole
from tinyscale.results.status import read_status
from tinyscale.results.store import Results, sweep_points
from tinyscale.results.sweep_record import SweepEntry, SweepRecord
from tinyscale.spec.cell import Cell
from tinyscale.spec.state import State
from tinyscale.spec.sweep import Sweep, load_sweep

MARKUP = "cost [/x] [bold] :smile: in [/data/x]"
TRIAL = known_trial(seed=0)


def console() -> tuple[PlainConsole, io.StringIO]:
    out = io.StringIO()
    return PlainConsole(file=out, width=400, force_terminal=True, color_system=None, soft_wrap=True), out


def planned(arm: str = MARKUP, corpus: str = MARKUP) -> PlannedTrial:
    return PlannedTrial(TRIAL, Cell(arm, {"corpus": corpus}, 0), State.FAILED, MARKUP, seconds=10.0)


def test_titles_arms_axes_and_reasons_of_a_plan_are_no_markup() -> None:
    sweep = Sweep("s", MARKUP, "s.yaml", "", ("corpus",), ())
    plan = Plan(sweep, (planned(), planned("base", "x")), at_once=1, warnings=(MARKUP,), notes=(MARKUP,))
    to, out = console()
    to.print(plan_table(plan))
    for line in plan_summary(plan):
        to.print(line)
    lines = out.getvalue().splitlines()
    assert lines[0].rstrip() == MARKUP
    assert f"{MARKUP}  {MARKUP}" in lines[2], "arm and axis"
    assert sum(MARKUP in line for line in lines) == 5, "title, row, reason, note, warning"


def test_a_live_view_shows_names_and_reasons_as_they_are() -> None:
    to, out = console()
    monitor = Monitor([planned(), planned("base")], to, quiet=False)
    monitor.started(planned())
    to.print(monitor.render())
    monitor.end(planned(), State.FAILED, "lost \x1b[31m[/data/x]")
    assert out.getvalue().count(MARKUP) == 4, "arm and axis, running and failed"
    assert r"lost \x1b[31m[/data/x]" in out.getvalue()


def test_the_results_of_a_sweep_and_its_status_are_no_markup(results: Results) -> None:
    results.write_trial(TRIAL, [], "failed", f"\x1b]0;title\x07 {MARKUP}", {})
    record = SweepRecord("s", "", "", (), (SweepEntry(TRIAL.identity, Cell(MARKUP, {}, 0)),), {})
    results.write_sweep(record)
    to, out = console()
    status = read_status(results)
    to.print(status_table(status))
    for line in status.failures():
        to.print(line)
    assert out.getvalue().splitlines()[-1] == rf"failed: s {MARKUP} seed=0: \x1b]0;title\x07 {MARKUP}"
    ended = {"state": "finished", "decayed": True, "val_loss": 2.0, "bits_per_byte": 1.0}
    to.print(results_table(sweep_points(results.read()[0], record).assign(**ended), ["corpus"]))


@pytest.mark.parametrize("text", ['title: "a\\e[31m"\n', 'arms: {"a\\a": {lr: 1e-3}}\n'])
def test_control_characters_in_titles_and_arms_are_refused(tmp_path, text: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"name: s\nbase: {{}}\n{text}")
    with pytest.raises(ConfigError, match=r"s.yaml, line 3: .*is a control character, which a terminal would obey"):
        load_sweep(path)
