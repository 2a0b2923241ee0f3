"""What a trial's next update depends on, and the clock of its seconds."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from tinyscale.spec.config import OPTIMIZERS
from tinyscale.spec.trial import Trial
from tinyscale.training.model import GPT, width_scale
from tinyscale.training.optim import UnitRate, build_optimizer, make_capturable, plain_state, set_rate, with_tensor_rate

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainState:
    """Weights, the optimizer with its averages, and the loss scale."""

    def __init__(self, trial: Trial, device: torch.device) -> None:
        self.device, self.train = device, trial.config.train
        torch.manual_seed(trial.config.seed)
        self.gpt = GPT(trial.config.model, trial.vocab_size).to(device)
        self.optimizer = build_optimizer(self.gpt, self.train, width_scale(trial.config.model))
        self.scaler: Any = torch.amp.GradScaler(device.type, enabled=self.train.precision == "fp16")
        self._fresh = self.optimizer.state_dict()
        self._prepare()

    def _prepare(self) -> None:
        """Let the optimizer take its rate on the device."""
        make_capturable(self.optimizer)
        self.unit_rate: UnitRate | None = None
        if not with_tensor_rate(self.optimizer) and self.device.type != "cpu" and self.linear_in_lr:
            self.unit_rate = UnitRate(self.optimizer)

    @property
    def linear_in_lr(self) -> bool:
        """Whether a step at a rate is that share of a step of rate one."""
        return OPTIMIZERS[self.train.optimizer].linear_in_lr

    @property
    def takes_tensor_rate(self) -> bool:
        """Whether the optimizer takes its rate on the device, so that its steps can be recorded."""
        return self.unit_rate is not None or isinstance(self.optimizer.param_groups[0]["lr"], Tensor)

    def restart(self, trial: Trial) -> Self:
        """The same tensors for another trial of this shape, as they are before its first step."""
        torch.manual_seed(trial.config.seed)
        self.gpt.load_state_dict(GPT(trial.config.model, trial.vocab_size).state_dict())
        self.optimizer.load_state_dict(self._fresh)
        self._prepare()
        return self

    def autocast(self) -> AbstractContextManager[Any]:
        """Matrix products in the precision asked for; no copies of weights are kept, which a recording must not see."""
        if self.train.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=AUTOCAST[self.train.precision], cache_enabled=False)

    def step(self, rates: Tensor) -> None:
        """Let the optimizer take a step at the rate [1] by the gradients that are there."""
        if self.unit_rate is not None:
            self.unit_rate.step(lambda: self.scaler.step(self.optimizer), rates)
        else:
            set_rate(self.optimizer, rates[0])
            self.scaler.step(self.optimizer)
        self.scaler.update()

    def state(self) -> dict[str, Any]:
        """All of it, as a checkpoint holds it; the tensors are the ones in use."""
        return {
            "model": self.gpt.state_dict(),
            "optimizer": plain_state(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`. The optimizer's tensors are others afterwards."""
        self.gpt.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self._prepare()


@dataclass
class Stopwatch:
    """Seconds of a trial over all attempts at it."""

    before: float = 0.0  # of the attempts that led here
    begun: float = field(default_factory=time.monotonic)

    def start(self) -> None:
        """Count from now on, after the attempts before."""
        self.begun = time.monotonic()

    @property
    def seconds(self) -> float:
        """So far."""
        return self.before + time.monotonic() - self.begun
