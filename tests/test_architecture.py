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
    "typed": ["mypy"],
}


@pytest.mark.parametrize("command", TOOLS.values(), ids=TOOLS)
def test_the_code_keeps_its_rules(command: list[str]) -> None:
    tool = Path(sys.executable).with_name(command[0])
    done = subprocess.run(
        [tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_test_module_imports_from_another() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) (test_|conftest)", path.read_text(), re.MULTILINE), path.name
