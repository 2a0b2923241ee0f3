"""Train one trial in plain PyTorch: no Ray, no files but a checkpoint folder, losses handed to `report`.

The same trial gives the same numbers bit for bit on a CPU with the same thread count, also when it was interrupted
and goes on from its checkpoint: initialisation depends on the seed alone, a batch on (seed, step) alone.
"""

from __future__ import annotations

import io
import math
import resource
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tinyscale.data import TokenizedCorpus
from tinyscale.data.batches import TrainBatches, val_windows
from tinyscale.model import GPT
from tinyscale.optim import build_optimizer, lr_at
from tinyscale.storage import Folder
from tinyscale.trial import Trial

CHECKPOINT_SECONDS = 60.0  # most work that a killed process loses
EVAL_TOKENS = 16384  # tokens of one forward pass in evaluation; the loss does not depend on it
STRETCH_TOKENS = 2048  # of a validation text in one piece, taken as independent for the standard error
RESUME, WEIGHTS = "resume.pt", "weights.pt"


@dataclass(frozen=True)
class Point:
    """One evaluation inside a trial; the names are columns of the results."""

    step: int
    tokens: int
    decayed: bool
    lr_now: float
    train_loss: float  # nats per token, mean since the point before
    val_loss: float  # nats per token
    val_loss_se: float
    wall_seconds: float
    tokens_per_second: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Outcome:
    """How training ended: `finished`; `diverged` with a reason; or still `running`, when it was asked to stop."""

    state: str
    reason: str | None
    points: list[Point]
    seconds: float  # of training, evaluation included


@dataclass
class Progress:
    """What must survive an interruption beside weights and optimizer state."""

    step: int = 0
    seconds: float = 0.0
    points: list[Point] = field(default_factory=list)
    loss_sum: float = 0.0  # over the steps since the last point
    steps_timed: int = 0
    seconds_timed: float = 0.0

    def state(self) -> dict[str, Any]:
        """Plain values, as a checkpoint holds them."""
        return asdict(self)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Progress:
        """The inverse of `state`."""
        return cls(**{**state, "points": [Point(**point) for point in state["points"]]})


def eval_steps(steps: int, eval_points: int) -> set[int]:
    """Steps after which to evaluate: the last, and back from it by halves, eval_points in all where they differ."""
    return {max(1, round(steps / 2**k)) for k in range(eval_points)}


def prepare_process(trial: Trial) -> torch.device:
    """Set what a process shares between trials (threads, seed, GPU memory), so that none leaks into the next."""
    resources = trial.config.resources
    torch.set_num_threads(resources.cpu)
    torch.manual_seed(trial.config.seed)
    if not resources.gpu:
        return torch.device("cpu")
    device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, resources.gpu), device)
    return device


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of workers that share the trial."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class Evaluation:
    """The fixed validation set in windows of the trial's context; each target is scored once, whatever the context."""

    def __init__(self, corpus: TokenizedCorpus, context_length: int, device: torch.device) -> None:
        stream, documents = corpus.val()
        self.inputs, self.targets, documents_of = val_windows(stream, documents, context_length, corpus.eot)
        if corpus.val_documents == 1:  # one long text: stretches of it stand in for documents
            stretch = torch.arange(len(self.inputs)) // max(1, STRETCH_TOKENS // context_length)
            documents_of = stretch[:, None].expand_as(self.inputs)
        self.documents = documents_of.clamp(min=0)  # what is after the end belongs to none, and is not scored
        self.rows = max(1, EVAL_TOKENS // context_length)
        self.device = device

    @torch.inference_mode()
    def loss(self, model: nn.Module, autocast: AbstractContextManager[Any]) -> tuple[float, float]:
        """Mean loss in nats per token, and its standard error over documents. Workers share the windows."""
        rank, world = rank_and_world()
        clusters = int(self.documents.max()) + 1
        sums = torch.zeros(2, clusters, dtype=torch.float64, device=self.device)  # nats, scored tokens; by document
        for start in range(rank * self.rows, len(self.inputs), world * self.rows):
            rows = slice(start, start + self.rows)
            targets = self.targets[rows].to(self.device).flatten()
            with autocast:
                logits = model(self.inputs[rows].to(self.device))[0]
            nats = F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=-100, reduction="none")
            values = torch.stack([nats.double(), (targets != -100).double()])
            sums.index_add_(1, self.documents[rows].to(self.device).flatten(), values)
        if world > 1:
            dist.all_reduce(sums)
        nats_by_document, tokens = sums.cpu().numpy()
        return clustered_mean(nats_by_document, tokens)


