"""Training batches and validation windows, as torch tensors.

Labels are shifted here and nowhere else: a target is the token after its input.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tinyscale.errors import DataError
from tinyscale.spec.costs import token_bytes

NOT_SCORED = -100  # cross_entropy's default ignore_index: the loss skips such a target

Tokens = npt.NDArray[np.integer[Any]]


class TrainBatches:
    """Blocks of context_length tokens of a stream, shuffled anew for each epoch and seed.

    A batch depends on the constructor's arguments and the step only, so a checkpoint holds no state of the data.
    """

    def __init__(
        self, stream: Tokens, context_length: int, batch_size: int, seed: int, unique_tokens: int | None = None
    ) -> None:
        """Read batch_size rows per step from the stream, or from its first unique_tokens tokens.

        DataError if the stream is shorter than one block.
        """
        self.stream = stream if unique_tokens is None else stream[:unique_tokens]
        self.context_length = context_length
        self.batch_size = batch_size
        self.seed = seed
        self._order = lru_cache(maxsize=2)(self._shuffle)  # a batch spans at most two epochs, except in tiny corpora
        self.n_blocks = (len(self.stream) - 1) // context_length  # the last target is one token later
        if not self.n_blocks:
            raise DataError(
                f"{len(self.stream):,} training tokens do not fill one context_length of {context_length:,}; "
                f"shorten it or use more text"
            )

    @property
    def epoch_tokens(self) -> int:
        """Targets per epoch."""
        return self.n_blocks * self.context_length

    def blocks(self, step: int, rank: int = 0, world: int = 1) -> npt.NDArray[np.int64]:
        """Numbers of the blocks that a step reads, [batch_size / world]; a rank reads every world-th row."""
        rows = np.arange(step * self.batch_size + rank, (step + 1) * self.batch_size, world)
        epochs, within = np.divmod(rows, self.n_blocks)
        blocks = np.empty_like(rows)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            blocks[in_epoch] = self._order(int(epoch))[within[in_epoch]]
        return blocks

    def windows(self, blocks: npt.NDArray[np.int64]) -> Tokens:
        """Blocks [rows] -> their tokens and the token after each block, [rows, context_length + 1], stream's dtype."""
        windows: Tokens = self.stream[blocks[:, None] * self.context_length + np.arange(self.context_length + 1)]
        return windows

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of a step, int64 [batch_size / world, context_length]; a rank reads every world-th row."""
        return inputs_and_targets(torch.from_numpy(self.windows(self.blocks(step, rank, world)).astype(np.int64)))

    def _shuffle(self, epoch: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(self.n_blocks)


def as_tensor(tokens: Tokens, vocab_size: int) -> torch.Tensor:
    """The tokens as int16 or int32, the smaller one that holds the vocabulary; torch cannot index uint16."""
    return torch.from_numpy(np.asarray(tokens).astype(f"i{token_bytes(vocab_size)}"))


def gather(text: torch.Tensor, blocks: torch.Tensor, context_length: int) -> torch.Tensor:
    """`TrainBatches.windows` for tensors on a device: blocks [rows] of a text -> [rows, context_length + 1]."""
    columns = torch.arange(context_length + 1, device=text.device)
    return text[blocks[:, None] * context_length + columns]


def inputs_and_targets(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows [rows, T + 1] -> inputs and targets, int64 [rows, T] each."""
    return windows[:, :-1].contiguous().long(), windows[:, 1:].contiguous().long()


def val_windows(
    stream: Tokens, document_ids: Tokens, context_length: int, eot: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, targets and the document of each target, int64 [W, context_length] each, of a validation stream.

    Every token of a document is a target exactly once, for any context length. End-of-text and padding after the
    stream's end are NOT_SCORED. document_ids: the document of each token; padding gets that of the last token.
    """
    targets = np.asarray(stream[1:], dtype=np.int64)
    return (
        _rows(np.asarray(stream[:-1], dtype=np.int64), context_length, eot),
        _rows(np.where(targets == eot, NOT_SCORED, targets), context_length, NOT_SCORED),
        _rows(np.asarray(document_ids[1:], dtype=np.int64), context_length, int(document_ids[-1])),
    )


def oracle_windows(oracle: npt.NDArray[np.float64], context_length: int) -> torch.Tensor:
    """Loss of each target of `val_windows` under the true source, nats, float64 [W, context_length]; padding is 0."""
    return _rows(np.asarray(oracle[1:]), context_length, 0)


def _rows(values: npt.NDArray[Any], width: int, padding: int) -> torch.Tensor:
    padded = np.pad(values, (0, -len(values) % width), constant_values=padding)
    return torch.from_numpy(padded.reshape(-1, width))
