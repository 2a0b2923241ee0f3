"""How a worker records what it trains: rows in the results, reports to Ray Tune, and how each trial ended."""

from __future__ import annotations

import logging
import os
import re
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any

import ray
import torch
import torch._dynamo  # here, not by the first optimizer in the middle of a process's first trial
from ray import train as ray_train
from ray import tune

from tinyscale.data import TokenizedCorpus
from tinyscale.errors import ResultsError, UnusableError, lack_of_memory
from tinyscale.formatting import plural
from tinyscale.machine import driver_version, gpu_bytes
from tinyscale.orchestration.assignment import LaunchSettings
from tinyscale.orchestration.ray_internals import draining_nodes
from tinyscale.orchestration.stop import launch_stops, trial_stops
from tinyscale.results.leases import Lease
from tinyscale.results.provenance import machine_provenance
from tinyscale.results.schema import point_columns
from tinyscale.results.store import Results
from tinyscale.spec.costs import HEADROOM, smallest_share
from tinyscale.spec.state import OUT_OF_PATIENCE, State
from tinyscale.spec.trial import Trial
from tinyscale.training.device import peak_memory
from tinyscale.training.evaluate import rank_and_world
from tinyscale.training.loop import WEIGHTS
from tinyscale.training.progress import Outcome, Point

