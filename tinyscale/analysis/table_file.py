"""A file of runs as people write it: any separator, encoding and way of writing numbers -> a frame."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tinyscale.errors import ResultsError
from tinyscale.results.parquet import read_frame
from tinyscale.storage import Folder

ENDINGS = (".csv", ".tsv", ".parquet", ".json", ".jsonl")  # and those compressed: .csv.gz, ...
BLANK = {"", "nan", "na", "n/a", "#n/a", "null", "none", "-", "--", "?"}
SCALES = {
    **dict.fromkeys(("k", "thousand", "thousands"), 1e3),
    **dict.fromkeys(("m", "mn", "mio", "mil", "million", "millions"), 1e6),
    **dict.fromkeys(("b", "bn", "g", "mrd", "bil", "billion", "billions"), 1e9),
    **dict.fromkeys(("t", "tn", "trillion", "trillions"), 1e12),
}

_SIGNED = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_SCALED = re.compile(r"(.*\d[.,]?)\s*([A-Za-z]+)")
_POWER = re.compile(rf"(?:({_SIGNED})\s*[x×*·]\s*)?(10|2)\s*(?:\^|\*\*)\s*([+-]?\d+)")
_GROUPED = {mark: re.compile(rf"[+-]?\d{{1,3}}(?:\{mark}\d{{3}})+(?:\{other}\d+)?") for mark, other in (",.", ".,")}
_GROUPED_TWICE = {mark: re.compile(rf"[+-]?\d{{1,3}}(?:\{mark}\d{{3}}){{2,}}") for mark in ",."}
_FRACTION = {mark: re.compile(rf"[+-]?\d*\{mark}\d+(?:[eE][+-]?\d+)?\s*[A-Za-z]*") for mark in ",."}
_BETWEEN_DIGITS = re.compile(r"(?<=\d)[ _'\u00a0\u2009\u202f](?=\d)")
_NO_VALUE = re.compile(r"^[~≈]\s*|\s*(?:±|\+/-).*$")  # about 50M; 3.21 ± 0.01
_RULE = re.compile(r"[\s:=+-]*-[\s:=+-]*")  # a cell of the line below the header of a table in Markdown
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SEPARATOR = re.compile(r"\ufeff?sep=(.)\s*\n")  # what Excel writes before the header
_FORMATS = {b"PK\x03\x04": "an Excel workbook or a zip", b"\xd0\xcf\x11\xe0": "an Excel workbook", b"PAR1": "Parquet"}
_BYTE_ORDER = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}


def ending_of(location: str) -> str:
    """Which of ENDINGS a location has, whatever its case and compression; empty for none of them."""
    suffix = PurePosixPath(location.lower().removesuffix(".gz")).suffix
    return suffix if suffix in ENDINGS else ""


def stem_of(location: str) -> str:
    """The file's name without its endings."""
    name = PurePosixPath(location).name
    name = name[: -len(".gz")] if name.lower().endswith(".gz") else name
    return PurePosixPath(name).stem


