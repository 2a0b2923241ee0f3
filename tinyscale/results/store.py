"""The results folder: one Parquet file per trial, one row per point, one schema that only grows.

    trials/<trial>.parquet     rows of `SCHEMA`; file metadata: full config, facts of the text and provenance, as JSON
    sweeps/<name>.json         the resolved sweep: its trials, arms and axes
    launches/<sweep>-<time>-<random>.json   how one launch went: see launches.py
    checkpoints/<trial>/       weights.pt when finished, resume.pt while running

`pandas.read_parquet("results/trials")` and DuckDB's `read_parquet('results/trials/*.parquet', union_by_name=true)`
read it at every moment. A program that opens one file twice, as these do, may have to try again where a trial has
replaced its file in between; `read_results` takes each file whole, and need not.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import pandas as pd
import pyarrow as pa

from tinyscale.errors import ResultsError
from tinyscale.results import snapshot
from tinyscale.results.parquet import DAMAGE, open_parquet, to_parquet
from tinyscale.spec.cell import SWEEP_NAME, Cell
from tinyscale.spec.state import State
from tinyscale.spec.trial import Trial
from tinyscale.storage import Folder, validated

SCHEMA_VERSION = 4

FIRST_SPLIT_RULE = "sha256-1"  # of files that do not say theirs

READERS = 16  # files that are read at a time

MAX_EXPONENT = math.log(sys.float_info.max)
RECORDED = tuple(state.value for state in State if state.is_recorded)
IDENTITY = r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,79}"  # of a trial: it names files

_STRING, _INT, _FLOAT, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()

# (name, type, what it holds). Columns are only ever added at the end, all nullable.
COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("trial", _STRING, "identity of the trial: hash of all that its numbers depend on"),
    ("state", _STRING, "running, finished, failed, diverged, or stopped early by a search"),
    ("reason", _STRING, "why a trial failed, diverged or was stopped; null otherwise"),
    ("run", _STRING, "points that share a trunk share a run; uncertainty is clustered by it"),
    # config
    ("corpus", _STRING, "name or path of the text"),
    ("tokenizer", _STRING, "bpe, char or byte"),
    ("unique_tokens", _INT, "training tokens that differ: size of the training split, or of the subset asked for"),
    ("d_model", _INT, "width of the residual stream"),
    ("n_layers", _INT, "number of blocks"),
    ("n_heads", _INT, "attention heads"),
    ("d_ff", _INT, "hidden width of the MLP"),
    ("context_length", _INT, "tokens that the model sees at once"),
    ("positions", _STRING, "learned or rotary"),
    ("norm", _STRING, "layernorm or rmsnorm"),
    ("activation", _STRING, "gelu or swiglu"),
    ("tie_embeddings", _BOOL, "the head shares the token embedding's matrix"),
    ("bias", _BOOL, "biases in linear layers and norms"),
    ("tokens_budget", _INT, "training tokens of the whole trial"),
    ("batch_tokens", _INT, "tokens of one optimizer step"),
    ("optimizer", _STRING, "the update rule"),
    ("lr", _FLOAT, "peak learning rate"),
    ("min_lr_ratio", _FLOAT, "last learning rate over the peak"),
    ("warmup_fraction", _FLOAT, "share of steps that raise the rate"),
    ("schedule", _STRING, "the rate after warm-up"),
    ("decay_fraction", _FLOAT, "share of steps in which wsd falls"),
    ("weight_decay", _FLOAT, "decoupled decay of matrices"),
    ("betas", _STRING, "the optimizer's averages, as a JSON list"),
    ("grad_clip", _FLOAT, "largest gradient norm; 0: no clipping"),
    ("precision", _STRING, "fp32, bf16 or fp16"),
    ("repeats", _BOOL, "whether more than one epoch was allowed"),
    ("eval_points", _INT, "evaluations requested"),
    ("seed", _INT, "seeds initialisation and batch order"),
    # facts of the text
    ("corpus_hash", _STRING, "hash of the documents"),
    ("tokenizer_hash", _STRING, "hash of the tokenizer"),
    ("vocab_size", _INT, "size of the vocabulary, the end-of-text token included"),
    # counts (fitting conventions: costs.py)
    ("n_non_embedding", _INT, "parameters of the blocks and the final norm"),
    ("n_embedding", _INT, "parameters of token and position embeddings"),
    ("n_lm_head", _INT, "parameters of the head; 0 when tied"),
    ("n_matmul", _INT, "parameters of matrices that multiply activations, the head included"),
    ("n_total", _INT, "all parameters, a tied head once"),
    # the point
    ("step", _INT, "optimizer steps so far"),
    ("tokens", _INT, "training tokens so far"),
    ("epochs", _FLOAT, "tokens / unique_tokens"),
    ("flops", _FLOAT, "training FLOPs so far: 6 n_matmul + 12 n_layers d_model context_length per token"),
    ("flops_6n", _FLOAT, "training FLOPs so far, as 6 n_non_embedding per token (Kaplan et al. 2020)"),
    ("flops_hoffmann", _FLOAT, "training FLOPs so far, by Hoffmann et al. 2022, appendix F"),
    ("flops_palm", _FLOAT, "training FLOPs so far, by Chowdhery et al. 2022, appendix B"),
    ("decayed", _BOOL, "the learning-rate schedule had ended here; fits use these points"),
    ("lr_now", _FLOAT, "learning rate at this step"),
    ("train_loss", _FLOAT, "mean training loss since the previous point, nats per token"),
    ("val_loss", _FLOAT, "loss on the validation set, nats per token; null for a failed or diverged trial's last row"),
    ("val_loss_se", _FLOAT, "standard error of val_loss, clustered by document"),
    ("perplexity", _FLOAT, "exp(val_loss)"),
    ("bits_per_byte", _FLOAT, "val_loss in bits per byte of the validation text"),
    ("val_tokens", _INT, "validation tokens scored, each once"),
    ("val_bytes", _INT, "UTF-8 bytes of the validation text"),
    ("wall_seconds", _FLOAT, "training seconds so far, evaluation included, over the attempts that led to this point"),
    ("tokens_per_second", _FLOAT, "training tokens per second since the previous point, evaluation excluded"),
    ("peak_memory_bytes", _INT, "largest memory of the process (CPU) or device (GPU) so far"),
    ("workers", _INT, "workers that shared the trial"),
    ("cpu", _INT, "CPU cores of a worker"),
    ("gpu", _FLOAT, "GPUs of a worker"),
    ("schema_version", _INT, "version of this schema"),
    # since version 2
    ("parametrization", _STRING, "standard, or mup: rates and sizes that follow the width"),
    ("branches", _STRING, "shares of the tokens at which wsd also decayed on a branch, as a JSON list"),
    ("entropy_rate", _FLOAT, "lowest loss that any model can reach, nats per token, where the source is known"),
    ("excess", _FLOAT, "val_loss above the source's own loss on the same targets, nats per token"),
    ("excess_se", _FLOAT, "standard error of excess, clustered by document"),
    (
        "loss_by_position",
        pa.list_(_FLOAT),
        "val_loss of targets after 2^k to 2^(k+1) - 1 tokens of their document, k = 0, 1, ...; where decayed",
    ),
    # since version 3
    ("compile", _BOOL, "whether the training step was compiled"),
    ("fused", _INT, "trials in the batched model that trained this one, and that shared the seconds; 1: alone"),
    # since version 4
    ("recorded", _BOOL, "whether a GPU replayed the training step as one CUDA graph; null on a CPU"),
)

PARAMETER_COLUMNS = ("n_non_embedding", "n_embedding", "n_lm_head", "n_matmul", "n_total")

SCHEMA = pa.schema([pa.field(name, kind, nullable=True) for name, kind, _ in COLUMNS])
FEW_ROWS: dict[str, Any] = {"use_dictionary": False, "write_statistics": False}  # they would double a small file


@dataclass(frozen=True)
class SweepEntry:
    """A trial of a sweep: its identity, its cell, and field -> value of what the file left to planning as `auto`."""

    trial: str
    cell: Cell
    auto_values: Mapping[str, Any] = field(default_factory=dict)  # in the file, `settled`

    @classmethod
    def of_json(cls, written: Mapping[str, Any]) -> Self:
        """What `as_json` wrote."""
        trial = str(written["trial"])
        if not re.fullmatch(IDENTITY, trial):
            raise ValueError(f"{trial!r} is not a trial's identity")
        return cls(trial, Cell.of_json(written), dict(written.get("settled", {})))

    def as_json(self) -> dict[str, Any]:
        """As the sweep's file holds it."""
        return {"trial": self.trial, **self.cell.as_json(), "settled": dict(self.auto_values)}


