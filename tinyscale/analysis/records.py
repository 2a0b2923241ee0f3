"""What comes out: fits -> fits.json, tables in CSV and Parquet, refits for later predictions; and back."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from tinyscale.analysis.compare import Contrast
from tinyscale.analysis.runs import Group
from tinyscale.errors import ResultsError
from tinyscale.fitting.curve import Curve
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.fit import Fit
from tinyscale.fitting.holdout import HeldOut
from tinyscale.fitting.honesty import residual_table
from tinyscale.fitting.isoflop import Optima
from tinyscale.fitting.laws import find_law
from tinyscale.fitting.points import read_points
from tinyscale.fitting.solve import Certificate
from tinyscale.fitting.uncertainty import Noise
from tinyscale.storage import Folder

Found = Fit | Optima
TRIALS = "trials"  # the source of fits to the folder's own runs


def label(found: Found, group: Group, **more: Any) -> Found:
    """The fit with where its runs came from; more: further entries of its record."""
    rows = {"kept": len(found.points), "dropped": dict(group.dropped)}
    labels = {"sweep": group.sweep, "arm": group.arm, "title": group.title, "rows": rows, **more}
    return replace(found, labels=MappingProxyType(labels))


def law_name(found: Found) -> str:
    """Name of the law that was fitted."""
    return found.law.name if isinstance(found, Fit) else found.law


def slug(found: Found) -> str:
    """<sweep>[-<arm>][-<setting>]-<law>, the stem of this fit's files."""
    return re.sub(r"[^\w.=-]+", "_", f"{found.labels['title']}-{law_name(found)}")


def record(found: Found) -> dict[str, Any]:
    """A fit as it stands in fits.json: plain values, and its name."""
    return {"name": slug(found), "derived": {}, **found.as_json()}


