"""When induction forms: the tokens at which the copy's loss jumps, as a power law of the tokens per step and of N.

Aoyama et al. 2025 (2511.16893): D* = k sqrt(B C), for batches of B sequences of C tokens and models of any size.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, special

from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Array
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.laws.optima import FORMATION, with_optimum
from tinyscale.fitting.optima import Optima
from tinyscale.fitting.points import column_of, positive, varying
from tinyscale.formatting import compact, plural

STEP, COPY, FIRST = "batch_tokens", "copy_loss", "first_loss"
APART = (STEP, "n", "context_length", "n_layers", "lr")  # what runs of one curve share
SYMBOLS = {STEP: ("(B C)", "p"), "n": ("N", "q")}
LEAST_BUDGETS = 4  # of a curve, for its two levels, its middle and its width
MOST_SHOWN = 4  # curves, in a refusal
FALL = 0.5  # share of the highest copy loss that a curve falls by, to be a jump


def fit_formation(frame: pd.DataFrame, *, columns: Mapping[str, str] | None = None) -> Optima:
    """D* = k (B C)^p N^q through the jump of each curve of copy loss against tokens.

    frame: finished runs with their induction: n, d, batch_tokens (= B C), copy_loss; first_loss, context_length,
    n_layers and lr where they are known. Runs that differ in d and seed alone are one curve. Curves without a jump
    inside their budgets are refused with the reason; FitError when fewer remain than the law has parameters, and one.
    Intervals are by t over the scatter of the jumps about the law.
    """
    counts = {name: column_of(frame, name, columns) for name in ("n", "d")} | {"loss": COPY}
    _require(frame)
    points = pd.DataFrame({name: positive(frame[counts[name]]) for name in ("n", "d")})
    points["loss"] = pd.to_numeric(frame[COPY]).to_numpy(float)
    given = [name for name in (STEP, FIRST, *APART[2:]) if name in frame]
    points = points.assign(**{name: pd.to_numeric(frame[name]).to_numpy(float) for name in given})
    shared = [name for name in APART if name in points]
    table = pd.DataFrame([_curve(rows, shared) for _, rows in points.groupby(shared, dropna=False)])
    kept = with_optimum(table)
    names = [name for name in SYMBOLS if name == STEP or varying(kept, [name])]
    if len(kept) < len(names) + 2:
        refused = [f"{_named(row)}: {row['refused']}" for _, row in table[table["refused"] != ""].iterrows()]
        why = "; ".join(refused[:MOST_SHOWN]) + ("; ..." if len(refused) > MOST_SHOWN else "")
        raise FitError(
            f"the law of formation needs {len(names) + 2} curves with a jump and has {len(kept)} of {len(table)}"
            + (f" ({why})" if why else "")
        )
    estimates, chi2, dof = _through(kept, names)
    return Optima(
        law=FORMATION,
        formula="D* = k " + " ".join(f"{SYMBOLS[name][0]}^{SYMBOLS[name][1]}" for name in names),
        estimates=MappingProxyType(estimates),
        table=table,
        runs=points,
        columns=MappingProxyType(counts),
        objective={"value": chi2, "kind": "least squares of log D*, the middle of a logistic in log D"},
        dof=dof,
        held_out=None,
        warnings=tuple(_warnings(table, kept)),
    )


def _require(frame: pd.DataFrame) -> None:
    missing = [name for name in (STEP, COPY) if name not in frame]
    if missing:
        raise FitError(f"the law of formation needs {' and '.join(missing)}: measure the kind induction")
    if not varying(frame, [STEP]):
        raise FitError(f"the law of formation needs runs that differ in {STEP}: it is {frame[STEP].iloc[0]} in all")


def _curve(rows: pd.DataFrame, shared: list[str]) -> dict[str, Any]:
    """A row of the table: what the runs share, the tokens at the jump, the copy loss there, or why there is none."""
    x, y = np.log(rows["d"].to_numpy(float)), rows["loss"].to_numpy(float)
    row = {name: rows[name].iloc[0] for name in shared} | {"points": len(rows)}
    before = max(y.max(), rows[FIRST].max()) if FIRST in rows else y.max()
    none = {"best": np.nan, "log_sd": np.nan, "width": np.nan, "loss": np.nan}
    if len(np.unique(x)) < LEAST_BUDGETS:
        return {**row, **none, "refused": f"{plural(len(np.unique(x)), 'budget')}, {LEAST_BUDGETS} are needed"}
    if y.min() > (1 - FALL) * before:
        return {**row, **none, "refused": f"no jump up to {compact(np.exp(x.max()))} tokens"}
    if y[x == x.min()].min() < (1 - FALL) * before:
        return {**row, **none, "refused": f"formed by {compact(np.exp(x.min()))} tokens already"}
    (at, width, high, low), sd = _logistic(x, y)
    if not x.min() < at < x.max():
        return {**row, **none, "refused": "the middle of the jump is outside the budgets"}
    return {
        **row,
        "best": float(np.exp(at)),
        "log_sd": sd,
        "width": width,
        "loss": (high + low) / 2,
        "refused": "",
    }


def _logistic(x: Array, y: Array) -> tuple[tuple[float, ...], float]:
    """Middle, width, level before and level after of a falling logistic, and the standard error of its middle."""

    def off(theta: Array) -> Array:
        at, width, high, low = theta
        return np.asarray(low + (high - low) * special.expit((at - x) / width) - y)

    step = float(np.diff(np.unique(x)).min())
    bounds = ([x.min() - step, step / 20, 0.0, 0.0], [x.max() + step, np.ptp(x), 2 * y.max(), y.max()])
    starts = [optimize.least_squares(off, [at, step / 2, y.max(), y.min()], bounds=bounds) for at in np.unique(x)]
    found = min(starts, key=lambda each: float(each.cost))
    variance = 2 * found.cost / max(len(x) - len(found.x), 1)
    slopes = np.asarray(found.jac, float)
    covariance = np.linalg.pinv(slopes.T @ slopes) * variance
    return tuple(found.x.tolist()), float(np.sqrt(covariance[0, 0]))


def _through(kept: pd.DataFrame, names: list[str]) -> tuple[dict[str, Estimate], float, int]:
    """k and the exponents, the sum of squares, and the degrees of freedom."""
    x = np.stack([np.ones(len(kept)), *(np.log(kept[name].to_numpy(float)) for name in names)], axis=1)
    y = np.log(kept["best"].to_numpy(float))
    inverse = np.linalg.pinv(x)
    theta, dof = inverse @ y, len(kept) - x.shape[1]
    chi2 = float(((y - x @ theta) ** 2).sum())
    half_widths = special.stdtrit(dof, 0.975) * np.sqrt(chi2 / dof * (inverse**2).sum(axis=1))
    log_k, *exponents = (Estimate.around(*each) for each in zip(theta, half_widths, strict=True))
    named = {SYMBOLS[name][1]: each for name, each in zip(names, exponents, strict=True)}
    return {"k": log_k.map(lambda log: float(np.exp(np.clip(log, -700, 700)))), **named}, chi2, dof


def _named(row: pd.Series[Any]) -> str:
    return ", ".join(f"{name} = {compact(row[name])}" for name in (STEP, "n"))


def _warnings(table: pd.DataFrame, kept: pd.DataFrame) -> list[str]:
    notes = [f"{_named(row)}: {row['refused']}" for _, row in table[table["refused"] != ""].iterrows()]
    if kept[STEP].max() < 8 * kept[STEP].min():
        notes.append(f"{STEP} spans less than a factor of 8: the exponent rests on little")
    return notes
