"""The best size at each budget of FLOPs, or the best setting at each size, and a power law through these optima."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from tinyscale.errors import FitError
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.forecast import Forecast
from tinyscale.fitting.holdout import HeldOut
from tinyscale.fitting.laws.optima import OptimaLaw, with_optimum
from tinyscale.fitting.record import Origin, Record, to_files
from tinyscale.fitting.text import as_html, verdict


@dataclass(frozen=True)
class Optima:
    """A power law through optima, one of each budget or of each size.

    table: one row per optimum. What its runs share (`c`; or `n`, `d` and settings that vary and are not tuned), `best`
    (N, or the first setting that is tuned), `best_d` (of budgets, D at that N), `log_sd` (standard deviation of log
    best), the same of further settings (`best_batch_tokens`, ...), `loss` there, and `refused`: why there is no
    optimum, or empty.
    runs: the points that were read; objective: value and kind; dof: degrees of freedom of the intervals; of: what else
    the runs had in common that the law holds for; forecast: of the loss, by joint laws of the same runs.
    """

    law: OptimaLaw
    formula: str
    estimates: Mapping[str, Estimate]
    table: pd.DataFrame
    runs: pd.DataFrame
    columns: Mapping[str, str]
    objective: Mapping[str, Any]
    dof: int
    held_out: HeldOut | None
    warnings: tuple[str, ...]
    derived: Mapping[str, Estimate] = field(default_factory=dict)
    method: str = "t"
    of: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)
    forecast: Forecast | None = None
    curve: None = None  # there is no formula of the loss
    refits: None = None

    @property
    def params(self) -> Mapping[str, float]:
        """Name -> value of each parameter."""
        return {name: each.value for name, each in self.estimates.items()}

    def interval(self, name: str) -> tuple[float, float]:
        """95 % interval of a parameter, or of what is derived. KeyError for another name."""
        return (self.derived if name in self.derived else self.estimates)[name].ends

    def predict(self, **variables: Any) -> pd.DataFrame:
        """Loss of new runs, as `Forecast.predict`. FitError where the runs were not fitted by a law of the loss."""
        if self.forecast is None:
            raise FitError(
                f"a law of {self.law.predicts} predicts no loss; fit a law of the loss, for example chinchilla"
            )
        return self.forecast.predict(**variables)

    @property
    def kept(self) -> pd.DataFrame:
        """The rows of the table that have an optimum."""
        return with_optimum(self.table)

    @cached_property
    def record(self) -> Record:
        """What is written of the fit, and shown."""
        return Record(
            origin=self.origin,
            form=self.law,
            formula=self.formula,
            slice="",
            estimates=self.estimates,
            derived=self.derived,
            method=self.method,
            intervals=f"{self.method} with {self.dof} degrees of freedom through {len(self.kept)} {self.law.kind}",
            objective={**self.objective, "delta": None},
            held_out=self.held_out,
            warnings=self.warnings,
            columns=self.columns,
            points=len(self.runs),
            of=self.of,
            optima=self.table,
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        """What tables/ holds of the fit, by what follows its name: one row per optimum."""
        return {"": to_files(self.law, self.table)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.law.name}: {verdict(self.record)})"

    def _repr_html_(self) -> str:
        return as_html(self.record)
