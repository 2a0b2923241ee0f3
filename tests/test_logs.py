"""Logs beside the rows: TensorBoard's files are kept, and a missing package is told before anything trains."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from helpers.programs import tinyscale
from helpers.sweeps import write_sweep
from tinyscale.errors import LaunchError
from tinyscale.orchestration.logs import build_logger


@pytest.mark.slow
def test_a_launch_that_logs_to_tensorboard_keeps_the_losses_of_each_trial(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    process = tinyscale("launch", str(path), "--yes", "--quiet", "--log", "tensorboard", cwd=tmp_path)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    kept = list((tmp_path / "results" / "tensorboard" / "small").rglob("events.out.tfevents.*"))
    assert len({events.parent for events in kept}) == 2
    assert all(b"val_loss" in events.read_bytes() for events in kept)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["wandb", "mlflow"])
def test_a_log_whose_package_is_missing_is_refused_before_anything_starts(kind: str) -> None:
    if importlib.util.find_spec(kind):
        pytest.skip(f"{kind} is installed")
    with pytest.raises(LaunchError, match=f"--log {kind} needs a package that is not installed: pip install {kind}"):
        build_logger(kind, "small")
