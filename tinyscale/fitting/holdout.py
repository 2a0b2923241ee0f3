"""How well a law predicts sizes that it has not seen, beside the error of carrying the last loss forward."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinyscale.errors import FitError
from tinyscale.fitting.forms import Array
from tinyscale.fitting.laws import Law
from tinyscale.fitting.points import Points
from tinyscale.fitting.solve import solve

MOST_WINDOWS = 6  # each is a whole fit


@dataclass(frozen=True)
class HeldOut:
    """Errors in signed percent of the mean loss on the held-out size, prediction minus truth.

    size: the law's variables at the largest size; fitted_sizes: how many smaller ones were fitted;
    carry_forward_percent: the error of taking the loss of the largest fitted size instead; windows: the same for every
    expanding window, a mapping of fitted_sizes, error_percent and carry_forward_percent for the next size up.
    """

    size: dict[str, float]
    fitted_sizes: int
    actual: float
    predicted: float
    error_percent: float
    carry_forward_percent: float
    windows: tuple[dict[str, float], ...]


def hold_out(law: Law, points: Points, delta: float, held: int = 1) -> HeldOut | None:
    """Fit on all but the `held` largest sizes and predict the largest; None when too few would be left to fit."""
    least = len(law.params)
    if held < 1 or points.sizes - held < least:
        return None
    largest = points.sizes - 1
    predicted, actual, carried = _window(law, points, delta, points.sizes - held, largest)
    at = points.size == largest
    windows = []
    for fitted in np.unique(np.linspace(least, points.sizes - 1, MOST_WINDOWS).round().astype(int)).tolist():
        a, b, c = _window(law, points, delta, fitted, fitted)
        windows.append(
            {"fitted_sizes": fitted, "error_percent": 100 * (a / b - 1), "carry_forward_percent": 100 * (c / b - 1)}
        )
    return HeldOut(
        size={name: float(np.exp(row[at].mean())) for name, row in zip(law.variables, points.x, strict=True)},
        fitted_sizes=points.sizes - held,
        actual=actual,
        predicted=predicted,
        error_percent=100 * (predicted / actual - 1),
        carry_forward_percent=100 * (carried / actual - 1),
        windows=tuple(windows),
    )


def _window(law: Law, points: Points, delta: float, fitted: int, target: int) -> tuple[float, float, float]:
    """Predicted and actual mean loss of size `target`, and the mean loss of the largest of the fitted sizes."""
    small, at, last = points.size < fitted, points.size == target, points.size == fitted - 1
    loss = np.exp(points.y)
    try:
        solution, _ = solve(points.take(small).problem(law, delta))
    except FitError:
        return float("nan"), float(loss[at].mean()), float(loss[last].mean())
    predicted: Array = np.exp(law.log_loss(solution.theta, points.x[:, at])[0][0])
    return float(predicted.mean()), float(loss[at].mean()), float(loss[last].mean())
