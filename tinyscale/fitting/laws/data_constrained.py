"""Chinchilla's law where data repeat."""

from __future__ import annotations

import numpy as np

from tinyscale.fitting.arrays import Array, Pair
from tinyscale.fitting.laws.base import COEFFICIENT, Law, bounded_exp
from tinyscale.fitting.laws.power_sum import JOINT_BOUNDS, JOINT_PARAMS, TWO_TERMS, guess_power_sum


def log_loss(theta: Array, x: Array) -> Pair:
    """L(N, D, U) = E + A N'^-alpha + B D'^-beta: repeats of U unique tokens and excess parameters are worth less.

    D' = U_D + U_D R_D (1 - exp(-(D/U_D - 1) / R_D)) with U_D = min(D, U); N' likewise with U_N = min(N, N_opt(U_D)) and
    N_opt(U) = G (U G)^(beta/alpha), G = (alpha A / beta B)^(1/(alpha + beta)). Muennighoff et al. 2023 (2305.16264),
    section 3.1.
    """
    E, a, b, alpha, beta, r_n, r_d = theta.T[:, :, None]
    n, d, u = x
    unique = np.minimum(d, u)
    g = (np.log(alpha / beta) + a - b) / (alpha + beta)
    optimal = g + beta / alpha * (unique + g)
    excess = n > optimal
    base = np.where(excess, optimal, n)
    n_eff, n_by_base, n_by_r = _worth(n, base, r_n)
    d_eff, _, d_by_r = _worth(d, unique + 0 * E, r_d)
    size, data = bounded_exp(a - alpha * n_eff), bounded_exp(b - beta * d_eff)
    total = E + size + data
    # How log N_opt moves with the coefficients and exponents; nowhere but where the model is larger than that.
    pull = np.where(excess, -alpha * size * n_by_base, 0.0)
    by_g = 1 + beta / alpha
    g_alpha, g_beta = (1 / alpha - g) / (alpha + beta), (-1 / beta - g) / (alpha + beta)
    parts = [
        np.ones_like(total),
        size + pull * by_g / (alpha + beta),
        data - pull * by_g / (alpha + beta),
        -size * n_eff + pull * (by_g * g_alpha - beta / alpha**2 * (unique + g)),
        -data * d_eff + pull * (by_g * g_beta + (unique + g) / alpha),
        -alpha * size * n_by_r,
        -beta * data * d_by_r,
    ]
    return np.log(total), np.stack(parts, axis=1) / total[:, None]


def _worth(total: Array, base: Array, log_r: Array) -> tuple[Array, Array, Array]:
    """log of base + base R (1 - exp(-(total/base - 1) / R)), and its derivatives by log base and by log R."""
    r = np.exp(log_r)
    repeats = np.expm1(np.minimum(total - base, 300.0))
    fade = np.exp(-repeats / r)
    worth = 1 - r * np.expm1(-repeats / r)
    return base + np.log(worth), 1 - fade * (repeats + 1) / worth, (r - (r + repeats) * fade) / worth


def guess(x: Array, loss: Array) -> Array:
    """The unconstrained law's starts on effective sizes, at repeats worth 5 and 20 epochs."""
    starts = []
    for r_n, r_d in ((5.0, 5.0), (5.0, 20.0), (20.0, 5.0)):
        unique = np.minimum(x[1], x[2])
        worth = unique + np.log1p(-r_d * np.expm1(-np.expm1(x[1] - unique) / r_d))
        base = guess_power_sum(np.stack([x[0], worth]), loss, terms=TWO_TERMS, grid=5)
        starts.append(np.column_stack([base, np.tile(np.log([r_n, r_d]), (len(base), 1))]))
    return np.concatenate(starts)


LAWS = (
    Law(
        name="data-constrained",
        formula="L(N, D, U) = E + A N'^-alpha + B D'^-beta",
        variables=("n", "d", "u"),
        params=(*JOINT_PARAMS, "R_N", "R_D"),
        bounds=(*JOINT_BOUNDS, COEFFICIENT, COEFFICIENT),
        log_loss=log_loss,
        guess=guess,
        exponents=("alpha", "beta"),
        irreducible="E",
    ),
)
