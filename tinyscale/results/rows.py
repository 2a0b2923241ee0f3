"""Files of rows of one schema, one per trial, read as one table: the folders trials/ and measurements/."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from tinyscale.results import snapshot
from tinyscale.results.parquet import DAMAGE, open_parquet
from tinyscale.results.provenance import require_provenance
from tinyscale.results.schema import IDENTITY
from tinyscale.spec.state import State
from tinyscale.storage import Folder

READERS, FILES_AT_ONCE = 16, 500  # threads that read files; files that are held before their rows are joined
MANY = 2000  # files that take seconds to read, which is said

RECORDED = "|".join(state.value for state in State if state.is_recorded)


@dataclass(frozen=True)
class Required:
    """What a file of rows must hold. what: it is; columns: name -> the expression that its values match, in words."""

    what: str
    columns: Mapping[str, tuple[str, str]]


_NAMED = {"trial": (IDENTITY, "an identity"), "state": (RECORDED, "a state of rows")}
TRIAL_ROWS = Required("a trial's file", _NAMED)
MEASURED_ROWS = Required("a file of measurements", {**_NAMED, "measurement": (IDENTITY, "an identity")})


@dataclass(frozen=True)
class RowFiles:
    """A folder of such files. cache: where the snapshot of that name lies; schema: that of this version."""

    folder: Folder
    cache: Folder
    name: str
    schema: pa.Schema
    required: Required

    def read(self, columns: list[str] | None = None) -> tuple[pa.Table, list[str]]:
        """The rows with the columns of `snapshot.OWN`, and what was set aside."""
        wanted = pa.schema([self.schema.field(name) for name in columns]) if columns else self.schema
        set_aside: list[str] = []
        stamps = self.folder.stamps(".parquet")
        known = snapshot.load(self.cache, self.name, stamps, wanted)
        seen = set(known[snapshot.STAMP].unique().to_pylist())
        unseen = sorted(name for name, stamp in stamps.items() if stamp not in seen)
        if columns and len(unseen) >= snapshot.FEWEST:  # worth a snapshot, of all columns
            table, set_aside = self.read()
            return table.select([*wanted.names, *snapshot.OWN.names]), set_aside
        if len(unseen) >= MANY:
            logging.getLogger(__name__).warning(
                "reading %d files of %s, next time only new ones", len(unseen), self.folder
            )
        table = pa.concat_tables([known, *self._read_files(unseen, stamps, wanted, set_aside)]).combine_chunks()
        if len(unseen) >= snapshot.FEWEST:
            snapshot.save(self.cache, self.name, table)
        return snapshot.by_file(table), set_aside

    def _read_files(
        self, names: Sequence[str], stamps: Mapping[str, str], wanted: pa.Schema, set_aside: list[str]
    ) -> Iterator[pa.Table]:
        """The rows of files, those of FILES_AT_ONCE joined: a table of each would take much memory.

        set_aside: gets a line for each file that cannot be read. One that went since the folder was listed is left out.
        """
        for begin in range(0, len(names), FILES_AT_ONCE):
            some = names[begin : begin + FILES_AT_ONCE]
            with ThreadPoolExecutor(READERS) as pool:  # for the store's sake: parsing is faster without
                contents = list(pool.map(self._content, some))
            tables = []
            for name, content in zip(some, contents, strict=True):
                try:
                    rows, provenance = self._rows_in(content, wanted)
                    tables.append(snapshot.labelled(rows, stamps[name], provenance))
                except FileNotFoundError:
                    continue
                except DAMAGE as error:
                    set_aside.append(f"{self.folder}/{name}: set aside, {first_line(error)}")
            if tables:
                yield pa.concat_tables(tables).combine_chunks()

    def _content(self, name: str) -> bytes | OSError:
        """A file, or why it cannot be read."""
        try:
            return self.folder.read(name)
        except OSError as error:
            return error

    def _rows_in(self, content: bytes | OSError, wanted: pa.Schema) -> tuple[pa.Table, str]:
        """A file's rows in these columns, and its provenance as JSON; one of `DAMAGE` if it does not hold such rows."""
        if isinstance(content, OSError):
            raise content
        file = open_parquet(content)
        there = file.schema_arrow
        needed = (*self.required.columns, "schema_version")
        if not set(needed) <= set(there.names):
            raise pa.ArrowInvalid(f"not {self.required.what}: it lacks the columns {', '.join(needed)}")
        table = unify(file.read(columns=wanted.names, use_threads=False), wanted)
        require_rows(table, self.required)
        provenance = (there.metadata or {}).get(b"tinyscale.provenance", b"{}").decode()
        require_provenance(json.loads(provenance))
        return table, provenance


def require_rows(table: pa.Table, required: Required) -> None:
    """ArrowInvalid unless the rows are whole and their columns match: an identity becomes a path."""
    table.validate(full=True)
    for name, (legal, what) in required.columns.items():
        if name not in table.column_names:
            raise pa.ArrowInvalid(f"not {required.what}: it lacks the column {name}")
        for value in table[name].unique().to_pylist():
            if not isinstance(value, str) or not re.fullmatch(legal, value):
                raise pa.ArrowInvalid(f"not {required.what}: its column {name} has {value!r}, which is not {what}")
    if not len(table):
        raise pa.ArrowInvalid(f"not {required.what}: it has no rows")


def first_line(error: Exception) -> str:
    """An error in a line."""
    return (str(error) or type(error).__name__).splitlines()[0]


def unify(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give a file of another schema version this version's columns; what it lacks is null."""
    if table.schema.equals(schema):
        return table.replace_schema_metadata(None)
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema.remove_metadata())
