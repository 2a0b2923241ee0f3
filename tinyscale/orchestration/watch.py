"""Our side of Ray Tune: which trial comes next, until the user stops it, and what a launch makes of what Tune tells."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search.basic_variant import BasicVariantGenerator
from rich.console import Console

from tinyscale.errors import ResultsError
from tinyscale.orchestration.monitor import Monitor
from tinyscale.orchestration.ray_internals import HEAD_NODE, clear_flag, set_flag
from tinyscale.orchestration.summary import Summary, Timing
from tinyscale.orchestration.worker import MAX_RESTARTS, STOP_KEY, placed
from tinyscale.planning.plan import PlannedTrial
from tinyscale.results.store import Results
from tinyscale.spec.state import State

DRIVER_SHARE = {HEAD_NODE: 0.001}  # a driver of several workers sits on the head and takes no core
LOW_MEMORY = re.compile(r"node running low on memory.*? was (\S+) used / (\S+) limit")  # Ray's memory monitor's words


class Watch(tune.Callback):  # type: ignore[misc,unused-ignore]
    """Passes what Tune tells on to the monitor, and records trials whose process died or raised.

    again: trials that ran out of memory on a share of a GPU, with the share that would have done.
    """

    def __init__(
        self,
        groups: Mapping[str, list[PlannedTrial]],
        monitor: Monitor,
        summary: Summary,
        results: Results,
        provenance: Mapping[str, Any],
    ) -> None:
        self.groups, self.monitor, self.summary, self.results = groups, monitor, summary, results
        self.provenance = provenance
        self.again: list[PlannedTrial] = []
        self.ended: set[str] = set()  # in this run: what is trained again has a state from the run before

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
            if result.get("trial", planned.trial.identity) == planned.trial.identity:  # without: it is true of all
                self._hear(planned, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for planned in self._going(trial):
            self._end(planned, State.FAILED, "it ended without saying how: its last report was lost")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = _reason(trial)
        for planned in self._going(trial):
            with suppress(ResultsError):  # the store is away: the reason is in the summary, the next launch tries again
                self.results.mark_failed(planned.trial, reason, self.provenance)
            self._end(planned, State.FAILED, reason)

    def _going(self, trial: Any) -> list[PlannedTrial]:
        """Those trials of what Tune runs, one or a fused group, of which no end is known yet."""
        group = self.groups[placed(trial.config)["trial"]]
        return [planned for planned in group if planned.trial.identity not in self.ended]

    def _hear(self, planned: PlannedTrial, result: dict[str, Any]) -> None:
        """Pass on what is told of one trial; with its timing comes its end."""
        self.monitor.heard(planned.trial.identity, result)
        if "timing" in result:
            self.summary.timings.append(Timing(planned.trial.identity, *result["timing"]))
            if result["would_do"]:
                self.again.append(planned.with_share(result["would_do"]))
        if "timing" in result or result.get("state") == State.ELSEWHERE:
            self._end(planned, State(result["state"]), result["reason"])

    def _end(self, planned: PlannedTrial, state: State, reason: str | None) -> None:
        identity = planned.trial.identity
        self.ended.add(identity)
        self.summary.states[identity] = state
        if reason:
            self.summary.reasons[identity] = reason
        self.monitor.end(planned, state, reason)


def _reason(trial: Any) -> str:
    """Why a trial failed, from what Ray wrote of it: the exception's last line, or how its process died."""
    text = Path(trial.error_file).read_text() if trial.error_file and Path(trial.error_file).exists() else ""
    if used := LOW_MEMORY.findall(text):
        return (
            f"out of memory: Ray ended its process {len(used)} times, as {used[-1][0]} of the node's {used[-1][1]} "
            "were in use; raise resources.cpu, so that fewer trials run beside it, or lower train.batch_tokens"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any("died unexpectedly" in line or "ActorDiedError" in line for line in lines):
        return f"its process died {MAX_RESTARTS + 1} times (killed, or out of memory)"
    return lines[-1] if lines else "Ray gave no reason"


@dataclass
class Stop:
    """Whether the user asked to stop. (Tune saves what its search holds, and cannot save a threading.Event.)"""

    requested: bool = False


class Grid(BasicVariantGenerator):  # type: ignore[misc,unused-ignore]
    """Tune's grid, which ends early once the user asked to stop."""

    def __init__(self, stop: Stop, **settings: Any) -> None:
        super().__init__(**settings)
        self.stop = stop

    def next_trial(self) -> Any:
        return None if self.stop.requested else super().next_trial()

    def is_finished(self) -> bool:
        return self.stop.requested or bool(super().is_finished())


@contextmanager
def interruptible(name: str, console: Console) -> Iterator[Stop]:
    """First Ctrl-C: running trials write a checkpoint and stop. Second: stop now. Ray is shut down either way."""
    stop = Stop()

    def on_interrupt(*_: object) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        set_flag(STOP_KEY, name.encode())
        console.print("stopping: running trials write a checkpoint first (Ctrl-C again: stop now)")

    on_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, on_interrupt) if on_main_thread else None
    try:
        yield stop
    finally:
        clear_flag(STOP_KEY)
        if on_main_thread:
            signal.signal(signal.SIGINT, before)


def trial_name(trial: Any) -> str:
    """A name by which the trial can be recognised in Ray's dashboard."""
    return str(placed(trial.config)["name"])


def place(planned: PlannedTrial) -> str:
    """What `placed` reads again."""
    identity, label = planned.trial.identity, planned.label.replace(" ", "_").replace("/", "-")
    return json.dumps({"trial": identity, "name": f"{label}_{identity[:6]}", "reserved": _reserved(planned)})


def as_reserved(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """The resources of a trial, as Tune takes them."""
    return tune.PlacementGroupFactory([placed(config)["reserved"]])


def trains_alone(planned: PlannedTrial) -> bool:
    """Whether one process trains it."""
    return planned.trial.config.resources.workers == 1


def _reserved(planned: PlannedTrial) -> dict[str, float]:
    """What Tune reserves for a trial: the trial's own share, or for a worker group only the driver's."""
    need = planned.trial.config.resources
    if not trains_alone(planned):
        return DRIVER_SHARE
    return {"CPU": need.cpu} | ({"GPU": need.gpu} if need.gpu else {})
