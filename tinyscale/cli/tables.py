"""Tables and summaries for the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.table import Table

from tinyscale.analysis.forecasts import Registered, Registration, forecasts_table
from tinyscale.data.corpora import NamedCorpus
from tinyscale.formatting import compact, data_size, duration, plural
from tinyscale.planning.plan import WHY, Plan, PlannedTrial
from tinyscale.results.status import Status
from tinyscale.results.store import over_seeds
from tinyscale.spec.search_space import Search
from tinyscale.spec.state import OUT_OF_PATIENCE, State

if TYPE_CHECKING:
    from tinyscale.orchestration.summary import Measurements, Summary

MAX_ROWS = 60
MAX_REASONS = 12
LEAST_WANTED = ("memory", "steps", "FLOPs", "tokens")  # columns of a plan that a narrow terminal leaves out
PLAIN: dict[str, Any] = {"box": None, "header_style": "bold", "pad_edge": False}


def corpora_table(corpora: Sequence[NamedCorpus]) -> Table:
    """One row per named corpus."""
    table = Table(**PLAIN)
    for name in ("corpus", "bytes", "licence", "from", "here"):
        table.add_column(name, justify="right" if name == "bytes" else "left", no_wrap=True)
    for corpus in corpora:
        size = compact(corpus.size) if corpus.size else ""
        table.add_row(corpus.name, size, corpus.licence, corpus.origin, corpus.here)
    return table


def plan_table(plan: Plan, width: int | None = None) -> Table:
    """One row per cell of the grid, which holds its seeds and the samples of a search.

    width: of the terminal, in characters; the least important columns are left out where it is narrow.
    """
    search = plan.sweep.search
    cells: dict[str, list[PlannedTrial]] = {}
    for planned in plan.trials:
        cell = planned.cell.without(search.names if search else ())
        cells.setdefault(cell.key_of_seeds, []).append(planned)
    several = len({planned.cell.arm for planned in plan.trials}) > 1
    rows = [_plan_row(plan, cell, several) for cell in list(cells.values())[:MAX_ROWS]]
    shown = that_fit(rows, list(rows[0]), LEAST_WANTED, width)
    table = Table(title=plan.sweep.title or plan.sweep.name, title_justify="left", **PLAIN)
    words = ("arm", "state", *plan.sweep.axes, *(search.names if search else ()))
    for name in shown:
        table.add_column(name, justify="left" if name in words else "right", no_wrap=name == "state")
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    if len(cells) > MAX_ROWS:
        table.add_row(f"... and {len(cells) - MAX_ROWS} more")
    return table


def that_fit(
    rows: Sequence[dict[str, str]], shown: list[str], least_wanted: Sequence[str], width: int | None
) -> list[str]:
    """The columns without as many of the least wanted, the first of them first, as a terminal is too narrow for."""
    for name in least_wanted:
        if width is not None and name in shown and sum(_width(rows, column) + 2 for column in shown) > width + 2:
            shown = [column for column in shown if column != name]
    return shown


def _width(rows: Sequence[dict[str, str]], column: str) -> int:
    return max(len(column), *(len(row[column]) for row in rows))


def _plan_row(plan: Plan, cell: list[PlannedTrial], several_arms: bool) -> dict[str, str]:
    first = cell[0]
    trial = first.trial
    states = [planned.state.once_ended for planned in cell]
    search = plan.sweep.search
    return {
        **({"arm": first.cell.arm} if several_arms else {}),
        **{name: str(first.cell.axes.get(name, "")) for name in plan.sweep.axes},
        **(
            {name: str(values) for name, values in zip(search.names, search.fields.values(), strict=True)}
            if search
            else {}
        ),
        "trials" if search else "seeds": str(len(cell)),
        "N": compact(trial.parameters.n_non_embedding),
        "tokens": compact(trial.tokens),
        "steps": f"{trial.steps:,}",
        "FLOPs": compact(trial.flops),
        "memory": data_size(trial.memory_bytes),
        "each": duration(first.seconds) if first.seconds is not None else "",
        "state": ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)),
    }


def plan_summary(plan: Plan, price: float | None = None) -> list[str]:
    """Lines: what will run, why, how long it takes, and what it costs at `price` dollars per device-hour."""
    to_run = plan.to_run
    left = Counter[State](planned.state for planned in plan.trials if not planned.will_run)
    diverged = left.pop(State.DIVERGED, 0)
    counts = [f"{left.pop(State.FINISHED, 0)} finished", *(f"{left[state]} {state}" for state in State if left[state])]
    counts.append(f"{len(to_run)} to run")
    counts += [f"{plan.at_once} at a time" if plan.at_once else "none of which fits here"] if to_run else []
    lines = [f"{plural(len(plan.trials), 'trial')}: {', '.join(counts)}"]
    if diverged:
        lines.append(f"  {diverged} diverged, and would again: train with a lower rate, or see tinyscale retry")
    whys = Counter(": ".join(filter(None, [WHY[planned.state], planned.reason])) for planned in to_run)
    if set(whys) != {WHY[State.NEW]}:
        lines += [f"  {number}: {why}" for why, number in whys.most_common(MAX_REASONS)]
    lines += _measuring_lines(plan)
    if plan.has_work:
        tokens, flops = sum(p.trial.tokens for p in to_run), sum(p.trial.flops for p in to_run)
        work = f"{compact(tokens)} tokens, {compact(flops)} FLOPs; " if to_run else ""
        lines.append(f"{work}expected time {_expected_time(plan)}")
    if to_run and plan.device_hours:
        hours, device = plan.device_hours
        cost = f", ${hours * price:,.2f} at ${price:g} per {device}-hour" if price is not None else ""
        lines.append(f"{hours:.3g} {device}-hours{cost}")
    if to_run and plan.sweep.fuse:
        sets = plan.batched_sets
        lines.append(
            f"batched over {' and '.join(plan.sweep.fuse)}: {plural(len(sets), 'batched model')} of up to "
            f"{plural(max(map(len, sets)), 'trial')}; the expected time is that of training them one after another"
        )
    return [*lines, *plan.notes[:MAX_REASONS], *(f"warning: {warning}" for warning in plan.warnings)]


def _expected_time(plan: Plan) -> str:
    """Such as `about 1m50s (1m38s to 2m20s)`; without the range where it would not be seen."""
    if plan.seconds is None or plan.seconds_between is None:
        return "unknown (not measured here)"
    least, most = map(duration, plan.seconds_between)
    between = f" ({least} to {most})" if least != most else ""
    return f"about {duration(plan.seconds)}{between}"


def _measuring_lines(plan: Plan) -> list[str]:
    """How many measurements are made and missing, by kind."""
    if not plan.questions:
        return []
    missing = Counter(question.kind for questions in plan.measuring.missing.values() for question in questions)
    kinds = ", ".join(f"{number} {kind}" for kind, number in missing.items())
    counts = [f"{plan.measuring.done} made", f"{plan.measuring.count} to make{f' ({kinds})' if kinds else ''}"]
    failed = [f"{plan.measuring.failed} of these failed before"] if plan.measuring.failed else []
    return [f"{plural(plan.measuring.done + plan.measuring.count, 'measurement')}: {', '.join(counts + failed)}"]


def status_table(status: Status) -> Table:
    """One row per sweep: how many of its trials are in which state."""
    table = Table(**PLAIN)
    counts = {sweep.name: status.counts(sweep) for sweep in status.sweeps}
    present = [state for state in State if any(each[state] for each in counts.values())]
    for name in ("sweep", "trials", *present):
        table.add_column(name, justify="left" if name == "sweep" else "right")
    measured = {sweep.name: status.measurements(sweep) for sweep in status.sweeps if sweep.questions}
    if measured:
        table.add_column("measured", justify="right")
    for name, each in counts.items():
        made = measured.get(name, Counter())
        last = [f"{made[State.FINISHED]}/{made.total()}" if made else ""] if measured else []
        table.add_row(name, str(each.total()), *(str(each[state]) for state in present), *last)
    return table


def running_table(status: Status) -> Table:
    """One row per trial that a launch is training: how far it is."""
    table = Table(**PLAIN)
    for name in ("running", "done", "loss", "tok/s", "left"):
        table.add_column(name, justify="left" if name == "running" else "right", no_wrap=name != "running")
    cells = {entry.trial: f"{sweep.name} {entry.cell.label}" for sweep in status.sweeps for entry in sweep.entries}
    for trial, made in status.progress.items():
        share, speed, left = made.share, made.tokens_per_second, made.seconds_left
        table.add_row(
            cells.get(trial, trial),
            f"{share:.0%}" if share is not None else f"{compact(made.tokens)} tokens",
            f"{made.val_loss:.4f}" if made.val_loss is not None else "",
            compact(speed) if speed else "",
            duration(left) if left is not None else "",
        )
    return table


def results_table(points: pd.DataFrame, axes: Sequence[str]) -> Table:
    """Mean and standard deviation over seeds of the final losses, one row per cell."""
    final = points[points["decayed"].fillna(False).astype(bool) & (points["state"] == "finished")]
    by = ["arm", *(name for name in axes if name in final.columns), "n_non_embedding", "tokens"]
    rows = over_seeds(final, list(dict.fromkeys(by)))
    table = Table(**PLAIN)
    shown = [name for name in by if name != "arm" or rows["arm"].nunique() > 1]
    for name in [*dict.fromkeys(shown), "seeds", "val_loss", "bits_per_byte"]:
        table.add_column(name, justify="right")
    for row in rows.head(MAX_ROWS).to_dict("records"):
        counted = ("n_non_embedding", "tokens")
        cells = [compact(row[name]) if name in counted else str(row[name]) for name in dict.fromkeys(shown)]
        table.add_row(*cells, str(row["seeds"]), _spread(row, "val_loss"), _spread(row, "bits_per_byte"))
    return table


def best_samples(points: pd.DataFrame, search: Search, axes: Sequence[str]) -> pd.DataFrame:
    """The points of the best trial of each cell of a search."""
    ended = points[points["decayed"].fillna(False).astype(bool) & (points["state"] == "finished")]
    by = ["arm", *(name for name in axes if name in ended.columns and name not in search.names)]
    return ended.loc[ended.groupby(by, dropna=False)["val_loss"].idxmin()]


def _spread(row: dict[Any, Any], name: str) -> str:
    deviation = row[f"{name}_std"]
    return f"{row[f'{name}_mean']:.4f}" + (f" ± {deviation:.4f}" if math.isfinite(deviation) else "")


def launch_summary(summary: Summary, launched: int) -> list[str]:
    """Lines after a launch: the states of its trials, and how its slots used their time."""
    measured = _measured_lines(summary.measurements)
    if not launched:
        return measured or ["nothing to run: every trial had ended before"]
    states = Counter[State](state.once_ended for state in summary.states.values())
    states[State.MISSING] = launched - states.total()
    counted = ", ".join(f"{states[state]} {state}" for state in State if states[state])
    lines = [f"{plural(launched, 'trial')}: {counted}"]
    if any(reason.startswith(OUT_OF_PATIENCE) for reason in summary.reasons.values()):
        lines.append("  stopped by patience, so no fit reads them: a launch without it trains them to their end")
    if summary.timings:
        lines.append(
            f"{duration(summary.train_seconds)} of training on {plural(summary.slots, 'slot')} in "
            f"{duration(summary.wall_seconds)}{_against_forecast(summary)}; slots {summary.efficiency:.0%} busy, "
            f"{summary.overhead_per_trial:.2f} s between trials"
        )
    return [*lines, *measured]


def _against_forecast(summary: Summary) -> str:
    """How the launch's time compares with its forecast, where there was one and it ran to its end."""
    if summary.stopped or not summary.expected_seconds:
        return ""
    times = summary.wall_seconds / summary.expected_seconds
    how = "as forecast" if 0.9 < times < 1.1 else f"{times:.2g} times the forecast"
    return f", {how} ({duration(summary.expected_seconds)})"


