"""What a student learns from a teacher: the law of training on text, bent into the teacher's loss.

The two parameters beside the supervised law's were found on the 354 published runs of Busbridge et al. 2025
(2502.08606), which they describe to 0.45 % (rms of log loss). The paper's own law has nine, which these runs do not
identify: at its least squares (0.37 %) two of them have run to infinity.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from tinyscale.fitting.arrays import Array, Pair
from tinyscale.fitting.laws.base import Law, bounded_exp
from tinyscale.fitting.laws.power_sum import JOINT_BOUNDS, JOINT_PARAMS, TWO_TERMS, guess_power_sum

ALONE = 1e-300  # the teacher's loss of a run that has no teacher: it follows the supervised law
_ALONE = np.log(ALONE) / 2  # logarithms below stand for it


def log_loss(theta: Array, x: Array) -> Pair:
    """log(L_T + h ln(1 + e^((L(N, rho D) - L_T) / h))), where L is the law `gamma`; without a teacher log L(N, D).

    x: logarithms of N, D and L_T. rho: tokens of text that a distilled one is worth; h: nats over which the student's
    loss turns from its supervised law into its teacher's loss.
    """
    E, a, b, alpha, beta, power, rho, h = theta.T[:, :, None]
    taught = x[2] > _ALONE
    data = x[1] + np.where(taught, np.log(rho), 0.0)
    inner = np.logaddexp(a - alpha * x[0], b - beta * data)
    share = np.exp(a - alpha * x[0] - inner)
    term = bounded_exp(power * inner)
    own, pull = E + term, power * term
    teacher = np.exp(x[2])
    above = (own - teacher) / h
    bent = h * np.logaddexp(0.0, above)
    total = np.where(taught, teacher + bent, own)
    slope = np.where(taught, expit(above), 1.0)
    size, of_data = pull * share, pull * (1 - share)
    of_own = [np.ones_like(term), size, of_data, -size * x[0], -of_data * data, term * inner]
    of_own += [-beta * of_data * taught / rho]
    of_h = np.where(taught, bent / h - above * slope, 0.0)
    return np.log(total), np.stack([*(slope * part for part in of_own), of_h], axis=1) / total[:, None]


def guess(x: Array, loss: Array) -> Array:
    """Chinchilla's starts to the runs without a teacher (to all, where there are none), at several rho and h."""
    alone = x[2] <= _ALONE
    kept = alone if alone.sum() > len(JOINT_PARAMS) else np.full(x.shape[1], fill_value=True)
    base = guess_power_sum(x[:2, kept], loss[kept], terms=TWO_TERMS, grid=4)
    ones = np.ones(len(base))
    pairs = [(rho, h) for rho in (1.0, 2.0) for h in (0.03, 0.2)]
    return np.concatenate([np.column_stack([base, ones, rho * ones, h * ones]) for rho, h in pairs])


LAWS = (
    Law(
        name="distilled",
        formula="L = L_T + h ln(1 + e^((L(N, rho D) - L_T)/h)), L(N, D) = E + (A N^-alpha + B D^-beta)^gamma",
        variables=("n", "d", "teacher"),
        params=(*JOINT_PARAMS, "gamma", "rho", "h"),
        bounds=(*JOINT_BOUNDS, (0.05, 10.0), (0.01, 100.0), (1e-3, 5.0)),
        log_loss=log_loss,
        guess=guess,
        exponents=("rho", "alpha", "beta"),
        irreducible="E",
        held={"gamma": 1.0},
    ),
)
