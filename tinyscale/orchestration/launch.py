"""Launch a plan: a Ray Tune grid over the trials that are missing, watched, stoppable, summed up at the end."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put
from ray.tune.search.basic_variant import BasicVariantGenerator
from rich.console import Console

from tinyscale import forecast
from tinyscale.errors import LaunchError, ResultsError
from tinyscale.orchestration.logs import build_logger, keep_events
from tinyscale.orchestration.monitor import Monitor
from tinyscale.orchestration.session import Cluster
from tinyscale.orchestration.trainable import ELSEWHERE, MAX_RESTARTS, NAMESPACE, STOP_KEY, Launch, run_trial
from tinyscale.plan import Plan, PlannedTrial
from tinyscale.provenance import launch_provenance
from tinyscale.results import Results, SweepRecord

DRIVER_SHARE = {"node:__internal_head__": 0.001}  # a driver of several workers sits on the head and takes no core


@dataclass(frozen=True)
class Timing:
    """When a trial's process took it up and let go of it (seconds since the epoch), and how long it trained between.

    Of a batched model's seconds each trial has its share.
    """

    trial: str
    process: int
    began: float
    ended: float
    train_seconds: float


@dataclass
class Summary:
    """What came of a launch."""

    states: dict[str, str] = field(default_factory=dict)  # identity -> finished, failed, diverged, running, elsewhere
    reasons: dict[str, str] = field(default_factory=dict)
    timings: list[Timing] = field(default_factory=list)
    slots: int = 1
    wall_seconds: float = 0.0
    expected_seconds: float | None = None
    stopped: bool = False

    @property
    def failed(self) -> int:
        """Trials that failed; a diverged one is a result."""
        return sum(state == "failed" for state in self.states.values())

    @property
    def train_seconds(self) -> float:
        """Sum of the trials' own training seconds."""
        return sum(timing.train_seconds for timing in self.timings)

    @property
    def efficiency(self) -> float:
        """Training seconds over the seconds of all slots between the first trial's begin and the last one's end."""
        if not self.timings:
            return 0.0
        span = max(t.ended for t in self.timings) - min(t.began for t in self.timings)
        taken_up = len({(t.process, t.began) for t in self.timings})  # trials of a batched model at once
        return self.train_seconds / max(span * min(self.slots, taken_up), 1e-9)

    @property
    def overhead_per_trial(self) -> float:
        """Mean seconds that a process spent on a trial, and between it and the trial before, beside training."""
        last: dict[int, float] = {}
        overheads = []
        for timing in sorted(self.timings, key=lambda timing: timing.began):
            overheads.append(timing.ended - last.get(timing.process, timing.began) - timing.train_seconds)
            last[timing.process] = timing.ended
        return sum(overheads) / len(overheads) if overheads else 0.0


