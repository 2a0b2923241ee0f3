"""Runs that other tools have logged: TensorBoard's event files, an MLflow store, W&B's CSV export, lines of JSON."""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tinyscale.analysis.table_file import read_file
from tinyscale.errors import ResultsError

EVENTS = "events.out.tfevents.*"
STEP, RUN = "step", "run"
INSTALL = "pip install 'tinyscale[import]'"


@dataclass(frozen=True)
class LoggedRun:
    """A run as a tool logged it.

    points: in the order of their steps, each with the values logged there by key, and what is the same in all (the
    run's parameters). state: finished, or what else the tool says; empty where it says nothing.
    """

    name: str
    points: tuple[Mapping[str, Any], ...]
    state: str = ""


def read_logs(source: str) -> list[LoggedRun]:
    """The runs under a folder, or in a file. ResultsError where there are none, or the tool's package is missing."""
    path = Path(source).expanduser()
    if not path.exists():
        raise ResultsError(f"{source}: no such file or folder; give one on this machine")
    for holds, reader in _KINDS:
        if holds(path):
            runs = [run for run in reader(path) if run.points]
            if not runs:
                raise ResultsError(f"{source}: no run there has a value; give the folder or file of a tool's logs")
            return runs
    raise ResultsError(
        f"{source}: no logs that can be read; give a folder with TensorBoard's event files, with MLflow's file store "
        "(mlruns) or with .jsonl files, or MLflow's mlflow.db, or a .jsonl, or a .csv as W&B exports it"
    )


def _package(name: str, what: str) -> ModuleType:
    """A package that only an import needs. ResultsError without it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ResultsError(f"{what} are read by a package that is not installed ({error.name}): {INSTALL}") from error


def _tensorboard(folder: Path) -> Iterator[LoggedRun]:
    """A run for each folder with event files, by TensorBoard's own reader; its name is the folder's path."""
    accumulator = _package("tensorboard.backend.event_processing.event_accumulator", "event files")
    tensors = _package("tensorboard.util.tensor_util", "event files")
    everything = {accumulator.SCALARS: 0, accumulator.TENSORS: 0}
    for run in sorted({events.parent for events in folder.rglob(EVENTS)}):
        read = accumulator.EventAccumulator(str(run), size_guidance=everything)
        tags = read.Reload().Tags()
        logged = [(tag, each.step, each.value) for tag in tags[accumulator.SCALARS] for each in read.Scalars(tag)]
        for tag in tags[accumulator.TENSORS]:  # where TensorFlow 2 keeps its scalars
            values = ((each.step, tensors.make_ndarray(each.tensor_proto)) for each in read.Tensors(tag))
            logged += [
                (tag, step, value.item()) for step, value in values if value.ndim == 0 and value.dtype.kind in "fiu"
            ]
        yield LoggedRun(_name(run, folder), _by_step(logged))


def _mlflow(store: Path) -> Iterator[LoggedRun]:
    """The runs of all experiments of a store, a folder or an SQLite file, by MLflow's own client."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # or MLflow 3 reads no folder
    tracking = _package("mlflow.tracking", "MLflow's stores")
    place = store.absolute().as_uri() if store.is_dir() else f"sqlite:///{store.absolute()}"
    client = tracking.MlflowClient(tracking_uri=place)
    for experiment in client.search_experiments():
        token = None
        while token != "":
            page = client.search_runs([experiment.experiment_id], page_token=token)
            for run in page:
                histories = (client.get_metric_history(run.info.run_id, key) for key in run.data.metrics)
                logged = [(each.key, each.step, each.value) for history in histories for each in history]
                fixed = {key: number_or_text(value) for key, value in run.data.params.items()}
                points = tuple({**fixed, **point} for point in _by_step(logged))
                yield LoggedRun(run.info.run_name or run.info.run_id, points, str(run.info.status).lower())
            token = page.token or ""


def _wandb(file: Path) -> Iterator[LoggedRun]:
    """W&B's export of a table of runs, one row per run, or of a chart: a step, and columns RUN - KEY."""
    frame = read_file(str(file))
    columns = [str(name) for name in frame.columns]
    chart = [name for name in columns if f"{name}__MIN" in columns]
    if not chart:
        names = next((name for name in ("Name", "ID", RUN) if name in columns), None)
        for index, row in zip(frame.index, frame.to_dict("records"), strict=True):
            point = {str(key): value for key, value in row.items() if not _blank(value)}
            state = str(point.pop("State", "")).lower()
            yield LoggedRun(str(point.get(names, index) if names else index), (point,), state)
        return
    logged: dict[str, list[tuple[str, Any, Any]]] = {}
    for column in chart:
        run, _, key = column.rpartition(" - ")
        for step, value in zip(frame[columns[0]], frame[column], strict=True):
            if not _blank(value):
                logged.setdefault(run or column, []).append((key, step, value))
    for run, values in logged.items():
        yield LoggedRun(run, tuple({columns[0]: point[STEP], **point} for point in _by_step(values)))


def _json_lines(path: Path) -> Iterator[LoggedRun]:
    """A run for each file, or for each value of the key `run` in it."""
    files = [path] if path.is_file() else sorted(path.rglob("*.jsonl"))
    for file in files:
        by_run: dict[str, list[dict[str, Any]]] = {}
        for record in _records(file):
            by_run.setdefault(str(record.get(RUN, "")), []).append(record)
        stem = file.stem if path.is_file() else _name(file.with_suffix(""), path)
        for run, points in by_run.items():
            yield LoggedRun(run or stem, tuple(points))


def _records(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file, one per line; keys below others are joined with dots. A last line may be cut off."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("it is no object in braces")
        except (ValueError, RecursionError) as error:
            if number == len(lines) and number > 1:  # the run was stopped while it wrote
                return
            raise ResultsError(f"{file}, line {number}: not a line of JSON ({error}); remove it") from error
        yield dict(_flat(record))


def _flat(record: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        elif value is not None and not isinstance(value, list):
            yield f"{before}{key}", value


def _by_step(logged: Iterable[tuple[str, Any, Any]]) -> tuple[dict[str, Any], ...]:
    """Points, in the order of their steps, of values (key, step, value)."""
    points: dict[Any, dict[str, Any]] = {}
    for key, step, value in logged:
        points.setdefault(step, {STEP: step})[key] = value
    return tuple(points[step] for step in sorted(points))


def _name(run: Path, folder: Path) -> str:
    return run.relative_to(folder).as_posix() if run != folder else folder.name


def _blank(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def number_or_text(value: Any) -> Any:
    """The number that a text writes; other values as they are."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _has(pattern: str) -> Callable[[Path], bool]:
    return lambda path: path.is_dir() and next(path.rglob(pattern), None) is not None


def _ends(ending: str) -> Callable[[Path], bool]:
    return lambda path: path.is_file() and path.suffix.lower() == ending


# Which paths hold what a reader reads; the first that fits reads it.
_KINDS: tuple[tuple[Callable[[Path], bool], Callable[[Path], Iterator[LoggedRun]]], ...] = (
    (_ends(".csv"), _wandb),
    (_ends(".jsonl"), _json_lines),
    (_ends(".db"), _mlflow),
    (_has(EVENTS), _tensorboard),
    (_has("meta.yaml"), _mlflow),
    (_has("*.jsonl"), _json_lines),
)
