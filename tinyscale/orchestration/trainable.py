"""What runs where a trial is placed: one Tune trial, which runs a TorchTrainer, which runs our training loop."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch._dynamo  # here, not by the first optimizer in the middle of a process's first trial
from ray import train as ray_train
from ray import tune
from ray.experimental.internal_kv import _internal_kv_get
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from tinyscale.data import TokenizedCorpus, prepare
from tinyscale.errors import DataError, TinyscaleError
from tinyscale.provenance import machine_provenance
from tinyscale.results import Results, point_columns
from tinyscale.train import WEIGHTS, Outcome, Point, peak_memory, rank_and_world, train
from tinyscale.trial import Trial

STOP_KEY, NAMESPACE = b"stop", b"tinyscale"
HEARTBEAT_SECONDS = 1.0  # between reports of progress
STOP_POLL_SECONDS = 0.25  # a look at the stop flag costs about a millisecond


@dataclass(frozen=True)
class Launch:
    """What the trials of one launch share."""

    name: str
    results: str
    provenance: Mapping[str, Any]
    keep_weights: bool
    ray_storage: str


def run_trial(config: Mapping[str, str], trials: Mapping[str, Trial], launch: Launch) -> None:
    """The Tune function. One worker trains in this process (Ray Train's local mode); several form a worker group."""
    trial, began = trials[config["trial"]], time.time()
    resources = trial.config.resources
    loop_config = {"trial": trial, "launch": launch, "began": began}
    if resources.workers == 1:
        TorchTrainer(
            train_loop, train_loop_config=loop_config, scaling_config=ray_train.ScalingConfig(num_workers=0)
        ).fit()
        return
    per_worker = {"CPU": resources.cpu} | ({"GPU": resources.gpu} if resources.gpu else {})
    TorchTrainer(
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
            failure_config=ray_train.FailureConfig(controller_failure_limit=3),
        ),
    ).fit()


def train_loop(config: Mapping[str, Any]) -> None:
    """Train one trial, or one worker's part of it; write its rows; end normally also when it failed in a known way."""
    trial, launch = config["trial"], config["launch"]
    recorder = Recorder(trial, launch, config["began"])
    try:
        corpus = prepare(trial.config.data)
        if corpus.corpus_hash != trial.corpus_hash or corpus.tokenizer_hash != trial.tokenizer_hash:
            raise DataError(f"the text of {trial.config.data.corpus} is another here than at planning; plan again")
        recorder.corpus = corpus
        checkpoints = recorder.results.checkpoints(trial.identity)
        outcome = train(trial, corpus, recorder.point, checkpoints=checkpoints, should_stop=recorder.should_stop)
    except torch.OutOfMemoryError as error:
        peak = peak_memory(torch.device("cuda", torch.cuda.current_device())) / 2**30
        reason = f"out of GPU memory at a peak of {peak:.2f} GiB: {str(error).splitlines()[0]}"
        outcome = Outcome("failed", reason, recorder.points, time.time() - config["began"])
    except TinyscaleError as error:
        outcome = Outcome("failed", str(error), recorder.points, time.time() - config["began"])
    if outcome.state == "finished" and not launch.keep_weights and recorder.rank == 0:
        checkpoints.delete(WEIGHTS)
    recorder.finish(outcome)


class Recorder:
    """Writes a trial's rows as they come, tells Tune, and looks for the launcher's wish to stop."""

    def __init__(self, trial: Trial, launch: Launch, began: float) -> None:
        self.trial, self.launch, self.began = trial, launch, began
        self.results = Results(launch.results)
        self.rank, self.world = rank_and_world()
        self.corpus: TokenizedCorpus | None = None
        self.points: list[Point] = []
        self.told = self.looked = time.monotonic()

    def point(self, point: Point) -> None:
        """A point of the trial, as `train` reports it on each worker."""
        self.points.append(point)
        self._write("running", None)
        self._tell({"state": "running", "tokens": point.tokens, "val_loss": point.val_loss})

    def should_stop(self, step: int) -> bool:
        """Whether the launcher asked to stop; on the way, tells it how far the trial is."""
        now = time.monotonic()
        if self.world == 1 and now - self.told > HEARTBEAT_SECONDS:
            self._tell({"state": "running", "tokens": step * self.trial.config.train.batch_tokens})
        if self.rank or now - self.looked < STOP_POLL_SECONDS:
            return False
        self.looked = now
        return bool(_internal_kv_get(STOP_KEY, namespace=NAMESPACE) == self.launch.name.encode())

    def finish(self, outcome: Outcome) -> None:
        """Write how the trial ended, and tell Tune what the summary needs."""
        self._write(outcome.state, outcome.reason)
        ended = {
            "state": outcome.state,
            "reason": outcome.reason,
            "tokens": self.points[-1].tokens if self.points else 0,
        }
        timing = {"train_seconds": outcome.seconds, "began": self.began, "ended": time.time(), "process": os.getpid()}
        self._tell({**ended, **timing})

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
