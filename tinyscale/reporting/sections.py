"""The sections of the page: the blocks of each sweep, and the files that they show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pandas as pd
from markupsafe import Markup

from tinyscale.analysis.compare import Contrast
from tinyscale.analysis.forecasts import EDITED, Registration
from tinyscale.analysis.group_fits import Refusal
from tinyscale.analysis.measured import measurement_rows
from tinyscale.analysis.positions import falls_beyond, position_losses, positions_over_seeds, positions_verdict
from tinyscale.analysis.ranks import ranks_in_words
from tinyscale.analysis.study import Analysis
from tinyscale.fitting.choose import AnyFit
from tinyscale.fitting.record import Record
from tinyscale.fitting.text import formula_with_numbers, verdict
from tinyscale.reporting.blocks import Block, Figure, Heading, Notes, Section, shown_figure, write_csv
from tinyscale.reporting.figures import figures_of, stem_of, write_figure
from tinyscale.reporting.plot_bits import plot_delta, plot_front
from tinyscale.reporting.plot_contrasts import plot_contrasts
from tinyscale.reporting.plot_forecasts import plot_forecasts
from tinyscale.reporting.plot_memory import plot_memory
from tinyscale.reporting.plot_rates import plot_rates, rates_tried
from tinyscale.reporting.plot_runs import plot_positions, plot_runs
from tinyscale.reporting.tables import (
    Table,
    calibration_of,
    contrasts_of,
    costs_of,
    dropped_of,
    evidence_of,
    final_losses,
    forecasts_of,
    frontier_of,
    launches_of,
    measured_of,
    multipliers_by_size,
    parameters_of,
    positions_of,
    ranks_of,
    setup_of,
    trials_of,
)
from tinyscale.results.launches import read_launches
from tinyscale.results.status import read_status
from tinyscale.results.store import Results, sweep_points
from tinyscale.results.sweep_record import SweepEntry, SweepRecord
from tinyscale.spec.cell import Cell
from tinyscale.spec.measurement import KINDS
from tinyscale.spec.state import State

ORDER = ("loss", "budgets", "sizes", "jumps", "texts")  # of the sections, by what their laws are of
EXCESS = "Loss above the law's floor E, on logarithmic axes: where the law holds, the runs lie on a straight line."
RESIDUALS = (
    "What the law leaves over: measured loss against the law's, in percent. A bend across the sizes means that the law "
    "is not the right one."
)
CURVES = {
    "tokens": "Training curves: validation loss on the way, a line a run.",
    "flops": "The same against the compute spent so far, attention and head included.",
    "wall_seconds": "The same against the run's own training time, which depends on the machine and on its neighbours.",
}
FORECASTS = (
    "Registered forecasts by distance: each 95 % interval, and each run as a circle, in percent of the forecast (zero: "
    "exactly as forecast). An interval without a circle has no run yet."
)
ROUNDING = {
    "front": "Loss against the bits of the whole model, scales included, of the models with the most tokens: a line "
    "per width, from few bits per weight to many. Of the models on the front none has a lower loss in as few bits.",
    "delta": "Loss that rounding adds against the bits of a weight: a line per width, bars are 95 % intervals. Where "
    "rounding errors are small, theory has it fall by a factor of four with each bit.",
}
MEMORY = {
    "training": "Loss against the bytes of a training step: parameters, their gradients, the state of the optimizer, "
    "and what the forward pass keeps for the backward one. Of the models on the front none has a lower loss in as few.",
    "use": "Loss against the bytes of use: parameters as they are stored, and keys and values of a full context.",
}
CONTRASTS = (
    "Arms against the base, the best on top: the mean difference over runs of the same size, tokens and seed, with its "
    "95 % interval, corrected for the number of arms; circles are the means at each size. Grey: no difference seen."
)
RATES = (
    "Loss against the learning rate, for each arm and size (three of the sizes at most): means over seeds, at the best "
    "of other settings that vary. A ring is the best rate; where it is the lowest or the highest tried, a better one "
    "may lie outside."
)
POSITIONS = (
    "Loss by position, of each arm's largest size: targets with so many tokens of their document before them in the "
    "context, in bins that double; the last one ends at the context's length. A line is the mean over seeds, its band "
    "± one standard deviation."
)


def _nameless(frame: pd.DataFrame) -> SweepRecord:
    """For a folder of trials without a sweep: all of them, as `tinyscale fit` reads it."""
    entries = tuple(SweepEntry(trial, Cell("all", {}, 0)) for trial in frame["trial"].unique())
    return SweepRecord("all", "All trials of the folder", "", (), entries, {})


class Sections:
    """Makes the blocks of the page and, unless told otherwise, writes the file that each one shows.

    drawn: name of each figure -> what draws it; written: the paths.
    """

    def __init__(self, store: Results, done: Analysis, *, writes: bool = True) -> None:
        self.store, self.folder, self.done, self.status = store, store.folder, done, read_status(store)
        self.launches = read_launches(store.launches)
        self.measured, self.unreadable = store.read_measurements()
        self.writes = writes
        self.drawn: dict[str, Callable[..., object]] = {}
        self.written: list[str] = []

    def sections(self, notify: Callable[[str], None] = lambda _: None) -> tuple[list[Section], list[str]]:
        """One for each sweep in the order of the page, and the files that cannot be read."""
        frame, set_aside = self.store.read()
        records = sorted(self.status.sweeps or (_nameless(frame),), key=self.place)
        made = []
        for number, record in enumerate(records, 1):
            notify(f"drawing {record.name}, {number} of {len(records)}")
            made.append(self.section(record, sweep_points(frame, record)))
        return made, list(set_aside)

    def place(self, record: SweepRecord) -> tuple[int, int]:
        """Where the sweep's section stands: laws of the loss, those of most variables first, best sizes, best settings,
        comparisons, what has none.
        """
        if any(each.sweep == record.name for each in self.done.contrasts):
            return len(ORDER), 0
        fits = [found.record for found in self.done.fits if found.origin.sweep == record.name]
        return min(((ORDER.index(fit.form.kind), -len(fit.range)) for fit in fits), default=(len(ORDER) + 1, 0))

    def section(self, record: SweepRecord, points: pd.DataFrame) -> Section:
        """What the page says of one sweep."""
        fits = [found for found in self.done.fits if found.origin.sweep == record.name]
        contrasts = [each for each in self.done.contrasts if each.sweep == record.name]
        refused = [each for each in self.done.refused if each.sweep == record.name]
        named = [f"{found.origin.title}: " if len(fits) > 1 else "" for found in fits]
        verdicts = [f"{each.verdict[:1].upper()}{each.verdict[1:]}." for each in contrasts]
        verdicts += [f"{text[:1].upper()}{text[1:]}." for text in ranks_in_words(contrasts)]
        verdicts += [name + verdict(found.record) for name, found in zip(named, fits, strict=True)]
        by_position = position_losses(points)
        falls = falls_beyond(by_position)
        if not fits and not contrasts and not refused:
            refused = [Refusal(record.name, "none of its trials has rows yet; launch it")]
        if not verdicts:
            reasons = dict.fromkeys(each.reason for each in refused)
            verdicts, refused = [f"No law is fitted: {reason}." for reason in reasons], []
        verdicts += [positions_verdict(falls)] if len(falls) else []
        blocks = [
            *(block for found in fits for block in self._of_fit(found)),
            *(self._of_contrasts(record, contrasts) if contrasts else []),
            *self._of_runs(record, points),
            *(self._of_positions(record, by_position, falls) if len(falls) else []),
            *self._of_measurements(record, points),
            *self._of_trials(record, points),
            *([Notes("Not fitted", tuple(map(str, refused)))] if refused else []),
        ]
        trials = self.status.counts(record).total()
        return Section(record.name, record.title or record.name, tuple(verdicts), tuple(blocks), trials)

    def _of_fit(self, found: AnyFit) -> Iterator[Block]:
        """The law, its plots, its numbers, and what speaks for and against it."""
        record, figures = found.record, figures_of(found)
        excess, residuals = figures.pop("excess", None), figures.pop("residuals", None)
        yield Heading(f"{record.origin.title}: {formula_with_numbers(record)}")
        for what, draw in figures.items():
            self.drawn[stem_of(found, what)] = draw
            yield self._figure(stem_of(found, what), _caption(record, what))
        if record.warnings:
            yield Notes("Before you use these numbers", record.warnings)
        yield self.table(parameters_of(record))
        yield self.table(evidence_of(record))
        if excess:
            yield self._draw(stem_of(found, "excess"), excess, EXCESS)
        if residuals:
            yield self._draw(stem_of(found, "residuals"), residuals, RESIDUALS)
        if record.form.has_frontier and found.curve:
            yield self.table(frontier_of(record, found.curve, found.runs))

    def _of_contrasts(self, record: SweepRecord, contrasts: list[Contrast]) -> Iterator[Block]:
        """Each arm against the base."""
        yield self._draw(f"{record.name}-contrasts", partial(plot_contrasts, contrasts), CONTRASTS)
        yield self.table(contrasts_of(record.name, contrasts))
        if any(each.multipliers for each in contrasts):
            yield self.table(multipliers_by_size(record.name, contrasts))
        ranks = ranks_of(record.name, contrasts)
        if len(ranks.frame):
            yield self.table(ranks)

    def _of_runs(self, record: SweepRecord, points: pd.DataFrame) -> Iterator[Block]:
        """Losses at the end, and on the way against tokens, FLOPs and time."""
        if not points["val_loss"].notna().any():
            return
        yield Heading("The runs")
        yield self.table(setup_of(record, points))
        yield self.table(final_losses(record, points))
        by = _colour(record, points)
        self._write(f"{record.name}-points", points)
        for x, caption in CURVES.items():
            if (points[x] > 0).any():
                draw = partial(plot_runs, points, x, by, title=record.title)
                yield self._draw(f"{record.name}-loss-{x}", draw, f"{caption} Data: tables/{record.name}-points.csv.")
        tried = rates_tried(points, record.axis_columns)
        if len(tried):
            self._write(f"{record.name}-rates", tried)
            caption = f"{RATES} Data: tables/{record.name}-rates.csv."
            yield self._draw(
                f"{record.name}-rates", partial(plot_rates, tried, searched=bool(record.searched)), caption
            )
        yield self.table(trials_of(record, points))

    def _of_positions(self, record: SweepRecord, losses: pd.DataFrame, falls: pd.DataFrame) -> Iterator[Block]:
        """Loss against the tokens that a target sees of its document."""
        yield Heading("Loss by position in the context")
        means = positions_over_seeds(losses)
        self._write(f"{record.name}-positions", means)
        largest = means[means["n_non_embedding"] == means.groupby("arm")["n_non_embedding"].transform("max")]
        caption = f"{POSITIONS} Data: tables/{record.name}-positions.csv."
        yield self._draw(f"{record.name}-positions", partial(plot_positions, largest), caption)
        yield self.table(positions_of(record.name, falls))

    def _of_measurements(self, record: SweepRecord, points: pd.DataFrame) -> Iterator[Block]:
        """What was measured of the finished trials, kind by kind."""
        measured = self.measured[self.measured["trial"].isin(record.trials)]
        for kind in [kind for kind in KINDS if (measured["kind"] == kind).any()]:
            rows = measurement_rows(points, measured, kind)
            self._write(f"{record.name}-{kind}-rows", rows)
            finished = rows[rows["state"] == State.FINISHED]
            yield Heading(f"Measured: {kind}")
            if len(finished):
                drawn = {"quantize": self._of_rounding, "memory": self._of_memory}.get(kind)
                yield from drawn(record, finished) if drawn else ()
                yield self.table(measured_of(record, kind, finished))
            if failed := [str(reason) for reason in rows.loc[rows["state"] == State.FAILED].get("reason", [])]:
                yield Notes("Failed measurements", tuple(failed))

    def _of_rounding(self, record: SweepRecord, rows: pd.DataFrame) -> Iterator[Block]:
        """Loss against bits, of the models with the most tokens and of one arm, with as much rounded as was."""
        rows = rows[(rows["tokens"] == rows["tokens"].max()) & (rows["arm"] == rows["arm"].iloc[0])]
        rows = rows[rows["of"] == rows["of"].min()]
        rows = rows[rows["method"] == rows["method"].iloc[0]]
        drawn = {"front": plot_front} | ({"delta": plot_delta} if (rows["delta"] > 0).any() else {})
        for what, draw in drawn.items():
            yield self._draw(f"{record.name}-quantize-{what}", partial(draw, rows), ROUNDING[what])

    def _of_memory(self, record: SweepRecord, rows: pd.DataFrame) -> Iterator[Block]:
        """Loss against the bytes of a training step, and against those of use."""
        for what, caption in MEMORY.items():
            yield self._draw(f"{record.name}-memory-{what}", partial(plot_memory, rows, what), caption)

    def _of_trials(self, record: SweepRecord, points: pd.DataFrame) -> Iterator[Block]:
        """What the launch cost, what failed, and which rows no fit used."""
        yield Heading("Cost, and what was left out")
        yield self.table(costs_of(record, points, self.status.counts(record)))
        launches = launches_of(record.name, self.launches)
        if len(launches.frame):
            yield self.table(launches)
        dropped = dropped_of(record.name, self.done.dropped)
        if len(dropped.frame):
            yield self.table(dropped)
        if failures := replace(self.status, sweeps=(record,)).failures():
            yield Notes("Failed and diverged trials", tuple(failures))

    def forecasts(self, made: list[Registration]) -> Iterator[Block]:
        """All registered forecasts with what came of them, and their calibration."""
        shown = [each for each in made if each.intact]
        if edited := [f"forecasts/{each.name}.json: {EDITED}" for each in made if not each.intact]:
            yield Notes("Not shown", tuple(edited))
        if not shown:
            return
        table = forecasts_of(shown)
        if table.frame["times_beyond"].notna().any():
            yield self._draw("forecasts", partial(plot_forecasts, shown), f"{FORECASTS} Data: tables/forecasts.csv.")
        if any(each.scores for each in shown):
            yield self.table(calibration_of(shown))
        yield self.table(table)
        if notes := [f"{each.name}: {note}" for each in shown for note in each.notes]:
            yield Notes("Without a score", tuple(notes))

    def table(self, table: Table) -> Table:
        """The table, its CSV written."""
        self._write(table.name, table.frame)
        return table

    def _write(self, name: str, frame: pd.DataFrame) -> None:
        if self.writes:
            self.written.append(write_csv(self.folder, name, frame))

    def _draw(self, stem: str, draw: Callable[..., object], caption: str) -> Figure:
        self.drawn[stem] = draw
        if self.writes:
            self.written += write_figure(self.folder, stem, draw)
        return self._figure(stem, caption)

    def _figure(self, stem: str, caption: str) -> Figure:
        return shown_figure(self.folder, stem, caption) if self.writes else Figure(stem, Markup(), caption)


def _caption(record: Record, what: str) -> str:
    """What a plot of a fit shows."""
    if what == "curves":
        swept = "the setting at each size" if record.form.kind == "sizes" else "parameters at each budget of compute"
        return f"Loss against {swept}, a line through the means of seeds; the bottom of a curve is its best."
    if record.form.kind == "jumps":
        return "Where the loss of copies jumps: bars are one standard deviation, a line for each size is the law."
    if record.form.kind == "texts":
        return "The shares at which the mean loss of all texts is least, with their 95 % intervals."
    if record.form.kind != "loss":
        return (
            "The best value at each size or budget, with the power law through them and its 95 % band; bars are one "
            "standard deviation."
        )
    shown = (
        "The runs and the law, with the 95 % band of its curve, drawn up to four times beyond the largest size."
        if len(record.range) == 1
        else "The runs and the law: a colour, a curve and its 95 % band for each size."
    )
    return f"{shown} The diamond is the largest size as a law of only the smaller ones predicts it."


def _colour(record: SweepRecord, points: pd.DataFrame) -> str:
    """The column that tells the runs apart best: the first axis that varies, else the arm, else the size."""
    names = [*record.axis_columns, "arm", "n_non_embedding"]
    return next((name for name in names if name in points and points[name].nunique() > 1), "n_non_embedding")
