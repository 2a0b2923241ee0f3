"""Train one trial in plain PyTorch: no Ray, no files except a checkpoint folder; points go to `report`.

On a CPU with the same thread count, the same trial gives the same numbers bit for bit, also after an interruption:
initial weights depend on the seed only, a batch on (seed, step) only.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tinyscale.data import TokenizedCorpus
from tinyscale.spec.costs import TEXT_SHARE, decay_steps, token_bytes
from tinyscale.spec.state import State
from tinyscale.spec.trial import Trial
from tinyscale.storage import Folder
from tinyscale.training.batches import as_tensor, batches_of
from tinyscale.training.checkpoint import DamagedError, of_bytes, to_bytes
from tinyscale.training.device import device_bytes, peak_memory, prepare_process
from tinyscale.training.distilled import distilled_loss
from tinyscale.training.evaluate import Evaluation, Scores, rank_and_world, token_losses
from tinyscale.training.model import GPT
from tinyscale.training.optim import lr_at
from tinyscale.training.own import OwnModel
from tinyscale.training.progress import Outcome, Point, Progress
from tinyscale.training.recorded import AHEAD, RecordedStep, Update
from tinyscale.training.train_state import Stopwatch, TrainState

CHECKPOINT_SECONDS = 60.0  # between checkpoints: a killed process loses about this much work
RESUME, WEIGHTS = "resume.pt", "weights.pt"


def weights_at(tokens: int) -> str:
    """The file of the weights that were kept when so many tokens had been trained on."""
    return f"weights-{tokens}.pt"


def train(
    trial: Trial,
    corpus: TokenizedCorpus,
    report: Callable[[Point], None],
    *,
    teacher: GPT | OwnModel | None = None,
    checkpoints: Folder | None = None,
    keep_every: int | None = None,
    should_stop: Callable[[int], bool] = lambda _: False,
) -> Outcome:
    """Train a trial to its end, or until `should_stop(step)` is true.

    report: called with each point, on every worker; after a restart first with the points of earlier attempts.
    teacher: the model of the trial's teacher, where it has one.
    checkpoints: the folder of the trial's checkpoint, from which an interrupted trial resumes, and of its final
    weights. keep_every: keep the weights there also at the step that reaches each multiple of so many tokens.
    A loss that is not finite ends the trial as diverged.
    """
    run = Run(trial, corpus, checkpoints, teacher=teacher, keep_every=keep_every)
    for point in run.progress.points:
        report(point)
    while run.progress.step < run.end:
        run.branch_off()
        run.update()
        step = run.progress.step
        if (diverged := run.assess(report)) is not None:
            return diverged
        run.keep()
        run.return_to_trunk()
        if run.world > 1 and step % run.losses_at_once:
            continue  # workers must agree on what follows, and agreeing blocks them all
        stop, save = run.any_worker(run.progress.step < run.end and should_stop(step), run.save_is_due)
        if stop:
            return run.pause()
        if save:
            run.save()
    return run.close()


def eval_steps(steps: int, eval_points: int) -> set[int]:
    """Steps after which to evaluate: steps, steps/2, steps/4, ...; eval_points of them, fewer if some coincide."""
    return {max(1, round(steps / 2**k)) for k in range(eval_points)}


class Run:
    """One trial in training: its state, batches, optimizer steps, evaluation and progress."""

    def __init__(
        self,
        trial: Trial,
        corpus: TokenizedCorpus,
        checkpoints: Folder | None,
        shared: Run | None = None,
        teacher: GPT | OwnModel | None = None,
        keep_every: int | None = None,
    ) -> None:
        """Start the trial, or resume it from its checkpoint.

        shared: the run of another seed or lr. This run uses its model (and overwrites the weights), its optimizer and
        its validation set; the caller keeps track of whose weights the model holds.
        """
        self.trial, self.train, self.checkpoints = trial, trial.config.train, checkpoints
        self.keep_every = keep_every
        self.device: torch.device = shared.device if shared else prepare_process(trial.config.resources)
        self.rank, self.world = rank_and_world()
        self.state: TrainState = shared.state.restart(trial) if shared else TrainState(trial, self.device)
        context = trial.config.model.context_length
        self.batches = batches_of(trial, corpus, self.train.batch_tokens // context)
        self.evaluation: Evaluation = shared.evaluation if shared else Evaluation(corpus, context, self.device)
        self.nats: Callable[[Tensor, Tensor], Tensor] = shared.nats if shared else self.compiled(token_losses(self.gpt))
        assert (teacher is None) == (trial.teacher is None), "a student has its teacher, and no other trial has one"
        self.teacher = teacher.to(self.device).eval() if teacher else None
        self.teacher_loss = self._loss_of(self.teacher) if self.teacher else None
        self.entropy_rate = corpus.entropy_rate
        self.progress = Progress()
        self.steps: RecordedStep | None = None  # of this run, or of all runs that are trained as one batched model
        self.fused = 1  # trials that share each step
        self.due = eval_steps(trial.steps, self.train.eval_points)  # on the trunk
        self.trunk: dict[str, Any] | None = None  # state to return to after a decay branch; None on the trunk itself
        if checkpoints is not None and checkpoints.exists(RESUME):
            self._resume(checkpoints)
        self.watch = Stopwatch(self.progress.seconds)
        self.saved = time.monotonic()

    @property
    def gpt(self) -> GPT | OwnModel:
        """The model."""
        return self.state.gpt

    @property
    def losses_at_once(self) -> int:
        """Steps whose losses are read together: on a GPU, each reading waits for the device."""
        return AHEAD[self.device.type]

    def join(self, steps: RecordedStep) -> None:
        """Start as one of the runs that `steps` trains together."""
        self.steps, self.fused = steps, len(steps.batches)
        self.watch.start()

    @property
    def end(self) -> int:
        """Last step of the trial, or of the current decay branch."""
        return self.trial.steps if self.trunk is None else self.trial.branch_ends[self.progress.branches]

    def branch_off(self) -> None:
        """Store the trunk's state if the decay of the next branch begins at this step."""
        ends, progress = self.trial.branch_ends, self.progress
        if self.trunk is not None or progress.branches == len(ends):
            return
        end = ends[progress.branches]
        if progress.step == end - decay_steps(end, self.train):
            self.trunk = copy.deepcopy(self._state())
            progress.start_interval()

    def return_to_trunk(self) -> None:
        """At the end of a branch, restore the trunk's state. The branch's points are kept."""
        if self.trunk is None or self.progress.step < self.end:
            return
        branches, points = self.progress.branches + 1, self.progress.points
        self._restore(self.trunk)
        self.trunk = None
        self.progress.branches, self.progress.points = branches, points

    def compiled(self, function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """The function, compiled if resources.compile is set."""
        if not self.trial.config.resources.compile:
            return function
        return torch.compile(function, dynamic=False)

    def autocast(self) -> AbstractContextManager[Any]:
        """Run matrix products in the trial's precision."""
        return self.state.autocast()

    def update(self) -> None:
        """Do one optimizer step on the batch of the current step."""
        begun = time.monotonic()
        if self.steps is None:
            model = DistributedDataParallel(self.gpt, broadcast_buffers=False) if self.world > 1 else self.gpt
            loss = distilled_loss(model, self.teacher, self.train) if self.teacher else own_loss(model)
            loss = self.compiled(loss)
            self.steps = steps_of([self], single_update(self.state, loss), self.state.takes_tensor_rate)
        self.steps.run(self.progress.step, self.end)
        self.advance()
        if self.steps.is_full or self.point_is_due or self.keep_is_due:
            self.read_losses()
        self.progress.seconds_timed += time.monotonic() - begun

    def advance(self) -> None:
        """Count one step. Its loss may still be on the device."""
        self.progress.step += 1
        self.progress.steps_timed += 1

    def read_losses(self) -> None:
        """Read the losses that are still on the device and add them to the progress."""
        if self.steps is not None and self.steps.unread:
            self.add_losses(self._mean_over_workers(self.steps.read()[:, 0]))

    def add_losses(self, losses: Sequence[float]) -> None:
        """Add the losses of the last steps. At one that is not finite the trial ends: later steps are not counted."""
        for later, loss in zip(reversed(range(len(losses))), losses, strict=True):
            self.progress.loss_sum += loss
            if not math.isfinite(self.progress.loss_sum):
                self.progress.step -= later
                break

    def _mean_over_workers(self, values: Tensor) -> list[float]:
        """Means over the workers of values [n]."""
        if self.world > 1:
            dist.all_reduce(values)
        return [value / self.world for value in values.tolist()]

    def any_worker(self, *flags: bool) -> list[bool]:
        """Whether each flag is set on any worker, so that all workers decide alike."""
        if self.world == 1:
            return list(flags)
        values = torch.tensor(flags, dtype=torch.float64, device=self.device)
        return [mean > 0 for mean in self._mean_over_workers(values)]

    @property
    def point_is_due(self) -> bool:
        """Whether to evaluate after the last step."""
        return self.progress.step == self.end or (self.trunk is None and self.progress.step in self.due)

    def assess(self, report: Callable[[Point], None]) -> Outcome | None:
        """Report a point if one is due. Returns the outcome if a loss is not finite, else None."""
        if not math.isfinite(self.progress.loss_sum):
            return self._diverged("training loss not finite at")
        if self.point_is_due:
            point = self.evaluate()
            if not math.isfinite(point.val_loss):
                return self._diverged("validation loss not finite after")
            report(point)
        return None

    def evaluate(self) -> Point:
        """Score the validation set and add a point, which covers the training steps since the previous one."""
        self.gpt.eval()  # which differs for a user's own model, such as one with dropout
        scores = self.evaluation.scores(self.nats, self.autocast())
        self.gpt.train()
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
            by_part=self._by_part(scores, step) if scores.parts else None,
            fused=self.fused,
            recorded=self.steps.recorded if self.steps is not None else None,
            teacher_loss=self.teacher_loss,
        )
        progress.points.append(point)
        progress.start_interval()
        return point

    def _loss_of(self, teacher: GPT | OwnModel) -> float:
        """The teacher's loss on the validation set, nats per token."""
        return self.evaluation.scores(token_losses(teacher), self.autocast()).val_loss

    def _by_part(self, scores: Scores, step: int) -> list[dict[str, Any]]:
        """What the results hold of each part of a mixture: its share, its tokens so far and its scores."""
        shares = dict(self.trial.config.data.shares)
        each = zip(scores.parts, self.batches.tokens_of_parts(step), strict=True)
        return [{**asdict(of), "share": shares[of.part], "tokens": tokens} for of, tokens in each]

    @property
    def keep_is_due(self) -> bool:
        """Whether the last step, on the trunk and before its end, reached a multiple of keep_every tokens."""
        if self.keep_every is None or self.trunk is not None or self.progress.step >= self.end:
            return False
        tokens = self.progress.step * self.train.batch_tokens
        return tokens // self.keep_every > (tokens - self.train.batch_tokens) // self.keep_every

    def keep(self) -> None:
        """Write the weights as they are, if they are to be kept."""
        if self.keep_is_due and self.checkpoints is not None and not self.rank:
            name = weights_at(self.progress.step * self.train.batch_tokens)
            self.checkpoints.write(name, to_bytes(self.gpt.state_dict()))

    @property
    def save_is_due(self) -> bool:
        """Whether the last checkpoint is older than CHECKPOINT_SECONDS."""
        return time.monotonic() - self.saved > CHECKPOINT_SECONDS

    def save(self) -> None:
        """Write a checkpoint; the batch order needs no state."""
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
        """Everything that the next update depends on."""
        self.read_losses()
        return {**self.state.state(), "progress": self.progress.state()}

    def _restore(self, state: dict[str, Any]) -> None:
        self.state.restore(state)
        self.progress = Progress.of(state["progress"])
        if self.steps is not None:
            self.steps.reset()

    def pause(self) -> Outcome:
        """Save a checkpoint and stop; the trial can resume."""
        self.save()
        return Outcome(State.RUNNING, "stopped on request", self.progress.points, self.progress.seconds)

    def close(self) -> Outcome:
        """Write the final weights and delete the checkpoint."""
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


