"""The whole of training against independent implementations: transformers' GPT-2 and Qwen3 with the same weights and
data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from helpers.trials import make_trial, trial_config
from tinyscale.inference.export import _gpt2_tensors, _llama_tensors
from tinyscale.spec.data_config import DataConfig
from tinyscale.training.batches import TrainBatches
from tinyscale.training.loop import Run
from tinyscale.training.model import GPT

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the transformers library's own making
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
STEPS = 200


def gpt2(gpt: GPT) -> nn.Module:
    """Transformers' GPT-2 with these weights."""
    model = gpt.config
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=gpt.head.weight.shape[0],
            n_embd=model.d_model,
            n_layer=model.n_layers,
            n_head=model.n_heads,
            n_inner=model.d_ff,
            n_positions=model.context_length,
            activation_function="gelu",
            tie_word_embeddings=False,
            **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
        )
    )
    theirs.load_state_dict({name: tensor.clone() for name, tensor in _gpt2_tensors(gpt.state_dict(), model).items()})
    return theirs


def qwen3(gpt: GPT) -> nn.Module:
    """Transformers' Qwen3 with these weights."""
    model = gpt.config
    theirs = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=gpt.head.weight.shape[0],
            hidden_size=model.d_model,
            num_hidden_layers=model.n_layers,
            num_attention_heads=model.n_heads,
            num_key_value_heads=model.n_kv_heads,
            head_dim=model.d_model // model.n_heads,
            intermediate_size=model.d_ff,
            max_position_embeddings=model.context_length,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
        )
    )
    theirs.load_state_dict({name: tensor.clone() for name, tensor in _llama_tensors(gpt.state_dict(), model).items()})
    return theirs


def their_losses(theirs: nn.Module, batches: TrainBatches, rates: list[float], weight_decay: float) -> list[float]:
    """Losses of their model under torch's AdamW and clipping."""
    decayed = [p for p in theirs.parameters() if p.dim() >= 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}]
    groups += [{"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False, fused=False)
    losses = []
    for step, rate in enumerate(rates):
        inputs, targets = batches.batch(step)
        loss = theirs(inputs, labels=inputs, shift_labels=targets).loss
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("theirs_of", "changes"),
    [
        (gpt2, {"bias": True}),
        (qwen3, {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "n_kv_heads": 1, "qk_norm": True}),
    ],
)
def test_a_model_of_the_transformers_library_has_the_same_losses_over_200_steps(
    tiny_corpus: DataConfig, theirs_of: Callable[[GPT], nn.Module], changes: dict[str, Any]
) -> None:
    config = trial_config(tiny_corpus, tokens_budget=STEPS * 256, repeats=True, lr=3e-3, **changes)
    trial, corpus = make_trial(config)
    run = Run(trial, corpus, None)
    initial = GPT(config.model, trial.vocab_size)
    initial.load_state_dict(run.gpt.state_dict())
    ours, rates = [], []
    for _ in range(STEPS):
        before = dataclasses.replace(run.progress)
        run.update()
        ours.append(run.progress.loss_sum - before.loss_sum)
        rates.append(float(run.state.optimizer.param_groups[0]["lr"]))
    batches = TrainBatches(corpus.train(), 32, 8, seed=0)
    theirs = their_losses(theirs_of(initial), batches, rates, config.train.weight_decay)
    assert ours[0] - ours[-1] > 1, "it learns"
    assert np.abs(np.subtract(ours, theirs)).max() < 1e-3
