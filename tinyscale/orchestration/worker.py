"""What runs where a trial is placed: one Tune trial, which runs a TorchTrainer, which runs our training loop.

A Tune trial is most often one of our trials; a fused group of them is one as well.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any

import ray
import torch
import torch._dynamo  # here, not by the first optimizer in the middle of a process's first trial
from ray import train as ray_train
from ray import tune
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from tinyscale.data import TokenizedCorpus, prepare
from tinyscale.errors import DataError, LaunchError, ResultsError
from tinyscale.orchestration.ray_internals import draining_nodes, read_flag
from tinyscale.results.leases import Lease
from tinyscale.results.provenance import machine_provenance
from tinyscale.results.store import Results, point_columns
from tinyscale.spec.costs import HEADROOM, smallest_share
from tinyscale.spec.state import State
from tinyscale.spec.trial import Trial
from tinyscale.training.batched import train_fused
from tinyscale.training.evaluate import rank_and_world
from tinyscale.training.loop import WEIGHTS, peak_memory
from tinyscale.training.progress import Outcome, Point

STOP_KEY = b"stop"
HEARTBEAT_SECONDS = 1.0  # between reports of progress
STOP_POLL_SECONDS = 0.25  # between looks at the stop flags
PATIENCE_SECONDS = 5.0  # for a trial's process that outlives a killed launcher by a moment
MAX_RESTARTS = 2  # of a trial whose process died; what raises would raise again
BYTES = {"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}  # units in torch's messages
TRACEBACK = "error.txt"  # beside the weights


@dataclass(frozen=True)
class Launch:
    """What the trials of one launch share."""

    name: str
    results: str
    provenance: Mapping[str, Any]
    keep_weights: bool
    ray_storage: str
    train: Callable[..., Outcome]
    halving: bool = False  # trials that are behind are stopped, each by a key of its own


class NodeDrainedError(Exception):
    """The node is about to go; the trial has written a checkpoint and asks Tune for another place."""


def stop_key(trial: str) -> bytes:
    """The key that stops one trial, as `STOP_KEY` stops all."""
    return STOP_KEY + b":" + trial.encode()


def placed(config: Mapping[str, Any]) -> dict[str, Any]:
    """What Tune knows of what it runs: `trial` (identity of its first trial), `name`, and `reserved`, its resources.

    It is one text, and nothing that Tune holds for a trial refers to the others: Tune copies and pickles all of that
    again and again for each trial, which thousands of trials would feel.
    """
    found: dict[str, Any] = json.loads(config["placed"])
    return found


def run_trial(config: Mapping[str, Any], groups: Mapping[str, bytes], launch: Launch) -> None:
    """The Tune function: claim the trials of a group, so that no two launches train them, and run their TorchTrainer.

    groups: what is trained together, by its first trial's identity, each pickled by itself, as Tune hands all of them
    to each anew. A trial that a search has drawn, a group of its own, travels with the config.
    """
    group = [config["drawn"]] if "drawn" in config else pickle.loads(groups[placed(config)["trial"]])
    began, results, claimed = time.time(), Results(launch.results), []
    with ExitStack() as leases:
        for trial in group:
            lease = Lease(results.leases, trial.identity)
            if not lease.claim(PATIENCE_SECONDS):
                _leave(trial, "another launch is training it")
                continue
            leases.callback(lease.release)
            if (state := results.state(trial.identity)) and state.is_kept:
                _leave(trial, "another launch has trained it")
                continue
            claimed.append((trial, lease))
        if claimed:
            _fit({"claimed": claimed, "launch": launch, "began": began})


def _leave(trial: Trial, reason: str) -> None:
    tune.report({"trial": trial.identity, "state": State.ELSEWHERE, "reason": reason})


def _fit(loop_config: dict[str, Any]) -> None:
    """One worker trains in this process (Ray Train's local mode); several form a worker group."""
    trial, launch = loop_config["claimed"][0][0], loop_config["launch"]
    resources = trial.config.resources
    if resources.workers == 1:
        alone = ray_train.ScalingConfig(num_workers=0)
        TorchTrainer(train_loop, train_loop_config=loop_config, scaling_config=alone).fit()
        return
    per_worker = {"CPU": resources.cpu} | ({"GPU": resources.gpu} if resources.gpu else {})
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=loop_config,
        torch_config=TorchConfig(backend="nccl" if resources.gpu else "gloo"),
        scaling_config=ray_train.ScalingConfig(
            num_workers=resources.workers, use_gpu=bool(resources.gpu), resources_per_worker=per_worker
        ),
        run_config=ray_train.RunConfig(
            name=f"{launch.name}-{trial.identity}",
            storage_path=launch.ray_storage,
            callbacks=[TuneReportCallback()],
            failure_config=ray_train.FailureConfig(max_failures=MAX_RESTARTS, controller_failure_limit=3),
        ),
    )
    trainer.fit()