@dataclass(frozen=True)
class _WrittenEntry:
    """An entry of `groups` in a sweep's file."""

    trial: str
    arm: str
    seed: int
    axes: dict[str, Any]
    settled: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _WrittenSweep:
    """What a sweep's file holds."""

    name: str
    title: str
    source: str
    axes: list[str]
    groups: list[_WrittenEntry]
    provenance: dict[str, Any]
    searched: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SweepRecord:
    """What results/sweeps/<name>.json holds: enough to know which trials are whose, without the sweep file."""

    name: str
    title: str
    source: str
    axes: tuple[str, ...]
    entries: tuple[SweepEntry, ...]  # in the file, `groups`
    provenance: Mapping[str, Any]
    searched: tuple[str, ...] = ()  # axes whose values a search samples

    @property
    def trials(self) -> list[str]:
        """Identities of the sweep's trials, in its own order."""
        return [entry.trial for entry in self.entries]

    @classmethod
    def of_json(cls, written: Mapping[str, Any]) -> Self:
        """What `as_json` wrote. KeyError, TypeError or ValueError where it is not legal."""
        validated(_WrittenSweep, written)
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in dict(written).items()
        }
        return cls(entries=tuple(map(SweepEntry.of_json, fields.pop("groups"))), **fields)

    def as_json(self) -> dict[str, Any]:
        """As the sweep's file holds it."""
        names = ("name", "title", "source", "axes", "groups", "provenance", "searched")
        fields = {**vars(self), "groups": [entry.as_json() for entry in self.entries]}
        return {name: fields[name] for name in names}


