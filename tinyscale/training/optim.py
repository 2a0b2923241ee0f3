"""Optimizers, learning-rate schedules, and how a rate that lies on the device reaches an optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lion_pytorch import Lion
from torch import Tensor, nn

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


# What builds each entry of `config.OPTIMIZERS` but muon, which wants to know what its parameters are in the model.
BUILDERS: dict[str, Callable[[Groups, TrainConfig], torch.optim.Optimizer]] = {"adamw": _adamw, "lion": _lion}


def _groups(parameters: Iterable[nn.Parameter], train: TrainConfig) -> Groups:
    """Those that decay, and those that do not."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


def with_tensor_rate(optimizer: torch.optim.Optimizer | MuonWithAdamW) -> bool:
    """Whether the optimizer can take its rate as a tensor; if so, every group holds one from now on.

    Torch marks what can be captured by `capturable`. Its kernels want the tensor in fp32 on a GPU and read it as a
    double on a CPU, where the numbers are then those of a rate that is a Python float.
    """
    if isinstance(optimizer, MuonWithAdamW) or "capturable" not in optimizer.defaults:
        return False
    for group in optimizer.param_groups:
        device = group["params"][0].device
        exact = torch.float64 if device.type == "cpu" else torch.float32
        group["lr"] = torch.tensor(float(group["lr"]), dtype=exact, device=device)
    return True


def make_capturable(optimizer: torch.optim.Optimizer | MuonWithAdamW) -> None:
    """Keep all that the optimizer counts on the GPU, as recording its step needs."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = group["params"][0].device.type == "cuda"


def set_rate(optimizer: torch.optim.Optimizer | MuonWithAdamW, rate: Tensor) -> None:
    """Give each group the rate [], times the group's own scale."""
    for group in optimizer.param_groups:
        scaled = rate * group.get("scale", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].copy_(scaled)
        else:
            group["lr"] = scaled.item()


class UnitRate:
    """Steps of rate one, of which each copy of the weights goes its own rate's share.

    An update and its decay are linear in the rate (`config.OPTIMIZERS`), so the share is the step of that rate. It
    serves K copies with rates of their own, and optimizers that take their rate as a number only.
    """

    def __init__(self, optimizer: torch.optim.Optimizer | MuonWithAdamW) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group.get("scale", 1.0)
        self.weights: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self.reached = [torch.empty_like(weight) for weight in self.weights]

    @torch.no_grad()
    def step(self, unit_step: Callable[[], Any], rates: Tensor) -> None:
        """Take a step at rates [K], one a copy of the weights [K, ...], or [1] for weights without copies."""
        torch._foreach_copy_(self.reached, self.weights)
        unit_step()
        torch._foreach_lerp_(self.reached, self.weights, [per_copy(rates.to(w.dtype), w) for w in self.weights])
        torch._foreach_copy_(self.weights, self.reached)


def per_copy(values: Tensor, weights: Tensor) -> Tensor:
    """Values [K], one a copy, in a shape that multiplies weights [K, ...]."""
    return values.view(-1, *[1] * (weights.dim() - 1))


def clip_each(gradients: Sequence[Tensor], largest: float) -> None:
    """Scale the gradients [K, ...] of each copy to a joint norm of at most `largest`, as torch does for one model."""
    norms = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1).norm(dim=1)  # [K]
    factors = (largest / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(per_copy(factors, gradient))


def plain_state(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state as a checkpoint holds it, on whatever device it was: a rate is a number."""
    if "parts" in state:
        return {"parts": [plain_state(part) for part in state["parts"]]}
    groups = [
        {**group, "lr": float(group["lr"]), **({"capturable": False} if "capturable" in group else {})}
        for group in state["param_groups"]
    ]
    return {**state, "param_groups": groups}