def train_loop(config: Mapping[str, Any]) -> None:
    """Train one trial, or one worker's part of it, or a fused group; record the rows and how each trial ended."""
    launch, began = config["launch"], config["began"]
    with Recorders([Recorder(trial, launch, lease, began) for trial, lease in config["claimed"]]) as recorders:
        first = recorders.first.trial
        corpus = prepare(first.config.data)
        if corpus.facts != first.facts:
            raise DataError(f"the text of {first.config.data.corpus} is another here than at planning; plan again")
        for recorder in recorders.each:
            recorder.corpus = corpus
        if len(recorders.each) == 1:
            recorder, stop = recorders.first, recorders.should_stop
            outcome = launch.train(first, corpus, recorder.point, checkpoints=recorder.checkpoints, should_stop=stop)
            recorders.end(0, outcome)
        else:
            train_fused(
                [recorder.trial for recorder in recorders.each],
                corpus,
                lambda place, point: recorders.each[place].point(point),
                recorders.end,
                checkpoints=[recorder.checkpoints for recorder in recorders.each],
                should_stop=recorders.should_stop,
            )
        if recorders.draining:
            raise NodeDrainedError(f"node {ray.get_runtime_context().get_node_id()} is going away")


class Recorders:
    """Those of the trials that a process trains at the same time, most often one; they stop and fail together.

    As a context it turns an exception into `failed` rows of those that have not ended. In a process that trains alone
    it ends there: the same exception would come again, and an exception that leaves a process costs Ray a new one.
    """

    def __init__(self, each: Sequence[Recorder]) -> None:
        self.each, self.first = each, each[0]
        self.draining = self.behind = False
        self.told = self.looked = time.monotonic()

    def __enter__(self) -> Recorders:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception) or isinstance(error, NodeDrainedError | ResultsError):
            return False  # Tune places the trial again; where rows cannot be written, none can say that it failed
        going = [recorder for recorder in self.each if not recorder.ended]
        for recorder in going:
            recorder.checkpoints.write(TRACEBACK, "".join(traceback.format_exception(error)).encode())
        if self.first.world > 1:
            return False  # the other workers wait for this one: let Ray end the group
        reason, would_do = _reason(error, [recorder.trial for recorder in self.each])
        for recorder in going:
            recorder.finish(Outcome(State.FAILED, reason, recorder.points, time.time() - recorder.began), would_do)
        return True

    def should_stop(self, step: int) -> bool:
        """Whether to write a checkpoint and stop; on the way, tells the launcher how far the trials are."""
        now, first = time.monotonic(), self.first
        if first.world == 1 and now - self.told > HEARTBEAT_SECONDS:
            self.told = now
            first.tell({"state": State.RUNNING, "tokens": step * first.trial.config.train.batch_tokens})
        if first.rank or now - self.looked < STOP_POLL_SECONDS:
            return False
        self.looked = now
        if not all(recorder.lease.keep() for recorder in self.each):
            raise LaunchError("another launch took this trial over, because this one seemed dead; it goes on there")
        self.draining = ray.get_runtime_context().get_node_id() in draining_nodes()
        if first.launch.halving:
            self.behind = read_flag(stop_key(first.trial.identity)) is not None
        stop = read_flag(STOP_KEY) == first.launch.name.encode()
        return self.draining or self.behind or stop

    def end(self, place: int, outcome: Outcome) -> None:
        """A trial has ended; one that stopped because its node goes away has not."""
        recorder = self.each[place]
        if self.draining and outcome.state == State.RUNNING:
            return
        if self.behind and outcome.state == State.RUNNING:
            reached = recorder.points[-1].tokens
            outcome = replace(
                outcome, state=State.STOPPED, reason=f"behind the others of its search at {reached:,} tokens"
            )
        if outcome.state == State.FINISHED and not recorder.launch.keep_weights and recorder.rank == 0:
            recorder.checkpoints.delete(WEIGHTS)
        recorder.finish(outcome)


