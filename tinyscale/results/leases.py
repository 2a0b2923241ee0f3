"""The right to train a trial: a file that one process holds and renews, so that no two launches train the same one.

Leases need a file system that can lock (local disk, NFS). On an object store every claim is granted: training twice
is harmless there, since the numbers are the same and the last put wins.

No two machines' clocks are compared. A holder whose process can be looked up from here lives as long as that process;
of any other the file system says when it last renewed its lease, and what time it is there now.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from tinyscale.storage import Folder

RENEW_SECONDS = 10.0
SILENT_SECONDS = 120.0  # without a renewal, after which the lease of a process that cannot be looked up here is void


class LeaseLostError(Exception):
    """Another process has taken the trial over: this one must write nothing of it any more."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    launch: the launch whose process it is. host: for people. machine: the start of the system and its space of process
    numbers, in which pid is that of the holder. begun: when that process began, as the system counts. tokens: that it
    had trained on when it renewed the lease.
    """

    token: str
    launch: str
    host: str
    machine: str
    pid: int
    begun: str
    tokens: int = 0

    @classmethod
    def of_json(cls, text: bytes) -> Self | None:
        """What a lease's file says; None where it is damaged."""
        try:
            written = dict(json.loads(text))
            texts = {name: str(written.get(name, "")) for name in ("token", "launch", "host", "machine", "begun")}
            return cls(pid=int(written.get("pid", 0)), tokens=int(written.get("tokens", 0)), **texts)
        except (ValueError, TypeError, OverflowError):
            return None

    @classmethod
    def here(cls, token: str, launch: str, tokens: int = 0) -> Self:
        """This process."""
        return cls(token, launch, platform.node(), _machine(), os.getpid(), _begun(os.getpid()) or "", tokens)


@dataclass
class Lease:
    """One process's claim on one trial. launch: whose process it is; a launch takes over from a process of its own."""

    folder: Folder
    trial: str
    launch: str = ""
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    renewed: float = 0.0
    tokens: int = 0

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

    def keep(self, tokens: int = 0) -> None:
        """Renew the lease when it is due, with the tokens so far. LeaseLostError when another process has taken it."""
        self.tokens = tokens
        if time.monotonic() - self.renewed >= RENEW_SECONDS:
            with self.held():
                self._write()

    @contextmanager
    def held(self) -> Iterator[None]:
        """While nobody can take the lease over. LeaseLostError when another process has done so."""
        with self.folder.lock():
            if not self.is_ours:
                raise LeaseLostError(f"another launch took trial {self.trial} over, because this one seemed dead")
            yield

    @property
    def is_ours(self) -> bool:
        """Whether no other process has taken the lease."""
        if not self.folder.is_local:
            return True
        holder = self.holder()
        return holder is not None and holder.token == self.token

    def release(self) -> None:
        """Give the lease back, if it is still ours."""
        if self.folder.is_local:
            with suppress(LeaseLostError), self.held():
                self.folder.delete(self._name)

    def holder(self) -> Holder | None:
        """Who holds the lease, alive or not."""
        try:
            return Holder.of_json(self.folder.read(self._name))
        except FileNotFoundError:
            return None

    def lives(self, holder: Holder) -> bool:
        """Whether the holder still trains."""
        begun = _begun(holder.pid) if holder.machine == _machine() else ""
        if begun:
            return begun == holder.begun
        return begun is not None and self._silent_seconds() < SILENT_SECONDS

    def _silent_seconds(self) -> float:
        """Since the lease was renewed, by the clock of the file system; by our own where we may not write."""
        renewed = (Path(self.folder.path) / self._name).stat().st_mtime
        try:
            with tempfile.TemporaryFile(dir=self.folder.path) as probe:
                probe.write(b"now")
                probe.flush()
                os.fsync(probe.fileno())
                return os.fstat(probe.fileno()).st_mtime - renewed
        except OSError:
            return time.time() - renewed

    @property
    def _name(self) -> str:
        return f"{self.trial}.json"

    def _claim_now(self) -> bool:
        with self.folder.lock():
            holder = self.holder()
            ours = holder is None or holder.token == self.token or holder.launch == self.launch != ""
            if holder is not None and not ours and self.lives(holder):
                return False
            self._write()
            return True

    def _write(self) -> None:
        self.renewed = time.monotonic()
        self.folder.write(self._name, json.dumps(asdict(Holder.here(self.token, self.launch, self.tokens))).encode())


def held_trials(folder: Folder) -> set[str]:
    """Trials whose lease is held by a process that lives."""
    return set(held_tokens(folder))


def held_tokens(folder: Folder) -> dict[str, int]:
    """Those trials, each with the tokens that it had been trained on when its lease was renewed."""
    return {trial: tokens for trial, tokens in _leases(folder).items() if tokens is not None} if folder.is_local else {}


def clear_void(folder: Folder) -> None:
    """Delete the leases of processes that are gone: one that is killed just after its trial's last row leaves it."""
    if not folder.is_local or not folder.names(".json"):
        return
    with folder.lock():
        for trial, tokens in _leases(folder).items():
            if tokens is None:
                folder.delete(f"{trial}.json")


def _leases(folder: Folder) -> dict[str, int | None]:
    """The trials that have a lease, with the tokens that its holder gave; None where that is gone."""
    found: dict[str, int | None] = {}
    for name in folder.names(".json"):
        lease = Lease(folder, name.removesuffix(".json"))
        with suppress(FileNotFoundError):  # given back just now
            holder = lease.holder()
            found[lease.trial] = holder.tokens if holder is not None and lease.lives(holder) else None
    return found


def _machine() -> str:
    """This start of the system and its space of process numbers: where it is the same, so is a process number."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.node()


def _begun(pid: int) -> str | None:
    """When a process of this machine began, as the system counts; empty where it does not say; None: it is gone."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass  # it exists, as another user's
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return None if state == "Z" else fields[18]
