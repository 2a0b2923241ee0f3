"""What comes out: fits -> fits.json, tables in CSV and Parquet, refits for later predictions; and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tinyscale.analysis.compare import Contrast
from tinyscale.errors import FitError, ResultsError
from tinyscale.fitting.choose import AnyFit
from tinyscale.fitting.curve import Curve
from tinyscale.fitting.fit import Fit
from tinyscale.fitting.laws import find_law
from tinyscale.fitting.points import read_points
from tinyscale.fitting.record import TRIALS, Record
from tinyscale.results.parquet import DAMAGE, open_parquet, to_parquet
from tinyscale.storage import Folder


def parameters_table(records: Sequence[Record]) -> pd.DataFrame:
    """One row per parameter of these fits: sweep, arm, law, parameter, value, 95 % ends, points, held-out errors."""
    rows = []
    for record in records:
        origin, held = record.origin, record.held_out
        shared = {"sweep": origin.sweep, "arm": origin.arm, "title": origin.title, "law": record.law}
        errors = {name: getattr(held, name, None) for name in ("error_percent", "carry_forward_percent")}
        for name, estimate in record.all_estimates.items():
            rows.append({**shared, "parameter": name, **estimate.as_json(), "points": record.points, **errors})
    return pd.DataFrame(rows)


def write_fits(folder: Folder, fits: Sequence[AnyFit], source: str) -> list[str]:
    """Write fits/ (fits.json, refits) and tables/ (CSV and Parquet) under a results folder; the paths written.

    source: the file the runs came from, or TRIALS. Fits of other sources stay; ResultsError where a name is taken.
    """
    others = [each for each in _records_in(folder / "fits") if each.origin.source != source]
    taken = {each.name: each.origin.source for each in others}
    for found in fits:
        if found.record.name in taken:
            raise ResultsError(
                f"{folder}: a fit {found.record.name} of {taken[found.record.name]} is there already; rename the file, "
                "or name another folder with --results"
            )
    records = sorted([*others, *(found.record for found in fits)], key=lambda each: each.origin.source != TRIALS)
    refits = {
        f"{found.record.name}.draws.parquet": _parquet(found.refits) for found in fits if found.refits is not None
    }
    tables = {"fits": parameters_table(records)}
    for found in fits:
        tables |= {f"{found.record.name}{suffix}": table for suffix, table in found.tables().items()}
    csv = {f"{name}.csv": table.to_csv(index=False).encode() for name, table in tables.items()}
    parquet = {f"{name}.parquet": _parquet(table) for name, table in tables.items()}
    text = _json([each.as_json() for each in records])
    return _write(folder / "fits", {"fits.json": text.encode(), **refits}) + _write(folder / "tables", csv | parquet)


def _records_in(folder: Folder) -> list[Record]:
    """The records that are there. ResultsError where fits.json is damaged: to replace it would drop them."""
    try:
        return [Record.of_json(entry) for entry in _read_json(folder, "fits.json")]
    except (ValueError, TypeError, LookupError, AttributeError, FitError) as error:
        raise _damaged(folder, "fits.json", error) from error


def write_contrasts(folder: Folder, contrasts: Sequence[Contrast]) -> list[str]:
    """Write fits/contrasts.json and tables/contrasts.csv when there are arms to compare; the paths written.

    Contrasts of other sweeps stay.
    """
    if not contrasts:
        return []
    sweeps = {each.sweep for each in contrasts}
    try:
        others = [entry for entry in _read_json(folder / "fits", "contrasts.json") if entry["sweep"] not in sweeps]
        entries = [*others, *(each.as_json() for each in contrasts)]
        table = contrasts_table(entries).to_csv(index=False)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise _damaged(folder / "fits", "contrasts.json", error) from error
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
    """The records in a file of the folder; none where it is missing."""
    try:
        found: list[dict[str, Any]] = json.loads(folder.read(name))
    except FileNotFoundError:
        return []
    return found


def _damaged(folder: Folder, name: str, error: Exception) -> ResultsError:
    """What to do about a file whose other records would be lost if it were written again."""
    what = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ResultsError(
        f"{folder}/{name} is damaged ({what}) and is not replaced, as it may hold fits of other files; put back "
        "a copy, or move it away and run tinyscale fit again for each of them"
    )


def _parquet(table: pd.DataFrame) -> bytes:
    return to_parquet(pa.Table.from_pandas(table, preserve_index=False))


def _read_parquet(content: bytes) -> pd.DataFrame:
    """Without Arrow's threads: where a process ends just after they start, they abort it."""
    frame: pd.DataFrame = open_parquet(content).read(use_threads=False).to_pandas(use_threads=False)
    return frame


def _write(folder: Folder, files: Mapping[str, bytes]) -> list[str]:
    for name, content in files.items():
        folder.write(name, content)
    return [f"{folder}/{name}" for name in files]


def read_records(location: str) -> tuple[Folder, list[Record]]:
    """The fits that `write_fits` left in a results folder, or in a fits.json. ResultsError when there are none."""
    folder = (
        Folder.at(location.removesuffix("/fits.json")) if location.endswith(".json") else Folder.at(location) / "fits"
    )
    if not folder.exists("fits.json"):
        raise ResultsError(f"{folder}/fits.json: there is none; run tinyscale fit first")
    return folder, _records_in(folder)


def read_points_table(folder: Folder, record: Record) -> pd.DataFrame:
    """The fitted points of a record, under the names of the table they came from. folder: that of fits.json."""
    tables = replace(folder, path=folder.path.removesuffix("fits") + "tables")
    try:
        return _read_parquet(tables.read(f"{record.name}.parquet"))
    except DAMAGE as error:
        raise ResultsError(
            f"{tables}: the points of {record.name} cannot be read ({error}); run tinyscale fit"
        ) from error


def read_fit(folder: Folder, record: Record) -> Fit:
    """The fit of a law of the loss as it was before it was written: nothing is fitted again."""
    law, delta = find_law(record.law), record.objective["delta"]
    assert record.certificate is not None and record.noise is not None
    columns = {name: column for name, column in record.columns.items() if name in (*law.variables, "loss", "weight")}
    return Fit(
        law=law,
        curve=read_curve(folder, record),
        estimates=MappingProxyType(dict(record.estimates)),
        delta=np.inf if delta is None else delta,
        objective=record.objective["value"],
        certificate=record.certificate,
        noise=record.noise,
        method=record.method,
        intervals=record.intervals,
        held_out=record.held_out,
        influence=record.influence,
        alternatives=record.alternatives,
        slice=record.slice,
        warnings=record.warnings,
        points=read_points(read_points_table(folder, record), law, columns),
        derived=MappingProxyType(dict(record.derived)),
        conventions=record.conventions,
        origin=record.origin,
    )


def read_curve(folder: Folder, record: Record) -> Curve:
    """The curve of a record of a law of the loss, with its refits."""
    law, noise = find_law(record.law), record.noise
    assert noise is not None
    try:
        draws = _read_parquet(folder.read(f"{record.name}.draws.parquet"))
    except DAMAGE as error:
        raise ResultsError(
            f"{folder}: the refits of {record.name} cannot be read ({error}); run tinyscale fit again"
        ) from error
    params = {name: record.estimates[name].value for name in law.params}
    profiled = None
    if law.has_frontier and record.method == "profile":
        profiled = read_points(read_points_table(folder, record), law, record.columns).problem(law, np.inf)
    return Curve(law, params, draws[list(law.params)].to_numpy(), noise.sd, noise.dof, profiled)
