"""Losses and progress in TensorBoard, W&B or MLflow, through Ray's own integrations."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tinyscale.errors import LaunchError
from tinyscale.results.store import Results

EVENTS = "events.out.tfevents.*"
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}  # Ray itself brings the first


def require_package(kind: str) -> None:
    """LaunchError when the package of a kind of log is not installed."""
    if importlib.util.find_spec(PACKAGES[kind]) is None:
        raise LaunchError(f"--log {kind} needs a package that is not installed: pip install {PACKAGES[kind]}")


def build_logger(kind: str, sweep: str) -> Any:
    """Tune's callback for a kind of log; LaunchError when its package is not installed."""
    require_package(kind)
    if kind == "wandb":
        from ray.air.integrations.wandb import WandbLoggerCallback

        return WandbLoggerCallback(project="tinyscale", group=sweep)
    if kind == "mlflow":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        return MLflowLoggerCallback(experiment_name=sweep)
    from ray.tune.logger.tensorboardx import TBXLoggerCallback

    return TBXLoggerCallback()


def keep_events(written: Path, sweep: str, results: Results) -> None:
    """Move TensorBoard's files, which Tune writes with its own, to tensorboard/<sweep>/<trial>/ of the results."""
    for events in sorted(written.rglob(EVENTS)):
        folder = results.events / sweep / events.parent.name
        folder.write(events.name, events.read_bytes())
