"""The bottom of a bowl that moves: log loss as a quadratic in log settings, its optimum linear in log sizes.

All runs are fitted at once; the runs of a cell share a height of their own. Far from its bottom the loss is no
quadratic: it rises faster above the best learning rate than below it, and without bound where a run diverges. So runs
count by how near they are to the bottom, by the bowl and not by their own loss, which is noisy; cubic terms, alike in
all cells, take up what is left of the asymmetry; and runs that are off the bowl by more than noise lose their weight
(Beaton and Tukey 1974).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np

from tinyscale.fitting.arrays import Array, Index, Mask

# Excess of log loss over the bottom, from which on a run does not count, by turns.
WINDOWS = tuple(0.5 / 1.5**step for step in range(11))
NOISES = 8.0  # standard deviations of a run that a window spans: else noise hides the curvature
SPARE = 2.0  # runs that count, for each parameter
LOPSIDED = 4.0  # runs that count, for each cell and setting, from which on a cubic is fitted: fewer leave it free
OUTLIER = 4.685  # standard deviations; 95 % efficient for normal noise
QUIET = 1e-4  # less noise than any run has: the law is off by more
STEPS, SMALL, FURTHEST = 100, 1e-5, 0.5  # Newton's steps: how many, the last one and the longest, in window's widths


@dataclass(frozen=True)
class Bowl:
    """optimum (m, 1 + k): log of each setting's optimum = optimum @ [1, x].

    curvature (m, m): second derivatives of log loss there; weight (n,): how much each run counts; height, residual
    (n,): log loss at the bottom of its cell, and what the bowl leaves over; off (n,): runs in the window that are off
    by more than noise; sd: noise of a run in log loss; window: excess of log loss up to which runs count.
    """

    optimum: Array
    curvature: Array
    weight: Array
    height: Array
    residual: Array
    off: Mask
    sd: float
    window: float

    def at(self, sizes: Array) -> Array:
        """Log optimum (n, m) at sizes (n, k)."""
        return _with_one(sizes) @ self.optimum.T


def fit_bowl(settings: Array, sizes: Array, loss: Array, cell: Index, *, near: Bowl | None = None) -> Bowl:
    """Fit logarithms of settings (n, m), sizes (n, k) and loss (n,); cell (n,): index of each run's cell.

    near: a bowl for these runs and others, to begin from; its window is kept. Else the window narrows for as long as it
    holds enough runs and shows the curvature through the noise.
    """
    if near is not None:
        found = _descend(settings, sizes, loss, cell, near, near.window, powers=2)
    else:
        found = each = _begin(settings, sizes, loss, cell)
        for window in WINDOWS:
            each = _descend(settings, sizes, loss, cell, each, window, powers=2)
            if not rises(each) or _count(each.weight) < SPARE * (each.optimum.size + _cells(each, cell)):
                break
            if window >= NOISES * each.sd or not np.isfinite(found.sd):
                found = each
    if _count(found.weight) < LOPSIDED * settings.shape[1] * _cells(found, cell):
        return found
    lopsided = _descend(settings, sizes, loss, cell, found, found.window, powers=3, fixed=found.weight)
    return lopsided if rises(lopsided) or not rises(found) else found


def _cells(bowl: Bowl, cell: Index) -> int:
    return len(np.unique(cell[bowl.weight > 0]))


def rises(bowl: Bowl) -> bool:
    """Whether the bowl has runs, and opens upwards."""
    return bool(np.isfinite(bowl.sd) and np.linalg.eigvalsh(bowl.curvature)[0] > 0)


def own_optimum(bowl: Bowl, settings: Array, sizes: Array, rows: Mask) -> tuple[Array, Array]:
    """The log optimum (m,) of one cell by its own runs with the bowl's shape, and its standard deviation (m,)."""
    u = settings[rows] - bowl.at(sizes[rows])
    root = np.sqrt(bowl.weight[rows])[:, None]
    inverse = np.linalg.pinv(_with_one(u) * root)
    to_optimum = -np.linalg.solve(bowl.curvature, inverse[1:])
    at = bowl.at(sizes[rows]).mean(axis=0) + to_optimum @ (bowl.residual[rows] * root[:, 0])
    return at, bowl.sd * np.sqrt((to_optimum**2).sum(axis=1))


def _with_one(sizes: Array) -> Array:
    return np.column_stack([np.ones(len(sizes)), sizes])


def _count(weight: Array) -> float:
    """Of how many equal weights these are worth."""
    return float(weight.sum() ** 2 / max((weight**2).sum(), 1e-300))


