"""What several laws together say of a run that is not made yet, and how far off that may be.

No law is true far out. So the laws of the same variables are averaged, each by its errors on inner windows: fitted to
the lower part of the compute, it predicts the rest. And the exponents of each law may change with size: a change of
each variable's exponents by a share of themselves per e-fold has a normal prior with mean 0 and sd SHARE; what the
points say of it moves the forecast, and what they leave open widens the interval, the more the further out (a linear
model about the fit: Box and Tiao 1973, chapter 2). On log loss:

    variance = weighted mean of (inner error^2 + the law's own variance + its squared distance from the average)

with a law's own variance from its parameters (with Student's t for few points) and from the change of its exponents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Array, Mask, some_of
from tinyscale.fitting.laws import LAWS, Law, find_law
from tinyscale.fitting.points import Points, group_settings
from tinyscale.fitting.solve import Problem, minimise

SHARE = 0.04  # 95 % of exponents change by less than 8 % of themselves per e-fold of size
WINDOWS = (0.5, 0.7)  # shares of the points, by compute, that are fitted to predict the rest
MOST_STARTS, STEPS = 4, 100  # of each window: so many starts far apart, and so many near
MOST_POINTS = 1000  # beyond, the laws' own errors are what a forecast misses by, and not how few points there are
DOUBTFUL = 2.0  # a law whose own variance is more than so many times the median law's counts less
RIDGE = 1e-8  # of the scaled normal matrix: a direction without information stays where it is
STEP = 1e-3  # of a variable's logarithm, for its derivative
Z = float(special.ndtri(0.975))


@dataclass(frozen=True)
class Member:
    """A law of the average, with its parameters; error: root mean square of log loss on inner windows."""

    law: Law
    params: Mapping[str, float]
    error: float

    @property
    def theta(self) -> Array:
        """The parameters (P,) in solver coordinates."""
        return self.law.to_solver(np.array([self.params[name] for name in self.law.params]))


@dataclass(frozen=True)
class Forecast:
    """members: the laws, the best first; problem: what they were fitted to; evidence: the share of the points that are
    no repeats of the same runs. One law alone forecasts its own curve, which is not moved.
    """

    members: tuple[Member, ...]
    problem: Problem
    evidence: float = 1.0

    @cached_property
    def shares(self) -> Array:
        """The weight (M,) of each law at the points: 1 / error^2, sum 1."""
        weight = np.array([max(each.error, 1e-12) ** -2.0 for each in self.members])
        return np.asarray(weight / weight.sum())

    @cached_property
    def _bent(self) -> tuple[_Bent, ...]:
        return tuple(_Bent.at(replace(self.problem, law=m.law), m.theta, self.evidence) for m in self.members)

    def log_loss(self, x: Array) -> tuple[Array, Array]:
        """Expected log loss (m,) of new runs at x (k, m), logarithms of the variables, and its sd (m,)."""
        made = [each.predict(x, moved=len(self.members) > 1) for each in self._bent]
        values, own = np.array([value for value, _ in made]), np.array([variance for _, variance in made])
        usual = _weighted_median(own, self.shares)
        weight = self.shares[:, None] * np.minimum(1.0, DOUBTFUL * usual / np.maximum(own, 1e-300))
        weight /= weight.sum(axis=0)
        centre = (weight * values).sum(axis=0)
        inner = np.array([[each.error**2] for each in self.members])
        return centre, np.sqrt((weight * (inner + own + (values - centre) ** 2)).sum(axis=0))

    def predict(self, **variables: Any) -> pd.DataFrame:
        """Loss of new runs, one row each, with 95 % ends: `forecast.predict(n=[1e7, 1e8], d=2e9)`."""
        law = self.members[0].law
        missing = [name for name in law.variables if name not in variables]
        if missing:
            raise FitError(f"{law.formula} needs {', '.join(missing)} to predict")
        columns = np.broadcast_arrays(*(np.atleast_1d(np.asarray(variables[v], float)) for v in law.variables))
        centre, sd = self.log_loss(np.log(np.stack(columns)))
        ends = {"loss": centre, "low": centre - Z * sd, "high": centre + Z * sd}
        named = dict(zip(law.variables, columns, strict=True))
        return pd.DataFrame({**named, **{name: np.exp(value) for name, value in ends.items()}})

    def alone(self, law: Law, theta: Array) -> Forecast:
        """The forecast by one law, solved at theta (P,)."""
        errors = {each.law.name: each.error for each in self.members}
        own = Member(law, law.named(theta), errors.get(law.name, 0.0))
        bent = _Bent.at(replace(self.problem, law=law), theta, self.evidence)
        return replace(self, members=(replace(own, error=max(own.error, bent.sd)),))

    def as_json(self) -> list[dict[str, Any]]:
        """The laws with their parameters, as plain values."""
        rows = zip(self.members, self.shares.tolist(), strict=True)
        return [{"law": m.law.name, "weight": share, "error": m.error, "params": dict(m.params)} for m, share in rows]

    @classmethod
    def of_json(cls, rows: Sequence[Mapping[str, Any]], points: Points, problem: Problem) -> Forecast:
        """What `as_json` wrote, of the points and the problem that it was made from."""
        members = []
        for row in rows:
            law = problem.law if row["law"] == problem.law.name else find_law(row["law"])
            members.append(Member(law, row["params"], row["error"]))
        return cls(tuple(members), _thinned(problem), _evidence(points))


def make_forecast(points: Points, problem: Problem, theta: Array | None, laws: Sequence[Law]) -> Forecast:
    """The forecast by those of the laws that inner windows of the points support, else by the problem's own law.

    theta (P,): where that one was solved; None: it is solved here.
    """
    part = _thinned(problem)
    masks, evidence = inner_windows(part.x), _evidence(points)
    members = []
    for law in laws:
        own = replace(part, law=law)
        if masks and group_settings(part.x[:, masks[0]]).max() + 1 > law.free.sum():
            known = theta if law.name == problem.law.name else None
            found = _solve(own, masks, known)
            whole = law.named(found[-1] if known is None else known)
            error = _inner_error(own, masks, found)
            members += [Member(law, whole, error)] if np.isfinite(error) else []
    if not members:
        members = [Member(problem.law, problem.law.named(_solve(part, [], None)[-1] if theta is None else theta), 0.0)]
    least = min(_Bent.at(replace(part, law=each.law), each.theta, evidence).sd for each in members)
    members = [replace(each, error=max(each.error, least)) for each in members]
    return Forecast(tuple(sorted(members, key=lambda each: each.error)), part, evidence)


def averaged(law: Law) -> tuple[Law, ...]:
    """The laws that are averaged where none is asked for: those of the same variables without a break."""
    return tuple(each for each in LAWS.values() if each.variables == law.variables and each.name != "broken")


def inner_windows(x: Array) -> list[Mask]:
    """Which points (n,) each window fits: at least the lower half of the compute, then the lower 70 %.

    Of one variable, those shares of the sizes, and four sizes at least; so below five there is no window.
    """
    compute = x.sum(axis=0)
    sizes = np.unique(np.round(compute, 2))
    if len(x) == 1:
        counts = sorted({max(4, int(np.ceil(share * len(sizes)))) for share in WINDOWS})
        ends = [sizes[count - 1] for count in counts if count < len(sizes)]
    else:
        ends = sorted({float(np.quantile(compute, share, method="higher")) for share in WINDOWS})
    masks = [compute <= end + 0.01 for end in ends]
    return [mask for mask in masks if not mask.all()]


def _solve(problem: Problem, masks: Sequence[Mask], known: Array | None) -> list[Array]:
    """The law (P,) fitted to the points of each mask, and to all."""
    law, every = problem.law, np.ones(problem.x.shape[1], bool)
    starts = np.clip(law.guess(problem.x, np.exp(problem.y)), *law.limits)
    error = np.square(law.log_loss(starts, problem.x)[0] - problem.y).sum(axis=1)
    far_apart, near = starts[:: -(-len(starts) // MOST_STARTS)], starts[np.argsort(error)[:MOST_STARTS]]
    starts = np.unique(np.vstack([far_apart, near, *([] if known is None else [known])]), axis=0)
    kept = np.array([*masks, every])
    weight = np.repeat(problem.weight * kept, len(starts), axis=0)
    found = minimise(replace(problem, weight=weight), np.tile(starts, (len(kept), 1)), steps=STEPS)
    objective = found.objective.reshape(len(kept), -1)
    theta = found.theta.reshape(len(kept), len(starts), -1)
    best = np.where(np.isfinite(objective), objective, np.inf).argmin(axis=1)
    return [each[index] for each, index in zip(theta, best, strict=True)]


def _inner_error(problem: Problem, masks: Sequence[Mask], solved: Sequence[Array]) -> float:
    """Root mean square error of log loss on the points after each window, all windows alike."""
    squares = []
    for mask, theta in zip(masks, solved[: len(masks)], strict=True):
        part = replace(problem, x=problem.x[:, mask], y=problem.y[mask], weight=problem.weight[mask])
        value, _ = _Bent.at(part, theta).predict(problem.x[:, ~mask], moved=True)
        squares.append(float(np.mean((value - problem.y[~mask]) ** 2)))
    return float(np.sqrt(np.mean(squares)))


@dataclass(frozen=True)
class _Bent:
    """A law, linear in its parameters and in the change of its exponents about where it was fitted.

    centre (k,): where in each variable the fitted exponents hold; mixed (P, k): how the fit's parameters take up such
    a change; inverse (P, P): of the normal matrix; change (k,), spread (k, k): its posterior mean and covariance; sd:
    of a run about the law; widen: of Student's t over normal.
    """

    law: Law
    theta: Array
    centre: Array
    mixed: Array
    inverse: Array
    change: Array
    spread: Array
    sd: float
    widen: float

    @classmethod
    def at(cls, problem: Problem, theta: Array, evidence: float = 1.0) -> _Bent:
        law, x = problem.law, problem.x
        low, high = law.limits
        margin = 1e-9 * (1 + np.abs(theta))
        free = (theta > low + margin) & (theta < high - margin)
        root = np.sqrt(problem.weight / problem.weight.mean())
        fitted, jacobian = law.log_loss(theta[None], x)
        jacobian = jacobian[0] * free[:, None] * root
        residual = (problem.y - fitted[0]) * root
        dof = max(evidence * x.shape[1] - free.sum(), 1.0)
        sd = max(float(np.sqrt(evidence * (residual**2).sum() / dof)), 1e-9)
        scale = np.maximum(np.linalg.norm(jacobian, axis=1), 1e-150)
        normal = (jacobian / scale[:, None]) @ (jacobian / scale[:, None]).T + RIDGE * np.eye(len(theta))
        normal += np.diag(law.pull[1] / scale**2)
        inverse = np.linalg.inv(normal) / np.outer(scale, scale) * np.outer(free, free)
        centre = (x.max(axis=1) + x.min(axis=1)) / 2
        bent = bends(law, theta, x, centre) * root
        mixed = inverse @ jacobian @ bent.T
        left = bent - mixed.T @ jacobian
        precision = evidence * left @ left.T / sd**2
        spread = np.linalg.inv(precision + np.eye(len(x)) / SHARE**2)
        change = spread @ (evidence * left @ residual) / sd**2
        widen = float(special.stdtrit(dof, 0.975)) / Z
        return cls(law, theta, centre, mixed, inverse / evidence, change, spread, sd, widen)

    def predict(self, x: Array, *, moved: bool) -> tuple[Array, Array]:
        """Log loss (m,) at x (k, m), and the law's own variance (m,); moved: by what is known of the exponents."""
        value, jacobian = self.law.log_loss(self.theta[None], x)
        left = bends(self.law, self.theta, x, self.centre) - self.mixed.T @ jacobian[0]
        sampling = (self.widen * self.sd) ** 2 * np.einsum("pm,pq,qm->m", jacobian[0], self.inverse, jacobian[0])
        changing = np.einsum("km,kl,lm->m", left, self.spread, left)
        return value[0] + (self.change @ left if moved else 0.0), sampling + changing


