"""A forecast against the law's floor: where the data do not set the floor, everything far out hangs on it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from tinyscale.errors import FitError
from tinyscale.fitting.curve import Curve
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.solve import Problem, minimise

VALUES = 5  # across the floor's interval


def floor_table(problem: Problem, curve: Curve, estimates: Mapping[str, Estimate], **variables: float) -> pd.DataFrame:
    """Floor, loss of the law at one new size, and likelihood over the best: free, and held across its interval.

    FitError for a law without a floor, or that holds it, and where its interval is open.
    """
    law = problem.law
    if law.irreducible is None or law.irreducible in law.held:
        raise FitError(f"{law.formula} has no floor that could be another")
    floor = estimates[law.irreducible]
    if not np.isfinite(floor.ends).all():
        raise FitError(
            f"the data set no end to the floor {law.irreducible}, so there is no interval to take others from"
        )
    theta = law.to_solver(np.array([[curve.params[name] for name in law.params]]))
    values = np.append(floor.value, np.linspace(*floor.ends, VALUES))
    index, (low, high) = law.params.index(law.irreducible), law.limits
    low, high = np.tile(low, (len(values), 1)), np.tile(high, (len(values), 1))
    low[1:, index] = high[1:, index] = values[1:]
    found = minimise(problem, np.repeat(theta, len(values), axis=0), low, high)
    at = np.log([[float(variables[name])] for name in law.variables])
    rise = found.objective - found.objective.min()
    return pd.DataFrame({
        "floor": values,
        "loss": np.exp(law.log_loss(found.theta, at)[0][:, 0]),
        "likelihood": np.exp(-rise / max(curve.sd, 1e-12) ** 2),
    }).sort_values("floor", ignore_index=True)  # fmt: skip
