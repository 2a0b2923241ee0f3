"""What a notebook calls: plan, launch and predict as the command line does, with objects in place of text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from tinyscale.analysis.predict import predict_all
from tinyscale.analysis.records import read_records
from tinyscale.analysis.study import fit_frame as fit
from tinyscale.machine import this_machine
from tinyscale.planning.plan import Plan, make_plan
from tinyscale.results.store import Results
from tinyscale.spec.sweep import Sweep, load_sweep

__all__ = ["fit", "launch", "plan_launch", "predict"]

if TYPE_CHECKING:
    from tinyscale.orchestration.summary import Summary


def plan_launch(sweep: Sweep | str | Path, results: str = "results", *, forecast: bool = True) -> Plan:
    """What launching a sweep here would run. forecast: measure this machine's speed, for the expected time."""
    return make_plan(_loaded(sweep), Results(results), this_machine(), measure=forecast)


def launch(
    sweep: Sweep | str | Path,
    results: str = "results",
    *,
    address: str | None = None,
    keep_weights: bool = True,
    quiet: bool = False,
) -> Summary:
    """Train the trials of a sweep that the results lack, and say what came of it.

    address: a running Ray (host:port or auto); None: one that is started here and stopped at the end.
    """
    from rich.console import Console

    from tinyscale.orchestration.launch import launch as launch_plan
    from tinyscale.orchestration.session import ray_session

    store = Results(results)
    with ray_session(address) as cluster:
        made = make_plan(_loaded(sweep), store, cluster.capacity, measure=False)
        console = Console(quiet=quiet, highlight=False)
        return launch_plan(made, store, cluster, console=console, keep_weights=keep_weights, quiet=quiet)


def predict(
    results: str = "results", *, n: float | None = None, tokens: float | None = None, flops: float | None = None
) -> pd.DataFrame:
    """What each fit that `tinyscale fit` left in a results folder says of a run, one row a quantity, with 95 % ends.

    n and tokens: the loss of a run of that size; flops alone: the compute-optimal run. FitError when no fit can.
    """
    folder, records = read_records(results)
    asked = {name: value for name, value in {"n": n, "d": tokens, "c": flops}.items() if value is not None}
    rows = [
        {"fit": made.name, "quantity": name, **vars(estimate), "notes": "; ".join(made.notes)}
        for made in predict_all(folder, records, asked)
        for name, estimate in made.values.items()
    ]
    return pd.DataFrame(rows)


def _loaded(sweep: Sweep | str | Path) -> Sweep:
    return sweep if isinstance(sweep, Sweep) else load_sweep(sweep)
