"""The laws that can be fitted, one file a family: each holds all that is said of its laws."""

from __future__ import annotations

from tinyscale.errors import FitError
from tinyscale.fitting.laws import broken, data_constrained, gamma, kaplan, power_sum
from tinyscale.fitting.laws.base import COEFFICIENT, EXPONENT, FLOOR, VARIABLES, Law

__all__ = ["COEFFICIENT", "EXPONENT", "FAMILIES", "FLOOR", "LAWS", "VARIABLES", "Law", "find_law"]

FAMILIES = (power_sum, gamma, kaplan, data_constrained, broken)
LAWS: dict[str, Law] = {law.name: law for family in FAMILIES for law in family.LAWS}


def find_law(name: str) -> Law:
    """The law of that name. FitError lists what there is."""
    if name not in LAWS:
        raise FitError(f"no law is called {name!r}; there are {', '.join(LAWS)}")
    return LAWS[name]
