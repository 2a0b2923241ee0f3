"""N*(C) and D*(C) without a formula for the loss: the best size at each budget, then a power law through those."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Array
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.holdout import HeldOut
from tinyscale.fitting.laws.optima import ENVELOPE, ISOFLOP, OptimaLaw, with_optimum
from tinyscale.fitting.minimum import Line, find_minimum, weighted_line
from tinyscale.fitting.optima import Optima
from tinyscale.fitting.points import SAME_BUDGET, column_of, group_sizes, positive
from tinyscale.formatting import compact


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
    kept = with_optimum(table)
    if len(kept) < 3:
        why = "; ".join(f"C = {row['c']:.2e}: {row['refused']}" for row in rows if row["refused"])
        raise FitError(
            f"IsoFLOP needs 3 budgets with a bottom and has {len(kept)} of {len(rows)} ({why}); add sizes there"
        )
    return _through(ISOFLOP, kept, table, points, counts)


def fit_envelope(frame: pd.DataFrame, *, columns: Mapping[str, str] | None = None) -> Optima:
    """The runs on the lower convex hull of (log C, log loss), then lines in log C through their N and D.

    Valid for points at the end of their schedule only. Hoffmann et al. 2022, section 3.1; by hull: 2502.06857.
    FitError when the hull holds fewer than 4 runs.
    """
    points, counts = _read(frame, columns)
    ordered = points.sort_values(["c", "loss"])
    hull = lower_hull(np.log(ordered["c"].to_numpy()), np.log(ordered["loss"].to_numpy()))
    if len(hull) < 4:
        raise FitError(f"the envelope holds {len(hull)} runs, 4 are needed; add budgets, or fit isoflop or chinchilla")
    table = ordered.iloc[hull].rename(columns={"n": "best", "d": "best_d"})
    table = table.assign(log_sd=np.nan, refused="").reset_index(drop=True)
    return _through(ENVELOPE, table, table, points, counts)


def lower_hull(x: Array, y: Array) -> list[int]:
    """Which of the points, in the order of x and then of y, are on the lower convex hull and fall."""
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) >= 2 and _bend(x, y, hull[-2], hull[-1], i) <= 0:
            hull.pop()
        hull.append(i)
    return [i for i in hull if i == hull[0] or y[i] < y[:i].min()]


def _read(frame: pd.DataFrame, columns: Mapping[str, str] | None) -> tuple[pd.DataFrame, dict[str, str]]:
    counts = {name: column_of(frame, name, columns) for name in ("n", "d", "c", "loss")}
    return pd.DataFrame({name: positive(frame[column]) for name, column in counts.items()}), counts


def _bend(x: Array, y: Array, a: int, b: int, c: int) -> float:
    """Positive when a -> b -> c turns left, so b is on the lower hull."""
    return float((x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a]))


def _budget_row(points: pd.DataFrame, degree: int | None) -> dict[str, Any]:
    log_n, log_d = np.log(points["n"].to_numpy()), np.log(points["d"].to_numpy())
    found = find_minimum(log_n, np.log(points["loss"].to_numpy()), degree=degree)
    order = np.argsort(log_n)
    # At one budget D is a smooth function of N, so D* is read off at N*.
    best_d = np.exp(np.interp(found.at, log_n[order], log_d[order])) if not found.refused else np.nan
    return {
        "c": float(np.exp(np.log(points["c"]).mean())),
        "best": float(np.exp(found.at)),
        "best_d": float(best_d),
        "loss": float(np.exp(found.height)),
        "log_sd": found.sd,
        "points": found.points,
        "degree": found.degree,
        "refused": found.refused,
    }


def _through(
    law: OptimaLaw, kept: pd.DataFrame, table: pd.DataFrame, points: pd.DataFrame, counts: Mapping[str, str]
) -> Optima:
    """Lines through the optima, with the largest budget also predicted from the smaller ones."""
    n_line, d_line = optimum_line(kept, "best"), optimum_line(kept, "best_d")
    estimates: dict[str, Estimate] = {}
    for coefficient, exponent, line in (("k_N", "a", n_line), ("k_D", "b", d_line)):
        estimates[coefficient] = line.at(0.0).map(np.exp)
        estimates[exponent] = Estimate.around(line.slope, line.slope_half_width)
    return Optima(
        law=law,
        formula="N*(C) = k_N C^a, D*(C) = k_D C^b",
        estimates=MappingProxyType(estimates),
        table=table,
        runs=points,
        columns=MappingProxyType(dict(counts)),
        objective={"value": n_line.chi2, "kind": "least squares of log N* on log C"},
        dof=n_line.dof,
        held_out=_hold_out(kept),
        warnings=tuple(_warnings(kept, table)),
    )


def optimum_line(table: pd.DataFrame, column: str) -> Line:
    """log of the column (best or best_d) against log C, through the optima of a table."""
    sd = table["log_sd"].to_numpy()
    known = None if np.isnan(sd).all() else np.maximum(sd, 1e-6)  # runs of an envelope have none
    return weighted_line(np.log(table["c"].to_numpy()), np.log(table[column].to_numpy()), known)


def _hold_out(kept: pd.DataFrame) -> HeldOut | None:
    """N* of the largest budget from the line through the smaller ones, in signed percent."""
    if len(kept) < 4:
        return None
    smaller, largest = kept.iloc[:-1], kept.iloc[-1]
    line = optimum_line(smaller, "best")
    predicted = float(np.exp(line.at(np.log(largest["c"])).value))
    carried, actual = float(smaller.iloc[-1]["best"]), float(largest["best"])
    return HeldOut.of({"c": float(largest["c"])}, len(smaller), actual=actual, predicted=predicted, carried=carried)


def _warnings(kept: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    notes = [f"C = {compact(row['c'])}: {row['refused']}" for _, row in table[table["refused"] != ""].iterrows()]
    if kept["c"].max() < 10 * kept["c"].min():
        notes.append("budgets span under a decade of C: the exponents rest on little")
    if "degree" in kept and (kept["degree"] == 2).any():
        notes.append(
            "a parabola was used where a budget has under 6 sizes: its bottom is biased where curves are lopsided"
        )
    return notes
