"""The laws that can be fitted: a formula of `forms.py` with its names, bounds and starting guess."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from tinyscale.errors import FitError
from tinyscale.fitting import forms, guess
from tinyscale.fitting.forms import Array, Mask, Pair

# What a law's variable is called in a formula and on an axis.
VARIABLES = {
    "n": ("N", "parameters"),
    "d": ("D", "training tokens"),
    "c": ("C", "training compute (FLOPs)"),
    "t": ("T", "context length (tokens)"),
    "u": ("U", "unique training tokens"),
    "width": ("w", "d_model"),
    "depth": ("l", "n_layers"),
}

FLOOR, COEFFICIENT, EXPONENT = (0.0, 1e3), (1e-12, 1e50), (0.005, 3.0)


@dataclass(frozen=True)
class Law:
    """A functional form with what a fit needs to know about it.

    variables: columns it reads; params: its parameters in order; bounds: of the parameters themselves (those bounded as
    COEFFICIENT are solved for as logarithms); guess: (x (k, n), loss (n,)) -> starts (B, P) in solver coordinates.
    """

    name: str
    formula: str
    variables: tuple[str, ...]
    params: tuple[str, ...]
    bounds: tuple[tuple[float, float], ...]
    log_loss: Callable[[Array, Array], Pair]
    guess: Callable[[Array, Array], Array]

    @property
    def logged(self) -> Mask:
        """Which parameters (P,) are solved for as logarithms."""
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
        """Predicted loss at sizes in their own units, for example `law.loss(fit.params, n=1e6, d=2e7)`."""
        theta = self.to_solver(np.array([params[name] for name in self.params]))
        x = np.log(np.stack(np.broadcast_arrays(*(np.asarray(variables[v], float) for v in self.variables))))
        predicted, _ = self.log_loss(theta[None], x.reshape(len(self.variables), -1))
        return np.asarray(np.exp(predicted[0]).reshape(x.shape[1:]))


def _one_variable(variable: str) -> tuple[Law, Law]:
    symbol = VARIABLES[variable][0]
    with_floor = Law(
        name=f"power-{variable}",
        formula=f"L({symbol}) = E + A {symbol}^-alpha",
        variables=(variable,),
        params=("E", "A", "alpha"),
        bounds=(FLOOR, COEFFICIENT, EXPONENT),
        log_loss=forms.power_floor,
        guess=partial(guess.guess_power_sum, terms=forms.ONE_TERM, grid=24),
    )
    without = Law(
        name=f"power-{variable}-no-floor",
        formula=f"L({symbol}) = A {symbol}^-alpha",
        variables=(variable,),
        params=("A", "alpha"),
        bounds=(COEFFICIENT, EXPONENT),
        log_loss=forms.power,
        guess=partial(guess.guess_power_sum, terms=((0, (1, 0)),), floor=None, grid=24),
    )
    return with_floor, without


_JOINT = ("E", "A", "B", "alpha", "beta")
_JOINT_BOUNDS = (FLOOR, COEFFICIENT, COEFFICIENT, EXPONENT, EXPONENT)

_OTHERS = (
    Law(
        name="chinchilla",
        formula="L(N, D) = E + A N^-alpha + B D^-beta",
        variables=("n", "d"),
        params=_JOINT,
        bounds=_JOINT_BOUNDS,
        log_loss=forms.chinchilla,
        guess=partial(guess.guess_power_sum, terms=forms.TWO_TERMS, grid=8),
    ),
    Law(
        name="tied",
        formula="L(N, D) = E + A N^-alpha + B D^-alpha",
        variables=("n", "d"),
        params=("E", "A", "B", "alpha"),
        bounds=(FLOOR, COEFFICIENT, COEFFICIENT, EXPONENT),
        log_loss=forms.tied,
        guess=partial(guess.guess_power_sum, terms=forms.TIED_TERMS, grid=24),
    ),
    Law(
        name="gamma",
        formula="L(N, D) = E + (A N^-alpha + B D^-beta)^gamma",
        variables=("n", "d"),
        params=(*_JOINT, "gamma"),
        bounds=(*_JOINT_BOUNDS, (0.05, 10.0)),
        log_loss=forms.gamma,
        guess=guess.guess_gamma,
    ),
    Law(
        name="kaplan",
        formula="L(N, D) = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D",
        variables=("n", "d"),
        params=("N_c", "D_c", "alpha_N", "alpha_D"),
        bounds=(COEFFICIENT, COEFFICIENT, EXPONENT, EXPONENT),
        log_loss=forms.kaplan,
        guess=guess.guess_kaplan,
    ),
    Law(
        name="data-constrained",
        formula="L(N, D, U) = E + A N'^-alpha + B D'^-beta",
        variables=("n", "d", "u"),
        params=(*_JOINT, "R_N", "R_D"),
        bounds=(*_JOINT_BOUNDS, COEFFICIENT, COEFFICIENT),
        log_loss=forms.data_constrained,
        guess=guess.guess_data_constrained,
    ),
    Law(
        name="broken",
        formula="L(N) = E + A N^-c0 (1 + (N/d)^(1/f))^(-c1 f)",
        variables=("n",),
        params=("E", "A", "c0", "c1", "d", "f"),
        bounds=(FLOOR, COEFFICIENT, EXPONENT, (-3.0, 3.0), COEFFICIENT, (0.05, 5.0)),
        log_loss=forms.broken,
        guess=guess.guess_broken,
    ),
    Law(
        name="width-depth",
        formula="L(w, l) = E + A w^-alpha + B l^-beta",
        variables=("width", "depth"),
        params=_JOINT,
        bounds=_JOINT_BOUNDS,
        log_loss=forms.chinchilla,
        guess=partial(guess.guess_power_sum, terms=forms.TWO_TERMS, grid=8),
    ),
)

LAWS = {law.name: law for law in [*(law for v in ("n", "d", "c", "t", "u") for law in _one_variable(v)), *_OTHERS]}


def find_law(name: str) -> Law:
    """The law of that name. FitError lists what there is."""
    if name not in LAWS:
        raise FitError(f"no law is called {name!r}; there are {', '.join(LAWS)}")
    return LAWS[name]
