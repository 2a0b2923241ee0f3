"""Parquet files that say when they are damaged.

Pages carry Parquet's own checksums, and the file a SHA-256 of everything else as well: names of columns, offsets and
our metadata are in its footer, which Parquet does not protect. The digest stands between the last page and the footer,
where no reader looks; a program that writes the table again leaves it out. Files without one are read unchecked.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

DAMAGE = (pa.ArrowException, OSError, ValueError)  # what pyarrow raises on bytes that are no whole Parquet file

_SEAL = b"tinyscale sha-256"  # before the digest
_END = 8  # bytes after the footer: its length and a magic number


def to_parquet(table: pa.Table, **options: Any) -> bytes:
    """The table as a Parquet file with its digest. options: of pyarrow's `write_table`."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, write_page_checksum=True, **options)
    content = buffer.getvalue()
    footer = len(content) - _END - int.from_bytes(content[-_END:-4], "little")
    return content[:footer] + _SEAL + hashlib.sha256(content).digest() + content[footer:]


def open_parquet(content: bytes) -> pq.ParquetFile:
    """A file's content to be read from. One of `DAMAGE` when it is not what was written."""
    sealed = content.rfind(_SEAL)
    if sealed >= 0:
        begin = sealed + len(_SEAL)
        end = begin + hashlib.sha256().digest_size
        if hashlib.sha256(content[:sealed] + content[end:]).digest() != content[begin:end]:
            raise pa.ArrowInvalid("damaged: its SHA-256 is not the one that was written")
    # Read ahead, Arrow starts a thread; where a process ends just after that, it aborts.
    return pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True, pre_buffer=False)


def read_frame(content: bytes) -> pd.DataFrame:
    """A file's rows. Without Arrow's threads: where a process ends just after they start, they abort it."""
    frame: pd.DataFrame = open_parquet(content).read(use_threads=False).to_pandas(use_threads=False)
    return frame
