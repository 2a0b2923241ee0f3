"""The tools that hold the code to its rules, run as anyone runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT

TOOLS = {
    "imports go one way": ["lint-imports", "--no-cache"],
    "no lint": ["ruff", "check"],
    "formatted": ["ruff", "format", "--check"],
}


@pytest.mark.parametrize("command", TOOLS.values(), ids=TOOLS)
def test_the_code_keeps_its_rules(command: list[str]) -> None:
    assert_passes(*command)


@pytest.mark.slow
def test_the_code_is_typed() -> None:
    assert_passes("mypy")


def assert_passes(tool: str, *arguments: str) -> None:
    command = [Path(sys.executable).with_name(tool), *arguments]
    environment = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_test_module_imports_from_another() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) (test_|conftest)", path.read_text(), re.MULTILINE), path.name
