"""The functions for notebooks: what the command line does, but returning objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from tinyscale.analysis.fit_frame import fit_frame as fit
from tinyscale.analysis.group_fits import Refusal
from tinyscale.analysis.predict import predict_all
from tinyscale.analysis.records import contrasts_table, read_records
from tinyscale.analysis.runs import read_groups
from tinyscale.analysis.study import contrasts_of
from tinyscale.analysis.suggest import suggest_from
from tinyscale.errors import ConfigError, FitError
from tinyscale.fitting.design import Suggestion
from tinyscale.machine import cache_folder
from tinyscale.planning.make_plan import make_plan
from tinyscale.planning.plan import Plan
from tinyscale.planning.rounds import refuse_rounds
from tinyscale.results.status import Status, read_status
from tinyscale.results.store import Results
from tinyscale.spec.sweep import Options, Sweep, load_sweep

__all__ = ["compare", "corpus", "fit", "launch", "load_model", "plan_launch", "predict", "report", "status", "suggest"]

if TYPE_CHECKING:
    from tinyscale.inference.trained import Trained
    from tinyscale.orchestration.summary import Summary


def corpus(documents: Iterable[str]) -> str:
    """Keep documents as a corpus on this machine; its path, for `data.corpus` or `data.val`.

    A trial on it has the identity of one on a file with the same documents, in any order. Documents without text are
    left out. DataError if there is none, or one is no text.
    """
    from tinyscale.data.files import write_documents

    return str(write_documents(documents, cache_folder() / "corpora"))


def plan_launch(
    sweep: Sweep | str | Path,
    results: str = "results",
    *,
    overrides: Options = (),
    select: Options = (),
    forecast: bool = True,
) -> Plan:
    """The plan of launching a sweep on this machine.

    sweep: a Sweep or the path of its file, of which overrides and select change the base and take a part (as of
    `load_sweep`). results: a folder, s3:// or gs://. forecast: measure this machine's speed for the expected time.
    ConfigError or DataError if the sweep is not legal.
    """
    return make_plan(_loaded(sweep, overrides, select), Results(results), measure=forecast)


def launch(
    sweep: Sweep | str | Path,
    results: str = "results",
    *,
    overrides: Options = (),
    select: Options = (),
    address: str | None = None,
    keep_weights: bool = True,
    keep_every: int | None = None,
    patience: int | None = None,
    quiet: bool = False,
    log: Literal["tensorboard", "wandb", "mlflow"] | None = None,
    until_settled: int | None = None,
) -> Summary:
    """Train the trials of a sweep that the results lack; returns the state of each trial and the timings.

    sweep, overrides, select: as of `plan_launch`. address: a running Ray cluster (host:port or auto); None: Ray is
    started here and stopped at the end. keep_weights: keep the final weights of each trial. keep_every: also the
    weights along training, at every so many tokens. patience: stop a trial whose loss was not lower in so many
    evaluations; no fit reads it. quiet: print nothing. log: log progress and losses there as well. until_settled: add
    one seed at a time until each arm is settled against the base at 95 %, or there are so many seeds; the summary is of
    the last round. ConfigError or DataError if the sweep is not legal, LaunchError if Ray cannot be reached or the
    package of the log is not installed.
    """
    from tinyscale.orchestration.launch import launch as launch_plan
    from tinyscale.orchestration.logs import require_package
    from tinyscale.orchestration.rounds import launch_until_settled
    from tinyscale.orchestration.session import ray_session
    from tinyscale.reporting.terminal import PlainConsole

    if log:
        require_package(log)
    read = _loaded(sweep, overrides, select)
    if until_settled:
        refuse_rounds(read, until_settled)
    store = Results(results)
    store.folder.require_writable()
    with ray_session(address) as cluster:
        made = make_plan(read, store, cluster.capacity, measure=False)
        console = PlainConsole(quiet=quiet)
        options: dict[str, Any] = {
            "console": console, "keep_weights": keep_weights, "keep_every": keep_every, "patience": patience,
            "quiet": quiet, "log": log,
        }  # fmt: skip
        if until_settled:
            return launch_until_settled(made, store, cluster, until_settled, **options)[1]
        return launch_plan(made, store, cluster, **options)


def status(results: str = "results") -> Status:
    """The sweeps of a results folder and the state of each of their trials. ResultsError if there is no folder."""
    store = Results(results)
    store.folder.require_there()
    return read_status(store)


def load_model(results: str, trial: str, *, at: int | None = None) -> Trained:
    """A trained model (`gpt`, a torch module in evaluation mode) with its `tokenizer` and its `config`.

    trial: the beginning of its identity, or its cell, such as width/d_model=64,seed=0. at: training tokens after which
    its weights were kept; None: at the end. ResultsError if no trial or several have that name, or without its weights;
    DataError if its corpus now gives another tokenizer.
    """
    from tinyscale.inference.trained import load_trained

    return load_trained(Results(results), trial, at)


def compare(results: str = "results", *, sweep: str | None = None) -> pd.DataFrame:
    """The arms of the sweeps of a results folder against the base of each, one row per arm; nothing is written.

    Columns: sweep, arm, base, difference (arm minus base, in `unit`), the ends low and high of its 95 % interval, p (by
    Holm), pairs, more_seeds (that would settle what is open), and verdict, a sentence; the best arms stand first.
    sweep: only this one. ResultsError without runs; FitError if no arms compare.
    """
    groups = [group for group in read_groups(results) if sweep in (None, group.sweep)]
    found = list(contrasts_of(groups))
    contrasts = [each for each in found if not isinstance(each, Refusal)]
    if not contrasts:
        reasons = [str(each) for each in found if isinstance(each, Refusal)]
        which = f"of {sweep} " if sweep else ""
        raise FitError("\n".join([f"{results}: no arms {which}to compare; launch a sweep with two or more", *reasons]))
    return contrasts_table([each.as_json() for each in contrasts])


def suggest(
    results: str = "results", *, flops: float, target: str = "loss", fit: str | None = None
) -> tuple[Suggestion, dict[str, Any] | None]:
    """The runs that shrink an interval most for a budget, and the sweep that trains them, for `Sweep.of(**content)`.

    flops: of training, to spend. target: a parameter, or the loss at ten times the sizes. fit: its name in fits.json;
    None: the first. The sweep is None where the fit's runs belong to none. FitError if there is no such fit, or the
    budget pays for no run.
    """
    return suggest_from(results, flops, target, fit)


def report(results: str = "results") -> str:
    """Fit what a results folder holds and write report.html there, with its tables and plots; the page's path."""
    from tinyscale.reporting.page import write_report

    return write_report(results)[-1]


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


def _loaded(sweep: Sweep | str | Path, overrides: Options, select: Options) -> Sweep:
    """The sweep, read from its file. ConfigError for changes to one that was read before."""
    if isinstance(sweep, Mapping):
        raise ConfigError("a dict is no sweep: give Sweep.of(name, base, axes=...), or the path of a file")
    if not isinstance(sweep, Sweep):
        return load_sweep(sweep, overrides=overrides, select=select)
    if overrides or select:
        raise ConfigError(
            "a Sweep is read already: give overrides and select to load_sweep or Sweep.of, or a path here"
        )
    return sweep
