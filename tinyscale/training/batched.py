"""Train trials that differ only in seed or learning rate as one batched model, so that small ones fill a GPU.

The architecture is that of model.py: each module that has weights holds K copies of them, stacked, and the K batches
pass through as one. Every trial keeps its own batches, loss, gradient norm, learning rate, points and checkpoint. Its
losses are those of the trial trained alone, up to rounding (horizontal fusion: Wang et al. 2021, 2102.02344).
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from tinyscale.data import TokenizedCorpus
from tinyscale.errors import ConfigError
from tinyscale.spec.trial import Trial
from tinyscale.storage import Folder
from tinyscale.training.evaluate import token_losses
from tinyscale.training.loop import Run, steps_of
from tinyscale.training.model import GPT
from tinyscale.training.optim import UnitRate, build_optimizer, clip_each, make_capturable
from tinyscale.training.progress import Outcome, Point
from tinyscale.training.recorded import Update
from tinyscale.training.train_state import TrainState

Started = tuple[Run, dict[str, Any]]  # a run and the `TrainState.state` at its first step


class Stacked(nn.Module):
    """K copies of a module with stacked weights [K, ...]; copy k processes the k-th part of the input [K B, ...]."""

    def __init__(self, module: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.one = (module,)  # in a tuple, so that its weights are not registered here
        for name, weight in weights.items():
            self.register_parameter(name, weight)

    def forward(self, x: Tensor) -> Tensor:
        weights: dict[str, Tensor] = dict(self.named_parameters(recurse=False))
        copies = len(next(iter(weights.values())))
        out: Tensor = vmap(self._copy)(weights, x.reshape(copies, -1, *x.shape[1:]))
        return out.flatten(0, 1)

    def _copy(self, weights: dict[str, Tensor], x: Tensor) -> Any:
        return functional_call(self.one[0], weights, (x,))


def stack(gpt: GPT, weights: Sequence[Mapping[str, Tensor]]) -> GPT:
    """K models in one, with parameters [K, ...]: token ids [K B, T] -> logits [K B, T, V]."""
    originals = dict(gpt.named_parameters(remove_duplicate=False))
    stacks: dict[int, nn.Parameter] = {}  # by the original's id, so that a tied head shares the embedding's stack

    def stacked(name: str) -> nn.Parameter:
        return stacks.setdefault(id(originals[name]), nn.Parameter(torch.stack([each[name] for each in weights])))

    model = copy.deepcopy(gpt)
    for path, module in list(model.named_modules()):
        if own := [name for name, _ in module.named_parameters(recurse=False)]:
            model.set_submodule(path, Stacked(module, {name: stacked(f"{path}.{name}") for name in own}))
    return model


def stack_optimizer(
    state: TrainState, model: GPT, states: Sequence[dict[int, dict[str, Tensor]]]
) -> torch.optim.Optimizer:
    """The optimizer of the stacked parameters [K, ...]. states: of the K optimizers, whose moments it stacks."""
    assert isinstance(state.gpt, GPT), "planning refuses own code"
    optimizer = build_optimizer(state.gpt, state.train, state.gpt.config)
    assert isinstance(optimizer, torch.optim.Optimizer), "planning refuses muon"
    stacks = {id(old): new for old, new in zip(state.gpt.parameters(), model.parameters(), strict=True)}
    for group in optimizer.param_groups:
        group["params"] = [stacks[id(parameter)] for parameter in group["params"]]
    make_capturable(optimizer)
    stacked = {
        index: {
            name: torch.stack([each[index][name] for each in states]) if value.dim() else value
            for name, value in values.items()
        }
        for index, values in states[0].items()
    }
    optimizer.load_state_dict({"state": stacked, "param_groups": optimizer.state_dict()["param_groups"]})
    return optimizer


def batched_update(
    state: TrainState, model: GPT, optimizer: torch.optim.Optimizer, losses: Callable[[Tensor, Tensor], Tensor]
) -> Update:
    """The update of all K copies, each on its own rows and at its own lr: [K B, T], rates [K] -> losses [K]."""
    assert state.linear_in_lr, "the copies' rates differ"
    clip, unit_rate = state.train.grad_clip, UnitRate(optimizer)

    def update(inputs: Tensor, targets: Tensor, rates: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with state.autocast():
            each = losses(inputs, targets)
        torch.autograd.backward(each.sum())  # the loss of a copy has no gradient in the others
        if clip:
            clip_each([p.grad for p in model.parameters() if p.grad is not None], clip)
        unit_rate.step(optimizer.step, rates)
        return each.detach()

    return update


def start_runs(
    trials: Sequence[Trial], corpus: TokenizedCorpus, folders: Sequence[Folder | None], keep_every: int | None = None
) -> list[Started]:
    """The trials' runs, which share one model, each with its initial state or the state of its checkpoint.

    ConfigError for what a batched model cannot train.
    """
    if any(trial.config.train.weight_bits is not None for trial in trials):
        raise ConfigError("a batched model does not round its weights: leave out fuse, or train.weight_bits")
    if any(trial.own.codes for trial in trials):
        raise ConfigError("a batched model runs no code of your own: leave out fuse, or model.code and its optimizer")
    started: list[Started] = []
    for trial, folder in zip(trials, folders, strict=True):
        run = Run(trial, corpus, folder, shared=started[0][0] if started else None, keep_every=keep_every)
        started.append((run, copy.deepcopy(run.state.state())))
    return started


class Batched:
    """Runs at the same step of the same schedule, updated together.

    The stacked model and optimizer hold the state of all K. The runs share a model and an optimizer of a single trial,
    into which `load` copies the state of one to evaluate or save it, so a checkpoint is that of a trial trained alone.
    """

    def __init__(self, started: Sequence[Started]) -> None:
        self.runs = [run for run, _ in started]
        self.first = self.runs[0]
        self.step = self.first.progress.step  # the runs' own progress stops where one diverges
        state, copies = self.first.state, len(started)
        assert isinstance(state.gpt, GPT), "planning refuses own code"
        self.model = stack(state.gpt, [each["model"] for _, each in started])
        self.optimizer = stack_optimizer(state, self.model, [each["optimizer"]["state"] for _, each in started])
        nats = token_losses(self.model)
        losses = self.first.compiled(lambda inputs, targets: nats(inputs, targets).view(copies, -1).mean(1))  # [K]
        update = batched_update(state, self.model, self.optimizer, losses)
        self.steps = steps_of(self.runs, update, recordable=True)
        for run in self.runs:
            run.join(self.steps)

    @property
    def unfinished(self) -> bool:
        """Whether steps remain."""
        return self.step < self.first.end

    def update(self) -> None:
        """Do one optimizer step of all copies, each on its own batch."""
        begun = time.monotonic()
        self.steps.run(self.step, self.first.end)
        self.step += 1
        for run in self.runs:
            run.advance()
        if self.steps.is_full or any(run.point_is_due or run.keep_is_due for run in self.runs):
            self.read_losses()
        for run in self.runs:
            run.progress.seconds_timed += time.monotonic() - begun

    def read_losses(self) -> None:
        """Read the losses that are still on the device, of all copies at once, and add them to the runs' progress."""
        if self.steps.unread:
            for run, losses in zip(self.runs, self.steps.read().T.tolist(), strict=True):
                run.add_losses(losses)

    @torch.no_grad()
    def load(self, k: int) -> Run:
        """Run k, after copying its weights and optimizer state into the model and optimizer that the runs share."""
        self.read_losses()
        run, state = self.runs[k], self.optimizer.state_dict()["state"]
        for weight, stacked in zip(run.gpt.parameters(), self.model.parameters(), strict=True):
            weight.copy_(stacked[k])
        own = {
            index: {name: (value[k] if value.dim() else value).clone() for name, value in values.items()}
            for index, values in state.items()
        }
        optimizer = run.state.optimizer
        optimizer.load_state_dict({"state": own, "param_groups": optimizer.state_dict()["param_groups"]})
        return run


