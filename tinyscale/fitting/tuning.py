"""Laws of tuned settings: the learning rate, batch and weight decay of least loss as power laws of N, D and each other.

All runs of a search are fitted at once, by a bowl whose bottom moves with the size (`bowl.py`). Settings that vary but
are not tuned, as the batch in a law of the rate alone, keep their runs apart and are variables of the law.

Li et al. 2025 (2503.04715): lr* = k N^p D^q and B* = k D^q at the jointly best batch. Bergsma et al. 2025 (2505.13738):
AdamW's timescale tau = B / (lr w D), in epochs, as a power of D / N.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Array, Index, Mask
from tinyscale.fitting.bowl import Bowl, fit_bowl, own_optimum, rises
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.laws.optima import LAW_OF, SETTINGS, TUNING
from tinyscale.fitting.minimum import find_minimum
from tinyscale.fitting.optima import Optima
from tinyscale.fitting.points import SAME_BUDGET, column_of, group_sizes, positive, varying
from tinyscale.formatting import compact, plural

HOLDS_FOR = ("corpus_hash", "tokenizer_hash", "optimizer", "parametrization")  # elsewhere other values are best
LEAST_SIZES = 3
MOST_SHOWN = 12  # cells, in a refusal
LEAST_VALUES = 4  # of a setting at one size, to see a bottom
# What a formula calls a variable, and the exponent of it; a setting's own parameters end in what follows `k`.
SYMBOLS = {"n": "N", "d": "D", "batch_tokens": "B", "weight_decay": "w", "lr": "lr"}
MIDDLE = "middle_"
EXPONENTS = {"n": "p", "d": "q", "batch_tokens": "r", "weight_decay": "s", "lr": "t"}


@dataclass(frozen=True)
class _Search:
    """points: n, d, loss and settings, one row per run; tuned, given: settings to tune, and others that vary.

    cell: index of each run's N, D and given settings; ended: which runs have a loss, so did not diverge.
    """

    points: pd.DataFrame
    tuned: tuple[str, ...]
    given: tuple[str, ...]
    cell: Index
    ended: Mask

    def logs(self, names: Sequence[str], rows: Mask | slice = slice(None)) -> Array:
        """Logarithms (n, k) of these columns."""
        return np.asarray(np.log(self.points.loc[rows, list(names)].to_numpy(float)))

    @property
    def cells(self) -> pd.DataFrame:
        """One row per cell: n, d and given settings."""
        return self.points[["n", "d", *self.given]].groupby(self.cell).mean()


@dataclass(frozen=True)
class _Found:
    """bowl: fitted to `rows` of the search, with the optimum in the logarithms of `variables` less their `centre`."""

    search: _Search
    bowl: Bowl
    rows: Mask
    variables: tuple[str, ...]
    centre: Array
    refused: Mapping[int, _NoOptimumError]


def best_setting(law: Mapping[str, Estimate], n: float, d: float = 1.0, batch: float | None = None) -> float:
    """The first setting that a law tunes, at a size, by its estimates; d and batch matter only where the law has them.

    batch: left out, the best one, where the law tunes it as well.
    """
    value = _power(law, n, d)
    if batch is None or "r" not in law:
        return value
    return float(value * (batch / (_power(law, n, d, "_B") if "k_B" in law else 1.0)) ** law["r"].value)


def setting_beside(law: Mapping[str, Estimate], name: str, n: float, d: float) -> float:
    """A setting that a law tunes beside its first one, at a size."""
    return _power(law, n, d, f"_{SYMBOLS[name]}")


def _power(law: Mapping[str, Estimate], n: float, d: float, ending: str = "") -> float:
    k, p, q = (law[name + ending].value if name + ending in law else 0.0 for name in ("k", "p", "q"))
    return float(k * n**p * d**q)


def fit_tuning(frame: pd.DataFrame, law: str = "settings", *, columns: Mapping[str, str] | None = None) -> Optima:
    """The best values of the law's settings at each N and D, as far as they were searched.

    points: columns n, d, settings, loss, which is not finite where a run diverged. Parameters of a setting are k, p (of
    N), q (of D) and r (of a batch that is given), where these vary apart; `_B` and `_w` mark those of a batch and of a
    weight decay that are tuned beside the rate, which is then the one at the best batch, times (B / B*)^r at another.
    cost_lr and so on: nats per token that a setting costs at twice or half its best value. A setting that has no
    optimum inside its range at 3 sizes, or at most of them, is refused with the reason, and given from then on;
    FitError when none is left.
    """
    form = TUNING[law]
    frame, notes = _with_decay(
        frame.rename(columns={column: name for name, column in (columns or {}).items() if name in SETTINGS})
    )
    read, counts = _read(frame, columns), {name: column_of(frame, name, columns) for name in ("n", "d", "loss")}
    tuned = varying(frame, form.tunes)
    if not tuned:
        value = frame[column_of(frame, form.tunes[0])].iloc[0]
        raise FitError(f"a law of the best {form.tunes[0]} needs runs that differ in it: it is {value} in all of them")
    refused: list[str] = []
    whole = _search(read, tuned)  # one that goes with the size was not searched: it is given
    tuned = [name for name in tuned if read[name].groupby(whole.cell).nunique().max() > 1] or tuned[:1]
    while tuned:
        search = _search(read, tuned)
        try:
            return _optima(_fit(search), counts, _held(frame), [*notes, *refused])
        except _NoOptimumError as error:
            tuned.remove(error.setting)
            refused.append(f"no law of the best {error.setting}: {error}")
    raise FitError("; ".join(refused))


class _NoOptimumError(FitError):
    def __init__(self, setting: str, why: str) -> None:
        super().__init__(why)
        self.setting = setting


def _held(frame: pd.DataFrame) -> dict[str, Any]:
    """What all runs had in common that their best settings depend on."""
    shared = {
        name: frame[name].iloc[0] for name in (*HOLDS_FOR, *SETTINGS) if name in frame and not varying(frame, [name])
    }
    numbers = {name: pd.to_numeric(value, errors="coerce") for name, value in shared.items() if name in SETTINGS}
    tasks = {name: str(value) for name, value in shared.items() if name in HOLDS_FOR}
    return tasks | {name: _plain(float(value)) for name, value in numbers.items() if np.isfinite(value)}


def _plain(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def _with_decay(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Without the runs that do not decay weights, where others do: there is no logarithm of none. What was left out."""
    if "weight_decay" not in varying(frame, ["weight_decay"]):
        return frame, []
    decays = pd.to_numeric(frame["weight_decay"], errors="coerce") != 0
    without = int((~decays).sum())
    notes = [f"{plural(without, 'run')} left out: weight_decay is 0 in them, which a power law cannot reach"]
    return frame[decays], notes if without else []


