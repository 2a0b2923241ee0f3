"""Launch a plan: a Ray Tune grid over the trials that are missing, watched, stoppable, summed up at the end."""

from __future__ import annotations

import json
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ray import tune
from rich.console import Console

from tinyscale import forecast
from tinyscale.errors import LaunchError
from tinyscale.orchestration.grid import Grid, Stop, Watch, interruptible, trial_name
from tinyscale.orchestration.logs import build_logger, keep_events
from tinyscale.orchestration.monitor import Monitor
from tinyscale.orchestration.session import Cluster
from tinyscale.orchestration.summary import Summary
from tinyscale.orchestration.trainable import MAX_RESTARTS, Launch, placed, run_trial
from tinyscale.plan import Plan, PlannedTrial
from tinyscale.progress import Outcome
from tinyscale.provenance import launch_provenance
from tinyscale.results import Results, SweepRecord
from tinyscale.train import train as train_trial

DRIVER_SHARE = {"node:__internal_head__": 0.001}  # a driver of several workers sits on the head and takes no core


def launch(
    plan: Plan,
    results: Results,
    cluster: Cluster | None,
    *,
    console: Console,
    keep_weights: bool = True,
    quiet: bool = False,
    log: str | None = None,
    train: Callable[..., Outcome] = train_trial,
) -> Summary:
    """Train what the plan misses and return what came of it; rows are in the results as they come.

    cluster: the Ray to run on; may be None when nothing is missing. log: tensorboard, wandb or mlflow, beside the rows.
    train: what trains a trial, called as `tinyscale.train.train` is.
    """
    loggers = [build_logger(log, plan.sweep.name)] if log else []
    summary = Summary(record_sweep(plan, results), slots=max(1, plan.at_once), expected_seconds=plan.seconds)
    to_run = plan.to_run
    if not to_run:
        return summary
    assert cluster is not None, "trials to run need a Ray to run on"
    _refuse_unplaceable(to_run, cluster)
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="tinyscale-ray-", ignore_cleanup_errors=True) as scratch,
        interruptible(plan.sweep.name, console) as stop,
    ):
        shared = Launch(plan.sweep.name, results.location, launch_provenance(), keep_weights, scratch, train)

        def run(trials: list[PlannedTrial]) -> list[PlannedTrial]:
            """Train them; those that need a larger share of a GPU come back."""
            with Monitor(trials, console, quiet=quiet) as monitor:
                watch = Watch({each.trial.identity: each for each in trials}, monitor, summary, results)
                _fit(trials, shared, stop, [watch, *loggers], _at_once(plan, cluster))
            return watch.again

        if (again := run(to_run)) and not stop.requested:
            console.print(f"training again with a larger share of a GPU: {', '.join(each.label for each in again)}")
            run(again)
        if log == "tensorboard":
            keep_events(Path(scratch), plan.sweep.name, results)
        summary.stopped = stop.requested
    summary.wall_seconds = time.monotonic() - began
    resized = {each.trial.identity for each in again}  # measured on two shares
    trials = {each.trial.identity: each.trial for each in to_run if each.trial.identity not in resized}
    timed = [(trials[each.trial], each.train_seconds) for each in summary.finished if each.trial in trials]
    forecast.learn(timed, plan.at_once)
    return summary


def _fit(trials: list[PlannedTrial], shared: Launch, stop: Stop, callbacks: list[tune.Callback], at_once: int) -> None:
    """Run the trials as a grid of Tune."""
    pickled = {each.trial.identity: pickle.dumps(each.trial) for each in trials}
    trainable = tune.with_parameters(run_trial, trials=pickled, launch=shared)
    tune.Tuner(
        tune.with_resources(trainable, _as_reserved),
        param_space={"placed": tune.grid_search([_placed(each) for each in trials])},
        tune_config=tune.TuneConfig(
            reuse_actors=all(map(_trains_alone, trials)),
            search_alg=Grid(stop, max_concurrent=at_once),
            trial_name_creator=trial_name,
        ),
        run_config=tune.RunConfig(
            name=shared.name,
            storage_path=shared.ray_storage,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=MAX_RESTARTS),
            callbacks=callbacks,
        ),
    ).fit()


def _placed(planned: PlannedTrial) -> str:
    """What `placed` reads again."""
    identity, label = planned.trial.identity, planned.label.replace(" ", "_").replace("/", "-")
    return json.dumps({"trial": identity, "name": f"{label}_{identity[:6]}", "reserved": _reserved(planned)})


def _as_reserved(config: dict[str, str]) -> tune.PlacementGroupFactory:
    return tune.PlacementGroupFactory([placed(config)["reserved"]])


def record_sweep(plan: Plan, results: Results) -> SweepRecord:
    """Write which trials the sweep consists of, and return it."""
    groups = tuple(
        {"trial": each.trial.identity, **each.place, "settled": {path: c.value for path, c in each.choices.items()}}
        for each in plan.trials
    )
    sweep = plan.sweep
    record = SweepRecord(sweep.name, sweep.title, sweep.source, sweep.axes, groups, launch_provenance())
    results.write_sweep(record)
    return record


def _trains_alone(planned: PlannedTrial) -> bool:
    return planned.trial.config.resources.workers == 1


def _reserved(planned: PlannedTrial) -> dict[str, float]:
    """What Tune reserves for a trial: the trial's own share, or for a worker group only the driver's."""
    need = planned.trial.config.resources
    if not _trains_alone(planned):
        return DRIVER_SHARE
    return {"CPU": need.cpu} | ({"GPU": need.gpu} if need.gpu else {})


def _at_once(plan: Plan, cluster: Cluster) -> int:
    """Most trials that Tune holds at a time, placed or waiting for a place; 0: any number.

    An autoscaler adds nodes for trials that wait, and trials of several sizes fill the nodes as Ray can fit them in.
    Drivers of worker groups, which take almost nothing, would not wait.
    """
    mixed = len({planned.trial.config.resources for planned in plan.to_run}) > 1
    alone = all(map(_trains_alone, plan.to_run))
    return 0 if alone and (cluster.grows or mixed) else max(1, plan.at_once)


def _refuse_unplaceable(to_run: list[PlannedTrial], cluster: Cluster) -> None:
    """LaunchError when a trial can never be placed; a cluster with an autoscaler may still grow."""
    if cluster.grows:
        return
    for each in to_run:
        need = each.trial.config.resources
        if lack := forecast.lacking(need, cluster.cpus, cluster.gpus):
            raise LaunchError(f"{each.label} {lack}, or use a larger {'machine' if cluster.own else 'cluster'}")
        if not cluster.holds(need.cpu, need.gpu):
            raise LaunchError(
                f"{each.label} needs {need.cpu} CPU cores and {need.gpu:g} GPUs on one node, and none of the "
                "cluster has both; lower them with --set resources.cpu=..., or add a larger node"
            )
