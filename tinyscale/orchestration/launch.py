"""Launch a plan: a Ray Tune grid over the trials that are missing, watched, stoppable, summed up at the end."""

from __future__ import annotations

import pickle
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console

from tinyscale.errors import LaunchError, ResultsError
from tinyscale.orchestration.logs import build_logger, keep_events
from tinyscale.orchestration.monitor import Monitor
from tinyscale.orchestration.record import record_sweep
from tinyscale.orchestration.session import Cluster
from tinyscale.orchestration.summary import Summary
from tinyscale.orchestration.watch import Grid, Watch, as_reserved, interruptible, place, trains_alone, trial_name
from tinyscale.orchestration.worker import MAX_RESTARTS, Launch, run_trial
from tinyscale.planning import forecast
from tinyscale.planning.plan import Plan, PlannedTrial, batched_sets
from tinyscale.results.launches import LaunchRecord, write_launch
from tinyscale.results.leases import clear_void
from tinyscale.results.provenance import launch_provenance, machine_provenance
from tinyscale.results.store import Results
from tinyscale.spec.state import State
from tinyscale.training.loop import train as train_trial
from tinyscale.training.progress import Outcome

Groups = dict[str, list[PlannedTrial]]  # what Tune runs, most often one trial, by its first trial's identity


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
    train: what trains a trial, called as `tinyscale.training.loop.train` is.
    """
    loggers = [build_logger(log, plan.sweep.name)] if log else []
    provenance = launch_provenance()
    record_sweep(plan, results, provenance)
    clear_void(results.leases)
    to_run, search = plan.to_run, plan.sweep.search
    summary = Summary(slots=max(1, plan.at_once), expected_seconds=plan.seconds)
    if not to_run:
        return summary
    assert cluster is not None, "trials to run need a Ray to run on"
    _refuse_unplaceable(to_run, cluster)
    groups = _groups(to_run, plan)  # a search adds what it draws
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="tinyscale-ray-", ignore_cleanup_errors=True) as scratch,
        interruptible(plan.sweep.name, console) as stop,
    ):
        halving = bool(search and search.scheduler == "asha")
        shared = Launch(plan.sweep.name, results.location, provenance, keep_weights, scratch, train, halving)

        def run(trials: list[PlannedTrial], groups: Groups, **chosen: Any) -> list[PlannedTrial]:
            """Train them; those that need a larger share of a GPU come back."""
            with Monitor(trials, console, quiet=quiet) as monitor:
                machine = machine_provenance() if cluster.own else {}  # of several, none knows who trained
                watch = Watch(groups, monitor, summary, results, {**provenance, **machine})
                _fit(trials, groups, shared, [watch, *loggers], chosen)
            return watch.again

        def grid(trials: list[PlannedTrial]) -> list[PlannedTrial]:
            settings = {"search_alg": Grid(stop, max_concurrent=_at_once(plan, cluster))}
            return run(trials, _groups(trials, plan), **settings)

        if search is None:
            again = grid(to_run)
        else:
            from tinyscale.orchestration.search import search_settings  # with optuna

            chosen = search_settings(plan, results, groups, scratch, stopping=lambda: stop.requested)
            again = run(to_run, groups, **chosen)
        if again and not stop.requested:
            console.print(f"training again with a larger share of a GPU: {', '.join(each.label for each in again)}")
            grid(again)
        if log == "tensorboard":
            keep_events(Path(scratch), plan.sweep.name, results)
        summary.stopped = stop.requested
    summary.wall_seconds = time.monotonic() - began
    _learn(summary, groups, again, plan.at_once)
    with suppress(ResultsError):  # the rows are there, and the summary is still to be told
        write_launch(results.launches, _record(summary, plan, provenance))
    return summary


def _learn(summary: Summary, groups: Groups, again: list[PlannedTrial], at_once: int) -> None:
    """Tell the forecast how long the trials took that were trained alone and on one share of a GPU."""
    resized = {each.trial.identity for each in again}
    alone = {lead: group[0].trial for lead, group in groups.items() if len(group) == 1 and lead not in resized}
    forecast.learn([(alone[t.trial], t.train_seconds) for t in summary.finished if t.trial in alone], at_once)


def _groups(trials: list[PlannedTrial], plan: Plan) -> Groups:
    """The trials as they are trained, alone or fused; what a search has not drawn yet is not among them."""
    known = [each for each in trials if each.state != State.UNSAMPLED]
    return {group[0].trial.identity: group for group in batched_sets(known, plan.sweep.fuse)}


def _fit(
    trials: list[PlannedTrial],
    groups: Groups,
    shared: Launch,
    callbacks: list[tune.Callback],
    chosen: Mapping[str, Any],
) -> None:
    """Run the trials as Tune's; chosen: its settings for which one comes next."""
    known = {lead: pickle.dumps([each.trial for each in group]) for lead, group in groups.items()}
    searched = "num_samples" in chosen
    tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, groups=known, launch=shared), as_reserved),
        param_space=None if searched else {"placed": tune.grid_search([place(group[0]) for group in groups.values()])},
        tune_config=tune.TuneConfig(
            reuse_actors=all(map(trains_alone, trials)), trial_name_creator=trial_name, **chosen
        ),
        run_config=tune.RunConfig(
            name=shared.name,
            storage_path=shared.ray_storage,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=MAX_RESTARTS),
            callbacks=callbacks,
        ),
    ).fit()


def _record(summary: Summary, plan: Plan, provenance: Mapping[str, Any]) -> LaunchRecord:
    """The summary as the results keep it."""
    return LaunchRecord(
        sweep=plan.sweep.name,
        trials=len(plan.to_run),
        states=dict(Counter(summary.states.values())),
        slots=summary.slots,
        wall_seconds=summary.wall_seconds,
        train_seconds=summary.train_seconds,
        expected_seconds=summary.expected_seconds,
        efficiency=summary.efficiency,
        overhead_per_trial=summary.overhead_per_trial,
        stopped=summary.stopped,
        provenance=provenance,
    )


def _at_once(plan: Plan, cluster: Cluster) -> int:
    """Most trials that Tune holds at a time, placed or waiting for a place; 0: any number.

    An autoscaler adds nodes for trials that wait, and trials of several sizes fill the nodes as Ray can fit them in.
    Drivers of worker groups, which take almost nothing, would not wait.
    """
    mixed = len({planned.trial.config.resources for planned in plan.to_run}) > 1
    alone = all(map(trains_alone, plan.to_run))
    return 0 if alone and (cluster.capacity.grows or mixed) else max(1, plan.at_once)


def _refuse_unplaceable(to_run: list[PlannedTrial], cluster: Cluster) -> None:
    """LaunchError when a trial can never be placed; a cluster with an autoscaler may still grow."""
    if cluster.capacity.grows:
        return
    for each in to_run:
        need = each.trial.config.resources
        if lack := forecast.lacking(need, cluster.capacity):
            raise LaunchError(f"{each.label} {lack}, or use a larger {'machine' if cluster.own else 'cluster'}")
        if not cluster.holds(need.cpu, need.gpu):
            raise LaunchError(
                f"{each.label} needs {need.cpu} CPU cores and {need.gpu:g} GPUs on one node, and none of the "
                "cluster has both; lower them with --set resources.cpu=..., or add a larger node"
            )
