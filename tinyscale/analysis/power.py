"""What would settle a comparison of arms: how many more seeds, and a rule for adding seeds that may look at every one.

The rule is the anytime-valid t test of Lindon, Ham, Tingley and Bojinov 2022 (arXiv:2210.08589), with what differs
between sizes as the other terms of its linear model: under no difference, the chance that the evidence ever reaches
1 / level is at most level, however many looks there are.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from tinyscale.fitting.arrays import Array

LEVEL, POWER = 0.05, 0.8
MOST = 100  # more seeds or sizes than that are not worth a number
EFFECT = 1.0  # variance of the differences that the test looks for, over that of a pair
LARGEST = 50.0  # log evidence that is told apart


def more_needed(t: float, count: int, dof: float, *, level: float = LEVEL) -> int | None:
    """How many seeds (or sizes) beyond `count` show a difference with POWER, if the one seen is the true one.

    t, dof: of the paired test with `count` of them; level: two-sided. None where it is more than MOST.
    """
    wanted = np.arange(count + 1, count + MOST + 1)
    freedom, centre = dof * wanted / count, abs(t) * np.sqrt(wanted / count)
    power = 1 - special.nctdtr(freedom, centre, special.stdtrit(freedom, 1 - level / 2))
    enough = wanted[power >= POWER]
    return int(enough[0] - count) if len(enough) else None


def evidence(t: Array, number: Array, dof: Array) -> Array:
    """The e-value of a t statistic of `number` pairs: at most 1 on average, at any look, where there is no difference.

    1 without degrees of freedom.
    """
    ratio, free = 1 + EFFECT * number, np.maximum(dof, 1)
    log = (free + 1) / 2 * (np.log1p(t**2 / free) - np.log1p(t**2 / (free * ratio))) - np.log(ratio) / 2
    return np.where(dof > 0, np.exp(np.minimum(log, LARGEST)), 1.0)
