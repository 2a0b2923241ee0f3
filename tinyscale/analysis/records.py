"""What comes out: fits -> fits.json, tables in CSV and Parquet, refits for later predictions; and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.types import is_numeric_dtype
from pydantic import PositiveFloat

from tinyscale.analysis.compare import Contrast
from tinyscale.analysis.ranks import ranks_table
from tinyscale.analysis.record_checks import Ends, WrittenFit, checked, fits_points, require_intact
from tinyscale.errors import ResultsError
from tinyscale.fitting.choose import AnyFit
from tinyscale.fitting.curve import Curve
from tinyscale.fitting.fit import Fit
from tinyscale.fitting.forecast import Forecast
from tinyscale.fitting.laws import Law, find_law
from tinyscale.fitting.points import Points, read_points
from tinyscale.fitting.record import TRIALS, Record
from tinyscale.fitting.solve import Problem
from tinyscale.results.parquet import read_frame, to_parquet
from tinyscale.storage import Folder, validated

FITS, CONTRASTS = "fits.json", "contrasts.json"
# What JSON of another shape raises; a KeyError names what is missing.
UNFIT = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


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


def write_fits(folder: Folder, fits: Sequence[AnyFit], source: str, where: str = "") -> list[str]:
    """Write fits/ (fits.json, refits) and tables/ (CSV and Parquet) under a results folder; the paths written.

    source: the file the runs came from, or TRIALS; where: the expression that chose them. Fits of other sources, or of
    other runs of this one, stay; ResultsError where a name is taken.
    """
    others = [each for each in _other_records(folder / "fits") if not is_of(each, source, where)]
    taken = {each.name: each.origin.source for each in others}
    for found in fits:
        if found.record.name in taken:
            raise ResultsError(
                f"{folder}: a fit {found.record.name} of {taken[found.record.name]} is there already; rename the file, "
                "or name another folder with --results"
            )
    records = sorted([*others, *(found.record for found in fits)], key=_rank)
    refits = {
        f"{found.record.name}.draws.parquet": _parquet(found.refits) for found in fits if found.refits is not None
    }
    tables = {"fits": parameters_table(records)}
    for found in fits:
        tables |= {f"{found.record.name}{suffix}": table for suffix, table in found.tables().items()}
    csv = {f"{name}.csv": table.to_csv(index=False).encode() for name, table in tables.items()}
    parquet = {f"{name}.parquet": _parquet(table) for name, table in tables.items()}
    text = _json([each.as_json() for each in records])
    return _write(folder / "fits", {FITS: text.encode(), **refits}) + _write(folder / "tables", csv | parquet)


def is_of(record: Record, source: str, where: str = "") -> bool:
    """Whether a record is of these runs: all of a source, or those that an expression chose."""
    return (record.origin.source, record.origin.where) == (source, where)


def _rank(record: Record) -> tuple[bool, bool]:
    """Fits to the results' own runs come first, and of each source those to all of its runs."""
    return record.origin.source != TRIALS, bool(record.origin.where)


def replaced_by(folder: Folder, fits: Sequence[AnyFit], source: str, where: str = "") -> tuple[str, ...]:
    """Names of the fits to the same runs that `write_fits` would replace by fits with other options, or drop."""
    now = {found.record.name: found.record for found in fits}

    def options(record: Record) -> tuple[Any, ...]:
        held = record.held_out
        return record.method, record.objective.get("delta"), held and (dict(held.size), held.fitted_sizes)

    return tuple(
        each.name
        for each in _other_records(folder / "fits")
        if is_of(each, source, where)
        and (
            each.name not in now or (each.points == now[each.name].points and options(each) != options(now[each.name]))
        )
    )


def _other_records(folder: Folder) -> list[Record]:
    """The records that are there; none where fits.json is missing. ResultsError where it is damaged."""
    try:
        return _records_in(folder)
    except FileNotFoundError:
        return []


def _records_in(folder: Folder) -> list[Record]:
    """The records of fits.json. FileNotFoundError without one; ResultsError names the entry and field at fault."""
    try:
        entries = json.loads(folder.read(FITS))
        validated(list[WrittenFit], entries)
        found = [checked(Record.of_json(entry)) for entry in entries]
        for entry in entries:
            require_intact(entry)
        return found
    except UNFIT as error:
        raise ResultsError(
            f"{folder}/{FITS}: not a file of fits ({_reason(error)}); delete it and run tinyscale fit again"
        ) from error


def _reason(error: Exception) -> str:
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)


def write_contrasts(folder: Folder, contrasts: Sequence[Contrast]) -> list[str]:
    """Write fits/contrasts.json, tables/contrasts.csv and, where a sweep has several arms, tables/ranks.csv; the paths.

    Contrasts of other sweeps stay.
    """
    if not contrasts:
        return []
    sweeps = {each.sweep for each in contrasts}
    others = [entry for entry in _other_contrasts(folder / "fits") if entry["sweep"] not in sweeps]
    entries = [*others, *(each.as_json() for each in contrasts)]
    tables = {"contrasts.csv": contrasts_table(entries), "ranks.csv": ranks_table(entries)}
    written = {name: table.to_csv(index=False).encode() for name, table in tables.items() if len(table)}
    return [*_write(folder / "fits", {CONTRASTS: _json(entries).encode()}), *_write(folder / "tables", written)]


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


