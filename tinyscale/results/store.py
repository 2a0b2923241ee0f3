"""The results folder: one Parquet file per trial, one row per point, one schema that only grows.

    trials/<trial>.parquet     rows of `SCHEMA`; file metadata: full config, facts of the text and provenance, as JSON
    sweeps/<name>.json         the resolved sweep: its trials, arms and axes
    launches/<sweep>-<time>-<random>.json   how one launch went: see launches.py
    checkpoints/<trial>/       weights.pt when finished, resume.pt while running, weights-<tokens>.pt on the way
    code/<hash>/               a user's own model or optimizer, as it was launched
    measurements/<trial>.parquet   rows of `MEASUREMENTS`, of what was asked of the finished trial
    optuna/<sweep>.log         the studies of a search
    tensorboard/<sweep>/<trial>/   its event files, where a launch was asked for them

`pandas.read_parquet("results/trials")` and DuckDB's `read_parquet('results/trials/*.parquet', union_by_name=true)`
read it at every moment. A program that opens one file twice, as these do, may have to try again where a trial has
replaced its file in between; `read_results` takes each file whole, and need not.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from operator import truediv
from typing import Any

import pandas as pd
import pyarrow as pa

from tinyscale.errors import ResultsError
from tinyscale.results import snapshot
from tinyscale.results.leases import Lease
from tinyscale.results.parquet import DAMAGE, open_parquet, to_parquet
from tinyscale.results.provenance import require_provenance
from tinyscale.results.rows import MEASURED_ROWS, TRIAL_ROWS, RowFiles, first_line, require_rows, unify
from tinyscale.results.schema import MEASUREMENTS, SCHEMA, SCHEMA_VERSION, trial_columns
from tinyscale.results.sweep_record import SweepRecord
from tinyscale.spec.cell import SWEEP_NAME
from tinyscale.spec.code import Code
from tinyscale.spec.state import State
from tinyscale.spec.trial import Trial
from tinyscale.storage import Folder

FIRST_SPLIT_RULE = "sha256-1"  # of files that do not say theirs

FEW_ROWS: dict[str, Any] = {"use_dictionary": False, "write_statistics": False}  # they would double a small file


class Results:
    """A results folder. Nothing but a cache is written until a method that says so is called.

    guard: entered for the moment in which a file is put in place or removed, as that of `Folder`.
    """

    def __init__(self, location: str, guard: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.folder = replace(Folder.at(location), guard=guard)
        self.location = location if "://" in location else self.folder.path
        self.trials = self.folder / "trials"
        self.measurements = self.folder / "measurements"
        self.sweeps = self.folder / "sweeps"
        self.launches = self.folder / "launches"
        self.studies = self.folder / "optuna"
        self.events = self.folder / "tensorboard"
        self.leases = self.folder / "leases"
        self.code = self.folder / "code"
        self.cache = self.folder / ".cache"

    def checkpoints(self, trial: str) -> Folder:
        """Where a trial keeps its weights."""
        return self.folder / "checkpoints" / trial

    def kept_at(self, trial: str) -> list[int]:
        """Training tokens at which weights of a trial were kept along its training, rising."""
        names = self.checkpoints(trial).names(".pt")
        return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"weights-(\d+)\.pt", name)))

    def keep_code(self, code: Code) -> None:
        """Put a copy of a user's own code in place."""
        for file, text in zip(code.files, code.sources, strict=True):
            folder, name = _place_of(self.code / code.hash, file)
            folder.write(name, text.encode())

    def read_code(self, code: Code) -> Code:
        """The kept copy, with its text. ResultsError where it is missing, or no longer what the hash says."""
        kept = self.code / code.hash
        try:
            places = {file: _place_of(kept, file) for file in code.files}
            files = {file: folder.read(name).decode() for file, (folder, name) in places.items()}
        except (FileNotFoundError, UnicodeDecodeError) as error:
            raise ResultsError(f"{kept}: no copy of {code.name} that can be read; launch its sweep again") from error
        found = Code.of(files)
        if found.hash != code.hash:
            raise ResultsError(f"{kept}: the copy of {code.name} was changed; put back what was launched")
        return found

    def write_trial(
        self,
        trial: Trial,
        points: Sequence[Mapping[str, Any]],
        state: str,
        reason: str | None,
        provenance: Mapping[str, Any],
    ) -> None:
        """Put a trial's file in place: one row per point, and a last row without a loss if it failed or diverged."""
        assert State(state).is_recorded, state
        ends_without_loss: list[Mapping[str, Any]] = [{}] if State(state).lacks_loss or not points else []
        fixed = {**trial_columns(trial), "trial": trial.identity, "state": state, "reason": reason}
        fixed["schema_version"] = SCHEMA_VERSION
        rows = [{**point, **fixed} for point in (*points, *ends_without_loss)]
        unknown = {key for row in rows for key in row} - set(SCHEMA.names)
        assert not unknown, f"columns that are not in the schema: {sorted(unknown)}"
        described = trial.as_json(sources=False)
        del described["identity"]
        metadata = {**described, "provenance": dict(provenance)}
        footer = {f"tinyscale.{key}": json.dumps(value) for key, value in metadata.items()}
        table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(footer))
        self.trials.write(f"{trial.identity}.parquet", to_parquet(table, **FEW_ROWS))

    def read_trial(self, identity: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """A trial's rows, and its metadata (`config`, `facts`, `provenance`). FileNotFoundError or ResultsError."""
        content = self.trials.read(f"{identity}.parquet")
        try:
            # Without threads: where a process ends just after Arrow starts its own, they abort it.
            table = open_parquet(content).read(use_threads=False)
            require_rows(table, TRIAL_ROWS)
            footer = {key.decode(): value for key, value in (table.schema.metadata or {}).items()}
            ours = {key.removeprefix("tinyscale."): key for key in footer if key.startswith("tinyscale.")}
            described = {name: json.loads(footer[key]) for name, key in ours.items()}
            require_provenance(described.get("provenance", {}))
            return table.to_pylist(), described
        except DAMAGE as error:
            raise ResultsError(f"{self.trials}/{identity}.parquet: {first_line(error)}") from error

    def load_trial(self, identity: str) -> Trial:
        """The trial whose rows are in that file. FileNotFoundError or ResultsError."""
        rows, metadata = self.read_trial(identity)
        try:
            facts = metadata.get("facts") or _facts_in(rows[-1])
            return Trial.of_json({**metadata, "identity": identity, "facts": facts})
        except (KeyError, TypeError, ValueError) as error:
            file = f"{self.trials}/{identity}.parquet"
            raise ResultsError(f"{file}: written by another version of tinyscale ({first_line(error)})") from error

    def mark_failed(self, trial: Trial, reason: str, provenance: Mapping[str, Any]) -> None:
        """Record that a trial failed without being able to say so itself; the points it wrote are kept.

        provenance: the launch's; that of rows which the same launch wrote is kept, since it names the machine.
        """
        points = []
        with suppress(FileNotFoundError, ResultsError):  # nothing written, or nothing that can be read
            rows, metadata = self.read_trial(trial.identity)
            written = metadata.get("provenance", {})
            provenance = written if written.get("launched", "") == provenance.get("launched") else provenance
            points = [{name: row.get(name) for name in SCHEMA.names} for row in rows if row["val_loss"] is not None]
        self.write_trial(trial, points, State.FAILED, reason, provenance)

    def state(self, identity: str) -> State | None:
        """A trial's state; None when it has no file that can be read."""
        try:
            rows, _ = self.read_trial(identity)
        except (FileNotFoundError, ResultsError):
            return None
        return State(rows[-1]["state"])

    def forget(self, identity: str) -> bool:
        """Remove a trial's rows and what it kept; False, and nothing is removed, while a launch is training it."""
        lease = Lease(self.leases, identity)
        if not lease.claim():
            return False
        kept = self.checkpoints(identity)
        for name in [] if kept.is_link else kept.names():
            kept.delete(name)
        kept.delete_empty()
        self.measurements.delete(f"{identity}.parquet")
        self.trials.delete(f"{identity}.parquet")
        lease.release()
        return True

    def states(self) -> dict[str, tuple[State, str | None]]:
        """State and reason of every trial that has a file, by identity."""
        return self.states_and_unreadable()[0]

    def states_and_unreadable(self) -> tuple[dict[str, tuple[State, str | None]], list[str]]:
        """The states, and a line for each file that could not be read."""
        frame, set_aside = self.read(columns=["trial", "state", "reason"])
        last = frame.drop_duplicates("trial", keep="last")
        reasons = last["reason"].astype(object).where(last["reason"].notna(), None)
        states = zip(last["trial"], last["state"], reasons, strict=True)
        return {str(trial): (State(state), reason) for trial, state, reason in states}, set_aside

    def read(self, columns: list[str] | None = None) -> tuple[pd.DataFrame, list[str]]:
        """Every trial's rows in one frame, and what was set aside: a line for each file that could not be read."""
        table, set_aside = self._read(columns)
        return table.drop_columns(snapshot.OWN.names).to_pandas(use_threads=False), set_aside

    def provenances(self) -> Counter[str]:
        """How many trials each provenance is that of, as JSON, in the order of their files."""
        table, _ = self._read(["trial", "state"])
        return Counter(table[snapshot.PROVENANCE].drop_null().to_pylist())

    def keep_snapshot(self) -> None:
        """Bring the snapshot up to date, so that the next one to read the folder opens few files."""
        self._read(["trial", "state"])

    def _read(self, columns: list[str] | None) -> tuple[pa.Table, list[str]]:
        """The rows with the columns of `snapshot.OWN`, and what was set aside."""
        return RowFiles(self.trials, self.cache, snapshot.NAME, SCHEMA, TRIAL_ROWS).read(columns)

    def write_measurements(self, trial: str, rows: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any]) -> None:
        """Put a trial's file of measurements in place."""
        rows = [{**row, "trial": trial, "schema_version": SCHEMA_VERSION} for row in rows]
        unknown = {key for row in rows for key in row} - set(MEASUREMENTS.names)
        assert not unknown, f"columns that are not in the schema: {sorted(unknown)}"
        footer = {"tinyscale.provenance": json.dumps(dict(provenance))}
        table = pa.Table.from_pylist(rows, schema=MEASUREMENTS.with_metadata(footer))
        self.measurements.write(f"{trial}.parquet", to_parquet(table, **FEW_ROWS))

    def measured(self, trial: str) -> list[dict[str, Any]]:
        """A trial's rows of measurements; none where it has no file, or one that cannot be read."""
        try:
            table = open_parquet(self.measurements.read(f"{trial}.parquet")).read(use_threads=False)
            require_rows(table, MEASURED_ROWS)
        except (FileNotFoundError, *DAMAGE):
            return []
        rows: list[dict[str, Any]] = unify(table, MEASUREMENTS).to_pylist()
        return rows

    def forget_measurements(self, trial: str, states: Sequence[str]) -> int:
        """Remove a trial's measurements in these states; how many that were."""
        rows = self.measured(trial)
        kept = [row for row in rows if row["state"] not in states]
        if kept and len(kept) < len(rows):
            self.write_measurements(trial, kept, {})
        elif rows and not kept:
            self.measurements.delete(f"{trial}.parquet")
        return len({row["measurement"] for row in rows} - {row["measurement"] for row in kept})

    @property
    def _measured_rows(self) -> RowFiles:
        return RowFiles(self.measurements, self.cache, snapshot.MEASURED, MEASUREMENTS, MEASURED_ROWS)

    def measurement_states(self) -> tuple[dict[str, State], list[str]]:
        """The state of every measurement that has a row, by identity, and a line for each file that is not readable."""
        table, set_aside = self._measured_rows.read(["trial", "measurement", "state"])
        states = zip(table["measurement"].to_pylist(), table["state"].to_pylist(), strict=True)
        return {measurement: State(state) for measurement, state in states}, set_aside

    def read_measurements(self) -> tuple[pd.DataFrame, list[str]]:
        """Every measurement's rows in one frame, and a line for each file that could not be read."""
        table, set_aside = self._measured_rows.read()
        return table.drop_columns(snapshot.OWN.names).to_pandas(use_threads=False), set_aside

    def write_sweep(self, record: SweepRecord) -> None:
        """Record which trials a sweep consists of."""
        self.sweeps.write(f"{record.name}.json", json.dumps(record.as_json(), indent=1).encode())

    def read_sweeps(self) -> list[SweepRecord]:
        """The sweeps launched into this folder, by name."""
        return [self._sweep_in(name) for name in self.sweeps.names(".json")]

    def read_sweep(self, name: str) -> SweepRecord | None:
        """The sweep of that name; None before it is launched into this folder."""
        try:
            return self._sweep_in(f"{name}.json")
        except FileNotFoundError:
            return None

    def _sweep_in(self, file: str) -> SweepRecord:
        try:
            record = SweepRecord.of_json(json.loads(self.sweeps.read(file)))
            if f"{record.name}.json" != file or not re.fullmatch(SWEEP_NAME, record.name):
                raise ValueError(f"it is named {record.name!r}")
            return record
        except (ValueError, TypeError, KeyError) as error:
            message = f"{self.sweeps}/{file}: not a sweep's record ({error}); launch the sweep again"
            raise ResultsError(message) from error


