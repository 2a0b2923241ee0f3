"""Scaling laws as pure functions: the docstring is the formula and its source.

A law maps solver coordinates `theta` (B, P) and natural logarithms of its variables `x` (k, n) to the log of the loss
(B, n) and its Jacobian (B, P, n). Coefficients enter as logarithms, floors and exponents as they are, so B starting
points or bootstrap draws are one call. `Law` ships each function with its names, bounds and starting guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from tinyscale.errors import FitError

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Mask = NDArray[np.bool_]
Term = tuple[int, tuple[tuple[int, int], ...]]  # index of the coefficient, then (exponent, variable) pairs

# What a variable is called in a sentence and on an axis, with its unit.
VARIABLES = {
    "n": ("N", "parameters"),
    "d": ("D", "training tokens"),
    "c": ("C", "training compute (FLOPs)"),
}

CHINCHILLA_TERMS: tuple[Term, ...] = ((1, ((3, 0),)), (2, ((4, 1),)))

FLOOR, COEFFICIENT, EXPONENT = (0.0, 1e3), (1e-12, 1e50), (0.005, 3.0)


@dataclass(frozen=True)
class Law:
    """A functional form with what a fit needs to know about it.

    variables: columns it reads; params: its parameters in order; logged: solved for as logarithms; bounds: of the
    parameters themselves; guess: (x (k, n), loss (n,)) -> starting points (B, P) in solver coordinates.
    """

    name: str
    formula: str
    variables: tuple[str, ...]
    params: tuple[str, ...]
    bounds: tuple[tuple[float, float], ...]
    log_loss: Callable[[Array, Array], tuple[Array, Array]]
    guess: Callable[[Array, Array], Array]

    @property
    def logged(self) -> Mask:
        """Which parameters are solved for as logarithms: those whose lower bound is a positive coefficient's."""
        return np.array([bound == COEFFICIENT for bound in self.bounds])

    @property
    def limits(self) -> tuple[Array, Array]:
        """Lower and upper bounds (P,) in solver coordinates."""
        low, high = np.array(self.bounds).T
        return self.to_solver(low), self.to_solver(high)

    def to_solver(self, values: Array) -> Array:
        """Parameters (..., P) -> solver coordinates."""
        return np.where(self.logged, np.log(np.where(self.logged, values, 1.0)), values)

    def to_params(self, theta: Array) -> Array:
        """Solver coordinates (..., P) -> parameters."""
        return np.where(self.logged, np.exp(np.where(self.logged, theta, 0.0)), theta)

    def loss(self, params: Mapping[str, float], **variables: Array | float) -> Array:
        """Predicted loss for natural-unit variables, for example `law.loss(fit.params, n=1e6, d=2e7)`."""
        theta = self.to_solver(np.array([params[name] for name in self.params]))
        x = np.log(np.stack(np.broadcast_arrays(*(np.asarray(variables[v], float) for v in self.variables))))
        predicted, _ = self.log_loss(theta[None], x.reshape(len(self.variables), -1))
        return np.asarray(np.exp(predicted[0]).reshape(x.shape[1:]))


def power_sum(theta: Array, x: Array, *, floor: int | None, terms: tuple[Term, ...]) -> tuple[Array, Array]:
    """log(E + sum_t A_t prod_k x_k^-a_tk) with theta holding E, log A_t and a_tk at the given positions."""
    jacobian = np.zeros((*theta.shape, x.shape[1]))
    total = np.zeros((len(theta), x.shape[1])) + (0.0 if floor is None else theta[:, floor, None])
    for coefficient, factors in terms:
        exponent = theta[:, coefficient, None] - sum(theta[:, a, None] * x[v] for a, v in factors)
        term = np.exp(exponent)
        total += term
        jacobian[:, coefficient] += term
        for a, v in factors:
            jacobian[:, a] -= term * x[v]
    if floor is not None:
        jacobian[:, floor] = 1.0
    jacobian /= total[:, None]
    return np.log(total), jacobian


