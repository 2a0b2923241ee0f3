"""Files by name in a folder that may be local, NFS or an object store, through pyarrow's file systems.

A reader never sees half a file: locally it is written under a temporary name elsewhere and renamed;
on an object store it is serialised first and put in one piece (an exception inside an open output
stream would publish the half object). A store that the network has lost is waited for.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from filelock import FileLock
from pyarrow import ArrowInvalid
from pyarrow import fs as pafs
from pydantic import TypeAdapter, ValidationError

from tinyscale.errors import ResultsError

PATIENCE_SECONDS = 120.0  # for a store that does not answer
RETRY_SECONDS = 1.0  # between tries, beside the seconds that a try itself takes

ADDRESS = re.compile(r"(s3|gs|gcs|file):", re.IGNORECASE)  # what a path hardly begins with

# What mends an error of a folder on this machine; for any other, only another folder does.
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space there, or "),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "get the right to write there, or "),
    errno.ENAMETOOLONG: "shorten the name, or ",
}

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Folder:
    """A folder on some file system; `root` is where temporary files may lie while they are written."""

    fs: pafs.FileSystem
    path: str
    root: str

    @classmethod
    def at(cls, location: str | Path) -> Folder:
        """The folder that a path or a URI (`s3://bucket/runs`, `gs://...`) names. It need not exist yet."""
        text = os.fspath(location)
        try:
            if "://" in text:
                fs, path = pafs.FileSystem.from_uri(text)
            elif ADDRESS.match(text):
                raise ValueError("an address has two slashes after its colon: s3://bucket/results")
            else:
                fs, path = pafs.LocalFileSystem(), str(Path(text).expanduser().absolute())
            if not path:
                raise ValueError("it names no bucket")
            file = isinstance(fs, pafs.LocalFileSystem) and _nearest_there(Path(path)).is_file()
        except (ArrowInvalid, OSError, ValueError, RuntimeError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            message = f"{text}: not a folder that can be reached ({why}); give a path, s3:// or gs://"
            raise ResultsError(message) from error
        if file:
            raise ResultsError(f"{text}: a file, not a folder that can be reached; give a folder")
        return cls(fs, path, path)

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.fs, f"{self.path}/{name}", self.root)

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

    def make(self) -> None:
        """Create the folder, where that is a thing of its own."""
        if self.is_local:
            try:
                Path(self.path).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise self._unusable(error) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """While no other process holds this folder's lock; on an object store, which has none, at once."""
        if not self.is_local:
            yield
            return
        self.make()
        lock = FileLock(f"{self.path}/.lock")
        try:
            lock.acquire()
        except (OSError, NotImplementedError) as error:  # the latter where a file system cannot lock
            raise self._unusable(error) from error
        try:
            yield
        finally:
            lock.release()

    def require_writable(self) -> None:
        """ResultsError unless a folder on this machine takes a file now, or the store has the bucket."""
        self.require_reachable()
        if self.is_local:
            name = f".{uuid.uuid4().hex}"
            self.write(name, b"")
            self.delete(name)

    def require_reachable(self) -> None:
        """ResultsError unless the store answers now and has the bucket."""
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
        return bool(self._reach(lambda: self.fs.get_file_info(f"{self.path}/{name}").is_file))

    def read(self, name: str) -> bytes:
        """The file's content. FileNotFoundError when there is none."""

        def get() -> bytes:
            with self.fs.open_input_stream(f"{self.path}/{name}") as stream:
                return bytes(stream.read())

        return get() if self.is_local else self._reach(get)

    def write(self, name: str, content: bytes) -> None:
        """Put the whole file in place, replacing an older one."""
        try:
            self._reach(lambda: self._put(f"{self.path}/{name}", content))
        except FileNotFoundError as error:  # a bucket, not the file
            raise self._unusable(error) from error

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens when it is not there."""
        if self.exists(name):
            self._reach(lambda: self.fs.delete_file(f"{self.path}/{name}"))

    def _put(self, target: str, content: bytes) -> None:
        if not self.is_local:
            with self.fs.open_output_stream(target) as stream:
                stream.write(content)
            return
        temporary = f"{self.root}/.tmp/{uuid.uuid4().hex}"
        try:
            self.fs.create_dir(f"{self.root}/.tmp", recursive=True)
            self.fs.create_dir(self.path, recursive=True)
            with self.fs.open_output_stream(temporary) as stream:
                stream.write(content)
            self.fs.move(temporary, target)
        finally:
            with suppress(OSError):
                Path(temporary).unlink(missing_ok=True)

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

    def _unusable(self, error: OSError | NotImplementedError) -> ResultsError:
        if not self.is_local:
            return ResultsError(f"{self}: cannot be used ({error}); check the address and the network")
        number = error.errno if isinstance(error, OSError) else None
        why, remedy = os.strerror(number) if number else str(error), REMEDIES.get(number or 0, "")
        return ResultsError(f"{self}: cannot be used ({why}); {remedy}give another folder: what finished is kept")


def validated(kind: type[Answer], written: Any) -> Answer:
    """What was read from JSON, as a dataclass says it should be. ValueError names the first field that is not so."""
    try:
        checked: Answer = _adapter(cast(Any, kind)).validate_python(written)
        return checked
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(f"{field}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _nearest_there(path: Path) -> Path:
    """The path, or the nearest one above it that is there."""
    return next(each for each in (path, *path.parents) if each.exists())
