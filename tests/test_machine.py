"""What this machine has for trials, by what nvidia-smi prints."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tinyscale import machine
from tinyscale.machine import gpu_bytes, this_machine, usable_cores

Prints = Callable[..., Path]
LAPTOP = "GPU 0: NVIDIA GeForce RTX 3080 Laptop GPU (UUID: GPU-1)"


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Prints]:
    """Puts an nvidia-smi on the path that prints these GPUs, and counts in a file how often it is asked."""

    def prints(*gpus: str, memory: tuple[str, ...] = ("8192",)) -> Path:
        program, asked = tmp_path / "nvidia-smi", tmp_path / "asked"
        lines = "\n".join(gpus), "\n".join(memory)
        program.write_text(f"#!/bin/sh\necho $1 >> {asked}\n[ $1 = -L ] && echo '{lines[0]}' || echo '{lines[1]}'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        machine._nvidia_smi.cache_clear()
        return asked

    yield prints
    machine._nvidia_smi.cache_clear()


@pytest.mark.parametrize(("visible", "expected"), [(None, 2), ("0", 1), ("0,1", 2), ("", 0), ("-1", 0)])
def test_the_gpus_of_this_machine_are_those_it_may_use(
    nvidia_smi: Prints, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: int
) -> None:
    nvidia_smi("GPU 0: A (UUID: 1)", "GPU 1: B (UUID: 2)")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert this_machine().gpus == expected


def test_a_laptop_has_one_gpu_though_its_line_names_the_word_three_times(nvidia_smi: Prints) -> None:
    nvidia_smi(LAPTOP)
    assert this_machine().gpus == 1


def test_memory_is_that_of_the_smallest_gpu(nvidia_smi: Prints) -> None:
    nvidia_smi("GPU 0: A (UUID: 1)", "GPU 1: B (UUID: 2)", memory=("81559", "24576"))
    assert gpu_bytes() == this_machine().gpu_bytes == 24576 * 2**20


@pytest.mark.parametrize("memory", [("[N/A]",), ("[Not Supported]",), ("8192", "[N/A]")])
def test_memory_that_a_gpu_does_not_have_for_itself_is_unknown(nvidia_smi: Prints, memory: tuple[str, ...]) -> None:
    nvidia_smi(*(f"GPU {index}: A (UUID: {index})" for index in range(len(memory))), memory=memory)
    assert (this_machine().gpus, this_machine().gpu_bytes) == (len(memory), None)


def test_nvidia_smi_answers_each_question_once_in_a_process(nvidia_smi: Prints) -> None:
    asked = nvidia_smi(LAPTOP)
    assert this_machine() == this_machine() == this_machine()
    assert sorted(asked.read_text().split()) == ["--query-gpu=memory.total", "-L"]


def test_without_nvidia_smi_there_is_no_gpu(nvidia_smi: Prints, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(LAPTOP)
    monkeypatch.setenv("PATH", "")
    assert (this_machine().cpus, this_machine().gpus, gpu_bytes()) == (usable_cores(), 0, None)