HEARTBEAT_SECONDS = 1.0  # between reports of progress
STOP_POLL_SECONDS = 0.25  # between looks at the stop flags
BYTES = {"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}  # units in torch's messages
TRACEBACK = "error.txt"  # in the folder of the weights


OURS = logging.getLogger("tinyscale")


class Warnings(logging.Handler):
    """Keeps what tinyscale warns of, for the user: nobody looks into the logs of Ray's processes."""

    def __init__(self, notes: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        self.notes.append(record.getMessage())


class NodeDrainedError(Exception):
    """The node is about to go; the trial has written a checkpoint, and Tune starts it again on another one."""


class Recorders:
    """Those of the trials that a process trains at the same time, most often one; they stop and fail together.

    As a context manager it writes `failed` rows, on an exception, for each trial that has not ended. In a process that
    trains alone the exception ends there: it would come again, and one that leaves a process makes Ray start a new one.
    Where the process has lost its GPU, every later trial in it would fail: there it leaves, and Ray starts a new one.
    Of a trial that another process has taken over nothing is written; Tune is told that it is elsewhere. Where the
    results take no more rows, the launcher is told why, and stops.
    """

    def __init__(self, each: Sequence[Recorder]) -> None:
        self.each, self.first = each, each[0]
        self.draining = self.behind = self.impatient = False
        self.reported = self.looked = time.monotonic()
        self.warnings = Warnings(self.first.notes)

    def __enter__(self) -> Recorders:
        OURS.addHandler(self.warnings)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        OURS.removeHandler(self.warnings)
        if isinstance(error, UnusableError) and self.first.world == 1:
            self.first.report({"refused": str(error)})
            return True
        if not isinstance(error, Exception) or isinstance(error, NodeDrainedError | ResultsError):
            return False  # Tune places the trial again; where rows cannot be written, none can say that it failed
        active = [recorder for recorder in self.each if not recorder.ended and not recorder.left()]
        for recorder in active:
            recorder.checkpoints.write(TRACEBACK, "".join(traceback.format_exception(error)).encode())
        if self.first.world > 1:
            return False  # the other workers wait for this one: let Ray end the group
        reason, would_do = _reason(error, [recorder.trial for recorder in self.each])
        if self.first.trial.config.resources.gpu and not lack_of_memory(error) and _has_lost_its_gpu():
            for recorder in active:
                recorder.write(State.FAILED, reason)
            return False
        for recorder in active:
            recorder.finish(Outcome(State.FAILED, reason, recorder.points, time.time() - recorder.began), would_do)
        return True

    def should_stop(self, step: int) -> bool:
        """Whether to write a checkpoint and stop; reports now and then how far the trials are."""
        now, first = time.monotonic(), self.first
        if first.is_out_of_patience:  # on each worker, and at the evaluation itself: it depends on no clock
            self.impatient = True
            return True
        if first.world == 1 and now - self.reported > HEARTBEAT_SECONDS:
            self.reported = now
            first.report({"state": State.RUNNING, "tokens": step * first.trial.config.train.batch_tokens})
        if first.rank or now - self.looked < STOP_POLL_SECONDS:
            return False
        self.looked = now
        for recorder in self.each:
            if not recorder.ended:
                recorder.lease.keep(step * first.trial.config.train.batch_tokens)
        self.draining = ray.get_runtime_context().get_node_id() in draining_nodes()
        if first.settings.halving:
            self.behind = trial_stops(first.trial.identity)
        return self.draining or self.behind or launch_stops(first.settings.sweep)

    def end(self, index: int, outcome: Outcome) -> None:
        """Record that a trial has ended; one that stopped because its node goes away has not."""
        recorder = self.each[index]
        if self.draining and outcome.state == State.RUNNING:
            return
        if self.behind and outcome.state == State.RUNNING:
            reached = recorder.points[-1].tokens
            reason = f"behind the others of its search at {reached:,} tokens"
            outcome = replace(outcome, state=State.STOPPED, reason=reason)
        if self.impatient and outcome.state == State.RUNNING:
            outcome = replace(outcome, state=State.STOPPED, reason=out_of_patience(recorder.settings.patience or 0))
        if outcome.state == State.FINISHED and not recorder.settings.keep_weights and recorder.rank == 0:
            recorder.checkpoints.delete(WEIGHTS)
        recorder.finish(outcome)


def out_of_patience(patience: int) -> str:
    """Why a trial was stopped by patience."""
    return f"{OUT_OF_PATIENCE}: no lower val_loss in {plural(patience, 'evaluation')}"


def _reason(error: Exception, trials: Sequence[Trial]) -> tuple[str, float | None]:
    """Why trials that were trained together failed, and the share of a GPU that would have done, if that is why."""
    if trials[0].config.resources.gpu and (lack := lack_of_memory(error)):
        return out_of_memory(trials, str(lack), *_device_memory())
    return "".join(traceback.format_exception_only(error)).strip(), None


def _has_lost_its_gpu() -> bool:
    """Whether this process can do nothing on its GPU any more: after some errors CUDA fails each call."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


class Recorder:
    """Writes a trial's rows as they come, and reports to Tune; it writes only while the process holds the lease."""

    def __init__(self, trial: Trial, settings: LaunchSettings, lease: Lease, began: float) -> None:
        self.trial, self.settings, self.lease, self.began = trial, settings, lease, began
        self.results = Results(settings.results, guard=lease.held)
        self.checkpoints = self.results.checkpoints(trial.identity)
        self.rank, self.world = rank_and_world()
        self.corpus: TokenizedCorpus | None = None
        self.points: list[Point] = []
        self.notes: list[str] = []  # for the user, with the next report
        self.ended = False

    @property
    def is_out_of_patience(self) -> bool:
        """Whether none of the last evaluations, as many as patience allows, had a lower loss than one before them.

        Those at the end of decay branches do not count: their rates are others.
        """
        patience = self.settings.patience
        losses = [point.val_loss for point in self.points if not point.decayed]
        if patience is None or len(losses) <= patience:
            return False
        return min(losses[-patience:]) >= min(losses[:-patience])

    def point(self, point: Point) -> None:
        """A point of the trial, as `train` reports it on each worker."""
        self.points.append(point)
        self.write(State.RUNNING, None)
        here = {"trial": self.trial.identity, "tokens": point.tokens, "val_loss": point.val_loss}
        self.report({"state": State.RUNNING, **here})

    def finish(self, outcome: Outcome, would_do: float | None = None) -> None:
        """Write how the trial ended, and report what the summary needs and which share of a GPU would have done."""
        self.write(outcome.state, outcome.reason)
        self.ended = True
        how: dict[str, Any] = {"trial": self.trial.identity, "state": outcome.state, "reason": outcome.reason}
        if self.points:
            how |= {"tokens": self.points[-1].tokens, "val_loss": self.points[-1].val_loss}
        seconds = outcome.seconds / (self.points[-1].fused if self.points else 1)
        timing = (os.getpid(), self.began, time.time(), seconds)  # one value: Tune keeps statistics of numbers
        self.report({**how, "timing": timing, "would_do": would_do})

    def left(self) -> bool:
        """Whether another process has taken the trial over; Tune is told so."""
        if self.rank or self.lease.is_ours:
            return False
        if self.world == 1:
            reason = "another launch took it over, because this one seemed dead"
            self.report({"trial": self.trial.identity, "state": State.ELSEWHERE, "reason": reason})
        return True

    def report(self, metrics: Mapping[str, Any]) -> None:
        """One worker's process is Tune's own; a group's workers must all report, and the first one's values count.

        metrics: what is true of `trial`, or, where none is named, of all that the process trains.
        """
        note = {"note": "\n".join(self.notes)} if self.notes else {}
        self.notes.clear()
        report = tune.report if self.world == 1 else ray_train.report
        report({**metrics, **note})

    def write(self, state: State, reason: str | None) -> None:
        """Write the trial's rows as they are by now."""
        if self.rank:
            return
        rows = []
        if self.corpus is not None:
            val = self.corpus.val_tokens, self.corpus.val_bytes
            rows = [point_columns(self.trial, asdict(point), *val) for point in self.points]
        provenance = {**self.settings.provenance, **machine_provenance()}
        if self.trial.config.resources.gpu:
            provenance |= device_provenance()
        self.results.write_trial(self.trial, rows, state, reason, provenance)


def device_provenance() -> dict[str, Any]:
    """The GPU that a trial ran on; empty where CUDA does not say."""
    try:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    except (RuntimeError, AssertionError):  # it has failed, or this torch is not built for it
        return {}
    there = {"device": properties.name, "device_bytes": properties.total_memory}
    return {**there, "cuda": torch.version.cuda, "driver": driver_version()}


def _device_memory() -> tuple[float, float]:
    """Most bytes of tensors that this process has held on its GPU, and the bytes that the GPU has; 0: not known."""
    try:
        device = torch.device("cuda", torch.cuda.current_device())
        return peak_memory(device) or 0.0, torch.cuda.get_device_properties(device).total_memory
    except RuntimeError:  # the process did not even get what it takes for itself
        return 0.0, gpu_bytes() or 0.0


def out_of_memory(trials: Sequence[Trial], message: str, peak: float, device_bytes: float) -> tuple[str, float | None]:
    """Why trials failed that ran out of their GPU's memory, and the share that would do by what is known now, if any.

    message: torch's, with what it could not allocate; peak: bytes that the trials, one or a fused group, held by then.
    Both, and the forecast, are less than they need in the end.
    """
    asked = re.search(r"Tried to allocate ([\d.]+) (\w+)", message)
    needed = peak + (float(asked[1]) * BYTES.get(asked[2], 1.0) if asked else 0.0)
    share, forecast = trials[0].config.resources.gpu, sum(trial.memory_bytes for trial in trials)
    would_do = smallest_share(HEADROOM * max(needed, forecast), device_bytes, above=share)
    would_do = would_do or (1.0 if share < 1 else None)
    remedy = f"{would_do:g} of it would have done" if would_do else "a whole one is too small: lower train.batch_tokens"
    have = f"out of memory on {share:g} of a GPU of {device_bytes / 2**30:.1f} GiB at a peak of {peak / 2**30:.2f} GiB"
    return f"{have}; {remedy} ({message.splitlines()[0]})", would_do
