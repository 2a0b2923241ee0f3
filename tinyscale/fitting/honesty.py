"""What a fit owes its reader beside the numbers: refusals, influence, rival laws, other conventions, warnings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Array
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.holdout import HeldOut, spaced, window_errors
from tinyscale.fitting.laws import LAWS, Law, find_law
from tinyscale.fitting.points import COLUMNS, Points, group_sizes, read_points
from tinyscale.fitting.solve import Certificate, Problem, minimise, solve
from tinyscale.fitting.uncertainty import Noise
from tinyscale.formatting import compact

# Which columns of the results a convention counts parameters and FLOPs with.
CONVENTIONS = {
    "tinyscale": {"n": "n_non_embedding", "c": "flops"},
    "kaplan": {"n": "n_non_embedding", "c": "flops_6n"},
    "hoffmann": {"n": "n_total", "c": "flops_hoffmann"},
    "palm": {"n": "n_total", "c": "flops_palm"},
    "matmul": {"n": "n_matmul", "c": "flops"},
}
LEAST_SPREAD = np.log(1.5)  # of a variable, or of D about its dependence on N: with less there is nothing to fit


def refuse_unsupported(law: Law, points: Points) -> None:
    """FitError when no number could be trusted: too few sizes, no spread, one ratio, or a loss that does not fall."""
    joint = len(law.variables) > 1
    needed = needs(law)
    for row, name in zip(points.x, law.variables, strict=True):
        if np.ptp(row) < LEAST_SPREAD and name != "u":
            value = compact(float(np.exp(row.mean())))
            raise FitError(
                f"{law.formula} needs {name} to vary: here it stays at {value}; sweep it, or fit another law"
            )
    if points.configs() < needed:
        others = [o.name for o in LAWS.values() if o.variables == law.variables and needs(o) <= points.configs()]
        raise FitError(
            f"{law.formula} needs at least {needed} different sizes and there are {points.configs()}; "
            "add sizes" + (f", or take --law {' or '.join(others)}" if others else "")
        )
    for row, name in zip(points.x, law.variables, strict=True):
        values = int(group_sizes(row).max()) + 1
        if law.splits_loss and values < 3 and name != "u":
            other = ", or fit --law tied" if law.variables == ("n", "d") else ""
            raise FitError(
                f"{law.formula}: with {values} values of {name} its floor, coefficient and exponent cannot be told "
                f"apart; add a third{other}"
            )
    if joint and _collinear(points.x[0], points.x[1]):
        first, second = law.variables[:2]
        raise FitError(
            f"{law.formula}: {second} follows {first} in all runs (one {second}/{first} ratio), so alpha and beta "
            f"cannot be told apart; vary {second} at a fixed {first}, or fit --law power-{first}"
        )
    means = pd.Series(points.y).groupby(points.size).mean()
    if not joint and means.iloc[-1] >= means.iloc[0]:
        raise FitError(
            f"{law.formula} needs a loss that falls: it goes from {np.exp(means.iloc[0]):.4g} at the smallest size to "
            f"{np.exp(means.iloc[-1]):.4g} at the largest; look at the learning rate and budget of the large runs"
        )


def needs(law: Law) -> int:
    """How many different sizes a law is fitted to at least."""
    return max(4, len(law.params) + (len(law.variables) > 1))


def _collinear(first: Array, second: Array) -> bool:
    """Whether one logarithm is a line in the other, up to whole steps."""
    slope = np.cov(first, second)[0, 1] / np.var(first, ddof=1)
    return bool(np.ptp(second - slope * first) < LEAST_SPREAD)


def influence(problem: Problem, theta: Array) -> list[dict[str, Any]]:
    """The parameters when each size of the law's first variable is left out: one row a size."""
    size = group_sizes(problem.x[0])
    weight = problem.weight * (size != np.arange(size.max() + 1)[:, None])
    left = Problem(problem.law, problem.x, problem.y, weight, problem.delta)
    found = minimise(left, np.repeat(theta[None], len(weight), axis=0))
    name = problem.law.variables[0]
    return [
        {f"without_{name}": float(np.exp(problem.x[0][size == index].mean())), **_named(problem.law, row)}
        for index, row in enumerate(found.theta)
    ]


def _named(law: Law, theta: Array) -> dict[str, float]:
    return dict(zip(law.params, law.to_params(theta).tolist(), strict=True))


def rivals(law: Law, points: Points, delta: float) -> list[dict[str, Any]]:
    """Every law of the same variables by its root mean square error on the next size up, best first.

    All over the same expanding windows; a law that needs more sizes than there are is left out.
    """
    others = [o for o in LAWS.values() if o.variables == law.variables and points.configs() > len(o.params) + 1]
    hungriest = max((len(other.params) for other in others), default=0)
    enough = [k for k in range(1, points.sizes) if points.configs(points.size < k) > hungriest]
    errors = {other.name: window_errors(other, points, delta, spaced(enough)) for other in others if enough}
    rows = [
        {"law": name, "held_out_rms_percent": float(np.sqrt(np.mean([w["error_percent"] ** 2 for w in windows])))}
        for name, windows in errors.items()
        if windows
    ]
    return sorted(rows, key=lambda row: row["held_out_rms_percent"])


def under_conventions(frame: pd.DataFrame, law: Law, delta: float) -> list[dict[str, Any]]:
    """The law's parameters under each convention of N and FLOPs whose columns the frame has, one row each."""
    rows = []
    for name, columns in CONVENTIONS.items():
        if all(columns[v] in frame.columns for v in law.variables if v in columns):
            points = read_points(frame, law, columns)
            solution, _ = solve(points.problem(law, delta))
            used = {variable: column for variable, column in columns.items() if variable in law.variables}
            rows.append({"convention": name, **used, **_named(law, solution.theta[0])})
    return rows


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


def warnings_of(
    law: Law,
    points: Points,
    *,
    estimates: Mapping[str, Estimate],
    certificate: Certificate,
    noise: Noise,
    held_out: HeldOut | None,
    without: list[dict[str, Any]],
) -> list[str]:
    """What a reader should know before using the numbers, in plain words."""
    return [
        *_about_data(law, points, noise),
        *_about_floor(law, estimates),
        *_about_held_out(held_out),
        *_about_search(law, certificate),
        *_about_influence(law, without, estimates),
    ]


def untuned_note(frame: pd.DataFrame) -> list[str]:
    """A word when runs of all sizes share one learning rate, and nothing shows that it suits them alike."""
    if not {"lr", COLUMNS["n"]} <= set(frame.columns) or frame["lr"].nunique() != 1:
        return []
    n = np.log(frame[COLUMNS["n"]].to_numpy(float))
    if np.ptp(n) < LEAST_SPREAD or "mup" in set(frame.get("parametrization", [])):
        return []
    return [
        f"one learning rate, {frame['lr'].iloc[0]:g}, for all sizes, though the best one moves with size: the exponent "
        "may be off; tune it (sweeps/lr.yaml, then train.lr: auto) or train with parametrization: mup"
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


def rival_note(law: Law, ranked: list[dict[str, Any]]) -> list[str]:
    """A word when another law of the same variables predicted held-out sizes clearly better."""
    errors = {row["law"]: row["held_out_rms_percent"] for row in ranked}
    best = next(iter(errors), law.name)
    if law.name not in errors or best == law.name or errors[best] > 0.7 * errors[law.name]:
        return []
    return [
        f"{find_law(best).formula} predicted held-out sizes better: {errors[best]:.2g} % against "
        f"{errors[law.name]:.2g} %; try --law {best}"
    ]
