"""Laws of tuned settings: the learning rate or batch with the least loss at each size, then a power law through those.

Learning rate and batch: Li et al. 2025 (2503.04715), lr* = k N^p D^q; Bi et al. 2024 (2401.02954), powers of C.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from tinyscale.errors import FitError
from tinyscale.fitting.isoflop import json_rows
from tinyscale.fitting.points import column_of, count, group_sizes
from tinyscale.fitting.text import as_html, verdict
from tinyscale.fitting.valley import find_valley

SETTINGS = {"lr": "lr", "batch": "batch_tokens"}
LEAST_SIZES = 3


@dataclass(frozen=True)
class Tuning:
    """A setting's optimum as a power law of N, and of D where D varies apart from N.

    law: lr or batch; params k, p (of N), q (of D) with 95 % intervals; table: one row a size, with the reason where it
    was refused; points: the runs that were read, columns n, d, setting, loss.
    """

    law: str
    formula: str
    params: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    table: pd.DataFrame
    points: pd.DataFrame
    columns: Mapping[str, str]
    dof: int
    warnings: tuple[str, ...]
    labels: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.law}: {verdict(self)})"

    def _repr_html_(self) -> str:
        return as_html(self)

    def interval(self, name: str) -> tuple[float, float]:
        """95 % interval of a parameter. KeyError for another name."""
        return self.intervals[name]

    def optimum(self, n: float, d: float = 1.0) -> float:
        """The setting at a size; d matters only where the law has it."""
        return float(self.params["k"] * n ** self.params["p"] * d ** self.params.get("q", 0.0))

    def as_json(self) -> dict[str, Any]:
        """Plain values for fits.json."""
        ends = self.intervals
        refused = int((self.table["refused"] != "").sum())
        return {
            **self.labels,
            "law": self.law,
            "formula": self.formula,
            "params": {n: {"value": v, "low": ends[n][0], "high": ends[n][1]} for n, v in self.params.items()},
            "intervals": f"t with {self.dof} degrees of freedom through {len(self.table) - refused} sizes",
            "objective": {"value": None, "kind": "least squares of the log optimum on log N and log D", "delta": None},
            "certificate": {"converged": True, "sizes": len(self.table) - refused, "refused": refused},
            "held_out": None,
            "slice": "",
            "warnings": list(self.warnings),
            "columns": dict(self.columns),
            "points": len(self.points),
            "optima": json_rows(self.table),
        }


def fit_tuning(frame: pd.DataFrame, law: str, *, columns: Mapping[str, str] | None = None) -> Tuning:
    """The best lr (or batch, in tokens) at each N and D by a polynomial in its log, then log-log least squares.

    Sizes whose best value lies at an end of the range are refused with the reason; FitError when fewer than 3 remain.
    """
    setting = SETTINGS[law]
    counts = {name: column_of(frame, name, columns) for name in ("n", "d", "loss")}
    counts["setting"] = column_of(frame, setting, columns)
    points = pd.DataFrame({name: frame[column].to_numpy(float) for name, column in counts.items()})
    rows = []
    x = np.log(points[["n", "d"]].to_numpy())
    _, config = np.unique(np.stack([group_sizes(x[:, 0]), group_sizes(x[:, 1], 0.05)]), axis=1, return_inverse=True)
    for index in range(config.max() + 1):
        part = points[config.ravel() == index]
        valley = find_valley(np.log(part["setting"].to_numpy()), np.log(part["loss"].to_numpy()))
        sizes = {"n": part["n"].mean(), "d": part["d"].mean()}
        why = valley.refused.replace("size", setting).replace("largest lr", "highest lr")
        rows.append(
            {**sizes, "optimum": np.exp(valley.at), "log_sd": valley.sd, "loss": np.exp(valley.height), "refused": why}
        )
    table = pd.DataFrame(rows)
    kept = table[table["refused"] == ""]
    if len(kept) < LEAST_SIZES:
        why = "; ".join(f"N = {count(row['n'])}: {row['refused']}" for row in rows if row["refused"])
        raise FitError(
            f"a law of the best {setting} needs {LEAST_SIZES} sizes with a best value inside; {why or 'add sizes'}"
        )
    return _through(law, setting, table, points, counts)


def _through(law: str, setting: str, table: pd.DataFrame, points: pd.DataFrame, counts: Mapping[str, str]) -> Tuning:
    """log optimum = log k + p log N (+ q log D), equal weights; their scatter is taken no smaller than their own sd."""
    kept = table[table["refused"] == ""]
    n, d = np.log(kept["n"].to_numpy(float)), np.log(kept["d"].to_numpy(float))
    basis, names = np.stack([np.ones_like(n), n], axis=1), ["k", "p"]
    apart = len(kept) > 4 and np.linalg.svd(np.stack([n - n.mean(), d - d.mean()]), compute_uv=False)[-1] > 0.5
    if apart:
        basis, names = np.column_stack([basis, d]), ["k", "p", "q"]
    y = np.log(kept["optimum"].to_numpy(float))
    found, *_ = np.linalg.lstsq(basis, y, rcond=None)
    dof = max(len(y) - len(names), 1)
    variance = max(((y - basis @ found) ** 2).sum() / dof, (kept["log_sd"].to_numpy(float) ** 2).mean())
    reach = special.stdtrit(dof, 0.975) * np.sqrt(variance * np.diag(np.linalg.pinv(basis.T @ basis)))
    ends = np.stack([found, found - reach, found + reach], axis=1)
    ends[0] = np.exp(np.clip(ends[0], -700, 700))
    notes = [f"N = {count(row['n'])}: {row['refused']}" for _, row in table[table["refused"] != ""].iterrows()]
    return Tuning(
        law=law,
        formula=f"{setting}* = k N^p" + (" D^q" if apart else ""),
        params=MappingProxyType(dict(zip(names, ends[:, 0].tolist(), strict=True))),
        intervals=MappingProxyType(
            {name: (float(row[1]), float(row[2])) for name, row in zip(names, ends, strict=True)}
        ),
        table=table,
        points=points,
        columns=MappingProxyType(dict(counts)),
        dof=dof,
        warnings=tuple(notes),
        labels=MappingProxyType({}),
    )
