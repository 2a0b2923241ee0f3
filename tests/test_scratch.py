"""The folder for what Ray writes, and those that killed launchers left."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from helpers.launches import RAY_WARNS
from tinyscale.orchestration.scratch import PREFIX, clear_left, scratch_folder

pytestmark = RAY_WARNS

KILLED = """
import os, signal, tempfile
from tinyscale.orchestration.scratch import scratch_folder
with scratch_folder() as made:
    open(f"{made}/what Ray wrote", "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_next_launch_takes_away_what_a_killed_launcher_left_and_nothing_else(temporary: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED], check=False)
    (left,) = temporary.glob(f"{PREFIX}*")
    (temporary / f"{PREFIX}without-a-lock").mkdir()
    (temporary / "elsewhere").mkdir()
    (temporary / "elsewhere" / ".lock").touch()
    (temporary / f"{PREFIX}a-link").symlink_to(temporary / "elsewhere")
    with scratch_folder() as alive:
        assert not left.exists()
        clear_left()
        assert Path(alive).exists(), "its launcher lives"
        names = {path.name for path in temporary.iterdir()}
    assert names == {Path(alive).name, f"{PREFIX}without-a-lock", f"{PREFIX}a-link", "elsewhere"}
    assert not Path(alive).exists()
