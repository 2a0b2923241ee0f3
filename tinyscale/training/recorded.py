"""Optimizer steps that never wait for the host: what they read lies on the device, many steps ahead of them.

Blocks of text, rates and losses stand in tables on the device, one row a step, and a step finds its row by a counter
that it moves on itself. So all steps are the same work, and a GPU can record the work once, as a CUDA graph, and repeat
it: small models are trained at the speed of the GPU instead of the speed at which Python launches its kernels.
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

AHEAD = {"cpu": 1, "cuda": 32, "mps": 32}  # steps handed over together, and whose losses are read together
EAGER_STEPS = 3  # that allocate, compile and choose kernels before one is recorded

Descend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""One update: inputs and targets [K B, T] and rates [K] -> losses [K]. It asks the device for nothing."""


class RecordedStep:
    """The updates of one trial, or of K that are trained as one batch, one after another.

    The first EAGER_STEPS run as they are and count; then, if `record`, one is recorded, and it and all others are
    replays of it. Where recording fails for any reason but memory, a warning says so and the trial goes on eagerly.
    """

    def __init__(
        self,
        batches: Sequence[TrainBatches],
        rates: Callable[[int, int], Sequence[float]],
        descend: Descend,
        device: torch.device,
        *,
        vocab_size: int,
        text: Tensor | None = None,
        record: bool = False,
        worker: tuple[int, int] = (0, 1),
    ) -> None:
        """Take steps by `descend`, each on the batches of the K trials and at the rates [K] of a step and an end.

        text: the training text on the device; without it, windows are gathered on the host and handed over.
        worker: rank and world of this process, which reads its part of each batch.
        """
        self.batches, self.rates_at, self.descend, self.device = batches, rates, descend, device
        self.vocab_size, self.text, self.record, self.worker = vocab_size, text, record, worker
        self.context, self.ahead, copies = batches[0].context_length, AHEAD[device.type], len(batches)
        rows = sum(each.batch_size for each in batches) // worker[1]
        exact = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no doubles
        new = functools.partial(torch.zeros, device=device)
        if text is None:
            self.reads = new(
                self.ahead, rows, self.context + 1, dtype=as_tensor(batches[0].stream[:0], vocab_size).dtype
            )
        else:
            self.reads = new(self.ahead, rows, dtype=torch.int64)
        self.rates = new(self.ahead, copies, dtype=exact)
        self.losses = new(self.ahead, copies, dtype=exact)
        self.ready: tuple[tuple[int, int], tuple[Tensor, Tensor]] | None = None  # rows not handed over yet
        self.row = new(1, dtype=torch.int64)  # of the tables, that the next step reads: on the device
        self.graph: torch.cuda.CUDAGraph | None = None
        self.forget()

    def forget(self) -> None:
        """Begin anew, as whoever replaced the weights' or the optimizer's tensors must ask."""
        if self.graph is not None:
            torch.cuda.synchronize(self.device)
        self.graph = None
        self.warm = 0  # steps since then
        self.handed, self.end = range(0), 0  # steps that lie in the tables, and the end that their rates lead to
        self.taken = self.unread = 0  # rows of the tables

    @property
    def recorded(self) -> bool | None:
        """Whether the last step was a replay; None on a CPU, where there is nothing to record."""
        return None if self.device.type == "cpu" else self.graph is not None

    @property
    def is_full(self) -> bool:
        """Whether the next step needs new rows, before which the losses must be read."""
        return self.taken == len(self.handed)

    def take(self, step: int, end: int) -> None:
        """Do the step of this number (0-based) of `end`."""
        if self.is_full or end != self.end or step != self.handed[self.taken]:
            self._hand_over(step, end)
        if self.record and self.graph is None and self.warm == EAGER_STEPS:
            self._record()
        if self.graph is not None:
            self.graph.replay()
        elif self.record:
            self._apart()
        else:
            self._step()
        self.warm += 1
        self.taken += 1
        self.unread += 1
        if self.is_full and self.device.type != "cpu":
            self._rows(step + 1, end)  # while the device is at work

    def read(self) -> Tensor:
        """Losses [n, K] of the n steps since the last reading."""
        first, self.unread = self.taken - self.unread, 0
        return self.losses[first : self.taken]

    def _rows(self, step: int, end: int) -> tuple[Tensor, Tensor]:
        """What the steps from this one read: blocks [n, K B] or windows [n, K B, T + 1], and rates [n, K]."""
        if self.ready is None or self.ready[0] != (step, end):
            self.ready = (step, end), self._make_rows(step, end)
        return self.ready[1]

    def _make_rows(self, step: int, end: int) -> tuple[Tensor, Tensor]:
        steps = range(step, step + self.ahead)  # those after the end are never taken, or only timed
        each = [[batches.blocks(at, *self.worker) for batches in self.batches] for at in steps]
        blocks = np.array(each).reshape(self.ahead, -1)
        reads = torch.from_numpy(blocks)
        if self.text is None:
            windows = self.batches[0].windows(blocks.ravel())
            reads = as_tensor(windows, self.vocab_size).view(*blocks.shape, -1)
        rates = torch.tensor([self.rates_at(at, end) for at in steps], dtype=self.rates.dtype)
        return (reads.pin_memory(), rates.pin_memory()) if self.device.type == "cuda" else (reads, rates)

    def _hand_over(self, step: int, end: int) -> None:
        """Put the rows of the next steps into the tables; they lie in pinned memory, so nothing waits."""
        assert not self.unread, "losses are read before their rows are written again"
        for table, rows in zip((self.reads, self.rates), self._rows(step, end), strict=True):
            table.copy_(rows, non_blocking=True)
        self.row.zero_()
        self.handed, self.end, self.taken = range(step, step + self.ahead), end, 0

    def _step(self) -> None:
        """A step, all of it on the device."""
        reads, rates = (table.index_select(0, self.row)[0] for table in (self.reads, self.rates))
        windows = reads if self.text is None else gather(self.text, reads, self.context)
        losses = self.descend(*inputs_and_targets(windows), rates)
        self.losses.index_copy_(0, self.row, losses.to(self.losses.dtype)[None])
        self.row.add_(1)

    def _apart(self) -> None:
        """A step on the stream that records: what a stream allocates once must be there by then."""
        side, here = side_stream(self.device), torch.cuda.current_stream(self.device)
        side.wait_stream(here)
        with torch.cuda.stream(side):
            self._step()
        here.wait_stream(side)

    def _record(self) -> None:
        """Record a step, or from now on go without."""
        try:
            self.graph = self._capture()
        except RuntimeError as error:
            if lack_of_memory(error):
                raise
            self.record = False
            reason = (str(error) or type(error).__name__).splitlines()[0]
            warnings.warn(f"the training step cannot be recorded and runs eagerly: {reason}", stacklevel=2)

    def _capture(self) -> torch.cuda.CUDAGraph:
        """The kernels of a step, none of which has run. Gradients are made in memory of the graph's own."""
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        try:
            with torch.cuda.graph(graph, stream=side_stream(self.device), capture_error_mode="thread_local"):
                self._step()
        finally:
            torch.cuda.set_stream(here)  # a recording that cannot end leaves the other one
        return graph


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream beside the default one: each would hold workspaces of its own."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream
