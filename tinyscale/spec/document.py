"""A YAML file as plain Python values, with the line of each."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLError, YAMLWarning
from ruamel.yaml.scalarbool import ScalarBoolean

from tinyscale.errors import ConfigError

MAX_BYTES = 200_000  # a parser's minute
MAX_DEPTH = 20
MAX_BRACKETS = 500  # that open and do not close; text may hold some
MAX_VALUES = 50_000  # a few lines of nested aliases can expand to billions
MAX_WHOLE = 2**63
STUMBLES = (AssertionError, AttributeError, LookupError, TypeError)  # what ruamel raises where a tag misleads it

Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """The values of a file (`content`), its text (`source`), and the 1-based line of each key and item.

    lines: None where the values were given in Python, and `source` was made of them.
    """

    path: str
    source: str
    content: Mapping[str, Any]
    lines: Mapping[Keys, int] | None

    def origin(self, keys: Keys = ()) -> str:
        """`file, line n` of the value at these keys, or of the nearest one above it; in Python, the keys themselves."""
        if self.lines is None:
            return ": ".join([self.path, *([".".join(map(str, keys))] if keys else [])])
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return f"{self.path}, line {self.lines[keys]}" if keys else self.path


def load_document(
    path: str | Path, kind: str = "a sweep file is a mapping of keys such as name, base, axes"
) -> Document:
    """Read a YAML 1.2 file whose top level is a mapping. ConfigError names the line of a syntax error.

    kind: what is said of a file that holds something else.
    """
    try:
        source = _read_text(Path(path))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    lines: dict[Keys, int] = {}
    content = _plain(_parse(source, str(path)), (), lines, str(path))
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: {kind}")
    return Document(str(path), source, content, lines)


def document_of(content: Mapping[str, Any], path: str) -> Document:
    """Values given in Python, as those of a file. path: what errors call it. ConfigError for what no file can hold."""
    plain = {str(name): _of_python(value, (name,), path) for name, value in content.items()}
    stream, yaml = io.StringIO(), YAML()
    yaml.default_flow_style = None
    yaml.dump(plain, stream)
    return Document(path, stream.getvalue(), plain, None)


def _of_python(value: Any, keys: Keys, path: str) -> Any:
    """Mappings, sequences, NumPy's values and paths as dict, list, numbers and text; others are refused."""
    if len(keys) > MAX_DEPTH:
        raise ConfigError(f"{path}: nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _of_python(each, (*keys, str(key)), path) for key, each in value.items()}
    if isinstance(value, list | tuple | range):
        return [_of_python(each, (*keys, index), path) for index, each in enumerate(value)]
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    where = ".".join(map(str, keys))
    raise ConfigError(f"{path}: {where}: {type(value).__name__} is not a value of a sweep; write text or a number")


def _read_text(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.read(MAX_BYTES + 1)


def parse_value(text: str, origin: str) -> Any:
    """A value given on the command line, read as in a YAML file."""
    return _plain(_parse(text, origin), (), {}, origin)


def _parse(text: str, origin: str) -> Any:
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{origin}: longer than {MAX_BYTES:,} characters, which no sweep needs; shorten it")
    if _depth_of_brackets(text) > MAX_BRACKETS:
        raise ConfigError(f"{origin}: not YAML: brackets open and do not close")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", YAMLWarning)  # a redefined anchor, or YAML 1.1: both are legal
            return YAML(typ="rt").load(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{origin}, line {mark.line + 1}" if mark else origin
        raise ConfigError(f"{where}: not YAML: {error.problem or error.context}") from error
    except RecursionError as error:
        raise ConfigError(f"{origin}: not YAML: nested too deeply") from error
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{origin}: not YAML: {(str(error) or type(error).__name__).splitlines()[0]}") from error
    except STUMBLES as error:
        raise ConfigError(f"{origin}: not YAML: a tag that does not fit its value, or a value without text") from error


def _depth_of_brackets(text: str) -> int:
    """How many brackets are open at most; the parser takes minutes for tens of thousands."""
    steps = (1 if sign in "[{" else -1 for sign in text if sign in "[]{}")
    return max(itertools.accumulate(steps, initial=0))


def _refuse_too_much(keys: Keys, lines: Mapping[Keys, int], where: str) -> None:
    if len(keys) > MAX_DEPTH:
        raise ConfigError(f"{where}: nested deeper than {MAX_DEPTH} levels")
    if len(lines) > MAX_VALUES:
        raise ConfigError(f"{where}: more than {MAX_VALUES:,} values after expanding aliases")


def _refuse_tagged(node: Any, where: str) -> None:
    if isinstance(node, CommentedMap | CommentedSeq | TaggedScalar) and (tag := node.tag.value) is not None:
        tag = tag.replace("tag:yaml.org,2002:", "!!")
        raise ConfigError(f"{where}: the tag {tag} is not for a file like this; remove it")


def _plain(node: Any, keys: Keys, lines: dict[Keys, int], path: str) -> Any:
    """ruamel's nodes as dict, list, str, int, float, bool and None; fills `lines` with the line of each."""
    where = f"{path}, line {lines[keys]}" if keys in lines else path
    _refuse_too_much(keys, lines, where)
    _refuse_tagged(node, where)
    if isinstance(node, CommentedMap):
        found = {}
        for key, value in node.items():
            if not isinstance(key, str):
                shown = "a list" if isinstance(key, tuple) else _plain(key, keys, lines, path)
                raise ConfigError(f"{where}: keys are text; {shown} is not")
            lines[(*keys, str(key))] = node.lc.key(key)[0] + 1 if key in (node.lc.data or {}) else lines.get(keys, 1)
            found[str(key)] = _plain(value, (*keys, str(key)), lines, path)
        return found
    if isinstance(node, CommentedSeq):
        for index in range(len(node)):
            lines[(*keys, index)] = node.lc.item(index)[0] + 1
        return [_plain(value, (*keys, index), lines, path) for index, value in enumerate(node)]
    if isinstance(node, ScalarBoolean):  # a boolean with an anchor; in ruamel a subclass of int
        return bool(node)
    if isinstance(node, int) and abs(node) >= MAX_WHOLE:
        raise ConfigError(f"{where}: an integer of more than 64 bits; write it as a float, such as 1e20, or smaller")
    for kind in (bool, int, float, str):  # ruamel's scalars are subclasses that carry their formatting
        if isinstance(node, kind):
            return kind(node)
    if node is None:
        return None
    raise ConfigError(f"{where}: {type(node).__name__} is not a value this file can hold; write text or a number")
