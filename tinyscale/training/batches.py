"""Training batches and validation windows, as torch tensors.

Labels are shifted here and nowhere else: a target is the token after its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tinyscale.data import TokenizedCorpus
from tinyscale.errors import DataError
from tinyscale.spec.costs import token_bytes
from tinyscale.spec.trial import Trial

NOT_SCORED = -100  # cross_entropy's default ignore_index: the loss skips such a target

Tokens = npt.NDArray[np.integer[Any]]


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / the golden ratio
_CHUNK = 1 << 20  # rows that are counted at a time


class PartOfStream(NamedTuple):
    """A part of a mixture: the positions [first, end) of its tokens in the stream, and its share of the rows.

    number: of the part among all those of the text, so that its order is the same beside whatever other parts.
    """

    first: int
    end: int
    share: float
    number: int


class Interleaving:
    """Which part of a mixture each row of a run is of: the one in whose share of [0, 1) frac(row / golden ratio) falls.

    These fractions lie as evenly as any can, so that the shares are right to a few rows at every step.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self.starts = np.cumsum(shares)[:-1]  # of the second part and the later ones
        self.n_parts = len(shares)
        self._counted = (0, np.zeros(self.n_parts, np.int64))

    def of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Index of the part of each row [n]."""
        fractions = (rows.astype(np.uint64) * _GOLDEN >> np.uint64(11)) * 2.0**-53  # modulo 2^64, hence exact
        return np.searchsorted(self.starts, fractions, side="right")

    def before(self, row: int) -> npt.NDArray[np.int64]:
        """Number of rows of each part among the first `row` rows. What was counted last is kept, for speed alone."""
        at, counts = self._counted if self._counted[0] <= row else (0, np.zeros(self.n_parts, np.int64))
        while at < row:
            end = min(at + _CHUNK, row)
            counts = counts + np.bincount(self.of(np.arange(at, end)), minlength=self.n_parts)
            at = end
        self._counted = (at, counts)
        return counts


class TrainBatches:
    """Blocks of context_length tokens of a stream, shuffled anew for each epoch and seed.

    A batch depends on the constructor's arguments and the step only, so a checkpoint holds no state of the data. Parts
    of a mixture keep their own blocks, order and epochs.
    """

    def __init__(
        self,
        stream: Tokens,
        context_length: int,
        batch_size: int,
        seed: int,
        unique_tokens: int | None = None,
        parts: Sequence[PartOfStream] = (),
    ) -> None:
        """Read batch_size rows per step from the stream, from its first unique_tokens tokens, or from parts of it.

        DataError if the stream, or a part, is shorter than one block.
        """
        self.stream = stream if unique_tokens is None else stream[:unique_tokens]
        self.context_length = context_length
        self.batch_size = batch_size
        self.seed = seed
        self.parts = parts
        self.interleaving = Interleaving([part.share for part in parts] or [1.0])
        # A batch spans at most two epochs, except in tiny corpora.
        self._order = lru_cache(maxsize=2 * max(1, len(parts)))(self._shuffle)
        ranges = [(part.first, part.end) for part in parts] or [(0, len(self.stream))]
        self._first = [-(-first // context_length) for first, _ in ranges]  # blocks lie at multiples of their length
        last = [(end - 1) // context_length for _, end in ranges]  # the last target is one token later
        self._n_blocks = [end - first for first, end in zip(self._first, last, strict=True)]
        if min(self._n_blocks) < 1:
            fewest = min(end - first for first, end in ranges)
            raise DataError(
                f"{fewest:,} training tokens do not fill one context_length of {context_length:,}; "
                f"shorten it or use more text"
            )

    @property
    def n_blocks(self) -> int:
        """Blocks, of all parts together."""
        return sum(self._n_blocks)

    @property
    def epoch_tokens(self) -> int:
        """Targets per epoch."""
        return self.n_blocks * self.context_length

    def blocks(self, step: int, rank: int = 0, world: int = 1) -> npt.NDArray[np.int64]:
        """Numbers of the blocks that a step reads, [batch_size / world]; a rank reads every world-th row."""
        start = step * self.batch_size
        rows = np.arange(start, start + self.batch_size)
        part = self.interleaving.of(rows)
        blocks = np.empty_like(rows)
        for index, before in enumerate(self.interleaving.before(start)):
            own = part == index
            blocks[own] = self._nth(index, before + np.arange(np.count_nonzero(own)))
        return blocks[rank::world]

    def _nth(self, part: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The blocks that these rows of a part read, counted within the part."""
        epochs, within = np.divmod(rows, self._n_blocks[part])
        blocks = np.empty_like(rows)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            blocks[in_epoch] = self._order(int(epoch), part)[within[in_epoch]]
        return blocks + self._first[part]

    def tokens_of_parts(self, steps: int) -> list[int]:
        """Targets of each part in the first steps."""
        rows = self.interleaving.before(steps * self.batch_size)
        return [int(count) * self.context_length for count in rows]

    def windows(self, blocks: npt.NDArray[np.int64]) -> Tokens:
        """Blocks [rows] -> their tokens and the token after each block, [rows, context_length + 1], stream's dtype."""
        windows: Tokens = self.stream[blocks[:, None] * self.context_length + np.arange(self.context_length + 1)]
        return windows

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of a step, int64 [batch_size / world, context_length]; a rank reads every world-th row."""
        return inputs_and_targets(torch.from_numpy(self.windows(self.blocks(step, rank, world)).astype(np.int64)))

    def _shuffle(self, epoch: int, part: int) -> npt.NDArray[np.int64]:
        of_part = [self.parts[part].number] if self.parts else []
        return np.random.default_rng([self.seed, epoch, *of_part]).permutation(self._n_blocks[part])


def batches_of(trial: Trial, corpus: TokenizedCorpus, batch_size: int) -> TrainBatches:
    """The training text of a trial, in batches of so many rows."""
    shares, numbers = dict(trial.config.data.shares), [name for name, _ in corpus.facts.part_tokens]
    parts = [PartOfStream(*part.train, shares[part.name], numbers.index(part.name)) for part in corpus.parts]
    unique, context = trial.config.data.unique_tokens, trial.config.model.context_length
    return TrainBatches(corpus.train(), context, batch_size, trial.config.seed, unique, parts)


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
