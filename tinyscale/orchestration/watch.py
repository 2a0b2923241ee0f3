"""What a launch makes of what Ray Tune says of its trials: the monitor, the summary, and rows of what died."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import tune

from tinyscale.errors import ResultsError, UnusableError
from tinyscale.orchestration.assignment import LaunchSettings, Ticket
from tinyscale.orchestration.monitor import Monitor
from tinyscale.orchestration.stop import Stop
from tinyscale.orchestration.summary import Summary, Timing
from tinyscale.orchestration.tuner import MAX_RESTARTS
from tinyscale.planning.plan import PlannedTrial
from tinyscale.results.leases import Lease
from tinyscale.results.store import Results
from tinyscale.spec.state import State
from tinyscale.spec.trial import Trial

TRIALS_PER_SNAPSHOT = 500  # that ended, after which the snapshot is brought up to date, in about a second
REFUSED = re.compile(rf"{UnusableError.__name__}: (.*)")  # in the traceback of a worker group
LOW_MEMORY = re.compile(r"node running low on memory.*? was (\S+) used / (\S+) limit")  # Ray's memory monitor's words


class Watch(tune.Callback):  # type: ignore[misc,unused-ignore]
    """Passes reports on to the monitor and the summary, and records trials whose process died or raised.

    sets: trials trained together, by the key of their ticket; machine: for the provenance of trials that could not
    write any rows. resized: trials that ran out of memory on a share of a GPU, with the share that would have done.
    """

    def __init__(
        self,
        sets: Mapping[str, Sequence[PlannedTrial]],
        monitor: Monitor,
        summary: Summary,
        results: Results,
        settings: LaunchSettings,
        machine: Mapping[str, Any],
        stop: Stop,
    ) -> None:
        self.sets, self.monitor, self.summary, self.results, self.stop = sets, monitor, summary, results, stop
        self.launch, self.provenance = settings.launch, {**settings.provenance, **machine}
        self.resized: list[PlannedTrial] = []
        self.ended: set[str] = set()  # in this run; a resized trial has a state from the run before

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves its callbacks to restore them, and ours lives as long as the launch does."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for planned in self._active(trial):
            self.monitor.started(planned)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "note" in result:
            self.monitor.note(self.sets[Ticket.in_config(trial.config).key][0], result["note"])
        if "refused" in result:
            self._refused(trial, result["refused"])
        for planned in self._active(trial):
            if result.get("trial", planned.trial.identity) == planned.trial.identity:  # without one: it is true of all
                self._on_report(planned, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for planned in self._active(trial):
            self._end(planned, State.FAILED, "its last report was lost, which says how it ended")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = _reason(trial)
        if refused := REFUSED.search(reason):
            self._refused(trial, refused[1])
        for planned in self._active(trial):
            self._end(planned, *self._mark_failed(planned.trial, reason))

    def _refused(self, trial: Any, reason: str) -> None:
        """No more of a trial can be written: the launch stops, and the next one goes on with what is there."""
        self.stop.refuse(reason)
        for planned in self._active(trial):
            self._end(planned, State.RUNNING, None)

    def _mark_failed(self, trial: Trial, reason: str) -> tuple[State, str | None]:
        """Record that a trial failed, unless another launch has it or its rows say that it is done; how it ended."""
        lease = Lease(self.results.leases, trial.identity, self.launch)
        with suppress(ResultsError):  # the store is away: the reason is in the summary, the next launch tries again
            if not lease.claim():
                return State.ELSEWHERE, "another launch is training it"
            state = self.results.state(trial.identity)
            if state is not None and state.is_kept:
                lease.release()
                return state, None
            self.results.mark_failed(trial, reason, self.provenance)
            lease.release()
        return State.FAILED, reason

    def _active(self, trial: Any) -> list[PlannedTrial]:
        """The trials that a Tune trial trains and that have not ended."""
        together = self.sets[Ticket.in_config(trial.config).key]
        return [planned for planned in together if planned.trial.identity not in self.ended]

    def _on_report(self, planned: PlannedTrial, result: dict[str, Any]) -> None:
        """Pass on a report of one trial; its last one has its timing."""
        self.monitor.on_report(planned.trial.identity, result)
        if "timing" in result:
            self.summary.timings.append(Timing(planned.trial.identity, *result["timing"]))
            if result["would_do"]:
                self.resized.append(planned.with_share(result["would_do"]))
        if "timing" in result or result.get("state") == State.ELSEWHERE:
            self._end(planned, State(result["state"]), result["reason"])

    def _end(self, planned: PlannedTrial, state: State, reason: str | None) -> None:
        identity = planned.trial.identity
        self.ended.add(identity)
        self.summary.states[identity] = state
        if reason:
            self.summary.reasons[identity] = reason
        self.monitor.end(planned, state, reason)
        if len(self.ended) % TRIALS_PER_SNAPSHOT == 0:
            with suppress(ResultsError):  # the store is away
                self.results.keep_snapshot()


def _reason(trial: Any) -> str:
    """Why a trial failed, from the error that Ray wrote: the exception's last line, or how its process died."""
    text = Path(trial.error_file).read_text() if trial.error_file and Path(trial.error_file).exists() else ""
    if used := LOW_MEMORY.findall(text):
        return (
            f"out of memory: Ray ended its process {len(used)} times, as {used[-1][0]} of the node's {used[-1][1]} "
            "were in use; raise resources.cpu, so that fewer trials run at once, or lower train.batch_tokens"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any("died unexpectedly" in line or "ActorDiedError" in line for line in lines):
        return f"its process died {MAX_RESTARTS + 1} times (killed, or out of memory)"
    return lines[-1] if lines else "Ray gave no reason"