def _read(frame: pd.DataFrame, columns: Mapping[str, str] | None) -> pd.DataFrame:
    """n, d, the settings that vary, and loss, which is infinite where a run diverged."""
    read = {name: positive(frame[column_of(frame, name, columns)]) for name in ("n", "d")}
    loss = pd.to_numeric(frame[column_of(frame, "loss", columns)], errors="coerce")
    read["loss"] = positive(loss.where(np.isfinite(loss), 1.0)) * np.where(np.isfinite(loss), 1.0, np.inf)
    return pd.DataFrame(read | {name: positive(frame[name]) for name in SETTINGS if varying(frame, [name])})


def _search(points: pd.DataFrame, tuned: Sequence[str]) -> _Search:
    given = [name for name in SETTINGS if name in points and name not in tuned]
    x = np.log(points[["n", "d", *given]].to_numpy(float))
    same = [0.01, SAME_BUDGET, *(0.01 for _ in given)]
    groups = np.stack([group_sizes(column, each) for column, each in zip(x.T, same, strict=True)])
    cell = np.unique(groups, axis=1, return_inverse=True)[1].ravel().astype(np.intp)
    return _Search(points, tuple(tuned), tuple(given), cell, np.isfinite(points["loss"].to_numpy(float)))


def _fit(search: _Search) -> _Found:
    """The bowl through the runs of all cells that have an optimum inside. _NoOptimumError where too few have."""
    refused = _without_values(search)
    logs, cells = search.logs(search.tuned), search.cells.apply(np.log)
    while True:
        _require_sizes(search, refused)
        rows = search.ended & ~np.isin(search.cell, list(refused))
        variables = _variables(search.cells.drop(list(refused)))
        sizes = search.logs(variables)
        centre = sizes[rows].mean(axis=0)
        loss = np.log(search.points["loss"].to_numpy(float)[rows])
        bowl = fit_bowl(logs[rows], sizes[rows] - centre, loss, _numbered(search.cell[rows]))
        if not rises(bowl):
            flat = int(np.abs(np.linalg.eigh(bowl.curvature)[1][:, 0]).argmax()) if bowl.weight.any() else -1
            raise _NoOptimumError(search.tuned[flat], "the loss does not rise on both sides of a best value")
        _refuse_flat(search, bowl)
        outside = _outside(search, bowl.at(cells[list(variables)].to_numpy(float) - centre))
        if not outside.keys() - refused.keys():
            return _Found(search, bowl, rows, variables, centre, refused)
        refused = {**outside, **refused}


