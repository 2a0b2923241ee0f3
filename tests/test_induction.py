"""Induction: a model of two layers whose weights are set by hand has it, one layer has not, and noise has none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.trials import known_trial, make_trial, model_config, trial_config
from tinyscale.errors import DataError
from tinyscale.measurements.induction import best, head_scores, losses, measure, repeated
from tinyscale.measurements.interventions import Component, edited
from tinyscale.measurements.subject import Subject
from tinyscale.spec.data_config import DataConfig
from tinyscale.spec.measurement import Induction
from tinyscale.training.model import GPT

V, PERIOD, SHARP = 40, 16, 60.0
T = 2 * PERIOD
TOKEN, BEFORE, NEXT, PLACE = 0, V, 2 * V, 3 * V  # where the residual stream holds what
WIDTH = 3 * V + T


def by_hand(layers: int) -> GPT:
    """Induction in as few weights as it takes; each layer has two heads, of which the first one works.

    The first layer copies to each place the token before it. The second, from a token, attends to where the token
    before was the same, and writes the token there. With one layer, only the first of these is there.
    """
    config = model_config(d_model=WIDTH, n_layers=layers, n_heads=2, context_length=T, norm="rmsnorm")
    gpt = GPT(config, V).eval()
    with torch.no_grad():
        for name, parameter in gpt.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        gpt.embedding.weight[:, TOKEN : TOKEN + V] = torch.eye(V)
        assert gpt.positions is not None
        gpt.positions.weight[:, PLACE : PLACE + T] = torch.eye(T)
        gpt.head.weight[:, NEXT : NEXT + V] = SHARP * torch.eye(V)
        first, *second = (block.attention for block in gpt.blocks)
        set_head(first, query={PLACE: torch.eye(T)}, key={PLACE: torch.eye(T).roll(1, 1)}, reads=TOKEN, writes=BEFORE)
        for attention in second:  # not to the first place, before which there is nothing
            start = torch.zeros(T, V)
            start[0] = -1
            set_head(
                attention,
                query={TOKEN: torch.eye(V)},
                key={BEFORE: torch.eye(V), PLACE: start},
                reads=TOKEN,
                writes=NEXT,
            )
    return gpt


def set_head(
    attention: torch.nn.Module, query: dict[int, Tensor], key: dict[int, Tensor], reads: int, writes: int
) -> None:
    """Weights of the first head: inputs from a place of the stream on -> what they give to queries and keys."""
    for offset, given in ((0, query), (WIDTH, key)):
        for place, matrix in given.items():
            inputs, outputs = matrix.shape
            attention.qkv.weight[offset : offset + outputs, place : place + inputs] = SHARP**0.5 * matrix.T
    attention.qkv.weight[2 * WIDTH : 2 * WIDTH + V, reads : reads + V] = torch.eye(V)
    attention.out.weight[writes : writes + V, :V] = torch.eye(V)


@pytest.fixture(scope="module")
def sequences() -> Tensor:
    """Patterns of tokens that differ, twice each."""
    halves = np.stack([np.random.default_rng(seed).permutation(V)[:PERIOD] for seed in range(32)])
    return torch.from_numpy(np.concatenate([halves, halves], axis=1))


def test_two_layers_set_by_hand_copy_and_one_does_not(sequences: Tensor) -> None:
    first, copied = losses(by_hand(2), sequences)
    assert copied < 0.01
    assert first > math.log(V) - 0.1
    assert losses(by_hand(1), sequences) == pytest.approx((math.log(V),) * 2, abs=1e-6)


def test_the_scores_are_those_of_the_heads_that_do_it(sequences: Tensor) -> None:
    prefix, previous = head_scores(by_hand(2), sequences)
    assert prefix.shape == previous.shape == (32, 2, 2)
    assert best(prefix) == (2, pytest.approx(1, abs=0.01)), "the first head of the second layer"
    assert best(previous) == (0, pytest.approx(1, abs=0.01)), "the first head of the first"
    assert prefix.mean(0)[0, 0] < 0.01
    assert prefix.mean(0)[:, 1].max() < 0.1, "a head of no weights attends to all alike"


def test_without_the_head_that_copies_nothing_is_known(sequences: Tensor) -> None:
    gpt = by_hand(2)
    for part in (Component("head", 1, 0), Component("attention", 1)):
        with edited(gpt, {part: torch.zeros_like}):
            assert losses(gpt, sequences)[1] == pytest.approx(math.log(V), abs=1e-5)
    with edited(gpt, {Component("head", 1, 1): torch.zeros_like}):
        assert losses(gpt, sequences)[1] < 0.01, "the other head does nothing"


def test_the_best_head_of_noise_is_not_best_in_the_other_half() -> None:
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((8, 50, 20)))
    found, score = best(noise)
    assert noise[:4].mean(0).flatten()[found] > 1
    assert abs(score) < 1


def test_rows_are_the_model_and_its_heads(tiny_corpus: DataConfig) -> None:
    trial, corpus = make_trial(trial_config(tiny_corpus, n_layers=3))
    subject = Subject(trial, GPT(trial.config.model, trial.vocab_size).eval(), corpus)
    model, *heads = measure(subject, Induction(period=5))
    assert model["component"] == "model"
    assert [(row["layer"], row["head"]) for row in heads] == [(layer, head) for layer in range(3) for head in range(2)]
    (chosen,) = [row for row in heads if (row["layer"], row["head"]) == (model["layer"], model["head"])]
    assert model["prefix_score"] == pytest.approx(chosen["prefix_score"])
    assert model["first_loss"] == pytest.approx(model["copy_loss"], abs=0.5), "random weights know neither"
    assert measure(subject, Induction(period=5))[0] == model, "the same each time"


def test_sequences_have_the_texts_own_frequencies(tiny_corpus: DataConfig) -> None:
    _, corpus = make_trial(trial_config(tiny_corpus))
    tokens = repeated(corpus, 5, 20_000)
    assert torch.equal(tokens[:, :5], tokens[:, 5:])
    counts = np.bincount(corpus.train(), minlength=257)
    shares, own = np.bincount(tokens[:, :5].flatten(), minlength=257) / 100_000, counts / counts.sum()
    assert np.abs(shares - own)[: corpus.eot].max() < 0.01
    assert shares[corpus.eot] == 0
    with pytest.raises(DataError, match=r"has \d+ tokens in effect .* lower period to at most \d+"):
        repeated(corpus, 200, 10)


def test_what_cannot_be_asked_is_refused() -> None:
    trial = known_trial()  # context 32
    assert Induction(period=16).refusal(trial) is None
    assert "period = 17 is above half of context_length = 32" in str(Induction(period=17).refusal(trial))
    few = known_trial(context_length=1024, batch_tokens=1024)
    assert "more symbols than the 257 of a byte tokenizer" in str(Induction(period=257).refusal(few))
