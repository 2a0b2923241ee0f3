"""Files by name in a folder that may be local, NFS or an object store, through pyarrow's file systems.

A reader never sees half a file, also after a power cut: locally it is written under a temporary name elsewhere,
synced and renamed; on an object store it is serialised first and put in one piece (an exception inside an open output
stream would publish the half object). A store that the network has lost is waited for. Names come from files that
others may have made, so one that would lead out of its folder is refused.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from pyarrow import ArrowInvalid
from pyarrow import fs as pafs

from tinyscale.errors import ResultsError

PATIENCE_SECONDS = 120.0  # for a store that does not answer
RETRY_SECONDS = 1.0  # between tries, beside the seconds that a try itself takes

# Words of names whose values are secrets: AWS_SECRET_ACCESS_KEY, --api-key, hfToken.
SECRETS = {"auth", "authorization", "credential", "credentials", "key", "apikey", "passphrase", "passwd", "password"}
SECRETS |= {"pwd", "secret", "sig", "signature", "token"}

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Folder:
    """A folder on some file system; `root` is where temporary files may lie while they are written.

    guard: entered for the moment in which a file is put in place or removed; what it raises prevents that.
    """

    fs: pafs.FileSystem
    path: str
    root: str
    guard: Callable[[], AbstractContextManager[None]] = field(default=nullcontext, compare=False)

    @classmethod
    def at(cls, location: str | Path) -> Folder:
        """The folder that a path or a URI (`s3://bucket/runs`, `gs://...`) names. It need not exist yet."""
        text = os.fspath(location)
        try:
            if "://" in text:
                fs, path = pafs.FileSystem.from_uri(text)
            else:
                fs, path = pafs.LocalFileSystem(), str(Path(text).expanduser().absolute())
        except (ArrowInvalid, OSError, ValueError) as error:
            message = f"{text}: not a folder that can be reached ({error}); give a path, s3:// or gs://"
            raise ResultsError(without_secrets(message)) from error
        if isinstance(fs, pafs.LocalFileSystem) and Path(path).is_file():
            raise ResultsError(f"{text}: a file, not a folder that can be reached; give a folder")
        return cls(fs, path, path)

    def __truediv__(self, name: str) -> Folder:
        """The folder of that name in this one. ResultsError for a name that leads elsewhere."""
        return replace(self, path=self._path_of(name))

    def __str__(self) -> str:
        """The path as a user would type it."""
        if self.is_local:
            path = Path(self.path)
            return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else self.path
        return f"{self.fs.type_name}://{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether a file here can be renamed in one step (local disk, NFS)."""
        return isinstance(self.fs, pafs.LocalFileSystem)

    @property
    def is_link(self) -> bool:
        """Whether this is a link to a folder elsewhere, whose files are not ours to delete."""
        return self.is_local and Path(self.path).is_symlink()

    def _path_of(self, name: str) -> str:
        """The path of a file or folder in this one."""
        if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
            raise ResultsError(f"{self}: {name!r} is no name of a file; rename what it comes from")
        return f"{self.path}/{name}"

    def make(self) -> None:
        """Create the folder, where that is a thing of its own."""
        if self.is_local:
            Path(self.path).mkdir(parents=True, exist_ok=True)

    def require_reachable(self) -> None:
        """ResultsError unless the store answers now and has the bucket; a folder on this machine can be made."""
        if self.is_local:
            return
        bucket = self.path.split("/")[0]
        if self._reach(lambda: self.fs.get_file_info(bucket), patience=0.0).type == pafs.FileType.NotFound:
            raise ResultsError(f"{self}: there is no bucket {bucket}; create it, or correct the address")

    def require_there(self) -> None:
        """ResultsError when there is no such folder on this machine; in an object store an empty one is none."""
        if self.is_local and not Path(self.path).is_dir():
            raise ResultsError(f"{self}: no such folder; launch a sweep into it first, or name another")

    def names(self, suffix: str = "") -> list[str]:
        """Sorted names of the files in this folder that end so; empty when the folder is absent."""
        return sorted(self.stamps(suffix))

    def stamps(self, suffix: str = "") -> dict[str, str]:
        """For each file here that ends so, a text that changes when the file does: name, size, time of change."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        found = self._reach(lambda: self.fs.get_file_info(selector))
        files = (info for info in found if info.is_file and info.base_name.endswith(suffix))
        return {info.base_name: f"{info.base_name} {info.size} {info.mtime_ns}" for info in files}

    def exists(self, name: str) -> bool:
        """Whether a file of that name is here."""
        path = self._path_of(name)
        return bool(self._reach(lambda: self.fs.get_file_info(path).is_file))

    def read(self, name: str) -> bytes:
        """The file's content. FileNotFoundError when there is none."""
        path = self._path_of(name)

        def get() -> bytes:
            with self.fs.open_input_stream(path) as stream:
                return bytes(stream.read())

        return get() if self.is_local else self._reach(get)

    def write(self, name: str, content: bytes) -> None:
        """Put the whole file in place, replacing an older one."""
        path = self._path_of(name)
        try:
            self._reach(lambda: self._put(path, content))
        except FileNotFoundError as error:  # a bucket, not the file
            raise self._unusable(error) from error

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens when it is not there."""
        path = self._path_of(name)
        if self.exists(name):
            with self.guard():
                self._reach(lambda: self.fs.delete_file(path))

    def set_aside(self, name: str, content: bytes) -> str:
        """Keep what a damaged file holds under another name, here; the path of that."""
        self.write(f"{name}.damaged", content)
        self.delete(name)
        return f"{self}/{name}.damaged"

    def _put(self, target: str, content: bytes) -> None:
        if not self.is_local:
            with self.guard(), self.fs.open_output_stream(target) as stream:
                stream.write(content)
            return
        temporary = Path(self.root) / ".tmp" / uuid.uuid4().hex
        try:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            self.make()
            temporary.write_bytes(content)
            sync(temporary)
            with self.guard():
                temporary.replace(target)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _reach(self, ask: Callable[[], Answer], patience: float | None = None) -> Answer:
        """The store's answer, waited for while the network is away; ResultsError for what waiting does not mend."""
        deadline = time.monotonic() + (PATIENCE_SECONDS if patience is None else patience)
        while True:
            try:
                return ask()
            except FileNotFoundError:
                raise
            except OSError as error:
                if "NETWORK_CONNECTION" not in str(error) or time.monotonic() > deadline:
                    raise self._unusable(error) from error
            time.sleep(RETRY_SECONDS)

    def _unusable(self, error: OSError) -> ResultsError:
        remedy = "free space there, or give another folder" if self.is_local else "check the address and the network"
        return ResultsError(f"{self}: cannot be used ({error}); {remedy}, then launch again: what finished is kept")


def names_secret(name: str) -> bool:
    """Whether a setting, a variable or an option of this name holds a secret."""
    return not SECRETS.isdisjoint(word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name))


def without_secrets(text: str) -> str:
    """The text with `***` for users and passwords in addresses, and for what follows `=` after the name of a secret."""
    text = re.sub(r"(\w://)(?:[^\s/@]*|[^\s/@:]+:[^\s@]*)@", r"\1***@", text)
    return re.sub(
        r"([\w.-]+)=([^&\s'\"]+)", lambda found: f"{found[1]}=***" if names_secret(found[1]) else found[0], text
    )


def sync(path: Path) -> None:
    """Wait until the disk holds a file's content, or a folder's names: a power cut may leave others empty or zeroed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
