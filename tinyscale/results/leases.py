"""The right to train a trial: a file that one process holds and renews, so that no two launches train the same one.

Leases need a file system that can lock (local disk, NFS). On an object store every claim is granted: training twice
is harmless there, since the numbers are the same and the last put wins.
"""

from __future__ import annotations

import json
import os
import platform
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from tinyscale.storage import Folder, validated

RENEW_SECONDS = 10.0
SILENT_SECONDS = 120.0  # without a sign of life from another machine, after which its lease is void
SILENT_HERE_SECONDS = 600.0  # the same for a process of this machine that exists: its number may be another's by now


@dataclass(frozen=True)
class _Claim:
    token: str
    host: str
    pid: int
    time: float


@dataclass
class Lease:
    """One process's claim on one trial."""

    folder: Folder
    trial: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    renewed: float = 0.0

    def claim(self, patience: float = 0.0) -> bool:
        """Take the lease, waiting up to `patience` seconds for a holder that is about to end; False when it is held."""
        if not self.folder.is_local:
            return True
        deadline = time.monotonic() + patience
        while not self._claim_now():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)
        return True

    def keep(self) -> bool:
        """Renew the lease when it is due; False when another process has taken it over and this one must not write."""
        if not self.folder.is_local or time.monotonic() - self.renewed < RENEW_SECONDS:
            return True
        held = self.holder()
        if held is None or held["token"] != self.token:
            return False
        self._write()
        return True

    def release(self) -> None:
        """Give the lease back, if it is still ours."""
        if self.folder.is_local and (held := self.holder()) and held["token"] == self.token:
            self.folder.delete(self._name)

    @property
    def _name(self) -> str:
        return f"{self.trial}.json"

    def _claim_now(self) -> bool:
        Path(self.folder.path).mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.folder.path}/.lock"):
            held = self.holder()
            if held is not None and held["token"] != self.token and alive(held):
                return False
            self._write()
            return True

    def _write(self) -> None:
        self.renewed = time.monotonic()
        claim = {"token": self.token, "host": platform.node(), "pid": os.getpid(), "time": time.time()}
        self.folder.write(self._name, json.dumps(claim).encode())

    def holder(self) -> dict[str, Any] | None:
        """Who holds the lease (`token`, `host`, `pid`, and `time` of the last sign of life), alive or not."""
        try:
            return asdict(validated(_Claim, json.loads(self.folder.read(self._name))))
        except (FileNotFoundError, ValueError, RecursionError):
            return None


def held_trials(folder: Folder) -> set[str]:
    """Trials whose lease is held by a process that lives."""
    if not folder.is_local:
        return set()
    return {trial for trial, held in _claims(folder).items() if alive(held)}


def clear_void(folder: Folder) -> None:
    """Delete the leases of processes that are gone: one that is killed just after its trial's last row leaves it."""
    if not folder.is_local or not folder.names(".json"):
        return
    with FileLock(f"{folder.path}/.lock"):
        for trial, held in _claims(folder).items():
            if not alive(held):
                folder.delete(f"{trial}.json")


def _claims(folder: Folder) -> dict[str, dict[str, Any]]:
    """Who holds the lease of each trial that has one, alive or not."""
    trials = [name.removesuffix(".json") for name in folder.names(".json")]
    return {trial: held for trial in trials if (held := Lease(folder, trial).holder()) is not None}


def alive(held: dict[str, Any]) -> bool:
    """Whether a lease's holder still trains: its process exists here, or another machine's was heard of lately."""
    silent = time.time() - held["time"]
    if held["host"] != platform.node():
        return bool(silent < SILENT_SECONDS)
    try:
        os.kill(held["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it exists, as another user's
    return bool(silent < SILENT_HERE_SECONDS)