def _numbered(index: Index) -> Index:
    """The same groups, numbered from 0 without gaps."""
    return np.unique(index, return_inverse=True)[1].astype(np.intp)


def _without_values(search: _Search) -> dict[int, _NoOptimumError]:
    """Cells in which a setting has too few values."""
    found: dict[int, _NoOptimumError] = {}
    for name in search.tuned:
        tried = search.points[name].where(search.ended).groupby(search.cell).nunique().to_numpy()
        for index in np.flatnonzero(tried < LEAST_VALUES).tolist():
            found[index] = _NoOptimumError(name, f"{tried[index]} values of {name}, {LEAST_VALUES} are needed")
    return found


def _refuse_flat(search: _Search, bowl: Bowl) -> None:
    """_NoOptimumError for a setting in which the loss, all others at their best, rises by less than a run's noise."""
    for name, curvature in zip(search.tuned, 1 / np.diag(np.linalg.inv(bowl.curvature)), strict=True):
        if curvature / 2 * (_searched(search, name) / 2) ** 2 < bowl.sd:
            raise _NoOptimumError(
                name, "over the range that was searched the loss changes by less than the noise of a run"
            )


def _outside(search: _Search, at: Array) -> dict[int, _NoOptimumError]:
    """Cells whose log optimum (cells, m) is not inside what was tried there, runs that diverged included."""
    found: dict[int, _NoOptimumError] = {}
    for name, each in zip(search.tuned, at.T, strict=True):
        tried = np.log(search.points[name]).groupby(search.cell)
        low, high = tried.min().to_numpy(), tried.max().to_numpy()
        for index in np.flatnonzero((each <= low) | (each >= high)).tolist():
            side = "smallest" if each[index] <= low[index] else "highest" if name == "lr" else "largest"
            found[index] = _NoOptimumError(
                name, f"the loss is lowest at the {side} {name}: the bottom is not inside the range"
            )
    return found


def _require_sizes(search: _Search, refused: Mapping[int, _NoOptimumError]) -> None:
    """_NoOptimumError where fewer than 3 sizes are left, or a setting is to blame for most cells that are refused."""
    cells, blamed = search.cells, [each.setting for each in refused.values()]
    name = max(reversed(search.tuned), key=blamed.count)
    kept = np.log(cells.drop(list(refused))[["n", "d"]].to_numpy(float)).reshape(-1, 2)
    sizes = np.stack([group_sizes(kept[:, 0]), group_sizes(kept[:, 1], SAME_BUDGET)])
    if np.unique(sizes, axis=1).shape[1] < LEAST_SIZES or blamed.count(name) > len(cells) / 2:
        each = [
            f"{_at(search, index)}: {refused.get(index) or _own(search, index)}" for index in cells.index[:MOST_SHOWN]
        ]
        found = "; ".join(each) + (f"; and {len(cells) - MOST_SHOWN} more" if len(cells) > MOST_SHOWN else "")
        raise _NoOptimumError(
            name, f"a law of the best {name} needs {LEAST_SIZES} sizes with a best value inside; {found}"
        )


def _at(search: _Search, index: int) -> str:
    """`N = 12.3K, batch_tokens = 4096`."""
    n, *given = search.cells[["n", *search.given]].to_numpy(float)[index]
    return ", ".join(
        [f"N = {compact(n)}", *(f"{name} = {value:g}" for name, value in zip(search.given, given, strict=True))]
    )


def _own(search: _Search, index: int) -> str:
    """The best value of a cell by its own runs."""
    rows = search.ended & (search.cell == index)
    x, y = search.logs([search.tuned[0]], rows)[:, 0], search.logs(["loss"], rows)[:, 0]
    found = find_minimum(x, y, what=search.tuned[0])
    if found.refused or len(search.tuned) > 1:
        return found.refused or "a best value inside"
    low, high = np.exp(found.at + np.array([-1.96, 1.96]) * found.sd)
    return f"best {search.tuned[0]} {np.exp(found.at):.3g} (95 %: {low:.3g} to {high:.3g})"


