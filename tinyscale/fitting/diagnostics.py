"""What speaks for a fit and against it: held-out error, influence of single sizes, residuals, warnings in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tinyscale.fitting.arrays import Array
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.holdout import HeldOut, alternative_note, hold_out, rank_alternatives
from tinyscale.fitting.laws import Law
from tinyscale.fitting.points import COLUMNS, Points, group_sizes
from tinyscale.fitting.solve import Certificate, Problem, minimise
from tinyscale.fitting.support import LEAST_SPREAD
from tinyscale.fitting.uncertainty import Noise
from tinyscale.formatting import compact


@dataclass(frozen=True)
class Evidence:
    """What speaks for a fit and against it. The fields are those of `Fit`."""

    held_out: HeldOut | None
    influence: tuple[Mapping[str, Any], ...]
    alternatives: tuple[Mapping[str, Any], ...]
    warnings: tuple[str, ...]


def gather_evidence(
    points: Points,
    problem: Problem,
    theta: Array,
    *,
    estimates: Mapping[str, Estimate],
    certificate: Certificate,
    noise: Noise,
    holdout: int,
) -> Evidence:
    """Held-out error, alternative laws, influence of each size, and what to warn of, for a law solved at theta (P,).

    holdout: how many of the largest sizes to hold out; 0: none, and no alternative laws.
    """
    law, delta = problem.law, problem.delta
    held_out = hold_out(law, points, delta, holdout)
    alternatives = rank_alternatives(law, points, delta) if holdout else []
    without = influence(problem, theta)
    warnings = (
        *_about_data(law, points, noise),
        *_about_floor(law, estimates),
        *_about_held_out(held_out),
        *_about_search(law, certificate),
        *_about_influence(law, without, estimates),
        *alternative_note(law, alternatives),
    )
    return Evidence(held_out, tuple(without), tuple(alternatives), warnings)


def influence(problem: Problem, theta: Array) -> list[dict[str, Any]]:
    """Leave-one-size-out: the parameters without each size of the law's first variable, one row per size."""
    size = group_sizes(problem.x[0])
    weight = problem.weight * (size != np.arange(size.max() + 1)[:, None])
    left = Problem(problem.law, problem.x, problem.y, weight, problem.delta)
    found = minimise(left, np.repeat(theta[None], len(weight), axis=0))
    name = problem.law.variables[0]
    return [
        {f"without_{name}": float(np.exp(problem.x[0][size == index].mean())), **problem.law.named(row)}
        for index, row in enumerate(found.theta)
    ]


def residual_table(frame: pd.DataFrame, variables: tuple[str, ...], residual: Array) -> pd.DataFrame:
    """Mean residual of log loss in percent at each size of each variable, and its t value; |t| > 3 is a misfit."""
    rows = []
    for name in variables:
        x = np.log(frame[name].to_numpy(float))
        size = group_sizes(x)
        for index in range(size.max() + 1):
            part = residual[size == index]
            sd = residual.std(ddof=1) / np.sqrt(len(part))
            rows.append({
                "variable": name, "value": float(np.exp(x[size == index].mean())), "points": len(part),
                "residual_percent": 100 * float(part.mean()), "t": float(part.mean() / sd) if sd else 0.0,
            })  # fmt: skip
    return pd.DataFrame(rows)


def untuned_note(frame: pd.DataFrame, columns: Mapping[str, str] | None = None) -> list[str]:
    """A word when runs of all sizes share one learning rate, and nothing shows that it suits them alike."""
    size = {**COLUMNS, **(columns or {})}["n"]
    if not {"lr", size} <= set(frame.columns) or frame["lr"].nunique() != 1 or frame[size].dtype.kind not in "iuf":
        return []
    n = np.log(frame[size].to_numpy(float))
    if np.ptp(n) < LEAST_SPREAD or "mup" in set(frame.get("parametrization", [])):
        return []
    rate = frame["lr"].dropna().iloc[0]
    value = rate if isinstance(rate, str) else f"{rate:g}"
    return [
        f"one learning rate, {value}, for all sizes, though the best one moves "
        "with size: the exponent may be off; tune it (sweeps/lr.yaml, then train.lr: auto) or train with "
        "parametrization: mup"
    ]


def _about_data(law: Law, points: Points, noise: Noise) -> list[str]:
    notes = [
        f"{name} spans a factor of {np.exp(np.ptp(row)):.2g}, under a decade: exponents rest on little"
        for row, name in zip(points.x, law.variables, strict=True)
        if np.ptp(row) < np.log(10) * 0.999 and name != "u"
    ]
    if noise.lack_of_fit is not None and noise.lack_of_fit < 0.05:
        notes.append(
            f"lack of fit (p = {noise.lack_of_fit:.2g}): sizes scatter about the law more than their seeds do; "
            "a size may be badly tuned or the law wrong, and the intervals are widened for it"
        )
    return notes


def _about_floor(law: Law, estimates: Mapping[str, Estimate]) -> list[str]:
    if law.irreducible is None or estimates[law.irreducible].low > 0:
        return []
    return [
        f"the floor {law.irreducible} is not identified: zero is inside its interval, so loss far beyond the data is "
        "a guess"
    ]


def _about_held_out(held_out: HeldOut | None) -> list[str]:
    if held_out is None:
        return ["no size could be held out: nothing shows that the law predicts"]
    if abs(held_out.error_percent) >= abs(held_out.carry_forward_percent):
        return ["on the held-out size the law did no better than carrying the last loss forward"]
    return []


def _about_search(law: Law, certificate: Certificate) -> list[str]:
    notes = []
    if certificate.share_of_starts < 0.1:
        notes.append(f"only {certificate.share_of_starts:.0%} of the starts reached the optimum")
    if certificate.condition_number > 1e8:
        notes.append("parameters trade off against each other (condition number above 1e8): read them together")
    at_bound = [name for name in certificate.at_bound if name != law.irreducible]
    if at_bound:
        notes.append(f"{', '.join(at_bound)} stopped at a bound of the search")
    return notes


def _about_influence(law: Law, without: list[dict[str, Any]], estimates: Mapping[str, Estimate]) -> list[str]:
    """Sizes whose removal alone takes an exponent out of its interval."""
    notes = []
    for row in without:
        label, value = next(iter(row.items()))
        for name in law.exponents:
            if not estimates[name].low <= row[name] <= estimates[name].high:
                size = f"{label.removeprefix('without_').upper()} = {compact(value)}"
                notes.append(f"{name} hangs on {size}: without it {name} is {row[name]:.3g}, outside the interval")
    return notes
