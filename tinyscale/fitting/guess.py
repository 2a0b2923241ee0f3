"""Starting points by variable projection: a grid over the exponents, the coefficients by least squares at each.

Golub and Pereyra 1973; for scaling laws 2603.22339. Errors are relative, to stand in for residuals of log loss.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from tinyscale.fitting.forms import TWO_TERMS, Array, Term


def guess_power_sum(x: Array, loss: Array, *, terms: tuple[Term, ...], floor: int | None = 0, grid: int) -> Array:
    """Starts (B, P) for `power_sum` with these terms: `grid` values of each exponent between 0.03 and 1.5."""
    exponents = sorted({exponent for _, (exponent, _) in terms})
    axes = np.meshgrid(*[np.geomspace(0.03, 1.5, grid)] * len(exponents), indexing="ij")
    size = 1 + max([floor or 0, *exponents, *(coefficient for coefficient, _ in terms)])
    theta = np.zeros((axes[0].size, size))
    theta[:, exponents] = np.stack([axis.ravel() for axis in axes], axis=1)
    centre = x.mean(axis=1)  # columns in units of the middle size, or N^-1.5 would underflow the normal equations
    columns = [np.exp(-theta[:, a, None] * (x[v] - centre[v])) for _, (a, v) in terms]
    if floor is not None:
        columns.append(np.ones_like(columns[0]))
    found = np.maximum(_nonnegative(np.stack(columns, axis=1) / loss), 1e-6 * loss.min())
    for position, (coefficient, (a, v)) in enumerate(terms):
        theta[:, coefficient] = np.log(found[:, position]) + theta[:, a] * centre[v]
    if floor is not None:
        theta[:, floor] = found[:, -1]
    return theta


def _nonnegative(columns: Array) -> Array:
    """Non-negative least squares of 1 on `columns` (G, m, n), exactly, by trying every subset of the m <= 3 columns."""
    gram, target = columns @ columns.swapaxes(1, 2), columns.sum(axis=2)
    best, fitted = np.zeros(target.shape), np.zeros(len(target))
    width = target.shape[1]
    for subset in (list(s) for size in range(1, width + 1) for s in combinations(range(width), size)):
        system = gram[:, subset][:, :, subset]
        ridge = 1e-12 * np.trace(system, axis1=1, axis2=2)[:, None, None] * np.eye(len(subset))
        solved = np.linalg.solve(system + ridge, target[:, subset, None])[..., 0]
        explained = (solved * target[:, subset]).sum(axis=1)
        better = (solved >= 0).all(axis=1) & (explained > fitted)
        fitted = np.where(better, explained, fitted)
        candidate = np.zeros_like(best)
        candidate[:, subset] = solved
        best = np.where(better[:, None], candidate, best)
    return best


def guess_gamma(x: Array, loss: Array) -> Array:
    """Chinchilla's starts at three powers gamma, coefficients and exponents rescaled so that each term stays itself."""
    base = guess_power_sum(x, loss, terms=TWO_TERMS, grid=6)
    return np.concatenate(
        [np.column_stack([base[:, :1], base[:, 1:] / g, np.full(len(base), g)]) for g in (0.6, 1.0, 1.6)]
    )


def guess_kaplan(x: Array, loss: Array) -> Array:
    """Each axis in its own limit: L = (N_c/N)^alpha_N at the largest D, (D_c/D)^alpha_D at the largest N."""
    alpha_n, alpha_d = (a.ravel() for a in np.meshgrid(np.geomspace(0.02, 0.6, 6), np.geomspace(0.02, 0.6, 6)))
    level = np.log(loss.mean())
    n_c, d_c = x[0].mean() + level / alpha_n, x[1].mean() + level / alpha_d
    split = np.log(2)  # at the middle both terms count alike
    return np.column_stack([n_c - split * alpha_d / alpha_n, d_c - split, alpha_n, alpha_d])


def guess_broken(x: Array, loss: Array) -> Array:
    """The unbroken law's starts with a break at a quarter, half and three quarters of the range, steeper or flatter."""
    base = guess_power_sum(x, loss, terms=((1, (2, 0)),), grid=6)
    starts = []
    for at in np.quantile(x[0], [0.25, 0.5, 0.75]):
        for bend in (-0.1, 0.1):
            extra = np.tile([bend, at, 0.5], (len(base), 1))
            starts.append(np.column_stack([base, extra]))
    return np.concatenate(starts)


def guess_data_constrained(x: Array, loss: Array) -> Array:
    """The unconstrained law's starts on effective sizes, at repeats worth 5 and 20 epochs."""
    starts = []
    for r_n, r_d in ((5.0, 5.0), (5.0, 20.0), (20.0, 5.0)):
        unique = np.minimum(x[1], x[2])
        worth = unique + np.log1p(-r_d * np.expm1(-np.expm1(x[1] - unique) / r_d))
        base = guess_power_sum(np.stack([x[0], worth]), loss, terms=TWO_TERMS, grid=5)
        starts.append(np.column_stack([base, np.tile(np.log([r_n, r_d]), (len(base), 1))]))
    return np.concatenate(starts)