def bends(law: Law, theta: Array, x: Array, centre: Array) -> Array:
    """The derivative (k, n) of log loss by the change of each variable's exponents, as a share of them per e-fold.

    With exponents a (1 + s (x - centre)), the loss at x is that of the law at x + s (x - centre)^2 / 2.
    """
    return slopes(law, theta, x) * (x - centre[:, None]) ** 2 / 2


def slopes(law: Law, theta: Array, x: Array) -> Array:
    """The derivative (k, n) of log loss by the logarithm of each variable."""
    rows = []
    for index in range(len(x)):
        step = STEP * (np.arange(len(x)) == index)[:, None]
        above, below = law.log_loss(theta[None], x + step)[0][0], law.log_loss(theta[None], x - step)[0][0]
        rows.append((above - below) / (2 * STEP))
    return np.array(rows)


def _weighted_median(values: Array, weight: Array) -> Array:
    """Of each column of values (M, m), by weight (M,)."""
    order = np.argsort(values, axis=0)
    reached = np.cumsum(weight[order], axis=0) >= 0.5 * weight.sum()
    return np.asarray(np.take_along_axis(values, order, axis=0)[reached.argmax(axis=0), np.arange(values.shape[1])])


def _thinned(problem: Problem) -> Problem:
    """With as many points as a forecast needs, the same for the same points."""
    count = problem.x.shape[1]
    if count <= MOST_POINTS:
        return problem
    kept = some_of(count, MOST_POINTS)
    return replace(problem, x=problem.x[:, kept], y=problem.y[kept], weight=problem.weight[kept])


def _evidence(points: Points) -> float:
    """Clusters of runs over settings: less than 1 where runs give several points, which share their luck."""
    return min(1.0, (int(points.cluster.max()) + 1) / points.configs())
