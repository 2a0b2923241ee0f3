"""Arms that each tried several learning rates: each at its own best rate, chosen on one seed, kept for the others.

Loss chosen as the least of several is too low by its own luck; the other seeds had no part in the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from tinyscale.analysis.runs import Group
from tinyscale.errors import FitError
from tinyscale.formatting import compact

SIZE = ["n_non_embedding", "tokens"]


def judging_seed(arms: Sequence[Group]) -> int:
    """The seed to choose by: the first one. FitError when none would be left to compare on, or tries are unequal."""
    seeds = sorted(set(pd.concat([arm.frame["seed"] for arm in arms])))
    if len(seeds) < 2:
        raise FitError(
            f"{arms[0].sweep}: arms tried several learning rates with seed {seeds[0]} alone: a rate is chosen on one "
            "seed and the arms compared on others; launch more seeds"
        )
    tries = {arm.arm: _tried(arm, seeds[0]).groupby(SIZE)["lr"].nunique() for arm in arms}
    if len({number for each in tries.values() for number in each}) > 1:
        each = ", ".join(f"{arm} {sorted(set(numbers))}" for arm, numbers in tries.items())
        raise FitError(f"{arms[0].sweep}: arms tried unequal numbers of learning rates at a size ({each}): no verdict")
    return int(seeds[0])


def at_chosen_rate(arm: Group, seed: int) -> Group:
    """The arm's runs with other seeds at the rate that was best with this one, size by size.

    FitError where that is the lowest or the highest rate tried: the arm may be better still outside. A rate that
    diverged was tried.
    """
    kept = []
    for _, tried in _tried(arm, seed).groupby(SIZE):
        best = float(tried["lr"].iloc[int(tried["val_loss"].to_numpy(float).argmin())])
        if best in (tried["lr"].min(), tried["lr"].max()):
            side = "lowest" if best == tried["lr"].min() else "highest"
            where = f"{arm.title}: at N = {compact(float(tried[SIZE[0]].iloc[0]))}"
            raise FitError(
                f"{where} the {side} rate tried, {best:g}, is best: {arm.arm} may be better still outside, so there is "
                "no verdict; shift its rates and launch again"
            )
        rows = arm.frame
        kept.append(rows[(rows[SIZE] == tried[SIZE].iloc[0]).all(axis=1) & (rows["lr"] == best)])
    frame = pd.concat(kept)
    return replace(arm, frame=frame[frame["seed"] != seed].reset_index(drop=True))


def _tried(arm: Group, seed: int) -> pd.DataFrame:
    """What the arm tried with a seed: n_non_embedding, tokens (of the whole trial), lr and val_loss."""
    rows = arm.frame[arm.frame["seed"] == seed]
    if arm.diverged.empty:
        return rows
    lost = arm.diverged[arm.diverged["seed"] == seed]
    return pd.concat([rows, lost.assign(tokens=lost["tokens_budget"], val_loss=np.inf)])
