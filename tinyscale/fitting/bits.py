"""`fit_bits`: what rounding adds to the loss, of the sizes that vary and the rows in which it can be seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Array
from tinyscale.fitting.fit import Fit, fit_law
from tinyscale.fitting.laws import find_law
from tinyscale.fitting.laws.bits import bits_law
from tinyscale.fitting.points import column_of, positive
from tinyscale.fitting.record import Origin
from tinyscale.fitting.support import LEAST_SPREAD, collinear

SEEN = 2.0  # standard errors of delta below which it is not told from none
UNSEEN = f"delta below {SEEN:g} of its standard errors, or not above zero"


def fit_bits(
    frame: pd.DataFrame, name: str = "bits", *, columns: Mapping[str, str] | None = None, **options: Any
) -> Fit:
    """The law of that name to delta, the column of the loss; `bits` without the powers of N and D that do not vary.

    Rows whose delta is less than twice its standard error are left out: the column of the loss with `_se` after it,
    where there is one. columns, options: as of `fit_law`. FitError as there, and where no row is left.
    """
    columns = {"loss": "delta", **(columns or {})}
    column = column_of(frame, "loss", columns)
    delta = pd.to_numeric(frame[column], errors="coerce")
    error = frame[f"{column}_se"].fillna(0.0) if f"{column}_se" in frame else 0.0
    seen = (delta > 0) & (delta >= SEEN * error)
    if not seen.any():
        raise FitError(f"no row has a {column} of twice its standard error: ask for fewer bits, or score more text")
    kept = frame[seen]
    law = find_law(bits_law(*_varying_sizes(kept, columns)).name if name == "bits" else name)
    found = fit_law(kept, law, columns=columns, **options)
    dropped = {UNSEEN: int((~seen).sum())} if not seen.all() else {}
    return replace(found, origin=Origin(dropped=dropped))


def _varying_sizes(frame: pd.DataFrame, columns: Mapping[str, str]) -> list[str]:
    """Those of N and D that vary; of two that follow each other, N."""
    logs: dict[str, Array] = {}
    for name in ("n", "d"):
        try:
            column = column_of(frame, name, columns)
        except FitError:
            continue
        x = np.log(positive(frame[column]))
        if np.ptp(x) > LEAST_SPREAD:
            logs[name] = x
    return ["n"] if len(logs) == 2 and collinear(*logs.values()) else list(logs)
