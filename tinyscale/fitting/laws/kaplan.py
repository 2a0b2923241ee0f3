"""The joint law of Kaplan et al., which has no floor."""

from __future__ import annotations

import numpy as np

from tinyscale.fitting.arrays import Array, Pair
from tinyscale.fitting.laws.base import COEFFICIENT, EXPONENT, Law


def log_loss(theta: Array, x: Array) -> Pair:
    """L(N, D) = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D. Kaplan et al. 2020 (2001.08361), eq. 1.5."""
    n_c, d_c, alpha_n, alpha_d = theta.T[:, :, None]
    size = alpha_n / alpha_d * (n_c - x[0])
    inner = np.logaddexp(size, d_c - x[1])
    share = np.exp(size - inner)
    parts = [alpha_n * share, alpha_d * (1 - share), share * (n_c - x[0]), inner - share * size]
    return alpha_d * inner, np.stack(parts, axis=1)


def guess(x: Array, loss: Array) -> Array:
    """Each axis in its own limit: L = (N_c/N)^alpha_N at the largest D, (D_c/D)^alpha_D at the largest N."""
    alpha_n, alpha_d = (a.ravel() for a in np.meshgrid(np.geomspace(0.02, 0.6, 6), np.geomspace(0.02, 0.6, 6)))
    level = np.log(loss.mean())
    n_c, d_c = x[0].mean() + level / alpha_n, x[1].mean() + level / alpha_d
    split = np.log(2)  # at the middle both terms count alike
    return np.column_stack([n_c - split * alpha_d / alpha_n, d_c - split, alpha_n, alpha_d])


LAWS = (
    Law(
        name="kaplan",
        formula="L(N, D) = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D",
        variables=("n", "d"),
        params=("N_c", "D_c", "alpha_N", "alpha_D"),
        bounds=(COEFFICIENT, COEFFICIENT, EXPONENT, EXPONENT),
        log_loss=log_loss,
        guess=guess,
        exponents=("alpha_N", "alpha_D"),
    ),
)
