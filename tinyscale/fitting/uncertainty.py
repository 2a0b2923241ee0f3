"""Intervals: profiles with t cut-offs for few sizes, a bootstrap clustered by run for many.

With few sizes the noise is estimated from few numbers, so cut-offs come from t. When the scatter of the sizes about the
law exceeds what their seeds explain, the sizes themselves are the noise: fewer degrees of freedom, wider intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy import special

from tinyscale.fitting.arrays import Array, Index, Mask, Pair
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.points import Points, group_settings
from tinyscale.fitting.solve import Problem, Solutions, minimise

LEVEL = 0.95
OPEN = 3.0  # a bound this large or larger in solver coordinates says nothing: the interval has no end there
NEAR = 8.0  # linear standard deviations within which most intervals end
WIDEST = 1e3  # linear standard deviations that a profile is followed for
LEAST_SD = 1e-12  # noiseless data still need a scale
CURVED, NEIGHBOUR_STEPS = 6, 100  # laws of so many parameters have minima along bent curves, or several
HOLD = 1e4  # against 1: how hard a quantity is held at a value; the end of its interval is off by the inverse
EXACT = 1e-6  # logarithms that differ by less are of one number, counted twice in floating point
LACK_OF_FIT_LEVEL = 0.25  # to pool or not, Bancroft 1964: at 5 % a missed lack of fit makes intervals too short

Quantity = Callable[[Array], Pair]  # theta (B, P) -> its value (B,) and gradient (B, P)


@dataclass(frozen=True)
class Noise:
    """Scatter of log loss about the law.

    sd: standard deviation of one run; dof: degrees of freedom it was estimated with; pure_error: standard deviation of
    the seeds alone (None without repeats); lack_of_fit: p-value that sizes scatter no more than seeds (None likewise).
    """

    sd: float
    dof: int
    pure_error: float | None
    lack_of_fit: float | None


def estimate_noise(points: Points, residual: Array, params: int) -> Noise:
    """Split the residual sum of squares (n,) into seeds within a configuration and configurations about the law."""
    return noise_of(group_settings(points.x, EXACT), residual, params)


def noise_of(config: Index, residual: Array, params: int) -> Noise:
    """As `estimate_noise`, of points whose configuration is an index (n,)."""
    config, n = np.unique(config, return_inverse=True)[1], len(residual)
    groups = int(config.max()) + 1
    means = np.bincount(config, residual) / np.bincount(config)
    within, total = float(((residual - means[config]) ** 2).sum()), float((residual**2).sum())
    if n == groups:
        return Noise(float(np.sqrt(total / max(n - params, 1))), max(n - params, 1), None, None)
    pure = within / (n - groups)
    if groups <= params:
        return Noise(float(np.sqrt(pure)), n - groups, float(np.sqrt(pure)), None)
    between = (total - within) / (groups - params)
    p = float(special.fdtrc(groups - params, n - groups, between / max(pure, 1e-300)))
    if p < LACK_OF_FIT_LEVEL:
        return Noise(float(np.sqrt(between)), groups - params, float(np.sqrt(pure)), p)
    return Noise(float(np.sqrt(total / (n - params))), n - params, float(np.sqrt(pure)), p)


def of_clusters(noise: Noise, points: Points, residual: Array, params: int) -> Noise:
    """The noise that intervals of parameters need where runs give several points: what these share is no new evidence.

    The variance grows by the design effect 1 + (m - 1) rho, rho the correlation within a run (Kish 1965, section 5.4);
    the degrees of freedom are those of runs. Without such runs, the noise as it is.
    """
    size = np.bincount(points.cluster)
    clusters, n = len(size), len(residual)
    if points.configs() <= clusters or clusters < 2:
        return noise
    mean = np.bincount(points.cluster, residual) / size
    dof = max(clusters - params, 1)
    between = float((size * mean**2).sum()) / dof
    within = float(((residual - mean[points.cluster]) ** 2).sum()) / max(n - clusters, 1)
    each = (n - (size**2).sum() / n) / (clusters - 1)
    rho = np.clip((between - within) / max(between + (each - 1) * within, 1e-300), 0.0, 1.0)
    return replace(noise, sd=float(noise.sd * np.sqrt(1 + (each - 1) * rho)), dof=min(noise.dof, dof))


def covariance(problem: Problem, theta: Array, sd: float) -> Array:
    """Linearised covariance (P, P) of theta (P,), for the scale of a search only: these laws are far from linear."""
    jacobian = problem.law.log_loss(theta[None], problem.x)[1][0]
    return np.asarray(np.linalg.pinv(jacobian @ jacobian.T, rcond=1e-14) * sd**2)


def profile(problem: Problem, theta: Array, noise: Noise) -> tuple[Array, Array]:
    """95 % profile interval (P,), (P,) of each parameter in solver coordinates; infinite where the data set no end.

    Least squares only: the interval holds the values at which the best fit of all other parameters is not worse than
    the optimum by t^2 noise variances. Bates and Watts 1988, section 6.1.2.
    """
    assert np.isinf(problem.delta), "Huber's objective is no likelihood: it has no profile"
    spread = covariance(problem, theta, max(noise.sd, LEAST_SD))
    unit = np.maximum(np.sqrt(np.maximum(np.diag(spread), 0.0)), 1e-9 * (1 + np.abs(theta)))
    root = partial(profile_root, problem, theta, spread)
    ends = []
    for side, bound in zip((-1, 1), problem.law.limits, strict=True):
        width = _crossing(root, side, unit, np.abs(bound - theta), noise)
        open_end = np.where((np.abs(bound) < OPEN) | ~problem.law.free, bound, side * np.inf)
        ends.append(np.where(np.isfinite(width), theta + side * width, open_end))
    return ends[0], ends[1]


def profile_of(problem: Problem, theta: Array, noise: Noise, quantity: Quantity) -> Estimate:
    """A quantity that follows from the parameters, with its 95 % profile interval; as `profile`."""
    value, gradient = quantity(theta[None])
    if not gradient.any():
        return Estimate.around(value[0], 0.0)  # the law leaves it no freedom
    follow = covariance(problem, theta, max(noise.sd, LEAST_SD)) @ gradient[0]
    variance = max(float(gradient[0] @ follow), 1e-18)
    held = _held(problem, quantity, HOLD * max(noise.sd, LEAST_SD) ** 2 / variance)
    best = minimise(problem, theta[None]).objective[0]

    def root(offset: Array) -> Array:
        start = theta + offset.T * follow / variance
        y = np.column_stack([np.broadcast_to(problem.y, (offset.size, len(problem.y))), value + offset[0]])
        rise = minimise(replace(held, y=y), start).objective - best
        return np.asarray(np.sqrt(np.maximum(2 * rise, 0))[None])

    unit = np.array([np.sqrt(variance)])
    low, high = (float(_crossing(root, side, unit, np.array([WIDEST]) * unit, noise)[0]) for side in (-1, 1))
    return Estimate(float(value[0]), float(value[0]) - low, float(value[0]) + high)


def _held(problem: Problem, quantity: Quantity, weight: float) -> Problem:
    """The problem with one point more, whose prediction is the quantity: so heavy that a fit takes on its value."""

    def log_loss(theta: Array, x: Array) -> Pair:
        predicted, jacobian = problem.law.log_loss(theta, x[:, :-1])
        value, gradient = quantity(theta)
        return np.column_stack([predicted, value]), np.concatenate([jacobian, gradient[..., None]], axis=2)

    x, heavy = np.column_stack([problem.x, problem.x[:, -1]]), np.append(problem.weight, weight)
    return replace(problem, law=replace(problem.law, log_loss=log_loss), x=x, weight=heavy)


def _crossing(root: Callable[[Array], Array], side: int, unit: Array, limit: Array, noise: Noise) -> Array:
    """How far (R,) from the optimum each row's root (R, G) of signed offsets (R, G) reaches t noise; infinite: nowhere.

    unit (R,): the scale of the search; limit (R,): where it ends. Bracket on a grid, a wider one where that holds no
    end (minimising far out is slow), then close in twice.
    """
    cut = float(special.stdtrit(noise.dof, (1 + LEVEL) / 2)) * max(noise.sd, LEAST_SD)
    rows = np.arange(len(unit))

    def bracket(distance: Array) -> tuple[Array, Array, Mask]:
        crossed = root(side * distance) >= cut
        at = np.maximum(crossed.argmax(axis=1), 1)
        return distance[rows, at - 1], distance[rows, at], np.asarray(crossed.any(axis=1))

    steps = np.append(0.0, np.geomspace(0.5, NEAR, 9))
    inner, outer, found = bracket(np.minimum(unit[:, None] * steps, limit[:, None]))
    if not found.all():
        wide = np.concatenate([steps, np.geomspace(NEAR, WIDEST, 16)[1:], [np.inf]])
        wide = np.minimum(wide, np.where(found, NEAR, np.inf)[:, None])
        inner, outer, found = bracket(np.minimum(unit[:, None] * wide, limit[:, None]))
    for _ in range(2):
        span = np.where(found, outer - inner, 0)[:, None] * np.linspace(0, 1, 9)
        inner, outer, found = bracket(np.where(found, inner, limit)[:, None] + span)
    return np.where(found, (inner + outer) / 2, np.inf)


def profile_root(problem: Problem, theta: Array, spread: Array, offset: Array) -> Array:
    """Root of the rise in the residual sum of squares (P, G) when parameter p is held at theta_p + offset (P, G)."""
    params, grid = offset.shape
    held, rows = np.repeat(np.arange(params), grid), np.arange(params * grid)
    direction = spread / np.maximum(np.diag(spread), 1e-300)[:, None]  # where the others go, to first order
    low, high = (np.tile(limit, (len(held), 1)) for limit in problem.law.limits)
    low[rows, held] = high[rows, held] = theta[held] + offset.ravel()
    found = minimise(problem, theta + np.nan_to_num(offset.ravel()[:, None] * direction[held]), low, high)
    lowest = _from_neighbours(problem, found, low, high, grid) if params >= CURVED else found.objective
    rise: Array = np.maximum(2 * (lowest - minimise(problem, theta[None]).objective[0]), 0)
    return np.sqrt(rise).reshape(params, grid)


def _from_neighbours(problem: Problem, found: Solutions, low: Array, high: Array, grid: int) -> Array:
    """The objectives (B,) when each of the grid's points is also tried from where its neighbours on it ended."""
    theta, objective = found.theta, found.objective
    for shift in (1, -1) * 3:
        start = np.roll(theta.reshape(-1, grid, theta.shape[1]), shift, axis=1).reshape(theta.shape)
        again = minimise(problem, start, low, high, steps=NEIGHBOUR_STEPS)
        better = again.objective < objective
        theta, objective = np.where(better[:, None], again.theta, theta), np.minimum(objective, again.objective)
    return objective


