"""Training batches and validation windows: shifted once, nothing lost, nothing seen twice."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyscale.errors import DataError
from tinyscale.training.batches import NOT_SCORED, TrainBatches, val_windows

EOT = 999
STREAM = np.arange(1001, dtype=np.uint16)


def val_stream(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Documents of these lengths whose tokens are all different."""
    stream, numbers, token = [EOT], [-1], 0
    for number, length in enumerate(lengths):
        stream += [*range(token, token + length), EOT]
        numbers += [number] * (length + 1)
        token += length
    return np.array(stream, dtype=np.uint16), np.array(numbers)


def starts(batches: TrainBatches, steps: range) -> list[int]:
    return [int(start) for step in steps for start in batches.batch(step)[0][:, 0]]


def test_a_target_is_the_token_after_its_input() -> None:
    inputs, targets = TrainBatches(STREAM, 16, 4, seed=0).batch(3)
    assert inputs.shape == targets.shape == (4, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)  # the stream counts up by one
    assert torch.equal(inputs[:, 0] % 16, torch.zeros(4, dtype=torch.int64))  # rows are blocks


def test_an_epoch_takes_every_block_once() -> None:
    batches = TrainBatches(STREAM, 10, 5, seed=0)
    assert batches.epoch_tokens == 1000
    assert sorted(starts(batches, range(20))) == list(range(0, 1000, 10))
    assert sorted(starts(batches, range(20, 40))) == list(range(0, 1000, 10))


def test_a_batch_may_span_the_end_of_an_epoch_and_even_several_epochs() -> None:
    batches = TrainBatches(STREAM[:101], 10, 7, seed=0)
    assert Counter(starts(batches, range(10))) == dict.fromkeys(range(0, 100, 10), 7)
    tiny = TrainBatches(STREAM[:21], 10, 8, seed=0)
    assert Counter(starts(tiny, range(2))) == {0: 8, 10: 8}


def test_the_order_is_new_with_each_epoch_and_seed_and_otherwise_fixed() -> None:
    first = starts(TrainBatches(STREAM, 10, 5, seed=0), range(40))
    assert first == starts(TrainBatches(STREAM, 10, 5, seed=0), range(40))
    assert first[:100] != first[100:]
    assert first != starts(TrainBatches(STREAM, 10, 5, seed=1), range(40))


def test_a_resumed_trial_needs_nothing_but_its_step() -> None:
    straight = TrainBatches(STREAM, 16, 8, seed=3)
    expected = [straight.batch(step) for step in range(30)]
    resumed = TrainBatches(STREAM, 16, 8, seed=3)
    for step in (29, 17, 3):
        assert torch.equal(resumed.batch(step)[0], expected[step][0])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_out_the_global_batch(world: int) -> None:
    batches = TrainBatches(STREAM, 16, 8, seed=0)
    whole = batches.batch(5)[0]
    parts = [batches.batch(5, rank, world)[0] for rank in range(world)]
    for rank, part in enumerate(parts):
        assert torch.equal(part, whole[rank::world])


def test_the_batch_size_does_not_change_the_order() -> None:
    assert starts(TrainBatches(STREAM, 10, 5, seed=0), range(8)) == starts(
        TrainBatches(STREAM, 10, 20, seed=0), range(2)
    )


def test_unique_tokens_are_a_prefix_so_subsets_nest() -> None:
    small = set(starts(TrainBatches(STREAM, 10, 5, seed=0, unique_tokens=300), range(50)))
    large = set(starts(TrainBatches(STREAM, 10, 5, seed=0, unique_tokens=600), range(50)))
    assert max(small) + 10 < 300 <= max(large)
    assert small < large


def test_a_stream_shorter_than_one_context_is_refused() -> None:
    with pytest.raises(DataError, match="16 training tokens do not fill one context_length of 16"):
        TrainBatches(STREAM[:16], 16, 1, seed=0)
    assert TrainBatches(STREAM[:17], 16, 1, seed=0).n_blocks == 1


def test_the_same_targets_are_scored_at_every_context_length() -> None:
    stream, numbers = val_stream([40, 1, 300, 75])
    scored = []
    for context in (16, 64, 128):
        _, targets, documents = val_windows(stream, numbers, context, EOT)
        kept = targets != NOT_SCORED
        scored.append(Counter(zip(documents[kept].tolist(), targets[kept].tolist(), strict=True)))
    assert scored[0] == scored[1] == scored[2]
    assert max(scored[0].values()) == 1
    assert len(scored[0]) == 416


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(2, 40))
def test_windows_are_the_stream_shifted_once(lengths: list[int], context: int) -> None:
    stream, numbers = val_stream(lengths)
    inputs, targets, documents = val_windows(stream, numbers, context, EOT)
    assert inputs.shape == targets.shape == documents.shape == (-(-(len(stream) - 1) // context), context)
    for row, column in (targets != NOT_SCORED).nonzero().tolist():
        place = row * context + column
        assert inputs[row, column] == stream[place]
        assert targets[row, column] == stream[place + 1] != EOT
        assert documents[row, column] == numbers[place + 1]
    assert int((targets != NOT_SCORED).sum()) == sum(lengths)


def test_padding_and_end_of_text_are_not_scored() -> None:
    inputs, targets, documents = val_windows(*val_stream([2]), 4, EOT)
    assert inputs.tolist() == [[EOT, 0, 1, EOT]]
    assert targets.tolist() == [[0, 1, NOT_SCORED, NOT_SCORED]]
    assert documents.tolist() == [[0, 0, 0, 0]]
