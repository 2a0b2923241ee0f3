"""`fit_law`: a frame of runs and a law in, a frozen `Fit` out, or a refusal in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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

DELTA = 1e-3  # Hoffmann et al. 2022, appendix D.2
FEW_CLUSTERS = 50  # below, a bootstrap covers too much, and least squares has a likelihood to profile
DRAWS = 1000
LEAST_DRAWS, MOST_REFITTED = 200, 20_000_000  # above 20,000 points fewer refits, as the points they refit are many

Method = Literal["auto", "profile", "bootstrap", "wild"]


@dataclass(frozen=True)
class Fit:
    """A law with numbers, intervals and a certificate. It can only exist fitted.

    estimates: of its parameters, in the law's own units; delta: of Huber's function (inf: least squares on log loss);
    objective: its sum over the points; method, intervals: how intervals were made, in a word and in a sentence;
    influence: the parameters with one size left out at a time; alternatives: laws of the same variables by held-out
    error; derived: of laws with a frontier, the exponents a, b of N* ~ C^a and D* ~ C^b; conventions: the parameters
    under each way of counting, where asked for; origin: which runs these are.
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

        noise: the ends hold a new run's loss; False: the law's own curve. FitError when a variable is missing.
        """
        return self.curve.predict(noise=noise, **variables)

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
            },
            held_out=self.held_out,
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
) -> Fit:
    """Fit `law` to the rows of `frame`, one row per run: its final point.

    columns: the law's variables, `loss` and `weight` -> the frame's columns, where they differ from the results' own.
    delta: of Huber's function; None: inf (least squares on log loss) below 50 clusters of runs, else 1e-3.
    intervals: auto is profile below 50 clusters, else bootstrap; wild and profile are for least squares.
    holdout: how many of the largest sizes to hold out for the error; 0: none, and no alternative laws.
    clustered: whether points that share a `run` are dependent in profiles too, as they are in a bootstrap.
    FitError when the points cannot support the law.
    """
    law = find_law(law) if isinstance(law, str) else law
    points = read_points(frame, law, columns)
    refuse_unsupported(law, points)
    clusters = int(points.cluster.max()) + 1
    delta, method = _choose_method(delta, intervals, clusters)
    problem = points.problem(law, delta)
    draws = min(draws, max(LEAST_DRAWS, MOST_REFITTED // len(points)))
    solution, certificate = solve(problem)
    theta = solution.theta[0]
    residual = law.log_loss(theta[None], points.x)[0][0] - points.y
    noise = estimate_noise(points, residual, len(theta))
    noise = of_clusters(noise, points, residual, len(theta)) if clustered else noise
    drawn, low, high = _intervals(method, problem, points, theta, noise, draws=draws, seed=seed)
    natural = zip(*(_natural(law, each) for each in (theta, low, high)), strict=True)
    estimates = {name: Estimate(*each) for name, each in zip(law.params, natural, strict=True)}
    params = MappingProxyType({name: each.value for name, each in estimates.items()})
    evidence = gather_evidence(
        points, problem, theta, estimates=estimates, certificate=certificate, noise=noise, holdout=holdout
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
    )


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
