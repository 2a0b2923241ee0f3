"""`tinyscale register`: the fits of a results folder, and runs that are not made yet -> a file of forecasts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from tinyscale.analysis.forecasts import Basis, Forecast, Registered, require_free, rows_hash, write_new
from tinyscale.analysis.predict import FLAGS, predict_all
from tinyscale.analysis.records import is_of, read_points_table, read_records
from tinyscale.analysis.runs import SAME_TASK, SETTINGS
from tinyscale.analysis.score import rows_at
from tinyscale.analysis.study import source_of
from tinyscale.analysis.table_file import stem_of
from tinyscale.errors import FitError, ResultsError
from tinyscale.fitting.points import COLUMNS, CONSTANT
from tinyscale.fitting.record import TRIALS, Record, file_stem
from tinyscale.formatting import compact
from tinyscale.results.provenance import launch_provenance
from tinyscale.results.schema import trial_columns
from tinyscale.results.store import Results, is_final
from tinyscale.spec.cell import Cell
from tinyscale.spec.state import State
from tinyscale.spec.trial import Trial
from tinyscale.storage import Folder

MOST_NAMED = 6  # trials named in a message
NOT_COMPARED = ("eval_points", "branches", "unique_tokens")  # settings that a forecast says nothing of


def register_trials(
    store: Results,
    sweep: str,
    trials: Sequence[tuple[Cell, Trial]],
    *,
    fit: str | None = None,
    name: str | None = None,
) -> tuple[Registered, list[str]]:
    """Register the loss of each trial that is not trained yet, and say what was left out.

    Cells whose trials are all finished are left out: the fit rests on such. ResultsError where another trial has rows,
    the name is taken, or the folder has no fit for a trial; FitError where the fit cannot be for it.
    """
    require_free(store.folder, name or sweep)
    cells = _untrained(store, sweep, trials)
    folder, records = read_records(store.location)
    fitted = _Fitted.reader(store, folder)
    forecasts, bases = [], {}
    for label, of_cell in cells.items():
        cell, trial = of_cell[0]
        chosen = _choose(records, fitted, sweep, cell, trial, fit)
        bases[chosen.basis.fit] = chosen.basis
        seeds = {each.identity: where.seed for where, each in of_cell}
        forecasts.append(replace(chosen.forecast_of(trial), label=label, trials=seeds))
    made = _registered(name or sweep, TRIALS, sweep, list(bases.values()), forecasts)
    write_new(store.folder, made)
    finished = len(trials) - sum(map(len, cells.values()))
    return made, [f"{finished} of {len(trials)} trials are trained already and have no forecast"] if finished else []


def _untrained(store: Results, sweep: str, trials: Sequence[tuple[Cell, Trial]]) -> dict[str, list[tuple[Cell, Trial]]]:
    """The cells that have no rows, by label; finished ones are left out.

    ResultsError where none is left, or where another trial of these cells has rows.
    """
    states = store.states()
    cells: dict[str, list[tuple[Cell, Trial]]] = {}
    for cell, trial in trials:
        cells.setdefault(cell.label_of_seeds or sweep, []).append((cell, trial))
    kept, seen = {}, []
    for label, of_cell in cells.items():
        state_of = {cell.label: states[trial.identity][0] for cell, trial in of_cell if trial.identity in states}
        if list(state_of.values()) != [State.FINISHED] * len(of_cell):
            kept[label] = of_cell
            seen += [f"{where} ({state})" for where, state in state_of.items()]
    if seen:
        raise ResultsError(
            f"{store.trials}: a forecast is registered before the run, and rows are there of {_listed(seen)}; leave "
            "their cells out with --select"
        )
    if not kept:
        raise ResultsError(
            f"{store.trials}: a forecast is registered before the run, and all trials of {sweep} have rows: "
            f"{_listed([cell.label for cell, _ in trials])}; add sizes that are not trained yet"
        )
    return kept


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


@dataclass(frozen=True)
class _Fitted:
    """A fit with the rows of results that it was fitted to."""

    record: Record
    folder: Folder
    points: pd.DataFrame  # as the fit read them
    rows: pd.DataFrame  # with all columns of the results

    @classmethod
    def reader(cls, store: Results, folder: Folder) -> Callable[[str, Record], _Fitted]:
        """Reads each fit once, by its name."""
        frame = store.read()[0]
        final = frame[is_final(frame)]
        known: dict[str, _Fitted] = {}

        def read(name: str, record: Record) -> _Fitted:
            if name not in known:
                points = read_points_table(folder, record)
                if "trial" not in points:
                    raise ResultsError(f"{folder}: the points of {name} name no trials; run tinyscale fit again")
                known[name] = cls(record, folder, points, final[final["trial"].isin(points["trial"])])
                if not known[name].basis.rests_on(known[name].rows):
                    raise ResultsError(
                        f"{store.trials}: the {len(points)} rows behind {name} are not those that are there now; run "
                        "tinyscale fit again"
                    )
            return known[name]

        return read

    @cached_property
    def basis(self) -> Basis:
        """What is written of it."""
        return replace(_basis(self.record, self.points), flops=float(self.rows["flops"].max()))

    def differences(self, trial: Trial) -> list[str]:
        """Settings that all fitted runs share and the trial has otherwise."""
        mine, found = trial_columns(trial), []
        for name in (name for name in SETTINGS if name in mine and name not in NOT_COMPARED):
            values = self.rows[name].dropna().unique()
            if len(values) == 1 and values[0] != mine[name] and name not in self.record.columns.values():
                found.append(f"{name} is {values[0]} in all fitted runs and {mine[name]} here")
        return found

    def forecast_of(self, trial: Trial) -> Forecast:
        """The forecast of a trial. FitError where its loss does not compare, or it is not on the law's slice."""
        columns = _columns_of(trial)
        for name in SAME_TASK:
            if name in columns and set(self.rows[name].dropna()) - {columns[name]}:
                raise FitError(
                    f"{self.record.name} was fitted to another {name.removesuffix('_hash')} than the trial's, so their "
                    "losses do not compare; name another --fit"
                )
        missing = [name for name in self.record.range if self.record.columns[name] not in columns]
        if missing:
            raise FitError(f"{self.record.name} reads {', '.join(missing)}, which no plan knows; name another --fit")
        self._refuse_off_slice(columns)
        known = {**COLUMNS, **self.record.columns}
        sizes = {name: float(columns[known[name]]) for name in dict.fromkeys(("n", "d", *self.record.range))}
        made = _forecast(self.folder, self.record, sizes, self.basis.flops, columns["flops"])
        return replace(made, notes=(*made.notes, *self.differences(trial)))

    def _refuse_off_slice(self, columns: Mapping[str, Any]) -> None:
        """FitError where the law is a slice, and the trial is on another: the curve there is another."""
        if not self.record.slice:
            return
        n, d = (self.rows[COLUMNS[name]].to_numpy(float) for name in ("n", "d"))
        here = {"N": columns[COLUMNS["n"]], "D": columns[COLUMNS["d"]]}
        held = {"N": (n, here["N"]), "D": (d, here["D"]), "D/N": (d / n, here["D"] / here["N"])}
        for what, (fitted, value) in held.items():
            if np.ptp(np.log(fitted)) <= CONSTANT and abs(math.log(value / np.median(fitted))) > CONSTANT:
                raise FitError(
                    f"{self.record.name} holds {self.record.slice}, and the trial has {what} = {compact(value)}: "
                    "forecast it with a law of N and D (vary both), or a fit of its own slice (--fit)"
                )


