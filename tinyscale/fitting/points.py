"""From a frame of runs to the points of a fit: which column is what, which rows count, what belongs together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Array, Index, Mask, some_of
from tinyscale.fitting.laws import Law
from tinyscale.fitting.solve import Problem
from tinyscale.formatting import compact

# What a law calls it -> the results' column. A frame with a column of the law's own name may use that instead.
COLUMNS = {
    "n": "n_non_embedding", "d": "tokens", "c": "flops", "t": "context_length", "u": "unique_tokens",
    "width": "d_model", "depth": "n_layers", "latents": "latents", "active": "active", "bits": "bits",
    "teacher": "teacher_loss", "total": "tokens", "languages": "languages",
    "loss": "val_loss",
}  # fmt: skip

SAME_SIZE = 0.01  # sizes whose logarithms differ by less are one size
SAME_BUDGET = 0.05  # budgets whose logarithms differ by less are one: whole steps do not hit a budget exactly
ROUNDING = 1e-6  # steps whose widths differ by a smaller share are equally wide
LOSS_OF_CHANCE = 15.0  # nats per token: above the logarithm of any vocabulary
CONSTANT = 0.05  # a quantity that spreads by less, as a share, counts as held fixed


@dataclass(frozen=True)
class Points:
    """The points of a fit, one row each, in the order of `frame`.

    x (k, n) and y (n,): logarithms of the variables and the loss; size (n,): index of the size, small to large, seeds
    share one; cluster (n,): points of one run, or that differ only in their seed, share a cluster; counts: the columns
    that were read; names: how a message names each point, none where no message will; copies: rows of the frame that
    were left out, as exact copies of others.
    """

    frame: pd.DataFrame
    x: Array
    y: Array
    size: Index
    cluster: Index
    counts: Mapping[str, str]
    names: tuple[str, ...] = ()
    copies: int = 0

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def sizes(self) -> int:
        """How many different sizes there are."""
        return int(self.size.max()) + 1

    @cached_property
    def config(self) -> Index:
        """Index (n,) of each point's setting of the variables; seeds share one."""
        return group_settings(self.x)

    def configs(self, keep: Mask | slice = slice(None)) -> int:
        """How many different settings of the variables there are among the points kept."""
        return int(np.count_nonzero(np.bincount(self.config[keep])))

    def names_where(self, which: Mask, most: int = 3) -> str:
        """What messages call those points, the first few of them."""
        named = [name for name, said in zip(self.names, which, strict=True) if said]
        return ", ".join(named[:most]) + (f" and {len(named) - most} more" if len(named) > most else "")

    def only(self, keep: Mask) -> Points:
        """Those of the points."""
        size, cluster = (np.unique(index[keep], return_inverse=True)[1] for index in (self.size, self.cluster))
        names = tuple(name for name, kept in zip(self.names, keep, strict=False) if kept)
        frame = self.frame[keep].reset_index(drop=True)
        return Points(frame, self.x[:, keep], self.y[keep], size, cluster, self.counts, names, self.copies)

    def at_most(self, most: int) -> tuple[Points, int]:
        """So many of the points, chosen at random, the same of the same points; and how many are left out."""
        if len(self) <= most:
            return self, 0
        keep = np.zeros(len(self), bool)
        keep[some_of(len(self), most)] = True
        return self.only(keep), len(self) - most

    def problem(self, law: Law, delta: float, above: float = 1.0) -> Problem:
        """For the solver; all points count alike unless a column `weight` was read, or those above the law for less."""
        weight = self.frame["weight"].to_numpy(float) if "weight" in self.frame else np.ones(len(self))
        return Problem(law, self.x, self.y, weight, delta, above)


def column_of(frame: pd.DataFrame, variable: str, columns: Mapping[str, str] | None = None) -> str:
    """The frame's column that holds a law's variable. FitError says what was looked for and what there is."""
    wanted = [columns[variable]] if columns and variable in columns else [COLUMNS.get(variable, variable)]
    wanted += [variable] if variable in COLUMNS and wanted == [COLUMNS[variable]] else []
    for name in wanted:
        if name in frame.columns:
            return name
    raise FitError(
        f"no column {' or '.join(wanted)} for {variable!r}; the columns are {', '.join(map(str, frame.columns))}: "
        f"name it with --columns {variable}=COLUMN (columns={{'{variable}': ...}} in Python)"
    )


def positive(column: pd.Series[Any]) -> Array:
    """The column's numbers (n,). FitError on a value that has no logarithm."""
    values = np.asarray(pd.to_numeric(column, errors="coerce"), float)
    bad = column[~(np.isfinite(values) & (values > 0))]
    if len(bad):
        first = "blank" if pd.isna(bad.iloc[0]) else repr(bad.iloc[0]) if isinstance(bad.iloc[0], str) else bad.iloc[0]
        remedy = "mend or remove those rows" if len(bad) < len(column) else "write them as 3.21, 50000000, 5e7 or 50M"
        raise FitError(
            f"column {column.name}: {len(bad)} of {len(column)} values are not positive numbers, the first is {first} "
            f"in {column.index.name or 'row'} {bad.index[0]}; {remedy}"
        )
    return values