def own_loss(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Inputs and targets [B, T] -> the model's loss on the text []."""

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        nats: Tensor = model(inputs, targets)[1]
        return nats

    return loss


def single_update(state: TrainState, loss: Callable[[Tensor, Tensor], Tensor]) -> Update:
    """The update of one model: inputs and targets [B, T], rates [1] -> its loss [1]."""
    clip, weights = state.train.grad_clip, list(state.gpt.parameters())

    def update(inputs: Tensor, targets: Tensor, rates: Tensor) -> Tensor:
        state.optimizer.zero_grad(set_to_none=True)
        with state.autocast():
            nats = loss(inputs, targets)
        state.scaler.scale(nats).backward()
        if clip:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(weights, clip)
        state.step(rates)
        return nats.detach()[None]

    return update


def steps_of(runs: Sequence[Run], update: Update, recordable: bool) -> RecordedStep:
    """The steps of runs that are trained together. recordable: the optimizer step reads nothing back to the host.

    The steps must not reference a run: its GPU memory has to be freed for the next trial with its last reference.
    """
    first, trains = runs[0], [run.train for run in runs]
    return RecordedStep(
        [run.batches for run in runs],
        lambda step, end: [lr_at(step, end, train) for train in trains],
        update,
        first.device,
        vocab_size=first.trial.vocab_size,
        text=text_on_device(first),
        record=recordable and can_record(first),
        worker=(first.rank, first.world),
    )


def can_record(run: Run) -> bool:
    """Whether steps can be CUDA graphs: fp16's loss scale and several workers need the host in each step.

    A user's own code may need it too.
    """
    alone = run.world == 1 and not run.trial.own.codes
    return run.device.type == "cuda" and run.train.precision != "fp16" and alone


def text_on_device(run: Run) -> Tensor | None:
    """The training text on the GPU, if it fits TEXT_SHARE of the trial's memory; None: the host gathers windows."""
    if run.device.type == "cpu":
        return None
    limit = TEXT_SHARE * device_bytes(run.trial.config.resources, run.device)
    small = len(run.batches.stream) * token_bytes(run.trial.vocab_size) <= limit
    return as_tensor(run.batches.stream, run.trial.vocab_size).to(run.device) if small else None
