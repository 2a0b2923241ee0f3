"""Scores on the validation set: loss, standard error, excess loss over a known source, and loss by position.

Every target is scored exactly once, for any context length and any size of a forward pass.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tinyscale.data.tokenized import Part
from tinyscale.training.batches import NOT_SCORED, oracle_windows, val_windows

EVAL_TOKENS = 16384  # tokens per forward pass; the loss does not depend on it
CLUSTER_TOKENS = 2048  # of a text that is one document: the standard error treats such pieces as independent


@dataclass(frozen=True)
class PartScores:
    """The scores of one part of a mixture. loss: nats per token; a page is a document."""

    part: str
    loss: float
    loss_se: float
    bits_per_byte: float
    nats_per_page: float
    val_tokens: int


@dataclass(frozen=True)
class Scores:
    """Means over the scored targets, nats per token. excess and excess_se are None if the text has no known source.

    Of a mixture they are means over its parts, each alike, with the mean of the parts' standard errors: parts hold out
    the same pages, so that their errors go together.

    loss_by_position: entry k is the mean over targets with 2^k to 2^(k+1) - 1 tokens of their own document in the
    context before them (the first entry includes targets with none, the last one those with a full context); NaN if
    there are no such targets.
    """

    val_loss: float
    val_loss_se: float
    excess: float | None
    excess_se: float | None
    loss_by_position: list[float]
    parts: tuple[PartScores, ...] = ()


def token_losses(model: Callable[..., Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of the model: inputs and targets [B, T] -> loss of each target in nats [B T], 0 if not scored."""

    def nats(inputs: Tensor, targets: Tensor) -> Tensor:
        logits = model(inputs)[0].flatten(0, 1).float()  # [B T, V]
        return F.cross_entropy(logits, targets.flatten(), ignore_index=NOT_SCORED, reduction="none")

    return nats