def _columns_of(trial: Trial) -> dict[str, Any]:
    """The columns of the row that the trial ends with, as far as they are known before."""
    tokens = trial.tokens
    counted = {name: per_token * tokens for name, per_token in trial.flops_per_token.items()}
    return {**trial_columns(trial), **counted, "tokens": tokens}


def _choose(
    records: Sequence[Record],
    fitted: Callable[[str, Record], _Fitted],
    sweep: str,
    cell: Cell,
    trial: Trial,
    name: str | None,
) -> _Fitted:
    """The fit that forecasts a trial: the one named; else of its sweep (or any, where that has none) and its arm.

    Where those are several, the one whose runs share the trial's settings. ResultsError where it is none or several.
    """
    usable = [each for each in records if each.is_of_loss and is_of(each, TRIALS)]
    if name is not None:
        found = [each for each in usable if each.name == name]
    else:
        of_sweep = [each for each in usable if each.origin.sweep == sweep] or usable
        found = [each for each in of_sweep if each.origin.arm in (cell.arm, "")]
        found = list({each.origin.title: each for each in reversed(found)}.values())  # the first law is the main one
    if len(found) > 1:
        found = [each for each in found if not fitted(each.name, each).differences(trial)] or found
    if len(found) == 1:
        return fitted(found[0].name, found[0])
    there = ", ".join(each.name for each in (found or usable)) or "none of a loss"
    which = f"no fit {name!r}" if name else f"{len(found) or 'no'} fits"
    raise ResultsError(
        f"{which} for {cell.label_of_seeds or sweep}; the fits are {there}: name one with --fit, or run tinyscale fit"
    )