def _reason(error: Exception, trials: Sequence[Trial]) -> tuple[str, float | None]:
    """Why trials that were trained together failed, and the share of a GPU that would have done, if that is why."""
    if isinstance(error, torch.OutOfMemoryError):
        return out_of_memory(trials, str(error), *_device_memory())
    return "".join(traceback.format_exception_only(error)).strip(), None


class Recorder:
    """Writes a trial's rows as they come, and tells Tune."""

    def __init__(self, trial: Trial, launch: Launch, lease: Lease, began: float) -> None:
        self.trial, self.launch, self.lease, self.began = trial, launch, lease, began
        self.results = Results(launch.results)
        self.checkpoints = self.results.checkpoints(trial.identity)
        self.rank, self.world = rank_and_world()
        self.corpus: TokenizedCorpus | None = None
        self.points: list[Point] = []
        self.ended = False

    def point(self, point: Point) -> None:
        """A point of the trial, as `train` reports it on each worker."""
        self.points.append(point)
        self._write(State.RUNNING, None)
        here = {"trial": self.trial.identity, "tokens": point.tokens, "val_loss": point.val_loss}
        self.tell({"state": State.RUNNING, **here})

    def finish(self, outcome: Outcome, would_do: float | None = None) -> None:
        """Write how the trial ended, and tell Tune what the summary needs, and which share of a GPU would have done."""
        self._write(outcome.state, outcome.reason)
        self.ended = True
        how: dict[str, Any] = {"trial": self.trial.identity, "state": outcome.state, "reason": outcome.reason}
        if self.points:
            how |= {"tokens": self.points[-1].tokens, "val_loss": self.points[-1].val_loss}
        seconds = outcome.seconds / (self.points[-1].fused if self.points else 1)
        timing = (os.getpid(), self.began, time.time(), seconds)  # one value: Tune keeps statistics of numbers
        self.tell({**how, "timing": timing, "would_do": would_do})

    def tell(self, metrics: Mapping[str, Any]) -> None:
        """One worker's process is Tune's own; a group's workers must all report, and the first one's values count.

        metrics: what is true of `trial`, or, where none is named, of all that the process trains.
        """
        if self.world == 1:
            tune.report(dict(metrics))
        else:
            ray_train.report(dict(metrics))

    def _write(self, state: State, reason: str | None) -> None:
        if self.rank:
            return
        rows = []
        if self.corpus is not None:
            val = self.corpus.val_tokens, self.corpus.val_bytes
            rows = [point_columns(self.trial, asdict(point), *val) for point in self.points]
        self.results.write_trial(self.trial, rows, state, reason, {**self.launch.provenance, **machine_provenance()})


def _device_memory() -> tuple[float, float]:
    """Most bytes of tensors that this process has held on its GPU, and the bytes that the GPU has."""
    device = torch.device("cuda", torch.cuda.current_device())
    return peak_memory(device), torch.cuda.get_device_properties(device).total_memory


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
