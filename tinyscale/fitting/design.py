"""Which next runs shrink an interval most for their FLOPs: optimal design on the fitted law.

The covariance of the parameters is (J'J / s^2)^-1 with J the derivatives of log loss at the runs there are; a run adds
its own row to J before it is made (Fedorov 1972). Greedy: one run at a time, the largest fall in variance per FLOP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Array
from tinyscale.fitting.curve import Curve

MOST_RUNS = 12
REACH = 4.0  # times the largest size fitted: a run further out tests the law more than it sharpens it


@dataclass(frozen=True)
class Candidate:
    """A run that could be made. variables: the law's, in their units; fields: what a sweep file sets for it."""

    variables: Mapping[str, float]
    flops: float
    fields: Mapping[str, int]


@dataclass(frozen=True)
class Suggestion:
    """runs: the candidates chosen; flops: their cost; shrink: the interval's width afterwards over its width now.

    ended: why there are not more runs.
    """

    target: str
    runs: tuple[Candidate, ...]
    flops: float
    shrink: float
    ended: str


def suggest(curve: Curve, x: Array, candidates: Sequence[Candidate], *, budget: float, target: str) -> Suggestion:
    """Choose runs within a budget of FLOPs for a parameter of the law, or for `loss` at ten times the largest sizes.

    x (k, n): logarithms of the law's variables at the runs there are. FitError when the budget pays for none.
    """
    law = curve.law
    theta = law.to_solver(np.array([[curve.params[name] for name in law.params]]))
    direction = _direction(curve, theta, x, target)
    affordable = [c for c in candidates if c.flops <= budget]
    if not affordable:
        cheapest = min((c.flops for c in candidates), default=np.inf)
        raise FitError(
            f"{budget:.2g} FLOPs pay for no run of these sizes: the smallest takes {cheapest:.2g}; raise --flops"
        )
    at = np.log([[c.variables[name] for name in law.variables] for c in affordable]).T
    rows = law.log_loss(theta, at)[1][0].T
    costs = np.array([c.flops for c in affordable])
    information = (jacobian := law.log_loss(theta, x)[1][0]) @ jacobian.T
    # A floor at zero or one ratio D/N leaves a direction without information; a trace of it keeps the inverse finite.
    information += 1e-9 * np.diag(np.diag(information))
    plans = [_greedy(information, direction, rows, costs, budget, power) for power in (0.0, 0.5, 1.0)]
    variance, chosen = min(plans, key=lambda plan: plan[0])
    before = direction @ np.linalg.solve(information, direction)
    spent, runs = float(costs[chosen].sum()), tuple(affordable[i] for i in chosen)
    ended = _ended([c for c in candidates if c not in runs], len(runs), budget - spent)
    return Suggestion(target, runs, spent, float(np.sqrt(variance / before)), ended)


def _ended(others: Sequence[Candidate], chosen: int, left: float) -> str:
    """Why a plan has no further run."""
    if chosen == MOST_RUNS:
        return f"{MOST_RUNS} runs are the most suggested at once: train these, fit, and ask again"
    if not others:
        return f"these are all the sizes up to {REACH:g} times the largest fitted: a larger one would test the law more"
    cheapest = min(candidate.flops for candidate in others)
    if cheapest > left:
        return f"the next run takes {cheapest:.2g} FLOPs, more than the {left:.2g} that are left"
    return "no other run of these sizes would shrink it"


def _direction(curve: Curve, theta: Array, x: Array, target: str) -> Array:
    """The derivative (P,) of what should be known, by the law's parameters."""
    if target == "loss":
        return np.asarray(curve.law.log_loss(theta, x.max(axis=1, keepdims=True) + np.log(10))[1][0][:, 0])
    if target not in curve.law.params:
        raise FitError(f"no interval is called {target!r}; there are loss, {', '.join(curve.law.params)}")
    return np.array([float(name == target) for name in curve.law.params])


def _greedy(
    information: Array, direction: Array, rows: Array, costs: Array, budget: float, power: float
) -> tuple[float, list[int]]:
    """Variance left, and rows chosen, each once, by the fall in variance per cost^power (1: per FLOP)."""
    inverse, left = np.linalg.inv(information), budget
    chosen: list[int] = []
    while len(chosen) < MOST_RUNS:
        # Sherman-Morrison: how far each row alone lowers the variance along the direction.
        gain = (rows @ inverse @ direction) ** 2 / (1 + np.einsum("ip,pq,iq->i", rows, inverse, rows))
        gain = np.where((costs <= left) & ~np.isin(np.arange(len(costs)), chosen), gain / costs**power, -1.0)
        best = int(gain.argmax())
        if gain[best] <= 0:
            break
        pulled = inverse @ rows[best]
        inverse = inverse - np.outer(pulled, pulled) / (1 + rows[best] @ pulled)
        chosen.append(best)
        left -= costs[best]
    return float(direction @ inverse @ direction), chosen
