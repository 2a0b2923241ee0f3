"""Optimizers, learning-rate schedules, and updates whose learning rate is a tensor on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from lion_pytorch import Lion
from torch import Tensor, nn

from tinyscale.spec.code import Code
from tinyscale.spec.config import ModelConfig, OwnOptimizer, TrainConfig
from tinyscale.spec.costs import decay_steps
from tinyscale.training.own import OwnModel, build_own_optimizer
from tinyscale.training.parametrization import Multipliers, is_matrix, multipliers

Groups = list[dict[str, Any]]  # PyTorch's parameter groups
Named = list[tuple[str, nn.Parameter]]  # parameters by their names in the model

ADAM_EPS = 1e-8


def lr_at(step: int, steps: int, train: TrainConfig) -> float:
    """Learning rate of update `step` (0-based) of `steps`.

    lr rises linearly over warmup_fraction of the steps. Then cosine and linear bring it to min_lr_ratio * lr at the
    last step; wsd keeps it constant and lowers it linearly over the last decay_fraction; constant keeps it.
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
    """Muon (Jordan et al. 2024) for block matrices and AdamW for all other parameters, with one optimizer's methods.

    Muon's updates are scaled to the RMS of AdamW's (Liu et al. 2025, section 2.2), so that both use the same learning
    rate and weight decay.
    """

    def __init__(self, named: Named, train: TrainConfig, config: ModelConfig | None) -> None:
        matrices = [each for each in named if is_matrix(*each, "blocks.")]
        others = [each for each in named if not is_matrix(*each, "blocks.")]
        groups = _groups(matrices, train, config)
        for group in groups:
            group.pop("eps", None)  # Adam's
        muon = torch.optim.Muon(groups, lr=train.lr, weight_decay=train.weight_decay, adjust_lr_fn="match_rms_adamw")
        self.parts: list[torch.optim.Optimizer] = [muon, _adamw(_groups(others, train, config), train)]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of both optimizers."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        """Update all parameters once."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of both optimizers."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for part, held in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(held)


def build_optimizer(
    model: nn.Module, train: TrainConfig, config: ModelConfig | None = None, code: Code | None = None
) -> torch.optim.Optimizer | MuonWithAdamW:
    """The optimizer of the model's parameters. Matrices and embeddings have weight decay, norms and biases do not.

    config: of the model, whose parametrization then scales the settings of each parameter. code: of a user's own
    optimizer.
    """
    user_sees, summing = (model.model, model.summing) if isinstance(model, OwnModel) else (model, None)
    named = [(name, parameter) for name, parameter in user_sees.named_parameters() if parameter.requires_grad]
    if isinstance(train.optimizer, OwnOptimizer):
        assert code is not None, "a trial has the code that its configuration names"
        return build_own_optimizer(code, named, train)
    if train.optimizer == "muon":
        return MuonWithAdamW(named, train, config)
    return BUILDERS[train.optimizer](_groups(named, train, config, summing), train)


def _lion(groups: Groups, train: TrainConfig) -> torch.optim.Optimizer:
    found: torch.optim.Optimizer = Lion(groups, lr=train.lr, betas=train.betas)
    return found


def _adamw(groups: Groups, train: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, fused=True)


# The builder of each entry of `config.OPTIMIZERS` except muon, which needs the names of the parameters.
BUILDERS: dict[str, Callable[[Groups, TrainConfig], torch.optim.Optimizer]] = {"adamw": _adamw, "lion": _lion}


def _groups(
    named: Named, train: TrainConfig, config: ModelConfig | None, summing: Collection[str] | None = None
) -> Groups:
    """Groups of parameters with the same settings: first those with weight decay, then those without.

    A group's `scale` multiplies its lr. summing: as `multipliers` takes it.
    """
    groups: dict[tuple[bool, Multipliers], dict[str, Any]] = {}
    for name, parameter in sorted(named, key=lambda each: each[1].dim() < 2):
        decays = parameter.dim() >= 2
        by = multipliers(name, parameter, config, train.rule, summing) if config else Multipliers()
        group = groups.setdefault((decays, by), {"params": []})
        group["params"].append(parameter)
        group |= {"weight_decay": by.weight_decay * train.weight_decay if decays else 0.0}
        group |= {"scale": by.lr} if by.lr != 1 else {}
        group |= {"eps": by.eps * ADAM_EPS} if by.eps != 1 else {}
    return list(groups.values())


def with_tensor_rate(optimizer: torch.optim.Optimizer | MuonWithAdamW) -> bool:
    """Whether the optimizer accepts a tensor as lr; if so, the lr of every group becomes one, on the device.

    Torch's optimizers that can be captured have a default `capturable`. Their kernels need an fp32 lr on a GPU. On a
    CPU they read a double, so that the update equals that of a Python float.
    """
    if isinstance(optimizer, MuonWithAdamW) or "capturable" not in optimizer.defaults:
        return False
    for group in optimizer.param_groups:
        device = group["params"][0].device
        exact = torch.float64 if device.type == "cpu" else torch.float32
        group["lr"] = torch.tensor(float(group["lr"]), dtype=exact, device=device)
    return True


def make_capturable(optimizer: torch.optim.Optimizer | MuonWithAdamW) -> None:
    """Keep the optimizer's step counters on the GPU, which recording its step requires."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = group["params"][0].device.type == "cuda"


def set_rate(optimizer: torch.optim.Optimizer | MuonWithAdamW, rate: Tensor) -> None:
    """Set the lr of each group to rate [] times the group's `scale`."""
    for group in optimizer.param_groups:
        scaled = rate * group.get("scale", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].copy_(scaled)
        else:
            group["lr"] = scaled.item()


class UnitRate:
    """Applies an update at lr 1, then interpolates: weights = before + lr * (after - before).

    The update and its weight decay are linear in lr (`OPTIMIZERS[...].linear_in_lr` in spec/config.py), so the result
    is the update at lr. This allows one lr per copy of K stacked models, and a tensor lr for optimizers that accept
    only numbers.
    """

    def __init__(self, optimizer: torch.optim.Optimizer | MuonWithAdamW) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group.get("scale", 1.0)
        self.weights: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self.before = [torch.empty_like(weight) for weight in self.weights]

    @torch.no_grad()
    def step(self, unit_step: Callable[[], Any], rates: Tensor) -> None:
        """Update at rates [K], one per copy of the weights [K, ...], or [1] for weights of a single model."""
        torch._foreach_copy_(self.before, self.weights)
        unit_step()
        torch._foreach_lerp_(self.before, self.weights, [per_copy(rates.to(w.dtype), w) for w in self.weights])
        torch._foreach_copy_(self.weights, self.before)


def per_copy(values: Tensor, weights: Tensor) -> Tensor:
    """Values [K], one per copy, reshaped to [K, 1, ...], which multiplies weights [K, ...]."""
    return values.view(-1, *[1] * (weights.dim() - 1))


def clip_each(gradients: Sequence[Tensor], largest: float) -> None:
    """Clip the gradients [K, ...] of each copy to a global norm of `largest`, as clip_grad_norm_ does for one model."""
    norms = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1).norm(dim=1)  # [K]
    factors = (largest / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(per_copy(factors, gradient))


def plain_state(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state as a checkpoint stores it: lr is a number, so that any device can load it."""
    if "parts" in state:
        return {"parts": [plain_state(part) for part in state["parts"]]}
    groups = [
        {**group, "lr": float(group["lr"]), **({"capturable": False} if "capturable" in group else {})}
        for group in state["param_groups"]
    ]
    return {**state, "param_groups": groups}
