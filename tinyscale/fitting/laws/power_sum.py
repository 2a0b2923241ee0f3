"""Laws that are sums of powers, with or without a floor: of one variable, and of two (Chinchilla's).

Starting points by variable projection: a grid over the exponents, the coefficients by least squares at each. Golub and
Pereyra 1973; for scaling laws 2603.22339. Errors are relative, to stand in for residuals of log loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import combinations

import numpy as np

from tinyscale.fitting.arrays import Array, Pair
from tinyscale.fitting.laws.base import COEFFICIENT, EXPONENT, FLOOR, VARIABLES, Law
from tinyscale.formatting import scientific

Term = tuple[int, tuple[int, int]]  # positions of: a coefficient in theta, its exponent in theta, its variable in x

ONE_TERM: tuple[Term, ...] = ((1, (2, 0)),)
ONE_TERM_ALONE: tuple[Term, ...] = ((0, (1, 0)),)
TWO_TERMS: tuple[Term, ...] = ((1, (3, 0)), (2, (4, 1)))
TIED_TERMS: tuple[Term, ...] = ((1, (3, 0)), (2, (3, 1)))

JOINT_PARAMS = ("E", "A", "B", "alpha", "beta")
JOINT_BOUNDS = (FLOOR, COEFFICIENT, COEFFICIENT, EXPONENT, EXPONENT)


def power_sum(theta: Array, x: Array, *, terms: tuple[Term, ...], floor: int | None = 0) -> Pair:
    """log(E + sum_t A_t x_t^-a_t), with E, log A_t and a_t at the given positions of theta."""
    jacobian = np.zeros((*theta.shape, x.shape[1]))
    total = (
        np.zeros((len(theta), x.shape[1])) if floor is None else np.repeat(theta[:, floor, None], x.shape[1], axis=1)
    )
    for coefficient, (exponent, variable) in terms:
        term = np.exp(theta[:, coefficient, None] - theta[:, exponent, None] * x[variable])
        total += term
        jacobian[:, coefficient] = term
        jacobian[:, exponent] -= term * x[variable]
    if floor is not None:
        jacobian[:, floor] = 1.0
    jacobian /= total[:, None]
    return np.log(total), jacobian


def guess_power_sum(x: Array, loss: Array, *, terms: tuple[Term, ...], floor: int | None = 0, grid: int) -> Array:
    """Starts (B, P) for `power_sum` with these terms: `grid` values of each exponent between 0.03 and 1.5."""
    exponents = sorted({exponent for _, (exponent, _) in terms})
    axes = np.meshgrid(*[np.geomspace(0.03, 1.5, grid)] * len(exponents), indexing="ij")
    size = 1 + max([floor or 0, *exponents, *(coefficient for coefficient, _ in terms)])
    theta = np.zeros((axes[0].size, size))
    theta[:, exponents] = np.stack([axis.ravel() for axis in axes], axis=1)
    centre = x.mean(axis=1)  # columns in units of the middle size, or N^-1.5 would underflow the normal equations
    columns = [np.exp(-theta[:, a, None] * (x[v] - centre[v])) for _, (a, v) in terms]
    if floor is not None:
        columns.append(np.ones_like(columns[0]))
    found = np.maximum(_nonnegative(np.stack(columns, axis=1) / loss), 1e-6 * loss.min())
    for position, (coefficient, (a, v)) in enumerate(terms):
        theta[:, coefficient] = np.log(found[:, position]) + theta[:, a] * centre[v]
    if floor is not None:
        theta[:, floor] = found[:, -1]
    return theta


def _nonnegative(columns: Array) -> Array:
    """Non-negative least squares of 1 on `columns` (G, m, n), exactly, by trying every subset of the m <= 3 columns."""
    gram, target = columns @ columns.swapaxes(1, 2), columns.sum(axis=2)
    best, fitted = np.zeros(target.shape), np.zeros(len(target))
    width = target.shape[1]
    for subset in (list(s) for size in range(1, width + 1) for s in combinations(range(width), size)):
        system = gram[:, subset][:, :, subset]
        ridge = 1e-12 * np.trace(system, axis1=1, axis2=2)[:, None, None] * np.eye(len(subset))
        solved = np.linalg.solve(system + ridge, target[:, subset, None])[..., 0]
        explained = (solved * target[:, subset]).sum(axis=1)
        better = (solved >= 0).all(axis=1) & (explained > fitted)
        fitted = np.where(better, explained, fitted)
        candidate = np.zeros_like(best)
        candidate[:, subset] = solved
        best = np.where(better[:, None], candidate, best)
    return best


def power_floor(variable: str) -> Law:
    """L(x) = E + A x^-alpha. Henighan et al. 2020 (2010.14701), eq. 1.1; of context: Xiong et al. 2023 (2309.16039)."""
    symbol = VARIABLES[variable][0]
    return Law(
        name=f"power-{variable}",
        formula=f"L({symbol}) = E + A {symbol}^-alpha",
        variables=(variable,),
        params=("E", "A", "alpha"),
        bounds=(FLOOR, COEFFICIENT, EXPONENT),
        log_loss=partial(power_sum, terms=ONE_TERM),
        guess=partial(guess_power_sum, terms=ONE_TERM, grid=24),
        exponents=("alpha",),
        irreducible="E",
        latex=partial(_latex_of_one, symbol),
    )


def power(variable: str) -> Law:
    """L(x) = A x^-alpha: no floor. Kaplan et al. 2020 (2001.08361), section 1.2."""
    symbol = VARIABLES[variable][0]
    return Law(
        name=f"power-{variable}-no-floor",
        formula=f"L({symbol}) = A {symbol}^-alpha",
        variables=(variable,),
        params=("A", "alpha"),
        bounds=(COEFFICIENT, EXPONENT),
        log_loss=partial(power_sum, terms=ONE_TERM_ALONE, floor=None),
        guess=partial(guess_power_sum, terms=ONE_TERM_ALONE, floor=None, grid=24),
        exponents=("alpha",),
        latex=partial(_latex_of_one, symbol),
    )


def _latex_of_one(symbol: str, value: Mapping[str, float]) -> str:
    floor = f"{value['E']:.3f} + " if "E" in value else ""
    return f"$L({symbol}) = {floor}{scientific(value['A'])}\\;{symbol}^{{-{value['alpha']:.3f}}}$"


def _latex_of_two(first: str, second: str, value: Mapping[str, float]) -> str:
    a, b = (scientific(value[name]) for name in ("A", "B"))
    alpha, beta = value["alpha"], value.get("beta", value["alpha"])
    return f"$L = {value['E']:.3f} + {a}\\;{first}^{{-{alpha:.3f}}} + {b}\\;{second}^{{-{beta:.3f}}}$"


# Hoffmann et al. 2022 (2203.15556), eq. 2.
CHINCHILLA = Law(
    name="chinchilla",
    formula="L(N, D) = E + A N^-alpha + B D^-beta",
    variables=("n", "d"),
    params=JOINT_PARAMS,
    bounds=JOINT_BOUNDS,
    log_loss=partial(power_sum, terms=TWO_TERMS),
    guess=partial(guess_power_sum, terms=TWO_TERMS, grid=8),
    exponents=("alpha", "beta"),
    irreducible="E",
    has_frontier=True,
    latex=partial(_latex_of_two, "N", "D"),
)

# Gadre et al. 2024 (2403.08540), eq. 4. Theirs is written in C = 6 N D and M = D/N as E + (a M^eta + b M^-eta) C^-eta:
# the same curve, alpha = 2 eta.
TIED = Law(
    name="tied",
    formula="L(N, D) = E + A N^-alpha + B D^-alpha",
    variables=("n", "d"),
    params=("E", "A", "B", "alpha"),
    bounds=(FLOOR, COEFFICIENT, COEFFICIENT, EXPONENT),
    log_loss=partial(power_sum, terms=TIED_TERMS),
    guess=partial(guess_power_sum, terms=TIED_TERMS, grid=24),
    exponents=("alpha",),
    irreducible="E",
    has_frontier=True,
    latex=partial(_latex_of_two, "N", "D"),
)

# McLeish et al. 2025 (2502.06857), at a fixed number of tokens.
WIDTH_DEPTH = replace(
    CHINCHILLA,
    name="width-depth",
    formula="L(w, l) = E + A w^-alpha + B l^-beta",
    variables=("width", "depth"),
    has_frontier=False,
    latex=partial(_latex_of_two, "w", "l"),
)

LAWS = (
    *(make(variable) for variable in ("n", "d", "c", "t", "u", "latents") for make in (power_floor, power)),
    CHINCHILLA,
    TIED,
    WIDTH_DEPTH,
)
