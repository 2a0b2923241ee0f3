"""What the numbers of somebody's table of runs speak against: units, counts, a perplexity, runs that do not compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import special

from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Array
from tinyscale.fitting.points import COLUMNS, LOSS_OF_CHANCE, group_settings

SIZES = ("n", "d", "c", "t", "u", "bits", "total", "languages", "teacher")  # runs of equal sizes differ by noise alone
UNIT_MISTAKE = 300.0  # C over 6 N D from which on no way of counting explains it
SAME_RATIO = 1.5  # spread of C over 6 N D that still is one factor
SCATTER = 0.03  # of log loss at one size; seeds of language models scatter by less
UNIT_GAP = 1000.0  # between neighbouring sizes, where a few rows lie apart from the others: another unit
FEW = 0.1  # share of the rows that is a few
SUMMARIES = ("mean", "average", "avg", "median", "total", "sum", "std", "min", "max", "count")
FOLLOWS = 0.8  # correlation with the loss at equal sizes from which on a column of numbers is named
EXPLAINS = 0.4  # share of the scatter at equal sizes, or about a law, from which on a column is named


def doubts(frame: pd.DataFrame, found: Mapping[str, str]) -> list[str]:
    """What the numbers speak against. FitError for a unit mistake, cut decimals and rows that are no runs."""
    _refuse_summaries(frame)
    values = {
        name: frame[column].to_numpy(float) for name, column in found.items() if frame[column].dtype.kind in "iuf"
    }
    notes = []
    for name in ("n", "d"):
        if name in values:
            notes += _other_units(frame, found[name], values[name])
        if name in values and np.nanmax(values[name], initial=0.0) < 1000:
            raise FitError(
                f"{name} = {found[name]} goes up to {np.nanmax(values[name], initial=0.0):g}, and counts are expected: "
                f"if it is in millions or billions, say so in its header, for example {found[name]} (B)"
            )
    if (
        {"n", "d", "c"} <= set(values)
        and found["c"] != f"6 {found['n']} {found['d']}"
        and "/ 6" not in "".join(found[name] for name in ("n", "d"))
    ):
        notes += _check_compute(frame, found, values)
    if "loss" in values and np.nanmax(values["loss"] % 1, initial=0.0) == 0 and np.isfinite(values["loss"]).sum() > 2:
        raise FitError(
            f"loss = {found['loss']} holds whole numbers only: are its decimals cut off, or in another "
            "column? Mend that column"
        )
    if "loss" in values and np.nanmedian(values["loss"]) > LOSS_OF_CHANCE:
        raise FitError(
            f"loss = {found['loss']} is {np.nanmedian(values['loss']):.3g} in the middle, more than guessing any token "
            f"loses: a perplexity? Then name its column perplexity. A decimal comma? Then write a point. Else give the "
            "loss in nats per token"
        )
    return notes


def _refuse_summaries(frame: pd.DataFrame) -> None:
    """FitError where one of the last rows is labelled as the mean, or the like, of the others."""
    for name in frame.select_dtypes(exclude="number"):
        labels = frame[name].astype(str).str.strip().str.lower()
        last = labels.iloc[-8:]
        found = last[last.isin(SUMMARIES) & ~last.duplicated(keep=False)]
        if len(found) and (labels == found.iloc[0]).sum() == 1 and labels.nunique() > 2:
            raise FitError(
                f"{frame.index.name or 'row'} {found.index[0]} is {found.iloc[0]!r} in {name}: no run, but what sums "
                "the others up; remove such rows"
            )


def _other_units(frame: pd.DataFrame, column: str, values: Array) -> list[str]:
    """A word on a few sizes that lie far apart from all others."""
    known = np.unique(values[np.isfinite(values) & (values > 0)])
    gaps = known[1:] / known[:-1]
    if not len(gaps) or gaps.max() < UNIT_GAP:
        return []
    edge = known[gaps.argmax()]
    apart = values <= edge if (values <= edge).sum() < (values > edge).sum() else values > edge
    if apart.sum() > FEW * len(values):
        return []
    places = ", ".join(map(str, frame.index[apart][:5]))
    return [
        f"{column} is {values[apart][0]:g} in {frame.index.name or 'row'} {places}, {gaps.max():.1g} times away from "
        "all others: another unit? Look at these numbers"
    ]


def _check_compute(frame: pd.DataFrame, found: Mapping[str, str], values: Mapping[str, Array]) -> list[str]:
    """Whether C agrees with 6 N D: a word on another count, or on single rows. FitError for another unit."""
    if found["n"] == COLUMNS["n"] and found["c"] == COLUMNS["c"]:
        return []  # the results' own, which count attention and the head
    with np.errstate(all="ignore"):
        ratio = values["c"] / (6 * values["n"] * values["d"])
    known = ratio[np.isfinite(ratio) & (ratio > 0)]
    if not len(known):
        return []
    middle = float(np.median(known))
    if not 1 / UNIT_MISTAKE < middle < UNIT_MISTAKE:
        raise FitError(
            f"c = {found['c']} is {middle:.1e} times 6 n d (n = {found['n']}, d = {found['d']}): a unit mistake. Write "
            f"counts and FLOPs, or the unit in the header, for example {found['n']} (M), {found['d']} (B)"
        )
    far = frame.index[(ratio > 3 * middle) | ((ratio > 0) & (ratio < middle / 3))]
    low, high = np.percentile(known, [10, 90])
    if high > SAME_RATIO * low:
        return [f"c / (6 n d) goes from {known.min():.2g} to {known.max():.2g}: c, n or d is counted otherwise"]
    said = [f"c is {middle:.2g} times 6 n d throughout"] if not 0.8 < middle < 1.25 else []
    if len(far):
        places = ", ".join(map(str, far[:5])) + (", ..." if len(far) > 5 else "")
        said.append(
            f"{frame.index.name or 'row'} {places}: c is {ratio[frame.index == far[0]][0] / middle:.2g} times what "
            "the other rows say of n and d; look at these numbers"
        )
    return said


def separating(frame: pd.DataFrame, columns: Mapping[str, str], names: Sequence[str]) -> tuple[float, list[str]]:
    """Standard deviation of log loss between runs of equal sizes, and which of the columns would explain it.

    0 where no size was run twice, or the loss is not known.
    """
    sizes = [columns[name] for name in SIZES if name in columns]
    used = [*sizes, *([columns["loss"]] if "loss" in columns else [])]
    if not sizes or len(used) == len(sizes) or any(frame[name].dtype.kind not in "iuf" for name in used):
        return 0.0, []
    if not (frame[used] > 0).all(axis=None):
        return 0.0, []  # the law says what is wrong with them
    y = pd.Series(np.log(frame[columns["loss"]].to_numpy(float)), frame.index)
    size = group_settings(np.log(frame[sizes].to_numpy(float).T))
    within = y - y.groupby(size).transform("mean")
    dof = len(y) - len(np.unique(size))
    if dof < 1:
        return 0.0, []
    return float(np.sqrt((within**2).sum() / dof)), explaining(frame, within.to_numpy(), names, dof)


def following(frame: pd.DataFrame, columns: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """Those columns of numbers with which the loss of runs of equal sizes goes up or down."""
    sizes = [columns[name] for name in SIZES if name in columns]
    y = np.log(frame[columns["loss"]])
    found = []
    for name in names:
        if frame[name].dtype.kind in "iuf" and frame[name].nunique() > 2:
            pair = pd.DataFrame({"x": frame[name].rank(), "y": y})
            pair = pair - pair.groupby([frame[size] for size in sizes]).transform("mean")
            if abs(pair["x"].corr(pair["y"])) > FOLLOWS:
                found.append(name)
    return found


def explaining(frame: pd.DataFrame, residual: Array, names: Sequence[str], dof: int) -> list[str]:
    """Those columns whose values explain EXPLAINS of the residuals (n,), and more than chance does (p < 0.001)."""
    shares = {}
    for name in names:
        group = pd.factorize(frame[name].astype(str))[0]
        levels = int(group.max()) + 1
        if not 1 < levels <= len(frame) / 2 or dof - levels + 1 < 1:
            continue
        means = np.bincount(group, residual) / np.bincount(group)
        left = float(((residual - means[group]) ** 2).sum())
        total = float((residual**2).sum())
        spare = dof - levels + 1
        f = (total - left) / (levels - 1) / max(left / spare, 1e-300)
        share = 1 - (left / spare) / (total / dof) if total else 0.0
        if share > EXPLAINS and special.fdtrc(levels - 1, spare, f) < 1e-3:
            shares[name] = share
    return sorted(shares, key=lambda name: -shares[name])


def refuse_scattered(frame: pd.DataFrame, columns: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """FitError where runs of equal sizes differ by more than seeds do and a column of `names` says why; else a word."""
    scatter, why = separating(frame, columns, names)
    if scatter <= SCATTER:
        return []
    if why:
        raise FitError(
            f"runs of equal sizes differ by {scatter:.0%} in loss, and {' or '.join(why)} would separate them: name "
            f"it, for example --columns arm={why[0]}, or fit the rows of one value; --pool fits them together"
        )
    differ = f"runs of equal sizes differ by {scatter:.0%} in loss, more than seeds do:"
    if goes := following(frame, columns, names):
        return [
            f"{differ} the loss goes with {', '.join(goes)}; if that is a size, name it, as in --columns d={goes[0]}"
        ]
    varying = [name for name in names if frame[name].nunique(dropna=False) > 1]
    perhaps = f" ({', '.join(varying)} do not explain it)" if varying else ""
    return [f"{differ} what separates them is in no column{perhaps}"]
