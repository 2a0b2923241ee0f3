"""Laws of optima: how the best size goes with the budget, or the best setting with the size. Fitted without a formula
for the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd


@dataclass(frozen=True)
class OptimaLaw:
    """kind: what there is one optimum of each of; predicts: what the law says, in a text; headline: as of `Law`.

    names: columns of a table of optima -> what these are called in fits.json and in the CSV; tunes: the settings whose
    best values a law of sizes is of.
    """

    name: str
    kind: Literal["budgets", "sizes", "jumps", "texts"]
    predicts: str
    exponents: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    tunes: tuple[str, ...] = ()
    has_frontier: bool = False

    @property
    def headline(self) -> str:
        """The parameter to quote where there is room for one."""
        return self.exponents[0]


OF_BUDGETS = {"best": "n_star", "best_d": "d_star", "loss": "loss_star", "log_sd": "log_n_sd"}

ISOFLOP = OptimaLaw("isoflop", "budgets", "N*", ("a", "b"), OF_BUDGETS)
ENVELOPE = OptimaLaw("envelope", "budgets", "N*", ("a", "b"), OF_BUDGETS)
SETTINGS = ("lr", "batch_tokens", "weight_decay")  # what is tuned at each size
LR = OptimaLaw("lr", "sizes", "lr", ("p", "q", "r"), {"best": "optimum"}, ("lr",))
BATCH = OptimaLaw("batch", "sizes", "batch_tokens", ("p", "q"), {"best": "optimum"}, ("batch_tokens",))
ALL = OptimaLaw("settings", "sizes", "settings", ("p", "q", "r"), {"best": "optimum"}, SETTINGS)
FORMATION = OptimaLaw("formation", "jumps", "D*", ("p", "q"), {"best": "d_star"})
MIXTURE = OptimaLaw("mixture", "texts", "shares", ("beta",))

TUNING = {law.name: law for law in (ALL, LR, BATCH)}
LAW_OF = {law.tunes: law for law in TUNING.values()}  # where only these settings were tuned
OPTIMA_LAWS = {law.name: law for law in (ISOFLOP, ENVELOPE, FORMATION, MIXTURE, *TUNING.values())}


def with_optimum(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table of optima that have one."""
    return table[table["refused"] == ""]
