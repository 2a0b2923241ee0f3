"""What the doctor says of this machine, and of one that lacks something."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from helpers.programs import trap
from tinyscale import doctor
from tinyscale.cli import cli


def doctor_says(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["doctor", *map(str, arguments)])


def levels(result: Result) -> dict[str, str]:
    """Name of each check -> its level."""
    lines = [line.partition(":")[0].split(maxsplit=1) for line in result.output.splitlines()]
    return {name: level for level, name in lines}


def test_a_machine_that_can_launch_passes_and_nothing_is_left_behind(tmp_path: Path) -> None:
    said = doctor_says("--no-ray", "--results", tmp_path / "results")
    assert said.exit_code == 0, said.output
    assert {"Python", "packages", "threads", "open files", "GPUs", "results", "disk"} == set(levels(said))
    assert [path for path in (tmp_path / "results").rglob("*") if path.is_file()] == []


def test_the_doctor_runs_no_file_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap(tmp_path, monkeypatch)
    assert levels(doctor_says("--no-ray", "--results", tmp_path / "results"))["GPUs"] == "ok"
    assert not (tmp_path / "RAN").exists()


def test_a_folder_that_cannot_be_written_fails_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = doctor_says("--no-ray", "--results", tmp_path / "file")
    assert said.exit_code == 1
    assert levels(said)["results"] == "fail"
    assert "choose another --results" in said.output


@pytest.mark.parametrize(("version", "level"), [("2.60.9", "ok"), ("2.59.0", "fail"), (None, "fail")])
def test_packages_are_held_against_the_tested_ranges(monkeypatch: pytest.MonkeyPatch, version, level) -> None:
    def found(_: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError
        return version

    needs = ["ray[default,tune]>=2.60,<2.61", "pytest>=8; extra == 'test'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: needs)
    monkeypatch.setattr(importlib.metadata, "version", found)
    (check,) = doctor._packages()
    assert check.level == level
    if level == "fail":
        assert "pip install 'ray[default,tune]<2.61,>=2.60'" in str(check)


def test_a_full_disk_is_a_warning_and_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10**12, 10**12, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    said = doctor_says("--no-ray", "--results", tmp_path)
    assert (said.exit_code, levels(said)["disk"]) == (0, "warn")


@pytest.mark.parametrize(
    ("triton", "compiler", "level", "found"),
    [
        (True, True, "ok", "Triton and gcc"),
        (False, True, "warn", "Triton not found"),
        (False, False, "warn", "Triton and a C compiler not found"),
    ],
)
def test_a_gpu_launch_is_told_its_device_and_whether_it_can_compile(
    monkeypatch: pytest.MonkeyPatch, triton: bool, compiler: bool, level: str, found: str
) -> None:
    says = SimpleNamespace(returncode=0, stdout="torch 2.11.0 for CUDA 13.0\nNVIDIA H100 80GB HBM3, 79 GiB\n")
    monkeypatch.setattr(doctor, "_run_python", lambda _: says)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if triton else None)
    monkeypatch.setattr(shutil, "which", lambda name: name if compiler else None)
    monkeypatch.delenv("CC", raising=False)
    gpus, compiles = doctor._gpus()
    assert str(gpus).startswith("ok    GPUs: NVIDIA H100 80GB HBM3, 79 GiB, torch 2.11.0 for CUDA 13.0; shares")
    assert (compiles.level, compiles.found) == (level, found)


@pytest.mark.slow
def test_ray_is_started_and_stopped(tmp_path: Path) -> None:
    said = doctor_says("--results", tmp_path)
    assert levels(said)["Ray"] == "ok"
    assert "cores" in said.output