def trial_columns(trial: Trial) -> dict[str, Any]:
    """The columns that are the same in all of a trial's rows: its configuration, and what the data made of it."""
    config = trial.config
    data = config.data.model_dump(exclude={"val_bytes"})  # what is asked for; the column is what was held out
    described = {**data, **config.model.model_dump(), **config.train.model_dump()}
    described |= {
        "run": trial.identity,
        "tokenizer": config.data.tokenizer.kind,
        "betas": json.dumps(config.train.betas),
        "branches": json.dumps(config.train.branches),
        "seed": config.seed,
        **config.resources.model_dump(),
    }
    facts = {**asdict(trial.facts), "unique_tokens": trial.unique_tokens}
    counts = {name: getattr(trial.parameters, name) for name in PARAMETER_COLUMNS}
    return {name: value for name, value in (described | facts | counts).items() if name in SCHEMA.names}


def point_columns(trial: Trial, point: Mapping[str, Any], val_tokens: int, val_bytes: int) -> dict[str, Any]:
    """The columns of one evaluation: what was measured, and what follows from it."""
    tokens, loss = point["tokens"], point["val_loss"]
    return {
        **point,
        **{name: per_token * tokens for name, per_token in trial.flops_per_token.items()},
        "epochs": tokens / trial.unique_tokens,
        "perplexity": math.exp(loss) if loss < MAX_EXPONENT else math.inf,
        "bits_per_byte": loss * val_tokens / val_bytes / math.log(2),
        "val_tokens": val_tokens,
        "val_bytes": val_bytes,
    }


