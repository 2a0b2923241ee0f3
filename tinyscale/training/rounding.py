"""Rounding of weights to a few bits: the one rule of measurements after training and of training itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def scale_of(weights: Tensor, bits: int) -> Tensor:
    """The step of the grid of weights [..., I] that share one: [..., 1].

    It is max(-min w / 2^(bits - 1), max w / (2^(bits - 1) - 1)), the smallest that clips nothing; 1 where all are zero.
    """
    most = 2 ** (bits - 1)
    low, high = weights.amin(-1, keepdim=True), weights.amax(-1, keepdim=True)
    scale = torch.maximum(-low / most, high / (most - 1))
    return torch.where(scale > 0, scale, 1.0)


def to_grid(weights: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The nearest of the 2^bits multiples of the scale that a signed number of so many bits counts."""
    most = 2 ** (bits - 1)
    return (weights * (1 / scale)).round().clamp(-most, most - 1) * scale


def rounded(matrix: Tensor, bits: int, group: int | None = None) -> Tensor:
    """The matrix [O, I] with each weight at the nearest point of the grid of its row, or of its `group` of a row."""
    groups = matrix.reshape(*matrix.shape[:-1], -1, group or matrix.shape[-1])
    return to_grid(groups, scale_of(groups, bits), bits).flatten(-2)


class Linear(nn.Linear):
    """A linear layer whose weights may be rounded at each use; those that it holds stay as the optimizer has them.

    bits: of a weight in the forward pass; None: no rounding. The gradient is that of the rounded weights, handed to the
    held ones as it is (straight-through: Bengio et al. 2013, 1308.3432).
    """

    bits: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.bits is None:
            return super().forward(x)
        held = self.weight
        return F.linear(x, rounded(held.detach(), self.bits) + (held - held.detach()), self.bias)  # the sum is exact


def round_in_use(blocks: nn.Module, bits: int | None) -> None:
    """Round the matrices of the blocks at each use; None: not."""
    for layer in blocks.modules():
        if isinstance(layer, Linear):
            layer.bits = bits


@torch.no_grad()
def round_for_good(blocks: nn.Module, bits: int) -> None:
    """Replace the matrices of the blocks by what `round_in_use` has in their place."""
    for layer in blocks.modules():
        if isinstance(layer, Linear):
            layer.weight.copy_(rounded(layer.weight, bits))