def read_file(location: str) -> pd.DataFrame:
    """The rows of a file of runs; the index, `line` or `row`, is where each stands in the file, from 1.

    Columns whose cells are all plain numbers, or all true or false, hold these; in others, text stays as it is written.
    ResultsError, naming the line, for what cannot be read.
    """
    folder = Folder.at(location.rsplit("/", 1)[0] if "://" in location else str(Path(location).parent))
    ending = ending_of(location)
    try:
        content = folder.read(PurePosixPath(location).name)
        if content.startswith(b"\x1f\x8b"):  # of gzip; a store may have opened it
            content = gzip.decompress(content)
        frame = _READERS[ending](content)
    except (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, pa.ArrowException) as error:
        raise ResultsError(f"{location}: cannot be read as {ending[1:]} ({error}); mend or export it again") from error
    if frame.empty:
        raise ResultsError(f"{location}: the file holds no rows of runs; add some below its header")
    return typed(frame)


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with a name for its index, distinct names of columns, and numbers and truths in place of their text."""
    frame = frame.rename_axis(str(frame.index.name or "row"))
    frame.columns = pd.Index(_distinct([str(name).strip() for name in frame.columns]))
    return frame.apply(_typed)


def to_number(text: str, decimal: str = ".") -> float | None:
    """What a cell says: 50000000, 50,000,000, 50 000 000, 50M, 1.5 billion, 5e7, 5 x 10^7, 2^20; None: no number.

    decimal: "." or ","; the other one may then stand between groups of three digits.
    """
    text = _BETWEEN_DIGITS.sub("", _NO_VALUE.sub("", powers_raised(text.strip())))
    scaled = _SCALED.fullmatch(text)
    digits, scale = (scaled[1], SCALES.get(scaled[2].lower())) if scaled else (text, 1.0)
    if scale is None:
        return None
    group = "," if decimal == "." else "."
    if _GROUPED[group].fullmatch(digits):
        digits = digits.replace(group, "")
    digits = digits.replace(",", ".") if decimal == "," else digits
    if power := _POWER.fullmatch(digits):
        return float(power[1] or 1) * float(power[2]) ** int(power[3]) * scale
    try:
        return float(digits) * scale if digits[-1:].isalnum() or digits.endswith(".") else None
    except ValueError:
        return None


def powers_raised(text: str) -> str:
    """10^7 for 10⁷."""
    return re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda raised: f"^{raised[0].translate(_RAISED)}", text)


def has_unit(cell: str) -> bool:
    """Whether a cell says itself what it counts in, as 50M does."""
    scaled = _SCALED.fullmatch(cell.strip())
    return scaled is not None and scaled[2].lower() in SCALES


def numbers(column: pd.Series[Any], unit: float = 1.0) -> pd.Series[Any]:
    """The column with text that is a number as people write it in place of the text; other text stays.

    unit: what its header says that 1 stands for; a cell with a unit of its own, such as 50M, says it itself.
    """
    if column.dtype.kind in "iufb":
        return column if unit == 1 else column.astype(float) * unit
    cells = [cell if isinstance(cell, str) else "" for cell in column]
    decimal = _decimal_of(cells) or "."
    both = []
    for cell, text in zip(column, cells, strict=True):
        value = to_number(text, decimal) if text else float(cell) if isinstance(cell, int | float | Decimal) else None
        both.append(cell if value is None else value if has_unit(text) else value * unit)
    known = all(each is None or isinstance(each, float) for each in both)
    return pd.Series(both, column.index, float if known else object, name=column.name)


def _typed(column: pd.Series[Any]) -> pd.Series[Any]:
    """Blank cells as missing; a column of plain numbers, or of true and false, as these."""
    if column.dtype.kind in "iufb" or isinstance(column.dtype, pd.BooleanDtype):
        return column
    cells = [None if _is_blank(cell) else cell for cell in column]
    known = [cell for cell in cells if cell is not None]
    if known and all(str(cell).lower() in ("true", "false") for cell in known):
        truths = [None if cell is None else str(cell).lower() == "true" for cell in cells]
        return pd.Series(truths, column.index, "boolean", name=column.name)
    typed = pd.Series(cells, column.index, object, name=column.name)
    return pd.to_numeric(typed) if all(map(_is_plain, known)) else typed


def _is_plain(cell: Any) -> bool:
    return isinstance(cell, int | float) or (isinstance(cell, str) and bool(re.fullmatch(_SIGNED, cell.strip())))


def _is_blank(cell: Any) -> bool:
    if isinstance(cell, str):
        return cell.strip().lower() in BLANK
    return cell is None or cell is pd.NA or cell is pd.NaT or (isinstance(cell, float) and np.isnan(cell))


def _decimal_of(cells: Iterable[str]) -> str:
    """The decimal mark that a column's cells show, or empty where they would be numbers with either."""
    shown = dict.fromkeys(",.", False)
    for cell in (_BETWEEN_DIGITS.sub("", cell.strip()) for cell in cells):
        for mark, other in (",.", ".,"):
            fraction = _FRACTION[mark].fullmatch(cell) and not _GROUPED[mark].fullmatch(cell)
            shown[mark] |= bool(fraction or _GROUPED_TWICE[other].fullmatch(cell))
    return next((mark for mark, other in (",.", ".,") if shown[mark] and not shown[other]), "")


def _decoded(content: bytes) -> str:
    """Text in UTF-8, UTF-16, or else in Latin-1."""
    encoding = next((name for mark, name in _BYTE_ORDER.items() if content.startswith(mark)), "utf-8")
    head = content[:1000]
    if encoding == "utf-8" and 2 * head.count(0) >= len(head) - 1 > 0:
        encoding = "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _read_delimited(content: bytes) -> pd.DataFrame:
    for begin, what in _FORMATS.items():
        if content.startswith(begin):
            raise ValueError(f"it is {what}, and no text")
    text = _decoded(content)
    said = _SEPARATOR.match(text)
    if said:
        text = "\n" + text[said.end() :]
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        return pd.DataFrame()
    counts = {mark: lines[0].count(mark) for mark in "\t;,|"}
    separator = said[1] if said else max(counts, key=lambda mark: counts[mark])
    if not counts.get(separator):
        separator = " "
    numbered, comment = _rows_of(text, separator)
    if all(to_number(cell) is not None for cell in numbered[0][1] if cell.strip()):
        if len(comment) != len(numbered[0][1]):
            raise ValueError("the first line holds numbers where the columns' names belong; add a line of names")
        numbered.insert(0, (0, comment))
    (_, header), rows = numbered[0], numbered[1:]
    for line, row in rows:
        if any(cell.strip() for cell in row[len(header) :]):
            raise ValueError(
                f"line {line} has {len(row)} cells and the header {len(header)}; "
                "write numbers without thousands separators and decimal commas, or in quotes"
            )
    header, rows = _with_units(header, rows)
    width = len(header)
    cells = [[*row, *[""] * width][:width] for _, row in rows]
    names = [name.strip() or f"column {number}" for number, name in enumerate(header, 1)]
    frame = pd.DataFrame(cells, index=pd.Index([line for line, _ in rows], name="line"), columns=names, dtype=object)
    return _points_for_commas(frame, separator)


