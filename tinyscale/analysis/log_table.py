"""A table of runs, as `tinyscale fit` reads it, made of what other tools have logged."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_object_dtype
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinyscale.analysis.logs import RUN, LoggedRun, number_or_text
from tinyscale.analysis.table import NAMEABLE
from tinyscale.errors import ConfigError, ResultsError
from tinyscale.formatting import nearest
from tinyscale.spec.document import Document, load_document
from tinyscale.spec.settings import in_words
from tinyscale.spec.state import State

LOSS = "loss"
SHOWN = 20  # keys that an error names


class Taken(BaseModel):
    """Where a column comes from: a logged key, a part of the run's name, or one value for all runs."""

    model_config = ConfigDict(extra="forbid", strict=True)

    key: str | None = Field(default=None, description="a tag, metric, parameter or column of the logs")
    run: str | None = Field(
        default=None, description="a regular expression; its first group in the run's name is taken"
    )
    value: float | int | str | None = Field(default=None, description="the same for all runs")
    times: float | int | str = Field(default=1, description="a number, or a key, that the value is multiplied by")

    def reads(self) -> list[str]:
        """The logged keys that it reads."""
        return [key for key in (self.key, self.times) if isinstance(key, str)]

    def of(self, name: str, point: Mapping[str, Any]) -> Any:
        """The value for a run of that name at a point; None where the logs lack it."""
        found = self.value
        if self.key is not None:
            found = number_or_text(point.get(self.key))
        elif self.run is not None:
            match = re.search(self.run, name)
            found = number_or_text(match[1]) if match else None
        factor = number_or_text(point.get(self.times)) if isinstance(self.times, str) else self.times
        if factor == 1 or found is None:
            return found
        return found * factor if isinstance(found, int | float) and isinstance(factor, int | float) else None


@dataclass(frozen=True)
class LogTable:
    """frame: the table; runs: how many it has; left_out: names of runs without a loss."""

    frame: pd.DataFrame
    runs: int
    left_out: tuple[str, ...]


def read_mapping(path: str | Path) -> dict[str, Taken]:
    """The columns that a mapping file describes. ConfigError, with the line, for what is not legal."""
    document = load_document(path, "a mapping file has keys such as n, d, loss")
    found = {name: _taken(name, value, document) for name, value in document.content.items()}
    if LOSS not in found:
        raise ConfigError(f"{path}: loss is missing: say which key has it, for example loss: eval/loss")
    return found


def _taken(name: str, value: Any, document: Document) -> Taken:
    origin = document.origin((name,))
    if name not in NAMEABLE:
        raise ConfigError(f"{origin}: no law reads {name!r}{nearest(name, NAMEABLE)}\n  legal: {', '.join(NAMEABLE)}")
    given = {"key": value} if isinstance(value, str) else value if isinstance(value, dict) else {"value": value}
    try:
        taken = Taken.model_validate(given)
        groups = 1 if taken.run is None else re.compile(taken.run).groups
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        legal = ", ".join(Taken.model_fields)
        raise ConfigError(f"{origin}: {'.'.join(map(str, first['loc']))}: {in_words(first)}; legal: {legal}") from error
    except re.error as error:
        raise ConfigError(f"{origin}: run = {given['run']!r} is not a regular expression ({error})") from error
    if sum(each is not None for each in (taken.key, taken.run, taken.value)) != 1 or groups < 1:
        raise ConfigError(f"{origin}: give one of key, run (a regular expression with a group in it) and value")
    return taken


def table_of(runs: Sequence[LoggedRun], taken: Mapping[str, Taken] | None = None, *, curve: bool = False) -> LogTable:
    """One row per run, of its last point with a loss; of a curve, one per point with a loss.

    taken: the columns; None: every logged key under its own name, at the run's last point. A key that is logged at
    other steps has its last value before. A run whose last loss is not finite is `diverged`; others have the state that
    the tool gives, if it does. ResultsError for a key that no run has, and where no run has a loss.
    """
    if taken is not None:
        _refuse_unknown(runs, taken)
    rows, left_out = [], []
    for run in runs:
        points = list(_rows_of(run, taken))
        if not points:
            left_out.append(run.name)
        rows += points if curve else points[-1:]
    if not rows:
        raise ResultsError(f"none of the {len(runs)} runs has a loss; name its key in a mapping file")
    frame = pd.DataFrame(rows)
    first = [RUN, *([name for name in taken if name != RUN] if taken else [])]
    frame = frame[[*first, *(name for name in frame.columns if name not in first)]]
    says_state = frame["state"] != ""
    frame = frame.assign(state=frame["state"].where(says_state, State.FINISHED.value))
    frame = frame if says_state.any() else frame.drop(columns="state")
    mixed = [name for name, kind in frame.dtypes.items() if is_object_dtype(kind)]
    for name in mixed:  # numbers and text become text: Parquet has one type per column
        frame[name] = frame[name].map(str, na_action="ignore")
    return LogTable(frame, len(runs) - len(left_out), tuple(left_out))


def _refuse_unknown(runs: Sequence[LoggedRun], taken: Mapping[str, Taken]) -> None:
    known = dict.fromkeys(key for run in runs for point in run.points for key in point)
    for name, each in taken.items():
        for key in each.reads():
            if key not in known:
                more = ", ..." if len(known) > SHOWN else ""
                there = ", ".join(list(known)[:SHOWN]) + more
                raise ResultsError(f"{name}: no run has logged {key!r}{nearest(key, known)}; there are {there}")


def _rows_of(run: LoggedRun, taken: Mapping[str, Taken] | None) -> Iterator[dict[str, Any]]:
    """The rows of a run's points, those with a loss where the columns are named."""
    latest: dict[str, Any] = {}
    for point in run.points:
        latest = {**latest, **point}
        if taken is None:
            yield {**latest, RUN: run.name, "state": run.state}
        elif taken[LOSS].key is None or taken[LOSS].key in point:
            row = {name: each.of(run.name, latest) for name, each in taken.items()}
            row[RUN] = row.get(RUN) if row.get(RUN) is not None else run.name
            lost = not isinstance(row[LOSS], int | float) or not math.isfinite(row[LOSS])
            yield {**row, "state": State.DIVERGED.value if lost else run.state}
