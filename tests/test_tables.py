"""Tables for the terminal: they fit it, and a narrow one goes without what matters least."""

from __future__ import annotations

from rich.console import Console

from helpers.trials import known_trial
from tinyscale.cli.tables import plan_table
from tinyscale.planning.plan import Plan, PlannedTrial
from tinyscale.spec.cell import Cell
from tinyscale.spec.state import State
from tinyscale.spec.sweep import Sweep


def plan(arms: tuple[str, ...] = ("adamw", "lion_with_a_name")) -> Plan:
    """Two arms of two widths and two rates, one trial of them done."""
    trials = []
    for arm in arms:
        for width, lr in ((128, 0.005), (16384, 0.00125)):
            trial = known_trial(d_model=width, lr=lr, tokens_budget=4_096_000, repeats=True)
            state = State.FINISHED if width == 128 else State.NEW
            trials.append(PlannedTrial(trial, Cell(arm, {"d_model": width, "lr": lr}, 0), state, None, seconds=7384.0))
    sweep = Sweep("made", "A question", "made.yaml", "", ("d_model", "lr"), ())
    return Plan(sweep, tuple(trials), 2, ())


def lines(width: int) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(plan_table(plan(), width))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_a_plan_fits_eighty_columns_with_a_line_a_cell_and_no_word_cut() -> None:
    shown = lines(80)
    assert len(shown) == 2 + 4, "title, heads and a line a cell"
    assert max(map(len, shown)) <= 80
    assert "…" not in "".join(shown)
    for head in ("arm", "d_model", "lr", "seeds", "N", "each", "state"):
        assert head in shown[1].split(), head
    assert shown[-1].endswith("2h03m  1 new")


def test_a_wide_terminal_gets_all_columns() -> None:
    heads = lines(120)[1].split()
    assert heads == ["arm", "d_model", "lr", "seeds", "N", "tokens", "steps", "FLOPs", "memory", "each", "state"]
