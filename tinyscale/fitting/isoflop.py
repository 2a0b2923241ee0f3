"""N*(C) and D*(C) without a formula for the loss: the best size at each budget, then a power law through those."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Array
from tinyscale.fitting.estimate import Estimate, estimates_json
from tinyscale.fitting.points import column_of, group_sizes
from tinyscale.fitting.text import as_html, verdict
from tinyscale.fitting.valley import Line, find_valley, weighted_line
from tinyscale.formatting import compact

SAME_BUDGET = 0.05  # budgets whose logarithms differ by less are one: whole steps do not hit a budget exactly


@dataclass(frozen=True)
class Optima:
    """A power law through optima: of N and D at each budget of FLOPs, or of a setting at each size.

    law: isoflop, envelope, lr or batch; estimates: of its parameters; table: one row an optimum, with the reason where
    it was refused; places: what those are at (budgets or sizes); points: the runs that were read; objective: value and
    kind; dof: degrees of freedom of the intervals; of: what else the runs had in common that the law holds for.
    """

    law: str
    formula: str
    estimates: Mapping[str, Estimate]
    table: pd.DataFrame
    places: str
    points: pd.DataFrame
    columns: Mapping[str, str]
    objective: Mapping[str, Any]
    dof: int
    held_out: Mapping[str, float] | None
    warnings: tuple[str, ...]
    of: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.law}: {verdict(self.as_json())})"

    def _repr_html_(self) -> str:
        return as_html(self.as_json())

    @property
    def params(self) -> Mapping[str, float]:
        """Name -> value of each parameter."""
        return {name: each.value for name, each in self.estimates.items()}

    def interval(self, name: str) -> tuple[float, float]:
        """95 % interval of a parameter. KeyError for another name."""
        return self.estimates[name].ends

    def as_json(self) -> dict[str, Any]:
        """Plain values for fits.json."""
        refused = int((self.table["refused"] != "").sum())
        kept = len(self.table) - refused
        return {
            **self.labels,
            "law": self.law,
            "formula": self.formula,
            "params": estimates_json(self.estimates),
            "intervals": f"t with {self.dof} degrees of freedom through {kept} {self.places}",
            "objective": {**self.objective, "delta": None},
            "certificate": {"converged": True, self.places: kept, "refused": refused},
            "held_out": dict(self.held_out) if self.held_out else None,
            "slice": "",
            "warnings": list(self.warnings),
            "columns": dict(self.columns),
            "of": dict(self.of),
            "points": len(self.points),
            "optima": json_rows(self.table),
        }


def json_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values, NaN as None."""
    plain = table.astype(object).where(table.notna(), None)
    return [{str(k): v for k, v in row.items()} for row in plain.to_dict("records")]


def fit_isoflop(frame: pd.DataFrame, *, columns: Mapping[str, str] | None = None, degree: int | None = None) -> Optima:
    """The size of least loss at each budget by a cubic (few sizes: a parabola) in log N, then lines in log C.

    Budgets without a bottom are refused with the reason; FitError when fewer than 3 remain. Hoffmann et al. 2022
    (2203.15556), section 3.2.
    """
    points, counts = _read(frame, columns)
    c = points["c"].to_numpy()
    budget = group_sizes(np.log(c), SAME_BUDGET)
    rows = [_budget_row(points[budget == b], degree) for b in range(budget.max() + 1)]
    table = pd.DataFrame(rows)
    kept = table[table["refused"] == ""]
    if len(kept) < 3:
        why = "; ".join(f"C = {row['c']:.2e}: {row['refused']}" for row in rows if row["refused"])
        raise FitError(
            f"IsoFLOP needs 3 budgets with a bottom and has {len(kept)} of {len(rows)} ({why}); add sizes there"
        )
    return _through("isoflop", kept, table, points, counts)


def fit_envelope(frame: pd.DataFrame, *, columns: Mapping[str, str] | None = None) -> Optima:
    """The runs on the lower convex hull of (log C, log loss), then lines in log C through their N and D.

    Valid for points at the end of their schedule only. Hoffmann et al. 2022, section 3.1; by hull: 2502.06857.
    FitError when the hull holds fewer than 4 runs.
    """
    points, counts = _read(frame, columns)
    ordered = points.sort_values(["c", "loss"])
    hull: list[int] = []
    x, y = np.log(ordered["c"].to_numpy()), np.log(ordered["loss"].to_numpy())
    for i in range(len(ordered)):
        while len(hull) >= 2 and _turn(x, y, hull[-2], hull[-1], i) <= 0:
            hull.pop()
        hull.append(i)
    hull = [i for i in hull if i == hull[0] or y[i] < y[:i].min()]
    if len(hull) < 4:
        raise FitError(f"the envelope holds {len(hull)} runs, 4 are needed; add budgets, or fit isoflop or chinchilla")
    table = ordered.iloc[hull].rename(columns={"n": "n_star", "d": "d_star", "loss": "loss_star"})
    table = table.assign(log_n_sd=np.nan, refused="").reset_index(drop=True)
    return _through("envelope", table, table, points, counts)


