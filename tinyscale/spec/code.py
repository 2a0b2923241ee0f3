"""A user's own code: a Python file that a sweep names, with the local files that it imports, known by their hash.

The file is read, never run: that is left to `training.own`.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self

from tinyscale.errors import ConfigError

MAX_BYTES = 1_000_000  # of all files together
NEVER_LOCAL = {*sys.stdlib_module_names, "tinyscale", "torch"}  # whatever lies beside the file


@dataclass(frozen=True)
class Code:
    """The files of a user's code, the one that the sweep names first, by their paths from its folder.

    sources: their text; empty where only the hash is known. A trial in the results has none: they are in code/<hash>/.
    """

    files: tuple[str, ...]
    hash: str
    sources: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def of(cls, files: Mapping[str, str]) -> Self:
        """Of path -> text. The hash leaves out the name of the first file, which nothing imports."""
        (_, first), *others = files.items()
        content = json.dumps([first, sorted(others)])
        return cls(tuple(files), hashlib.sha256(content.encode()).hexdigest()[:16], tuple(files.values()))

    @classmethod
    def of_json(cls, written: Mapping[str, Any]) -> Self:
        """What `as_json` wrote."""
        return cls(tuple(written["files"]), str(written["hash"]), tuple(written.get("sources", ())))

    def as_json(self, *, sources: bool) -> dict[str, Any]:
        """As JSON holds it, with or without the text."""
        known = {"files": list(self.files), "hash": self.hash}
        return {**known, "sources": list(self.sources)} if sources else known

    @property
    def name(self) -> str:
        """The file that the sweep names."""
        return self.files[0]


def read_code(path: Path) -> Code:
    """The file with the local files that it imports, directly or not. ConfigError where one cannot be used."""
    folder, files, waiting = path.parent, dict[str, str](), [path.name]
    while waiting:
        if (file := waiting.pop(0)) not in files:
            files[file] = _text(folder / file, path)
            waiting += _local_imports(file, files[file], folder)
    if (size := sum(len(text.encode()) for text in files.values())) > MAX_BYTES:
        raise ConfigError(f"{path}: {size:,} bytes of code with what it imports, more than {MAX_BYTES:,}")
    return Code.of(files)


def _text(path: Path, named: Path) -> str:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; a path is relative to the sweep file") from error
    except (OSError, UnicodeDecodeError) as error:
        whose = "" if path == named else f", which {named.name} imports,"
        raise ConfigError(f"{path}{whose} cannot be read as UTF-8 text ({error})") from error


def _local_imports(file: str, text: str, folder: Path) -> Iterator[str]:
    """The files below the folder that a file imports."""
    try:
        tree = ast.parse(text, file)
    except (SyntaxError, ValueError) as error:
        where = f"{folder / file}, line {error.lineno}" if isinstance(error, SyntaxError) else f"{folder / file}"
        raise ConfigError(f"{where}: not Python: {error.args[0]}") from error
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.Lambda)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        for module in _modules(node, file):
            found = [each for each in _files_of(module) if (folder / each).is_file()]
            if found and id(node) in late:
                raise ConfigError(
                    f"{folder / file}, line {getattr(node, 'lineno', 1)}: imports {module} inside a function; import "
                    "files of your own at the top"
                )
            yield from found


def _modules(node: ast.AST, file: str) -> Iterator[str]:
    """The modules that a statement imports, by their full names; a name that it takes from one may be one as well."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        package = PurePosixPath(file).parts[: -node.level] if node.level else ()
        inside = ".".join([*package, *filter(None, [node.module])])
        names = [inside, *(f"{inside}.{alias.name}" if inside else alias.name for alias in node.names)]
    else:
        return
    for name in filter(None, names):
        parts = name.split(".")
        if parts[0] not in NEVER_LOCAL:
            yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def _files_of(module: str) -> list[str]:
    """Where a module of this name lies: a package, or a file."""
    path = module.replace(".", "/")
    return [f"{path}/__init__.py", f"{path}.py"]
