"""Weights rounded to a few bits: what it costs in loss, and how many bits the model then takes.

`nearest` rounds each weight by itself. `gptq` rounds a linear layer column by column, and moves the columns that are
left so that its outputs change least, given the inputs that it has on training text (Frantar et al. 2022, 2210.17323,
algorithm 1). The blocks follow one another: the inputs of each come from the rounded blocks before it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tinyscale.measurements.subject import Subject
from tinyscale.spec.measurement import Quantize
from tinyscale.training.batches import batches_of
from tinyscale.training.model import GPT
from tinyscale.training.own import OwnModel
from tinyscale.training.rounding import rounded, scale_of, to_grid

SCALE_BITS, PLAIN_BITS = 16, 32  # of a scale, and of a parameter that is not rounded
READ_TOKENS = 16384  # training tokens that gptq takes the inputs of layers from
DAMPING = 0.01  # of the mean of the Hessian's diagonal, added to it: section 3.3 of the paper


def measure(subject: Subject, asked: Quantize) -> list[dict[str, Any]]:
    """One row: the loss of the rounded model, and `model_bits`."""
    gpt = copy.deepcopy(subject.model)
    round_model(gpt, asked, subject)
    return [{**subject.scored(gpt), "model_bits": model_bits(gpt, asked)}]


@torch.no_grad()
def round_model(gpt: GPT | OwnModel, asked: Quantize, subject: Subject) -> None:
    """Round the model's matrices in place. subject: whose training text gptq reads; nothing else does."""
    parts: list[list[nn.Linear]] = []
    if asked.method == "gptq":
        assert isinstance(gpt, GPT), "planning refuses a user's own model"
        parts = linear_layers(gpt, asked.of)
    later = {layer.weight for layers in parts for layer in layers}
    for matrix in matrices(gpt, asked.of):
        if matrix not in later:
            matrix.copy_(rounded(matrix, asked.bits, asked.group))
    for layers in parts:
        assert isinstance(gpt, GPT)
        for layer, hessian in zip(layers, hessians(gpt, layers, training_text(subject)), strict=True):
            layer.weight.copy_(rounded_together(layer.weight, hessian, asked.bits, asked.group))


def matrices(gpt: GPT | OwnModel, of: str) -> list[nn.Parameter]:
    """The matrices to round, learned positions among `all`, a tied head once; vectors (norms, biases) stay."""
    part = gpt if of == "all" or not isinstance(gpt, GPT) else gpt.blocks
    return [parameter for parameter in part.parameters() if parameter.ndim == 2]


def model_bits(gpt: GPT | OwnModel, asked: Quantize) -> int:
    """Bits of all parameters, a tied head once: rounded weights with their scales, and the others.

    A scale has 16 bits, one per row or group; what is not rounded has 32, as it was trained. The model that is scored
    has its scales in 32, which 16 would move by less than a step at 10 bits.
    """
    total = PLAIN_BITS * sum(parameter.numel() for parameter in gpt.parameters())
    for matrix in matrices(gpt, asked.of):
        scales = matrix.numel() // (asked.group or matrix.shape[1])
        total += (asked.bits - PLAIN_BITS) * matrix.numel() + SCALE_BITS * scales
    return total


def linear_layers(gpt: GPT, of: str) -> list[list[nn.Linear]]:
    """What gptq rounds, in turn: the layers of each block, then the head.

    Embeddings have no inputs to weigh by: they are rounded to nearest, and with them a head that is tied to one.
    """
    blocks = [[layer for layer in block.modules() if isinstance(layer, nn.Linear)] for block in gpt.blocks]
    return [*blocks, [gpt.head]] if of == "all" and gpt.head.weight is not gpt.embedding.weight else blocks


def training_text(subject: Subject) -> Tensor:
    """Tokens [B, T] of the trial's training text, as its first steps read them."""
    rows = max(1, READ_TOKENS // subject.trial.config.model.context_length)
    return batches_of(subject.trial, subject.corpus, rows).batch(0)[0].to(subject.device)


def hessians(gpt: GPT, layers: Sequence[nn.Linear], tokens: Tensor) -> list[Tensor]:
    """For each layer, the mean product of its inputs [I, I] in fp64: half the Hessian of its squared error."""
    found: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].flatten(0, -2).double()
        found[layer] = x.T @ x / len(x)

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        gpt(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return [found[layer] for layer in layers]


def rounded_together(matrix: Tensor, hessian: Tensor, bits: int, group: int | None) -> Tensor:
    """The matrix [O, I] rounded to the grids of `rounded`, with each column's error made up for by those after it.

    The scale of a group is that of its weights when its first column is due. hessian: [I, I] of the inputs.
    """
    left, width = matrix.double(), matrix.shape[1]
    damping = DAMPING * hessian.diagonal().mean().clamp(min=torch.finfo(matrix.dtype).tiny)
    damped = hessian + damping * torch.eye(width, dtype=hessian.dtype, device=hessian.device)
    spread = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    group = group or width
    for column in range(width):
        if column % group == 0:
            scale = scale_of(left[:, column : column + group], bits)
        wanted = left[:, column : column + 1].clone()
        left[:, column : column + 1] = to_grid(wanted, scale, bits)
        error = (wanted - left[:, column : column + 1]) / spread[column, column]
        left[:, column + 1 :] -= error @ spread[column : column + 1, column + 1 :]
    return left.to(matrix.dtype)
