"""Registered forecasts: losses written down before the runs, in forecasts/ of a results folder, and their scores.

A file holds what was registered, a hash of that part, and the scores, which come later and change nothing before them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import pandas as pd

from tinyscale.errors import ResultsError
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.record import TRIALS, file_stem, json_hash
from tinyscale.storage import Folder, validated

# Ends of the rows of a calibration: how many times the largest compute of the fitted runs a forecast reaches.
DISTANCES = (1.0, 3.0, 10.0, 30.0, 100.0)
EDITED = (
    "edited after it was registered: its SHA-256 is not that of the registered part, so it is not scored; restore it "
    "from the commit that registered it"
)


@dataclass(frozen=True)
class Basis:
    """The fit that forecasts come from, and the rows that it was fitted to.

    columns: variable or loss -> the column that was read; rows: how many; sha256: `rows_hash` of them; trials: whose
    they are (empty: of a file); flops: the largest compute among them (None: not known); notes: warnings of the fit.
    """

    fit: str
    sweep: str
    arm: str
    law: str
    formula: str
    columns: Mapping[str, str]
    rows: int
    sha256: str
    trials: tuple[str, ...] = ()
    flops: float | None = None
    notes: tuple[str, ...] = ()

    def rests_on(self, rows: pd.DataFrame) -> bool:
        """Whether these are the rows that the fit was made of."""
        return rows_hash(rows, self.hashed) == self.sha256

    @property
    def hashed(self) -> list[str]:
        """The columns that the hash is of."""
        return [*self.columns.values(), *(["trial"] if self.trials else [])]


@dataclass(frozen=True)
class Forecast:
    """The loss of a run that is not made yet; seeds of a cell share it.

    label: the cell, or the sizes, unique in its file; fit: of the basis; sizes: n, d and what else the law reads;
    flops: training FLOPs; times_beyond: these over the largest fitted (None: not known); laws: law -> its weight;
    trials: identity -> seed (empty: a row of a file).
    """

    label: str
    fit: str
    sizes: Mapping[str, float]
    flops: float | None
    times_beyond: float | None
    loss: Estimate
    laws: Mapping[str, float]
    notes: tuple[str, ...] = ()
    trials: Mapping[str, int] = field(default_factory=dict)

    @property
    def law_weights(self) -> str:
        """In words: `chinchilla 0.6, gamma 0.4`; a law alone without its weight."""
        if len(self.laws) == 1:
            return next(iter(self.laws))
        return ", ".join(f"{law} {weight:.2g}" for law, weight in self.laws.items())


@dataclass(frozen=True)
class Score:
    """What came of one run of a forecast. run: the trial's identity, or its line in a file; error_percent: signed."""

    forecast: str
    run: str
    loss: float
    error_percent: float
    inside: bool

    @classmethod
    def of(cls, forecast: Forecast, run: str, loss: float) -> Score:
        """The forecast held against a measured loss."""
        low, high = forecast.loss.ends
        error = 100 * (forecast.loss.value / loss - 1)
        return cls(forecast.label, run, loss, error, bool(low <= loss <= high))


@dataclass(frozen=True)
class Registered:
    """What a file of forecasts never changes. source: TRIALS, or the file of the runs; sweep: empty for a file of runs;
    time: UTC; commit: of the code (None: not known); dirty: whether files differed from it.
    """

    name: str
    source: str
    sweep: str
    time: str
    commit: str | None
    dirty: bool | None
    packages: Mapping[str, str]
    command: str
    bases: tuple[Basis, ...]
    forecasts: tuple[Forecast, ...]

    @property
    def of_file(self) -> bool:
        """Whether the runs are rows of a file."""
        return self.source != TRIALS

    @property
    def origin(self) -> str:
        """When and on which code, in words."""
        commit = f"at commit {self.commit[:7]}" if self.commit else "at an unknown commit"
        return f"registered {self.time[:16].replace('T', ' ')} UTC {commit}{' with changes' if self.dirty else ''}"


