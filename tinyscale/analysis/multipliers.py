"""Compute multipliers of an arm as a function of scale: what the base would spend for the arm's loss, over what it did.

The base's law is held, so two sizes are enough: an arm's gain at a size is how far along that law its difference from
the base lies. Intervals hold the noise of pairs and the spread of the law's refits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Array
from tinyscale.fitting.estimate import Estimate, estimates_json
from tinyscale.fitting.fit import fit_law
from tinyscale.fitting.points import COLUMNS
from tinyscale.formatting import compact

LEAST_FITTED = 4  # sizes from which on the base's law has a floor
REFITS = 100
STEPS = np.linspace(-1, 1, 161) * np.log(1000.0)  # of compute along the base's law, where a gain is looked for
NEAR = np.log(10.0)  # how far a line through fewer sizes than LEAST_FITTED is believed
KINDS = {"flops": "in FLOPs (loss only)", "seconds": "in wall-clock time (loss and tokens per second)"}
SEEN = 0.05  # chance of a trend by accident, below which it is said


@dataclass(frozen=True)
class Multiplier:
    """One kind of multiplier of one arm, of KINDS.

    by_size: N of the base -> multiplier; trend: d log multiplier / d log compute, None below 3 sizes; said: how it goes
    with size, where a trend is seen, and which sizes have none.
    """

    by_size: Mapping[str, Estimate]
    trend: Estimate | None
    said: str

    def as_json(self) -> dict[str, Any]:
        """Plain values; an open end is null."""
        trend = self.trend.as_json() if self.trend else None
        return {"by_size": estimates_json(self.by_size), "trend": trend, "said": self.said}


def charged(gain: Array, rate: Array) -> Array:
    """The multiplier of an arm that needs `gain` times fewer steps, and makes `rate` times as many per second.

    Both against the base. In FLOPs, rate is what the base spends on equal steps over what the arm does.
    """
    return gain * rate


def multipliers_of(base: pd.DataFrame, pairs: pd.DataFrame, column: str) -> dict[str, Multiplier]:
    """Kind -> multiplier; without what the rows do not hold, and empty where the base's loss does not fall.

    base: its runs, their loss in `column`; pairs: size, length (indices), difference of the loss, and of the base n,
    tokens, flops and seconds, the last two of the arm (`_arm`) as well.
    """
    cells = pairs.groupby(["size", "length"], as_index=False).mean(numeric_only=True)
    cells = cells.assign(number=pairs.groupby(["size", "length"]).size().to_numpy())
    try:
        path = _path(base, cells, column)
    except FitError:
        return {}
    sd, dof = _noise(pairs["difference"], pairs, cells)
    middle, half = cells["difference"].to_numpy(), sd / np.sqrt(cells["number"].to_numpy())
    gains = _gains(path, middle)
    sides = [_gains(path[:1], middle + side * half)[0] for side in (-1, 1)]
    noise = np.nan_to_num((sides[0] - sides[1]) / 2, nan=np.inf)  # a side beyond STEPS leaves the interval open
    found = {}
    for kind in KINDS:
        if not (pairs[[kind, f"{kind}_arm"]] > 0).all(axis=None):
            continue  # of a table without a speed
        rates = (pairs[kind] / pairs[f"{kind}_arm"]).map(np.log)
        mean = rates.groupby([pairs["size"], pairs["length"]]).mean().to_numpy()
        of_rate = _noise(rates, pairs, cells)[0] / np.sqrt(cells["number"].to_numpy())
        logs = np.log(charged(np.exp(gains), np.exp(mean)))
        found[kind] = _over_sizes(cells, logs, np.hypot(noise, of_rate), dof)
    return found


def _path(base: pd.DataFrame, cells: pd.DataFrame, column: str) -> Array:
    """Log loss (1 + refits, cells, STEPS) of the base with so much more compute than at each cell: law, then refits.

    Along its own sizes; where it has several lengths at a size, along its ratio of tokens to parameters. Below
    LEAST_FITTED sizes, by the line or the parabola of log loss in log compute through them, no further than NEAR.
    """
    if (sizes := cells["size"].nunique()) < LEAST_FITTED:
        curve = np.polyfit(np.log(base[COLUMNS["c"]]), np.log(base[column]), sizes - 1)
        path: Array = np.polyval(curve, np.log(cells["flops"].to_numpy())[:, None] + np.clip(STEPS, -NEAR, NEAR))
        return np.minimum.accumulate(path, axis=1)[None]
    joint = (cells.groupby("size")["length"].nunique() > 1).any()
    found = fit_law(base, "chinchilla" if joint else "power-c", columns={"loss": column}, draws=REFITS, holdout=0)
    names, share = (["n", "tokens"], 0.5) if joint else (["flops"], 1.0)
    x = np.log(cells[names].to_numpy()).T[:, :, None] + share * STEPS
    theta = found.law.to_solver(np.vstack([[found.params[name] for name in found.law.params], found.curve.draws]))
    loss, _ = found.law.log_loss(theta, x.reshape(len(names), -1))
    return loss.reshape(len(theta), len(cells), len(STEPS))


def _gains(path: Array, difference: Array) -> Array:
    """Log factor of compute (curves, cells) by which the base's loss changes so much; NaN outside STEPS."""
    with np.errstate(invalid="ignore"):
        targets = np.log(np.exp(path[..., len(STEPS) // 2]) + difference)
    rows = [
        [np.interp(-target, -curve, STEPS, left=np.nan, right=np.nan) for target, curve in zip(*row, strict=True)]
        for row in zip(targets, path, strict=True)
    ]
    return np.array(rows)


def _noise(values: pd.Series[float], pairs: pd.DataFrame, cells: pd.DataFrame) -> tuple[float, int]:
    """Standard deviation of pairs of one cell, with its degrees of freedom.

    Where no cell has two, that of the cells about a line in log compute.
    """
    rest, dof = values - values.groupby([pairs["size"], pairs["length"]]).transform("mean"), len(pairs) - len(cells)
    if dof == 0:
        x, dof = np.log(pairs["flops"].to_numpy()), len(pairs) - 2
        rest = values - np.polyval(np.polyfit(x, values, 1), x)
    return (float(np.sqrt((rest**2).sum() / dof)), dof) if dof else (np.inf, 1)


def _over_sizes(cells: pd.DataFrame, logs: Array, noise: Array, dof: int) -> Multiplier:
    """Log multipliers (1 + refits, cells) with the noise (cells,) of the first -> by size, each the mean of lengths."""
    order = cells["size"].to_numpy()
    lengths = [order == size for size in np.unique(order)]  # the cells of each size
    of_size = np.stack([logs[:, own].mean(axis=1) for own in lengths], axis=1)
    first, refits = of_size[0], of_size[1:]
    noise = np.array([np.linalg.norm(noise[own]) / own.sum() for own in lengths])
    refits = np.where(np.isnan(refits), first, refits)  # of one that never comes so far
    spread = refits.std(axis=0) if len(refits) else np.zeros(len(first))
    reach = special.stdtrit(dof, 0.975) * np.hypot(noise, spread)
    sizes, compute = (cells.groupby("size")[name].mean().to_numpy() for name in ("n", "flops"))
    with np.errstate(over="ignore"):
        ends = np.exp(np.stack([first, first - reach, first + reach], axis=1))
    kept = np.isfinite(first)
    by_size = {f"{n:.4g}": Estimate(*row) for n, row in zip(sizes[kept], ends[kept].tolist(), strict=True)}
    trend, beyond = None, _beyond(sizes[~kept])
    if kept.sum() >= 3 and np.isfinite(noise[kept]).all():
        trend = _slope(np.log(compute[kept]), first[kept], refits[:, kept], noise[kept], dof)
    said = [_said(trend, by_size) if trend else "", beyond]
    return Multiplier(by_size, trend, "; ".join(filter(None, said)))


def _beyond(sizes: Array) -> str:
    """Sizes without a multiplier, in words."""
    if not len(sizes):
        return ""
    return f"none at N = {', '.join(map(compact, sizes))}, where the base's law comes to no such loss"


def _slope(x: Array, y: Array, refits: Array, noise: Array, dof: int) -> Estimate:
    """Slope of y in x, sizes weighted by their noise; wider where sizes scatter by more than that (Birge 1932)."""
    weight = 1 / np.maximum(noise, 1e-12) ** 2
    centred = x - (weight @ x) / weight.sum()
    pick = weight * centred / (weight @ centred**2)
    slope = float(pick @ y)
    scatter = float(weight @ (y - weight @ y / weight.sum() - slope * centred) ** 2) / (len(x) - 2)
    if scatter > 1:
        dof = len(x) - 2
    spread = (refits @ pick).std() if len(refits) else 0.0
    reach = special.stdtrit(dof, 1 - SEEN / 2) * np.hypot(np.sqrt(max(scatter, 1) / (weight @ centred**2)), spread)
    return Estimate.around(slope, reach)


def _said(trend: Estimate, by_size: Mapping[str, Estimate]) -> str:
    """The trend in words, where there is one: a gain that shrinks is the one that misleads."""
    if trend.holds_zero:
        return ""
    first, *_, last = by_size.values()
    if trend.value < 0:
        return "the gain shrinks with size" if first.value > 1 else "it falls further behind with size"
    return "the gain grows with size" if last.value > 1 else "it catches up with size"


def in_words(multipliers: Mapping[str, Multiplier]) -> list[str]:
    """A sentence for each kind: the multiplier at the smallest and the largest size, and how it goes with size."""
    ends = {kind: [*each.by_size.items()][:: max(1, len(each.by_size) - 1)] for kind, each in multipliers.items()}
    told = {
        kind: [", ".join(f"{value} at N = {compact(float(size))}" for size, value in ends[kind]), each.said]
        for kind, each in multipliers.items()
    }
    return [
        f"compute multiplier {KINDS[kind]}: {'; '.join(filter(None, said))}" for kind, said in told.items() if any(said)
    ]