@dataclass(frozen=True)
class _WrittenContrast:
    sweep: str
    arm: str
    base: str
    by_size: dict[PositiveFloat, float]
    efficiency: dict[str, Ends]


def _other_contrasts(folder: Folder) -> list[dict[str, Any]]:
    """The contrasts that are there; none where contrasts.json is missing. ResultsError where it is damaged."""
    try:
        found: list[dict[str, Any]] = json.loads(folder.read(CONTRASTS))
        validated(list[_WrittenContrast], found)
    except FileNotFoundError:
        return []
    except UNFIT as error:
        raise ResultsError(f"{folder}/{CONTRASTS}: not a file of contrasts ({error}); delete it") from error
    return found


def _parquet(table: pd.DataFrame) -> bytes:
    return to_parquet(pa.Table.from_pandas(table, preserve_index=False))


def _read_table(folder: Folder, name: str, what: str) -> pd.DataFrame:
    """A table that `write_fits` wrote. ResultsError where it is gone or damaged. what: it is."""
    try:
        table = read_frame(folder.read(name))
        if table.empty:
            raise ValueError("it has no rows")
        return table
    except FileNotFoundError as error:
        raise ResultsError(f"{folder}: {what} are gone; run tinyscale fit again") from error
    except (OSError, pa.ArrowException, *UNFIT) as error:
        raise ResultsError(f"{folder}/{name}: {what} cannot be read ({error}); run tinyscale fit again") from error


def _write(folder: Folder, files: Mapping[str, bytes]) -> list[str]:
    for name, content in files.items():
        folder.write(name, content)
    return [f"{folder}/{name}" for name in files]


def read_records(location: str) -> tuple[Folder, list[Record]]:
    """The fits that `write_fits` left in a results folder, or in a fits.json. ResultsError when there are none."""
    folder = (
        Folder.at(location.removesuffix("/fits.json")) if location.endswith(".json") else Folder.at(location) / "fits"
    )
    try:
        return folder, _records_in(folder)
    except FileNotFoundError as error:
        raise ResultsError(f"{folder}/{FITS}: no such file; run tinyscale fit first") from error


def read_points_table(folder: Folder, record: Record) -> pd.DataFrame:
    """The fitted points of a record, under the names of the table they came from. folder: that of fits.json."""
    tables = replace(folder, path=folder.path.removesuffix("fits") + "tables")
    return _read_table(tables, f"{record.name}.parquet", f"the points of {record.name}")


def read_fit(folder: Folder, record: Record) -> Fit:
    """The fit of a law of the loss as it was before it was written: nothing is fitted again."""
    points, problem = _read_problem(folder, record)
    assert record.certificate is not None and record.noise is not None
    return Fit(
        law=problem.law,
        curve=read_curve(folder, record),
        estimates=MappingProxyType(dict(record.estimates)),
        delta=problem.delta,
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
        points=points,
        derived=MappingProxyType(dict(record.derived)),
        conventions=record.conventions,
        origin=record.origin,
        forecast=Forecast.of_json(record.forecast, points, problem) if record.forecast else None,
        above=problem.above,
    )


def _read_problem(folder: Folder, record: Record) -> tuple[Points, Problem]:
    """The points of a record of a law of the loss, and what was solved for them."""
    law, delta = _law_of(record), record.objective["delta"]
    columns = {name: column for name, column in record.columns.items() if name in (*law.variables, "loss", "weight")}
    points = read_points(read_points_table(folder, record), law, columns)
    problem = points.problem(law, np.inf if delta is None else delta, record.objective.get("above", 1.0))
    if not fits_points(record, problem):
        raise ResultsError(f"{folder}: the points of {record.name} are not those of the fit; run tinyscale fit again")
    return points, problem


def _law_of(record: Record) -> Law:
    """The law with what was held of it, and its prior."""
    prior = {name: tuple(each) for name, each in record.objective.get("prior", {}).items()}
    return replace(find_law(record.law), held=record.objective.get("held", {}), prior=prior)


def read_curve(folder: Folder, record: Record) -> Curve:
    """The curve of a record of a law of the loss, with its refits."""
    law, noise = _law_of(record), record.noise
    assert noise is not None
    what = f"the refits of {record.name}"
    draws = _read_table(folder, f"{record.name}.draws.parquet", what)
    if not set(law.params) <= set(draws) or not all(is_numeric_dtype(draws[name]) for name in law.params):
        raise ResultsError(f"{folder}: {what} have other columns than {', '.join(law.params)}; run tinyscale fit again")
    params = {name: record.estimates[name].value for name in law.params}
    profiled = _read_problem(folder, record)[1] if law.has_frontier and record.method == "profile" else None
    return Curve(law, params, draws[list(law.params)].to_numpy(), noise.sd, noise.dof, profiled)
