"""Real text for tests, where a machine has some; tests make their own where it has none."""

from __future__ import annotations

import os
from pathlib import Path


def shared_file(name: str) -> Path | None:
    """A file of $TINYSCALE_DATA, or of shared/data beside the repository; None where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("TINYSCALE_DATA") or beside) / name
    return path if path.is_file() else None
