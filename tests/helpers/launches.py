"""Launching a sweep here or as a program of its own, on this machine's Ray or on one that was started apart."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from rich.console import Console

from helpers.programs import PATIENCE, free_port, listens, wait_for
from tinyscale.data import prepare
from tinyscale.machine import Capacity
from tinyscale.orchestration.launch import launch
from tinyscale.orchestration.session import Cluster
from tinyscale.orchestration.summary import Summary
from tinyscale.planning.make_plan import make_plan
from tinyscale.planning.plan import Plan
from tinyscale.results.store import Results, read_results
from tinyscale.spec.sweep import load_sweep
from tinyscale.training.loop import train

RAY = str(Path(sys.executable).with_name("ray"))

# Ray's own modules warn of their future and leave sockets to the garbage collector; neither is ours to mend.
RAY_WARNS = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def planned(path: Path, results: Results, *overrides: str) -> Plan:
    return make_plan(load_sweep(path, overrides=overrides), results, Capacity(2, 0), measure=False)


def run(plan: Plan, results: Results, cluster: Cluster, **options: Any) -> Summary:
    """Launch a plan without showing anything."""
    return launch(plan, results, cluster, **{"console": Console(quiet=True), "quiet": True, **options})


def final_losses(results: Path) -> pd.Series:
    """Validation loss at the end of each trial of a results folder, by identity."""
    frame = read_results(str(results))
    return frame[frame["decayed"].astype(bool)].set_index("trial")["val_loss"].sort_index()


def undisturbed(path: Path) -> pd.Series:
    """What `final_losses` gives when nothing disturbs a sweep: each trial trained here, from beginning to end."""
    trials = [each.trial for each in planned(path, Results(str(path.parent / "undisturbed"))).trials]
    for trial in trials:
        if trial.identity not in _UNDISTURBED:  # several tests train the same trials
            outcome = train(trial, prepare(trial.config.data), lambda _: None)
            _UNDISTURBED[trial.identity] = outcome.points[-1].val_loss
    losses = {trial.identity: _UNDISTURBED[trial.identity] for trial in trials}
    return pd.Series(losses, name="val_loss").rename_axis("trial").sort_index()


_UNDISTURBED: dict[str, float] = {}


def has_points(results: Results, identity: str) -> bool:
    """Whether a trial has written its first point."""
    return results.trials.exists(f"{identity}.parquet")


def kill_process_of(identity: str, results: Results) -> None:
    """SIGKILL the process that trains a trial: its lease names it."""
    lease = json.loads((results.folder / "leases").read(f"{identity}.json"))
    os.kill(lease["pid"], signal.SIGKILL)


class Head(NamedTuple):
    """Where a Ray that was started apart listens."""

    address: str
    dashboard: str


@contextmanager
def ray_head(*options: str, port: int | None = None, **environment: str) -> Iterator[Head]:
    """`ray start --head` with these options and variables; it and all that it started end with it."""
    port, dashboard, agent = port or free_port(), free_port(), free_port()
    scratch = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need a short path
    command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", *options]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", f"--temp-dir={scratch}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    program = subprocess.Popen(command, env={**os.environ, **environment}, **quiet)  # type: ignore[call-overload]
    try:
        wait_for(lambda: all(map(listens, (port, dashboard, agent))))
        yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}")
    finally:
        program.terminate()
        program.wait(timeout=PATIENCE)
        shutil.rmtree(scratch, ignore_errors=True)
