"""Files by name in a folder on a local disk, NFS or an object store, through pyarrow's file systems.

A reader never sees a partial file, also after a power cut. On a disk, a file is written under a temporary name, synced
and renamed. On an object store it is written in one call, from bytes that are complete (an exception while a stream is
open would publish a partial object). While the network fails, operations on a store are retried. Names may come from
files that others made, so one that would lead out of its folder is refused.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from filelock import FileLock, Timeout
from pyarrow import ArrowInvalid
from pyarrow import fs as pafs
from pydantic import TypeAdapter, ValidationError

from tinyscale.errors import ResultsError, UnusableError

PATIENCE_SECONDS = 120.0  # of retries while a store does not answer
RETRY_SECONDS = 1.0  # between the end of a try and the next one
MOMENT = 1.0  # seconds that a lock may take without a word

ADDRESS = re.compile(r"(s3|gs|gcs|file):", re.IGNORECASE)  # what a path hardly begins with

# What mends an error of a folder on this machine; for any other, only another folder does.
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space there, or "),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "get the right to write there, or "),
    errno.ENAMETOOLONG: "shorten the name, or ",
}

# Errors that every other file there would meet as well.
CONCERNS_ALL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}

# Words of names whose values are secrets: AWS_SECRET_ACCESS_KEY, --api-key, hfToken.
SECRETS = {"auth", "authorization", "credential", "credentials", "key", "apikey", "passphrase", "passwd", "password"}
SECRETS |= {"pwd", "secret", "sig", "signature", "token"}

Result = TypeVar("Result")


@dataclass(frozen=True)
class Folder:
    """A folder on a file system. root: the folder under which temporary files are written.

    guard: entered for the moment in which a file is put in place or removed; what it raises prevents that.
    """

    fs: pafs.FileSystem
    path: str
    root: str
    guard: Callable[[], AbstractContextManager[None]] = field(default=nullcontext, compare=False)

    @classmethod
    def at(cls, location: str | Path) -> Folder:
        """The folder at a path or a URI (`s3://bucket/runs`, `gs://...`). It need not exist yet.

        ResultsError if the location is malformed or is a file.
        """
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
            raise ResultsError(without_secrets(message)) from error
        if file:
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
        """Whether the folder is on a local disk or NFS, where a rename is atomic."""
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
        """Create the folder; an object store needs none."""
        if self.is_local:
            try:
                Path(self.path).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise self._unusable(error) from error

    @contextmanager
    def lock(self, on_wait: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """While no other process holds this folder's lock; on an object store, which has none, at once.

        on_wait: called once where that takes more than a moment, with who holds it.
        """
        if not self.is_local:
            yield
            return
        self.make()
        lock = FileLock(f"{self.path}/.lock")
        try:
            try:
                lock.acquire(timeout=MOMENT)
            except Timeout:
                on_wait(_holder_of(Path(lock.lock_file)))
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
        """ResultsError if the folder is local and does not exist. Object stores have no empty folders to check."""
        if self.is_local and not Path(self.path).is_dir():
            raise ResultsError(f"{self}: no such folder; launch a sweep into it first, or name another")

    def names(self, suffix: str = "") -> list[str]:
        """Sorted names of the files in this folder that end in `suffix`; empty if there is no folder."""
        return sorted(self.stamps(suffix))

    def stamps(self, suffix: str = "") -> dict[str, str]:
        """File name -> its name, size and time of change (ns) as text, for files that end in `suffix`.

        The text changes whenever the file does.
        """
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        found = self._reach(lambda: self.fs.get_file_info(selector))
        files = (info for info in found if info.is_file and info.base_name.endswith(suffix))
        return {info.base_name: f"{info.base_name} {info.size} {info.mtime_ns}" for info in files}

    def sizes(self) -> dict[str, int]:
        """Path in this folder -> bytes, of the files at every depth; what a link leads to is not counted."""
        if self.is_local:
            inside = (Path(parent, name) for parent, _, names in os.walk(self.path) for name in names)
            return {str(path.relative_to(self.path)): size for path in inside if (size := _size(path)) is not None}
        selector = pafs.FileSelector(self.path, allow_not_found=True, recursive=True)
        found = self._reach(lambda: self.fs.get_file_info(selector))
        return {info.path.removeprefix(f"{self.path}/"): info.size for info in found if info.is_file}

    def exists(self, name: str) -> bool:
        """Whether the folder has a file of that name."""
        path = self._path_of(name)
        return bool(self._reach(lambda: self.fs.get_file_info(path).is_file))

    def read(self, name: str) -> bytes:
        """The file's content. FileNotFoundError if there is no such file."""
        path = self._path_of(name)

        def get() -> bytes:
            with self.fs.open_input_stream(path) as stream:
                return bytes(stream.read())

        return get() if self.is_local else self._reach(get)

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file, replacing an older one. ResultsError if it cannot be written."""
        path = self._path_of(name)
        try:
            self._reach(lambda: self._put(path, content))
        except FileNotFoundError as error:  # the bucket, not the file
            raise self._unusable(error) from error

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""
        path = self._path_of(name)
        if self.exists(name):
            with self.guard():
                self._reach(lambda: self.fs.delete_file(path))

    def delete_empty(self) -> None:
        """Delete the folder, if it is there and holds nothing; an object store keeps no empty ones."""
        if self.is_local and not self.is_link:
            with suppress(OSError):  # it is not there, or not empty
                Path(self.path).rmdir()

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

    def _reach(self, operation: Callable[[], Result], patience: float | None = None) -> Result:
        """Result of the operation, retried for `patience` seconds while the network fails; ResultsError otherwise."""
        deadline = time.monotonic() + (PATIENCE_SECONDS if patience is None else patience)
        while True:
            try:
                return operation()
            except FileNotFoundError:
                raise
            except OSError as error:
                if "NETWORK_CONNECTION" not in str(error) or time.monotonic() > deadline:
                    raise self._unusable(error) from error
            time.sleep(RETRY_SECONDS)

    def _unusable(self, error: OSError | NotImplementedError) -> ResultsError:
        if not self.is_local:
            return UnusableError(f"{self}: cannot be used ({error}); check the address and the network")
        number = error.errno if isinstance(error, OSError) else None
        why, remedy = os.strerror(number) if number else str(error), REMEDIES.get(number or 0, "")
        kind = UnusableError if number in CONCERNS_ALL else ResultsError
        return kind(f"{self}: cannot be used ({why}); {remedy}give another folder: what finished is kept")


def validated(kind: type[Result], written: Any) -> Result:
    """What was read from JSON, as a dataclass says it should be. ValueError names the first field that is not so."""
    try:
        found: Result = _adapter(cast(Any, kind)).validate_python(written)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(f"{field}: {first['msg'][0].lower()}{first['msg'][1:]}") from error
    return found


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


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


def _size(path: Path) -> int | None:
    """Bytes of a file; None where it has gone."""
    with suppress(FileNotFoundError):
        return path.lstat().st_size
    return None


def _holder_of(lock: Path) -> str:
    """The process that holds a lock, as Linux knows it; where that is not known, another one."""
    with suppress(OSError):
        file = lock.stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            _, kind, *_, pid, place, _, _ = line.split()
            if kind == "FLOCK" and place.endswith(f":{file}") and pid != "0":  # 0: of another space of numbers
                return f"process {pid}"
    return "another process"


def _nearest_there(path: Path) -> Path:
    """The path, or the nearest one above it that is there."""
    return next(each for each in (path, *path.parents) if each.exists())
