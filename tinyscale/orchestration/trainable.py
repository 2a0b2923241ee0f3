"""What runs where a trial is placed: one Tune trial, which runs a TorchTrainer, which runs our training loop."""

from __future__ import annotations

import json
import os
import pickle
import re
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any

import ray
import torch
import torch._dynamo  # here, not by the first optimizer in the middle of a process's first trial
from ray import train as ray_train
from ray import tune
from ray._private.state import state as ray_state
from ray.experimental.internal_kv import _internal_kv_get
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from tinyscale.costs import HEADROOM, smallest_share
from tinyscale.data import TokenizedCorpus, prepare
from tinyscale.errors import DataError, LaunchError, ResultsError
from tinyscale.evaluate import rank_and_world
from tinyscale.leases import Lease
from tinyscale.progress import Outcome, Point
from tinyscale.provenance import machine_provenance
from tinyscale.results import KEPT_STATES, STOPPED, Results, point_columns
from tinyscale.train import WEIGHTS, peak_memory
from tinyscale.trial import Trial

STOP_KEY, NAMESPACE = b"stop", b"tinyscale"
HEARTBEAT_SECONDS = 1.0  # between reports of progress
STOP_POLL_SECONDS = 0.25  # a look at the stop flag costs about a millisecond
PATIENCE_SECONDS = 5.0  # for a trial's process that outlives a killed launcher by a moment
MAX_RESTARTS = 2  # of a trial whose process died; what raises would raise again
BYTES = {"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}  # units in torch's messages
TRACEBACK = "error.txt"  # beside the weights
ELSEWHERE = "elsewhere"  # told to Tune only: another launch has trained the trial, or is at it


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
    """What Tune knows of a trial: `trial` (its identity), `name`, and `reserved`, its resources.

    It is one text, and nothing that Tune holds for a trial refers to the others: Tune copies and pickles all of that
    again and again for each trial, which thousands of trials would feel.
    """
    found: dict[str, Any] = json.loads(config["placed"])
    return found


def run_trial(config: Mapping[str, Any], trials: Mapping[str, bytes], launch: Launch) -> None:
    """The Tune function: claim the trial, then run its TorchTrainer, so that no two launches train it.

    trials: the launch's, each pickled by itself, as Tune hands all of them to each trial anew. A trial that a search
    has drawn travels with the config.
    """
    trial, began = config.get("drawn") or pickle.loads(trials[placed(config)["trial"]]), time.time()
    results = Results(launch.results)
    lease = Lease(results.folder / "leases", trial.identity)
    if not lease.claim(PATIENCE_SECONDS):
        tune.report({"state": ELSEWHERE, "reason": "another launch is training it"})
        return
    try:
        if results.state(trial.identity) in KEPT_STATES:
            tune.report({"state": ELSEWHERE, "reason": "another launch has trained it"})
            return
        _fit({"trial": trial, "launch": launch, "lease": lease, "began": began})
    finally:
        lease.release()


def _fit(loop_config: dict[str, Any]) -> None:
    """One worker trains in this process (Ray Train's local mode); several form a worker group."""
    trial, launch = loop_config["trial"], loop_config["launch"]
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
    """Train one trial, or one worker's part of it, and record its rows and how it ended."""
    with Recorder(config["trial"], config["launch"], config["lease"], config["began"]) as recorder:
        trial = recorder.trial
        corpus = prepare(trial.config.data)
        if corpus.corpus_hash != trial.corpus_hash or corpus.tokenizer_hash != trial.tokenizer_hash:
            raise DataError(f"the text of {trial.config.data.corpus} is another here than at planning; plan again")
        recorder.corpus = corpus
        checkpoints = recorder.results.checkpoints(trial.identity)
        outcome = recorder.launch.train(
            trial, corpus, recorder.point, checkpoints=checkpoints, should_stop=recorder.should_stop
        )
        if recorder.draining:
            raise NodeDrainedError(f"node {ray.get_runtime_context().get_node_id()} is going away")
        if recorder.behind and outcome.state == "running":
            reached = recorder.points[-1].tokens
            outcome = replace(outcome, state=STOPPED, reason=f"behind the others of its search at {reached:,} tokens")
        if outcome.state == "finished" and not config["launch"].keep_weights and recorder.rank == 0:
            checkpoints.delete(WEIGHTS)
        recorder.finish(outcome)


class Recorder:
    """Writes a trial's rows as they come, tells Tune, and looks for reasons to stop.

    As a context it turns an exception into the trial's `failed` row. In a process that trains alone it ends there:
    the same exception would come again, and an exception that leaves a process costs Ray a new one.
    """

    def __init__(self, trial: Trial, launch: Launch, lease: Lease, began: float) -> None:
        self.trial, self.launch, self.lease, self.began = trial, launch, lease, began
        self.results = Results(launch.results)
        self.rank, self.world = rank_and_world()
        self.corpus: TokenizedCorpus | None = None
        self.points: list[Point] = []
        self.draining = self.behind = False
        self.told = self.looked = time.monotonic()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception) or isinstance(error, NodeDrainedError | ResultsError):
            return False  # Tune places the trial again; where rows cannot be written, none can say that it failed
        would_do = None
        if isinstance(error, torch.OutOfMemoryError):
            reason, would_do = out_of_memory(self.trial, str(error), *_device_memory())
        else:
            reason = "".join(traceback.format_exception_only(error)).strip()
        self.results.checkpoints(self.trial.identity).write(
            TRACEBACK, "".join(traceback.format_exception(error)).encode()
        )
        if self.world > 1:
            return False  # the other workers wait for this one: let Ray end the group
        self.finish(Outcome("failed", reason, self.points, time.time() - self.began), would_do)
        return True

    def point(self, point: Point) -> None:
        """A point of the trial, as `train` reports it on each worker."""
        self.points.append(point)
        self._write("running", None)
        self._tell({"state": "running", "tokens": point.tokens, "val_loss": point.val_loss})

    def should_stop(self, step: int) -> bool:
        """Whether to write a checkpoint and stop; on the way, tells the launcher how far the trial is."""
        now = time.monotonic()
        if self.world == 1 and now - self.told > HEARTBEAT_SECONDS:
            self._tell({"state": "running", "tokens": step * self.trial.config.train.batch_tokens})
        if self.rank or now - self.looked < STOP_POLL_SECONDS:
            return False
        self.looked = now
        if not self.lease.keep():
            raise LaunchError("another launch took this trial over, because this one seemed dead; it goes on there")
        self.draining = ray.get_runtime_context().get_node_id() in ray_state.get_draining_nodes()
        if self.launch.halving:
            self.behind = _internal_kv_get(stop_key(self.trial.identity), namespace=NAMESPACE) is not None
        return (
            self.draining or self.behind or _internal_kv_get(STOP_KEY, namespace=NAMESPACE) == self.launch.name.encode()
        )

    def finish(self, outcome: Outcome, would_do: float | None = None) -> None:
        """Write how the trial ended, and tell Tune what the summary needs, and which share of a GPU would have done."""
        self._write(outcome.state, outcome.reason)
        ended: dict[str, Any] = {"state": outcome.state, "reason": outcome.reason}
        if self.points:
            ended |= {"tokens": self.points[-1].tokens, "val_loss": self.points[-1].val_loss}
        timing = (os.getpid(), self.began, time.time(), outcome.seconds)  # one value: Tune keeps statistics of numbers
        self._tell({**ended, "timing": timing, "would_do": would_do})

    def _tell(self, metrics: Mapping[str, Any]) -> None:
        """One worker's process is Tune's own; a group's workers must all report, and the first one's values count."""
        self.told = time.monotonic()
        if self.world == 1:
            tune.report(dict(metrics))
        else:
            ray_train.report(dict(metrics))

    def _write(self, state: str, reason: str | None) -> None:
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


def out_of_memory(trial: Trial, message: str, peak: float, device_bytes: float) -> tuple[str, float | None]:
    """Why a trial failed that ran out of its GPU's memory, and the share that would do by what is known now, if any.

    message: torch's, with what it could not allocate; peak: bytes that the trial held by then. Both, and the forecast,
    are less than the trial needs in the end.
    """
    asked = re.search(r"Tried to allocate ([\d.]+) (\w+)", message)
    needed = peak + (float(asked[1]) * BYTES.get(asked[2], 1.0) if asked else 0.0)
    share = trial.config.resources.gpu
    would_do = smallest_share(HEADROOM * max(needed, trial.memory_bytes), device_bytes, above=share)
    would_do = would_do or (1.0 if share < 1 else None)
    remedy = f"{would_do:g} of it would have done" if would_do else "a whole one is too small: lower train.batch_tokens"
    have = f"out of memory on {share:g} of a GPU of {device_bytes / 2**30:.1f} GiB at a peak of {peak / 2**30:.2f} GiB"
    return f"{have}; {remedy} ({message.splitlines()[0]})", would_do