def power_floor(theta: Array, x: Array) -> tuple[Array, Array]:
    """L(x) = E + A x^-alpha, for x one of N, D, C. Henighan et al. 2020 (2010.14701), eq. 1.1."""
    return power_sum(theta, x, floor=0, terms=((1, ((2, 0),)),))


def power(theta: Array, x: Array) -> tuple[Array, Array]:
    """L(x) = A x^-alpha, for x one of N, D, C: no floor. Kaplan et al. 2020 (2001.08361), section 1.2."""
    return power_sum(theta, x, floor=None, terms=((0, ((1, 0),)),))


def chinchilla(theta: Array, x: Array) -> tuple[Array, Array]:
    """L(N, D) = E + A N^-alpha + B D^-beta. Hoffmann et al. 2022 (2203.15556), eq. 2 and appendix D.2."""
    return power_sum(theta, x, floor=0, terms=CHINCHILLA_TERMS)


def guess_power_sum(x: Array, loss: Array, *, floor: int | None, terms: tuple[Term, ...], grid: int) -> Array:
    """Starting points by variable projection: a grid over the exponents, the coefficients by least squares at each.

    Errors are relative, to stand in for residuals of log loss. Golub and Pereyra 1973; for scaling laws 2603.22339.
    """
    exponents = sorted({a for _, factors in terms for a, _ in factors})
    axes = np.meshgrid(*[np.geomspace(0.03, 1.5, grid)] * len(exponents), indexing="ij")
    size = 1 + max([*exponents, *(c for c, _ in terms), floor or 0])
    theta = np.zeros((axes[0].size, size))
    theta[:, exponents] = np.stack([axis.ravel() for axis in axes], axis=1)
    centre = x.mean(axis=1)  # columns in units of the mid-range size, or N^-1.5 would underflow the normal equations
    columns = [np.exp(-sum(theta[:, a, None] * (x[v] - centre[v]) for a, v in factors)) for _, factors in terms]
    if floor is not None:
        columns.append(np.ones_like(columns[0]))
    found = np.maximum(_nonnegative(np.stack(columns, axis=1) / loss), 1e-6 * loss.min())
    for position, (coefficient, factors) in enumerate(terms):
        theta[:, coefficient] = np.log(found[:, position]) + sum(theta[:, a] * centre[v] for a, v in factors)
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


def _one_variable(variable: str) -> list[Law]:
    symbol = VARIABLES[variable][0]
    return [
        Law(
            name=f"power-{variable}",
            formula=f"L({symbol}) = E + A {symbol}^-alpha",
            variables=(variable,),
            params=("E", "A", "alpha"),
            bounds=(FLOOR, COEFFICIENT, EXPONENT),
            log_loss=power_floor,
            guess=partial(guess_power_sum, floor=0, terms=((1, ((2, 0),)),), grid=24),
        ),
        Law(
            name=f"power-{variable}-no-floor",
            formula=f"L({symbol}) = A {symbol}^-alpha",
            variables=(variable,),
            params=("A", "alpha"),
            bounds=(COEFFICIENT, EXPONENT),
            log_loss=power,
            guess=partial(guess_power_sum, floor=None, terms=((0, ((1, 0),)),), grid=24),
        ),
    ]


_JOINT = [
    Law(
        name="chinchilla",
        formula="L(N, D) = E + A N^-alpha + B D^-beta",
        variables=("n", "d"),
        params=("E", "A", "B", "alpha", "beta"),
        bounds=(FLOOR, COEFFICIENT, COEFFICIENT, EXPONENT, EXPONENT),
        log_loss=chinchilla,
        guess=partial(guess_power_sum, floor=0, terms=CHINCHILLA_TERMS, grid=8),
    ),
]

LAWS = {law.name: law for law in [*(law for v in ("n", "d", "c") for law in _one_variable(v)), *_JOINT]}


def find_law(name: str) -> Law:
    """The law of that name. FitError lists what there is."""
    if name not in LAWS:
        raise FitError(f"no law is called {name!r}; there are {', '.join(LAWS)}")
    return LAWS[name]