def _with_units(header: list[str], rows: list[tuple[int, list[str]]]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header with the units that a line of their own below it holds, and the rows without that line."""
    if len(rows) < 2 or any(to_number(cell) is not None for cell in rows[0][1]):
        return header, rows
    counted = [place for place, cell in enumerate(rows[1][1]) if to_number(cell) is not None]
    units = [rows[0][1][place].strip(" ()[]") if place in counted else "" for place in range(len(rows[0][1]))]
    if (
        not any(units)
        or not all(header[place].strip() for place in counted)
        or any(unit.lower() in BLANK - {""} for unit in units)
    ):
        return header, rows
    return [f"{name} ({unit})" if unit else name for name, unit in zip(header, units, strict=False)], rows[1:]


def _rows_of(text: str, separator: str) -> tuple[list[tuple[int, list[str]]], list[str]]:
    """Rows with the line that each begins on, without comments and blank lines, and the cells of the last comment."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    rows: list[tuple[int, list[str]]] = []
    comment: list[str] = []
    start = 1
    for row in reader:
        if row and row[0].lstrip().startswith("#"):
            comment = comment if rows else [row[0].lstrip("# "), *row[1:]]
        elif any(cell.strip() for cell in row) and not all(_RULE.fullmatch(cell) for cell in row if cell.strip()):
            rows.append((start, [cell for cell in row if cell] if separator == " " else row))
        start = reader.line_num + 1
    return rows, comment


def _points_for_commas(frame: pd.DataFrame, separator: str) -> pd.DataFrame:
    """The frame with decimal points, where the file writes decimal commas; columns may differ, text stays."""
    marks = [_decimal_of(frame.iloc[:, place]) for place in range(frame.shape[1])]
    shown = {mark for mark in marks if mark}
    common = shown.pop() if len(shown) == 1 else "," if separator == ";" and _has_commas(frame) else "."
    for place, mark in enumerate(marks):
        if (mark or common) == ",":
            cells = list(frame.iloc[:, place])
            found = [to_number(cell, ",") if {",", "."} & set(cell) else None for cell in cells]
            texts = [cell if value is None else repr(value) for cell, value in zip(cells, found, strict=True)]
            frame.isetitem(place, texts)
    return frame


def _has_commas(frame: pd.DataFrame) -> bool:
    """Whether any number of a file is written with a comma."""
    return any(
        "," in cell and to_number(cell, ",") is not None
        for name in range(frame.shape[1])
        for cell in frame.iloc[:, name]
    )


def _read_json(content: bytes) -> pd.DataFrame:
    """A list of runs, an object of columns, or an object that holds one of these; objects in runs become columns."""
    found = json.loads(_decoded(content))
    if isinstance(found, dict) and set(found) >= {"columns", "data"}:  # as pandas splits a frame
        found = [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]
    while isinstance(found, dict) and not any(isinstance(value, list) for value in found.values()):
        inner = [value for value in found.values() if isinstance(value, dict)]
        if len(inner) != len(found):
            raise ValueError("no list of runs in it")
        by_row = all(name.isdecimal() for value in inner for name in value)  # columns, as pandas writes a frame
        found = pd.DataFrame(found).to_dict("records") if by_row else inner  # else runs, by name
    if isinstance(found, dict):
        lists = {name: value for name, value in found.items() if isinstance(value, list)}
        runs = next((value for value in lists.values() if value and isinstance(value[0], dict)), None)
        found = runs if runs is not None else pd.DataFrame(lists).to_dict("records")
    return _of_records(found, [number for number, _ in enumerate(found, 1)], "row")


def _read_json_lines(content: bytes) -> pd.DataFrame:
    records, lines = [], []
    for number, line in enumerate(_decoded(content).split("\n"), 1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: not JSON: {error.msg}") from error
            lines.append(number)
    return _of_records(records, lines, "line")


def _of_records(records: Sequence[Any], places: Sequence[int], name: str) -> pd.DataFrame:
    for place, record in zip(places, records, strict=True):
        if not isinstance(record, dict):
            raise ValueError(f'{name} {place}: not an object such as {{"n": 1e6, "loss": 3.2}}')
    frame = pd.json_normalize(list(records))
    frame.index = pd.Index(places, name=name)
    return frame


def _read_parquet(content: bytes) -> pd.DataFrame:
    frame = read_frame(content)
    frame = frame.reset_index() if any(name is not None for name in frame.index.names) else frame
    for name in [name for name in frame if len(frame) and isinstance(frame[name].iloc[0], dict)]:
        frame = frame.drop(columns=name).join(pd.json_normalize(list(frame[name])).add_prefix(f"{name}."))
    frame.index = pd.RangeIndex(1, len(frame) + 1, name="row")
    return frame


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, those that stood before with a number: loss, loss.1."""
    seen: dict[str, int] = {}
    made = []
    for name in names:
        made.append(f"{name}.{seen[name]}" if name in seen else name)
        seen[name] = seen.get(name, 0) + 1
    return made


_READERS: dict[str, Callable[[bytes], pd.DataFrame]] = {
    ".csv": _read_delimited,
    ".tsv": _read_delimited,
    ".parquet": _read_parquet,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
}