def read_points(frame: pd.DataFrame, law: Law, columns: Mapping[str, str] | None = None) -> Points:
    """The points of `frame` that `law` is fitted to. FitError on a missing column or a value that has no logarithm."""
    optional = ["weight"] if columns and "weight" in columns else []
    counts = {name: column_of(frame, name, columns) for name in (*law.variables, "loss", *optional)}
    rows = len(frame)
    frame = frame[~exact_copies(frame)]
    kept = pd.DataFrame({name: positive(frame[column]) for name, column in counts.items()}, index=frame.index)
    for name in ("run", "seed", "trial"):
        if name in frame.columns:
            kept[name] = frame[name]
    names = tuple(_names(kept))
    kept = kept.reset_index(drop=True)
    x = np.log(kept[list(law.variables)].to_numpy(float).T)
    y = np.log(kept["loss"].to_numpy(float))
    size = group_sizes(x[: len(law.sizes) or 1].sum(axis=0) if len(law.variables) <= 2 else x[0])
    return Points(kept, x, y, size, _clusters(x, kept.get("run")), counts, names, rows - len(kept))


def exact_copies(frame: pd.DataFrame) -> pd.Series[bool]:
    """Which rows repeat an earlier one in every column: no runs of their own, as seeds are."""
    cells = frame.astype(dict.fromkeys(frame.columns[frame.dtypes == "object"], str))  # a list has no hash
    return cells.duplicated()


def _names(frame: pd.DataFrame) -> Iterator[str]:
    """What a message calls each row: its trial or run, else where it stands."""
    for name in ("trial", "run"):
        if name in frame and frame[name].notna().all():
            return (f"{name} {value}" for value in frame[name])
    return (f"{frame.index.name or 'row'} {value}" for value in frame.index)


def group_sizes(logarithm: Array, same: float = SAME_SIZE) -> Index:
    """Index (n,) of each value's size, small to large; values within `same` of their neighbour are one size.

    Of no size do values lie further than `same` from its middle: a longer chain of neighbours is cut at its widest
    step, or the middle one of several, until its parts are sizes.
    """
    order = np.argsort(logarithm, kind="stable")
    values = logarithm[order]
    step = np.diff(values, prepend=values[:1])
    starts = step > same
    parts = list(pairwise((0, *np.flatnonzero(starts).tolist(), len(values))))
    while parts:
        first, end = parts.pop()
        if end - first > 2 and values[end - 1] - values[first] > 2 * same:
            inner = step[first + 1 : end]
            widest = np.flatnonzero(inner > inner.max() * (1 - ROUNDING))
            cut = first + 1 + int(widest[len(widest) // 2])
            starts[cut] = True
            parts += [(first, cut), (cut, end)]
    index = np.empty(len(logarithm), np.intp)
    index[order] = np.cumsum(starts)
    return index


def group_settings(x: Array, same: float = SAME_SIZE) -> Index:
    """Index (n,) of each point's combination of sizes of the variables x (k, n)."""
    sizes = np.stack([group_sizes(row, same) for row in x])
    return np.asarray(np.unique(sizes, axis=1, return_inverse=True)[1].ravel(), np.intp)


def _clusters(x: Array, run: pd.Series[Any] | None) -> Index:
    """Index (n,) of each point's cluster: connected through a shared run or through the same variables."""
    config = group_settings(x)
    if run is None or run.isna().any():
        return config
    label, before = config, None
    runs = pd.factorize(run)[0]
    while before is None or (label != before).any():
        before = label
        for groups in (runs, config):  # the smallest label of a group spreads to all of it
            least = np.full(groups.max() + 1, len(label))
            np.minimum.at(least, groups, label)
            label = least[groups]
    return np.unique(label, return_inverse=True)[1]


def held_variables(law: Law) -> tuple[str, ...]:
    """The variables that say what a law of one size, or none, holds fixed; none of a joint law."""
    if len(law.sizes) > 1:
        return ()
    return ("n", "d", "c") if law.variables == ("t",) else ("n", "d")


def describe_slice(frame: pd.DataFrame, law: Law, columns: Mapping[str, str] | None = None) -> str:
    """What was held fixed while the law's one variable moved; empty for a joint law, which is no slice."""
    names = held_variables(law)
    if not names:
        return ""
    try:
        n, d, *c = (positive(frame[column_of(frame, name, columns)]) for name in names)
    except FitError:
        return "the other sizes are not known: the floor and the exponent belong to whatever was held fixed"
    held = (
        *((_constant(each), f"at fixed FLOPs C = {compact(np.median(each))}") for each in c),
        ("d" not in law.variables and _constant(d), f"at fixed tokens D = {compact(np.median(d))}"),
        ("n" not in law.variables and _constant(n), f"at fixed parameters N = {compact(np.median(n))}"),
        (_constant(d / n), f"at a fixed ratio D/N = {np.median(d / n):.3g}"),
    )
    if not law.sizes and _constant(d) and _constant(n):
        return f"{held[-3][1]} and {held[-2][1].removeprefix('at fixed ')}"
    other, values = ("N", n) if law.sizes == ("d",) else ("D", d)
    moving = f"neither {other} nor D/N is held fixed ({other} = {compact(values.min())} to {compact(values.max())})"
    return next((what for holds, what in held if holds), moving)


def _constant(values: Array) -> bool:
    return bool(values.max() <= values.min() * (1 + CONSTANT))


def varying(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Those of the columns that are there and hold more than one value."""
    return [name for name in names if name in frame.columns and frame[name].nunique(dropna=False) > 1]
