"""Launch a plan: a Ray Tune run over the trials that are missing, watched, stoppable, summed up at the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console

from tinyscale.errors import LaunchError, ResultsError, UnusableError
from tinyscale.formatting import plural
from tinyscale.orchestration.assignment import Assignment, LaunchSettings, Ticket
from tinyscale.orchestration.logs import build_logger, keep_events
from tinyscale.orchestration.measuring import measure
from tinyscale.orchestration.monitor import Monitor
from tinyscale.orchestration.record import record_sweep
from tinyscale.orchestration.recorder import out_of_patience
from tinyscale.orchestration.scratch import scratch_folder
from tinyscale.orchestration.session import Cluster
from tinyscale.orchestration.stop import Grid, Stop, interruptible
from tinyscale.orchestration.summary import Summary
from tinyscale.orchestration.tuner import run_tuner
from tinyscale.orchestration.watch import Watch
from tinyscale.orchestration.worker import Train, run_trial
from tinyscale.planning import forecast
from tinyscale.planning.plan import Plan, PlannedTrial, batched_sets
from tinyscale.results.launches import LaunchRecord, write_launch
from tinyscale.results.leases import clear_void
from tinyscale.results.provenance import launch_provenance, machine_provenance
from tinyscale.results.store import Results
from tinyscale.spec.state import State
from tinyscale.spec.trial import Trial
from tinyscale.training.loop import train as train_trial

Sets = dict[str, list[PlannedTrial]]  # trials trained together, most often one, by the key of their ticket


def launch(
    plan: Plan,
    results: Results,
    cluster: Cluster | None,
    *,
    console: Console,
    keep_weights: bool = True,
    keep_every: int | None = None,
    patience: int | None = None,
    quiet: bool = False,
    log: str | None = None,
    train: Train = train_trial,
) -> Summary:
    """Train what the plan misses and return what came of it; rows are in the results as they come.

    UnusableError where the results take no more rows: what finished is kept, and the next launch goes on from there.
    cluster: the Ray to run on; may be None when nothing is missing. keep_every: tokens between weights that are kept
    along training. patience: evaluations without a lower loss after which a trial is stopped; it stays stopped until a
    launch has another patience, or none. log: tensorboard, wandb or mlflow, besides the rows. train: what trains a
    trial, called as `tinyscale.training.loop.train` is.
    """
    if any(question.needs_weights for question in plan.questions) and not keep_weights:
        raise LaunchError(f"{plan.sweep.path} measures its trials, and --keep none leaves no weights to measure")
    if patience is not None and plan.sweep.fuse:
        raise LaunchError(f"{plan.sweep.path} trains its trials fused, and --patience stops one at a time: remove fuse")
    loggers = [build_logger(log, plan.sweep.name)] if log else []
    provenance = launch_provenance()
    record_sweep(plan, results, provenance)
    clear_void(results.leases)
    to_run = [each for each in plan.to_run if patience is None or each.reason != out_of_patience(patience)]
    if not (to_run or plan.measuring.missing):
        return Summary(slots=max(1, plan.at_once), expected_seconds=plan.seconds)
    assert cluster is not None, "trials to run need a Ray to run on"
    _refuse_unplaceable(to_run, cluster)
    with scratch_folder() as scratch:
        halving = bool(plan.sweep.search and plan.sweep.search.scheduler == "asha")
        settings = LaunchSettings(
            plan.sweep.name, results.location, provenance, keep_weights, scratch, halving, keep_every, patience
        )
        summary = Launch(plan, to_run, results, cluster, settings, train, loggers, console, quiet).run()
        if log == "tensorboard":
            keep_events(Path(scratch), plan.sweep.name, results)
    with suppress(ResultsError):  # the rows are there, and the summary is still to be shown
        write_launch(results.launches, _record(summary, plan.sweep.name, len(to_run), provenance))
    if summary.refused:
        kept = f"{len(summary.finished)} of {plural(len(to_run), 'trial')} finished; launch again to go on"
        raise UnusableError(f"{summary.refused}\n  {kept}")
    return summary


@dataclass
class Launch:
    """A launch under way: runs trials through Ray Tune and gathers what comes of them in its summary."""

    plan: Plan
    to_run: list[PlannedTrial]
    results: Results
    cluster: Cluster
    settings: LaunchSettings
    train: Train
    loggers: Sequence[tune.Callback]
    console: Console
    quiet: bool

    def __post_init__(self) -> None:
        self.sets = self._sets_of(self.to_run)  # a search adds what it samples
        self.teachers = {planned.trial.config.train.teacher for planned in self.plan.trials}
        self.summary = Summary(slots=max(1, self.plan.at_once), expected_seconds=self.plan.seconds)

    def run(self) -> Summary:
        """Train the trials, students last; those that need a larger share of a GPU once more."""
        began = time.monotonic()
        with interruptible(self.settings.sweep, self.console) as stop:
            resized: list[PlannedTrial] = []
            if self.to_run and self.plan.sweep.search:
                resized = self._search(stop)
            for wave in [] if self.plan.sweep.search else self._waves():
                if not stop.requested:
                    resized += self._grid(wave, stop)
            if resized and not stop.requested:
                labels = ", ".join(planned.label for planned in resized)
                self.console.print(f"training again with a larger share of a GPU: {labels}")
                self._grid(self._sets_of(resized), stop)
            if self.plan.questions and not stop.requested:
                self._measure(stop)
        self.summary.stopped, self.summary.refused = stop.requested, stop.refused
        self.summary.wall_seconds = time.monotonic() - began
        self._teach_forecast({planned.trial.identity for planned in resized})
        return self.summary

    def _measure(self, stop: Stop) -> None:
        """Put the sweep's questions to the trials that are finished by now."""
        unfinished = {trial for trial, state in self.summary.states.items() if state != State.FINISHED}
        to_measure = [each for each in self.plan.to_measure if each.trial.identity not in unfinished]
        left = sum(len(self.plan.measuring.missing.get(trial, ())) for trial in unfinished)
        made = measure(
            to_measure,
            self.plan.measuring.missing,
            self.settings,
            stop,
            Monitor(to_measure, self.console, quiet=self.quiet),
            at_once=self.plan.at_once,
        )
        self.summary.measurements = replace(made, unasked=left)

    def _waves(self) -> list[Sets]:
        """The sets of trials without a teacher, among which the teachers are, and then those of their students."""
        alone = {key: together for key, together in self.sets.items() if together[0].trial.teacher is None}
        students = {key: together for key, together in self.sets.items() if key not in alone}
        return [wave for wave in (alone, students) if wave]

    def _grid(self, sets: Sets, stop: Stop) -> list[PlannedTrial]:
        """Train these sets; those of their trials that need a larger share of a GPU come back."""
        tickets = [Ticket.of(first.trial, first.label).as_json() for first, *_ in sets.values()]
        trials_of = {key: tuple(planned.trial for planned in together) for key, together in sets.items()}
        assignments = {key: self._assignment(trials) for key, trials in trials_of.items()}
        order = {"search_alg": Grid(stop, max_concurrent=self._most_at_once())}
        planned = [each for together in sets.values() for each in together]
        return self._tune(planned, sets, stop, order, assignments, {"ticket": tune.grid_search(tickets)})

    def _assignment(self, trials: tuple[Trial, ...]) -> str:
        """As JSON. The weights of teachers are kept in any case: their students need them."""
        keep = self.settings.keep_weights or any(trial.identity in self.teachers for trial in trials)
        return Assignment(trials, replace(self.settings, keep_weights=keep)).as_json()

    def _search(self, stop: Stop) -> list[PlannedTrial]:
        """Train what the sweep's search samples, as `_grid` trains sets."""
        from tinyscale.orchestration.search import search_order  # with optuna

        order = search_order(self.plan, self.results, self.sets, self.settings, stop)
        return self._tune(self.to_run, self.sets, stop, order)

    def _tune(
        self,
        trials: Sequence[PlannedTrial],
        sets: Sets,
        stop: Stop,
        order: Mapping[str, Any],
        assignments: Mapping[str, str] | None = None,
        configs: Mapping[str, Any] | None = None,
    ) -> list[PlannedTrial]:
        """Run Ray Tune. order: its settings for which trial comes next. assignments, configs: of a grid."""
        machine = machine_provenance() if self.cluster.own else {}  # of several, none knows where a process died
        at_once = self.plan.at_once
        with Monitor(list(trials), self.console, quiet=self.quiet, at_once=at_once) as monitor:
            watch = Watch(sets, monitor, self.summary, self.results, self.settings, machine, stop)
            worker = tune.with_parameters(run_trial, assignments=assignments or {}, train=self.train)
            run_tuner(
                worker,
                self.settings,
                order=order,
                callbacks=[watch, *self.loggers],
                configs=configs,
                reuse_actors=all(map(_has_one_worker, trials)),
            )
        return watch.resized

    def _sets_of(self, trials: list[PlannedTrial]) -> Sets:
        """The trials as they are trained, alone or as a batched model; without those that a search has to sample."""
        known = [planned for planned in trials if planned.state != State.UNSAMPLED]
        return {together[0].trial.identity: together for together in batched_sets(known, self.plan.sweep.fuse)}

    def _most_at_once(self) -> int:
        """Most trials that Tune holds at a time, running or waiting for resources; 0: any number.

        An autoscaler adds nodes for trials that wait, and trials of several sizes fill the nodes as Ray can fit them
        in. Drivers of worker groups, which take almost nothing, would not wait.
        """
        mixed = len({planned.trial.config.resources for planned in self.to_run}) > 1
        alone = all(map(_has_one_worker, self.to_run))
        return 0 if alone and (self.cluster.capacity.grows or mixed) else max(1, self.plan.at_once)

    def _teach_forecast(self, resized: set[str]) -> None:
        """Give the forecast the seconds of the trials that were trained alone and on one share of a GPU."""
        alone = {key: one[0].trial for key, one in self.sets.items() if len(one) == 1 and key not in resized}
        timings = [(alone[t.trial], t.train_seconds) for t in self.summary.finished if t.trial in alone]
        forecast.learn(timings, self.plan.at_once)


def _has_one_worker(planned: PlannedTrial) -> bool:
    return planned.trial.config.resources.workers == 1


def _record(summary: Summary, sweep: str, trials: int, provenance: Mapping[str, Any]) -> LaunchRecord:
    """The summary as the results keep it."""
    return LaunchRecord(
        sweep=sweep,
        trials=trials,
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


def _refuse_unplaceable(to_run: list[PlannedTrial], cluster: Cluster) -> None:
    """LaunchError when a trial can never run; a cluster with an autoscaler may still grow."""
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
