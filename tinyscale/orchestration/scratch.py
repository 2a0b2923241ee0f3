"""A launch's folder for what Ray writes; what a killed launcher left of its own is taken away by the next one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX, LOCK = "tinyscale-ray-", ".lock"  # the lock is held as long as the launcher lives


@contextmanager
def scratch_folder() -> Iterator[str]:
    """A new folder in the system's place for temporary ones, removed at the end."""
    clear_left()
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as made, FileLock(f"{made}/{LOCK}"):
        yield made


def clear_left() -> None:
    """Remove the folders of this user's launchers that are gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        lock = folder / LOCK
        with suppress(Timeout, OSError):  # its launcher lives; or it goes just now
            if not folder.is_symlink() and folder.stat().st_uid == os.getuid() and lock.exists():
                with FileLock(str(lock), timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
