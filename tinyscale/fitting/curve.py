"""A law with numbers and its refits: all that predictions need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Array
from tinyscale.fitting.laws import Law
from tinyscale.fitting.solve import Problem

ENDS = (2.5, 97.5)


@dataclass(frozen=True)
class Curve:
    """params: the law's parameters; draws (K, P): those of each refit; sd, dof: of a run's log loss about the law.

    profiled: the points that intervals of what follows from the law are profiled on; None: they come from the refits.
    """

    law: Law
    params: Mapping[str, float]
    draws: Array
    sd: float
    dof: int
    profiled: Problem | None = None

    def predict(self, *, noise: bool = True, **variables: Any) -> pd.DataFrame:
        """Loss at new sizes, one row each, with 95 % ends: `curve.predict(n=[1e7, 1e8])`.

        noise: the ends hold a new run's loss; False: the law's own curve. FitError when a variable is missing.
        """
        missing = [name for name in self.law.variables if name not in variables]
        if missing:
            raise FitError(f"{self.law.formula} needs {', '.join(missing)} to predict")
        columns = np.broadcast_arrays(*(np.atleast_1d(np.asarray(variables[v], float)) for v in self.law.variables))
        drawn, _ = self.law.log_loss(self.law.to_solver(self.draws), np.log(np.stack(columns)))
        if noise:
            # The same noise at every call and size, so that a curve of intervals is smooth.
            drawn = drawn + self.sd * np.random.default_rng(0).standard_t(self.dof, size=(len(drawn), 1))
        low, high = np.exp(np.percentile(drawn, ENDS, axis=0))
        named = dict(zip(self.law.variables, columns, strict=True))
        return pd.DataFrame({**named, "loss": self.law.loss(self.params, **named), "low": low, "high": high})
