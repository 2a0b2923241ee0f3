"""Train one trial in plain PyTorch: no Ray, no files but a checkpoint folder, losses handed to `report`.

The same trial gives the same numbers bit for bit on a CPU with the same thread count, also when it was interrupted
and goes on from its checkpoint: initialisation depends on the seed alone, a batch on (seed, step) alone.
"""

from __future__ import annotations

import copy
import ctypes
import logging
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tinyscale.data import TokenizedCorpus
from tinyscale.errors import ConfigError
from tinyscale.machine import cache_folder
from tinyscale.spec.config import Resources
from tinyscale.spec.costs import TEXT_SHARE, decay_steps, share_bytes, token_bytes
from tinyscale.spec.state import State
from tinyscale.spec.trial import Trial
from tinyscale.storage import Folder
from tinyscale.training.batches import TrainBatches, as_tensor
from tinyscale.training.checkpoint import DamagedError, of_bytes, to_bytes
from tinyscale.training.evaluate import Evaluation, rank_and_world, token_losses
from tinyscale.training.model import GPT
from tinyscale.training.optim import lr_at
from tinyscale.training.progress import Outcome, Point, Progress
from tinyscale.training.recorded import AHEAD, Descend, RecordedStep
from tinyscale.training.state import Stopwatch, TrainState

CHECKPOINT_SECONDS = 60.0  # most work that a killed process loses
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


def choose_device(resources: Resources) -> torch.device:
    """The CPU, or the GPU that the trial has: CUDA's (which AMD's ROCm is to torch too), else Apple's.

    Apple's GPUs are untested here: single trials in fp32 or bf16, without a cap on memory, never recorded.
    """
    if not resources.gpu:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    raise ConfigError(f"resources.gpu = {resources.gpu:g}, but torch finds no GPU here: set gpu to 0")


def device_bytes(resources: Resources, device: torch.device) -> float:
    """Bytes of the device's memory that the trial may hold."""
    if device.type == "cpu":
        return math.inf
    if device.type == "mps":
        return float(torch.mps.recommended_max_memory())
    total = torch.cuda.get_device_properties(device).total_memory
    return share_bytes(resources.gpu, total) if resources.gpu < 1 else total


def prepare_process(resources: Resources) -> torch.device:
    """Set what a process shares between trials (threads, GPU memory), so that none leaks into the next."""
    keep_freed_memory()
    torch.set_num_threads(resources.cpu)
    if resources.compile:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
        torch._dynamo.reset()  # else it counts the trials before as recompilations of this one, and gives up
        if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:  # else a process for each core of the machine
            torch._inductor.config.compile_threads = resources.cpu
    device = choose_device(resources)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(device_bytes(resources, device) / total, device)
    return device


