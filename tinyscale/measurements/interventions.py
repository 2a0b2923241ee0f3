"""Parts of a model, and what they write replaced: by hooks on the plain modules, whose calls are counted.

A part writes to the residual stream. The attention or MLP of a layer writes the module's output; a head, its part of
the input of the attention's last projection; a block, the whole residual stream after it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tinyscale.errors import ConfigError
from tinyscale.training.model import GPT, Attention

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Component:
    """A part of a model that writes to the residual stream. head: of those of the layer's queries."""

    component: Literal["attention", "mlp", "head", "block"]
    layer: int
    head: int | None = None


def sublayers(gpt: GPT) -> list[Component]:
    """Attention and MLP of each layer."""
    return [Component(part, layer) for layer in range(len(gpt.blocks)) for part in ("attention", "mlp")]


def heads(gpt: GPT) -> list[Component]:
    """Each attention head of each layer."""
    numbers = range(gpt.config.n_heads)
    return [Component("head", layer, head) for layer in range(len(gpt.blocks)) for head in numbers]


@contextmanager
def edited(gpt: GPT, edits: Mapping[Component, Edit]) -> Iterator[GPT]:
    """The same model, in which what these parts write, [B, T, D] (a head: [B, T, K]), goes through a function first.

    Left with an error of ours where a part was not called in each pass, as in compiled code.
    """
    calls: Counter[Component | None] = Counter()
    handles = [gpt.register_forward_pre_hook(lambda *_: calls.update([None]))]
    try:
        handles += [_hook(gpt, part, _counted(calls, part, edit)) for part, edit in edits.items()]
        yield gpt
    finally:
        for handle in handles:
            handle.remove()
    assert all(calls[part] == calls[None] for part in edits), "each part is called once in each pass"


def patch(gpt: GPT, clean: Tensor, corrupt: Tensor, *parts: Component) -> Tensor:
    """Logits [B, T, V] for the corrupt tokens [B, T], with what the parts write for the clean ones [B, T].

    The parts that restore what the model says for the clean tokens are those that carry the difference (activation
    patching: Meng et al. 2022, 2202.05262; Zhang & Nanda 2023, 2309.16042). ConfigError where the tokens have not one
    shape.
    """
    if clean.shape != corrupt.shape:
        raise ConfigError(
            f"clean tokens {list(clean.shape)} and corrupt ones {list(corrupt.shape)} do not stand for each other "
            "position by position; give sequences of one length"
        )
    with torch.inference_mode():
        written = record(gpt, clean, *parts)
        with edited(gpt, {part: _replacing(written[part]) for part in parts}):
            return torch.as_tensor(gpt(corrupt)[0])


def record(gpt: GPT, tokens: Tensor, *parts: Component) -> dict[Component, Tensor]:
    """What the parts write for tokens [B, T]: [B, T, D], or of a head [B, T, K]."""
    written: dict[Component, Tensor] = {}

    def keeping(part: Component) -> Edit:
        return lambda value: written.setdefault(part, value.clone())

    with torch.inference_mode(), edited(gpt, {part: keeping(part) for part in parts}):
        gpt(tokens)
    return written


def attention_weights(gpt: GPT, tokens: Tensor) -> Tensor:
    """How much each head at each position attends to each position: tokens [B, T] -> [layers, B, H, T, T]."""
    found: list[Tensor] = []

    def keep(attention: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(attention, Attention)
        found.append(weights(attention, inputs[0]))

    handles = [_block(gpt, layer).attention.register_forward_pre_hook(keep) for layer in range(len(gpt.blocks))]
    try:
        with torch.inference_mode():
            gpt(tokens)
    finally:
        for handle in handles:
            handle.remove()
    assert len(found) == len(gpt.blocks), "each layer is called once"
    return torch.stack(found)


def weights(attention: Attention, x: Tensor) -> Tensor:
    """The weights that the module gives to the values, which its fused kernel hides: x [B, T, D] -> [B, H, T, T]."""
    q, k, _ = attention.queries_keys_values(x)
    scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
    future = torch.full(scores.shape[-2:], float("-inf")).triu(1)
    return torch.softmax(scores + future, dim=-1)


def _replacing(value: Tensor) -> Edit:
    return lambda _: value


def _counted(calls: Counter[Component | None], part: Component, edit: Edit) -> Edit:
    def counting(value: Tensor) -> Tensor:
        calls[part] += 1
        return edit(value)

    return counting


def _block(gpt: GPT, layer: int) -> Any:
    return gpt.blocks[layer]


def _hook(gpt: GPT, part: Component, edit: Edit) -> RemovableHandle:
    """Put the edit where the part writes."""
    block, head = _block(gpt, part.layer), part.head
    if head is None:
        module = block if part.component == "block" else getattr(block, part.component)
        return module.register_forward_hook(lambda _module, _inputs, output: edit(output))  # type: ignore[no-any-return]
    width = block.attention.head_dim

    def edit_head(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        joined = inputs[0].clone()
        own = slice(head * width, (head + 1) * width)
        joined[..., own] = edit(joined[..., own])
        return (joined,)

    return block.attention.out.register_forward_pre_hook(edit_head)  # type: ignore[no-any-return]