class _Watch(tune.Callback):  # type: ignore[misc,unused-ignore]
    """Passes what Tune tells on to the monitor, and records trials whose process died or raised."""

    def __init__(
        self, groups: Mapping[str, list[PlannedTrial]], monitor: Monitor, summary: Summary, results: Results
    ) -> None:
        self.groups, self.monitor, self.summary, self.results = groups, monitor, summary, results
        self.provenance = launch_provenance()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves its callbacks to restore them, and ours lives as long as the launch does."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for planned in self._going(trial):
            self.monitor.started(planned)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        for planned in self._going(trial):
            if result.get("trial", planned.trial.identity) != planned.trial.identity:  # without: it is true of all
                continue
            self.monitor.heard(planned.trial.identity, result)
            if "process" in result:
                times = {name: result[name] for name in ("process", "began", "ended", "train_seconds")}
                self.summary.timings.append(Timing(planned.trial.identity, **times))
            if "process" in result or result.get("state") == ELSEWHERE:
                self._end(planned, result["state"], result["reason"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for planned in self._going(trial):
            self._end(planned, "failed", "it ended without saying how: its last report was lost")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for planned in self._going(trial):
            reason = _reason(trial)
            with suppress(ResultsError):  # the store is away: the reason is in the summary, the next launch tries again
                self.results.mark_failed(planned.trial, reason, self.provenance)
            self._end(planned, "failed", reason)

    def _going(self, trial: Any) -> list[PlannedTrial]:
        """Those trials of a Tune trial, one or a fused group, of which no end is known yet."""
        return [each for each in self.groups[trial.config["trial"]] if each.trial.identity not in self.summary.states]

    def _end(self, planned: PlannedTrial, state: str, reason: str | None) -> None:
        self.summary.states[planned.trial.identity] = state
        if reason:
            self.summary.reasons[planned.trial.identity] = reason
        self.monitor.end(planned, state, reason)


def _reason(trial: Any) -> str:
    """The last line of what Ray wrote about a failure: the exception, or that the process died."""
    text = Path(trial.error_file).read_text() if trial.error_file and Path(trial.error_file).exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any("died unexpectedly" in line or "ActorDiedError" in line for line in lines):
        return f"its process died {MAX_RESTARTS + 1} times (killed, or out of memory)"
    return lines[-1] if lines else "Ray gave no reason"


@dataclass
class Stop:
    """Whether the user asked to stop. (Tune saves what its search holds, and cannot save a threading.Event.)"""

    requested: bool = False


class _Grid(BasicVariantGenerator):  # type: ignore[misc,unused-ignore]
    """Tune's grid, which ends early once the user asked to stop."""

    def __init__(self, stop: Stop, **settings: Any) -> None:
        super().__init__(**settings)
        self.stop = stop

    def next_trial(self) -> Any:
        return None if self.stop.requested else super().next_trial()

    def is_finished(self) -> bool:
        return self.stop.requested or bool(super().is_finished())


@contextmanager
def _interruptible(name: str, console: Console) -> Iterator[Stop]:
    """First Ctrl-C: running trials write a checkpoint and stop. Second: stop now. Ray is shut down either way."""
    stop = Stop()

    def on_interrupt(*_: object) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        _internal_kv_put(STOP_KEY, name.encode(), namespace=NAMESPACE)
        console.print("stopping: running trials write a checkpoint first (Ctrl-C again: stop now)")

    on_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, on_interrupt) if on_main_thread else None
    try:
        yield stop
    finally:
        _internal_kv_del(STOP_KEY, namespace=NAMESPACE)
        if on_main_thread:
            signal.signal(signal.SIGINT, before)


def launch(
    plan: Plan,
    results: Results,
    cluster: Cluster | None,
    *,
    console: Console,
    keep_weights: bool = True,
    quiet: bool = False,
    log: str | None = None,
) -> Summary:
    """Train what the plan misses and return what came of it; rows are in the results as they come.

    cluster: the Ray to run on; may be None when nothing is missing. log: tensorboard, wandb or mlflow, beside the rows.
    """
    loggers = [build_logger(log, plan.sweep.name)] if log else []
    record_sweep(plan, results)
    to_run = plan.to_run
    summary = Summary(slots=max(1, plan.at_once), expected_seconds=plan.seconds)
    if not to_run:
        return summary
    assert cluster is not None, "trials to run need a Ray to run on"
    _refuse_unplaceable(to_run, cluster)
    planned = {each.trial.identity: each for each in to_run}
    groups = {group[0].trial.identity: group for group in plan.groups}
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="tinyscale-ray-", ignore_cleanup_errors=True) as scratch,
        Monitor(to_run, console, quiet=quiet) as monitor,
        _interruptible(plan.sweep.name, console) as stop,
    ):
        shared = Launch(plan.sweep.name, results.location, launch_provenance(), keep_weights, scratch)
        trainable = tune.with_parameters(
            run_trial, groups={lead: [each.trial for each in group] for lead, group in groups.items()}, launch=shared
        )
        alone = all(each.trial.config.resources.workers == 1 for each in to_run)
        tuner = tune.Tuner(
            tune.with_resources(trainable, _resources(to_run)),
            param_space={"trial": tune.grid_search(list(groups))},
            tune_config=tune.TuneConfig(
                reuse_actors=alone,
                search_alg=_Grid(stop, max_concurrent=plan.at_once),
                trial_name_creator=_name(planned),
            ),
            run_config=tune.RunConfig(
                name=plan.sweep.name,
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=MAX_RESTARTS),
                callbacks=[_Watch(groups, monitor, summary, results), *loggers],
            ),
        )
        tuner.fit()
        if log == "tensorboard":
            keep_events(Path(scratch), plan.sweep.name, results)
        summary.stopped = stop.requested
    summary.wall_seconds = time.monotonic() - began
    unfused = {lead for lead, group in groups.items() if len(group) == 1}  # of the others the forecast knows nothing
    finished = [t for t in summary.timings if t.trial in unfused and summary.states[t.trial] == "finished"]
    forecast.learn([(planned[timing.trial].trial, timing.train_seconds) for timing in finished], plan.at_once)
    return summary


def record_sweep(plan: Plan, results: Results) -> None:
    """Write which trials the sweep consists of, where that is new."""
    groups = tuple(
        {"trial": each.trial.identity, **each.place, "settled": {path: c.value for path, c in each.choices.items()}}
        for each in plan.trials
    )
    sweep = plan.sweep
    results.write_sweep(SweepRecord(sweep.name, sweep.title, sweep.source, sweep.axes, groups, launch_provenance()))


def _resources(to_run: list[PlannedTrial]) -> dict[str, float]:
    """What Tune reserves for each trial: the trial's own share, or for a worker group only the driver's."""
    needs = {each.trial.config.resources for each in to_run}
    if len(needs) > 1:
        raise LaunchError("the trials of one launch must ask for the same resources; launch them apart with --select")
    need = needs.pop()
    if need.workers > 1:
        return DRIVER_SHARE
    return {"CPU": need.cpu} | ({"GPU": need.gpu} if need.gpu else {})


def _refuse_unplaceable(to_run: list[PlannedTrial], cluster: Cluster) -> None:
    """LaunchError when a trial can never be placed; a cluster with an autoscaler may still grow."""
    if cluster.grows:
        return
    where = "this machine" if cluster.own else "the cluster"
    for each in to_run:
        need = each.trial.config.resources
        for what, wanted, there in (
            ("CPU cores", need.cpu * need.workers, cluster.cpus),
            ("GPUs", need.gpu * need.workers, cluster.gpus),
        ):
            if wanted > there:
                raise LaunchError(
                    f"{each.label} needs {wanted:g} {what} at once and {where} has {there:g}; lower "
                    f"them with --set resources.{'cpu' if what == 'CPU cores' else 'gpu'}=..., or use a larger cluster"
                )
        if not cluster.holds(need.cpu, need.gpu):
            raise LaunchError(
                f"{each.label} needs {need.cpu} CPU cores and {need.gpu:g} GPUs on one node, and none of the "
                "cluster has both; lower them with --set resources.cpu=..., or add a larger node"
            )


def _name(planned: Mapping[str, PlannedTrial]) -> Any:
    """Trial names that can be recognised in Ray's dashboard."""

    def name(trial: Any) -> str:
        identity = trial.config["trial"]
        label = planned[identity].label.replace(" ", "_").replace("/", "-")
        return f"{label}_{identity[:6]}"

    return name