def parametric_draws(problem: Problem, theta: Array, noise: Noise, draws: int, *, seed: int) -> Array:
    """Refits (K, P) to new Gaussian noise about the law, whose size varies as chi-square so that spreads follow t."""
    rng = np.random.default_rng(seed)
    fitted = problem.law.log_loss(theta[None], problem.x)[0]
    sd = noise.sd * np.sqrt(noise.dof / rng.chisquare(noise.dof, size=(draws, 1)))
    new = replace(problem, y=fitted + sd * rng.standard_normal((draws, problem.x.shape[1])))
    found = minimise(new, np.repeat(theta[None], draws, axis=0))
    return found.theta[found.converged]


def cluster_draws(problem: Problem, cluster: Index, theta: Array, draws: int, *, seed: int) -> Array:
    """Refits (K, P) to clusters (n,) drawn with replacement: a bootstrap whose unit is the run, seeds inside."""
    clusters = int(cluster.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), size=draws)
    drawn = drawn.astype(np.int16)  # for a million points, 200 replicates of 8 bytes each would be 1.6 GB
    new = replace(problem, weight=problem.weight * drawn[:, cluster])
    found = minimise(new, np.repeat(theta[None], draws, axis=0))
    return found.theta[found.converged]


def wild_draws(problem: Problem, cluster: Index, theta: Array, draws: int, *, seed: int) -> Array:
    """Refits (K, P) to the law plus its own residuals, those of a cluster (n,) multiplied by one random number.

    No cluster is ever left out, unlike in a plain bootstrap of few. Webb's six-point weights (Webb 2023, Canadian J.
    Economics 56) and t instead of normal spread.
    """
    clusters, params = int(cluster.max()) + 1, len(theta)
    fitted, jacobian = problem.law.log_loss(theta[None], problem.x)
    residual = _undo_fitting(problem.y - fitted[0], jacobian[0], cluster)
    dof = max(clusters - params, 1)
    residual *= special.stdtrit(dof, (1 + LEVEL) / 2) / special.ndtri((1 + LEVEL) / 2)
    points = np.sqrt([0.5, 1.0, 1.5])
    weights = np.random.default_rng(seed).choice(np.concatenate([-points, points]), size=(draws, clusters))
    found = minimise(replace(problem, y=fitted + weights[:, cluster] * residual), np.repeat(theta[None], draws, axis=0))
    return found.theta[found.converged]


def _undo_fitting(residual: Array, jacobian: Array, cluster: Index) -> Array:
    """Residuals (n,) as large as the noise: a fit pulls towards each cluster, the more the fewer there are.

    CR2 of Bell and McCaffrey 2002 (Survey Methodology 28): those of a cluster times (I - H)^(-1/2), H its block of the
    hat matrix. By single points it would miss that seeds of one size pull together.
    """
    basis = np.linalg.svd(jacobian, full_matrices=False)[2]  # (P, n)
    undone = np.empty_like(residual)
    for rows in np.split(np.argsort(cluster, kind="stable"), np.cumsum(np.bincount(cluster))[:-1]):
        left, vectors = np.linalg.eigh(np.eye(len(rows)) - basis[:, rows].T @ basis[:, rows])
        undone[rows] = vectors @ (vectors.T @ residual[rows] / np.sqrt(np.maximum(left, 0.05)))
    return undone