def parameters_table(entries: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a parameter of these records: sweep, arm, law, parameter, value, 95 % ends, points, held-out errors."""
    rows = []
    for entry in entries:
        held = entry["held_out"] or {}
        shared = {name: entry[name] for name in ("sweep", "arm", "title", "law")}
        errors = {name: held.get(name) for name in ("error_percent", "carry_forward_percent")}
        for name, ends in (entry["params"] | entry["derived"]).items():
            rows.append({**shared, "parameter": name, **ends, "points": entry["points"], **errors})
    return pd.DataFrame(rows)


def points_table(found: Found) -> pd.DataFrame:
    """One row a fitted point with the law's loss and the residual of log loss; of optima, one row an optimum."""
    if not isinstance(found, Fit):
        return found.table
    frame = found.points.frame
    predicted = found.law.loss(found.params, **{name: frame[name].to_numpy() for name in found.law.variables})
    named = {name: column for name, column in found.points.counts.items() if column != name}
    return frame.rename(columns=named).assign(predicted=predicted, residual=np.log(frame["loss"] / predicted))


def residuals_of(found: Fit) -> pd.DataFrame:
    """Mean residuals by each variable and, for a law of N and D, by C = 6 N D."""
    frame, variables = found.points.frame, found.law.variables
    if {"n", "d"} <= set(variables):
        frame, variables = frame.assign(c=6.0 * frame["n"] * frame["d"]), (*variables, "c")
    return residual_table(frame, variables, points_table(found)["residual"].to_numpy())


def write_fits(folder: Folder, fits: Sequence[Found], source: str) -> list[str]:
    """Write fits/ (fits.json, refits) and tables/ (CSV and Parquet) under a results folder; the paths written.

    source: the file the runs came from, or TRIALS. Fits of other sources stay; ResultsError where a name is taken.
    """
    entries = [record(found) for found in fits]
    others = [entry for entry in _read_json(folder / "fits", "fits.json") if entry.get("source", TRIALS) != source]
    taken = {entry["name"]: entry.get("source", TRIALS) for entry in others}
    for entry in entries:
        if entry["name"] in taken:
            raise ResultsError(
                f"{folder}: a fit {entry['name']} of {taken[entry['name']]} is there already; rename the file, or name "
                "another folder with --results"
            )
    entries = sorted([*others, *entries], key=lambda entry: entry.get("source", TRIALS) != TRIALS)
    text = _json(entries)
    refits = {f"{slug(found)}.draws.parquet": _parquet(_draws(found)) for found in fits if isinstance(found, Fit)}
    tables = {"fits": parameters_table(entries)}
    for found in fits:
        tables[slug(found)] = points_table(found)
        if isinstance(found, Fit):
            tables[f"{slug(found)}-residuals"] = residuals_of(found)
    csv = {f"{name}.csv": table.to_csv(index=False).encode() for name, table in tables.items()}
    parquet = {f"{name}.parquet": _parquet(table) for name, table in tables.items()}
    return _write(folder / "fits", {"fits.json": text.encode(), **refits}) + _write(folder / "tables", csv | parquet)


def write_contrasts(folder: Folder, contrasts: Sequence[Contrast]) -> list[str]:
    """Write fits/contrasts.json and tables/contrasts.csv when there are arms to compare; the paths written.

    Contrasts of other sweeps stay.
    """
    if not contrasts:
        return []
    sweeps = {each.sweep for each in contrasts}
    others = [entry for entry in _read_json(folder / "fits", "contrasts.json") if entry["sweep"] not in sweeps]
    entries = [*others, *(each.as_json() for each in contrasts)]
    table = contrasts_table(entries).to_csv(index=False)
    return [
        *_write(folder / "fits", {"contrasts.json": _json(entries).encode()}),
        *_write(folder / "tables", {"contrasts.csv": table.encode()}),
    ]


def contrasts_table(entries: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row an arm; of each efficiency its value and 95 % ends, as `<name>`, `<name>_low`, `<name>_high`."""
    rows = []
    for entry in entries:
        plain = {name: value for name, value in entry.items() if not isinstance(value, Mapping)}
        for name, ends in entry["efficiency"].items():
            plain |= {name: ends["value"], f"{name}_low": ends["low"], f"{name}_high": ends["high"]}
        rows.append(plain)
    return pd.DataFrame(rows)


def _json(entries: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(entries, indent=1, allow_nan=False) + "\n"


def _read_json(folder: Folder, name: str) -> list[dict[str, Any]]:
    """The records in a file of the folder; none where it is missing or damaged."""
    try:
        found: list[dict[str, Any]] = json.loads(folder.read(name))
    except (OSError, ValueError):
        return []
    return found


def _draws(found: Fit) -> pd.DataFrame:
    return pd.DataFrame(found.curve.draws, columns=list(found.law.params))


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _read_parquet(content: bytes) -> pd.DataFrame:
    """Without Arrow's threads: where a process ends just after they start, they abort it."""
    frame: pd.DataFrame = pq.ParquetFile(io.BytesIO(content)).read(use_threads=False).to_pandas(use_threads=False)
    return frame


def _write(folder: Folder, files: Mapping[str, bytes]) -> list[str]:
    for name, content in files.items():
        folder.write(name, content)
    return [f"{folder}/{name}" for name in files]


def read_records(location: str) -> tuple[Folder, list[dict[str, Any]]]:
    """The fits that `write_fits` left in a results folder, or in a fits.json. ResultsError when there are none."""
    folder = (
        Folder.at(location.removesuffix("/fits.json")) if location.endswith(".json") else Folder.at(location) / "fits"
    )
    try:
        found = json.loads(folder.read("fits.json"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{folder}/fits.json: cannot be read ({error}); run tinyscale fit first") from error
    return folder, found


def read_points_table(folder: Folder, entry: Mapping[str, Any]) -> pd.DataFrame:
    """The fitted points of a record, under the names of the table they came from. folder: that of fits.json."""
    tables = replace(folder, path=folder.path.removesuffix("fits") + "tables")
    try:
        return _read_parquet(tables.read(f"{entry['name']}.parquet"))
    except OSError as error:
        raise ResultsError(f"{tables}: the points of {entry['name']} are gone ({error}); run tinyscale fit") from error


def read_fit(folder: Folder, entry: Mapping[str, Any]) -> Fit:
    """The fit of a record as it was before it was written: nothing is fitted again."""
    law, held = find_law(entry["law"]), entry["held_out"]
    columns = {name: column for name, column in entry["columns"].items() if name in (*law.variables, "loss", "weight")}
    certificate = {**entry["certificate"], "at_bound": tuple(entry["certificate"]["at_bound"])}
    delta = entry["objective"]["delta"]
    labels = {name: entry[name] for name in ("sweep", "arm", "title", "rows", "source", "conventions") if name in entry}
    return Fit(
        law=law,
        curve=read_curve(folder, entry),
        estimates=MappingProxyType({name: Estimate.of_json(entry["params"][name]) for name in law.params}),
        delta=np.inf if delta is None else delta,
        objective=entry["objective"]["value"],
        certificate=Certificate(**certificate),
        noise=Noise(**entry["noise"]),
        method=entry["intervals"],
        held_out=HeldOut(**{**held, "windows": tuple(held["windows"])}) if held else None,
        influence=tuple(entry["influence"]),
        rivals=tuple(entry["rivals"]),
        slice=entry["slice"],
        warnings=tuple(entry["warnings"]),
        points=read_points(read_points_table(folder, entry), law, columns),
        derived=MappingProxyType({name: Estimate.of_json(each) for name, each in entry["derived"].items()}),
        labels=MappingProxyType(labels),
    )


def read_curve(folder: Folder, entry: Mapping[str, Any]) -> Curve:
    """The curve of a record, with its refits."""
    law = find_law(entry["law"])
    try:
        draws = _read_parquet(folder.read(f"{entry['name']}.draws.parquet"))
    except OSError as error:
        raise ResultsError(
            f"{folder}: the refits of {entry['name']} are gone ({error}); run tinyscale fit again"
        ) from error
    params = {name: entry["params"][name]["value"] for name in law.params}
    profiled = None
    if law.has_frontier and entry["intervals"].startswith("profile"):
        profiled = read_points(read_points_table(folder, entry), law, entry["columns"]).problem(law, np.inf)
    noise = entry["noise"]
    return Curve(law, params, draws[list(law.params)].to_numpy(), noise["sd"], noise["dof"], profiled)