def rank_and_world() -> tuple[int, int]:
    """Rank of this process, and the number of workers that train the trial."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class Text(Protocol):
    """Text to score: the validation part of a TokenizedCorpus, or any text with the same attributes."""

    @property
    def eot(self) -> int: ...
    @property
    def val_documents(self) -> int: ...
    @property
    def record_length(self) -> int | None: ...
    @property
    def parts(self) -> tuple[Part, ...]: ...
    def val(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]: ...
    def oracle(self) -> npt.NDArray[np.float64] | None: ...


class Evaluation:
    """A text cut into windows of the trial's context_length, on the device."""

    def __init__(self, corpus: Text, context_length: int, device: torch.device) -> None:
        stream, documents = corpus.val()
        inputs, targets, documents_of = val_windows(stream, documents, context_length, corpus.eot)
        buckets = position_buckets(documents_of)
        if corpus.val_documents == 1 and not corpus.record_length:  # pieces of one long text serve as clusters
            piece = torch.arange(len(inputs)) // max(1, CLUSTER_TOKENS // context_length)
            documents_of = piece[:, None].expand_as(inputs)
        oracle = corpus.oracle()
        # Compiled code needs passes of equal size: rows that are not scored pad the last one.
        passes = -(-len(inputs) // max(1, EVAL_TOKENS // context_length))
        self.rows = -(-len(inputs) // passes)
        fill = (0, 0, 0, passes * self.rows - len(inputs))
        self.inputs, self.targets = F.pad(inputs, fill).to(device), F.pad(targets, fill, value=NOT_SCORED).to(device)
        self.buckets = F.pad(buckets, fill).to(device)
        self.documents = F.pad(documents_of.clamp(min=0), fill).to(device)  # columns of `totals`
        self.n_buckets = int(buckets.max()) + 1  # both are computed on the host: reading from a device blocks
        self.n_documents = int(documents_of.max()) + 1
        self.oracle = None if oracle is None else F.pad(oracle_windows(oracle, context_length), fill).to(device)
        self.device = device
        self.parts = corpus.parts  # their documents follow each other

    def passes(self) -> list[tuple[Tensor, Tensor]]:
        """Inputs and targets of each forward pass, [rows, T] each."""
        rows = [slice(start, start + self.rows) for start in range(0, len(self.inputs), self.rows)]
        return [(self.inputs[each], self.targets[each]) for each in rows]

    @torch.inference_mode()
    def against(self, nats: Callable[[Tensor, Tensor], Tensor]) -> Evaluation:
        """The same windows with a model's loss of each target in place of the source's.

        `excess` of another model's scores is then its loss above that model's, with the standard error of the pairs.
        nats: `token_losses` of the model.
        """
        paired = copy.copy(self)
        paired.oracle = torch.cat([nats(*each) for each in self.passes()])
        paired.oracle = paired.oracle.view(self.targets.shape)
        return paired

    @torch.inference_mode()
    def scores(self, nats: Callable[[Tensor, Tensor], Tensor], autocast: AbstractContextManager[Any]) -> Scores:
        """Score the windows. nats: `token_losses` of a model. Each worker scores its part; all return the same."""
        rank, world = rank_and_world()
        totals = torch.zeros(3, self.n_documents, dtype=torch.float64, device=self.device)  # see `_values`
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
        loss, error = self._mean(total, scored)
        excess, excess_error = self._mean(above, scored) if self.oracle is not None else (None, None)
        by_position = (by_bucket[0] / by_bucket[1]).tolist()
        return Scores(loss, error, excess, excess_error, by_position, tuple(self._by_part(total, scored)))

    def _documents(self) -> Iterator[tuple[Part, slice]]:
        """The columns of `totals` of each part."""
        ends = itertools.accumulate(part.val_documents for part in self.parts)
        return ((part, slice(end - part.val_documents, end)) for part, end in zip(self.parts, ends, strict=True))

    def _mean(self, totals: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]) -> tuple[float, float]:
        """`clustered_mean`, or the mean of those of the parts."""
        each = [clustered_mean(totals[own], counts[own]) for _, own in self._documents()]
        mean, error = np.mean(each, axis=0).tolist() if each else clustered_mean(totals, counts)
        return mean, error

    def _by_part(self, totals: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]) -> Iterator[PartScores]:
        for part, own in self._documents():
            loss, error = clustered_mean(totals[own], counts[own])
            nats = loss * part.val_tokens
            bits, per_page = nats / part.val_bytes / math.log(2), nats / part.val_documents
            yield PartScores(part.name, loss, error, bits, per_page, part.val_tokens)

    def _values(self, nats: Tensor, targets: Tensor, rows: slice) -> Tensor:
        """Three values per target, [3, n]: loss in nats, 1 if scored, excess loss over the oracle in nats."""
        oracle = self.oracle[rows].flatten() if self.oracle is not None else nats
        return torch.stack([nats, (targets != NOT_SCORED).double(), nats - oracle])


def position_buckets(documents_of: Tensor) -> Tensor:
    """Documents of the targets [W, T] -> the entry of loss_by_position that each target counts in [W, T]."""
    windows, context_length = documents_of.shape
    flat = documents_of.flatten()
    index = torch.arange(len(flat))
    begins = torch.cat([torch.tensor([True]), flat[1:] != flat[:-1]])
    in_document = (index - torch.where(begins, index, 0).cummax(0).values).view(windows, context_length)
    seen = torch.minimum(in_document, torch.arange(1, context_length + 1)).clamp(min=1)
    last = max(0, math.ceil(math.log2(context_length)) - 1)
    return seen.double().log2().floor().long().clamp(max=last)


def clustered_mean(totals: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Mean per count and its standard error, from totals and counts per cluster (ratio estimator, Cochran 1977, 6.4).

    The standard error is NaN with fewer than two clusters.
    """
    mean = totals.sum() / counts.sum()
    clusters = int((counts > 0).sum())
    if clusters < 2:
        return float(mean), math.nan
    spread = np.square(totals - mean * counts).sum() * clusters / (clusters - 1)
    return float(mean), float(math.sqrt(spread) / counts.sum())
