"""Which trials a results folder holds: their names, their cells, how they ended."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tinyscale.errors import ResultsError
from tinyscale.formatting import nearest
from tinyscale.results.status import read_status
from tinyscale.results.store import Results
from tinyscale.results.sweep_record import SweepRecord
from tinyscale.spec.cell import Cell
from tinyscale.spec.state import State
from tinyscale.spec.values import quantity

SHORTEST = 6  # characters of an identity that are shown, at least
MOST_NAMED = 5  # trials that an error names


@dataclass(frozen=True)
class SweepCell:
    """The cell of a trial in a sweep."""

    sweep: str
    cell: Cell

    def __str__(self) -> str:
        return f"{self.sweep}/{self.cell.name}"

    def as_json(self) -> dict[str, Any]:
        """The sweep's name and the cell."""
        return {"sweep": self.sweep, **self.cell.as_json()}


def cells_by_trial(records: Iterable[SweepRecord]) -> dict[str, list[SweepCell]]:
    """Where each trial of these sweeps stands: a trial may belong to several, and to several arms of one."""
    found: dict[str, list[SweepCell]] = {}
    for record in records:
        for entry in record.entries:
            found.setdefault(entry.trial, []).append(SweepCell(record.name, entry.cell))
    return found


@dataclass(frozen=True)
class ListedTrial:
    """A trial as `tinyscale ls` shows it.

    short: the beginning of the identity that names it alone. cells: those of the sweep asked for come first. loss: of
    its last evaluation, nats per token. n: parameters of the blocks. tokens, seconds: trained so far. disk: bytes of
    its rows, measurements and checkpoints.
    """

    trial: str
    short: str
    cells: tuple[SweepCell, ...]
    state: State
    reason: str | None = None
    loss: float | None = None
    n: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    disk: int = 0

    def as_json(self) -> dict[str, Any]:
        """What `ls --json` prints of it."""
        return {**vars(self), "cells": [cell.as_json() for cell in self.cells]}


def list_trials(results: Results, *, sweep: str | None = None, states: Sequence[str] = ()) -> list[ListedTrial]:
    """The trials of a results folder in the order of its sweeps, then those that no sweep names.

    sweep, states: only theirs. ResultsError for a sweep that is not there.
    """
    status = read_status(results)
    if sweep is not None:
        require_sweep(results, sweep, status.sweeps)
    cells = cells_by_trial(status.sweeps)
    trials = dict.fromkeys([*cells, *status.states])
    length = _length_of_short(trials)
    last, disk = _last_points(results), disk_of_trials(results.folder.sizes())
    found = []
    for trial in trials:
        state, reason = status.of(trial)
        own = tuple(sorted(cells.get(trial, ()), key=lambda each: each.sweep != sweep))
        if (sweep is None or (own and own[0].sweep == sweep)) and (state in states or not states):
            row = last.get(trial, {})
            found.append(ListedTrial(trial, trial[:length], own, state, reason, **row, disk=disk.get(trial, 0)))
    return found


def _last_points(results: Results) -> dict[str, dict[str, Any]]:
    """What each trial's last evaluation says of it; of one without any, its size."""
    names = {"loss": "val_loss", "n": "n_non_embedding", "tokens": "tokens", "seconds": "wall_seconds"}
    frame, _ = results.read(columns=["trial", "state", *names.values()])
    kept = frame[frame["val_loss"].notna() | ~frame["trial"].duplicated()].drop_duplicates("trial", keep="last")
    whole = {"n", "tokens"}
    return {
        str(row["trial"]): {
            name: None if pd.isna(value) else int(value) if name in whole else float(value)
            for name, value in ((name, row[column]) for name, column in names.items())
        }
        for row in kept.to_dict("records")
    }


def disk_of_trials(sizes: dict[str, int]) -> dict[str, int]:
    """Bytes of each trial's files. sizes: of all files of a results folder, by their path in it."""
    disk: dict[str, int] = {}
    for path, size in sizes.items():
        folder, _, rest = path.partition("/")
        if folder in ("trials", "measurements", "checkpoints") and rest:
            trial = rest.partition("/")[0].removesuffix(".parquet")
            disk[trial] = disk.get(trial, 0) + size
    return disk


