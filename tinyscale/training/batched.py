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
from tinyscale.training.loop import Run
from tinyscale.training.model import GPT, width_scale
from tinyscale.training.optim import build_optimizer, lr_at
from tinyscale.training.progress import Outcome, Point


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


def stack(gpts: Sequence[GPT]) -> GPT:
    """One model of K models of one shape: token ids [K B, T] -> logits [K B, T, V], its parameters [K, ...]."""
    copies = [dict(gpt.named_parameters(remove_duplicate=False)) for gpt in gpts]
    once: dict[int, nn.Parameter] = {}  # a tied head shares its stack as well

    def stacked(name: str) -> nn.Parameter:
        return once.setdefault(id(copies[0][name]), nn.Parameter(torch.stack([each[name].detach() for each in copies])))

    model = copy.deepcopy(gpts[0])
    for place, module in list(model.named_modules()):
        if own := [name for name, _ in module.named_parameters(recurse=False)]:
            model.set_submodule(place, Stacked(module, {name: stacked(f"{place}.{name}") for name in own}))
    return model


def clip_each(gradients: Sequence[Tensor], largest: float) -> None:
    """Scale the gradients [K, ...] of each copy to a joint norm of at most `largest`, as torch does for one model."""
    norms = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1).norm(dim=1)  # [K]
    factors = (largest / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(_beside(factors, gradient))


def _beside(values: Tensor, weights: Tensor) -> Tensor:
    """Values [K], one a copy, in a shape that multiplies weights [K, ...]."""
    return values.view(-1, *[1] * (weights.dim() - 1))


class Fused:
    """Runs at the same step of the same schedule, updated together.

    The weights are here; the runs share one model and one optimizer, into which each's are copied when it is its turn
    to be evaluated or saved. So a run's checkpoint is that of a trial trained alone.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs, self.first, self.step = runs, runs[0], runs[0].progress.step  # a run that diverged ends before it
        self.model = stack([run.gpt for run in runs])
        self.losses = self.first.compiled(self._losses(token_losses(self.model)))
        self.optimizer = self._optimizer([run.optimizer.state_dict()["state"] for run in runs])
        for run in runs:
            run.fused, run.started = len(runs), time.monotonic() - run.progress.seconds
            run.gpt, run.nats, run.optimizer = self.first.gpt, self.first.nats, self.first.optimizer
            run.evaluation = self.first.evaluation

    def _losses(self, nats: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """Inputs and targets [K B, T] -> the mean loss of each copy [K]."""
        copies = len(self.runs)
        return lambda inputs, targets: nats(inputs, targets).view(copies, -1).mean(1)

    def _optimizer(self, states: Sequence[dict[int, dict[str, Tensor]]]) -> torch.optim.Optimizer:
        """One optimizer over all copies, which takes steps of rate one (see `_descend`)."""
        gpt = self.first.gpt
        optimizer = build_optimizer(gpt, self.first.train, width_scale(gpt.config))
        assert isinstance(optimizer, torch.optim.Optimizer), "planning refuses muon"
        stacks = {id(old): new for old, new in zip(gpt.parameters(), self.model.parameters(), strict=True)}
        for group in optimizer.param_groups:
            group["params"] = [stacks[id(parameter)] for parameter in group["params"]]
            group["lr"] = group.get("scale", 1.0)
        stacked = {
            index: {
                name: torch.stack([state[index][name] for state in states]) if value.dim() else value
                for name, value in values.items()
            }
            for index, values in states[0].items()
        }
        optimizer.load_state_dict({"state": stacked, "param_groups": optimizer.state_dict()["param_groups"]})
        return optimizer

    @property
    def unfinished(self) -> bool:
        """Whether there are steps left."""
        return self.step < self.first.end

    def update(self) -> None:
        """One optimizer step of every copy, each on its own batch."""
        begun = time.monotonic()
        batches = [run.batches.batch(self.step) for run in self.runs]
        inputs, targets = (torch.cat(each).to(self.first.device) for each in zip(*batches, strict=True))
        self.optimizer.zero_grad(set_to_none=True)
        with self.first.autocast():
            losses = self.losses(inputs, targets)  # [K]
        torch.autograd.backward(losses.sum())  # a copy's loss moves no other's weights
        if self.first.train.grad_clip:
            clip_each([p.grad for p in self.model.parameters() if p.grad is not None], self.first.train.grad_clip)
        self._descend([lr_at(self.step, run.end, run.train) for run in self.runs])
        self.step += 1
        for run, loss in zip(self.runs, losses.detach().double(), strict=True):
            run.advance(loss, begun)

    @torch.no_grad()
    def _descend(self, rates: list[float]) -> None:
        """Each copy goes its rate's share of a step of rate one: an update and its decay are linear in the rate."""
        before = [parameter.clone() for parameter in self.model.parameters()]
        self.optimizer.step()
        shares = torch.tensor(rates, device=self.first.device)
        for old, parameter in zip(before, self.model.parameters(), strict=True):
            torch.lerp(old, parameter, _beside(shares, old), out=parameter)

    @torch.no_grad()
    def turn(self, k: int) -> Run:
        """The run number k, its weights and its optimizer's state copied to where the runs find them."""
        run, state = self.runs[k], self.optimizer.state_dict()["state"]
        for mine, all_ in zip(run.gpt.parameters(), self.model.parameters(), strict=True):
            mine.copy_(all_[k])
        own = {
            index: {name: (value[k] if value.dim() else value).clone() for name, value in values.items()}
            for index, values in state.items()
        }
        run.optimizer.load_state_dict({"state": own, "param_groups": run.optimizer.state_dict()["param_groups"]})
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
    runs = [Run(trial, corpus, folder) for trial, folder in zip(trials, checkpoints, strict=True)]
    for place, run in enumerate(runs):
        for point in run.progress.points:
            report(place, point)
    by_step = sorted(range(len(runs)), key=lambda place: runs[place].progress.step)
    for _, places in itertools.groupby(by_step, key=lambda place: runs[place].progress.step):
        _train_in_step(runs, list(places), report, ended, should_stop)


def _train_in_step(
    runs: Sequence[Run],
    places: Sequence[int],
    report: Callable[[int, Point], None],
    ended: Callable[[int, Outcome], None],
    should_stop: Callable[[int], bool],
) -> None:
    fused = Fused([runs[place] for place in places])
    going = dict(enumerate(places))  # which copy is whose

    def end(k: int, outcome: Outcome) -> None:
        ended(going.pop(k), outcome)

    while fused.unfinished and going:
        fused.update()
        for k, place in list(going.items()):
            run = fused.turn(k) if fused.runs[k].point_is_due else fused.runs[k]
            if (diverged := run.assess(partial(report, place))) is not None:
                end(k, diverged)
        if fused.unfinished and should_stop(fused.step):
            for k in list(going):
                end(k, fused.turn(k).pause())
        elif any(fused.runs[k].save_is_due for k in going):
            for k in going:
                fused.turn(k).save()
    for k in list(going):
        end(k, fused.turn(k).close())