@dataclass(frozen=True)
class Registration:
    """A file of forecasts: what was registered, and the scores so far.

    intact: whether the registered part is the one that was written; notes: of runs without a score, why.
    """

    registered: Registered
    scores: tuple[Score, ...] = ()
    intact: bool = True
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The stem of its file."""
        return self.registered.name

    def scores_of(self, forecast: Forecast) -> list[Score]:
        """The scores of the runs of one forecast."""
        return [score for score in self.scores if score.forecast == forecast.label]

    def as_json(self) -> dict[str, Any]:
        """As the file holds it."""
        registered = _plain(asdict(self.registered))
        return {
            "registered": registered,
            "sha256": json_hash(registered),
            "scores": [asdict(each) for each in self.scores],
        }


@dataclass(frozen=True)
class _Written:
    """What a file of forecasts holds."""

    registered: Registered
    sha256: str
    scores: list[Score]


def folder_of(results: Folder) -> Folder:
    """forecasts/ of a results folder."""
    return results / "forecasts"


def write_new(results: Folder, registered: Registered) -> str:
    """Write a registration; its path. ResultsError where a file of that name is there: none is ever replaced."""
    folder = folder_of(results)
    require_free(results, registered.name)
    folder.write(f"{registered.name}.json", _text(Registration(registered).as_json()))
    return f"{folder}/{registered.name}.json"


def require_free(results: Folder, name: str) -> None:
    """ResultsError unless a registration of that name can be written."""
    if file_stem(name) != name or name.startswith("."):
        raise ResultsError(f"{name!r} is no name for a file of forecasts: take letters, digits, _ and -")
    if folder_of(results).exists(f"{name}.json"):
        raise ResultsError(
            f"{folder_of(results)}/{name}.json: registered already, and never overwritten; give another --name"
        )


def write_scores(results: Folder, made: Registration) -> None:
    """Write the scores into the file of a registration; what was registered stays as it is there.

    ResultsError where that is not what was written.
    """
    folder, name = folder_of(results), f"{made.name}.json"
    written = json.loads(folder.read(name))
    if json_hash(written["registered"]) != written["sha256"]:
        raise ResultsError(f"{folder}/{name}: {EDITED}")
    scores = [asdict(each) for each in made.scores]
    if written["scores"] != scores:
        folder.write(name, _text({**written, "scores": scores}))


def read_registrations(results: Folder) -> list[Registration]:
    """The registered forecasts of a results folder, the oldest first. ResultsError on a file that is none."""
    folder, found = folder_of(results), []
    for name in folder.names(".json"):
        try:
            content = json.loads(folder.read(name))
            written = validated(_Written, content)
            if f"{written.registered.name}.json" != name:
                raise ValueError(f"it is named {written.registered.name!r}")
            if not written.registered.forecasts:
                raise ValueError("registered.forecasts: there are none")
        except (ValueError, RecursionError) as error:
            raise ResultsError(f"{folder}/{name}: not a file of forecasts ({error}); restore it") from error
        intact = json_hash(content["registered"]) == written.sha256
        found.append(Registration(written.registered, tuple(written.scores), intact))
    return sorted(found, key=lambda made: made.registered.time)


def rows_hash(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """SHA-256 of the rows of these columns, whatever their order.

    A row is a JSON list, its numbers floats; rows are sorted, one per line.
    """
    values = frame[list(columns)].astype(object).to_numpy()
    rows = sorted(json.dumps([each if isinstance(each, str) else float(each) for each in row]) for row in values)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def forecasts_table(made: Sequence[Registration]) -> pd.DataFrame:
    """One row per forecast: what was registered, and where runs are there, their mean loss and how many were inside."""
    rows = []
    for each in made:
        for forecast in each.registered.forecasts:
            scores = each.scores_of(forecast)
            measured = sum(score.loss for score in scores) / len(scores) if scores else None
            rows.append({
                "name": each.name,
                "registered": each.registered.time,
                "commit": each.registered.commit or "unknown",
                "label": forecast.label,
                **{variable: forecast.sizes.get(variable) for variable in ("n", "d")},
                "flops": forecast.flops,
                "times_beyond": forecast.times_beyond,
                "laws": forecast.law_weights,
                "forecast": forecast.loss.value,
                "low": forecast.loss.low,
                "high": forecast.loss.high,
                "measured": measured,
                "error_percent": None if measured is None else 100 * (forecast.loss.value / measured - 1),
                "runs": len(scores),
                "inside": sum(score.inside for score in scores),
            })  # fmt: skip
    return pd.DataFrame(rows)


def calibration_table(made: Sequence[Registration]) -> pd.DataFrame:
    """By distance, and in all: forecasts and runs with a score, how many runs were inside, and their errors.

    Registrations that were edited do not count.
    """
    scored = [
        (each.name, forecast, score)
        for each in made
        if each.intact
        for forecast in each.registered.forecasts
        for score in each.scores_of(forecast)
    ]
    frame = pd.DataFrame(
        [
            {"distance": _distance(forecast.times_beyond), "forecast": (name, forecast.label),
             "inside": score.inside, "error": abs(score.error_percent)}
            for name, forecast, score in scored
        ],
        columns=["distance", "forecast", "inside", "error"],
    )  # fmt: skip
    names = [*(_distance(end) for end in (*DISTANCES, 2 * DISTANCES[-1])), _distance(None)]
    parts = {name: rows for name in names if len(rows := frame[frame["distance"] == name])}
    if len(parts) > 1:
        parts["all"] = frame
    return pd.DataFrame([
        {
            "distance": name,
            "forecasts": rows["forecast"].nunique(),
            "runs": len(rows),
            "inside": int(rows["inside"].sum()),
            "inside_percent": 100 * float(rows["inside"].mean()),
            "mean_error_percent": float(rows["error"].mean()),
            "largest_error_percent": float(rows["error"].max()),
        }
        for name, rows in parts.items()
    ])  # fmt: skip


def _distance(times: float | None) -> str:
    """The row of a calibration that a forecast counts in."""
    if times is None:
        return "compute not known"
    if times <= DISTANCES[0]:
        return "within the data"
    known = (f"{low:g} to {high:g} times" for low, high in pairwise(DISTANCES) if times <= high)
    return next(known, f"over {DISTANCES[-1]:g} times")


def with_scores(made: Registration, scores: Sequence[Score], notes: Sequence[str]) -> Registration:
    """The registration with these scores in place of those it had of the same runs."""
    runs = {(score.forecast, score.run): score for score in (*made.scores, *scores)}
    return replace(made, scores=tuple(runs.values()), notes=tuple(notes))


def _text(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def _plain(registered: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    found: dict[str, Any] = json.loads(json.dumps(registered, allow_nan=False))
    return found
