"""Files by name in a folder: whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from tinyscale import storage
from tinyscale.errors import ResultsError
from tinyscale.storage import Folder


def test_what_was_written_is_read_and_listed_by_name(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "new") / "deeper"
    assert folder.names() == []
    folder.write("b.txt", b"two")
    folder.write("a.txt", b"one")
    folder.write("c.bin", b"")
    assert folder.names() == ["a.txt", "b.txt", "c.bin"]
    assert folder.names(".txt") == ["a.txt", "b.txt"]
    assert folder.read("b.txt") == b"two"
    assert folder.exists("c.bin")
    assert not folder.exists("d")
    with pytest.raises(FileNotFoundError):
        folder.read("d")


def test_a_file_is_replaced_and_deleted_and_deleting_nothing_is_no_error(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    folder.write("a", b"1")
    folder.write("a", b"2")
    assert folder.read("a") == b"2"
    folder.delete("a")
    folder.delete("a")
    assert folder.names() == []


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path) / "trials"
    folder.write("a", b"old")
    with pytest.raises(TypeError):
        folder.write("a", object())  # type: ignore[arg-type]
    assert folder.read("a") == b"old"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "trials" / "a"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    folder, contents, seen = Folder.at(tmp_path) / "trials", [bytes([n]) * 2_000_000 for n in range(8)], set()
    folder.write("a", contents[0])
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            content = folder.read("a")
            seen.add((len(content), len(set(content[::1000]))))
            assert set(Path(folder.path).iterdir()) == {Path(folder.path) / "a"}, "temporary files lie elsewhere"

    reader = threading.Thread(target=read)
    reader.start()
    for content in contents * 5:
        folder.write("a", content)
    stop.set()
    reader.join()
    assert seen == {(2_000_000, 1)}


def test_a_folder_is_named_by_path_home_or_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for location in (tmp_path / "r", "r", "~/r", f"file://{tmp_path}/r"):
        folder = Folder.at(location)
        assert folder.is_local
        assert folder.path == str(tmp_path / "r")
        assert str(folder) == "r", "as a user would type it"
    assert str(Folder.at("/elsewhere/r")) == "/elsewhere/r"


@pytest.mark.parametrize(
    "location",
    ["gopher://x/y", "s3:///", "s3://", "s3:/bucket/runs", "S3:bucket", "://", "~nobody-of-this-name/r", "x" * 300],
)
def test_a_location_that_cannot_be_one_is_an_error_that_says_so(location: str) -> None:
    with pytest.raises(ResultsError, match="not a folder that can be reached"):
        Folder.at(location)


def test_a_file_in_the_folders_place_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResultsError, match="a file, not a folder"):
        Folder.at(tmp_path / "file")
    with pytest.raises(ResultsError, match="a file, not a folder"):
        Folder.at(tmp_path / "file" / "below" / "it")
    assert (tmp_path / "file").read_text() == "x"


def test_on_an_object_store_a_file_is_one_put_of_the_whole(tmp_path: Path) -> None:
    """pyarrow's own in-process store of another kind stands in for one that cannot rename."""
    store = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    (tmp_path / "trials").mkdir()
    folder = Folder(store, "trials", "trials")
    assert not folder.is_local
    folder.write("a", b"whole")
    assert folder.read("a") == b"whole"
    assert [path.name for path in tmp_path.rglob("*")] == ["trials", "a"]


def test_a_full_disk_is_an_error_in_words_and_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a disk without room: the system refuses the bytes in the same way."""
    folder = Folder.at(tmp_path / "results") / "trials"
    folder.write("a", b"old")
    write = (
        "import resource, sys; from tinyscale.storage import Folder; resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9));"
        "(Folder.at(sys.argv[1]) / 'trials').write('a', bytes(100_000))"
    )
    done = subprocess.run([sys.executable, "-c", write, tmp_path / "results"], capture_output=True, text=True)
    assert "UnusableError" in done.stderr.splitlines()[-1]
    assert "File too large" in done.stderr
    assert "free space there, or give another folder" in done.stderr
    assert folder.read("a") == b"old"
    assert list((tmp_path / "results" / ".tmp").iterdir()) == []


def test_an_address_that_is_misspelt_is_no_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ResultsError, match="two slashes after its colon: s3://bucket/results"):
        Folder.at("s3:/bucket/results").make()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_found_out_before_anything_starts(tmp_path: Path) -> None:
    """/proc takes no file from anyone, root included."""
    folder = Folder.at("/proc/results")
    for attempt in (
        folder.require_writable,
        folder.make,
        lambda: folder.write("a", b""),
        lambda: folder.lock().__enter__(),
    ):
        with pytest.raises(
            ResultsError, match=r"/proc/results: cannot be used \(No such .*; give another folder: what fini"
        ):
            attempt()
    Folder.at(tmp_path / "new").require_writable()
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / ".tmp"]


def test_the_remedy_fits_the_fault(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    with pytest.raises(ResultsError, match=r"\(File name too long\); shorten the name, or give another folder"):
        folder.write("x" * 300, b"")
    for number, remedy in (
        (errno.ENOSPC, "free space there"),
        (errno.EACCES, "get the right to write"),
        (errno.EIO, "; give another"),
    ):
        assert remedy in str(folder._unusable(OSError(number, "x")))


def test_one_process_at_a_time_holds_a_folders_lock(tmp_path: Path) -> None:
    held = threading.Event()
    with Folder.at(tmp_path / "r").lock():
        other = threading.Thread(
            target=lambda: held.set() if Folder.at(tmp_path / "r").lock().__enter__() is None else None
        )
        other.start()
        assert not held.wait(0.3)
    other.join()
    assert held.is_set()


def test_who_waits_for_a_lock_hears_once_which_process_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MOMENT", 0.1)
    heard: list[str] = []

    def wait() -> None:
        with Folder.at(tmp_path).lock(heard.append):
            pass

    with Folder.at(tmp_path).lock(heard.append):
        other = threading.Thread(target=wait)
        other.start()
        while not heard:
            time.sleep(0.02)
    other.join()
    assert heard == [f"process {os.getpid()}" if Path("/proc/locks").exists() else "another process"]


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "/etc/passwd", "a\\b", "a\0b"])
def test_a_name_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_text("precious")
    folder = Folder.at(tmp_path / "results")
    for use in (folder.read, folder.exists, folder.delete, folder.__truediv__, lambda it: folder.write(it, b"")):
        with pytest.raises(ResultsError, match="no name of a file"):
            use(name)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_the_guard_raises_keeps_a_file_as_it_was(tmp_path: Path) -> None:
    @contextmanager
    def refuse() -> Iterator[None]:
        raise PermissionError("no longer ours")
        yield

    folder = Folder.at(tmp_path) / "trials"
    folder.write("a", b"old")
    for use in (lambda it: it.write("a", b"new"), lambda it: it.delete("a"), lambda it: (it / "b").write("c", b"new")):
        with pytest.raises((PermissionError, ResultsError), match="no longer ours"):
            use(replace(folder, guard=refuse))
    assert folder.read("a") == b"old"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a"]


def test_a_file_is_synced_before_it_is_renamed_into_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    folder = Folder.at(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(folder.names()))
    folder.write("a", b"1")
    assert seen == [[]]
    assert folder.names() == ["a"]
