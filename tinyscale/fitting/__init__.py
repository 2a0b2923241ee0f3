"""Scaling laws from finished runs: `fit(frame)` gives a frozen result, or a refusal in words."""

from tinyscale.fitting.choose import AnyFit, fit
from tinyscale.fitting.curve import Curve
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.fit import Fit, fit_law
from tinyscale.fitting.frontier import compute_for, exponents, frontier
from tinyscale.fitting.isoflop import fit_envelope, fit_isoflop
from tinyscale.fitting.laws import LAWS, Law, find_law
from tinyscale.fitting.optima import Optima
from tinyscale.fitting.record import Origin, Record
from tinyscale.fitting.support import laws_for
from tinyscale.fitting.tuning import best_setting, fit_tuning

__all__ = [
    "LAWS",
    "AnyFit",
    "Curve",
    "Estimate",
    "Fit",
    "Law",
    "Optima",
    "Origin",
    "Record",
    "best_setting",
    "compute_for",
    "exponents",
    "find_law",
    "fit",
    "fit_envelope",
    "fit_isoflop",
    "fit_law",
    "fit_tuning",
    "frontier",
    "laws_for",
]