def _measured_lines(made: Measurements) -> list[str]:
    """Lines: how many measurements were made, and why others were not."""
    count = made.made + made.failed + made.unasked
    if not count:
        return []
    parts = [f"{number} {what}" for number, what in ((made.made, "made"), (made.failed, "failed")) if number]
    left = [f"{made.unasked} not asked of trials that did not finish"] if made.unasked else []
    return [f"{plural(count, 'measurement')}: {', '.join(parts + left)}"]


def registered_table(made: Registration, width: int | None = None) -> Table:
    """One row per registered forecast; with its runs, where some are scored. width: as of `plan_table`."""
    forecasts = forecasts_table([made]).to_dict("records")
    rows = [_forecast_row(row) for row in forecasts[:MAX_ROWS]]
    filled = [name for name in rows[0] if any(row[name] for row in rows)]
    shown = that_fit(rows, filled, ("FLOPs", "tokens", "N"), width)
    table = Table(**PLAIN)
    for name in shown:
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=name != "run")
    for each in rows:
        table.add_row(*(each[name] for name in shown))
    if len(forecasts) > MAX_ROWS:
        table.add_row(f"... and {len(forecasts) - MAX_ROWS} more")
    return table


def _forecast_row(row: dict[Any, Any]) -> dict[str, str]:
    counted = {"N": "n", "tokens": "d", "FLOPs": "flops", "x compute": "times_beyond"}
    scored = bool(row["runs"])
    return {
        "run": row["label"],
        **{name: "" if pd.isna(row[column]) else compact(row[column]) for name, column in counted.items()},
        "forecast": f"{row['forecast']:.4f}",
        "95 % interval": f"{row['low']:.4f} to {row['high']:.4f}",
        "loss": f"{row['measured']:.4f}" if scored else "",
        "error": f"{row['error_percent']:+.2f} %" if scored else "",
        "inside": f"{row['inside']} of {row['runs']}" if scored else "",
    }


