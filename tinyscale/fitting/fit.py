"""`fit_law`: a frame of runs and a law in, a frozen `Fit` out, or a refusal in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from tinyscale.errors import FitError
from tinyscale.fitting.forms import Array
from tinyscale.fitting.holdout import HeldOut, hold_out
from tinyscale.fitting.laws import Law, find_law
from tinyscale.fitting.points import Points, count, describe_slice, read_points
from tinyscale.fitting.solve import Certificate, solve
from tinyscale.fitting.uncertainty import Noise, cluster_draws, estimate_noise, parametric_draws, profile

DELTA = 1e-3  # Hoffmann et al. 2022, appendix D.2
FEW_CLUSTERS = (
    30  # below this a bootstrap holds too few different clusters, and least squares has a likelihood to profile
)
DRAWS = 1000


@dataclass(frozen=True)
class Fit:
    """A law with numbers, intervals and a certificate. It can only exist fitted.

    params and intervals: in the law's own units, an infinite end where the data set none; draws (K, P): refits, same
    units; delta: of Huber's function (inf: least squares on log loss); objective: its sum over the points.
    """

    law: Law
    params: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    draws: Array
    delta: float
    objective: float
    certificate: Certificate
    noise: Noise
    method: str
    held_out: HeldOut | None
    slice: str
    warnings: tuple[str, ...]
    points: Points
    labels: Mapping[str, Any]

    def interval(self, name: str) -> tuple[float, float]:
        """95 % interval of a parameter. KeyError for a name that the law has not."""
        return self.intervals[name]

    def predict(self, *, noise: bool = True, **variables: Any) -> pd.DataFrame:
        """Loss at new sizes, one row each, with 95 % ends: `fit.predict(n=[1e7, 1e8])`.

        noise: the ends hold a new run's loss; False: they hold the law's own curve.
        """
        missing = set(self.law.variables) - set(variables)
        if missing:
            raise FitError(f"{self.law.formula} needs {', '.join(sorted(missing))} to predict")
        columns = np.broadcast_arrays(*(np.atleast_1d(np.asarray(variables[v], float)) for v in self.law.variables))
        x = np.log(np.stack(columns))
        drawn, _ = self.law.log_loss(self.law.to_solver(self.draws), x)
        if noise:
            # The same noise at every call and size, so that a curve of intervals is smooth.
            deviate = np.random.default_rng(0).standard_t(self.noise.dof, size=len(drawn))
            drawn = drawn + self.noise.sd * deviate[:, None]
        low, high = np.exp(np.percentile(drawn, [2.5, 97.5], axis=0))
        named = dict(zip(self.law.variables, columns, strict=True))
        return pd.DataFrame({**named, "loss": self.law.loss(self.params, **named), "low": low, "high": high})

    def as_json(self) -> dict[str, Any]:
        """Plain values for fits.json; an end that the data do not set is null."""
        ends = {name: [end if np.isfinite(end) else None for end in pair] for name, pair in self.intervals.items()}
        return {
            **self.labels,
            "law": self.law.name,
            "formula": self.law.formula,
            "params": {n: {"value": v, "low": ends[n][0], "high": ends[n][1]} for n, v in self.params.items()},
            "intervals": self.method,
            "objective": {
                "value": self.objective,
                "kind": "least squares on log loss" if np.isinf(self.delta) else "Huber on log loss",
                "delta": None if np.isinf(self.delta) else self.delta,
            },
            "certificate": asdict(self.certificate),
            "noise": asdict(self.noise),
            "held_out": asdict(self.held_out) if self.held_out else None,
            "slice": self.slice,
            "warnings": list(self.warnings),
            "columns": dict(self.points.counts),
            "points": len(self.points),
            "sizes": self.points.sizes,
        }


def fit_law(
    frame: pd.DataFrame,
    law: str | Law,
    *,
    columns: Mapping[str, str] | None = None,
    delta: float | None = None,
    draws: int = DRAWS,
    holdout: int = 1,
    seed: int = 0,
) -> Fit:
    """Fit `law` to the rows of `frame`, one row a run's final point.

    columns: the law's variables and `loss` -> the frame's columns, where they differ from the results' own.
    delta: of Huber's function; None: inf (least squares on log loss) below 30 clusters of runs, else 1e-3.
    holdout: how many of the largest sizes to hold out for the error. FitError when the points cannot support the law.
    """
    law = find_law(law) if isinstance(law, str) else law
    points = read_points(frame, law, columns)
    refuse_unsupported(law, points)
    clusters = int(points.cluster.max()) + 1
    few = clusters < FEW_CLUSTERS
    delta = (np.inf if few else DELTA) if delta is None else delta
    problem = points.problem(law, delta)
    solution, certificate = solve(problem)
    theta = solution.theta[0]
    noise = estimate_noise(points, law.log_loss(theta[None], points.x)[0][0] - points.y, len(theta))
    if few and np.isinf(delta):
        method = f"profile of least squares on log loss, t with {noise.dof} degrees of freedom"
        low, high = profile(problem, theta, noise)
        drawn = parametric_draws(problem, theta, noise, draws, seed=seed)
    else:
        method = f"bootstrap of {clusters} clusters of runs, {draws} draws"
        drawn = cluster_draws(problem, points.cluster, theta, draws, seed=seed)
        low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    ends = zip(*(_natural(law, end) for end in (low, high)), strict=True)
    found = Fit(
        law=law,
        params=MappingProxyType(dict(zip(law.params, law.to_params(theta).tolist(), strict=True))),
        intervals=MappingProxyType(dict(zip(law.params, ends, strict=True))),
        draws=law.to_params(drawn),
        delta=delta,
        objective=float(solution.objective[0]),
        certificate=certificate,
        noise=noise,
        method=method,
        held_out=hold_out(law, points, delta, holdout),
        slice=describe_slice(frame, law, columns),
        warnings=(),
        points=points,
        labels=MappingProxyType({}),
    )
    lost = draws - len(drawn)
    return replace(found, warnings=tuple(warnings_of(found, lost)))


def _natural(law: Law, end: Array) -> list[float]:
    """An end of an interval in the law's own units; an open end of a logarithm is 0 or infinite."""
    with np.errstate(over="ignore"):
        return [float(v) for v in law.to_params(np.where(np.isnan(end), np.inf, end))]


