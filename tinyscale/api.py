"""The functions for notebooks: plan, launch and predict, as the command line does, but returning objects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from tinyscale.analysis.predict import predict_all
from tinyscale.analysis.records import read_records
from tinyscale.analysis.study import fit_frame as fit
from tinyscale.planning.plan import Plan, make_plan
from tinyscale.results.store import Results
from tinyscale.spec.sweep import Sweep, load_sweep

__all__ = ["fit", "launch", "plan_launch", "predict"]

if TYPE_CHECKING:
    from tinyscale.orchestration.summary import Summary


def plan_launch(sweep: Sweep | str | Path, results: str = "results", *, forecast: bool = True) -> Plan:
    """The plan of launching a sweep on this machine.

    sweep: a Sweep or the path of its file. results: a folder, s3:// or gs://. forecast: measure this machine's speed
    for the expected time. ConfigError or DataError if the sweep is not legal.
    """
    return make_plan(_loaded(sweep), Results(results), measure=forecast)


def launch(
    sweep: Sweep | str | Path,
    results: str = "results",
    *,
    address: str | None = None,
    keep_weights: bool = True,
    quiet: bool = False,
) -> Summary:
    """Train the trials of a sweep that the results lack; returns the state of each trial and the timings.

    address: a running Ray cluster (host:port or auto); None: Ray is started here and stopped at the end.
    keep_weights: keep the final weights of each trial. quiet: print nothing. LaunchError if Ray cannot be reached.
    """
    from tinyscale.orchestration.launch import launch as launch_plan
    from tinyscale.orchestration.session import ray_session
    from tinyscale.reporting.terminal import PlainConsole

    store = Results(results)
    store.folder.require_writable()
    with ray_session(address) as cluster:
        made = make_plan(_loaded(sweep), store, cluster.capacity, measure=False)
        console = PlainConsole(quiet=quiet)
        return launch_plan(made, store, cluster, console=console, keep_weights=keep_weights, quiet=quiet)


def predict(
    results: str = "results", *, n: float | None = None, tokens: float | None = None, flops: float | None = None
) -> pd.DataFrame:
    """Predictions from the fits that `tinyscale fit` wrote to a results folder: one row per fit and quantity.

    n (parameters) and tokens: the loss of such a run; flops alone: the compute-optimal run. Columns: fit, quantity,
    value, the ends low and high of its 95 % interval, notes. FitError if no fit can predict it.
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
