"""The fixed validation set, scored: the loss, its error, its excess over a known source, and how it falls with context.

Every target is scored once, whatever the context length and however many tokens go through at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tinyscale.training.batches import NOT_SCORED, oracle_windows, val_windows

EVAL_TOKENS = 16384  # tokens of one forward pass in evaluation; the loss does not depend on it
STRETCH_TOKENS = 2048  # of a validation text in one piece, taken as independent for the standard error


@dataclass(frozen=True)
class Scores:
    """What one pass over the validation set says; nats per token. Excess is None where no source is known.

    loss_by_position: entry k is the mean over targets that see 2^k to 2^(k+1) - 1 tokens of their own document before
    them (the first entry also those that see none, the last also those that see the whole context); NaN where none do.
    """

    val_loss: float
    val_loss_se: float
    excess: float | None
    excess_se: float | None
    loss_by_position: list[float]


def token_losses(model: Callable[..., Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """The model as what scores: inputs and targets [B, T] -> nats of each target [B T], 0 where it is not scored."""

    def nats(inputs: Tensor, targets: Tensor) -> Tensor:
        logits = model(inputs)[0].flatten(0, 1).float()  # [B T, V]
        return F.cross_entropy(logits, targets.flatten(), ignore_index=NOT_SCORED, reduction="none")

    return nats


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of workers that share the trial."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class Text(Protocol):
    """What is scored: the validation part of a TokenizedCorpus, whose words these are, or other text laid out alike."""

    @property
    def eot(self) -> int: ...
    @property
    def val_documents(self) -> int: ...
    @property
    def record_length(self) -> int | None: ...
    def val(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]: ...
    def oracle(self) -> npt.NDArray[np.float64] | None: ...


class Evaluation:
    """A text in windows of the trial's context."""

    def __init__(self, corpus: Text, context_length: int, device: torch.device) -> None:
        stream, documents = corpus.val()
        inputs, targets, documents_of = val_windows(stream, documents, context_length, corpus.eot)
        buckets = position_buckets(documents_of)
        if corpus.val_documents == 1 and not corpus.record_length:  # stretches of one long text stand in for documents
            stretch = torch.arange(len(inputs)) // max(1, STRETCH_TOKENS // context_length)
            documents_of = stretch[:, None].expand_as(inputs)
        oracle = corpus.oracle()
        # Passes of one size, which compiled code needs: rows that nobody scores fill up the last one.
        passes = -(-len(inputs) // max(1, EVAL_TOKENS // context_length))
        self.rows = -(-len(inputs) // passes)
        fill = (0, 0, 0, passes * self.rows - len(inputs))
        self.inputs, self.targets = F.pad(inputs, fill).to(device), F.pad(targets, fill, value=NOT_SCORED).to(device)
        self.buckets = F.pad(buckets, fill).to(device)
        self.documents = F.pad(documents_of.clamp(min=0), fill).to(device)  # what is after the end belongs to none
        self.n_buckets = int(buckets.max()) + 1  # both counted here: to ask the device is to wait for it
        self.n_documents = int(documents_of.max()) + 1
        self.oracle = None if oracle is None else F.pad(oracle_windows(oracle, context_length), fill).to(device)
        self.device = device

    @torch.inference_mode()
    def scores(self, nats: Callable[[Tensor, Tensor], Tensor], autocast: AbstractContextManager[Any]) -> Scores:
        """Score the windows by `token_losses` of a model; workers share the work."""
        rank, world = rank_and_world()
        totals = torch.zeros(3, self.n_documents, dtype=torch.float64, device=self.device)  # by document: see `_values`
        by_bucket = torch.zeros(2, self.n_buckets, dtype=torch.float64, device=self.device)
        for start in range(rank * self.rows, len(self.inputs), world * self.rows):
            rows = slice(start, start + self.rows)
            targets = self.targets[rows]
            with autocast:
                scored = nats(self.inputs[rows], targets).double()
            values = self._values(scored, targets.flatten(), rows)
            totals.index_add_(1, self.documents[rows].flatten(), values)
            by_bucket.index_add_(1, self.buckets[rows].flatten(), values[:2])
        if world > 1:
            dist.all_reduce(totals)
            dist.all_reduce(by_bucket)
        total, scored, above = totals.cpu().numpy()
        loss, error = clustered_mean(total, scored)
        excess, excess_error = clustered_mean(above, scored) if self.oracle is not None else (None, None)
        return Scores(loss, error, excess, excess_error, (by_bucket[0] / by_bucket[1]).tolist())

    def _values(self, nats: Tensor, targets: Tensor, rows: slice) -> Tensor:
        """Of each target, [3, n]: nats, whether it is scored, nats above the oracle's."""
        oracle = self.oracle[rows].flatten() if self.oracle is not None else nats
        return torch.stack([nats, (targets != NOT_SCORED).double(), nats - oracle])


def position_buckets(documents_of: Tensor) -> Tensor:
    """Which entry of loss_by_position each target of the windows [W, T] belongs to."""
    windows, context_length = documents_of.shape
    flat = documents_of.flatten()
    index = torch.arange(len(flat))
    begins = torch.cat([torch.tensor([True]), flat[1:] != flat[:-1]])
    in_document = (index - torch.where(begins, index, 0).cummax(0).values).view(windows, context_length)
    seen = torch.minimum(in_document, torch.arange(1, context_length + 1)).clamp(min=1)
    last = max(0, math.ceil(math.log2(context_length)) - 1)
    return seen.double().log2().floor().long().clamp(max=last)


def clustered_mean(totals: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Mean per count and its standard error, from totals and counts by cluster (ratio estimator; Cochran 1977, 6.4)."""
    mean = totals.sum() / counts.sum()
    clusters = int((counts > 0).sum())
    if clusters < 2:
        return float(mean), math.nan
    spread = np.square(totals - mean * counts).sum() * clusters / (clusters - 1)
    return float(mean), float(math.sqrt(spread) / counts.sum())
