"""A power law of N with one break."""

from __future__ import annotations

import numpy as np

from tinyscale.fitting.arrays import Array, Pair
from tinyscale.fitting.laws.base import COEFFICIENT, EXPONENT, FLOOR, Law, bounded_exp
from tinyscale.fitting.laws.power_sum import ONE_TERM, guess_power_sum


def log_loss(theta: Array, x: Array) -> Pair:
    """L(x) = E + A x^-c0 (1 + (x/d)^(1/f))^(-c1 f): a break at d, f wide. Caballero et al. 2022 (2210.14891), eq. 1."""
    E, a, c0, c1, d, f = theta.T[:, :, None]
    past = (x[0] - d) / f
    soft = np.logaddexp(0, past)
    gate = np.exp(past - soft)
    term = bounded_exp(a - c0 * x[0] - c1 * f * soft)
    total = E + term
    parts = [
        np.ones_like(term),
        term,
        -term * x[0],
        -term * f * soft,
        term * c1 * gate,
        term * c1 * (past * gate - soft),
    ]
    return np.log(total), np.stack(parts, axis=1) / total[:, None]


def guess(x: Array, loss: Array) -> Array:
    """The unbroken law's starts with a break at a quarter, half and three quarters of the range, steeper or flatter."""
    base = guess_power_sum(x, loss, terms=ONE_TERM, grid=6)
    starts = []
    for at in np.quantile(x[0], [0.25, 0.5, 0.75]):
        for bend in (-0.1, 0.1):
            extra = np.tile([bend, at, 0.5], (len(base), 1))
            starts.append(np.column_stack([base, extra]))
    return np.concatenate(starts)


LAWS = (
    Law(
        name="broken",
        formula="L(N) = E + A N^-c0 (1 + (N/d)^(1/f))^(-c1 f)",
        variables=("n",),
        params=("E", "A", "c0", "c1", "d", "f"),
        bounds=(FLOOR, COEFFICIENT, EXPONENT, (-3.0, 3.0), COEFFICIENT, (0.05, 5.0)),
        log_loss=log_loss,
        guess=guess,
        exponents=("c0",),
        irreducible="E",
    ),
)