def registration_lines(made: Registered) -> list[str]:
    """Lines: what the forecasts rest on, and what to know before using them."""
    lines = [
        f"by {basis.fit}, fitted to {plural(basis.rows, 'row')}"
        + (f", the largest of {compact(basis.flops)} FLOPs (x compute: times these)" if basis.flops else "")
        for basis in made.bases
    ]
    averaged = [each.law_weights for each in made.forecasts if len(each.laws) > 1]
    lines += [f"laws and their weights: {each}" for each in dict.fromkeys(averaged)]
    said = [*(each.notes for each in made.forecasts), *(each.notes for each in made.bases)]
    notes = list(dict.fromkeys(note for each in said for note in each))
    more = [f"  ... and {len(notes) - MAX_REASONS} more notes, in the file"] if len(notes) > MAX_REASONS else []
    return [*lines, *(f"  note: {note}" for note in notes[:MAX_REASONS]), *more]


def calibration_lines(calibration: pd.DataFrame) -> list[str]:
    """How many runs the intervals held and how large the errors were, by distance and in all."""
    return [
        f"{row['distance']}: {row['inside']} of {plural(row['runs'], 'run')} inside; "
        f"error {row['mean_error_percent']:.2f} % in the mean, {row['largest_error_percent']:.2f} % at most"
        for row in calibration.to_dict("records")
    ]
