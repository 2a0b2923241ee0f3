"""Train trials that differ only in seed or learning rate as one batched model, so that small ones fill a GPU.

The model is the one of model.py: each module with weights of its own stands for K copies of itself, and the K batches
go through as one. Every trial keeps its own batches, loss, gradient norm, learning rate, points and checkpoint, and
has the losses that it has when trained alone, up to rounding.
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
from tinyscale.spec.trial import Trial
from tinyscale.storage import Folder
from tinyscale.training.evaluate import token_losses
from tinyscale.training.loop import Run, steps_of
from tinyscale.training.model import GPT, width_scale
from tinyscale.training.optim import UnitRate, build_optimizer, clip_each, make_capturable
from tinyscale.training.progress import Outcome, Point
from tinyscale.training.recorded import Descend
from tinyscale.training.state import TrainState

Begun = tuple[Run, dict[str, Any]]  # a run, and the state that it begins with


class Stacked(nn.Module):
    """K copies of a module, each with weights of its own [K, ...] and its own part of the input: [K B, ...]."""

    def __init__(self, module: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.one = (module,)  # in a tuple, so that its own weights are none of this module's
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
    """One model of K, each with weights for the GPT: token ids [K B, T] -> logits [K B, T, V], parameters [K, ...]."""
    shared = dict(gpt.named_parameters(remove_duplicate=False))
    once: dict[int, nn.Parameter] = {}  # a tied head shares its stack as well

    def stacked(name: str) -> nn.Parameter:
        return once.setdefault(id(shared[name]), nn.Parameter(torch.stack([each[name] for each in weights])))

    model = copy.deepcopy(gpt)
    for place, module in list(model.named_modules()):
        if own := [name for name, _ in module.named_parameters(recurse=False)]:
            model.set_submodule(place, Stacked(module, {name: stacked(f"{place}.{name}") for name in own}))
    return model


def stack_optimizer(
    state: TrainState, model: GPT, states: Sequence[dict[int, dict[str, Tensor]]]
) -> torch.optim.Optimizer:
    """One optimizer over the parameters [K, ...] of the stacked model, its averages those of the K optimizers."""
    optimizer = build_optimizer(state.gpt, state.train, width_scale(state.gpt.config))
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


def batched_descent(
    state: TrainState, model: GPT, optimizer: torch.optim.Optimizer, losses: Callable[[Tensor, Tensor], Tensor]
) -> Descend:
    """An update of every copy, each on its own rows and at its own rate: [K B, T], rates [K] -> losses [K]."""
    assert state.linear_in_lr, "the copies' rates differ"
    clip, unit_rate = state.train.grad_clip, UnitRate(optimizer)

    def descend(inputs: Tensor, targets: Tensor, rates: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with state.autocast():
            each = losses(inputs, targets)
        torch.autograd.backward(each.sum())  # a copy's loss moves no other's weights
        if clip:
            clip_each([p.grad for p in model.parameters() if p.grad is not None], clip)
        unit_rate.step(optimizer.step, rates)
        return each.detach()

    return descend


def begin(trials: Sequence[Trial], corpus: TokenizedCorpus, folders: Sequence[Folder | None]) -> list[Begun]:
    """The trials' runs, which share one model, and what each begins with, or goes on with from its checkpoint."""
    begun: list[Begun] = []
    for trial, folder in zip(trials, folders, strict=True):
        run = Run(trial, corpus, folder, shared=begun[0][0] if begun else None)
        begun.append((run, copy.deepcopy(run.state.state())))
    return begun


