"""Files by name in a folder that may be local, NFS or an object store, through pyarrow's file systems.

A reader never sees half a file: locally it is written under a temporary name elsewhere and renamed;
on an object store it is serialised first and put in one piece (an exception inside an open output
stream would publish the half object).
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pyarrow import ArrowInvalid
from pyarrow import fs as pafs

from tinyscale.errors import ResultsError


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
            else:
                fs, path = pafs.LocalFileSystem(), str(Path(text).expanduser().absolute())
        except (ArrowInvalid, OSError, ValueError) as error:
            message = f"{text}: not a folder that can be reached ({error}); give a path, s3:// or gs://"
            raise ResultsError(message) from error
        if isinstance(fs, pafs.LocalFileSystem) and Path(path).is_file():
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

    def names(self, suffix: str = "") -> list[str]:
        """Sorted names of the files in this folder that end so; empty when the folder is absent."""
        found = self.fs.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.is_file and info.base_name.endswith(suffix))

    def exists(self, name: str) -> bool:
        """Whether a file of that name is here."""
        return bool(self.fs.get_file_info(f"{self.path}/{name}").is_file)

    def read(self, name: str) -> bytes:
        """The file's content. FileNotFoundError when there is none."""
        with self.fs.open_input_stream(f"{self.path}/{name}") as stream:
            return bytes(stream.read())

    def write(self, name: str, content: bytes) -> None:
        """Put the whole file in place, replacing an older one."""
        target = f"{self.path}/{name}"
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
        except OSError as error:
            raise ResultsError(f"{target}: cannot be written ({error}); choose another folder") from error
        finally:
            with suppress(OSError):
                Path(temporary).unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens when it is not there."""
        if self.exists(name):
            self.fs.delete_file(f"{self.path}/{name}")
