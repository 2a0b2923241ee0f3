"""Train one trial in plain PyTorch: no Ray, no files but a checkpoint folder, losses handed to `report`.

The same trial gives the same numbers bit for bit on a CPU with the same thread count, also when it was interrupted
and goes on from its checkpoint: initialisation depends on the seed alone, a batch on (seed, step) alone.
"""

from __future__ import annotations

import copy
import ctypes
import io
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tinyscale.data import TokenizedCorpus
from tinyscale.machine import cache_folder
from tinyscale.spec.costs import decay_steps, share_bytes
from tinyscale.spec.state import State
from tinyscale.spec.trial import Trial
from tinyscale.storage import Folder
from tinyscale.training.batches import TrainBatches
from tinyscale.training.evaluate import Evaluation, rank_and_world, token_losses
from tinyscale.training.model import GPT, width_scale
from tinyscale.training.optim import build_optimizer, lr_at
from tinyscale.training.progress import Outcome, Point, Progress

CHECKPOINT_SECONDS = 60.0  # most work that a killed process loses
LOSSES_AT_ONCE = {"cpu": 1, "cuda": 16}  # steps whose losses are read together: on a GPU, to read one is to wait for it
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
RESUME, WEIGHTS = "resume.pt", "weights.pt"
MMAP_MAX, TRIM_THRESHOLD, TOP_PAD = -4, -1, -2  # of glibc's malloc.h


def eval_steps(steps: int, eval_points: int) -> set[int]:
    """Steps after which to evaluate: the last, and back from it by halves, eval_points in all where they differ."""
    return {max(1, round(steps / 2**k)) for k in range(eval_points)}