def _length_of_short(trials: Iterable[str]) -> int:
    """So many first characters tell all trials apart."""
    ordered = sorted(trials)
    shared = (_shared(a, b) for a, b in itertools.pairwise(ordered))
    return max([SHORTEST, *(length + 1 for length in shared)])


def _shared(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def find_trial(results: Results, named: str) -> str:
    """The identity of the trial that a user names: by its beginning, or as SWEEP/CELL, such as width/d_model=64,seed=0.

    A cell may be written as far as it names one trial. ResultsError where no trial with rows has that name, or several.
    """
    there = [name.removesuffix(".parquet") for name in results.trials.names(".parquet")]
    if not there:
        raise ResultsError(f"no trials in {results.trials}; launch a sweep into it, or name another with --results")
    if "/" in named:
        return _in_sweep(results, named, set(there))
    found = [trial for trial in there if trial.startswith(named)] if named else there
    if len(found) == 1 or named in found:
        return named if named in found else found[0]
    if found:
        some = ", ".join(each[: _length_of_short(found)] for each in found[:MOST_NAMED])
        raise _unclear(f"{len(found)} trials begin with {named!r} in {results.trials}: {some}", found, results)
    beginnings = {trial[: max(len(named), SHORTEST)]: trial for trial in there}
    close = difflib.get_close_matches(named, beginnings, 1)
    raise ResultsError(
        f"no trial begins with {named!r} in {results.trials}{f'; nearest: {close[0]}' if close else ''}; "
        f"{_how_to_list(results)}"
    )


def _unclear(what: str, found: Sequence[object], results: Results) -> ResultsError:
    more = ", ..." if len(found) > MOST_NAMED else ""
    return ResultsError(f"{what}{more}; give more of the name; {_how_to_list(results)}")


def _how_to_list(results: Results, sweep: str = "") -> str:
    return f"tinyscale ls {results.folder}{f' --sweep {sweep}' if sweep else ''} lists them"


def _in_sweep(results: Results, named: str, there: set[str]) -> str:
    """The trial at SWEEP/CELL."""
    sweep, _, cell = named.partition("/")
    record = require_sweep(results, sweep)
    wanted = {_comparable(part) for part in cell.split(",") if part.strip()}
    entries = {entry.trial: entry for entry in record.entries if wanted <= _parts(entry.cell)}
    exact = {trial: entry for trial, entry in entries.items() if wanted == set(map(_comparable, _split(entry.cell)))}
    entries = exact or entries
    if len(entries) > 1:
        some = ", ".join(each.cell.name for each in list(entries.values())[:MOST_NAMED])
        raise _unclear(f"{len(entries)} trials of {sweep} are {cell or 'there'}: {some}", list(entries), results)
    if not entries:
        close = nearest(cell, [entry.cell.name for entry in record.entries])
        raise ResultsError(f"no trial of {sweep} is {cell}{close}; {_how_to_list(results, sweep)}")
    (trial,) = entries
    if trial not in there:
        raise ResultsError(f"{named}: trial {trial} has no rows in {results.trials}; launch {sweep} to train it")
    return trial


def _split(cell: Cell) -> list[str]:
    return cell.name.split(",")


def _parts(cell: Cell) -> set[str]:
    """All that may be written of a cell, each part by itself."""
    return {_comparable(part) for part in (*_split(cell), *cell.arm.split(","), f"arm={cell.arm}")}


def _comparable(part: str) -> str:
    """A part of a cell, its number in one form: lr=3e-3 and lr=0.003 are the same."""
    name, equals, value = part.strip().partition("=")
    with suppress(ValueError):
        value = str(float(quantity(value)))
    return f"{name.strip().rpartition('.')[2]}{equals}{value.strip()}"


def require_sweep(results: Results, name: str, records: Sequence[SweepRecord] | None = None) -> SweepRecord:
    """The record of the sweep of that name. ResultsError, with those that are there, where there is none."""
    known = {record.name: record for record in (results.read_sweeps() if records is None else records)}
    if name not in known:
        there = ", ".join(known) or "none"
        raise ResultsError(f"no sweep {name!r} in {results.folder}{nearest(name, known)}; there are {there}")
    return known[name]
