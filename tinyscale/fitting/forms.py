"""Scaling laws as pure functions: the docstring is the formula and its source.

Each maps solver coordinates `theta` (B, P) and natural logarithms of its variables `x` (k, n) to the log of the loss
(B, n) and its Jacobian (B, P, n). Coefficients enter as logarithms, floors and exponents as they are, so B starting
points or bootstrap draws are one call. `laws.py` gives each its names, bounds and starting guess.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Mask = NDArray[np.bool_]
Pair = tuple[Array, Array]
Term = tuple[int, tuple[int, int]]  # positions of: a coefficient in theta, its exponent in theta, its variable in x

ONE_TERM: tuple[Term, ...] = ((1, (2, 0)),)
TWO_TERMS: tuple[Term, ...] = ((1, (3, 0)), (2, (4, 1)))
TIED_TERMS: tuple[Term, ...] = ((1, (3, 0)), (2, (3, 1)))


def _exp(x: Array) -> Array:
    """A step too far makes nothing infinite or zero: its loss is merely enormous or tiny, and it is taken back."""
    return np.asarray(np.exp(np.clip(x, -300.0, 300.0)))


def power_sum(theta: Array, x: Array, *, terms: tuple[Term, ...], floor: int | None = 0) -> Pair:
    """log(E + sum_t A_t x_t^-a_t), with E, log A_t and a_t at the given positions of theta."""
    jacobian = np.zeros((*theta.shape, x.shape[1]))
    total = (
        np.zeros((len(theta), x.shape[1])) if floor is None else np.repeat(theta[:, floor, None], x.shape[1], axis=1)
    )
    for coefficient, (exponent, variable) in terms:
        term = np.exp(theta[:, coefficient, None] - theta[:, exponent, None] * x[variable])
        total += term
        jacobian[:, coefficient] = term
        jacobian[:, exponent] -= term * x[variable]
    if floor is not None:
        jacobian[:, floor] = 1.0
    jacobian /= total[:, None]
    return np.log(total), jacobian


def power_floor(theta: Array, x: Array) -> Pair:
    """L(x) = E + A x^-alpha. Henighan et al. 2020 (2010.14701), eq. 1.1; of context: Xiong et al. 2023 (2309.16039)."""
    return power_sum(theta, x, terms=ONE_TERM)


def power(theta: Array, x: Array) -> Pair:
    """L(x) = A x^-alpha: no floor. Kaplan et al. 2020 (2001.08361), section 1.2."""
    return power_sum(theta, x, terms=((0, (1, 0)),), floor=None)


def chinchilla(theta: Array, x: Array) -> Pair:
    """L(N, D) = E + A N^-alpha + B D^-beta. Hoffmann et al. 2022 (2203.15556), eq. 2.

    On width and depth in place of N and D: McLeish et al. 2025 (2502.06857), at a fixed number of tokens.
    """
    return power_sum(theta, x, terms=TWO_TERMS)


def tied(theta: Array, x: Array) -> Pair:
    """L(N, D) = E + A N^-alpha + B D^-alpha. Gadre et al. 2024 (2403.08540), eq. 4.

    Theirs is written in C = 6 N D and M = D/N as E + (a M^eta + b M^-eta) C^-eta: the same curve, alpha = 2 eta.
    """
    return power_sum(theta, x, terms=TIED_TERMS)


def gamma(theta: Array, x: Array) -> Pair:
    """L(N, D) = E + (A N^-alpha + B D^-beta)^gamma. Beck et al. 2025 (2510.02228), the fit of their code."""
    E, a, b, alpha, beta, power_ = theta.T[:, :, None]
    inner = np.logaddexp(a - alpha * x[0], b - beta * x[1])
    share = np.exp(a - alpha * x[0] - inner)
    term = _exp(power_ * inner)
    total = E + term
    pull = power_ * term
    size, data = pull * share, pull * (1 - share)
    parts = [np.ones_like(term), size, data, -size * x[0], -data * x[1], term * inner]
    return np.log(total), np.stack(parts, axis=1) / total[:, None]


def kaplan(theta: Array, x: Array) -> Pair:
    """L(N, D) = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D. Kaplan et al. 2020 (2001.08361), eq. 1.5."""
    n_c, d_c, alpha_n, alpha_d = theta.T[:, :, None]
    size = alpha_n / alpha_d * (n_c - x[0])
    inner = np.logaddexp(size, d_c - x[1])
    share = np.exp(size - inner)
    parts = [alpha_n * share, alpha_d * (1 - share), share * (n_c - x[0]), inner - share * size]
    return alpha_d * inner, np.stack(parts, axis=1)


def broken(theta: Array, x: Array) -> Pair:
    """L(x) = E + A x^-c0 (1 + (x/d)^(1/f))^(-c1 f): a break at d, f wide. Caballero et al. 2022 (2210.14891), eq. 1."""
    E, a, c0, c1, d, f = theta.T[:, :, None]
    past = (x[0] - d) / f
    soft = np.logaddexp(0, past)
    gate = np.exp(past - soft)
    term = _exp(a - c0 * x[0] - c1 * f * soft)
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


def data_constrained(theta: Array, x: Array) -> Pair:
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
    size, data = _exp(a - alpha * n_eff), _exp(b - beta * d_eff)
    total = E + size + data
    # How log N_opt moves with the coefficients and exponents; nowhere but where the model is larger than that.
    reach = np.where(excess, -alpha * size * n_by_base, 0.0)
    by_g = 1 + beta / alpha
    g_alpha, g_beta = (1 / alpha - g) / (alpha + beta), (-1 / beta - g) / (alpha + beta)
    parts = [
        np.ones_like(total),
        size + reach * by_g / (alpha + beta),
        data - reach * by_g / (alpha + beta),
        -size * n_eff + reach * (by_g * g_alpha - beta / alpha**2 * (unique + g)),
        -data * d_eff + reach * (by_g * g_beta + (unique + g) / alpha),
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
