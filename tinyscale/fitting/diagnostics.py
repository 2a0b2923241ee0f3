"""What speaks for a fit and against it: held-out error, influence of single sizes, residuals, warnings in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from tinyscale.fitting.arrays import Array, Index, Mask
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.forecast import Forecast, averaged, make_forecast
from tinyscale.fitting.holdout import HeldOut, alternative_note, hold_out, hold_out_top
from tinyscale.fitting.laws import Law
from tinyscale.fitting.laws.base import GIVEN
from tinyscale.fitting.points import COLUMNS, LOSS_OF_CHANCE, Points, group_settings, group_sizes
from tinyscale.fitting.residuals import off_by, residual_notes
from tinyscale.fitting.shape import shape_notes
from tinyscale.fitting.solve import Certificate, Problem, minimise
from tinyscale.fitting.support import LEAST_SPREAD, NO_SCALING, scaling
from tinyscale.fitting.text import tells
from tinyscale.fitting.uncertainty import EXACT, LACK_OF_FIT_LEVEL, Noise, noise_of
from tinyscale.formatting import compact, plural

LACK_OF_FIT = 0.05  # the chance of it below which it is said
MOST_WEIGHTS = 20_000_000  # refits without a size that are made at once, times points


@dataclass(frozen=True)
class Evidence:
    """What speaks for a fit and against it. The fields are those of `Fit`."""

    forecast: Forecast | None
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
    average: bool,
) -> Evidence:
    """Forecast, held-out error, alternative laws, influence of each size, and what to warn of, for a law solved at
    theta (P,).

    holdout: how many of the largest sizes to hold out (1, of joint laws: the top fifth of compute); 0: none, and no
    alternative laws; average: whether the forecast is of all laws of the same variables.
    """
    law, delta = problem.law, problem.delta
    forecast, held_out, alternatives = None, None, []
    if holdout:
        laws = (law, *(each for each in averaged(law) if each.name != law.name))
        whole = make_forecast(points, problem, theta, laws)
        forecast = whole if average else whole.alone(law, theta)
        alternatives = [{"law": m.law.name, "held_out_rms_percent": 100 * m.error} for m in whole.members]
        of_compute = {"n", "d"} <= set(law.variables) and law.predicts == "loss" and holdout == 1
        held_out = (
            hold_out_top(points, problem, laws if average else (law,))
            if of_compute
            else hold_out(law, points, delta, holdout)
        )
    without = leave_sizes_out(problem, points, theta)
    warnings = (
        *_about_data(law, points),
        *_about_scaling(law, points, _residual(problem, theta)),
        *_about_lack_of_fit(noise, without),
        *shape_notes(problem, theta),
        *residual_notes(
            points, problem, theta, fixed=certificate.at_bound, alike=(noise.lack_of_fit or 1.0) >= LACK_OF_FIT_LEVEL
        ),
        *_about_floor(law, estimates),
        *_about_held_out(held_out, noise),
        *_about_search(law, estimates, certificate),
        *_about_influence(law, without, estimates),
        *alternative_note(law, alternatives),
    )
    return Evidence(forecast, held_out, tuple(each.row for each in without), tuple(alternatives), warnings)


@dataclass(frozen=True)
class Without:
    """A fit without one size of the law's first variable.

    size: which; theta (P,); row: the parameters by name; noise: of the others about it, None where they are too few for
    one; shift: of log loss, by how much the size is off the law of the others; p: that it is by no more than chance
    makes it (Chow 1960, Econometrica 28, of means over seeds where sizes scatter more than these).
    """

    size: str
    row: Mapping[str, Any]
    noise: Noise | None
    shift: float
    p: float


def leave_sizes_out(problem: Problem, points: Points, theta: Array) -> list[Without]:
    """The fits without each size of the law's first variable, from its optimum theta (P,)."""
    size, law = group_sizes(problem.x[0]), problem.law
    config, name = group_settings(problem.x, EXACT), law.variables[0]
    residual = _residual(problem, theta)
    found = []
    for sizes in np.array_split(np.arange(size.max() + 1), -(-(int(size.max()) + 1) * len(points) // MOST_WEIGHTS)):
        weight = problem.weight * (size != sizes[:, None])
        left = replace(problem, weight=weight)
        solved = minimise(left, np.repeat(theta[None], len(weight), axis=0)).theta
        found += list(zip(sizes, solved, strict=True))
    rows = []
    for index, each in found:
        out, params = size == index, law.named(each)
        value = float(np.exp(problem.x[0][out].mean()))
        new = _residual(problem, each)
        noise, p = _judge(config, out, residual, new, len(theta))
        row = {f"without_{name}": value, **params}
        rows.append(Without(f"{name.upper()} = {compact(value)}", row, noise, -float(new[out].mean()), p))
    return rows


def _residual(problem: Problem, theta: Array) -> Array:
    return np.asarray(problem.law.log_loss(theta[None], problem.x)[0][0] - problem.y)


def _judge(config: Index, out: Mask, whole: Array, new: Array, params: int) -> tuple[Noise | None, float]:
    """The noise of the points that are not `out` about their law, and whether it explains how far the others are off.

    whole, new: residuals (n,) about the law of all points and about that of those not out.
    """
    left = len(np.unique(config[~out]))
    if left <= params:
        return None, 1.0
    noise = noise_of(config[~out], new[~out], params)
    removed = len(np.unique(config[out]))
    rise = _between(config, whole) - _between(config[~out], new[~out])
    return noise, float(special.fdtrc(removed, noise.dof, max(rise, 0.0) / removed / max(noise.sd**2, 1e-300)))


def _between(config: Index, residual: Array) -> float:
    """Sum of squares of the means of configurations, each as often as it has points."""
    count = np.bincount(config)
    return float((np.bincount(config, residual) ** 2 / np.maximum(count, 1)).sum())


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
    if np.ptp(n) < LEAST_SPREAD or {"mup", "completep"} & set(frame.get("parametrization", [])):
        return []
    rate = frame["lr"].dropna().iloc[0]
    value = rate if isinstance(rate, str) else f"{rate:g}"
    return [
        f"one learning rate, {value}, for all sizes, though the best one moves "
        "with size: the exponent may be off; tune it (sweeps/lr.yaml, then train.lr: auto) or train with "
        "parametrization: mup"
    ]


def _about_data(law: Law, points: Points) -> list[str]:
    notes = [
        f"{name} spans a factor of {np.exp(np.ptp(row)):.2g}, under a decade: exponents rest on little"
        for row, name in zip(points.x, law.variables, strict=True)
        if np.ptp(row) < np.log(10) * 0.999 and name not in (*GIVEN, "bits")
    ]
    if points.copies:
        notes.append(f"{plural(points.copies, 'row')} left out: exact copies of others, and no runs of their own")
    beyond = points.names_where(np.exp(points.y) > LOSS_OF_CHANCE)
    if beyond:
        notes.append(
            f"the loss of {beyond} is above {LOSS_OF_CHANCE:g}, more than guessing any token loses: runs that failed, "
            "or perplexities, whose logarithms are losses in nats per token"
        )
    return notes


def _about_scaling(law: Law, points: Points, residual: Array) -> list[str]:
    """A word where the loss hardly goes with a variable that the law reads."""
    by_rank, slopes = scaling(points)
    dof, terms, left = len(points) - len(law.params), len(law.params) - 1, float((residual**2).sum())
    explained = float(((points.y - points.y.mean()) ** 2).sum()) - left
    by_law = special.fdtrc(terms, max(dof, 1), max(explained, 0.0) / terms / max(left / max(dof, 1), 1e-300))
    if (p := min(by_rank, by_law)) > NO_SCALING:
        return [
            f"the loss changes with {' and '.join(law.variables)} no more than chance explains (p = {p:.2g}): no "
            "scaling is seen"
        ]
    rising = [name for name, slope in zip(law.variables, slopes, strict=True) if slope >= 0 and name not in GIVEN]
    return [
        f"the loss does not fall with {name} where the rest is equal: its exponent rests on nothing"
        for name in rising
        if len(law.variables) > 1 and law.predicts == "loss"
    ]


def _about_lack_of_fit(noise: Noise, without: Sequence[Without]) -> list[str]:
    """Also which size it comes from, where at most two could each be all of it."""
    if noise.lack_of_fit is None or noise.lack_of_fit >= LACK_OF_FIT:
        return []
    note = (
        f"lack of fit (p = {noise.lack_of_fit:.2g}): sizes scatter about the law more than their seeds do; "
        "a size may be badly tuned or the law wrong, and the intervals are widened for it"
    )
    explain = [
        f"{each.size}, {off_by(each.shift)} the law of the others"
        for each in without
        if each.noise is not None and each.noise.lack_of_fit is not None and each.noise.lack_of_fit >= LACK_OF_FIT
    ]
    return [note + (f"; there is none without {', or without '.join(explain)}" if 0 < len(explain) <= 2 else "")]


def _about_floor(law: Law, estimates: Mapping[str, Estimate]) -> list[str]:
    if law.irreducible is None or law.irreducible in law.held or estimates[law.irreducible].low > 0:
        return []
    return [
        f"the floor {law.irreducible} is not identified: zero is inside its interval, so loss far beyond the data is "
        "a guess"
    ]


def _about_held_out(held_out: HeldOut | None, noise: Noise) -> list[str]:
    if held_out is None:
        return ["no size could be held out: nothing shows that the law predicts"]
    error, carried = held_out.errors
    if error >= carried and tells(held_out, noise.sd):
        return ["on the held-out size the law did no better than carrying the last loss forward"]
    return []


def _about_search(law: Law, estimates: Mapping[str, Estimate], certificate: Certificate) -> list[str]:
    notes = []
    if certificate.share_of_starts < 0.1:
        notes.append(f"only {certificate.share_of_starts:.0%} of the starts reached the optimum")
    if certificate.condition_number > 1e8:
        notes.append("parameters trade off against each other (condition number above 1e8): read them together")
    at_bound = [f"{name} = {estimates[name].value:.3g}" for name in certificate.at_bound if name != law.irreducible]
    if at_bound:
        notes.append(
            f"{', '.join(at_bound)} stopped at a bound of the search: the data ask for a value beyond it, so neither "
            "the other parameters nor a prediction are those of the best fit"
        )
    return notes


def _about_influence(law: Law, without: Sequence[Without], estimates: Mapping[str, Estimate]) -> list[str]:
    """Sizes whose removal alone takes an exponent out of its interval, further than chance does for one of so many."""
    return [
        f"{name} hangs on {each.size}: without it {name} is {each.row[name]:.3g}, outside the interval, and it lies "
        f"{off_by(each.shift)} the law of the others"
        for each in without
        if each.p < LACK_OF_FIT / len(without)
        for name in law.exponents
        if not estimates[name].low <= each.row[name] <= estimates[name].high
    ]