class Results:
    """A results folder. Nothing but a cache is written until a method that says so is called.

    guard: entered for the moment in which a file is put in place or removed, as that of `Folder`.
    """

    def __init__(self, location: str, guard: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.folder = replace(Folder.at(location), guard=guard)
        self.location = location if "://" in location else self.folder.path
        self.trials = self.folder / "trials"
        self.sweeps = self.folder / "sweeps"
        self.launches = self.folder / "launches"
        self.leases = self.folder / "leases"
        self.cache = self.folder / ".cache"

    def checkpoints(self, trial: str) -> Folder:
        """Where a trial keeps its weights."""
        return self.folder / "checkpoints" / trial

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
        described = trial.as_json()
        metadata = {"config": described["config"], "facts": described["facts"], "provenance": dict(provenance)}
        footer = {f"tinyscale.{key}": json.dumps(value) for key, value in metadata.items()}
        table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(footer))
        self.trials.write(f"{trial.identity}.parquet", to_parquet(table, **FEW_ROWS))

    def read_trial(self, identity: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """A trial's rows, and its metadata (`config`, `facts`, `provenance`). FileNotFoundError or ResultsError."""
        content = self.trials.read(f"{identity}.parquet")
        try:
            # Without threads: where a process ends just after Arrow starts its own, they abort it.
            table = open_parquet(content).read(use_threads=False)
            _require_trials(table)
            footer = {key.decode(): value for key, value in (table.schema.metadata or {}).items()}
            ours = {key.removeprefix("tinyscale."): key for key in footer if key.startswith("tinyscale.")}
            return table.to_pylist(), {name: json.loads(footer[key]) for name, key in ours.items()}
        except DAMAGE as error:
            raise ResultsError(f"{self.trials}/{identity}.parquet: {_first_line(error)}") from error

    def load_trial(self, identity: str) -> Trial:
        """The trial whose rows are in that file. FileNotFoundError or ResultsError."""
        rows, metadata = self.read_trial(identity)
        try:
            facts = metadata.get("facts") or _facts_in(rows[-1])
            return Trial.of_json({"identity": identity, "config": metadata["config"], "facts": facts})
        except (KeyError, TypeError, ValueError) as error:
            file = f"{self.trials}/{identity}.parquet"
            raise ResultsError(f"{file}: written by another version of tinyscale ({_first_line(error)})") from error

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

    def forget(self, identity: str) -> None:
        """Remove a trial's rows and what it kept."""
        kept = self.checkpoints(identity)
        for name in [] if kept.is_link else kept.names():
            kept.delete(name)
        self.trials.delete(f"{identity}.parquet")

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
        wanted = pa.schema([SCHEMA.field(name) for name in columns]) if columns else SCHEMA
        set_aside: list[str] = []
        stamps = self.trials.stamps(".parquet")
        known = snapshot.load(self.cache, stamps, wanted)
        seen = set(known[snapshot.STAMP].unique().to_pylist())
        unseen = sorted(name for name, stamp in stamps.items() if stamp not in seen)
        if columns and len(unseen) >= snapshot.FEWEST:  # worth a snapshot, of all columns
            frame, set_aside = self.read()
            return frame[columns], set_aside
        tables = [known]
        for name, rows in self._read_files(unseen, columns, wanted):
            if isinstance(rows, FileNotFoundError):
                continue  # forgotten since the folder was listed
            if isinstance(rows, Exception):
                set_aside.append(f"{self.trials}/{name}: set aside, {_first_line(rows)}")
            else:
                tables.append(rows.append_column(snapshot.STAMP, pa.repeat(stamps[name], len(rows))))
        table = pa.concat_tables(tables).combine_chunks()
        if len(unseen) >= snapshot.FEWEST:
            snapshot.save(self.cache, table)
        return snapshot.by_file(table).to_pandas(use_threads=False), set_aside

    def _read_files(
        self, names: Sequence[str], columns: list[str] | None, wanted: pa.Schema
    ) -> Iterator[tuple[str, pa.Table | Exception]]:
        """Each file's rows, or what is wrong with it; many at a time, since most of it is waiting for the store."""

        def read(name: str) -> pa.Table | Exception:
            try:
                return self._read_rows(name, columns, wanted)
            except DAMAGE as error:
                return error

        with ThreadPoolExecutor(READERS) as pool:
            yield from zip(names, pool.map(read, names), strict=True)

    def _read_rows(self, name: str, columns: list[str] | None, wanted: pa.Schema) -> pa.Table:
        """One file's rows; one of `DAMAGE` when it is no trial's."""
        file = open_parquet(self.trials.read(name))
        if not {"trial", "state", "schema_version"} <= set(file.schema_arrow.names):
            raise pa.ArrowInvalid("not a trial's file: it lacks the columns trial, state, schema_version")
        table = _unify(file.read(columns=columns, use_threads=False), wanted)
        _require_trials(table)
        return table

    def write_sweep(self, record: SweepRecord) -> None:
        """Record which trials a sweep consists of."""
        self.sweeps.write(f"{record.name}.json", json.dumps(record.as_json(), indent=1).encode())

    def read_sweeps(self) -> list[SweepRecord]:
        """The sweeps launched into this folder, by name."""
        records = []
        for name in self.sweeps.names(".json"):
            try:
                record = SweepRecord.of_json(json.loads(self.sweeps.read(name)))
                if f"{record.name}.json" != name or not re.fullmatch(SWEEP_NAME, record.name):
                    raise ValueError(f"it is named {record.name!r}")
                records.append(record)
            except (ValueError, TypeError, KeyError) as error:
                message = f"{self.sweeps}/{name}: not a sweep's record ({error}); launch the sweep again"
                raise ResultsError(message) from error
        return records


def _facts_in(row: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of the text as far as rows hold them: of a trial on a part of it, train_tokens is the part's."""
    facts = {name: row[name] for name in ("corpus_hash", "tokenizer_hash", "vocab_size")}
    return {**facts, "split_rule": FIRST_SPLIT_RULE, "train_tokens": row["unique_tokens"]}


def _require_trials(table: pa.Table) -> None:
    """ArrowInvalid unless the rows are whole, and name trials and their states: an identity becomes a path."""
    table.validate(full=True)
    for name, what, legal in (("trial", "an identity", IDENTITY), ("state", "a state of rows", "|".join(RECORDED))):
        for value in table[name].unique().to_pylist():
            if not isinstance(value, str) or not re.fullmatch(legal, value):
                raise pa.ArrowInvalid(f"not a trial's file: its column {name} has {value!r}, which is not {what}")
    if not len(table):
        raise pa.ArrowInvalid("not a trial's file: it has no rows")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _unify(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give a file of another schema version this version's columns; what it lacks is null."""
    if table.schema.equals(schema):
        return table.replace_schema_metadata(None)
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema.remove_metadata())


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
