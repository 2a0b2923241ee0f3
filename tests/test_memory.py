"""Memory of a training step by exact count, and the forecast beside it."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch

from helpers.trials import known_trial, make_trial, trial_config
from tinyscale.measurements.memory import Kept, measure
from tinyscale.measurements.subject import Subject
from tinyscale.reporting.plot_memory import memory_bytes as bytes_of
from tinyscale.reporting.plot_memory import memory_front, plot_memory
from tinyscale.spec.config import OPTIMIZERS
from tinyscale.spec.costs import memory_bytes, parameters
from tinyscale.spec.data_config import DataConfig
from tinyscale.spec.measurement import Memory
from tinyscale.training.model import GPT

LLAMA = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu"}


def measured(data: DataConfig, **changes: Any) -> dict[str, Any]:
    trial, corpus = make_trial(trial_config(data, **changes))
    (row,) = measure(Subject(trial, GPT(trial.config.model, trial.vocab_size), corpus), Memory())
    return row


@pytest.mark.parametrize(
    "shape",
    [
        {"d_model": 24, "n_layers": 2, "head_dim": 8, "positions": "rotary"},
        {"d_model": 96, "n_layers": 4, "head_dim": 16},
        {"d_model": 96, "n_layers": 4, "head_dim": 16, **LLAMA},
        {"d_model": 64, "n_layers": 3, "head_dim": 16, "norm": "rmsnorm"},
        {"d_model": 64, "n_layers": 3, "head_dim": 16, **LLAMA, "n_kv_heads": 1},
        {"d_model": 64, "n_layers": 2, "head_dim": 16, **LLAMA, "qk_norm": True},
    ],
    ids=str,
)
def test_the_forecast_of_activations_is_within_a_tenth_of_what_autograd_keeps(shape: dict[str, Any]) -> None:
    """Without the logits, which would hide what the blocks keep."""
    trial = known_trial(n_heads=None, **shape)
    gpt, tokens = GPT(trial.config.model, 257), torch.zeros(8, 32, dtype=torch.int64)
    with Kept(gpt) as kept:
        gpt(tokens, tokens)
    of_logits = 3 * 4 * 257 * tokens.numel()
    forecast = memory_bytes(trial.config, 257) - 16 * parameters(trial.config.model, 257).n_total - of_logits
    assert forecast == pytest.approx(kept.activation_bytes, rel=0.1)


def test_what_is_kept_of_one_product_by_hand() -> None:
    """The head keeps its input and its weights, which are a parameter; the square keeps the logits."""
    model = torch.nn.Sequential()
    model.add_module("head", torch.nn.Linear(3, 5, bias=False))
    with Kept(model) as kept:
        model(torch.zeros(7, 3)).square().sum()
    assert (kept.activation_bytes, kept.logits_bytes) == (7 * 3 * 4, 7 * 5 * 4)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_and_state_are_what_the_optimizer_is_known_to_hold(tiny_corpus: DataConfig, optimizer: str) -> None:
    row = measured(tiny_corpus, optimizer=optimizer, tie_embeddings=True)
    trial, _ = make_trial(trial_config(tiny_corpus, tie_embeddings=True))
    assert row["weight_bytes"] == 4 * trial.parameters.n_total, "a tied head once"
    matrices = trial.parameters.n_matmul - trial.vocab_size * trial.config.model.d_model
    averages = {"adamw": 2 * trial.parameters.n_total, "lion": trial.parameters.n_total}
    averages["muon"] = averages["adamw"] - matrices
    counters = row["state_bytes"] - 4 * averages[optimizer]
    assert 0 <= counters <= 4 * 20, "and a step for each parameter"


def test_activations_grow_with_the_batch_and_nothing_else_does(tiny_corpus: DataConfig) -> None:
    small, large = (measured(tiny_corpus, batch_tokens=tokens, tokens_budget=20 * tokens) for tokens in (128, 256))
    for name in ("weight_bytes", "state_bytes", "cache_bytes_per_token"):
        assert small[name] == large[name]
    assert large["saved_bytes"] == pytest.approx(2 * small["saved_bytes"], rel=0.01)
    assert large["logits_bytes"] == pytest.approx(2 * small["logits_bytes"], rel=0.01)
    assert small["peak_bytes"] is None, "of a process that serves trial after trial, a CPU has none"


def test_a_cache_holds_keys_and_values_in_the_precision_of_the_training(tiny_corpus: DataConfig) -> None:
    fp32, bf16 = (measured(tiny_corpus, precision=precision) for precision in ("fp32", "bf16"))
    assert fp32["cache_bytes_per_token"] == 2 * 2 * 16 * 4
    assert bf16["cache_bytes_per_token"] == 2 * 2 * 16 * 2


def test_the_front_of_loss_against_memory_holds_the_models_that_no_other_beats_in_as_few_bytes() -> None:
    """By hand: seeds are one model, more tokens at one size cost no memory, and a larger model that is no better is off
    the front.
    """
    models = [("a", 10, 1e6, 4.0), ("a", 10, 1e6, 4.2), ("a", 10, 2e6, 3.8), ("a", 20, 2e6, 3.0), ("b", 30, 2e6, 3.1)]
    frame = pd.DataFrame(models, columns=["arm", "n_total", "tokens", "val_loss"]).assign(
        weight_bytes=lambda rows: 4 * rows["n_total"],
        state_bytes=lambda rows: 8 * rows["n_total"],
        saved_bytes=100,
        logits_bytes=50,
        cache_bytes_per_token=2,
        context_length=16,
    )
    assert list(bytes_of(frame, "training")[:1]) == [2 * 40 + 80 + 150]
    assert list(bytes_of(frame, "use")[:1]) == [40 + 32]
    for what in ("training", "use"):
        front = memory_front(frame, what)
        assert list(zip(front["n_total"], front["tokens"], front["val_loss"], strict=True)) == [
            (10, 2e6, 3.8),
            (20, 2e6, 3.0),
        ]
    names = plot_memory(frame, "training").get_legend_handles_labels()[1]
    assert names == ["front", "a, 1M tokens", "a, 2M tokens", "b"]
