"""From saved fits to predictions: the loss of a run, or the best run of a budget, and how far out it lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tinyscale.analysis.records import read_curve, read_fit
from tinyscale.errors import FitError
from tinyscale.fitting.estimate import Estimate, estimates_json
from tinyscale.fitting.frontier import frontier
from tinyscale.fitting.isoflop import optimum_line
from tinyscale.fitting.laws import Law
from tinyscale.fitting.record import Record
from tinyscale.fitting.text import describe_members
from tinyscale.formatting import compact
from tinyscale.storage import Folder

FLAGS = {"n": "--n", "d": "--tokens", "c": "--flops"}
FAR = 10.0  # times the fitted range; beyond, nothing in the data speaks for the law


@dataclass(frozen=True)
class Prediction:
    """name: of the fit; values: quantity -> its estimate; notes: what to know before using it; floors: of a law with a
    floor, the loss with the floor held at values across its interval, and their likelihoods.
    """

    name: str
    formula: str
    values: Mapping[str, Estimate]
    notes: tuple[str, ...]
    floors: pd.DataFrame | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values; an open end is null."""
        values = estimates_json(self.values)
        floors = {} if self.floors is None else {"floors": self.floors.to_dict("records")}
        return {"name": self.name, "formula": self.formula, "values": values, "notes": list(self.notes), **floors}


def predict_all(folder: Folder, records: Sequence[Record], asked: Mapping[str, float]) -> list[Prediction]:
    """What each saved fit says of the sizes asked for (n, d, c, ...): those that can.

    A law of exactly the variables asked for predicts the loss; asked for FLOPs alone, joint laws and IsoFLOPs predict
    the compute-optimal run. FitError when no fit can.
    """
    found = [made for record in records if (made := _predict(folder, record, asked)) is not None]
    if not found:
        given = " and ".join(FLAGS[name] for name in asked) or "nothing"
        raise FitError(f"no fit predicts from {given} alone; " + "; ".join(map(_takes, records)))
    return found


def _takes(record: Record) -> str:
    """What a fit predicts from."""
    if record.form.kind == "budgets":
        return f"{record.name} takes --flops"
    if record.form.kind in ("sizes", "jumps", "texts"):
        return f"{record.name} is the law {record.law} and predicts no loss"
    if unknown := [name for name in record.range if name not in FLAGS]:
        return f"{record.name} takes {', '.join(record.range)}, and {', '.join(unknown)} only Python gives it"
    either = ", or --flops alone" if record.form.has_frontier else ""
    return f"{record.name} takes {' with '.join(FLAGS[name] for name in record.range)}{either}"


def _predict(folder: Folder, record: Record, asked: Mapping[str, float]) -> Prediction | None:
    of_budget = set(asked) == {"c"}
    if record.form.kind == "budgets":
        return _from_optima(record, asked["c"]) if of_budget else None
    if record.form.kind in ("sizes", "jumps", "texts"):
        return None
    sizes, values = {name: asked[name] for name in record.range if name in asked}, {}
    if of_budget and record.form.has_frontier:
        best = frontier(read_curve(folder, record), asked["c"]).iloc[0]
        sizes = {"n": best["n"], "d": best["d"]}
        values = {name: _estimate(best, key, f"{key}_low", f"{key}_high") for name, key in _FRONTIER.items()}
    if set(sizes) != set(record.range):
        return None
    found = read_fit(folder, record)
    row = found.predict(noise=True, **sizes).iloc[0]
    values["loss"] = _estimate(row, "loss", "low", "high")
    floors = found.floors(**sizes) if _has_free_floor(record) else None
    notes = (*_distance(record.range, sizes), *_slice(record, asked), *_laws(record), *record.warnings)
    return Prediction(record.name, record.formula, values, notes, floors)


def _has_free_floor(record: Record) -> bool:
    """Whether the law has a floor, with an interval to choose others from."""
    floor = record.form.irreducible if isinstance(record.form, Law) else None
    ends = record.estimates[floor].ends if floor else (0.0, 0.0)
    return bool(np.isfinite(ends).all() and ends[0] < ends[1])


def _laws(record: Record) -> list[str]:
    """Which laws the forecast averages."""
    if len(record.forecast) < 2:
        return []
    return [f"the loss is the forecast of {describe_members(record)}, not this law's alone"]


_FRONTIER = {"N*": "n", "D*": "d"}


def _estimate(row: pd.Series[float], *columns: str) -> Estimate:
    return Estimate(*(float(row[column]) for column in columns))


def _from_optima(record: Record, flops: float) -> Prediction:
    table, at = record.kept, float(np.log(flops))
    columns = {"N*": "best", "D*": "best_d"}
    values = {name: optimum_line(table, column).at(at).map(np.exp) for name, column in columns.items()}
    notes = _distance({"c": [table["c"].min(), table["c"].max()]}, {"c": flops})
    return Prediction(record.name, record.formula, values, (*notes, *record.warnings))


def _distance(fitted: Mapping[str, Sequence[float]], asked: Mapping[str, float]) -> list[str]:
    notes = []
    for name, value in asked.items():
        low, high = fitted[name]
        times, end = (value / high, "largest") if value > high else (low / value, "smallest")
        if times > 1.001:
            far = ": a guess, nothing in the data reaches there" if times > FAR else ""
            at = compact(high if end == "largest" else low)
            notes.append(f"{name.upper()} = {compact(value)} is {times:.3g} times beyond the {end} fitted ({at}){far}")
    return notes


def _slice(record: Record, asked: Mapping[str, float]) -> list[str]:
    unused = sorted(set(asked) - set(record.range))
    if not record.slice:
        return []
    ignored = f"; {', '.join(name.upper() for name in unused)} is not in it and was not used" if unused else ""
    return [f"this law holds {record.slice}{ignored}"]


def describe_prediction(made: Prediction) -> str:
    """A prediction as a block of lines."""
    lines = [f"{made.name}: {made.formula}"]
    for name, each in made.values.items():
        show = (lambda v: f"{v:.4f}") if name == "loss" else compact
        lines.append(f"  {name:5} {show(each.value):>10}   95 %: {show(each.low)} to {show(each.high)}")
    if made.floors is not None:
        lines += ["  by the law's own floor:", *map("  ".join, _floor_rows(made.floors))]
    return "\n".join(lines + [f"  note: {note}" for note in made.notes])


def _floor_rows(floors: pd.DataFrame) -> list[tuple[str, ...]]:
    heads = [("", f"{'floor':>10}", f"{'loss':>10}", f"{'likelihood':>10}")]
    return heads + [("", *(f"{value:>10.4g}" for value in row)) for row in floors.itertuples(index=False)]