def _variables(cells: pd.DataFrame) -> tuple[str, ...]:
    """What the optimum is a power of: N; D and given settings where these vary apart and cells are left over."""
    kept = ["n"]
    for name in cells.columns.drop("n"):
        if len(cells) > len(kept) + 3 and _vary_apart(np.log(cells[[*kept, name]].to_numpy(float))):
            kept.append(name)
    return tuple(kept)


def _vary_apart(logarithms: Array) -> bool:
    """Whether the columns (n, k) vary apart from each other, and not all along one line."""
    centred = logarithms - logarithms.mean(axis=0)
    return bool(np.linalg.svd(centred, compute_uv=False)[-1] > 0.5)


def _parameters(found: _Found, bowl: Bowl) -> dict[str, float]:
    """Parameters and what follows from them by name, those of `_is_log` as logarithms.

    MIDDLE of a setting: its log optimum in the middle of the sizes.
    """
    values: dict[str, float] = {}
    tuned, curvature = found.search.tuned, bowl.curvature
    for name, row in zip(tuned, bowl.optimum, strict=True):
        ending = "" if name == tuned[0] else f"_{SYMBOLS[name]}"
        values[f"k{ending}"] = row[0] - row[1:] @ found.centre
        values |= {f"{EXPONENTS[each]}{ending}": value for each, value in zip(found.variables, row[1:], strict=True)}
    for index, name in enumerate(tuned[1:], 1):  # of the first setting, where this one is not at its best
        values[EXPONENTS[name]] = -curvature[0, index] / curvature[0, 0]
    if tuned == SETTINGS:
        lr, batch, decay = bowl.optimum
        tau = batch - lr - decay
        values["k_tau"] = tau[0] - tau[1:] @ found.centre
        for each, value in zip(found.variables, tau[1:], strict=True):
            values[f"{EXPONENTS[each]}_tau"] = value - (each == "d")
    level = np.average(bowl.height, weights=bowl.weight)
    for index, name in enumerate(tuned):
        nats = curvature[index, index] / 2 * np.log(2) ** 2
        values[f"cost_{SYMBOLS[name]}"] = level + np.log(max(nats, 1e-300))
    return values | {f"{MIDDLE}{name}": row[0] for name, row in zip(tuned, bowl.optimum, strict=True)}


def _estimates(found: _Found) -> tuple[dict[str, Estimate], int]:
    """Each parameter with its interval, and the degrees of freedom: by leaving out one cell at a time.

    That the optimum of a cell is off the law by more than its runs' noise then widens the intervals. _NoOptimumError
    for a setting in which the loss is too flat.
    """
    search, bowl, rows = found.search, found.bowl, found.rows
    cell, values = search.cell[rows], _parameters(found, found.bowl)
    logs, sizes = search.logs(search.tuned, rows), search.logs(found.variables, rows) - found.centre
    loss = search.logs(["loss"], rows)[:, 0]
    cells = np.unique(cell)
    without = []
    for index in cells:
        rest = cell != index
        refit = fit_bowl(logs[rest], sizes[rest], loss[rest], _numbered(cell[rest]), near=bowl)
        if not rises(refit):
            raise _NoOptimumError(search.tuned[-1], f"without {_at(search, int(index))} the loss has no bottom")
        without.append(list(_parameters(found, refit).values()))
    best = np.array(list(values.values()))
    dof = max(len(cells) - len(found.variables) - 1, 1)
    spread = np.sqrt((len(cells) - 1) / len(cells) * ((np.array(without) - best) ** 2).sum(axis=0))
    for name, sd in zip(values, spread, strict=True):
        if name.startswith(MIDDLE) and 4 * sd > _searched(search, setting := name.removeprefix(MIDDLE)):
            raise _NoOptimumError(
                setting, "the loss is too flat in it for its noise: the bottom may be outside the range"
            )
    half_widths = special.stdtrit(dof, 0.975) * spread
    estimates = {name: Estimate.around(*each) for name, *each in zip(values, best, half_widths, strict=True)}
    shown = {name: each for name, each in estimates.items() if not name.startswith(MIDDLE)}
    return {name: each.map(_exp) if _is_log(name) else each for name, each in shown.items()}, dof


