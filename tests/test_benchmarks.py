"""The benchmarks that need hardware which tests do not have: a small version of each runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from helpers import ROOT

# Ray cannot be imported, as on a machine to which its wheel cannot travel.
WITHOUT_RAY = """
import runpy, sys
sys.modules["ray"] = None
sys.argv[1:] = ["--device", "cpu", "--quick"]
runpy.run_path("benchmarks/gpu_packing.py", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)  # it compiles in four processes
def test_packing_is_measured_without_ray_and_printed_as_one_table() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WITHOUT_RAY)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("| 32 ")]
    cells = [re.split(r"\s*\|\s*", line.strip("| ")) for line in table]
    assert [(row[1], row[2], row[3]) for row in cells] == [
        (copies, way, code)
        for code in ("eager", "compiled")
        for copies, way in (("1", "alone"), ("2", "packed"), ("2", "fused"))
    ]
    assert all(float(row[4].replace(",", "")) > 0 and float(row[5]) > 0 and float(row[6]) > 0 for row in cells)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # it starts Ray a dozen times
def test_the_acceptance_of_a_gpu_rehearses_its_checks_on_a_cpu(tmp_path: Path) -> None:
    """All but those of compiled code, which the other tests compile as well, and which would take minutes."""
    checks = [
        "environment",
        "quarters",
        "memory",
        "batched",
        "killed",
        "speed",
        "many",
        "precisions",
        "automatic",
        "tests",
    ]
    command = [sys.executable, "benchmarks/gpu_acceptance.py", "--rehearse", "--minutes", "25", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--only", ",".join(checks)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    results = json.loads((tmp_path / "acceptance.json").read_text())
    assert {result["outcome"] for result in results} == {"rehearsed"}, done.stdout
    assert list(dict.fromkeys(result["check"] for result in results)) == checks
    assert done.stdout.endswith((tmp_path / "acceptance.md").read_text() + "\n")


def test_an_acceptance_without_time_begins_nothing_and_still_ends_with_its_table(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu_acceptance.py", "--rehearse", "--minutes", "0", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--only", "tests,quarters"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^\| (\w+) \|.*\| no time \|$", done.stdout, re.MULTILINE) == ["quarters", "tests"]