def register_sizes(
    store: Results,
    file: str,
    sizes: Mapping[str, float],
    *,
    fit: str | None = None,
    name: str | None = None,
) -> Registered:
    """Register the loss of a run of these sizes (n, d, c), which is to become a row of a file of runs.

    The fits are those of the file in the results folder. ResultsError where the file has such a row, the name is taken
    or there is no fit; FitError where none predicts from these sizes.
    """
    name = name or file_stem(stem_of(file))
    require_free(store.folder, name)
    folder, records = read_records(store.location)
    record = _of_file(store, records, file, sizes, fit)
    points = read_points_table(folder, record)
    basis = _basis(record, points)
    if rows := rows_at(file, basis, sizes):
        raise ResultsError(
            f"{file}: a forecast is registered before the run, and {', '.join(rows)} has these sizes already; give "
            "others"
        )
    label = ", ".join(f"{variable.upper()} = {compact(value)}" for variable, value in sizes.items())
    flops = sizes["c"] if "c" in sizes else 6 * sizes["n"] * sizes["d"] if {"n", "d"} <= set(sizes) else None
    made = replace(_forecast(folder, record, sizes, basis.flops, flops), label=label)
    registered = _registered(name, record.origin.source, "", [basis], [made])
    write_new(store.folder, registered)
    return registered


def _of_file(
    store: Results, records: Sequence[Record], file: str, sizes: Mapping[str, float], fit: str | None
) -> Record:
    """The fit of a file that predicts a loss from these sizes. FitError where none does, ResultsError without a fit."""
    of_file = [each for each in records if each.is_of_loss and is_of(each, source_of(file))]
    named = [each for each in of_file if fit in (None, each.name)]
    if not named:
        there = ", ".join(each.name for each in of_file)
        raise ResultsError(
            f"{store.folder}: no fit {fit!r} of {file}; there are {there}"
            if fit and of_file
            else f"{store.folder}: no fit of {file}; run tinyscale fit {file} --results {store.folder} first"
        )
    found = [each for each in named if set(each.range) <= set(sizes)]
    if not found:
        takes = [f"{each.name} takes {' with '.join(FLAGS.get(name, name) for name in each.range)}" for each in named]
        raise FitError(
            f"no fit forecasts a loss from {' with '.join(FLAGS[name] for name in sizes)}; {'; '.join(takes)}"
        )
    if len({each.origin.title for each in found}) > 1:
        raise ResultsError(
            f"{len(found)} fits of {file}: {', '.join(each.name for each in found)}; name one with --fit"
        )
    return found[0]


def _forecast(
    folder: Folder, record: Record, sizes: Mapping[str, float], fitted_flops: float | None, flops: float | None
) -> Forecast:
    """What a fit says of the loss at these sizes. The one place that asks the engine."""
    (made,) = predict_all(folder, [record], {name: value for name, value in sizes.items() if name in record.range})
    loss, laws = made.values["loss"], {row["law"]: row["weight"] for row in record.forecast} or {record.law: 1.0}
    if not all(map(math.isfinite, (loss.value, *loss.ends))):
        raise FitError(f"{record.name}: no interval is found at {dict(sizes)}; forecast runs nearer to the fitted ones")
    times = flops / fitted_flops if flops and fitted_flops else None
    notes = tuple(note for note in made.notes if note not in record.warnings)
    return Forecast("", record.name, dict(sizes), flops, times, loss, laws, notes)


def _basis(record: Record, points: pd.DataFrame) -> Basis:
    """What is written of a fit and the rows behind it."""
    columns = {name: column for name, column in record.columns.items() if column in points}
    product = points[columns["n"]] * points[columns["d"]] * 6 if {"n", "d"} <= set(record.range) else None
    flops = points[columns["c"]] if "c" in columns else product
    basis = Basis(
        fit=record.name,
        sweep=record.origin.sweep,
        arm=record.origin.arm,
        law=record.law,
        formula=record.formula,
        columns=columns,
        rows=len(points),
        sha256="",
        trials=tuple(map(str, dict.fromkeys(points["trial"]))) if "trial" in points else (),
        flops=None if flops is None else float(flops.max()),
        notes=record.warnings,
    )
    return replace(basis, sha256=rows_hash(points, basis.hashed))


def _registered(
    name: str, source: str, sweep: str, bases: Sequence[Basis], forecasts: Sequence[Forecast]
) -> Registered:
    origin = launch_provenance()
    return Registered(
        name=name,
        source=source,
        sweep=sweep,
        time=origin["launched"],
        **{key: origin[key] for key in ("commit", "dirty", "packages", "command")},
        bases=tuple(bases),
        forecasts=tuple(forecasts),
    )
