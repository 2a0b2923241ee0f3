"""Optimizer steps that do not wait for the host; on a GPU one step is recorded as a CUDA graph and replayed.

The blocks of text, learning rates and losses of many steps are in tables on the device, one row per step. A step finds
its row by a counter on the device, which it increments itself. So every step is the same sequence of kernels, which a
CUDA graph can record once and replay: small models then train at the speed of the GPU, not at the speed at which Python
launches kernels.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tinyscale.errors import lack_of_memory
from tinyscale.training.batches import TrainBatches, as_tensor, gather, inputs_and_targets

AHEAD = {"cpu": 1, "cuda": 32, "mps": 32}  # rows of the tables: steps per copy to the device and per reading of losses
EAGER_STEPS = 3  # before the recording: they allocate, compile and choose kernels

Update = Callable[[Tensor, Tensor, Tensor], Tensor]
"""One update: inputs and targets [K B, T], rates [K] -> losses [K]. It reads nothing back from the device."""


class RecordedStep:
    """The steps of one trial, or of K trials that are trained as one batched model.

    The first EAGER_STEPS run eagerly and count as training. With `record`, the next step is recorded, and it and all
    later ones are replays. If recording fails for any reason except memory, a warning says so and the steps stay eager.
    """

    def __init__(
        self,
        batches: Sequence[TrainBatches],
        rates: Callable[[int, int], Sequence[float]],
        update: Update,
        device: torch.device,
        *,
        vocab_size: int,
        text: Tensor | None = None,
        record: bool = False,
        worker: tuple[int, int] = (0, 1),
    ) -> None:
        """Allocate the tables.

        batches: of each of the K trials. rates: (step, end) -> the K learning rates.
        text: the training text on the device; None: the host gathers the windows and copies them to the device.
        worker: rank and world size; a worker reads its part of each batch.
        """
        self.batches, self.rates_at, self.update, self.device = batches, rates, update, device
        self.vocab_size, self.text, self.record, self.worker = vocab_size, text, record, worker
        self.context, self.ahead, copies = batches[0].context_length, AHEAD[device.type], len(batches)
        rows = sum(each.batch_size for each in batches) // worker[1]
        exact = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        new = functools.partial(torch.zeros, device=device)
        if text is None:
            self.reads = new(
                self.ahead, rows, self.context + 1, dtype=as_tensor(batches[0].stream[:0], vocab_size).dtype
            )
        else:
            self.reads = new(self.ahead, rows, dtype=torch.int64)
        self.rates = new(self.ahead, copies, dtype=exact)
        self.losses = new(self.ahead, copies, dtype=exact)
        self.prepared: tuple[tuple[int, int], tuple[Tensor, Tensor]] | None = None  # (step, end) and rows on the host
        self.row = new(1, dtype=torch.int64)  # on the device: the row of the next step
        self.graph: torch.cuda.CUDAGraph | None = None
        self.reset()

    def reset(self) -> None:
        """Drop the graph and the tables' rows. Call it after the weights' or the optimizer's tensors were replaced."""
        if self.graph is not None:
            torch.cuda.synchronize(self.device)
        self.graph = None
        self.since_reset = 0  # steps
        self.loaded, self.end = range(0), 0  # the steps in the tables, and the end that their rates lead to
        self.done = self.unread = 0  # rows of the tables

    @property
    def recorded(self) -> bool | None:
        """Whether the last step was a replay; None on a CPU, which records nothing."""
        return None if self.device.type == "cpu" else self.graph is not None

    @property
    def is_full(self) -> bool:
        """Whether the next step needs new rows. The losses must be read first."""
        return self.done == len(self.loaded)

    def run(self, step: int, end: int) -> None:
        """Do step `step` (0-based) of `end`."""
        if self.is_full or end != self.end or step != self.loaded[self.done]:
            self._load(step, end)
        if self.record and self.graph is None and self.since_reset == EAGER_STEPS:
            self._record()
        if self.graph is not None:
            self.graph.replay()
        elif self.record:
            self._step_on_side_stream()
        else:
            self._step()
        self.since_reset += 1
        self.done += 1
        self.unread += 1
        if self.is_full and self.device.type != "cpu":
            self._rows(step + 1, end)  # on the host, while the device works

    def read(self) -> Tensor:
        """Losses [n, K] of the n steps since the last reading."""
        first, self.unread = self.done - self.unread, 0
        return self.losses[first : self.done]

    def _rows(self, step: int, end: int) -> tuple[Tensor, Tensor]:
        """Rows of the steps from `step` on: blocks [n, K B] or windows [n, K B, T + 1], and rates [n, K]."""
        if self.prepared is None or self.prepared[0] != (step, end):
            self.prepared = (step, end), self._make_rows(step, end)
        return self.prepared[1]

    def _make_rows(self, step: int, end: int) -> tuple[Tensor, Tensor]:
        steps = range(step, step + self.ahead)  # steps after the end are never run in training, only when timed
        each = [[batches.blocks(at, *self.worker) for batches in self.batches] for at in steps]
        blocks = np.array(each).reshape(self.ahead, -1)
        reads = torch.from_numpy(blocks)
        if self.text is None:
            windows = self.batches[0].windows(blocks.ravel())
            reads = as_tensor(windows, self.vocab_size).view(*blocks.shape, -1)
        rates = torch.tensor([self.rates_at(at, end) for at in steps], dtype=self.rates.dtype)
        return (reads.pin_memory(), rates.pin_memory()) if self.device.type == "cuda" else (reads, rates)

    def _load(self, step: int, end: int) -> None:
        """Copy the rows of the next steps into the tables. Their memory is pinned, so the host does not wait."""
        assert not self.unread, "losses are read before their rows are overwritten"
        for table, rows in zip((self.reads, self.rates), self._rows(step, end), strict=True):
            table.copy_(rows, non_blocking=True)
        self.row.zero_()
        self.loaded, self.end, self.done = range(step, step + self.ahead), end, 0

    def _step(self) -> None:
        """One step, entirely on the device."""
        reads, rates = (table.index_select(0, self.row)[0] for table in (self.reads, self.rates))
        windows = reads if self.text is None else gather(self.text, reads, self.context)
        losses = self.update(*inputs_and_targets(windows), rates)
        self.losses.index_copy_(0, self.row, losses.to(self.losses.dtype)[None])
        self.row.add_(1)

    def _step_on_side_stream(self) -> None:
        """An eager step on the recording stream: what a stream allocates on first use must exist before recording."""
        side, current = side_stream(self.device), torch.cuda.current_stream(self.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            self._step()
        current.wait_stream(side)

    def _record(self) -> None:
        """Record a step; on failure, warn and stay eager."""
        try:
            self.graph = self._capture()
        except RuntimeError as error:
            if lack_of_memory(error):
                raise
            self.record = False
            reason = (str(error) or type(error).__name__).splitlines()[0]
            warnings.warn(f"the training step cannot be recorded and runs eagerly: {reason}", stacklevel=2)

    def _capture(self) -> torch.cuda.CUDAGraph:
        """The graph of one step, none of whose kernels has run. Gradients are in the graph's private memory."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        try:
            with torch.cuda.graph(graph, stream=side_stream(self.device), capture_error_mode="thread_local"):
                self._step()
        finally:
            torch.cuda.set_stream(current)  # a failed capture does not restore it
        return graph


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream for recording on this device; each further stream would allocate its own workspaces."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream
