"""`fit`: any law, or the main one that the runs support."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pandas as pd

from tinyscale.errors import FitError
from tinyscale.fitting.bits import fit_bits
from tinyscale.fitting.fit import Fit, fit_law
from tinyscale.fitting.isoflop import fit_envelope, fit_isoflop
from tinyscale.fitting.laws import LAWS, find_law
from tinyscale.fitting.laws.optima import TUNING
from tinyscale.fitting.optima import Optima
from tinyscale.fitting.support import laws_for
from tinyscale.fitting.tuning import fit_tuning
from tinyscale.formatting import nearest

AnyFit = Fit | Optima

OPTIMA: dict[str, Callable[..., Optima]] = {
    "isoflop": fit_isoflop,
    "envelope": fit_envelope,
    **{law: partial(fit_tuning, law=law) for law in TUNING},
}
NAMES = (*LAWS, *OPTIMA)


def fit(
    frame: pd.DataFrame, law: str | None = None, *, columns: Mapping[str, str] | None = None, **options: Any
) -> AnyFit:
    """Fit a scaling law to final points, one row per run; left out, the law for what varies.

    columns: variables n, d, c, ... and loss -> the frame's columns, where they are not the results' own. options: of
    `fit_law` (delta, intervals, draws, holdout, seed, hold, prior, one_sided). The law left out, new runs are forecast
    by all laws of its variables. FitError when the runs cannot support the law.
    """
    options.setdefault("average", law is None)
    name = law or laws_for(frame, columns)[0]
    if name in OPTIMA:
        return OPTIMA[name](frame, columns=columns)
    if name not in LAWS:
        raise FitError(f"no law is called {name!r}{nearest(name, NAMES)}; there are {', '.join(NAMES)}")
    if LAWS[name].predicts == "delta":
        return fit_bits(frame, name, columns=columns, **options)
    return fit_law(frame, find_law(name), columns=columns, **options)
