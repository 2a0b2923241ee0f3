"""Optimizers and learning-rate schedules: pure functions of the configuration and the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lion_pytorch import Lion
from torch import nn

from tinyscale.spec.config import TrainConfig
from tinyscale.spec.costs import decay_steps

Groups = list[dict[str, Any]]  # of parameters, as PyTorch's optimizers take them


def lr_at(step: int, steps: int, train: TrainConfig) -> float:
    """Learning rate of the update number `step` (0-based) of `steps`.

    Linear warm-up over warmup_fraction of the steps; then the schedule brings lr to min_lr_ratio * lr at the last step
    (cosine, linear; wsd stays flat and falls linearly over the last decay_fraction) or leaves it (constant).
    """
    warmup = min(round(train.warmup_fraction * steps), steps - 1)
    if step < warmup:
        return train.lr * (step + 1) / warmup
    start = warmup if train.schedule != "wsd" else max(warmup, steps - decay_steps(steps, train))
    if train.schedule == "constant" or step < start:
        return train.lr
    done = min(1.0, (step + 1 - start) / (steps - start))  # in (0, 1]; 1 at the last step
    falling = 0.5 * (1 + math.cos(math.pi * done)) if train.schedule == "cosine" else 1 - done
    return train.lr * (train.min_lr_ratio + (1 - train.min_lr_ratio) * falling)


class MuonWithAdamW:
    """Muon (Jordan et al. 2024) for the matrices inside blocks, AdamW for all else, behind one optimizer's face.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, section 2.2), so one learning rate and one weight
    decay serve both.
    """

    def __init__(self, model: nn.Module, train: TrainConfig) -> None:
        matrices = [p for name, p in model.named_parameters() if name.startswith("blocks.") and p.dim() == 2]
        inside = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in model.parameters() if id(parameter) not in inside]
        muon = torch.optim.Muon(matrices, lr=train.lr, weight_decay=train.weight_decay, adjust_lr_fn="match_rms_adamw")
        self.parts: list[torch.optim.Optimizer] = [muon, _adamw(_groups(others, train), train)]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        """One update of all parameters."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed process needs."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for part, held in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(held)


def build_optimizer(
    model: nn.Module, train: TrainConfig, width_scale: float = 1.0
) -> torch.optim.Optimizer | MuonWithAdamW:
    """The optimizer over the model's parameters; matrices and embeddings decay, vectors (norms, biases) do not.

    width_scale: the rate of matrices inside the model and of the head over that of the others; a group's own is its
    `scale`.
    """
    if train.optimizer == "muon":
        return MuonWithAdamW(model, train)
    groups = _groups(model.parameters(), train)
    if width_scale != 1:
        wide = {id(p) for name, p in model.named_parameters() if p.dim() >= 2 and name.startswith(("blocks.", "head."))}
        narrow, *vectors = groups
        groups = [
            {**narrow, "params": [p for p in narrow["params"] if id(p) not in wide]},
            {**narrow, "params": [p for p in narrow["params"] if id(p) in wide], "scale": width_scale},
            *vectors,
        ]
    return BUILDERS[train.optimizer](groups, train)


def _lion(groups: Groups, train: TrainConfig) -> torch.optim.Optimizer:
    found: torch.optim.Optimizer = Lion(groups, lr=train.lr, betas=train.betas)
    return found


def _adamw(groups: Groups, train: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, fused=True)


# What TrainConfig.optimizer may be, but for muon, which wants to know what its parameters are in the model.
BUILDERS: dict[str, Callable[[Groups, TrainConfig], torch.optim.Optimizer]] = {"adamw": _adamw, "lion": _lion}


def _groups(parameters: Iterable[nn.Parameter], train: TrainConfig) -> Groups:
    """Those that decay, and those that do not."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
