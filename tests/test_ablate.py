"""Parts of a trained model replaced: nothing replaced changes nothing, and the parts add up to the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.trials import known_trial, make_trial, trial_config
from tinyscale.errors import ConfigError
from tinyscale.measurements.ablate import mean_written, measure, of_another_sequence
from tinyscale.measurements.interventions import (
    Component,
    attention_weights,
    edited,
    heads,
    patch,
    record,
    sublayers,
    weights,
)
from tinyscale.measurements.subject import Subject
from tinyscale.spec.data_config import DataConfig
from tinyscale.spec.measurement import Ablate
from tinyscale.training.model import GPT

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"bias": True},
    "tied": {"tie_embeddings": True},
    "shared heads": {"n_heads": 4, "n_kv_heads": 2, "positions": "rotary", "qk_norm": True},
    "completep": {"parametrization": "completep", "n_layers": 3, "positions": "rotary", "norm": "rmsnorm"},
}
Make = Callable[..., Subject]


@pytest.fixture
def subject(tiny_corpus: DataConfig) -> Make:
    """A function that makes a subject of random weights, large enough that every part matters."""

    def make(**changes: Any) -> Subject:
        trial, corpus = make_trial(trial_config(tiny_corpus, **changes))
        torch.manual_seed(0)
        gpt = GPT(trial.config.model, trial.vocab_size).eval()
        with torch.no_grad():
            for parameter in gpt.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return Subject(trial, gpt, corpus)

    return make


def tokens(gpt: GPT, seed: int = 0) -> Tensor:
    drawn = np.random.default_rng(seed).integers(0, gpt.embedding.num_embeddings, (4, gpt.config.context_length))
    return torch.from_numpy(drawn)


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_what_is_replaced_by_itself_changes_nothing(subject: Make, changes: dict[str, Any]) -> None:
    asked = subject(**changes)
    for part in (*sublayers(asked.gpt), *heads(asked.gpt), Component("block", 1)):
        with edited(copied := asked.gpt, {part: lambda written: written}):
            assert asked.scored(copied)["delta"] == 0
        clean = tokens(asked.gpt)
        assert torch.equal(patch(asked.gpt, clean, clean, part), asked.gpt(clean)[0])


@pytest.mark.parametrize("changes", [it for name, it in MODELS.items() if name != "biases"])
def test_all_heads_of_a_layer_are_its_attention(subject: Make, changes: dict[str, Any]) -> None:
    asked = subject(**changes)
    asked.evaluation  # noqa: B018 - of the unchanged model
    together = {part: torch.zeros_like for part in heads(asked.gpt) if part.layer == 1}
    with edited(asked.gpt, together):
        by_heads = asked.scored(asked.gpt)
    with edited(asked.gpt, {Component("attention", 1): torch.zeros_like}):
        whole = asked.scored(asked.gpt)
    assert by_heads["delta"] == pytest.approx(whole["delta"], abs=1e-6)
    assert abs(whole["delta"]) > 1e-3


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_the_stream_after_a_layer_carries_all_that_later_layers_know(subject: Make, changes: dict[str, Any]) -> None:
    gpt = subject(**changes).gpt
    clean, corrupt = tokens(gpt), tokens(gpt, seed=1)
    for layer in range(len(gpt.blocks)):
        assert torch.allclose(patch(gpt, clean, corrupt, Component("block", layer)), gpt(clean)[0], atol=1e-6)
    with pytest.raises(ConfigError, match="give sequences of one length"):
        patch(gpt, clean, corrupt[:, 1:], Component("block", 0))


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_the_attention_that_is_shown_is_the_one_that_is_computed(subject: Make, changes: dict[str, Any]) -> None:
    gpt = subject(**changes).gpt
    read = tokens(gpt)
    shown = attention_weights(gpt, read)
    assert shown.sum(-1) == pytest.approx(1, abs=1e-5)
    assert not shown.triu(1).any()
    for layer, block in enumerate(gpt.blocks):
        attention: Any = block.attention
        x = torch.randn(2, gpt.config.context_length, gpt.config.d_model)
        values = attention.queries_keys_values(x)[2]
        with torch.no_grad():
            again = attention.out((weights(attention, x) @ values).transpose(1, 2).flatten(2))
            assert again == pytest.approx(attention(x), abs=1e-6)
        part = Component("attention", layer)
        stream = record(gpt, read, Component("block", layer - 1))[Component("block", layer - 1)] if layer else None
        if stream is not None:
            with torch.no_grad():
                _, _, v = attention.queries_keys_values(block.attention_norm(stream))
                again = attention.out((shown[layer] @ v).transpose(1, 2).flatten(2))
            assert again == pytest.approx(record(gpt, read, part)[part], abs=1e-5)


def test_rows_name_each_part_and_leave_the_model_as_it_was(subject: Make) -> None:
    asked = subject()
    before = {name: value.clone() for name, value in asked.gpt.state_dict().items()}
    for by in ("zero", "mean", "resample"):
        rows = measure(asked, Ablate(by=by))
        named = [(row["component"], row["layer"], row["head"]) for row in rows]
        assert named == [(part, layer, None) for layer in (0, 1) for part in ("attention", "mlp")]
        assert all(row["delta"] == pytest.approx(row["loss"] - row["unchanged_loss"], abs=1e-6) for row in rows)
        assert all(row["delta_se"] > 0 for row in rows)
    of_heads = measure(asked, Ablate(of="heads", by="zero"))
    assert [(row["component"], row["layer"], row["head"]) for row in of_heads] == [
        ("head", layer, head) for layer in (0, 1) for head in (0, 1)
    ]
    assert all(torch.equal(value, before[name]) for name, value in asked.gpt.state_dict().items())
    assert not asked.gpt._forward_pre_hooks


def test_the_mean_is_over_the_scored_positions_of_the_text(subject: Make) -> None:
    asked = subject()
    part, head = Component("mlp", 0), Component("head", 1, 1)
    found = mean_written(asked.gpt, asked.evaluation, [part, head])
    written = record(asked.gpt, asked.evaluation.inputs, part, head)
    for each in (part, head):
        assert found[each] == pytest.approx(written[each][asked.evaluation.targets >= 0].mean(0), abs=1e-5)


def test_another_sequence_is_never_the_same_one() -> None:
    for sequences in (2, 3, 8):
        written = torch.arange(sequences)[:, None, None].expand(-1, 4, 2)
        assert (of_another_sequence(written) != written).all()


def test_a_part_that_is_not_called_is_not_passed_over(subject: Make) -> None:
    gpt = subject().gpt
    gpt.blocks[0].forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="called once in each pass"), edited(gpt, {Component("mlp", 0): F.relu}):
        gpt(tokens(gpt))


def test_the_only_head_of_a_layer_is_refused() -> None:
    assert Ablate(of="heads").refusal(known_trial()) is None
    assert "n_heads = 1" in str(Ablate(of="heads").refusal(known_trial(n_heads=1)))
    assert Ablate().refusal(known_trial(n_heads=1)) is None
