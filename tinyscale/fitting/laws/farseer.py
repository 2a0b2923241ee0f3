"""Farseer's law, in which the floor, the coefficient and the exponent of D all change with N."""

from __future__ import annotations

import numpy as np

from tinyscale.fitting.arrays import Array, Pair
from tinyscale.fitting.laws.base import Law, bounded_exp
from tinyscale.fitting.laws.power_sum import TWO_TERMS, guess_power_sum, power_sum

REFERENCE = 1e8  # parameters at which each of the three functions of N has its value b
BENDS = (-0.3, 0.1)  # powers c of N that a search starts from
STARTS = 3  # Chinchilla's best starts, each with every bend


def log_loss(theta: Array, x: Array) -> Pair:
    """L(N, D) = exp(f3) + exp(f2) D^-exp(f1), f = b + a ((N/1e8)^c - 1)/c. Li et al. 2025 (2506.10972), eq. 1.

    Theirs is f = a N^c + b: the same curves, but a and b then grow without end as c nears 0.
    """
    n = x[0] - np.log(REFERENCE)
    (exponent, of_exponent), (coefficient, of_coefficient), (floor, of_floor) = (
        _bent(theta[:, i : i + 3], n) for i in (0, 3, 6)
    )
    power = bounded_exp(exponent)
    fixed, data = bounded_exp(floor), bounded_exp(coefficient - power * x[1])
    total = fixed + data
    parts = [of_exponent * (-data * power * x[1])[:, None], of_coefficient * data[:, None], of_floor * fixed[:, None]]
    return np.log(total), np.concatenate(parts, axis=1) / total[:, None]


def _bent(theta: Array, n: Array) -> Pair:
    """f = b + a ((N/1e8)^c - 1)/c (B, n) and its derivatives (B, 3, n) by b, a and c; n: log(N/1e8)."""
    b, a, c = theta.T[:, :, None]
    power = np.clip(c * n, -50.0, 50.0)
    near = np.abs(power) < 1e-4
    safe = np.where(near, 1.0, c + np.zeros_like(power))
    ratio = np.where(near, n * (1 + power / 2), np.expm1(power) / safe)
    slope = np.where(near, n**2 / 2, (n * np.exp(power) - ratio) / safe)
    return b + a * ratio, np.stack([np.ones_like(ratio), ratio, a * slope], axis=1)


def guess(x: Array, loss: Array) -> Array:
    """Chinchilla's best starts: E + A N^-alpha becomes the floor, a line in (N/1e8)^c at several powers c."""
    base = guess_power_sum(x, loss, terms=TWO_TERMS, grid=6)
    error = ((power_sum(base, x, terms=TWO_TERMS)[0] - np.log(loss)) ** 2).sum(axis=1)
    n, starts = x[0] - np.log(REFERENCE), []
    for E, a, b, alpha, beta in base[np.argsort(error)[:STARTS]]:
        floor = np.log(E + np.exp(a - alpha * x[0]))
        for bend in BENDS:
            slope, level = np.polyfit(np.expm1(bend * n) / bend, floor, 1)
            starts.append([np.log(beta), 0.0, 0.1, b, 0.0, 0.1, level, slope, bend])
    return np.array(starts)


WIDE, SLOPE, BEND = (-50.0, 200.0), (-20.0, 20.0), (-1.0, 1.0)

LAWS = (
    Law(
        name="farseer",
        formula="L(N, D) = exp(f3) + exp(f2) D^-exp(f1), f = b + a ((N/1e8)^c - 1)/c",
        variables=("n", "d"),
        params=("b1", "a1", "c1", "b2", "a2", "c2", "b3", "a3", "c3"),
        bounds=((-6.0, 1.1), SLOPE, BEND, WIDE, SLOPE, BEND, WIDE, SLOPE, BEND),
        log_loss=log_loss,
        guess=guess,
    ),
)
