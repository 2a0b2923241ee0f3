"""Weights rounded to a few bits: what it costs in loss, and how many bits the model then takes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tinyscale.measurements.subject import Subject
from tinyscale.spec.measurement import Quantize


def measure(subject: Subject, asked: Quantize) -> list[dict[str, Any]]:
    """One row: the loss of the rounded model, and `model_bits`."""
    gpt = copy.deepcopy(subject.gpt)
    for matrix in matrices(gpt, asked.of):
        with torch.no_grad():
            matrix.copy_(rounded(matrix, asked.bits, asked.group))
    return [{**subject.scored(gpt)}]


def matrices(gpt: nn.Module, of: str) -> list[nn.Parameter]:
    """The matrices to round, a tied head once."""
    named = dict.fromkeys(parameter for name, parameter in gpt.named_parameters() if parameter.ndim == 2)
    if of == "all":
        return list(named)
    inside = {id(parameter) for parameter in gpt.blocks.parameters()}  # type: ignore[union-attr]
    return [matrix for matrix in named if id(matrix) in inside]


def rounded(matrix: Tensor, bits: int, group: int | None) -> Tensor:
    """The matrix [O, I] with each weight at the nearest of 2^bits multiples of its group's scale.

    The scale of a row, or of `group` weights in it, is max(-min w / 2^(bits - 1), max w / (2^(bits - 1) - 1)), the
    smallest that clips nothing.
    """
    most = 2 ** (bits - 1)
    groups = matrix.reshape(matrix.shape[0], -1, group or matrix.shape[1])
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = torch.maximum(-low / most, high / (most - 1))
    scale = torch.where(scale > 0, scale, 1.0)
    return (groups / scale).round().clamp(-most, most - 1).mul(scale).reshape(matrix.shape)
