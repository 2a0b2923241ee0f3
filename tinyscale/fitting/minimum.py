"""The lowest point of a curve through few noisy points, or why there is none, and a line through many such points."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from tinyscale.fitting.arrays import Array
from tinyscale.fitting.estimate import Estimate

CUBIC_FROM = 6  # different x; below, a parabola: a cubic through five is nearly free
WINDOW = 0.7 * np.log(10)  # points further from the lowest say little about the bottom and bend the curve
DRAWS = 400


@dataclass(frozen=True)
class Minimum:
    """The bottom of one curve: position and height in logarithms, the position's standard deviation, and what was used.

    refused: why there is no bottom (the numbers are then NaN), or empty; reach: the x that were used; coefficients: of
    the polynomial in x - centre.
    """

    at: float
    height: float
    sd: float
    points: int
    degree: int
    refused: str = ""
    reach: tuple[float, float] = (np.nan, np.nan)
    coefficients: tuple[float, ...] = ()
    centre: float = np.nan

    def curve(self, x: Array) -> Array:
        """The polynomial at x (n,)."""
        return np.asarray(np.polynomial.polynomial.polyval(x - self.centre, self.coefficients), float)


def find_minimum(
    x: Array, y: Array, *, degree: int | None = None, window: float = WINDOW, what: str = "size", most: str = "largest"
) -> Minimum:
    """Bottom of y(x) (n,), both logarithms, by a least-squares polynomial around the lowest mean.

    A parabola's vertex is biased where the curve is lopsided, so a cubic is used from 6 different x on. Refused, with
    the reason: fewer than 4 different x, a lowest point at either edge, a curve that does not open upwards.
    Hoffmann et al. 2022 (2203.15556), section 3.2, use the parabola. what, most: words for x and for its upper end.
    """
    values, group = np.unique(np.round(x, 3), return_inverse=True)
    if len(values) < 4:
        return _refusal(len(x), f"{len(values)} different {what}s, 4 are needed")
    means = np.bincount(group, y) / np.bincount(group)
    lowest = int(means.argmin())
    if lowest in (0, len(values) - 1):
        side = "smallest" if lowest == 0 else most
        return _refusal(len(x), f"the loss is lowest at the {side} {what}: the bottom is not inside the range")
    near = np.abs(x - values[lowest]) <= window
    if len(np.unique(group[near])) < 4:
        near = np.abs(group - lowest) <= 2
    distinct = len(np.unique(group[near]))
    degree = degree or (3 if distinct >= CUBIC_FROM else 2)
    return _bottom(x[near], y[near], values[lowest], degree, dof=max(near.sum() - degree - 1, 1))


def _refusal(points: int, why: str) -> Minimum:
    return Minimum(np.nan, np.nan, np.nan, points, 0, why)


def _bottom(x: Array, y: Array, centre: float, degree: int, dof: int) -> Minimum:
    """Bottom of the polynomial, and its scatter under new noise of the residuals' size."""
    z = x - centre
    basis = np.stack([z**k for k in range(degree + 1)], axis=1)
    inverse = np.linalg.pinv(basis)
    found = inverse @ y
    if found[2] <= 0:
        return _refusal(len(x), "the curve through the points does not open upwards")
    at = _vertex(found[None])[0]
    if not z.min() < at < z.max():
        return _refusal(len(x), "the curve through the points has its bottom outside their range")
    sd = np.sqrt(((y - basis @ found) ** 2).sum() / dof)
    rng = np.random.default_rng(0)
    scale = np.sqrt(dof / rng.chisquare(dof, (DRAWS, 1)))
    drawn = _vertex(found + sd * scale * (rng.standard_normal((DRAWS, len(z))) @ inverse.T))
    inside = (drawn > z.min()) & (drawn < z.max())
    if inside.mean() < 0.5:
        return _refusal(len(x), "the curve is too flat for its noise: most refits have no bottom inside the range")
    # A robust width: refits that have their bottom at the edge are wide but not infinitely so.
    low, high = np.nanpercentile(np.clip(np.where(np.isnan(drawn), z.max(), drawn), z.min(), z.max()), [15.87, 84.13])
    curve = Minimum(float(at + centre), np.nan, float((high - low) / 2), len(x), degree, "",
                    (float(x.min()), float(x.max())), tuple(found), float(centre))  # fmt: skip
    return replace(curve, height=float(curve.curve(np.array([curve.at]))[0]))


def _vertex(coefficients: Array) -> Array:
    """Where each polynomial (K, degree + 1) has its minimum; NaN where it has none."""
    c1, c2 = coefficients[:, 1], coefficients[:, 2]
    c3 = coefficients[:, 3] if coefficients.shape[1] > 3 else np.zeros(len(c1))
    inside = c2**2 - 3 * c3 * c1
    root = np.sqrt(np.maximum(inside, 0))
    # The stable form of (-c2 + root) / (3 c3): it stays finite as the cubic term vanishes.
    return np.where((inside > 0) & (c2 + root > 0), -c1 / np.where(c2 + root > 0, c2 + root, 1.0), np.nan)


@dataclass(frozen=True)
class Line:
    """y = level + slope (x - middle) by weighted least squares; half-widths are those of 95 % intervals."""

    slope: float
    slope_half_width: float
    level: float
    level_half_width: float
    middle: float
    chi2: float
    dof: int

    def at(self, x: float) -> Estimate:
        """y at x."""
        half_width = np.hypot(self.level_half_width, self.slope_half_width * (x - self.middle))
        return Estimate.around(self.level + self.slope * (x - self.middle), half_width)


def weighted_line(x: Array, y: Array, sd: Array | None) -> Line:
    """Weighted least squares of y (n,) on x with standard deviations sd; None: all alike, and not known.

    Intervals by t with n - 2 degrees of freedom; where points scatter more than their own sd, by that scatter.
    """
    weight = np.ones_like(x) if sd is None else 1 / sd**2
    middle, level = (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()
    spread = (weight * (x - middle) ** 2).sum()
    slope = (weight * (x - middle) * y).sum() / spread
    chi2, dof = float((weight * (y - level - slope * (x - middle)) ** 2).sum()), max(len(x) - 2, 1)
    wide = special.stdtrit(dof, 0.975) * np.sqrt(max(0.0 if sd is None else 1.0, chi2 / dof))
    slope_half_width, level_half_width = float(wide / np.sqrt(spread)), float(wide / np.sqrt(weight.sum()))
    return Line(float(slope), slope_half_width, float(level), level_half_width, float(middle), chi2, dof)
