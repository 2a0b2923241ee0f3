"""How well laws predict sizes, or compute, held out, and how well the last loss carried forward does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinyscale.fitting.arrays import Array
from tinyscale.fitting.forecast import Z, make_forecast
from tinyscale.fitting.laws import LAWS, Law
from tinyscale.fitting.points import Points
from tinyscale.fitting.solve import Problem, minimise

TOP = 0.2  # of the points, by compute: held out of joint laws

MOST_WINDOWS, MOST_STARTS, WINDOW_STEPS = 5, 8, 100  # each window is a whole fit, and a slow start is let go


@dataclass(frozen=True)
class HeldOut:
    """Errors in signed percent of what was measured on the held-out size, prediction minus truth.

    size: the law's variables at the largest size (of optima: its budget); fitted_sizes: how many smaller ones were
    fitted; carry_forward_percent: the error of a naive baseline, the value of the largest fitted size; windows: the
    same for every expanding window, a mapping of fitted_sizes, error_percent and carry_forward_percent for the next
    size up.
    Of joint laws the top fifth of compute is held out, and the size is its largest; runs: how many these are; reach:
    the largest compute over the largest fitted; rms_percent, carried_rms_percent: root mean square errors over the
    runs, of the forecast and of carrying the last loss forward; inside: how many the 95 % interval held.
    """

    size: Mapping[str, float]
    fitted_sizes: int
    actual: float
    predicted: float
    error_percent: float
    carry_forward_percent: float
    windows: tuple[Mapping[str, float], ...] = ()
    runs: int | None = None
    reach: float | None = None
    rms_percent: float | None = None
    carried_rms_percent: float | None = None
    inside: int | None = None

    @property
    def errors(self) -> tuple[float, float]:
        """Size of the error in percent, of the law and of carrying the last loss forward; over several runs, rms."""
        if self.rms_percent is None or self.carried_rms_percent is None:
            return abs(self.error_percent), abs(self.carry_forward_percent)
        return self.rms_percent, self.carried_rms_percent

    @classmethod
    def of(
        cls,
        size: Mapping[str, float],
        fitted_sizes: int,
        *,
        actual: float,
        predicted: float,
        carried: float,
        windows: Iterable[Mapping[str, float]] = (),
    ) -> HeldOut:
        """From what was measured at the size, what the law predicts there, and the value at the largest fitted size."""
        error, carry = _percent(actual, predicted, carried).values()
        return cls(size, fitted_sizes, actual, predicted, error, carry, tuple(windows))

    @classmethod
    def of_json(cls, entry: Mapping[str, Any]) -> HeldOut:
        """What `as_json` wrote; of budgets, older records have `c` in place of `size`."""
        values = {name: value for name, value in entry.items() if name != "c"}
        return cls(**{"size": {"c": entry.get("c")}, **values, "windows": tuple(values.get("windows", ()))})

    def as_json(self) -> dict[str, Any]:
        """Plain values, without those that there are none of."""
        values = {**vars(self), "size": dict(self.size), "windows": [dict(window) for window in self.windows]}
        return {name: value for name, value in values.items() if value is not None}


def _percent(actual: float, predicted: float, carried: float) -> dict[str, float]:
    return {
        "error_percent": 100 * (predicted / actual - 1),
        "carry_forward_percent": 100 * (carried / actual - 1),
    }


def hold_out(law: Law, points: Points, delta: float, held: int = 1) -> HeldOut | None:
    """Fit on all but the `held` largest sizes and predict the largest; None when too few would be left."""
    configs = {k: points.configs(points.size < k) for k in range(1, points.sizes)}
    if held < 1 or configs.get(points.sizes - held, 0) < len(law.params):
        return None
    largest = points.sizes - 1
    theta = _fit_smallest(law, points, delta, [points.sizes - held])[0]
    if theta is None:
        return None
    actual, predicted, carried = _errors(law, points, theta, points.sizes - held, largest)
    at = points.size == largest
    return HeldOut.of(
        {name: float(np.exp(row[at].mean())) for name, row in zip(law.variables, points.x, strict=True)},
        points.sizes - held,
        actual=actual,
        predicted=predicted,
        carried=carried,
        windows=window_errors(law, points, delta, spaced([k for k in configs if configs[k] > len(law.params)])),
    )


def spaced(counts: list[int]) -> list[int]:
    """At most MOST_WINDOWS of the counts, evenly."""
    chosen = np.linspace(0, len(counts) - 1, min(len(counts), MOST_WINDOWS)).round().astype(int)
    return [counts[i] for i in chosen]


def window_errors(law: Law, points: Points, delta: float, counts: list[int]) -> list[dict[str, float]]:
    """Errors on the next size up, the law fitted to the smallest sizes, for each count of them that converged."""
    windows: list[dict[str, float]] = []
    if not counts:
        return windows
    for count, theta in zip(counts, _fit_smallest(law, points, delta, counts), strict=True):
        if theta is not None:
            windows.append({"fitted_sizes": count, **_percent(*_errors(law, points, theta, count, count))})
    return windows


def _fit_smallest(law: Law, points: Points, delta: float, counts: list[int]) -> list[Array | None]:
    """The law (P,) fitted to the smallest sizes, for each count of them; None where no start converged."""
    problem = points.problem(law, delta)
    starts = law.guess(problem.x, np.exp(problem.y))
    starts = starts[:: -(-len(starts) // MOST_STARTS)]
    kept = np.array([points.size < count for count in counts])
    weight = np.repeat(problem.weight * kept, len(starts), axis=0)
    found = minimise(replace(problem, weight=weight), np.tile(starts, (len(counts), 1)), steps=WINDOW_STEPS)
    objective = np.where(found.converged, found.objective, np.inf).reshape(len(counts), -1)
    theta = found.theta.reshape(len(counts), len(starts), -1)
    best = objective.argmin(axis=1)
    return [t[b] if np.isfinite(o[b]) else None for t, o, b in zip(theta, objective, best, strict=True)]


def _errors(law: Law, points: Points, theta: Array, fitted: int, target: int) -> tuple[float, float, float]:
    """Mean loss of size `target`: as measured, as predicted, and as the largest of the fitted sizes has it."""
    at, last, loss = points.size == target, points.size == fitted - 1, np.exp(points.y)
    predicted = np.exp(law.log_loss(theta[None], points.x[:, at])[0])
    return float(loss[at].mean()), float(predicted.mean()), float(loss[last].mean())


def hold_out_top(points: Points, problem: Problem, laws: Sequence[Law]) -> HeldOut | None:
    """Forecast the runs of the top fifth of compute from the others; None when those cannot support the law."""
    law, compute = problem.law, points.x.sum(axis=0)
    budgets = np.unique(np.round(compute, 2))
    shares = np.array([(compute > budget + 0.01).mean() for budget in budgets[:-1]])
    last = budgets[int(np.abs(shares - TOP).argmin())] if len(shares) else -np.inf
    lower = compute <= last + 0.01
    if not lower.any() or points.only(lower).configs() <= len(law.params):
        return None
    part, top = points.only(lower), points.only(~lower)
    below = replace(problem, x=part.x, y=part.y, weight=problem.weight[lower])
    made = make_forecast(part, below, None, laws)
    centre, sd = made.log_loss(top.x)
    largest, nearest = int(top.x.sum(axis=0).argmax()), part.x.sum(axis=0) > last - 0.01
    loss, predicted, carried = np.exp(top.y), np.exp(centre), float(np.exp(part.y[nearest]).mean())
    rms = [100 * float(np.sqrt(np.mean((each / loss - 1) ** 2))) for each in (predicted, carried)]
    found = HeldOut.of(
        {name: float(value) for name, value in zip(law.variables, np.exp(top.x[:, largest]), strict=True)},
        part.sizes,
        actual=float(loss[largest]),
        predicted=float(predicted[largest]),
        carried=carried,
    )
    return replace(
        found,
        runs=len(top),
        reach=float(np.exp(compute.max() - last)),
        rms_percent=rms[0],
        carried_rms_percent=rms[1],
        inside=int((np.abs(centre - top.y) < Z * sd).sum()),
    )


def alternative_note(law: Law, ranked: list[dict[str, Any]]) -> list[str]:
    """A word when another law of the same variables predicted held-out sizes clearly better."""
    errors = {row["law"]: row["held_out_rms_percent"] for row in ranked}
    best = next(iter(errors), law.name)
    if law.name not in errors or best == law.name or errors[best] > 0.7 * errors[law.name]:
        return []
    return [
        f"{LAWS[best].formula} predicted held-out sizes better: {errors[best]:.2g} % against "
        f"{errors[law.name]:.2g} %; try --law {best}"
    ]