def refuse_unsupported(law: Law, points: Points) -> None:
    """FitError when no number could be trusted: too few sizes, no spread, or a loss that does not fall."""
    needed = max(4, len(law.params) + (1 if len(law.variables) > 1 else 0))
    for row, name in zip(points.x, law.variables, strict=True):
        if np.ptp(row) < np.log(1.5):
            value = count(float(np.exp(row.mean())))
            raise FitError(
                f"{law.formula} needs {name} to vary: here it stays at {value}; sweep it, or fit another law"
            )
    if points.sizes < needed:
        raise FitError(
            f"{law.formula} needs at least {needed} different sizes and there are {points.sizes}; "
            "add sizes, or take --law with fewer parameters"
        )
    means = pd.Series(points.y).groupby(points.size).mean()
    if len(law.variables) == 1 and means.iloc[-1] >= means.iloc[0]:
        raise FitError(
            f"{law.formula} needs a loss that falls: it goes from {np.exp(means.iloc[0]):.4g} at the smallest size to "
            f"{np.exp(means.iloc[-1]):.4g} at the largest; look at the learning rate and budget of the large runs"
        )


def warnings_of(found: Fit, lost: int) -> list[str]:
    """What a reader should know before using the numbers, in plain words."""
    notes = []
    for row, name in zip(found.points.x, found.law.variables, strict=True):
        if np.ptp(row) < np.log(10) * 0.999:
            notes.append(
                f"{name} spans a factor of {np.exp(np.ptp(row)):.2g}, under a decade: exponents rest on little"
            )
    if "E" in found.params and found.intervals["E"][0] <= 0:
        notes.append(
            "the floor E is not identified: zero is inside its interval, so loss far beyond the data is a guess"
        )
    if found.noise.lack_of_fit is not None and found.noise.lack_of_fit < 0.05:
        notes.append(
            f"lack of fit (p = {found.noise.lack_of_fit:.2g}): sizes scatter about the law more than their seeds do; "
            "a size may be badly tuned or the law wrong, and the intervals are widened for it"
        )
    if found.held_out and abs(found.held_out.error_percent) >= abs(found.held_out.carry_forward_percent):
        notes.append("on the held-out size the law did no better than carrying the last loss forward")
    if not found.held_out:
        notes.append("no size could be held out: nothing shows that the law predicts")
    if found.certificate.share_of_starts < 0.1:
        notes.append(f"only {found.certificate.share_of_starts:.0%} of the starts reached the optimum")
    if found.certificate.condition_number > 1e8:
        notes.append("parameters trade off against each other (condition number above 1e8): read them together")
    at_bound = [name for name in found.certificate.at_bound if name != "E"]
    if at_bound:
        notes.append(f"{', '.join(at_bound)} stopped at a bound of the search")
    if lost > 0.02 * (lost + len(found.draws)):
        notes.append(f"{lost} of {lost + len(found.draws)} refits did not converge and are left out of the intervals")
    return notes
