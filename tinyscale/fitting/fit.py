"""`fit_law`: a frame of runs and a law in, a frozen `Fit` out, or a refusal in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pandas as pd

from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Array
from tinyscale.fitting.curve import ENDS, Curve
from tinyscale.fitting.diagnostics import gather_evidence, residual_table
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.floors import floor_table
from tinyscale.fitting.forecast import Forecast
from tinyscale.fitting.frontier import exponents
from tinyscale.fitting.holdout import HeldOut
from tinyscale.fitting.laws import Law, find_law
from tinyscale.fitting.points import Points, describe_slice, read_points
from tinyscale.fitting.record import Origin, Record
from tinyscale.fitting.solve import Certificate, Problem, solve
from tinyscale.fitting.support import refuse_unsupported
from tinyscale.fitting.text import as_html, verdict
from tinyscale.fitting.uncertainty import (
    Noise,
    cluster_draws,
    estimate_noise,
    of_clusters,
    parametric_draws,
    profile,
    wild_draws,
)
from tinyscale.formatting import nearest

DELTA = 1e-3  # Hoffmann et al. 2022, appendix D.2
FEW_CLUSTERS = 50  # below, a bootstrap covers too much, and least squares has a likelihood to profile
DRAWS = 1000
ABOVE = 0.1  # what a run above the law counts for in a one-sided fit: OLMo-core's penalty of 10, the other way round
MOST_RUNS = 20_000  # that are fitted: more take minutes, and say little that so many do not
TOO_MANY = f"beyond the {MOST_RUNS:,} that are fitted, chosen at random"

Method = Literal["auto", "profile", "bootstrap", "wild"]


@dataclass(frozen=True)
class Fit:
    """A law with numbers, intervals and a certificate. It can only exist fitted.

    estimates: of its parameters, in the law's own units; delta: of Huber's function (inf: least squares on log loss);
    objective: its sum over the points; method, intervals: how intervals were made, in a word and in a sentence;
    forecast: what the laws say together of new runs (None where nothing is held out: then the law's own curve);
    influence: the parameters with one size left out at a time; alternatives: laws of the same variables by their error
    on inner windows; derived: of laws with a frontier, the exponents a, b of N* ~ C^a and D* ~ C^b; conventions: the
    parameters under each way of counting, where asked for; origin: which runs these are; above: what a run above the
    law counted for against one below it.
    """

    law: Law
    curve: Curve
    estimates: Mapping[str, Estimate]
    delta: float
    objective: float
    certificate: Certificate
    noise: Noise
    method: str
    intervals: str
    held_out: HeldOut | None
    influence: tuple[Mapping[str, Any], ...]
    alternatives: tuple[Mapping[str, Any], ...]
    slice: str
    warnings: tuple[str, ...]
    points: Points
    derived: Mapping[str, Estimate]
    conventions: tuple[Mapping[str, Any], ...] = ()
    origin: Origin = field(default_factory=Origin)
    forecast: Forecast | None = None
    above: float = 1.0

    @property
    def params(self) -> Mapping[str, float]:
        """Name -> value of each parameter."""
        return self.curve.params

    def __repr__(self) -> str:
        return f"Fit({self.law.name}: {verdict(self.record)})"

    def _repr_html_(self) -> str:
        return as_html(self.record)

    def interval(self, name: str) -> tuple[float, float]:
        """95 % interval of a parameter, or of what is derived. KeyError for another name."""
        return (self.derived if name in self.derived else self.estimates)[name].ends

    def predict(self, *, noise: bool = True, **variables: Any) -> pd.DataFrame:
        """Loss at new sizes, one row each, with 95 % ends: `fit.predict(n=[1e7, 1e8])`.

        It is the forecast of a new run, by all laws of the same variables unless this one was asked for; noise=False:
        the law's own curve, the ends for it alone. FitError when a variable is missing.
        """
        if noise and self.forecast is not None:
            return self.forecast.predict(**variables)
        return self.curve.predict(noise=noise, **variables)

    def floors(self, **variables: Any) -> pd.DataFrame:
        """Loss at one new size with the law's floor held at values across its interval, and the likelihood of each.

        likelihood: over that of the best floor. FitError for a law without a floor, or that holds it.
        """
        problem = self.points.problem(self.law, self.delta, self.above)
        return floor_table(problem, self.curve, self.estimates, **variables)

    @property
    def runs(self) -> pd.DataFrame:
        """The fitted points, one row each, columns named as the law's variables and `loss`."""
        return self.points.frame

    @property
    def refits(self) -> pd.DataFrame:
        """The parameters of each refit, one row each."""
        return pd.DataFrame(self.curve.draws, columns=list(self.law.params))

    @cached_property
    def record(self) -> Record:
        """What is written of the fit, and shown."""
        x = np.exp(self.points.x)
        return Record(
            origin=self.origin,
            form=self.law,
            formula=self.law.formula,
            slice=self.slice,
            estimates=self.estimates,
            derived=self.derived,
            method=self.method,
            intervals=self.intervals,
            objective={
                "value": self.objective,
                "kind": "least squares on log loss" if np.isinf(self.delta) else "Huber on log loss",
                "delta": None if np.isinf(self.delta) else self.delta,
                **({"held": dict(self.law.held)} if self.law.held else {}),
                **({"prior": {name: list(each) for name, each in self.law.prior.items()}} if self.law.prior else {}),
                **({"above": self.above} if self.above != 1 else {}),
            },
            held_out=self.held_out,
            forecast=tuple(self.forecast.as_json()) if self.forecast else (),
            warnings=self.warnings,
            columns=self.points.counts,
            points=len(self.points),
            certificate=self.certificate,
            noise=self.noise,
            alternatives=self.alternatives,
            influence=self.influence,
            range={n: (float(row.min()), float(row.max())) for n, row in zip(self.law.variables, x, strict=True)},
            sizes=self.points.sizes,
            conventions=self.conventions,
        )

    def table(self) -> pd.DataFrame:
        """One row a point, columns as they were read, with the loss `predicted` by the law and the log `residual`."""
        frame = self.points.frame
        predicted = self.law.loss(self.params, **{name: frame[name].to_numpy() for name in self.law.variables})
        named = {name: column for name, column in self.points.counts.items() if column != name}
        return frame.rename(columns=named).assign(predicted=predicted, residual=np.log(frame["loss"] / predicted))

    def tables(self) -> dict[str, pd.DataFrame]:
        """What tables/ holds of the fit, by what follows its name: its points; mean residuals by size.

        Sizes are those of each variable and, for a law of N and D, of C = 6 N D.
        """
        frame, variables, points = self.points.frame, self.law.variables, self.table()
        if {"n", "d"} <= set(variables):
            frame, variables = frame.assign(c=6.0 * frame["n"] * frame["d"]), (*variables, "c")
        return {"": points, "-residuals": residual_table(frame, variables, points["residual"].to_numpy())}


def fit_law(
    frame: pd.DataFrame,
    law: str | Law,
    *,
    columns: Mapping[str, str] | None = None,
    delta: float | None = None,
    intervals: Method = "auto",
    draws: int = DRAWS,
    holdout: int = 1,
    seed: int = 0,
    clustered: bool = False,
    average: bool = False,
    hold: Mapping[str, float] | None = None,
    prior: Mapping[str, tuple[float, float]] | None = None,
    one_sided: bool = False,
) -> Fit:
    """Fit `law` to the rows of `frame`, one row per run: its final point.

    columns: the law's variables, `loss` and `weight` -> the frame's columns, where they differ from the results' own.
    delta: of Huber's function; None: inf (least squares on log loss) below 50 clusters of runs, else 1e-3.
    intervals: auto is profile below 50 clusters, else bootstrap; wild and profile are for least squares.
    holdout: how many of the largest sizes to hold out for the error (1, of joint laws: the top fifth of compute); 0:
    none, and no alternative laws or forecast.
    average: forecast by all laws of the same variables, not by this one alone.
    hold: parameter -> the value that it has; prior: parameter -> mean and sd of a normal prior (of a coefficient,
    log-normal). With either, this law forecasts alone.
    one_sided: runs above the law count a tenth, as mis-tuned runs are never too good.
    clustered: whether points that share a `run` are dependent in profiles too, as they are in a bootstrap.
    Of more than MOST_RUNS rows so many are fitted, chosen at random, and the others counted. FitError when the points
    cannot support the law.
    """
    law = _holding(find_law(law) if isinstance(law, str) else law, hold or {}, prior or {})
    points, beyond = read_points(frame, law, columns).at_most(MOST_RUNS)
    refuse_unsupported(law, points)
    clusters = int(points.cluster.max()) + 1
    delta, method = _choose_method(delta, intervals, clusters)
    above = ABOVE if one_sided else 1.0
    if prior:
        law = _with_prior(law, points.problem(law, delta, above), prior)
    problem = points.problem(law, delta, above)
    solution, certificate = solve(problem)
    theta = solution.theta[0]
    residual = law.log_loss(theta[None], points.x)[0][0] - points.y
    free = int(law.free.sum())
    noise = estimate_noise(points, residual, free)
    noise = of_clusters(noise, points, residual, free) if clustered else noise
    drawn, low, high = _intervals(method, problem, points, theta, noise, draws=draws, seed=seed)
    natural = zip(*(_natural(law, each) for each in (theta, low, high)), strict=True)
    estimates = {name: Estimate(*each) for name, each in zip(law.params, natural, strict=True)}
    params = MappingProxyType({name: each.value for name, each in estimates.items()})
    evidence = gather_evidence(
        points,
        problem,
        theta,
        estimates=estimates,
        certificate=certificate,
        noise=noise,
        holdout=holdout,
        average=average and not (hold or prior),
    )
    profiled = problem if method == "profile" else None
    curve = Curve(law, params, law.to_params(drawn), noise.sd, noise.dof, profiled)
    return Fit(
        law=law,
        curve=curve,
        estimates=MappingProxyType(estimates),
        delta=delta,
        objective=float(solution.objective[0]),
        certificate=certificate,
        noise=noise,
        method=method,
        intervals=_describe(method, noise, clusters, len(drawn), draws),
        held_out=evidence.held_out,
        influence=evidence.influence,
        alternatives=evidence.alternatives,
        slice=describe_slice(frame, law, columns),
        warnings=evidence.warnings,
        points=points,
        derived=MappingProxyType(exponents(curve) if law.has_frontier else {}),
        forecast=evidence.forecast,
        above=above,
        origin=Origin(dropped={TOO_MANY: beyond} if beyond else {}),
    )


def _holding(law: Law, hold: Mapping[str, float], prior: Mapping[str, tuple[float, float]]) -> Law:
    """The law with parameters held. FitError for one that it has not, a value that it cannot have, or none left."""
    for name in (*hold, *prior):
        if name not in law.params:
            raise FitError(f"{law.formula} has no {name}{nearest(name, law.params)}; it has {', '.join(law.params)}")
    for name, value in (*hold.items(), *((name, mean) for name, (mean, _) in prior.items())):
        low, high = law.bounds[law.params.index(name)]
        if not low <= value <= high:
            raise FitError(f"{name} = {value:g} lies outside {low:g} to {high:g}, where {law.formula} has it")
    if any(not sd > 0 for _, sd in prior.values()) or set(hold) & set(prior):
        raise FitError("a prior is a mean and an sd above zero, of a parameter that is not held: alpha=0.35+-0.05")
    if set(hold) == set(law.params):
        raise FitError(f"all parameters of {law.formula} are held, so there is nothing to fit; leave one out")
    return replace(law, held=MappingProxyType({**law.held, **hold}))


def _with_prior(law: Law, problem: Problem, prior: Mapping[str, tuple[float, float]]) -> Law:
    """The law with its prior weighed against the noise that the points have about the law without it."""
    theta = solve(problem)[0].theta[0]
    residual = law.log_loss(theta[None], problem.x)[0][0] - problem.y
    variance = float((residual**2).sum()) / max(len(residual) - int(law.free.sum()), 1)
    drawn = {}
    for name, (mean, sd) in prior.items():
        logged = law.logged[law.params.index(name)]
        drawn[name] = (np.log(mean), variance / (sd / mean) ** 2) if logged else (mean, variance / sd**2)
    return replace(law, prior=MappingProxyType(drawn))


def _choose_method(delta: float | None, intervals: Method, clusters: int) -> tuple[float, Method]:
    """Huber's delta, and how intervals are made, where these are left to what the points allow."""
    few = clusters < FEW_CLUSTERS
    if delta is None:
        delta = np.inf if few or intervals in ("profile", "wild") else DELTA
    if intervals == "auto":
        intervals = "profile" if few and np.isinf(delta) else "bootstrap"
    return delta, intervals


def _intervals(
    method: Method, problem: Problem, points: Points, theta: Array, noise: Noise, *, draws: int, seed: int
) -> tuple[Array, Array, Array]:
    """Refits (K, P) and 95 % ends (P,), (P,), all in solver coordinates."""
    if method in ("profile", "wild") and not np.isinf(problem.delta):
        raise FitError(f"{method} intervals are for least squares on log loss: leave delta out, or take bootstrap")
    if method == "profile":
        return parametric_draws(problem, theta, noise, draws, seed=seed), *profile(problem, theta, noise)
    resample = wild_draws if method == "wild" else cluster_draws
    drawn = resample(problem, points.cluster, theta, draws, seed=seed)
    if len(drawn) < 0.9 * draws:
        raise FitError(
            f"{problem.law.formula}: {draws - len(drawn)} of {draws} refits did not converge, so there are no "
            "intervals; fit a law with fewer parameters, or add sizes"
        )
    low, high = np.percentile(drawn, ENDS, axis=0)
    return drawn, low, high


def _describe(method: Method, noise: Noise, clusters: int, kept: int, draws: int) -> str:
    if method == "profile":
        return f"profile of least squares on log loss, t with {noise.dof} degrees of freedom"
    lost = f" ({draws - kept} did not converge and are left out)" if kept < draws else ""
    kind = "wild bootstrap" if method == "wild" else "bootstrap"
    return f"{kind} over {clusters} clusters of runs, {draws} draws{lost}"


def _natural(law: Law, theta: Array) -> list[float]:
    """Solver coordinates (P,) in the law's own units; an open end of a logarithm is 0 or infinite."""
    with np.errstate(over="ignore"):
        return [float(v) for v in law.to_params(theta)]
