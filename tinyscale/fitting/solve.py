"""The robust objective and its solver, vectorised over starting points, bootstrap draws and profile points.

Objective: the sum over points of weight times Huber_delta(predicted log loss - log loss); delta = inf is least squares.
Hoffmann et al. 2022 (2203.15556), appendix D.2 use delta = 1e-3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Array, Index, Mask
from tinyscale.fitting.laws import Law

MAX_STEPS = 300
MANY_POINTS = 5000  # from twice as many on, starts are searched from on a part of the points, then polished on all
CHUNK = 500_000  # numbers in a batch's Jacobian: what stays in cache is fastest, and memory stays small
DECREMENT = 1e-13  # stop when a full step would lower the objective by less than this share of it
SAME = 1e-4  # two starts reached the same optimum when their objectives differ by less than this share


@dataclass(frozen=True)
class Problem:
    """A law and what it is fitted to: x (k, n), logarithms of its variables; log loss y and weight (n,) or (B, n).

    above: what a point whose loss lies above the law counts for against one below it.
    """

    law: Law
    x: Array
    y: Array
    weight: Array
    delta: float
    above: float = 1.0

    def rows(self, batch: int) -> Problem:
        """With y and weight as (batch, n)."""
        shape = (batch, self.x.shape[1])
        return replace(self, y=np.broadcast_to(self.y, shape), weight=np.broadcast_to(self.weight, shape))

    def every(self, step: int) -> Problem:
        """Every so many-th point."""
        return replace(self, x=self.x[:, ::step], y=self.y[..., ::step], weight=self.weight[..., ::step])

    def only(self, keep: Mask | Index | slice) -> Problem:
        """With only those rows of a batch."""
        return replace(self, y=self.y[keep], weight=self.weight[keep])


@dataclass(frozen=True)
class Solutions:
    """B minimisations: theta (B, P), objective (B,), gradient norm (B,) of objective / total weight, converged (B,)."""

    theta: Array
    objective: Array
    gradient: Array
    converged: Mask


@dataclass(frozen=True)
class Certificate:
    """Whether the best of many starts is an optimum, and how alone it is.

    gradient_norm: of the mean objective in solver coordinates; share_of_starts: of the starts, those that ended at the
    best objective; next_basin: how much higher the next converged objective is, as a share (None: there is no other);
    condition_number: of the Gauss-Newton matrix scaled to unit diagonal; at_bound: parameters that stopped at a bound.
    """

    converged: bool
    gradient_norm: float
    starts: int
    share_of_starts: float
    next_basin: float | None
    condition_number: float
    at_bound: tuple[str, ...]


@dataclass
class _State:
    """Where each of the minimisations still running stands."""

    theta: Array
    residual: Array
    jacobian: Array
    objective: Array


def minimise(
    problem: Problem, start: Array, low: Array | None = None, high: Array | None = None, *, steps: int = MAX_STEPS
) -> Solutions:
    """Minimise from each row of `start` (B, P), inside bounds (P,) or (B, P); equal bounds hold a parameter fixed.

    A damped Newton method: the Hessian counts the points inside the quadratic zone; the damping adds the curvature of
    the quadratic that majorises Huber's function, so large damping is a step of reweighted least squares.
    """
    batch = max(1, CHUNK // (problem.x.shape[1] * len(problem.law.params)))
    limits = problem.law.limits
    low = np.broadcast_to(limits[0] if low is None else low, start.shape)
    high = np.broadcast_to(limits[1] if high is None else high, start.shape)
    whole = problem.rows(len(start))
    parts = [slice(i, i + batch) for i in range(0, len(start), batch)]
    found = [_minimise(whole.only(p), np.clip(start[p], low[p], high[p]), low[p], high[p], steps) for p in parts]
    return Solutions(
        theta=np.concatenate([part.theta for part in found]),
        objective=np.concatenate([part.objective for part in found]),
        gradient=np.concatenate([part.gradient for part in found]),
        converged=np.concatenate([part.converged for part in found]),
    )


def _minimise(running: Problem, theta: Array, low: Array, high: Array, steps: int) -> Solutions:
    """The loop itself, on rows that fit the cache together."""
    count = len(theta)
    objective, gradient, converged = np.empty(count), np.full(count, np.inf), np.zeros(count, bool)
    active, damping = np.arange(count), np.full(count, 0.1)
    state = _evaluate(running, theta)
    for _ in range(steps):
        step, slope, decrement = _step(running, state, damping, low[active], high[active])
        done = decrement <= DECREMENT * (state.objective + 1e-18 * running.weight.sum(axis=1))
        over = done | (damping > 1e12)
        ended = active[over]
        theta[ended], objective[ended] = state.theta[over], state.objective[over]
        gradient[ended], converged[ended] = slope[over], done[over]
        keep = ~over
        if not keep.any():
            break
        if over.any():
            active, damping, running, state = active[keep], damping[keep], running.only(keep), _select(state, keep)
        new = _evaluate(running, np.clip(state.theta + step[keep], low[active], high[active]))
        better = new.objective < state.objective
        damping = np.where(better, np.maximum(damping * 0.2, 1e-9), damping * 5)
        state = _merge(state, new, better)
    else:
        theta[active], objective[active] = state.theta, state.objective
    return Solutions(theta, objective, gradient, converged)


def _evaluate(problem: Problem, theta: Array) -> _State:
    predicted, jacobian = problem.law.log_loss(theta, problem.x)
    residual = predicted - problem.y
    size = np.abs(residual)
    inside = np.minimum(size, problem.delta)
    objective = (_weight(problem, residual) * inside * (size - 0.5 * inside)).sum(axis=1)
    if problem.law.prior:
        value, pull = problem.law.pull
        objective = objective + 0.5 * (pull * (theta - value) ** 2).sum(axis=1)
    return _State(theta, residual, jacobian, objective)


def _weight(problem: Problem, residual: Array) -> Array:
    """The weight (B, n) of each point, less above the law where the problem says so."""
    return problem.weight if problem.above == 1 else problem.weight * np.where(residual < 0, problem.above, 1.0)


@np.errstate(
    over="ignore", invalid="ignore"
)  # a start that is far off gives a step that is no number, and is not taken
def _step(problem: Problem, state: _State, damping: Array, low: Array, high: Array) -> tuple[Array, Array, Array]:
    """The damped step (B, P), the norm of the free gradient (B,) and how far a full step would go down (B,)."""
    size, weight, delta = np.abs(state.residual), _weight(problem, state.residual), problem.delta
    slope = (state.jacobian @ (weight * np.clip(state.residual, -delta, delta))[..., None])[..., 0]
    value, pull = problem.law.pull
    slope += pull * (state.theta - value)
    free = ~(((state.theta <= low) & (slope >= 0)) | ((state.theta >= high) & (slope <= 0)))
    slope = slope * free
    inside = size <= delta
    majorant = weight * np.where(inside, 1.0, delta / np.maximum(size, 1e-300))
    curvature = weight * inside + damping[:, None] * majorant
    matrix = (state.jacobian * curvature[:, None]) @ state.jacobian.swapaxes(1, 2)
    matrix *= free[:, :, None] & free[:, None, :]
    diagonal = np.einsum("bpp->bp", matrix)
    diagonal += pull * free
    diagonal *= 1 + 1e-10 + 1e-3 * np.minimum(damping, 1e6)[:, None]
    diagonal += np.where(free, 1e-30, 1.0)
    scale = 1 / np.sqrt(diagonal)
    solved = np.linalg.solve(matrix * scale[:, :, None] * scale[:, None, :], (slope * scale)[..., None])[..., 0]
    step = -solved * scale
    return step, np.linalg.norm(slope, axis=1) / weight.sum(axis=1), -(step * slope).sum(axis=1) * (1 + damping)


def _select(state: _State, keep: Mask) -> _State:
    return _State(state.theta[keep], state.residual[keep], state.jacobian[keep], state.objective[keep])


def _merge(old: _State, new: _State, better: Mask) -> _State:
    """The new state where it is better, the old one elsewhere."""
    if better.all():
        return new
    worse = ~better
    for a, b in zip(vars(new).values(), vars(old).values(), strict=True):
        a[worse] = b[worse]
    return new


def solve(problem: Problem) -> tuple[Solutions, Certificate]:
    """The best of the law's own starts, as one row, and its certificate. FitError when none converged."""
    law = problem.law
    part = problem.every(max(1, problem.x.shape[1] // MANY_POINTS))
    start = law.guess(part.x, np.exp(part.y))
    if problem.x.shape[1] > MANY_POINTS:
        start = minimise(part, start).theta
    found = minimise(problem, start)
    if not found.converged.any():
        raise FitError(
            f"{law.formula}: none of {len(found.theta)} starts converged, so there is no number to give; "
            "the points leave the law's parameters undetermined: add sizes further apart, or fit a simpler law"
        )
    best = int(np.argmin(np.where(found.converged, found.objective, np.inf)))
    floor = found.objective[best]
    relative = found.objective / max(floor, 1e-300) - 1
    scatter = 1e-16 * problem.weight.sum()  # noiseless data: objectives this close to zero are the same optimum
    same = found.converged & ((relative < SAME) | (found.objective - floor < scatter))
    others = relative[found.converged & ~same]
    low, high = law.limits
    margin = 1e-6 * (1 + np.abs(found.theta[best]))
    stopped = (found.theta[best] <= low + margin) | (found.theta[best] >= high - margin)
    certificate = Certificate(
        converged=True,
        gradient_norm=float(found.gradient[best]),
        starts=len(found.theta),
        share_of_starts=float(same.mean()),
        next_basin=float(others.min()) if len(others) else None,
        condition_number=condition_number(problem, found.theta[best]),
        at_bound=tuple(name for name, at in zip(law.params, stopped & law.free, strict=True) if at),
    )
    row = slice(best, best + 1)
    return Solutions(found.theta[row], found.objective[row], found.gradient[row], found.converged[row]), certificate


def objective(problem: Problem, theta: Array) -> float:
    """What is minimised, at theta (P,)."""
    return float(_evaluate(problem.rows(1), theta[None]).objective[0])


def condition_number(problem: Problem, theta: Array) -> float:
    """Of the Gauss-Newton matrix at theta (P,), scaled to unit diagonal: above 1e8, combinations are undetermined."""
    jacobian = problem.law.log_loss(theta[None], problem.x)[1][0][problem.law.free] * np.sqrt(problem.weight)
    length = np.linalg.norm(jacobian, axis=1, keepdims=True)
    values = np.linalg.svd(jacobian / np.maximum(length, 1e-300), compute_uv=False)
    return float((values[0] / max(values[-1], 1e-150)) ** 2)
