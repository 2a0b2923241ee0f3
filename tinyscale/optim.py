"""Optimizers and learning-rate schedules: pure functions of the configuration and the step."""

from __future__ import annotations

import math

import torch
from lion_pytorch import Lion
from torch import nn

from tinyscale.config import TrainConfig


def lr_at(step: int, steps: int, train: TrainConfig) -> float:
    """Learning rate of the update number `step` (0-based) of `steps`.

    Linear warm-up over warmup_fraction of the steps; then the schedule brings lr to min_lr_ratio * lr at the last step
    (cosine, linear; wsd stays flat and falls linearly over the last decay_fraction) or leaves it (constant).
    """
    warmup = min(round(train.warmup_fraction * steps), steps - 1)
    if step < warmup:
        return train.lr * (step + 1) / warmup
    start = warmup if train.schedule != "wsd" else max(warmup, steps - max(1, round(train.decay_fraction * steps)))
    if train.schedule == "constant" or step < start:
        return train.lr
    done = min(1.0, (step + 1 - start) / (steps - start))  # in (0, 1]; 1 at the last step
    falling = 0.5 * (1 + math.cos(math.pi * done)) if train.schedule == "cosine" else 1 - done
    return train.lr * (train.min_lr_ratio + (1 - train.min_lr_ratio) * falling)


def build_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer over the model's parameters; matrices and embeddings decay, vectors (norms, biases) do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    if train.optimizer == "lion":
        lion: torch.optim.Optimizer = Lion(groups, lr=train.lr, betas=train.betas)
        return lion
    return torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, fused=True)
