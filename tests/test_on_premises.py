"""cluster.yaml on machines of one's own, by ssh and `ray up`, in namespaces apart from every other Ray."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT
from helpers.on_premises import APART, SSHD
from tinyscale.results.store import Results


def _lacks() -> str | None:
    """Why it cannot be tried here."""
    programs = {"sshd": SSHD, **{name: shutil.which(name) for name in ("rsync", "ssh-keygen", "unshare")}}
    missing = [name for name, found in programs.items() if found is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: openssh-server, rsync, util-linux)"
    apart = subprocess.run([*APART, "true"], capture_output=True, text=True, check=False)
    return f"namespaces are refused: {apart.stderr.strip()}" if apart.returncode else None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ray_up_brings_the_copy_to_a_machine_where_a_launch_and_a_job_train_one_sweep(tmp_path: Path) -> None:
    if lack := _lacks():
        pytest.skip(lack)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "RAY_USAGE_STATS_ENABLED": "0"}
    program = [*APART, sys.executable, "-m", "helpers.on_premises", str(tmp_path)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=840, check=False)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-10_000:]
    results = Results(str(tmp_path / "results"))
    assert [state for state, _ in results.states().values()] == ["finished"] * 4
    assert (tmp_path / "results" / "fits" / "fits.json").exists()
    recorded = [results.read_trial(trial)[1]["provenance"]["command"] for trial in results.states()]
    assert sum("--address" in command for command in recorded) == 1, "one by the launch, the others by the job"
