"""The batch script of the documentation, on one machine, with stand-ins for Slurm's own commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.programs import PATIENCE, ROOT, free_port
from helpers.sweeps import write_sweep
from tinyscale.results.store import Results

STAND_INS = {"srun": 'exec "$@"', "scontrol": "echo 127.0.0.1"}


@pytest.mark.slow
@pytest.mark.alone  # the script ends with `ray stop`
def test_the_batch_script_starts_ray_launches_and_stops(tmp_path: Path) -> None:
    (script,) = re.findall(r"```sh\n(#!/bin/bash\n.*?)```", (ROOT / "docs" / "running.md").read_text(), flags=re.DOTALL)
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parent.parent)
    script = script.replace("sweeps/gpu/width.yaml", str(write_sweep(tmp_path)))
    (tmp_path / "width.sbatch").write_text(script)
    slurm = {"SLURM_JOB_NODELIST": "node", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "2"}
    mine = {"PATH": f"{tmp_path}:{os.defpath}", "HOME": str(tmp_path), "PORT": str(free_port())}
    rest = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        ["bash", "width.sbatch"], cwd=tmp_path, env={**rest, **mine, **slurm, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [state for state, _ in Results(str(tmp_path / "results")).states().values()] == ["finished"] * 2
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
