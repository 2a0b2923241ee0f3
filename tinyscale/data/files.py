"""Documents from the user's own files: .txt, .jsonl, .parquet, or a folder of those."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tinyscale.data.source import Split
from tinyscale.data.split import content_hash, split
from tinyscale.errors import DataError
from tinyscale.spec.data_config import SEPARATOR
from tinyscale.storage import Folder

Page = tuple[str | None, str]  # what names a document in every text that it is part of, if anything, and its text


@dataclass(frozen=True)
class Files:
    """The source made of a file, or of the files in a folder. They are read once.

    separator: what stands between the documents of a .txt file.
    """

    path: Path
    separator: str = SEPARATOR

    def hash(self) -> str:
        """The content hash of the documents."""
        return content_hash(self._documents)

    def documents(self) -> list[str]:
        """The documents of the files."""
        return list(self._documents)

    def pages(self) -> list[Page]:
        """The documents, each with its page: what it has under the key `page` of .jsonl, else None."""
        return list(self._pages)

    def split(self, val_bytes: int) -> Split:
        """The documents, split by their hashes."""
        return Split(*split(self._documents, val_bytes))

    @cached_property
    def _documents(self) -> list[str]:
        return [text for _, text in self._pages]

    @cached_property
    def _pages(self) -> list[Page]:
        return read_pages(self.path, self.separator)


def read_files(path: Path) -> list[str]:
    """The documents of a file or a folder, as `read_pages` reads them."""
    return [text for _, text in read_pages(path)]


def read_pages(path: Path, separator: str = SEPARATOR) -> list[Page]:
    """The documents of a file, or of every .txt, .jsonl and .parquet file in a folder and its subfolders.

    Linked folders are entered, each once. separator: between the documents of .txt. DataError names the file and the
    line that cannot be read as text, and a separator other than the usual one that stands in no .txt file.
    """
    paths = sorted(_files_in(path)) if path.is_dir() else [path]
    if not paths:
        raise DataError(f"{path}: no {', '.join(_READERS)} file in this folder or its subfolders")
    pages = [page for found in paths for page in _file(found, separator)]
    if separator != SEPARATOR:
        _require_separator(path, [found for found in paths if _is_plain(found)], separator)
    return pages


def has_plain_text(path: Path) -> bool:
    """Whether a path is a .txt file, or a folder with one."""
    return any(map(_is_plain, _files_in(path) if path.is_dir() else [path]))


def _is_plain(path: Path) -> bool:
    return path.suffix.lower() == ".txt"


def _require_separator(path: Path, plain: list[Path], separator: str) -> None:
    if not plain:
        raise DataError(
            f"data.separator is for .txt, and {path} is none: its rows are its documents; remove it",
            field="data.separator",
        )
    if not any(separator in _decoded(each) for each in plain):
        other = separator.replace("\n", "\r\n")
        crlf = other != separator and any(other in _decoded(each) for each in plain)
        remedy = f"its lines end in \\r\\n: give {json.dumps(other)}" if crlf else "give what does, in double quotes"
        raise DataError(
            f"data.separator {json.dumps(separator)} stands nowhere in {path}; {remedy}, or remove it",
            field="data.separator",
        )


def _files_in(path: Path) -> Iterator[Path]:
    """The files that can be read in a folder and in its subfolders and linked folders, where links may lead back."""
    entered: set[Path] = set()
    for name_of_folder, below, names in os.walk(path, followlinks=True):
        folder = Path(name_of_folder)
        entered.add(folder.resolve())
        below[:] = sorted(name for name in below if (folder / name).resolve() not in entered)
        entered.update((folder / name).resolve() for name in below)
        yield from (found for name in names if (found := folder / name).suffix.lower() in _READERS and found.is_file())


def write_documents(documents: Iterable[str], folder: Path) -> Path:
    """Write documents as .jsonl into a folder, under the hash of their content; the file's path.

    DataError where there is none, where one is no text, and where the folder cannot be written.
    """
    if isinstance(documents, str):
        raise DataError("a string is one document: give a list of documents, such as [text], or a path")
    texts = [_document(number, each) for number, each in enumerate(documents)]
    if not any(texts):
        raise DataError("there are no documents, or none with text")
    path = folder / f"{content_hash(filter(None, texts))}.jsonl"
    if not path.exists():
        lines = "".join(f"{json.dumps({'text': text}, ensure_ascii=False)}\n" for text in texts if text)
        Folder.at(folder).write(path.name, lines.encode())
    return path


def _document(number: int, given: object) -> str:
    if not isinstance(given, str):
        raise DataError(f"document {number} is a {type(given).__name__}, not a text")
    return valid_unicode(given, "text", f"document {number}")


def between_separators(text: str, separator: str = SEPARATOR) -> list[str]:
    """The documents of plain text, stripped of surrounding white space."""
    return [document for part in text.split(separator) if (document := part.strip())]


def _file(path: Path, separator: str) -> list[Page]:
    if path.suffix.lower() not in _READERS:
        raise DataError(f"{path}: a file of type {path.suffix or '(none)'} cannot be read; use {', '.join(_READERS)}")
    # Empty documents are left out: they have no tokens and no bytes.
    try:
        found = _txt(path, separator) if _is_plain(path) else _READERS[path.suffix.lower()](path)
        pages = [page for page in found if page[1]]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); make it readable or remove it") from error
    if not pages:
        raise DataError(f"{path}: the file has no text; add some or remove it")
    return pages


def _decoded(path: Path) -> str:
    """The file as text, with its own newlines."""
    raw = path.read_bytes()
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or 3 * raw.count(0, 0, 1000) > len(raw[:1000]):
        raise DataError(f"{path}: UTF-16, not UTF-8; convert the original, for example with iconv -f utf-16 -t utf-8")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 (byte 0x{raw[error.start]:02x}); convert it, "
            f"for example with iconv -f latin1 -t utf-8"
        ) from error


def _txt(path: Path, separator: str = SEPARATOR) -> list[Page]:
    """The documents between separators, stripped; without separators the whole file, unchanged."""
    text = _decoded(path)
    return [(None, each) for each in (between_separators(text, separator) if separator in text else [text])]


def json_lines(path: Path, example: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a .jsonl file, each with its file and line for messages. DataError shows the example of a row."""
    lines = _decoded(path).split("\n")  # not splitlines: JSON may hold other line separators
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{where}: not JSON ({error.msg}); each line must look like {example}") from error
            yield where, row if isinstance(row, dict) else {}


