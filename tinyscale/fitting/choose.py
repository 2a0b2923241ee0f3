"""Which laws the runs support, and `fit`: any law, or the first of those."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Array
from tinyscale.fitting.fit import Fit, fit_law
from tinyscale.fitting.honesty import LEAST_SPREAD
from tinyscale.fitting.isoflop import SAME_BUDGET, fit_envelope, fit_isoflop
from tinyscale.fitting.laws import LAWS, find_law
from tinyscale.fitting.optima import Optima
from tinyscale.fitting.points import column_of, group_sizes, positive
from tinyscale.fitting.tuning import fit_tuning
from tinyscale.formatting import nearest

AnyFit = Fit | Optima

OPTIMA: dict[str, Callable[..., Optima]] = {
    "isoflop": fit_isoflop,
    "envelope": fit_envelope,
    "lr": partial(fit_tuning, law="lr"),
    "batch": partial(fit_tuning, law="batch"),
}
NAMES = (*LAWS, *OPTIMA)


def fit(
    frame: pd.DataFrame, law: str | None = None, *, columns: Mapping[str, str] | None = None, **options: Any
) -> AnyFit:
    """Fit a scaling law to final points, one row a run; left out, the law for what varies.

    columns: variables n, d, c, ... and loss -> the frame's columns, where they are not the results' own. options: of
    `fit_law` (delta, intervals, draws, holdout, seed). FitError when the runs cannot support the law.
    """
    name = law or laws_for(frame, columns)[0]
    if name in OPTIMA:
        return OPTIMA[name](frame, columns=columns)
    if name not in LAWS:
        raise FitError(f"no law is called {name!r}{nearest(name, NAMES)}; there are {', '.join(NAMES)}")
    return fit_law(frame, find_law(name), columns=columns, **options)


def laws_for(frame: pd.DataFrame, columns: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The laws for what varies, the main one first: N, D, both, budgets of FLOPs, context or only C."""
    spread = {name: x for name in ("n", "d", "c", "t", "u") if (x := _logarithms(frame, name, columns)) is not None}
    varies = [name for name, x in spread.items() if np.ptp(x) > LEAST_SPREAD]
    if {"n", "d"} <= set(varies):
        if "c" in spread and _in_budgets(spread["n"], spread["c"]):
            return ("isoflop", "chinchilla")
        size = group_sizes(spread["n"])
        tokens_of_a_size = [np.ptp(spread["d"][size == index]) for index in range(size.max() + 1)]
        if max(tokens_of_a_size) <= LEAST_SPREAD:
            return ("power-n",)
        repeats = _logarithms(frame, "u", columns)
        repeated = repeats is not None and np.mean(spread["d"] - repeats > LEAST_SPREAD) > 0.2
        return ("data-constrained", "chinchilla") if repeated else ("chinchilla",)
    if not varies:
        raise FitError("nothing varies: parameters, tokens and FLOPs are the same in all runs; sweep one of them")
    of_context = varies == ["c", "t"] or (varies == ["d", "t"] and "c" in spread)  # at equal tokens, or FLOPs
    return ("power-t",) if of_context else (f"power-{varies[0]}",)


def _logarithms(frame: pd.DataFrame, variable: str, columns: Mapping[str, str] | None) -> Array | None:
    """Logarithms (n,) of a variable; None when the frame lacks it, or a column that nobody named holds no numbers."""
    try:
        column = column_of(frame, variable, columns)
    except FitError:
        return None
    try:
        return np.log(positive(frame[column]))
    except FitError:
        if variable in ("n", "d") or variable in (columns or {}):
            raise  # else a law without it would be fitted in silence
        return None


def _in_budgets(n: Array, c: Array) -> bool:
    """Whether nearly all runs share their FLOPs with at least three other sizes, at three or more budgets."""
    budget = group_sizes(c, SAME_BUDGET)
    sizes = [len(np.unique(group_sizes(n[budget == b]))) for b in range(budget.max() + 1)]
    inside = sum(int((budget == b).sum()) for b, count in enumerate(sizes) if count >= 4)
    return sum(count >= 4 for count in sizes) >= 3 and inside >= 0.8 * len(n)
