"""Chinchilla's law with its sum of powers raised to a power."""

from __future__ import annotations

import numpy as np

from tinyscale.fitting.arrays import Array, Pair
from tinyscale.fitting.laws.base import Law, bounded_exp
from tinyscale.fitting.laws.power_sum import JOINT_BOUNDS, JOINT_PARAMS, TWO_TERMS, guess_power_sum


def log_loss(theta: Array, x: Array) -> Pair:
    """L(N, D) = E + (A N^-alpha + B D^-beta)^gamma. Beck et al. 2025 (2510.02228), the fit of their code."""
    E, a, b, alpha, beta, power_ = theta.T[:, :, None]
    inner = np.logaddexp(a - alpha * x[0], b - beta * x[1])
    share = np.exp(a - alpha * x[0] - inner)
    term = bounded_exp(power_ * inner)
    total = E + term
    pull = power_ * term
    size, data = pull * share, pull * (1 - share)
    parts = [np.ones_like(term), size, data, -size * x[0], -data * x[1], term * inner]
    return np.log(total), np.stack(parts, axis=1) / total[:, None]


def guess(x: Array, loss: Array) -> Array:
    """Chinchilla's starts at three powers gamma, coefficients and exponents rescaled so that each term stays itself."""
    base = guess_power_sum(x, loss, terms=TWO_TERMS, grid=6)
    return np.concatenate(
        [np.column_stack([base[:, :1], base[:, 1:] / g, np.full(len(base), g)]) for g in (0.6, 1.0, 1.6)]
    )


LAWS = (
    Law(
        name="gamma",
        formula="L(N, D) = E + (A N^-alpha + B D^-beta)^gamma",
        variables=("n", "d"),
        params=(*JOINT_PARAMS, "gamma"),
        bounds=(*JOINT_BOUNDS, (0.05, 10.0)),
        log_loss=log_loss,
        guess=guess,
        exponents=("alpha", "beta", "gamma"),
        irreducible="E",
    ),
)