def json_text(row: dict[str, Any], key: str, where: str, example: str) -> str:
    """The string under a key of a row. DataError where there is none, or no valid one."""
    text = row.get(key)
    if not isinstance(text, str):
        raise DataError(f'{where}: no string under the key "{key}"; each line must look like {example}')
    return valid_unicode(text, key, where)


def valid_unicode(text: str, key: str, where: str) -> str:
    """The text. DataError where UTF-8 cannot hold it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f'{where}: "{key}" contains half of a surrogate pair, which is not valid Unicode; remove it'
        ) from error
    return text


def _jsonl(path: Path) -> list[Page]:
    example = '{"text": "..."}'
    rows = json_lines(path, example)
    return [(_page(row, where), json_text(row, "text", where, example)) for where, row in rows]


def _page(row: dict[str, Any], where: str) -> str | None:
    """What the row has under `page`, as text."""
    page = row.get("page")
    return None if page is None else valid_unicode(str(page), "page", where)


def read_text_column(path: Path) -> pa.ChunkedArray:
    """The column `text`, without Arrow's threads: where a process ends just after they start, they abort it."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        return file.read(columns=["text"], use_threads=False).column("text")


def _parquet(path: Path) -> list[Page]:
    try:
        schema = pq.read_schema(path)
        if "text" not in schema.names or schema.field("text").type not in (pa.string(), pa.large_string()):
            raise DataError(f"{path}: needs a column text of strings; its columns are {', '.join(schema.names)}")
        column = read_text_column(path)
        if column.null_count:
            raise DataError(f"{path}, row {column.is_null().index(True).as_py() + 1}: text is null; remove such rows")
        return [(None, text) for text in column.to_pylist()]
    except (pa.ArrowException, ValueError) as error:  # the latter of bytes that are not UTF-8
        raise DataError(f"{path}: not a Parquet file, or a damaged one ({error})") from error


_READERS = {".txt": _txt, ".jsonl": _jsonl, ".parquet": _parquet}
