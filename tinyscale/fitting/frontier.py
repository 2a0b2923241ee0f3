"""The compute-optimal frontier that follows from a fitted joint law, with intervals from its refits.

With C = 6 N D: N* = G (C/6)^a, D* = (C/6)^b / G, a = beta/(alpha+beta), b = alpha/(alpha+beta),
G = (alpha A / beta B)^(1/(alpha+beta)). Hoffmann et al. 2022 (2203.15556), section 3.3, eq. 4.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from tinyscale.errors import FitError
from tinyscale.fitting.curve import ENDS, Curve
from tinyscale.fitting.forms import Array

JOINT = ("chinchilla", "tied")


def frontier(curve: Curve, flops: ArrayLike) -> pd.DataFrame:
    """Compute-optimal n, d and loss at each budget, one row each, with 95 % ends `<name>_low`, `<name>_high`."""
    c = np.atleast_1d(np.asarray(flops, float))
    rows = {"c": c}
    best, drawn = (_optimum(parameters, c) for parameters in _parameters(curve))
    for name, value, draws in zip(("n", "d", "loss"), best, drawn, strict=True):
        low, high = np.percentile(draws, ENDS, axis=0)
        rows |= {name: value[0], f"{name}_low": low, f"{name}_high": high}
    return pd.DataFrame(rows)


def exponents(curve: Curve) -> dict[str, tuple[float, float, float]]:
    """a and b of N* ~ C^a, D* ~ C^b: value, and 95 % ends."""
    best, drawn = _parameters(curve)
    found = {}
    for name, of, other in (("a", 4, 3), ("b", 3, 4)):
        low, high = np.percentile(drawn[:, of] / (drawn[:, of] + drawn[:, other]), ENDS)
        found[name] = (float(best[0, of] / (best[0, of] + best[0, other])), float(low), float(high))
    return found


def compute_for(curve: Curve, loss: float) -> tuple[float, float, float]:
    """FLOPs at which the frontier reaches a loss: value, and 95 % ends (infinite: some refits never reach it).

    C = 6 ((L - E) / K)^(-(alpha+beta)/(alpha beta)) with K = A G^-alpha + B G^beta. FitError below the floor.
    """
    floor = curve.params.get("E", 0.0)
    if loss <= floor:
        raise FitError(
            f"no budget reaches a loss of {loss:.4g}: the fitted floor is {floor:.4g}; ask for a higher loss"
        )
    best, drawn = (_inverse(parameters, loss) for parameters in _parameters(curve))
    low, high = np.percentile(drawn, ENDS, method="nearest")
    return float(best[0]), float(low), float(high)


def _parameters(curve: Curve) -> tuple[Array, Array]:
    """E, A, B, alpha, beta of the fit (1, 5) and of its refits (K, 5)."""
    if curve.law.name not in JOINT:
        raise FitError(f"{curve.law.formula} has no compute-optimal frontier; fit one of {', '.join(JOINT)}")
    columns = [
        curve.law.params.index(name if name in curve.law.params else "alpha")
        for name in ("E", "A", "B", "alpha", "beta")
    ]
    return np.array([list(curve.params.values())])[:, columns], curve.draws[:, columns]


def _scale(parameters: Array) -> Array:
    """log G (K, 1)."""
    _, A, B, alpha, beta = parameters.T[:, :, None]
    return np.asarray(np.log(alpha * A / (beta * B)) / (alpha + beta))


def _optimum(parameters: Array, c: Array) -> tuple[Array, Array, Array]:
    """n, d and loss (K, m) at budgets c (m,)."""
    E, A, B, alpha, beta = parameters.T[:, :, None]
    g, x = _scale(parameters), np.log(c / 6)
    n, d = g + beta / (alpha + beta) * x, -g + alpha / (alpha + beta) * x
    return np.exp(n), np.exp(d), E + A * np.exp(-alpha * n) + B * np.exp(-beta * d)


def _inverse(parameters: Array, loss: float) -> Array:
    """Budget (K,) at which the frontier reaches the loss; infinite where the floor is above it."""
    E, A, B, alpha, beta = parameters.T
    g = _scale(parameters)[:, 0]
    k = A * np.exp(-alpha * g) + B * np.exp(beta * g)
    reach = np.maximum(loss - E, 0)
    with np.errstate(divide="ignore"):
        power = -(alpha + beta) / (alpha * beta) * np.log(reach / k)
    with np.errstate(over="ignore"):
        return np.asarray(6 * np.exp(power))