def train_batched(
    trials: Sequence[Trial],
    corpus: TokenizedCorpus,
    report: Callable[[int, Point], None],
    ended: Callable[[int, Outcome], None],
    *,
    checkpoints: Sequence[Folder | None],
    keep_every: int | None = None,
    should_stop: Callable[[int], bool] = lambda _: False,
) -> None:
    """Train trials that differ only in seed or lr together, as `loop.train` trains one.

    report and ended: called with the index of a trial in `trials` and its point or outcome. should_stop: called with
    the step; all trials stop. A trial that diverges ends, and the others continue. Trials whose checkpoints are at
    different steps (a process was killed while it saved, or the sweep has grown) are trained in groups of equal step.
    """
    started = start_runs(trials, corpus, checkpoints, keep_every)
    for index, (run, _) in enumerate(started):
        for point in run.progress.points:
            report(index, point)
    by_step = sorted(range(len(started)), key=lambda index: started[index][0].progress.step)
    for _, indices in itertools.groupby(by_step, key=lambda index: started[index][0].progress.step):
        _train_group(started, list(indices), report, ended, should_stop)


def _train_group(
    started: Sequence[Started],
    indices: Sequence[int],
    report: Callable[[int, Point], None],
    ended: Callable[[int, Outcome], None],
    should_stop: Callable[[int], bool],
) -> None:
    batched = Batched([started[index] for index in indices])
    active = dict(enumerate(indices))  # copy -> index of its trial

    def end(k: int, outcome: Outcome) -> None:
        ended(active.pop(k), outcome)

    while batched.unfinished and active:
        batched.update()
        for k, index in list(active.items()):
            run = batched.runs[k]
            if run.point_is_due or run.keep_is_due:
                batched.load(k)
            if (diverged := run.assess(partial(report, index))) is not None:
                end(k, diverged)
            else:
                run.keep()
        if batched.unfinished and should_stop(batched.step):
            for k in list(active):
                end(k, batched.load(k).pause())
        elif any(batched.runs[k].save_is_due for k in active):
            for k in active:
                batched.load(k).save()
    for k in list(active):
        end(k, batched.load(k).close())
