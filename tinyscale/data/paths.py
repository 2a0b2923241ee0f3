"""Where this machine keeps downloaded text and tokens."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$TINYSCALE_CACHE, else tinyscale in $XDG_CACHE_HOME, else ~/.cache/tinyscale."""
    if chosen := os.environ.get("TINYSCALE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tinyscale"