def _read(frame: pd.DataFrame, columns: Mapping[str, str] | None) -> tuple[pd.DataFrame, dict[str, str]]:
    counts = {name: column_of(frame, name, columns) for name in ("n", "d", "c", "loss")}
    points = pd.DataFrame({name: frame[column].to_numpy(float) for name, column in counts.items()})
    if not (np.isfinite(points) & (points > 0)).all(axis=None):
        raise FitError("sizes, FLOPs and losses must be positive numbers; remove the other rows")
    return points, counts


def _turn(x: Array, y: Array, a: int, b: int, c: int) -> float:
    """Positive when a -> b -> c turns left, so b is on the lower hull."""
    return float((x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a]))


def _budget_row(points: pd.DataFrame, degree: int | None) -> dict[str, Any]:
    log_n, log_d = np.log(points["n"].to_numpy()), np.log(points["d"].to_numpy())
    found = find_valley(log_n, np.log(points["loss"].to_numpy()), degree=degree)
    order = np.argsort(log_n)
    # At one budget D is a smooth function of N, so D* is read off at N*.
    d_star = np.exp(np.interp(found.at, log_n[order], log_d[order])) if not found.refused else np.nan
    return {
        "c": float(np.exp(np.log(points["c"]).mean())),
        "n_star": float(np.exp(found.at)),
        "d_star": float(d_star),
        "loss_star": float(np.exp(found.height)),
        "log_n_sd": found.sd,
        "points": found.points,
        "degree": found.degree,
        "refused": found.refused,
    }


def _through(
    law: str, kept: pd.DataFrame, table: pd.DataFrame, points: pd.DataFrame, counts: Mapping[str, str]
) -> Optima:
    """Lines through the optima, with the largest budget also predicted from the smaller ones."""
    n_line, d_line = optimum_line(kept, "n_star"), optimum_line(kept, "d_star")
    estimates: dict[str, Estimate] = {}
    for coefficient, exponent, line in (("k_N", "a", n_line), ("k_D", "b", d_line)):
        estimates[coefficient] = line.at(0.0).map(np.exp)
        estimates[exponent] = Estimate.around(line.slope, line.slope_half_width)
    return Optima(
        law=law,
        formula="N*(C) = k_N C^a, D*(C) = k_D C^b",
        estimates=MappingProxyType(estimates),
        table=table,
        places="budgets",
        points=points,
        columns=MappingProxyType(dict(counts)),
        objective={"value": n_line.chi2, "kind": "least squares of log N* on log C"},
        dof=n_line.dof,
        held_out=_hold_out(kept),
        warnings=tuple(_warnings(kept, table)),
    )


def optimum_line(table: pd.DataFrame, column: str) -> Line:
    """log of the column (n_star or d_star) against log C, through the optima of a table."""
    sd = table["log_n_sd"].to_numpy()
    known = None if np.isnan(sd).all() else np.maximum(sd, 1e-6)  # runs of an envelope have none
    return weighted_line(np.log(table["c"].to_numpy()), np.log(table[column].to_numpy()), known)


def _hold_out(kept: pd.DataFrame) -> dict[str, float] | None:
    """N* of the largest budget from the line through the smaller ones, in signed percent."""
    if len(kept) < 4:
        return None
    smaller, largest = kept.iloc[:-1], kept.iloc[-1]
    line = optimum_line(smaller, "n_star")
    predicted = float(np.exp(line.at(np.log(largest["c"])).value))
    return {
        "c": largest["c"],
        "fitted_sizes": len(smaller),
        "actual": largest["n_star"],
        "predicted": predicted,
        "error_percent": 100 * (predicted / largest["n_star"] - 1),
        "carry_forward_percent": 100 * (smaller.iloc[-1]["n_star"] / largest["n_star"] - 1),
    }


def _warnings(kept: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    notes = [f"C = {compact(row['c'])}: {row['refused']}" for _, row in table[table["refused"] != ""].iterrows()]
    if kept["c"].max() < 10 * kept["c"].min():
        notes.append("budgets span under a decade of C: the exponents rest on little")
    if "degree" in kept and (kept["degree"] == 2).any():
        notes.append(
            "a parabola was used where a budget has under 6 sizes: its bottom is biased where curves are lopsided"
        )
    return notes
