"""Laws of one part of a mixture, in its own tokens D: what other parts add to it, and what their number costs it."""

from __future__ import annotations

import itertools

import numpy as np

from tinyscale.fitting.arrays import Array, Pair
from tinyscale.fitting.laws.base import Law, bounded_exp
from tinyscale.fitting.laws.power_sum import JOINT_BOUNDS, JOINT_PARAMS, TWO_TERMS, guess_power_sum

WORTH, CURSE = (-1.0, 20.0), (-3.0, 3.0)
LEAST = 0.05  # of D: what interference leaves of it at least, so that a step of the solver has a logarithm


def transferred(theta: Array, x: Array) -> Pair:
    """L(N, D, T) = E + A N^-alpha + B (D + tau (T - D))^-beta, T being the tokens of all parts.

    tau: what a token of the other parts is worth, in tokens of this one; 1 for the same text, 0 for one that says
    nothing of it, below 0 where the parts interfere. The form of ATLAS (Longpre et al. 2025, 2510.22037) with one other
    text and no repeats.
    """
    E, a, b, alpha, beta, tau = theta.T[:, :, None]
    n, d, total = x
    ratio = _others(d, total)
    gain = np.maximum(1 + tau * ratio, LEAST)
    size, data = bounded_exp(a - alpha * n), bounded_exp(b - beta * (d + np.log(gain)))
    by_tau = np.where(gain > LEAST, -beta * data * ratio / gain, 0.0)
    loss = E + size + data
    parts = [np.ones_like(loss), size, data, -size * n, -data * (d + np.log(gain)), by_tau]
    return np.log(loss), np.stack(parts, axis=1) / loss[:, None]


def _others(d: Array, total: Array) -> Array:
    """Tokens of the other parts, in tokens of this one (n,); none where the total is that of the part."""
    return np.expm1(np.clip(total - d, 0.0, 300.0))


def guess_transferred(x: Array, loss: Array) -> Array:
    """The two-term law's starts on effective tokens, at other parts worth something, much, nothing, and less."""
    starts = []
    for tau in (0.0, 0.1, 0.4, 1.0, -0.03):
        effective = x[1] + np.log(np.maximum(1 + tau * _others(x[1], x[2]), LEAST))
        base = guess_power_sum(np.stack([x[0], effective]), loss, terms=TWO_TERMS, grid=4)
        starts.append(np.column_stack([base, np.full(len(base), tau)]))
    return np.concatenate(starts)


def cursed(theta: Array, x: Array) -> Pair:
    """L(N, D, K) = E + A K^phi N^-alpha + B K^psi D^-beta for K languages. ATLAS (2510.22037): phi .11, psi -.04.

    phi: parameters that languages compete for; psi: below 0 where they help each other's data.
    """
    E, a, b, alpha, beta, phi, psi = theta.T[:, :, None]
    n, d, k = x
    size, data = bounded_exp(a + phi * k - alpha * n), bounded_exp(b + psi * k - beta * d)
    loss = E + size + data
    parts = [np.ones_like(loss), size, data, -size * n, -data * d, size * k, data * k]
    return np.log(loss), np.stack(parts, axis=1) / loss[:, None]


def guess_cursed(x: Array, loss: Array) -> Array:
    """The two-term law's starts, with languages that cost, help, or do nothing."""
    base = guess_power_sum(x[:2], loss, terms=TWO_TERMS, grid=4)
    exponents = itertools.product((0.0, 0.2), (0.0, -0.1))
    return np.concatenate([np.column_stack([base, np.tile(each, (len(base), 1))]) for each in exponents])


LAWS = (
    Law(
        name="transfer",
        formula="L(N, D, T) = E + A N^-alpha + B (D + tau (T - D))^-beta",
        variables=("n", "d", "total"),
        params=(*JOINT_PARAMS, "tau"),
        bounds=(*JOINT_BOUNDS, WORTH),
        log_loss=transferred,
        guess=guess_transferred,
        exponents=("tau", "alpha", "beta"),
        irreducible="E",
    ),
    Law(
        name="languages",
        formula="L(N, D, K) = E + A K^phi N^-alpha + B K^psi D^-beta",
        variables=("n", "d", "languages"),
        params=(*JOINT_PARAMS, "phi", "psi"),
        bounds=(*JOINT_BOUNDS, CURSE, CURSE),
        log_loss=cursed,
        guess=guess_cursed,
        exponents=("phi", "psi", "alpha", "beta"),
        irreducible="E",
    ),
)
