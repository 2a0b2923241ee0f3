"""The state that a trial's next update depends on: weights, optimizer, loss scale; and the trial's stopwatch."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from tinyscale.spec.trial import Trial
from tinyscale.training.model import GPT
from tinyscale.training.optim import UnitRate, build_optimizer, make_capturable, plain_state, set_rate, with_tensor_rate
from tinyscale.training.own import build_model
from tinyscale.training.rounding import round_in_use

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainState:
    """Weights, the optimizer with its moment estimates, and the loss scale of fp16."""

    def __init__(self, trial: Trial, device: torch.device) -> None:
        self.device, self.train = device, trial.config.train
        torch.manual_seed(trial.config.seed)
        self.own = trial.own
        self.gpt = build_model(trial).to(device)
        if isinstance(self.gpt, GPT):
            round_in_use(self.gpt.blocks, self.train.weight_bits)
        self.optimizer = build_optimizer(self.gpt, self.train, trial.config.model, trial.own.optimizer)
        self.scaler: Any = torch.amp.GradScaler(device.type, enabled=self.train.precision == "fp16")
        self._fresh = self.optimizer.state_dict()
        self._prepare()

    def _prepare(self) -> None:
        """Give the optimizer an lr on the device, in its param_groups or by `UnitRate`."""
        self.unit_rate: UnitRate | None = None
        if self.own.optimizer:
            return  # of which only a number is known to work
        make_capturable(self.optimizer)
        if not with_tensor_rate(self.optimizer) and self.device.type != "cpu" and self.linear_in_lr:
            self.unit_rate = UnitRate(self.optimizer)

    @property
    def linear_in_lr(self) -> bool:
        """Whether an update at lr is lr times an update at lr 1."""
        return self.train.rule.linear_in_lr

    @property
    def takes_tensor_rate(self) -> bool:
        """Whether lr is a tensor on the device, which recording a step requires."""
        return self.unit_rate is not None or isinstance(self.optimizer.param_groups[0]["lr"], Tensor)

    def restart(self, trial: Trial) -> Self:
        """Set the same tensors to the initial state of another trial of this shape; returns self."""
        torch.manual_seed(trial.config.seed)
        self.gpt.load_state_dict(build_model(trial).state_dict())
        self.optimizer.load_state_dict(self._fresh)
        self._prepare()
        return self

    def autocast(self) -> AbstractContextManager[Any]:
        """Run matrix products in the trial's precision.

        Weights are cast at each use: a CUDA graph must not contain the copies that autocast would cache.
        """
        if self.train.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=AUTOCAST[self.train.precision], cache_enabled=False)

    def step(self, rates: Tensor) -> None:
        """Update the weights by the current gradients at rates [1]."""
        if self.unit_rate is not None:
            self.unit_rate.step(lambda: self.scaler.step(self.optimizer), rates)
        else:
            set_rate(self.optimizer, rates[0])
            self.scaler.step(self.optimizer)
        self.scaler.update()

    def state(self) -> dict[str, Any]:
        """The state as a checkpoint stores it. The tensors are the ones in use, not copies."""
        return {
            "model": self.gpt.state_dict(),
            "optimizer": plain_state(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
            **({"random": self._random_state()} if self.own.codes else {}),
        }

    def _random_state(self) -> list[Tensor]:
        """Of the generators that a user's own code may draw from, for dropout say; ours draws nothing in training."""
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else [])]

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned. The optimizer then holds new tensors."""
        self.gpt.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if random := [each.cpu() for each in state.get("random", [])]:
            torch.set_rng_state(random[0])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(random[-1], self.device)
        self._prepare()


@dataclass
class Stopwatch:
    """Seconds of a trial, summed over all attempts."""

    before: float = 0.0  # of previous attempts
    begun: float = field(default_factory=time.monotonic)

    def start(self) -> None:
        """Start the current attempt now."""
        self.begun = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds until now."""
        return self.before + time.monotonic() - self.begun
