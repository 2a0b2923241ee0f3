"""Rows of trials that ended, of thousands of files in one, so that each file is opened once.

Only a cache: a file whose size or time of change differs is read again, and without the snapshot everything works as
before. It lies next to `trials/`, never in it: the files there cannot be joined while others read the folder, since
one who listed it before would miss the rows of the files that went, or find them twice where they were still there.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc

from tinyscale.errors import ResultsError
from tinyscale.results.parquet import DAMAGE, open_parquet, to_parquet
from tinyscale.spec.state import State
from tinyscale.storage import Folder

FEWEST = 200  # files worth a new snapshot; below, reading them takes a moment
NAME, MEASURED = "rows.parquet", "measurements.parquet"  # of trials; of measurements
STAMP = "_stamp"  # the column that says which file a row is of, as it was then
PROVENANCE = "_provenance"  # the column with that file's provenance, in its first row
OWN = pa.schema([(STAMP, pa.string()), (PROVENANCE, pa.string())])


def load(folder: Folder, name: str, stamps: Mapping[str, str], schema: pa.Schema) -> pa.Table:
    """The columns of `schema`, and those of `OWN`, of the files that are as they were when the snapshot was made."""
    wanted = pa.schema([*schema, *OWN])
    try:
        table = open_parquet(folder.read(name)).read(columns=wanted.names, use_threads=False).cast(wanted)
        table.validate(full=True)
    except DAMAGE:  # none, a damaged one, or one of another schema
        return wanted.empty_table()
    return table.filter(pc.is_in(table[STAMP], pa.array(stamps.values(), pa.string())))


def save(folder: Folder, name: str, table: pa.Table) -> None:
    """Replace the snapshot by the rows of trials that ended; a folder that cannot be written goes without."""
    content = to_parquet(table.filter(pc.not_equal(table["state"], State.RUNNING.value)))
    with suppress(ResultsError):
        folder.write(name, content)


def labelled(rows: pa.Table, stamp: str, provenance: str | None) -> pa.Table:
    """One file's rows with the columns of `OWN`."""
    own = [[stamp] * len(rows), [provenance] + [None] * (len(rows) - 1)]
    return pa.table([*rows.columns, *own], schema=pa.schema([*rows.schema, *OWN]))


def by_file(table: pa.Table) -> pa.Table:
    """The rows in the order of the files' names; within a file as they were."""
    return table.take(pc.sort_indices(table, sort_keys=[(STAMP, "ascending")]))
