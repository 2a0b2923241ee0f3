"""One law for two arms: shared floor and exponents, and how much further the second arm's parameters and data go.

Separate fits of few sizes are ill-conditioned; with shared exponents the difference is one number an axis (2602.07712).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Array, Pair
from tinyscale.fitting.curve import ENDS
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.laws import COEFFICIENT, EXPONENT, FLOOR, Law
from tinyscale.fitting.laws.power_sum import ONE_TERM, TWO_TERMS, guess_power_sum
from tinyscale.fitting.points import Points, group_sizes
from tinyscale.fitting.solve import solve
from tinyscale.fitting.uncertainty import estimate_noise, parametric_draws, profile

MATCH = ("n_non_embedding", "tokens")  # what a size is
DRAWS = 400


def efficiency_of(base: pd.DataFrame, arm: pd.DataFrame, column: str) -> tuple[dict[str, Estimate], str]:
    """rho_N and rho_D of an arm under a law shared with the base, and `compute`, their worth; or the reason for none.

    L = E + A (rho_N N)^-alpha + B (rho_D D)^-beta, rho = 1 for the base, so the arm at C FLOPs equals the base at
    rho_N rho_D C. With D fixed or tied to N, one rho on N. Below 3 sizes an offset and a rho are the same.
    """
    frame = pd.concat([base.assign(arm=0), arm.assign(arm=1)], ignore_index=True)
    n, d = (np.log(frame[name].to_numpy(float)) for name in MATCH)
    sizes = group_sizes(n)
    spread = max(np.ptp(d[sizes == index]) for index in range(sizes.max() + 1))
    joint = bool(spread > np.log(1.5)) and sizes.max() >= 2
    if sizes.max() < 2:
        return {}, "fewer than 3 sizes: a constant offset and an efficiency cannot be told apart"
    law = _shared(joint=joint)
    x = np.stack([n, d, frame["arm"].to_numpy(float)] if joint else [n, frame["arm"].to_numpy(float)])
    y = np.log(frame[column].to_numpy(float))
    points = Points(frame.assign(loss=np.exp(y)), x, y, sizes, np.arange(len(y)), {})
    problem = points.problem(law, np.inf)
    try:
        solution, _ = solve(problem)
    except FitError as error:
        return {}, str(error)
    theta = solution.theta[0]
    noise = estimate_noise(points, law.log_loss(theta[None], x)[0][0] - y, len(theta))
    low, high = profile(problem, theta, noise)
    with np.errstate(over="ignore"):
        ends = np.exp(np.stack([theta, low, high], axis=1))
    found = {
        name: Estimate(*row.tolist()) for name, row in zip(law.params, ends, strict=True) if name.startswith("rho")
    }
    if joint:
        drawn = np.exp(parametric_draws(problem, theta, noise, DRAWS, seed=0)[:, -2:].sum(axis=1))
        found["compute"] = Estimate(float(np.exp(theta[-2:].sum())), *np.percentile(drawn, ENDS).tolist())
    else:
        # Along a ratio D/N the compute goes with N squared, at fixed tokens with N.
        power = 2 if np.ptp(d - n) < 0.05 else 1
        found["compute"] = found["rho_N"].map(lambda rho: rho**power)
    return found, ""


def _shared(*, joint: bool) -> Law:
    """The law of two arms: x holds log N, (log D,) and 1 for rows of the second arm."""
    names = ("E", "A", "B", "alpha", "beta", "rho_N", "rho_D") if joint else ("E", "A", "alpha", "rho_N")
    bounds = {"E": FLOOR, "A": COEFFICIENT, "B": COEFFICIENT, "alpha": EXPONENT, "beta": EXPONENT}
    terms = TWO_TERMS if joint else ONE_TERM
    rhos = len(terms)

    def log_loss(theta: Array, x: Array) -> Pair:
        second, plain = x[-1], theta[:, : len(names) - rhos]
        total = theta[:, :1] + np.zeros(x.shape[1])
        jacobian = np.zeros((len(theta), len(names), x.shape[1]))
        jacobian[:, 0] = 1.0
        for k, (coefficient, (exponent, variable)) in enumerate(terms):
            size = x[variable] + theta[:, len(names) - rhos + k, None] * second
            term = np.exp(plain[:, coefficient, None] - plain[:, exponent, None] * size)
            total = total + term
            jacobian[:, coefficient] = term
            jacobian[:, exponent] = -term * size
            jacobian[:, len(names) - rhos + k] = -plain[:, exponent, None] * term * second
        return np.log(total), jacobian / total[:, None]

    def guess(x: Array, loss: Array) -> Array:
        starts = guess_power_sum(x[:-1], loss, terms=terms, grid=6 if joint else 16)
        return np.column_stack([starts, np.zeros((len(starts), rhos))])

    return Law(
        name="shared",
        formula="L = E + A (rho_N N)^-alpha" + (" + B (rho_D D)^-beta" if joint else ""),
        variables=("n", "d", "arm") if joint else ("n", "arm"),
        params=names,
        bounds=tuple(bounds.get(name, COEFFICIENT) for name in names),
        log_loss=log_loss,
        guess=guess,
    )
