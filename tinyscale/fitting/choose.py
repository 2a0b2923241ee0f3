"""`fit`: any law, or the main one that the runs support."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from tinyscale.errors import FitError
from tinyscale.fitting.bits import fit_bits
from tinyscale.fitting.fit import Fit, fit_law
from tinyscale.fitting.formation import fit_formation
from tinyscale.fitting.isoflop import fit_envelope, fit_isoflop
from tinyscale.fitting.laws import LAWS, find_law
from tinyscale.fitting.laws.optima import TUNING
from tinyscale.fitting.mixture import fit_mixture
from tinyscale.fitting.optima import Optima
from tinyscale.fitting.support import laws_for
from tinyscale.fitting.tuning import fit_tuning
from tinyscale.formatting import nearest

AnyFit = Fit | Optima

OPTIMA: dict[str, Callable[..., Optima]] = {
    "isoflop": fit_isoflop,
    "envelope": fit_envelope,
    "formation": fit_formation,
    "mixture": fit_mixture,
    **{law: partial(fit_tuning, law=law) for law in TUNING},
}
NAMES = (*LAWS, *OPTIMA)
AS_GOOD = 1.05  # errors on inner windows, of which there are two, up to which a simpler law is as good


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


def without_idle_floor(
    found: AnyFit, frame: pd.DataFrame, *, columns: Mapping[str, str] | None = None, **options: Any
) -> AnyFit:
    """The fit; or that of its law without a floor, where the runs do not identify one and do not miss it.

    Not identified: zero is in the 95 % interval of E. Not missed: fitted to the lower part of the runs, the law without
    a floor predicts the others as well. columns, options: as of `fit`.
    """
    if not isinstance(found, Fit) or found.forecast is None or "E" not in found.params or found.interval("E")[0] > 0:
        return found
    names, variables = set(found.law.params) - {"E"}, found.law.variables
    simpler = next((law for law in LAWS.values() if set(law.params) == names and law.variables == variables), None)
    errors = {each.law.name: each.error for each in found.forecast.members}
    if simpler is None or not errors.get(simpler.name, np.inf) <= AS_GOOD * errors.get(found.law.name, 0.0):
        return found
    line = fit_law(frame, simpler, columns=columns, **options)
    note = (
        f"shown without a floor E, which these runs do not identify (0 to {found.interval('E')[1]:.4g}): fitted to "
        f"fewer of them, the law without one missed the others by {errors[simpler.name]:.1%}, with one by "
        f"{errors[found.law.name]:.1%}; --law {found.law.name} has it"
    )
    return replace(line, warnings=(note, *line.warnings))