def _begin(settings: Array, sizes: Array, loss: Array, cell: Index) -> Bowl:
    """A bowl about the best run of each cell, as wide as the better half of its runs."""
    better, best = np.zeros(len(loss), bool), []
    for index in np.unique(cell):
        rows = np.flatnonzero(cell == index)
        order = rows[np.argsort(loss[rows], kind="stable")]
        better[order[: max(len(rows) // 2, min(len(rows), 2 * settings.shape[1] + 2))]] = True
        best.append(order[0])
    optimum = np.asarray(np.linalg.lstsq(_with_one(sizes[best]), settings[best], rcond=None)[0].T, float)
    u = settings - _with_one(sizes) @ optimum.T
    rise = max(float(np.median(loss[better] - loss[best][np.searchsorted(np.unique(cell), cell[better])])), 1e-6)
    curvature = np.diag(2 * rise / np.maximum((u[better] ** 2).mean(axis=0), 1e-6)) / settings.shape[1]
    nothing = np.zeros(len(loss))
    return Bowl(optimum, curvature, better.astype(float), loss, nothing, nothing > 0, np.inf, np.inf)


def _descend(
    settings: Array,
    sizes: Array,
    loss: Array,
    cell: Index,
    bowl: Bowl,
    window: float,
    *,
    powers: int,
    fixed: Array | None = None,
) -> Bowl:
    """Newton's steps of the optimum until it stays, with fixed weights, or with weights that follow the bowl."""
    basis, m = _with_one(sizes), settings.shape[1]
    pairs = list(combinations_with_replacement(range(m), 2))
    optimum, curvature, robust, sd = bowl.optimum, _upward(bowl.curvature), np.ones(len(loss)), bowl.sd
    bent, height, residual = np.zeros((m, m)), loss, np.zeros(len(loss))
    for _ in range(STEPS):
        u = settings - basis @ optimum.T
        near = np.maximum(1 - np.einsum("ni,ij,nj->n", u, curvature, u) / 2 / window, 0) ** 2
        weight = near * robust if fixed is None else fixed
        if not weight.any():
            sd = np.inf  # there is no bowl here
            break
        higher = [np.prod(u[:, each], axis=1) for p in range(2, powers + 1) for each in _products(m, p)]
        columns = np.column_stack([(u[:, :, None] * basis[:, None, :]).reshape(len(u), -1), *higher])
        coefficients, height, residual = _least_squares(columns, loss, cell, weight)
        bent = np.zeros((m, m))
        for (i, j), value in zip(pairs, coefficients[m * basis.shape[1] :], strict=False):
            bent[i, j] += value
            bent[j, i] += value
        curvature = _upward(bent)
        move = -np.linalg.solve(curvature, coefficients[: m * basis.shape[1]].reshape(m, -1))
        moved = basis[weight > 0] @ move.T
        furthest = np.sqrt(np.einsum("ni,ij,nj->n", moved, curvature, moved).max() / 2 / window)
        optimum = optimum + move * min(1.0, FURTHEST / max(furthest, 1e-300))
        spare = max(_count(weight) - len(coefficients) - len(np.unique(cell[weight > 0])), 1.0)
        sd = 1.4826 * _median(np.abs(residual), near) * np.sqrt(_count(weight) / spare)
        robust = np.maximum(1 - (residual / (OUTLIER * max(sd, QUIET))) ** 2, 0) ** 2
        if furthest < SMALL:
            break
    return Bowl(optimum, bent, weight, height, residual, (near > 0) & (robust == 0), float(sd), window)


def _products(m: int, power: int) -> list[list[int]]:
    return [list(each) for each in combinations_with_replacement(range(m), power)]


def _upward(curvature: Array) -> Array:
    """The nearest curvature that opens upwards, for a step."""
    values, vectors = np.linalg.eigh(curvature)
    values = np.maximum(np.abs(values), 1e-3 * np.abs(values).max() + 1e-12)
    return np.asarray(vectors * values @ vectors.T)


def _median(values: Array, weight: Array) -> float:
    """Weighted median."""
    order = np.argsort(values)
    total = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def _least_squares(columns: Array, loss: Array, cell: Index, weight: Array) -> tuple[Array, Array, Array]:
    """Weighted least squares with a height for each cell: coefficients, the height of each run's cell, residuals."""
    total = np.maximum(np.bincount(cell, weight), 1e-300)

    def mean(values: Array) -> Array:
        return (np.bincount(cell, weight * values) / total)[cell]

    means = np.column_stack([mean(column) for column in columns.T])
    level = mean(loss)
    root = np.sqrt(weight)
    found = np.asarray(np.linalg.lstsq((columns - means) * root[:, None], (loss - level) * root, rcond=None)[0], float)
    height = level - means @ found
    return found, height, loss - height - columns @ found
