"""The laws that can be fitted, one file a family: each holds all that is said of its laws."""

from __future__ import annotations

from tinyscale.errors import FitError
from tinyscale.fitting.laws import (
    bits,
    broken,
    data_constrained,
    distilled,
    farseer,
    features,
    gamma,
    kaplan,
    mixtures,
    power_sum,
)
from tinyscale.fitting.laws.base import COEFFICIENT, EXPONENT, FLOOR, VARIABLES, Law
from tinyscale.fitting.laws.optima import OPTIMA_LAWS, OptimaLaw

__all__ = [
    "COEFFICIENT",
    "EXPONENT",
    "FAMILIES",
    "FLOOR",
    "LAWS",
    "OPTIMA_LAWS",
    "VARIABLES",
    "Law",
    "OptimaLaw",
    "find_form",
    "find_law",
]

FAMILIES = (power_sum, gamma, kaplan, farseer, data_constrained, broken, features, bits, distilled, mixtures)
LAWS: dict[str, Law] = {law.name: law for family in FAMILIES for law in family.LAWS}


def find_form(name: str) -> Law | OptimaLaw:
    """The law of the loss, or of optima, of that name. FitError lists what there is."""
    return OPTIMA_LAWS[name] if name in OPTIMA_LAWS else find_law(name)


def find_law(name: str) -> Law:
    """The law of that name. FitError lists what there is."""
    if name not in LAWS:
        raise FitError(f"no law is called {name!r}; there are {', '.join(LAWS)}")
    return LAWS[name]
