"""What a law is: a formula, with all that a fit, a text and a plot need to know about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from tinyscale.fitting.arrays import Array, Mask, Pair

# What a law's variable is called in a formula and on an axis.
VARIABLES = {
    "n": ("N", "parameters"),
    "d": ("D", "training tokens"),
    "c": ("C", "training compute (FLOPs)"),
    "t": ("T", "context length (tokens)"),
    "u": ("U", "unique training tokens"),
    "width": ("w", "d_model"),
    "depth": ("l", "n_layers"),
    "latents": ("n", "features of an autoencoder"),
    "active": ("k", "active features"),
    "bits": ("P", "bits of a weight"),
    "teacher": ("L_T", "the teacher's loss"),
    "total": ("T", "training tokens of all parts"),
    "languages": ("K", "parts of the mixture"),
}

GIVEN = ("u", "teacher")  # variables that need not vary, and of which nothing is asked where they do

FLOOR, COEFFICIENT, EXPONENT = (0.0, 1e3), (1e-12, 1e50), (0.005, 3.0)


@dataclass(frozen=True)
class Law:
    """A functional form of the loss.

    variables: columns it reads; params: its parameters in order; bounds: of the parameters themselves (those bounded as
    COEFFICIENT are solved for as logarithms).
    log_loss: (theta (B, P), x (k, n)) -> log loss (B, n) and its Jacobian (B, P, n). theta are solver coordinates:
    coefficients as logarithms, floors and exponents as they are, so B starting points or bootstrap replicates are one
    call; x are logarithms of the variables.
    guess: (x (k, n), loss (n,)) -> starts (B, P) in solver coordinates.
    exponents: the parameters that say how fast the loss falls, the one to quote first; irreducible: the parameter that
    is the loss at infinite size; has_frontier: whether frontier.py derives the compute-optimal N and D from it;
    latex: its parameters' values -> the law with its numbers as mathematics (None: the plain formula is shown).
    predicts: what the law says, in a text: the loss, or what a change adds to it; theory: parameter -> the value that
    is derived for it, to be shown with the estimate.
    held: parameter -> the value that it is held at; prior: parameter -> the value, in solver coordinates, that it is
    drawn to, and the weight of its squared distance from there against that of the points.
    """

    name: str
    formula: str
    variables: tuple[str, ...]
    params: tuple[str, ...]
    bounds: tuple[tuple[float, float], ...]
    log_loss: Callable[[Array, Array], Pair]
    guess: Callable[[Array, Array], Array]
    exponents: tuple[str, ...] = ()
    irreducible: str | None = None
    has_frontier: bool = False
    latex: Callable[[Mapping[str, float]], str] | None = None
    held: Mapping[str, float] = field(default_factory=dict, hash=False)
    prior: Mapping[str, tuple[float, float]] = field(default_factory=dict, hash=False)
    predicts: str = "loss"
    theory: Mapping[str, float] = field(default_factory=dict, hash=False)
    kind = "loss"

    @property
    def headline(self) -> str:
        """The parameter to quote where there is room for one."""
        return (*self.exponents, *self.params)[0]

    @property
    def sizes(self) -> tuple[str, ...]:
        """The variables that say how large a run is; all but the bits of a weight and the loss of a teacher."""
        return tuple(name for name in self.variables if name not in ("bits", "teacher"))

    @property
    def splits_loss(self) -> bool:
        """Whether the loss is a floor and, of each of several variables, a coefficient and an exponent."""
        return self.irreducible is not None and len(self.variables) > 1 and len(self.exponents) > 1

    @property
    def logged(self) -> Mask:
        """Which parameters (P,) are solved for as logarithms."""
        return np.array([bound == COEFFICIENT for bound in self.bounds])

    @property
    def limits(self) -> tuple[Array, Array]:
        """Lower and upper bounds (P,) in solver coordinates; equal where a parameter is held."""
        bounds = dict(zip(self.params, self.bounds, strict=True)) | {n: (v, v) for n, v in self.held.items()}
        low, high = np.array(list(bounds.values())).T
        return self.to_solver(low), self.to_solver(high)

    @property
    def free(self) -> Mask:
        """Which parameters (P,) are not held."""
        return np.array([name not in self.held for name in self.params])

    @property
    def pull(self) -> Pair:
        """Of each parameter (P,), (P,): the value that its prior draws it to, and the weight; 0 without a prior."""
        drawn = [self.prior.get(name, (0.0, 0.0)) for name in self.params]
        value, weight = np.array(drawn).T
        return value, weight

    def to_solver(self, values: Array) -> Array:
        """Parameters (..., P) -> solver coordinates."""
        return np.where(self.logged, np.log(np.where(self.logged, values, 1.0)), values)

    def to_params(self, theta: Array) -> Array:
        """Solver coordinates (..., P) -> parameters."""
        return np.where(self.logged, np.exp(np.where(self.logged, theta, 0.0)), theta)

    def named(self, theta: Array) -> dict[str, float]:
        """Solver coordinates (P,) -> name -> value of each parameter."""
        return dict(zip(self.params, self.to_params(theta).tolist(), strict=True))

    def loss(self, params: Mapping[str, float], **variables: Array | float) -> Array:
        """Predicted loss at sizes in their own units, for example `law.loss(fit.params, n=1e6, d=2e7)`."""
        theta = self.to_solver(np.array([params[name] for name in self.params]))
        x = np.log(np.stack(np.broadcast_arrays(*(np.asarray(variables[v], float) for v in self.variables))))
        predicted, _ = self.log_loss(theta[None], x.reshape(len(self.variables), -1))
        return np.asarray(np.exp(predicted[0]).reshape(x.shape[1:]))


def bounded_exp(x: Array) -> Array:
    """exp(x), never zero or infinite: a step of the solver that goes too far is merely bad, and is taken back."""
    return np.asarray(np.exp(np.clip(x, -300.0, 300.0)))
