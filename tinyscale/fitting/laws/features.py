"""The law of sparse autoencoders: what n latents, k of them active, leave unexplained."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tinyscale.fitting.arrays import Array, Pair
from tinyscale.fitting.laws.base import Law, bounded_exp


def log_loss(theta: Array, x: Array) -> Pair:
    """L(n, k) = exp(alpha + b_k ln k + b_n ln n + g ln k ln n) + exp(zeta + eta ln k). Gao et al. 2024 (2406.04093).

    Section 3.1. The second term is what no number of latents explains; at a fixed k, a floor and a power of n are left.
    """
    alpha, b_k, b_n, g, zeta, eta = theta.T[:, :, None]
    n, k = x
    falling, floor = bounded_exp(alpha + b_k * k + b_n * n + g * k * n), bounded_exp(zeta + eta * k)
    total = falling + floor
    parts = [falling, falling * k, falling * n, falling * k * n, floor + 0 * k, floor * k]
    return np.log(total), np.stack(parts, axis=1) / total[:, None]


def guess(x: Array, loss: Array) -> Array:
    """The floor a share of the lowest loss, falling slowly with k; what is left is a plane of logarithms."""
    n, k = x
    columns = np.stack([np.ones_like(n), k, n, n * k], axis=1)
    starts = []
    for share in (0.05, 0.3, 0.6, 0.9):
        for eta in (0.0, -0.1, -0.3):
            zeta = float((np.log(share * loss) - eta * k).min())
            left = np.log(loss - np.exp(zeta + eta * k))
            starts.append([*np.linalg.lstsq(columns, left, rcond=None)[0], zeta, eta])
    return np.array(starts)


def latex(value: Mapping[str, float]) -> str:
    """The law with its numbers."""
    a, b_k, b_n, g, zeta, eta = (f"{value[name]:.3g}" for name in ("alpha", "b_k", "b_n", "g", "zeta", "eta"))
    power = rf"{b_k}\ln k + {b_n}\ln n + {g}\ln k\ln n".replace("+ -", "- ")
    return rf"$L = e^{{{a} + {power}}} + e^{{{zeta} + {eta}\ln k}}$".replace("+ -", "- ")


LEVEL, SLOPE = (-50.0, 50.0), (-5.0, 5.0)

LAWS = (
    Law(
        name="features",
        formula="L(n, k) = exp(alpha + b_k ln k + b_n ln n + g ln k ln n) + exp(zeta + eta ln k)",
        variables=("latents", "active"),
        params=("alpha", "b_k", "b_n", "g", "zeta", "eta"),
        bounds=(LEVEL, SLOPE, SLOPE, SLOPE, LEVEL, SLOPE),
        log_loss=log_loss,
        guess=guess,
        exponents=("b_n", "g", "b_k"),
        latex=latex,
    ),
)
