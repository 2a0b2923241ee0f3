"""The memory of a training step by its parts, counted and not forecast, and that of use per token of context."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tinyscale.measurements.subject import Subject
from tinyscale.spec.costs import kv_cache_numbers
from tinyscale.spec.measurement import Memory
from tinyscale.training.loop import single_update
from tinyscale.training.train_state import TrainState


@dataclass
class Kept:
    """Bytes that autograd keeps for the backward pass of a model with a `head`, beside its parameters and buffers.

    Each storage counts once, however many tensors view it. logits: those kept after the head has computed them.
    """

    model: nn.Module
    activations: dict[int, torch.UntypedStorage] = field(default_factory=dict)
    logits: dict[int, torch.UntypedStorage] = field(default_factory=dict)

    def __enter__(self) -> Kept:
        held = {each.untyped_storage().data_ptr() for each in (*self.model.parameters(), *self.model.buffers())}
        now = [self.activations]

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in held | self.activations.keys():
                now[0][storage.data_ptr()] = storage  # held here, or its place could be taken by another
            return tensor

        def after_head(*_: Any) -> None:
            now[0] = self.logits

        self._hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        self._head = self.model.get_submodule("head").register_forward_hook(after_head)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)
        self._head.remove()

    @property
    def activation_bytes(self) -> int:
        """Of all but the logits."""
        return sum(storage.nbytes() for storage in self.activations.values())

    @property
    def logits_bytes(self) -> int:
        """Of what the loss keeps of the logits."""
        return sum(storage.nbytes() for storage in self.logits.values())


def measure(subject: Subject, _: Memory) -> list[dict[str, Any]]:
    """One row, of a step of one worker from the initial weights: no number depends on the text or on what was learned.

    state_bytes: what the optimizer holds after a step; peak_bytes: of a step without any count, null on a CPU;
    cache_bytes_per_token: keys and values, in the precision of the training.
    """
    config, device = subject.trial.config, subject.device
    rows = config.train.batch_tokens // config.model.context_length // config.resources.workers
    tokens = torch.zeros(rows, config.model.context_length, dtype=torch.int64, device=device)
    rates = torch.zeros(1, device=device)
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    state = TrainState(subject.trial, device)
    update = single_update(state, lambda inputs, targets: state.gpt(inputs, targets)[1])
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    update(tokens, tokens, rates)
    peak = torch.cuda.max_memory_allocated(device) - before if on_gpu else None
    with Kept(state.gpt) as kept:
        update(tokens, tokens, rates)
    return [
        {
            "weight_bytes": sum(parameter.nbytes for parameter in state.gpt.parameters()),
            "state_bytes": state_bytes(state),
            "saved_bytes": kept.activation_bytes,
            "logits_bytes": kept.logits_bytes,
            "peak_bytes": peak,
            "cache_bytes_per_token": kv_cache_numbers(config.model) * (4 if config.train.precision == "fp32" else 2),
        }
    ]


def state_bytes(state: TrainState) -> int:
    """Bytes of the tensors that the optimizer keeps between steps."""
    parts = getattr(state.optimizer, "parts", [state.optimizer])
    held = (value for part in parts for values in part.state.values() for value in values.values())
    return sum(value.nbytes for value in held if isinstance(value, Tensor))
