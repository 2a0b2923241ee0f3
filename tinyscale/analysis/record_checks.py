"""What an entry of fits.json must hold to be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyscale.fitting.holdout import HeldOut
from tinyscale.fitting.isoflop import optimum_line
from tinyscale.fitting.record import TRIALS, Record
from tinyscale.fitting.solve import Certificate
from tinyscale.fitting.uncertainty import Noise
from tinyscale.storage import validated


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


def checked(record: Record) -> Record:
    """The record. ValueError where one of its parts holds what it cannot."""
    for kind, part in ((HeldOut, record.held_out), (Certificate, record.certificate), (Noise, record.noise)):
        if part is not None:
            validated(kind, vars(part))
    kept = record.kept[[name for name in ("c", "n", "d", "best") if name in record.kept]]
    if not (kept > 0).all(axis=None):
        raise ValueError("optima: a size is not a positive number")
    if record.form.kind == "budgets" and not _on_their_line(record):
        raise ValueError("optima: the lines through them are not those that were fitted")
    return record


def _on_their_line(record: Record) -> bool:
    """Whether the optima of a record give the exponents that it holds."""
    table = record.kept
    if np.log(table["c"]).nunique() < 2:
        return False
    lines = {"a": optimum_line(table, "best"), "b": optimum_line(table, "best_d")}
    return all(np.isclose(line.slope, record.estimates[name].value, rtol=1e-6) for name, line in lines.items())