def keep_freed_memory() -> None:
    """Let glibc reuse what a step frees for the next one; by default it gives large pieces back and asks again."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 64 << 20)):
            libc.mallopt(option, value)


def prepare_process(trial: Trial) -> torch.device:
    """Set what a process shares between trials (threads, seed, GPU memory), so that none leaks into the next."""
    resources = trial.config.resources
    keep_freed_memory()
    torch.set_num_threads(resources.cpu)
    torch.manual_seed(trial.config.seed)
    if resources.compile:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
        torch._dynamo.reset()  # else it counts the trials before as recompilations of this one, and gives up
    if not resources.gpu:
        return torch.device("cpu")
    device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    total = torch.cuda.get_device_properties(device).total_memory
    most = share_bytes(resources.gpu, total) if resources.gpu < 1 else total
    torch.cuda.set_per_process_memory_fraction(most / total, device)
    return device


class Run:
    """The moving parts of one trial: model, optimizer, batches, evaluation, and how far they have come."""

    def __init__(self, trial: Trial, corpus: TokenizedCorpus, checkpoints: Folder | None) -> None:
        self.trial, self.train, self.checkpoints = trial, trial.config.train, checkpoints
        self.device = prepare_process(trial)
        self.rank, self.world = rank_and_world()
        self.gpt = GPT(trial.config.model, trial.vocab_size).to(self.device)
        model = DistributedDataParallel(self.gpt) if self.world > 1 else self.gpt
        self.loss: Callable[[Tensor, Tensor], Tensor] = self.compiled(lambda inputs, targets: model(inputs, targets)[1])
        self.nats = self.compiled(token_losses(self.gpt))
        self.optimizer = build_optimizer(self.gpt, self.train, width_scale(trial.config.model))
        self.scaler: Any = torch.amp.GradScaler(self.device.type, enabled=self.train.precision == "fp16")
        context = trial.config.model.context_length
        rows = self.train.batch_tokens // context
        unique = trial.config.data.unique_tokens
        self.batches = TrainBatches(corpus.train(), context, rows, trial.config.seed, unique_tokens=unique)
        self.evaluation = Evaluation(corpus, context, self.device)
        self.entropy_rate = corpus.entropy_rate
        self.progress = Progress()
        self.losses: list[Tensor] = []  # of the last steps, not read yet
        self.losses_at_once = LOSSES_AT_ONCE[self.device.type]
        self.fused = 1  # trials that share each step
        self.due = eval_steps(trial.steps, self.train.eval_points)  # on the trunk
        self.trunk: dict[str, Any] | None = None  # what a decay branch goes back to; None on the trunk itself
        if checkpoints is not None and checkpoints.exists(RESUME):
            self._resume(checkpoints.read(RESUME))
        self.started = time.monotonic() - self.progress.seconds
        self.saved = time.monotonic()

    @property
    def end(self) -> int:
        """Steps of the whole trial, or of the one that the present branch stands for."""
        return self.trial.steps if self.trunk is None else self.trial.branch_ends[self.progress.branches]

    def branch_off(self) -> None:
        """Remember the trunk where the next branch's decay begins."""
        ends, progress = self.trial.branch_ends, self.progress
        if self.trunk is not None or progress.branches == len(ends):
            return
        end = ends[progress.branches]
        if progress.step == end - decay_steps(end, self.train):
            self.trunk = copy.deepcopy(self._state())
            progress.loss_sum, progress.steps_timed, progress.seconds_timed = 0.0, 0, 0.0

    def rejoin(self) -> None:
        """Go on with the trunk when a branch has reached its end; what was learned there stays in the points."""
        if self.trunk is None or self.progress.step < self.end:
            return
        branches, points = self.progress.branches + 1, self.progress.points
        self._restore(self.trunk)
        self.trunk = None
        self.progress.branches, self.progress.points = branches, points

    def compiled(self, function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """The function as the trial runs it: compiled if it says so, on a GPU replayed as CUDA graphs."""
        if not self.trial.config.resources.compile:
            return function
        return torch.compile(function, dynamic=False, mode="reduce-overhead" if self.device.type == "cuda" else None)

    def autocast(self) -> AbstractContextManager[Any]:
        """Matrix products in the precision asked for."""
        if self.train.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=AUTOCAST[self.train.precision])

    def update(self) -> None:
        """One optimizer step on the batch of this step."""
        begun = time.monotonic()
        step = self.progress.step
        inputs, targets = self.batches.batch(step, self.rank, self.world)
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(step, self.end, self.train) * group.get("scale", 1.0)
        self.optimizer.zero_grad(set_to_none=True)  # before the graphs that wrote the last gradients are replayed
        with self.autocast():
            loss = self.loss(inputs.to(self.device), targets.to(self.device))
        self.scaler.scale(loss).backward()
        if self.train.grad_clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.gpt.parameters(), self.train.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.advance(loss.detach().double(), begun)

    def advance(self, loss: Tensor, begun: float) -> None:
        """Count the step that began then and had this loss."""
        self.losses.append(loss)
        self.progress.step += 1
        self.progress.steps_timed += 1
        self.progress.seconds_timed += time.monotonic() - begun
        if len(self.losses) == self.losses_at_once:
            self.read_losses()

    def read_losses(self) -> None:
        """Count the losses of the last steps, up to one that is not finite: there the trial has ended."""
        if not self.losses:
            return
        begun, progress = time.monotonic(), self.progress
        losses, self.losses = self._over_workers(torch.stack(self.losses)), []
        for unread, loss in zip(reversed(range(len(losses))), losses, strict=True):
            progress.loss_sum += loss
            if not math.isfinite(progress.loss_sum):
                progress.step -= unread
                break
        progress.seconds_timed += time.monotonic() - begun

    def _over_workers(self, values: Tensor) -> list[float]:
        """Means over the workers of values [n]."""
        if self.world > 1:
            dist.all_reduce(values)
        return [value / self.world for value in values.tolist()]

    def any_worker(self, flag: bool) -> bool:
        """Whether the flag is set on one of the workers: they must all turn the same way."""
        if self.world == 1:
            return flag
        return self._over_workers(torch.tensor([flag], dtype=torch.float64, device=self.device))[0] > 0

    @property
    def point_is_due(self) -> bool:
        """Whether the last step is one to evaluate after."""
        return self.progress.step == self.end or (self.trunk is None and self.progress.step in self.due)

    def assess(self, report: Callable[[Point], None]) -> Outcome | None:
        """Report a point where one is due; how the trial ended, if a loss is no longer finite."""
        due = self.point_is_due
        if due:
            self.read_losses()
        if not math.isfinite(self.progress.loss_sum):
            return self._diverged("training loss not finite at")
        if due:
            point = self.evaluate()
            if not math.isfinite(point.val_loss):
                return self._diverged("validation loss not finite after")
            report(point)
        return None

    def evaluate(self) -> Point:
        """Score the validation set and close the stretch of training since the point before."""
        scores = self.evaluation.scores(self.nats, self.autocast())
        progress, step = self.progress, self.progress.step
        progress.seconds = time.monotonic() - self.started
        timed, decayed = max(progress.seconds_timed, 1e-9), step == self.end
        point = Point(
            step=step,
            tokens=step * self.train.batch_tokens,
            decayed=decayed,
            lr_now=lr_at(step - 1, self.end, self.train),
            train_loss=progress.loss_sum / progress.steps_timed,
            val_loss=scores.val_loss,
            val_loss_se=scores.val_loss_se,
            wall_seconds=progress.seconds,
            tokens_per_second=progress.steps_timed * self.train.batch_tokens / timed,
            peak_memory_bytes=peak_memory(self.device),
            entropy_rate=self.entropy_rate,
            excess=scores.excess,
            excess_se=scores.excess_se,
            loss_by_position=scores.loss_by_position if decayed else None,
            fused=self.fused,
        )
        progress.points.append(point)
        progress.loss_sum, progress.steps_timed, progress.seconds_timed = 0.0, 0, 0.0
        return point

    @property
    def save_is_due(self) -> bool:
        """Whether a killed process would lose more than it may."""
        return time.monotonic() - self.saved > CHECKPOINT_SECONDS

    def save(self) -> None:
        """Write all that a resumed process needs; the batch order needs nothing."""
        self.saved = time.monotonic()
        if self.checkpoints is None or self.rank:
            return
        self.progress.seconds = time.monotonic() - self.started
        self.checkpoints.write(RESUME, _serialise({**self._state(), "trunk": self.trunk}))

    def _resume(self, content: bytes) -> None:
        state = torch.load(io.BytesIO(content), map_location=self.device, weights_only=True)
        self.trunk = state.pop("trunk")
        self._restore(state)

    def _state(self) -> dict[str, Any]:
        """All that the next update depends on."""
        self.read_losses()
        return {
            "model": self.gpt.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": self.progress.state(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.gpt.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress.of(state["progress"])

    def pause(self) -> Outcome:
        """Stop here, to go on another time."""
        self.save()
        return Outcome(State.RUNNING, "stopped on request", self.progress.points, self.progress.seconds)

    def close(self) -> Outcome:
        """Keep the final weights; the way there is no longer needed."""
        if self.checkpoints is not None and not self.rank:
            self.checkpoints.write(WEIGHTS, _serialise(self.gpt.state_dict()))
            self.checkpoints.delete(RESUME)
        return Outcome(State.FINISHED, None, self.progress.points, self.progress.seconds)

    def _diverged(self, what: str) -> Outcome:
        if self.checkpoints is not None and not self.rank:
            self.checkpoints.delete(RESUME)
        reason = f"{what} step {self.progress.step} of {self.trial.steps}"
        finite = [point for point in self.progress.points if math.isfinite(point.val_loss)]
        return Outcome(State.DIVERGED, reason, finite, time.monotonic() - self.started)


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
    for point in run.progress.points:
        report(point)
    while run.progress.step < run.end:
        run.branch_off()
        run.update()
        step = run.progress.step
        if (diverged := run.assess(report)) is not None:
            return diverged
        run.rejoin()
        if run.progress.step < run.end and run.any_worker(should_stop(step)):
            return run.pause()
        if run.any_worker(run.save_is_due):
            run.save()
    return run.close()
