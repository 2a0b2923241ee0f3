"""What rounding weights to a few bits adds to the loss: a power of N and of D, and an exponential of the bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import numpy as np

from tinyscale.fitting.arrays import Array, Pair
from tinyscale.fitting.laws.base import COEFFICIENT, Law
from tinyscale.formatting import scientific

# The step of the grid halves with each bit, and where the loss is quadratic in the error it falls by four.
THEORY = {"gP": 1 / (2 * math.log(2))}
POWER, DECAY = (-5.0, 5.0), (0.05, 20.0)
SIGNS = {"d": (1, "gD", "D^gD"), "n": (-1, "gN", "N^-gN")}  # in the order of the formula


def log_loss(theta: Array, x: Array, *, signs: tuple[int, ...]) -> Pair:
    """log(C D^gD N^-gN e^(-P/gP)) as Kumar et al. 2024 (2411.04330), eq. 2 have it, with those of N and D that vary.

    x: logarithms as of every law, P after them; signs: of the powers, in the order of x.
    """
    bits = np.exp(np.minimum(x[-1], 50.0))
    decay = theta[:, -1, None]
    powers = np.asarray(signs)[:, None] * x[:-1]  # (k - 1, n)
    value = theta[:, :1] + theta[:, 1:-1] @ powers - bits / decay
    shape = (len(theta), len(powers), x.shape[1])
    parts = [np.ones((len(theta), 1, x.shape[1])), np.broadcast_to(powers, shape), (bits / decay**2)[:, None]]
    return value, np.concatenate(parts, axis=1)


def guess(x: Array, loss: Array, *, signs: tuple[int, ...]) -> Array:
    """The least squares themselves, which are linear in 1/gP, and twice and half that gP."""
    columns = np.vstack([np.ones_like(loss), np.asarray(signs)[:, None] * x[:-1], -np.exp(np.minimum(x[-1], 50.0))])
    *line, rate = np.linalg.lstsq(columns.T, np.log(loss), rcond=None)[0]
    decay = 1 / rate if rate > 1 / DECAY[1] else DECAY[1] / 2
    return np.array([[*line, decay * factor] for factor in (1.0, 0.5, 2.0)])


def _latex(powers: Mapping[str, tuple[str, int]], value: Mapping[str, float]) -> str:
    product = "".join(f"\\;{symbol}^{{{sign * value[name]:.3f}}}" for name, (symbol, sign) in powers.items())
    return f"$\\delta = {scientific(value['C'])}{product}\\;e^{{-P/{value['gP']:.3f}}}$"


def bits_law(*sizes: str) -> Law:
    """The law with those of D and N that vary."""
    shown = [name for name in SIGNS if name in sizes]
    ordered = sorted(sizes, reverse=True)  # n before d, as in every law
    signs = tuple(SIGNS[name][0] for name in ordered)
    powers = tuple(SIGNS[name][1] for name in ordered)
    latex = {SIGNS[name][1]: (name.upper(), SIGNS[name][0]) for name in shown}
    return Law(
        name="-".join(["bits", *(sizes if len(sizes) == 1 else () if sizes else ["alone"])]),
        formula=" ".join(["delta = C", *(SIGNS[name][2] for name in shown), "e^(-P/gP)"]),
        variables=(*ordered, "bits"),
        params=("C", *powers, "gP"),
        bounds=(COEFFICIENT, *[POWER] * len(powers), DECAY),
        log_loss=partial(log_loss, signs=signs),
        guess=partial(guess, signs=signs),
        exponents=("gP", *powers),
        latex=partial(_latex, latex),
        predicts="delta",
        theory=THEORY,
    )


LAWS = (bits_law("n", "d"), bits_law("n"), bits_law("d"), bits_law())