class Run:
    """The moving parts of one trial: its state, batches, steps, evaluation, and how far they have come."""

    def __init__(
        self, trial: Trial, corpus: TokenizedCorpus, checkpoints: Folder | None, shared: Run | None = None
    ) -> None:
        """Begin the trial, or go on with it from its checkpoint.

        shared: the run of another seed or rate, of which this one takes over the model, with weights of its own in it,
        and the validation set. Of runs that share one, the caller says whose weights are there.
        """
        self.trial, self.train, self.checkpoints = trial, trial.config.train, checkpoints
        self.device: torch.device = shared.device if shared else prepare_process(trial.config.resources)
        self.rank, self.world = rank_and_world()
        self.state: TrainState = shared.state.restart(trial) if shared else TrainState(trial, self.device)
        context = trial.config.model.context_length
        rows = self.train.batch_tokens // context
        unique = trial.config.data.unique_tokens
        self.batches = TrainBatches(corpus.train(), context, rows, trial.config.seed, unique_tokens=unique)
        self.evaluation: Evaluation = shared.evaluation if shared else Evaluation(corpus, context, self.device)
        self.nats: Callable[[Tensor, Tensor], Tensor] = shared.nats if shared else self.compiled(token_losses(self.gpt))
        self.entropy_rate = corpus.entropy_rate
        self.progress = Progress()
        self.steps: RecordedStep | None = None  # of this run, or of those that are trained together with it
        self.fused = 1  # trials that share each step
        self.due = eval_steps(trial.steps, self.train.eval_points)  # on the trunk
        self.trunk: dict[str, Any] | None = None  # what a decay branch goes back to; None on the trunk itself
        if checkpoints is not None and checkpoints.exists(RESUME):
            self._resume(checkpoints)
        self.watch = Stopwatch(self.progress.seconds)
        self.saved = time.monotonic()

    @property
    def gpt(self) -> GPT:
        """The model."""
        return self.state.gpt

    @property
    def losses_at_once(self) -> int:
        """Steps whose losses are read together: on a GPU, to read one is to wait for it."""
        return AHEAD[self.device.type]

    def join(self, steps: RecordedStep) -> None:
        """Begin, as one of the runs that these steps train together."""
        self.steps, self.fused = steps, len(steps.batches)
        self.watch.start()

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
        """The function as the trial runs it: compiled if it says so."""
        if not self.trial.config.resources.compile:
            return function
        return torch.compile(function, dynamic=False)

    def autocast(self) -> AbstractContextManager[Any]:
        """Matrix products in the precision asked for."""
        return self.state.autocast()

    def update(self) -> None:
        """One optimizer step on the batch of this step."""
        begun = time.monotonic()
        if self.steps is None:
            model = DistributedDataParallel(self.gpt, broadcast_buffers=False) if self.world > 1 else self.gpt
            loss = self.compiled(lambda inputs, targets: model(inputs, targets)[1])
            self.steps = steps_of([self], descent(self.state, loss), self.state.takes_tensor_rate)
        self.steps.take(self.progress.step, self.end)
        self.advance()
        if self.steps.is_full or self.point_is_due:
            self.read_losses()
        self.progress.seconds_timed += time.monotonic() - begun

    def advance(self) -> None:
        """Count a step, whose loss is not read yet."""
        self.progress.step += 1
        self.progress.steps_timed += 1

    def read_losses(self) -> None:
        """Count the losses of the last steps."""
        if self.steps is not None and self.steps.unread:
            self.count(self._over_workers(self.steps.read()[:, 0]))

    def count(self, losses: Sequence[float]) -> None:
        """Count the losses of the last steps, up to one that is not finite: there the trial has ended."""
        for unread, loss in zip(reversed(range(len(losses))), losses, strict=True):
            self.progress.loss_sum += loss
            if not math.isfinite(self.progress.loss_sum):
                self.progress.step -= unread
                break

    def _over_workers(self, values: Tensor) -> list[float]:
        """Means over the workers of values [n]."""
        if self.world > 1:
            dist.all_reduce(values)
        return [value / self.world for value in values.tolist()]

    def any_worker(self, *flags: bool) -> list[bool]:
        """Whether each flag is set on one of the workers: they must all go the same way."""
        if self.world == 1:
            return list(flags)
        return [mean > 0 for mean in self._over_workers(torch.tensor(flags, dtype=torch.float64, device=self.device))]

    @property
    def point_is_due(self) -> bool:
        """Whether the last step is one to evaluate after."""
        return self.progress.step == self.end or (self.trunk is None and self.progress.step in self.due)

    def assess(self, report: Callable[[Point], None]) -> Outcome | None:
        """Report a point where one is due; how the trial ended, if a loss is no longer finite."""
        if not math.isfinite(self.progress.loss_sum):
            return self._diverged("training loss not finite at")
        if self.point_is_due:
            point = self.evaluate()
            if not math.isfinite(point.val_loss):
                return self._diverged("validation loss not finite after")
            report(point)
        return None

    def evaluate(self) -> Point:
        """Score the validation set and close the stretch of training since the point before."""
        scores = self.evaluation.scores(self.nats, self.autocast())
        progress, step = self.progress, self.progress.step
        progress.seconds = self.watch.seconds
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
            recorded=self.steps.recorded if self.steps is not None else None,
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
        self.progress.seconds = self.watch.seconds
        self.checkpoints.write(RESUME, to_bytes({**self._state(), "trunk": self.trunk}))

    def _resume(self, checkpoints: Folder) -> None:
        """Go on from the checkpoint; where it is damaged, set it aside and begin again."""
        content = checkpoints.read(RESUME)
        try:
            state = of_bytes(content, self.device)
        except DamagedError as error:
            if self.rank == 0:
                aside = checkpoints.set_aside(RESUME, content)
                logging.getLogger(__name__).warning("%s: %s; the trial begins again", aside, error)
            return
        self.trunk = state.pop("trunk")
        self._restore(state)

    def _state(self) -> dict[str, Any]:
        """All that the next update depends on."""
        self.read_losses()
        return {**self.state.state(), "progress": self.progress.state()}

    def _restore(self, state: dict[str, Any]) -> None:
        self.state.restore(state)
        self.progress = Progress.of(state["progress"])
        if self.steps is not None:
            self.steps.forget()

    def pause(self) -> Outcome:
        """Stop here, to go on another time."""
        self.save()
        return Outcome(State.RUNNING, "stopped on request", self.progress.points, self.progress.seconds)

    def close(self) -> Outcome:
        """Keep the final weights; the way there is no longer needed."""
        if self.checkpoints is not None and not self.rank:
            self.checkpoints.write(WEIGHTS, to_bytes(self.gpt.state_dict()))
            self.checkpoints.delete(RESUME)
        return Outcome(State.FINISHED, None, self.progress.points, self.progress.seconds)

    def _diverged(self, what: str) -> Outcome:
        if self.checkpoints is not None and not self.rank:
            self.checkpoints.delete(RESUME)
        reason = f"{what} step {self.progress.step} of {self.trial.steps}"
        finite = [point for point in self.progress.points if math.isfinite(point.val_loss)]
        return Outcome(State.DIVERGED, reason, finite, self.watch.seconds)


