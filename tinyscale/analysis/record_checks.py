"""What an entry of fits.json must hold to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyscale.fitting.holdout import HeldOut
from tinyscale.fitting.isoflop import optimum_line
from tinyscale.fitting.laws import LAWS, Law
from tinyscale.fitting.record import TRIALS, Record, json_hash
from tinyscale.fitting.solve import Certificate, Problem, objective
from tinyscale.fitting.uncertainty import Noise
from tinyscale.storage import validated

SAME = 1e-6  # numbers that differ by a smaller share are one number, computed on two machines


@dataclass(frozen=True)
class Ends:
    """A number with its interval; null where the data set none."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class _Rows:
    kept: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class _Objective:
    kind: str
    value: float | None = None
    delta: float | None = None
    held: dict[str, float] = field(default_factory=dict)
    prior: dict[str, tuple[float, float]] = field(default_factory=dict)
    above: float = 1.0


@dataclass(frozen=True)
class _Rival:
    law: str
    held_out_rms_percent: float


@dataclass(frozen=True)
class _Member:
    law: str
    weight: float
    error: float
    params: dict[str, float]


@dataclass(frozen=True)
class _Convention:
    convention: str


@dataclass(frozen=True)
class WrittenFit:
    """What every entry of fits.json holds, also one that an older version wrote."""

    sweep: str
    arm: str
    title: str
    rows: _Rows
    law: str
    formula: str
    params: dict[str, Ends]
    derived: dict[str, Ends]
    intervals: str
    objective: _Objective
    held_out: dict[str, Any] | None
    slice: str
    warnings: list[str]
    columns: dict[str, str]
    points: int
    source: str = TRIALS
    where: str = ""
    question: str = ""
    method: str = ""
    certificate: dict[str, Any] = field(default_factory=dict)
    noise: Noise | None = None
    influence: list[dict[str, float | None]] = field(default_factory=list)
    forecast: list[_Member] = field(default_factory=list)
    rivals: list[_Rival] = field(default_factory=list)
    conventions: list[_Convention] = field(default_factory=list)
    range: dict[str, tuple[float, float]] = field(default_factory=dict)
    sizes: int | None = None
    optima: list[dict[str, Any]] | None = None
    of: dict[str, Any] = field(default_factory=dict)


def require_intact(entry: Mapping[str, Any]) -> None:
    """ValueError where an entry is not the one that was written; older ones have no hash."""
    if "sha256" in entry and json_hash({key: entry[key] for key in entry if key != "sha256"}) != entry["sha256"]:
        raise ValueError(f"{entry['title']}, {entry['law']}: its SHA-256 is not the one that was written")


def checked(record: Record) -> Record:
    """The record. ValueError where one of its parts holds what it cannot."""
    for kind, part in ((HeldOut, record.held_out), (Certificate, record.certificate), (Noise, record.noise)):
        if part is not None:
            validated(kind, vars(part))
    if record.held_out is not None:
        _check_held_out(record.held_out)
    kept = record.kept[[name for name in ("c", "n", "d", "best") if name in record.kept]]
    if not (kept > 0).all(axis=None):
        raise ValueError("optima: a size is not a positive number")
    if record.form.kind == "budgets" and not _on_their_line(record):
        raise ValueError("optima: the lines through them are not those that were fitted")
    if isinstance(record.form, Law):
        _check_loss(record, record.form)
    return record


def _check_held_out(held: HeldOut) -> None:
    """ValueError unless its error is that of its prediction, and what is said of several runs is whole."""
    several = (held.runs, held.reach, held.rms_percent, held.carried_rms_percent, held.inside)
    if None in several and any(each is not None for each in several):
        raise ValueError("held_out: runs, reach, rms_percent, carried_rms_percent and inside come together")
    if not np.isclose(held.actual * (1 + held.error_percent / 100), held.predicted, rtol=SAME):
        raise ValueError("held_out: error_percent is not that of predicted")


def _on_their_line(record: Record) -> bool:
    """Whether the optima of a record give the exponents that it holds."""
    table = record.kept
    if np.log(table["c"]).nunique() < 2:
        return False
    lines = {"a": optimum_line(table, "best"), "b": optimum_line(table, "best_d")}
    return all(np.isclose(line.slope, record.estimates[name].value, rtol=SAME) for name, line in lines.items())


def _check_loss(record: Record, law: Law) -> None:
    """ValueError unless the parameters of a law of the loss, and of those that forecast with it, are ones."""
    params = {name: each.value for name, each in record.estimates.items()}
    _check_params("params", law, params)
    if record.objective.get("value") is None:
        raise ValueError("objective.value is missing")
    if "delta" not in record.objective:
        raise ValueError("objective.delta is missing")
    if not all(0 < low <= high < np.inf for low, high in record.range.values()):
        raise ValueError("range: not a smallest and a largest size")
    for part in ("held", "prior"):
        if unknown := set(record.objective.get(part, {})) - set(law.params):
            raise ValueError(f"objective.{part}: {law.formula} has no {', '.join(sorted(unknown))}")
    for number, member in enumerate(record.forecast):
        where, other = f"forecast.{number}", LAWS.get(member["law"])
        if other is None or other.variables != law.variables or not member["error"] >= 0:
            raise ValueError(f"{where}: it is no law of {', '.join(law.variables)} with its error")
        _check_params(f"{where}.params", other, member["params"])


def _check_params(where: str, law: Law, params: Mapping[str, float]) -> None:
    """ValueError unless these are the parameters of the law, each where the law can have it."""
    if set(params) != set(law.params):
        raise ValueError(f"{where}: {law.formula} has {', '.join(law.params)}")
    for name, (low, high) in zip(law.params, law.bounds, strict=True):
        if not low - SAME * abs(low) <= params[name] <= high * (1 + SAME):
            raise ValueError(f"{where}.{name}: {params[name]} is not between {low:g} and {high:g}")


def fits_points(record: Record, problem: Problem) -> bool:
    """Whether the parameters of a record have the objective that it holds at the points of the problem."""
    law = problem.law
    theta = law.to_solver(np.array([record.estimates[name].value for name in law.params]))
    exact = 1e-16 * float(problem.weight.sum())  # as of `solve`, for points without noise
    return bool(np.isclose(objective(problem, theta), record.objective["value"], rtol=SAME, atol=exact))