def clustered_mean(totals: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Mean per count and its standard error, from totals and counts by cluster (ratio estimator; Cochran 1977, 6.4)."""
    mean = totals.sum() / counts.sum()
    clusters = int((counts > 0).sum())
    if clusters < 2:
        return float(mean), math.nan
    spread = np.square(totals - mean * counts).sum() * clusters / (clusters - 1)
    return float(mean), float(math.sqrt(spread) / counts.sum())


class Run:
    """The moving parts of one trial: model, optimizer, batches, evaluation, and how far they have come."""

    def __init__(self, trial: Trial, corpus: TokenizedCorpus, checkpoints: Folder | None) -> None:
        self.trial, self.train, self.checkpoints = trial, trial.config.train, checkpoints
        self.device = prepare_process(trial)
        self.rank, self.world = rank_and_world()
        self.gpt = GPT(trial.config.model, trial.vocab_size).to(self.device)
        self.model = DistributedDataParallel(self.gpt) if self.world > 1 else self.gpt
        self.optimizer = build_optimizer(self.gpt, self.train)
        context = trial.config.model.context_length
        rows = self.train.batch_tokens // context
        unique = trial.config.data.unique_tokens
        self.batches = TrainBatches(corpus.train(), context, rows, trial.config.seed, unique_tokens=unique)
        self.evaluation = Evaluation(corpus, context, self.device)
        self.progress = Progress()
        if checkpoints is not None and checkpoints.exists(RESUME):
            self._resume(checkpoints.read(RESUME))
        self.started = time.monotonic() - self.progress.seconds
        self.saved = time.monotonic()

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 matrix products where asked for."""
        if self.train.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def update(self) -> None:
        """One optimizer step on the batch of this step."""
        begun = time.monotonic()
        step = self.progress.step
        inputs, targets = self.batches.batch(step, self.rank, self.world)
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(step, self.trial.steps, self.train)
        with self.autocast():
            loss = self.model(inputs.to(self.device), targets.to(self.device))[1]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.train.grad_clip:
            nn.utils.clip_grad_norm_(self.gpt.parameters(), self.train.grad_clip)
        self.optimizer.step()
        self.progress.step += 1
        self.progress.loss_sum += self._over_workers(loss.detach().double())
        self.progress.steps_timed += 1
        self.progress.seconds_timed += time.monotonic() - begun

    def _over_workers(self, value: Tensor) -> float:
        """A value's mean over the workers."""
        if self.world > 1:
            dist.all_reduce(value)
        return float(value) / self.world

    def any_worker(self, flag: bool) -> bool:
        """Whether the flag is set on one of the workers: they must all turn the same way."""
        if self.world == 1:
            return flag
        return self._over_workers(torch.tensor(float(flag), dtype=torch.float64, device=self.device)) > 0

    def evaluate(self) -> Point:
        """Score the validation set and close the stretch of training since the point before."""
        loss, error = self.evaluation.loss(self.gpt, self.autocast())
        progress, step = self.progress, self.progress.step
        progress.seconds = time.monotonic() - self.started
        timed = max(progress.seconds_timed, 1e-9)
        point = Point(
            step=step,
            tokens=step * self.train.batch_tokens,
            decayed=step == self.trial.steps,
            lr_now=lr_at(step - 1, self.trial.steps, self.train),
            train_loss=progress.loss_sum / progress.steps_timed,
            val_loss=loss,
            val_loss_se=error,
            wall_seconds=progress.seconds,
            tokens_per_second=progress.steps_timed * self.train.batch_tokens / timed,
            peak_memory_bytes=peak_memory(self.device),
        )
        progress.points.append(point)
        progress.loss_sum, progress.steps_timed, progress.seconds_timed = 0.0, 0, 0.0
        return point

    def save(self) -> None:
        """Write all that a resumed process needs; the batch order needs nothing."""
        self.saved = time.monotonic()
        if self.checkpoints is None or self.rank:
            return
        self.progress.seconds = time.monotonic() - self.started
        state = {
            "model": self.gpt.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": self.progress.state(),
        }
        self.checkpoints.write(RESUME, _serialise(state))

    def _resume(self, content: bytes) -> None:
        state = torch.load(io.BytesIO(content), map_location=self.device, weights_only=True)
        self.gpt.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress.of(state["progress"])

    def close(self) -> None:
        """Keep the final weights; the way there is no longer needed."""
        if self.checkpoints is not None and not self.rank:
            self.checkpoints.write(WEIGHTS, _serialise(self.gpt.state_dict()))
            self.checkpoints.delete(RESUME)


def _serialise(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def peak_memory(device: torch.device) -> int:
    """Most bytes that the process (CPU) or its share of the device (GPU) has held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def train(
    trial: Trial,
    corpus: TokenizedCorpus,
    report: Callable[[Point], None],
    *,
    checkpoints: Folder | None = None,
    should_stop: Callable[[int], bool] = lambda _: False,
) -> Outcome:
    """Train a trial to its end, or until `should_stop(step)` says so.

    report is called with each point, on every worker. checkpoints is where an interrupted trial goes on from, and
    where the final weights are left. A loss that is no longer finite ends the trial as diverged.
    """
    run = Run(trial, corpus, checkpoints)
    evaluate_after = eval_steps(trial.steps, trial.config.train.eval_points)
    for point in run.progress.points:
        report(point)
    while run.progress.step < trial.steps:
        run.update()
        step = run.progress.step
        if not math.isfinite(run.progress.loss_sum):
            return _diverged(run, f"training loss not finite at step {step} of {trial.steps}")
        if step in evaluate_after:
            point = run.evaluate()
            if not math.isfinite(point.val_loss):
                return _diverged(run, f"validation loss not finite after step {step} of {trial.steps}")
            report(point)
        if step < trial.steps and run.any_worker(should_stop(step)):
            run.save()
            return Outcome("running", "stopped on request", run.progress.points, run.progress.seconds)
        if run.any_worker(time.monotonic() - run.saved > CHECKPOINT_SECONDS):
            run.save()
    run.close()
    return Outcome("finished", None, run.progress.points, run.progress.seconds)


def _diverged(run: Run, reason: str) -> Outcome:
    if run.checkpoints is not None and not run.rank:
        run.checkpoints.delete(RESUME)
    finite = [point for point in run.progress.points if math.isfinite(point.val_loss)]
    return Outcome("diverged", reason, finite, time.monotonic() - run.started)