def descent(state: TrainState, loss: Callable[[Tensor, Tensor], Tensor]) -> Descend:
    """An update of one model: inputs and targets [B, T], rates [1] -> its loss [1]."""
    clip = state.train.grad_clip

    def descend(inputs: Tensor, targets: Tensor, rates: Tensor) -> Tensor:
        state.optimizer.zero_grad(set_to_none=True)
        with state.autocast():
            nats = loss(inputs, targets)
        state.scaler.scale(nats).backward()
        if clip:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.gpt.parameters(), clip)
        state.step(rates)
        return nats.detach()[None]

    return descend


def steps_of(runs: Sequence[Run], descend: Descend, recordable: bool) -> RecordedStep:
    """The steps of runs that are trained together; recordable: their optimizer asks the host for nothing.

    Nothing here may hold a run: its memory on the GPU is free for the next trial as soon as nobody needs it.
    """
    first, trains = runs[0], [run.train for run in runs]
    return RecordedStep(
        [run.batches for run in runs],
        lambda step, end: [lr_at(step, end, train) for train in trains],
        descend,
        first.device,
        vocab_size=first.trial.vocab_size,
        text=text_on_device(first),
        record=recordable and can_record(first),
        worker=(first.rank, first.world),
    )


def can_record(run: Run) -> bool:
    """Whether the device replays steps, and nothing in them asks the host: a loss scale, or other workers."""
    return run.device.type == "cuda" and run.train.precision != "fp16" and run.world == 1


def text_on_device(run: Run) -> Tensor | None:
    """The training text where the GPU reads it, if it is small for the memory; a CPU reads it from the disk."""
    if run.device.type == "cpu":
        return None
    limit = TEXT_SHARE * device_bytes(run.trial.config.resources, run.device)
    small = len(run.batches.stream) * token_bytes(run.trial.vocab_size) <= limit
    return as_tensor(run.batches.stream, run.trial.vocab_size).to(run.device) if small else None


def peak_memory(device: torch.device) -> int:
    """Most bytes that the process (CPU) or its share of the device (GPU) has held; on Apple's GPUs those held now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
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
        if run.world > 1 and step % run.losses_at_once:
            continue  # workers must agree, and to ask them is to wait for them
        stop, save = run.any_worker(run.progress.step < run.end and should_stop(step), run.save_is_due)
        if stop:
            return run.pause()
        if save:
            run.save()
    return run.close()
