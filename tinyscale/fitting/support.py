"""What the points can support: which laws, and which not, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy import special

from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Array
from tinyscale.fitting.laws import LAWS, Law
from tinyscale.fitting.laws.base import GIVEN
from tinyscale.fitting.points import SAME_BUDGET, SAME_SIZE, Points, column_of, group_sizes, positive
from tinyscale.formatting import compact

NO_SCALING = 0.05  # chance of losses that go with the sizes by accident alone, above which none is seen
SIZES = ("n", "d", "c", "t", "u", "latents")  # variables whose power law is chosen where they alone vary
LEAST_SPREAD = np.log(1.5)  # of a variable, or of D about its dependence on N: with less there is nothing to fit


def refuse_unsupported(law: Law, points: Points) -> None:
    """FitError when no number could be trusted: too few sizes, no spread, one ratio, or a loss that does not fall."""
    _refuse_constant(law, points)
    _refuse_few(law, points)
    if len(law.sizes) > 1:
        _refuse_collinear(law, points)
    if "total" in law.variables:
        _refuse_one_ratio(law, points)
    if len(law.variables) > 1:
        _refuse_flat(law, points)
    else:
        _refuse_rising(law, points)


def _refuse_constant(law: Law, points: Points) -> None:
    for row, name in zip(points.x, law.variables, strict=True):
        if np.ptp(row) < (SAME_SIZE if name == "bits" else LEAST_SPREAD) and name not in GIVEN:
            value = compact(float(np.exp(row.mean())))
            raise FitError(
                f"{law.formula} needs {name} to vary: here it stays at {value}; sweep it, or fit another law"
            )


def _refuse_few(law: Law, points: Points) -> None:
    needed = needs(law)
    if points.configs() < needed:
        others = [o.name for o in LAWS.values() if o.variables == law.variables and needs(o) <= points.configs()]
        raise FitError(
            f"{law.formula} needs at least {needed} different sizes and there are {points.configs()}; "
            "add sizes" + (f", or take --law {' or '.join(others)}" if others else "")
        )
    for row, name in zip(points.x, law.variables, strict=True):
        values = int(group_sizes(row).max()) + 1
        if law.splits_loss and values < 3 and name not in GIVEN:
            other = ", or fit --law tied" if law.variables == ("n", "d") else ""
            raise FitError(
                f"{law.formula}: with {values} values of {name} its floor, coefficient and exponent cannot be told "
                f"apart; add a third{other}"
            )


def _refuse_collinear(law: Law, points: Points) -> None:
    if collinear(points.x[0], points.x[1]):
        first, second = law.variables[:2]
        raise FitError(
            f"{law.formula}: {second} follows {first} in all runs (one {second}/{first} ratio), so alpha and beta "
            f"cannot be told apart; vary {second} at a fixed {first}, or fit --law power-{first}"
        )


def _refuse_one_ratio(law: Law, points: Points) -> None:
    """Of one ratio, tau scales all D alike, as B does."""
    names = list(law.variables)
    ratio = points.x[names.index("total")] - points.x[names.index("d")]
    if np.ptp(ratio) < LEAST_SPREAD:
        raise FitError(
            f"{law.formula}: the part has the same share in all runs (T/D = {np.exp(ratio.mean()):.3g}), so tau and B "
            "cannot be told apart; add runs on the part alone, or with another share"
        )


def _refuse_rising(law: Law, points: Points) -> None:
    means = pd.Series(points.y).groupby(points.size).mean()
    if means.iloc[-1] >= means.iloc[0]:
        raise FitError(
            f"{law.formula} needs a loss that falls: it goes from {np.exp(means.iloc[0]):.4g} at the smallest size to "
            f"{np.exp(means.iloc[-1]):.4g} at the largest; look at the learning rate and budget of the large runs"
        )


def _refuse_flat(law: Law, points: Points) -> None:
    p, slopes = scaling(points)
    names = " or ".join(law.variables)
    if (slopes >= 0).all():
        raise FitError(f"{law.formula} needs a loss that falls: it does not with {names}; look at the loss column")
    if p > NO_SCALING:
        raise FitError(
            f"{law.formula} needs a loss that falls: it changes with {names} no more than chance explains "
            f"(p = {p:.2g}); look at the columns, or add sizes further apart"
        )


def scaling(points: Points) -> tuple[float, Array]:
    """Whether the loss goes with the variables by more than chance (p), and its slope in each of them.

    Of ranks, so that a curve counts as a line does, and of configurations' means.
    """
    seeds = np.bincount(points.config)
    ranks = pd.DataFrame([np.bincount(points.config, row) / seeds for row in (*points.x, points.y)]).T.rank()
    centred = (ranks - ranks.mean()).to_numpy()
    x, y = centred[:, :-1], centred[:, -1]
    slopes, _, rank, _ = np.linalg.lstsq(x, y, rcond=None)
    dof, total, left = max(len(y) - rank - 1, 1), float(y @ y), float(((y - x @ slopes) ** 2).sum())
    explained = (total - left) / rank / max(left / dof, 1e-12)
    return (float(special.fdtrc(rank, dof, explained)) if total > 0 else 1.0), slopes


def needs(law: Law) -> int:
    """How many different sizes a law is fitted to at least."""
    return max(4, len(law.params) + (len(law.variables) > 1))


def collinear(first: Array, second: Array) -> bool:
    """Whether one logarithm is a line in the other, up to whole steps."""
    slope = np.cov(first, second)[0, 1] / np.var(first, ddof=1)
    return bool(np.ptp(second - slope * first) < LEAST_SPREAD)


def laws_for(frame: pd.DataFrame, columns: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The laws for what varies, the main one first: N, D, both, budgets of FLOPs, context, only C, or the
    latents of an autoencoder.
    """
    spread = {name: x for name in SIZES if (x := _logarithms(frame, name, columns)) is not None}
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
    if not spread.keys() & {"n", "d", "c", "latents"}:
        there = ", ".join(map(str, frame.columns))
        raise FitError(
            f"no column of sizes is known; the columns are {there}: name parameters, tokens or FLOPs with --columns "
            "n=COLUMN,d=COLUMN,c=COLUMN (columns={'n': ...} in Python)"
        )
    if not varies:
        stay = ", ".join(f"{name} = {compact(float(np.exp(np.median(x))))}" for name, x in spread.items())
        raise FitError(f"nothing varies: {stay} in all runs; sweep one of them")
    active = _logarithms(frame, "active", columns)
    if varies == ["latents"] and active is not None and np.ptp(active) > LEAST_SPREAD:
        return ("features",)
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
    parts = [(n[budget == b], c[budget == b]) for b in range(budget.max() + 1)]
    gaps = [above.min() - below.max() for (_, below), (_, above) in pairwise(parts)]
    apart = np.minimum([np.inf, *gaps], [*gaps, np.inf]) > SAME_BUDGET  # else C just varies
    kept = [len(sizes) for (sizes, _), alone in zip(parts, apart, strict=True)
            if alone and group_sizes(sizes).max() >= 3]  # fmt: skip
    return len(kept) >= 3 and sum(kept) >= 0.8 * len(n)