def _searched(search: _Search, name: str) -> float:
    """How wide a setting was searched in a cell, in its logarithm."""
    tried = np.log(search.points[name]).groupby(search.cell)
    return float(np.median(tried.max() - tried.min()))


def _is_log(name: str) -> bool:
    return name.startswith(("k", "cost"))


def _exp(log: float) -> float:
    return float(np.exp(np.clip(log, -700, 700)))


def _formula(found: _Found) -> str:
    """`lr* = k N^p D^q (B / B*)^r, B* = k_B N^p_B D^q_B`."""
    tuned, parts = found.search.tuned, []
    for name in tuned:
        ending = "" if name == tuned[0] else f"_{SYMBOLS[name]}"
        powers = [f"{SYMBOLS[each]}^{EXPONENTS[each]}{ending}" for each in found.variables]
        beside = [f"({SYMBOLS[each]} / {SYMBOLS[each]}*)^{EXPONENTS[each]}" for each in tuned[1:] if name == tuned[0]]
        shown = name if name == tuned[0] else SYMBOLS[name]
        parts.append(f"{shown}* = {' '.join([f'k{ending}', *powers, *beside])}")
    return ", ".join(parts)


def _optima(found: _Found, columns: Mapping[str, str], of: Mapping[str, Any], notes: Sequence[str]) -> Optima:
    """The law with its table: one row per cell, with its optimum by its own runs and the common shape of the bowl."""
    search, bowl = found.search, found.bowl
    estimates, dof = _estimates(found)
    derived = {name: each for name, each in estimates.items() if name.startswith("cost") or name.endswith("_tau")}
    first, *others = search.tuned
    runs = search.points[search.ended].rename(columns={first: "setting"})
    return Optima(
        law=LAW_OF.get(search.tuned, TUNING["settings"]),
        formula=_formula(found),
        estimates=MappingProxyType({name: each for name, each in estimates.items() if name not in derived}),
        derived=MappingProxyType(derived),
        table=_table(found),
        runs=runs.reset_index(drop=True),
        columns=MappingProxyType({**columns, "setting": first, **{name: name for name in others}}),
        objective={
            "value": None,
            "kind": "a quadratic about the optimum, by robust least squares of log loss near it",
            "tuned": list(search.tuned),
            "curvature": bowl.curvature.tolist(),
            "window": bowl.window,
        },
        dof=dof,
        method="jackknife",
        held_out=None,
        warnings=(*notes, *_notes(found)),
        of=MappingProxyType(dict(of)),
    )


def _table(found: _Found) -> pd.DataFrame:
    search, bowl = found.search, found.bowl
    others = search.tuned[1:]
    logs, sizes = search.logs(search.tuned, found.rows), search.logs(found.variables, found.rows) - found.centre
    table = []
    for index, row in search.cells.iterrows():
        number = int(str(index))
        mine = search.cell[found.rows] == number
        at, sd = own_optimum(bowl, logs, sizes, mine) if mine.any() else (np.full(len(search.tuned), np.nan),) * 2
        height = np.exp(bowl.height[mine].mean()) if mine.any() else np.nan
        best = {"best": np.exp(at[0]), "log_sd": sd[0], "loss": height}
        for name, value, each in zip(others, at[1:], sd[1:], strict=True):
            best |= {f"best_{name}": np.exp(value), f"log_sd_{name}": each}
        table.append({**row, **best, "refused": str(found.refused.get(number, ""))})
    made = pd.DataFrame(table)
    return made.astype({name: int for name in made if name == "batch_tokens"})


def _notes(found: _Found) -> list[str]:
    search, bowl = found.search, found.bowl
    notes = [f"{_at(search, index)}: {why}" for index, why in found.refused.items()]
    apart = [name for name in search.given if name not in found.variables]
    if apart:
        notes.append(
            f"batches differ ({', '.join(apart)}) and follow the size: the law is of the batch that each size had"
        )
    if lost := int((~search.ended).sum()):
        notes.append(f"{plural(lost, 'run')} diverged: they count to the range that was searched, not to the fit")
    if off := int(bowl.off.sum()):
        notes.append(f"{plural(off, 'run')} near the optimum not fitted: off the others by more than noise")
    return notes