class Fused:
    """Runs at the same step of the same schedule, updated together.

    The weights are here; the runs share one model and one optimizer, into which each's are loaded to be evaluated or
    saved. So a run's checkpoint is that of a trial trained alone.
    """

    def __init__(self, begun: Sequence[Begun]) -> None:
        self.runs = [run for run, _ in begun]
        self.step = self.runs[0].progress.step  # a run that diverged ends before it
        self.first = self.runs[0]
        state, copies = self.first.state, len(begun)
        self.model = stack(state.gpt, [each["model"] for _, each in begun])
        self.optimizer = stack_optimizer(state, self.model, [each["optimizer"]["state"] for _, each in begun])
        nats = token_losses(self.model)
        losses = self.first.compiled(lambda inputs, targets: nats(inputs, targets).view(copies, -1).mean(1))  # [K]
        descend = batched_descent(state, self.model, self.optimizer, losses)
        self.steps = steps_of(self.runs, descend, recordable=True)
        for run in self.runs:
            run.join(self.steps)

    @property
    def unfinished(self) -> bool:
        """Whether there are steps left."""
        return self.step < self.first.end

    def update(self) -> None:
        """One optimizer step of every copy, each on its own batch."""
        begun = time.monotonic()
        self.steps.take(self.step, self.first.end)
        self.step += 1
        for run in self.runs:
            run.advance()
        if self.steps.is_full or any(run.point_is_due for run in self.runs):
            self.read_losses()
        for run in self.runs:
            run.progress.seconds_timed += time.monotonic() - begun

    def read_losses(self) -> None:
        """Count the losses of the last steps, all copies' in one reading."""
        if self.steps.unread:
            for run, losses in zip(self.runs, self.steps.read().T.tolist(), strict=True):
                run.count(losses)

    @torch.no_grad()
    def load(self, k: int) -> Run:
        """The run number k, its weights and its optimizer's state copied to where the runs find them."""
        self.read_losses()
        run, state = self.runs[k], self.optimizer.state_dict()["state"]
        for mine, all_ in zip(run.gpt.parameters(), self.model.parameters(), strict=True):
            mine.copy_(all_[k])
        own = {
            index: {name: (value[k] if value.dim() else value).clone() for name, value in values.items()}
            for index, values in state.items()
        }
        optimizer = run.state.optimizer
        optimizer.load_state_dict({"state": own, "param_groups": optimizer.state_dict()["param_groups"]})
        return run


def train_fused(
    trials: Sequence[Trial],
    corpus: TokenizedCorpus,
    report: Callable[[int, Point], None],
    ended: Callable[[int, Outcome], None],
    *,
    checkpoints: Sequence[Folder | None],
    should_stop: Callable[[int], bool] = lambda _: False,
) -> None:
    """Train trials of one shape together, as `train.train` does one; each is told of by its place in `trials`.

    A trial that diverges ends alone. Those whose checkpoints are at another step than the first's, after a process
    was killed while it saved or because the sweep has grown, are trained together after it.
    """
    begun = begin(trials, corpus, checkpoints)
    for place, (run, _) in enumerate(begun):
        for point in run.progress.points:
            report(place, point)
    by_step = sorted(range(len(begun)), key=lambda place: begun[place][0].progress.step)
    for _, places in itertools.groupby(by_step, key=lambda place: begun[place][0].progress.step):
        _train_in_step(begun, list(places), report, ended, should_stop)


def _train_in_step(
    begun: Sequence[Begun],
    places: Sequence[int],
    report: Callable[[int, Point], None],
    ended: Callable[[int, Outcome], None],
    should_stop: Callable[[int], bool],
) -> None:
    fused = Fused([begun[place] for place in places])
    going = dict(enumerate(places))  # which copy is whose

    def end(k: int, outcome: Outcome) -> None:
        ended(going.pop(k), outcome)

    while fused.unfinished and going:
        fused.update()
        for k, place in list(going.items()):
            run = fused.load(k) if fused.runs[k].point_is_due else fused.runs[k]
            if (diverged := run.assess(partial(report, place))) is not None:
                end(k, diverged)
        if fused.unfinished and should_stop(fused.step):
            for k in list(going):
                end(k, fused.load(k).pause())
        elif any(fused.runs[k].save_is_due for k in going):
            for k in going:
                fused.load(k).save()
    for k in list(going):
        end(k, fused.load(k).close())
