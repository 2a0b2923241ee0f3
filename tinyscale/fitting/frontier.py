"""The compute-optimal frontier that follows from a fitted joint law, with intervals.

With C = 6 N D: N* = G (C/6)^a, D* = (C/6)^b / G, a = beta/(alpha+beta), b = alpha/(alpha+beta),
G = (alpha A / beta B)^(1/(alpha+beta)). Hoffmann et al. 2022 (2203.15556), section 3.3, eq. 4.

Each quantity maps E, log A, log B, alpha, beta (B, 5) to its value (B,) and gradient (B, 5). Its interval is a profile
where the law's own are, else that of the refits.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Array, Pair
from tinyscale.fitting.curve import ENDS, Curve
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.laws import LAWS
from tinyscale.fitting.uncertainty import Noise, Quantity, profile_of

FARTHEST = 60.0  # in log C from the estimate: a loss that is not reached there is below the floor


def frontier(curve: Curve, flops: ArrayLike) -> pd.DataFrame:
    """Compute-optimal n, d and loss at each budget, one row each, with 95 % ends `<name>_low`, `<name>_high`."""
    rows = []
    for c in np.atleast_1d(np.asarray(flops, float)):
        x = float(np.log(c / 6))
        size, loss = (_estimate(curve, partial(quantity, x=x)) for quantity in (_log_size, _log_loss))
        with np.errstate(over="ignore"):
            tokens = size.map(partial(np.subtract, x))
            rows.append([c, *(value for each in (size, tokens, loss) for value in np.exp([each.value, *each.ends]))])
    return pd.DataFrame(
        rows, columns=["c", *(f"{name}{end}" for name in ("n", "d", "loss") for end in ("", "_low", "_high"))]
    )


def exponents(curve: Curve) -> dict[str, Estimate]:
    """a and b of N* ~ C^a, D* ~ C^b."""
    a = _estimate(curve, _exponent).map(lambda value: np.clip(value, 0.0, 1.0))
    return {"a": a, "b": a.map(lambda value: 1 - value)}


def compute_for(curve: Curve, loss: float) -> Estimate:
    """FLOPs at which the frontier reaches a loss; an infinite end: it may never reach it.

    C = 6 ((L - E) / K)^(-(alpha+beta)/(alpha beta)) with K = A G^-alpha + B G^beta. FitError below the floor.
    """
    floor = curve.params[curve.law.irreducible] if curve.law.irreducible else 0.0
    if loss <= floor:
        raise FitError(
            f"no budget reaches a loss of {loss:.4g}: the fitted floor is {floor:.4g}; ask for a higher loss"
        )
    theta = _solver(curve)[:, _columns(curve)]
    g, (_, a, b, alpha, beta) = _log_size(theta, 0.0)[0][0], theta[0]
    power = (alpha + beta) / (alpha * beta)
    x = float(power * (np.logaddexp(a - alpha * g, b + beta * g) - np.log(loss - floor)))
    low, high = (_reached(curve, np.log(loss), x, side) for side in (-1, 1))
    return Estimate(x, low, high).map(lambda log_c: 6 * np.exp(log_c))


def _reached(curve: Curve, log_loss: float, start: float, side: int) -> float:
    """log(C/6), outward from `start`, where the low (-1) or high (1) end of L* is at the loss; infinite: nowhere."""

    def left(x: float) -> float:
        low, high = _estimate(curve, partial(_log_loss, x=x)).ends
        return side * ((low if side < 0 else high) - log_loss)

    if left(start) <= 0:
        return start  # noiseless data: the ends are the estimate
    near, far = start, start + side
    while left(far) > 0:
        near, far = far, far + (far - start)
        if abs(far - start) > FARTHEST:
            return side * np.inf
    return float(brentq(left, near, far, xtol=5e-3))


def _columns(curve: Curve) -> list[int]:
    """Where E, A, B, alpha and beta are among the law's parameters. FitError for a law without a frontier."""
    if not curve.law.has_frontier:
        others = ", ".join(law.name for law in LAWS.values() if law.has_frontier)
        raise FitError(f"{curve.law.formula} has no compute-optimal frontier; fit one of {others}")
    names = curve.law.params
    return [names.index(name if name in names else "alpha") for name in ("E", "A", "B", "alpha", "beta")]


def _solver(curve: Curve) -> Array:
    """The parameters (1, P) in solver coordinates."""
    return curve.law.to_solver(np.array([[curve.params[name] for name in curve.law.params]]))


def _estimate(curve: Curve, quantity: Quantity) -> Estimate:
    """A quantity that follows from the law's parameters."""
    columns = _columns(curve)
    by_parameter = np.eye(len(curve.law.params))[columns]

    def of_law(theta: Array) -> Pair:
        value, gradient = quantity(theta[:, columns])
        return value, gradient @ by_parameter

    theta = _solver(curve)
    if curve.profiled is not None:
        return profile_of(curve.profiled, theta[0], Noise(curve.sd, curve.dof, None, None), of_law)
    low, high = np.percentile(of_law(curve.law.to_solver(curve.draws))[0], ENDS, method="nearest")
    return Estimate(float(of_law(theta)[0][0]), float(low), float(high))


def _exponent(theta: Array) -> Pair:
    """a = beta / (alpha + beta)."""
    alpha, beta = theta.T[3:]
    gradient = np.zeros_like(theta)
    gradient[:, 3:] = np.stack([-beta, alpha], axis=1) / (alpha + beta)[:, None] ** 2
    return beta / (alpha + beta), gradient


def _log_size(theta: Array, x: float | Array) -> Pair:
    """log N* at log(C/6) = x."""
    _, a, b, alpha, beta = theta.T
    both, (power, gradient) = alpha + beta, _exponent(theta)
    g = (np.log(alpha / beta) + a - b) / both
    gradient *= np.reshape(x, (-1, 1))
    gradient[:, 1:] += np.stack([1 / both, -1 / both, (1 / alpha - g) / both, (-1 / beta - g) / both], axis=1)
    return g + power * x, gradient


def _log_loss(theta: Array, x: float | Array) -> Pair:
    """log L* at log(C/6) = x. Its gradient is that at a fixed N*, as no other N has less loss."""
    E, a, b, alpha, beta = theta.T
    n = _log_size(theta, x)[0]
    size, data = (np.exp(np.minimum(term, 300.0)) for term in (a - alpha * n, b - beta * (x - n)))
    total = E + size + data
    parts = [np.ones_like(total), size, data, -n * size, -(x - n) * data]
    return np.log(total), np.stack(parts, axis=1) / total[:, None]