def _place_of(folder: Folder, file: str) -> tuple[Folder, str]:
    """The folder below this one that holds a file of a user's code, and its name there."""
    *parents, name = file.split("/")
    return functools.reduce(truediv, parents, folder), name


def _facts_in(row: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of the text as far as rows hold them: of a trial on a part of it, train_tokens is the part's."""
    facts = {name: row[name] for name in ("corpus_hash", "tokenizer_hash", "vocab_size")}
    return {**facts, "split_rule": FIRST_SPLIT_RULE, "train_tokens": row["unique_tokens"]}


def read_results(
    location: str, *, final: bool = False, sweep: str | None = None, arm: str | None = None
) -> pd.DataFrame:
    """Every point of every trial under a results folder, as one frame with the columns of `COLUMNS`.

    final: only the last points of finished trials, of which laws are made; sweep, arm: only theirs, with columns
    `sweep` and `arm`. ResultsError for a folder, a sweep or an arm that is not there.
    """
    results = Results(location)
    results.folder.require_there()
    frame, _ = results.read()
    if sweep is not None or arm is not None:
        records = {record.name: record for record in results.read_sweeps()}
        if sweep is not None and sweep not in records:
            raise ResultsError(f"{location}: no sweep {sweep!r}; there are {', '.join(records) or 'none'}")
        chosen = records.values() if sweep is None else [records[sweep]]
        frame = pd.concat([frame.iloc[:0], *(sweep_points(frame, record) for record in chosen)], ignore_index=True)
    if arm is not None:
        arms = ", ".join(map(str, frame["arm"].unique())) if "arm" in frame else ""
        frame = frame[frame["arm"] == arm] if arms else frame
        if frame.empty:
            raise ResultsError(f"{location}: no arm {arm!r}; there are {arms or 'none'}")
    return frame[is_final(frame)].reset_index(drop=True) if final else frame.reset_index(drop=True)


def is_final(frame: pd.DataFrame) -> pd.Series[bool]:
    """Which rows (n,) are the last points of finished trials, at the end of their schedule."""
    return (frame["state"] == State.FINISHED) & frame["decayed"].fillna(value=False).astype(bool)


def sweep_points(frame: pd.DataFrame, sweep: SweepRecord) -> pd.DataFrame:
    """The rows of one sweep's trials, with columns `sweep` and `arm` added: a trial may belong to several sweeps."""
    labels = pd.DataFrame([{"trial": entry.trial, "arm": entry.cell.arm} for entry in sweep.entries])
    if labels.empty:
        return frame.iloc[:0].assign(sweep=sweep.name, arm="")
    return labels.merge(frame, on="trial").assign(sweep=sweep.name)


def over_seeds(points: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean, standard deviation (n - 1) and number of seeds of the final losses, for each combination of `by`."""
    groups = points.groupby(list(by), dropna=False, sort=False)
    columns = {f"{name}_{what}": (name, what) for name in ("val_loss", "bits_per_byte") for what in ("mean", "std")}
    return groups.agg(seeds=("seed", "nunique"), **columns).reset_index()
