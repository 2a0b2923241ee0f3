"""From saved fits to predictions: the loss of a run, or the best run of a budget, and how far out it lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tinyscale.analysis.records import read_curve
from tinyscale.errors import FitError
from tinyscale.fitting.estimate import Estimate, estimates_json
from tinyscale.fitting.frontier import frontier
from tinyscale.fitting.isoflop import optimum_line
from tinyscale.fitting.laws import find_law
from tinyscale.formatting import compact
from tinyscale.storage import Folder

FLAGS = {"n": "--n", "d": "--tokens", "c": "--flops"}
FAR = 10.0  # times the fitted range; beyond, nothing in the data speaks for the law


@dataclass(frozen=True)
class Prediction:
    """name: of the fit; values: quantity -> its estimate; notes: what to know before using it."""

    name: str
    formula: str
    values: Mapping[str, Estimate]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values; an open end is null."""
        values = estimates_json(self.values)
        return {"name": self.name, "formula": self.formula, "values": values, "notes": list(self.notes)}


def predict_all(folder: Folder, records: Sequence[Mapping[str, Any]], asked: Mapping[str, float]) -> list[Prediction]:
    """What each saved fit says of the sizes asked for (n, d, c, ...): those that can.

    A law of exactly the variables asked for predicts the loss; asked for FLOPs alone, joint laws and IsoFLOPs predict
    the compute-optimal run. FitError when no fit can.
    """
    found = [made for entry in records if (made := _predict(folder, entry, asked)) is not None]
    if not found:
        given = " and ".join(FLAGS[name] for name in asked) or "nothing"
        raise FitError(f"no fit predicts from {given} alone; " + "; ".join(map(_takes, records)))
    return found


def _takes(entry: Mapping[str, Any]) -> str:
    """What a fit predicts from."""
    if entry["law"] in ("isoflop", "envelope"):
        return f"{entry['name']} takes --flops"
    if "range" not in entry:
        return f"{entry['name']} is a law of the best {entry['law']} and predicts no loss"
    if unknown := [name for name in entry["range"] if name not in FLAGS]:
        return f"{entry['name']} takes {', '.join(entry['range'])}, and {', '.join(unknown)} only Python gives it"
    either = ", or --flops alone" if find_law(entry["law"]).has_frontier else ""
    return f"{entry['name']} takes {' with '.join(FLAGS[name] for name in entry['range'])}{either}"


def _predict(folder: Folder, entry: Mapping[str, Any], asked: Mapping[str, float]) -> Prediction | None:
    if entry["law"] in ("isoflop", "envelope"):
        return _from_optima(entry, asked["c"]) if set(asked) == {"c"} else None
    if "range" not in entry:
        return None
    needed = list(entry["range"])
    if set(asked) == {"c"} and find_law(entry["law"]).has_frontier:
        row = frontier(read_curve(folder, entry), asked["c"]).iloc[0]
        values = {
            name: Estimate(*(float(row[f"{key}{end}"]) for end in ("", "_low", "_high")))
            for name, key in _FRONTIER.items()
        }
        sizes = {"n": row["n"], "d": row["d"]}
    elif set(needed) <= set(asked):
        sizes = {name: asked[name] for name in needed}
        row = read_curve(folder, entry).predict(**sizes).iloc[0]
        values = {"loss": Estimate(*(float(row[name]) for name in ("loss", "low", "high")))}
    else:
        return None
    notes = [*_distance(entry["range"], sizes), *_slice(entry, asked), *entry["warnings"]]
    return Prediction(entry["name"], entry["formula"], values, tuple(notes))


_FRONTIER = {"N*": "n", "D*": "d", "loss": "loss"}


def _from_optima(entry: Mapping[str, Any], flops: float) -> Prediction:
    table = pd.DataFrame(entry["optima"])
    table = table[table["refused"] == ""].astype({"n_star": float, "d_star": float, "log_n_sd": float})
    at = float(np.log(flops))
    columns = {"N*": "n_star", "D*": "d_star"}
    values = {name: optimum_line(table, column).at(at).map(np.exp) for name, column in columns.items()}
    notes = _distance({"c": [table["c"].min(), table["c"].max()]}, {"c": flops})
    return Prediction(entry["name"], entry["formula"], values, (*notes, *entry["warnings"]))


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


def _slice(entry: Mapping[str, Any], asked: Mapping[str, float]) -> list[str]:
    unused = sorted(set(asked) - set(entry["range"]))
    if not entry["slice"]:
        return []
    ignored = f"; {', '.join(name.upper() for name in unused)} is not in it and was not used" if unused else ""
    return [f"this law holds {entry['slice']}{ignored}"]


def describe_prediction(made: Prediction) -> str:
    """A prediction as a block of lines."""
    lines = [f"{made.name}: {made.formula}"]
    for name, each in made.values.items():
        show = (lambda v: f"{v:.4f}") if name == "loss" else compact
        lines.append(f"  {name:5} {show(each.value):>10}   95 %: {show(each.low)} to {show(each.high)}")
    return "\n".join(lines + [f"  note: {note}" for note in made.notes])
