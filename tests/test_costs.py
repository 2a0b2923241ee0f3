"""Parameters and FLOPs against formulas written out by hand, and against the model that is built."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from helpers.sweeps import SWEEPS
from helpers.trials import model_config, train_config
from tinyscale.errors import ConfigError
from tinyscale.spec.config import ModelConfig, TrialConfig
from tinyscale.spec.costs import (
    CONTEXT_BYTES,
    block_matrices,
    flops_per_token,
    kv_cache_numbers,
    memory_bytes,
    parameters,
    share_bytes,
    smallest_share,
    training_steps,
)
from tinyscale.spec.data_config import DataConfig
from tinyscale.spec.sweep import load_sweep
from tinyscale.training.model import GPT, Block

SWITCHES = {
    "positions": ["learned", "rotary"],
    "norm": ["layernorm", "rmsnorm"],
    "activation": ["gelu", "swiglu"],
    "tie_embeddings": [False, True],
    "bias": [False, True],
    "n_kv_heads": [None, 1],
    "qk_norm": [False, True],
}


def assert_built_model_agrees(model: ModelConfig, vocab_size: int) -> None:
    with torch.device("meta"):  # shapes only
        groups = GPT(model, vocab_size).count_parameters()
    counts = parameters(model, vocab_size)
    assert counts.n_non_embedding == groups["attention"] + groups["mlp"] + groups["norms"]
    assert counts.n_embedding == groups["embedding"] + groups["positions"]
    assert counts.n_lm_head == groups["head"]
    assert counts.n_total == groups["total"]


@pytest.mark.parametrize(
    "chosen", list(itertools.product(*SWITCHES.values())), ids=lambda chosen: "-".join(map(str, chosen))
)
def test_counts_are_those_of_the_built_model_whatever_the_architecture(chosen: tuple[Any, ...]) -> None:
    assert_built_model_agrees(model_config(**dict(zip(SWITCHES, chosen, strict=True))), 300)


@settings(max_examples=50)
@given(
    st.integers(1, 40).map(lambda pairs: 4 * pairs),
    st.integers(1, 4),
    st.integers(4, 100),
    st.integers(2, 50),
    st.integers(10, 400),
    st.fixed_dictionaries({name: st.sampled_from(values) for name, values in SWITCHES.items()}),
)
def test_counts_are_those_of_the_built_model_whatever_the_shape(
    d_model: int, n_layers: int, d_ff: int, context: int, vocab_size: int, switches: dict[str, Any]
) -> None:
    shape = model_config(d_model=d_model, n_layers=n_layers, d_ff=d_ff, context_length=context, **switches)
    assert_built_model_agrees(shape, vocab_size)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_counts_are_those_of_the_built_model_at_every_shipped_sweep_point(path: Any) -> None:
    for model, tokenizer in dict.fromkeys((v.config.model, v.config.data.tokenizer) for v in load_sweep(path).variants):
        assert_built_model_agrees(model, tokenizer.vocab_size or 257)


@pytest.mark.parametrize("n_kv_heads", [None, 1])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_a_blocks_matrices_are_those_of_the_built_block(activation: str, n_kv_heads: int | None) -> None:
    model = model_config(activation=activation, n_kv_heads=n_kv_heads)
    layers = {name: layer for name, layer in Block(model).named_modules() if isinstance(layer, torch.nn.Linear)}
    listed = {matrix.module: (matrix.outputs, matrix.inputs) for matrix in block_matrices(model)}
    assert listed == {name: tuple(layer.weight.shape) for name, layer in layers.items()}


def test_counts_by_hand() -> None:
    counts = parameters(model_config(d_model=64, n_layers=3, n_heads=4, context_length=128), 1000)
    norms = (2 * 3 + 1) * 64
    assert counts.n_non_embedding == 12 * 3 * 64**2 + norms, "12 L d^2 of Kaplan et al., and the norms"
    assert counts.n_embedding == 1000 * 64 + 128 * 64
    assert counts.n_lm_head == 1000 * 64
    assert counts.n_matmul == 12 * 3 * 64**2 + 1000 * 64
    assert counts.n_total == counts.n_non_embedding + counts.n_embedding + counts.n_lm_head


def test_a_tied_head_is_counted_once_but_still_multiplies() -> None:
    tied, untied = (parameters(model_config(tie_embeddings=tie), 500) for tie in (True, False))
    assert untied.n_total - tied.n_total == 500 * 16
    assert tied.n_lm_head == 0
    assert tied.n_matmul == untied.n_matmul


def test_biases_and_gates_by_hand() -> None:
    plain, biased = (parameters(model_config(bias=bias), 500).n_non_embedding for bias in (False, True))
    assert biased - plain == 2 * (3 * 16 + 16 + 64 + 16 + 2 * 16) + 16, "qkv, out, up, down and two norms; last norm"
    gated = parameters(model_config(activation="swiglu", d_ff=48), 500)
    assert gated.n_matmul == 2 * (4 * 16**2 + 3 * 16 * 48) + 500 * 16


def test_shared_keys_and_values_and_their_norms_by_hand() -> None:
    plain, shared = (parameters(model_config(n_kv_heads=heads), 500).n_non_embedding for heads in (None, 1))
    assert plain - shared == 2 * (2 * 16 * 8), "in each layer one head of 8 less for keys, and one for values"
    normed = parameters(model_config(qk_norm=True), 500)
    assert normed.n_non_embedding - plain == 2 * (2 * 8), "in each layer a scale of 8 for queries and one for keys"
    assert normed.n_matmul == parameters(model_config(), 500).n_matmul


@pytest.mark.parametrize("n_kv_heads", [None, 4, 2, 1])
def test_the_kv_cache_is_what_the_projections_of_keys_and_values_give(n_kv_heads: int | None) -> None:
    model = model_config(d_model=64, n_layers=3, n_heads=4, n_kv_heads=n_kv_heads)
    projections = [block.attention.qkv for block in GPT(model, 100).blocks]
    assert kv_cache_numbers(model) == sum(projection.out_features - model.d_model for projection in projections)


def test_flops_of_each_convention_by_hand() -> None:
    L, d, h, T, V, f = 3, 64, 4, 128, 1000, 256
    flops = flops_per_token(model_config(d_model=d, n_layers=L, n_heads=h, context_length=T), V)
    counts = parameters(model_config(d_model=d, n_layers=L, n_heads=h, context_length=T), V)
    # Hoffmann et al. 2022, appendix F, a sequence of T tokens, q, k and v as wide as the model
    embedding, attention_logits, softmax = 2 * T * V * d, 2 * T * T * d, 3 * h * T * T
    qkv, reduction, projection, dense = 2 * 3 * T * d * d, 2 * T * T * d, 2 * T * d * d, 2 * T * (d * f + d * f)
    forward = embedding + L * (qkv + attention_logits + softmax + reduction + projection + dense) + 2 * T * d * V
    assert flops == {
        "flops": 6 * (12 * L * d * d + V * d) + 12 * L * d * T,
        "flops_6n": 6 * counts.n_non_embedding,
        "flops_hoffmann": 3 * forward / T,
        "flops_palm": 6 * (counts.n_total - T * d) + 12 * L * d * T,
    }


def test_our_flops_are_what_torch_counts_of_the_matrix_products() -> None:
    for changes in (
        {},
        {"activation": "swiglu", "d_ff": 40},
        {"positions": "rotary", "tie_embeddings": True},
        {"n_kv_heads": 1},
    ):
        config = model_config(d_model=32, n_heads=2, context_length=48, **changes)
        model, tokens = GPT(config, 100), torch.zeros(2, 48, dtype=torch.long)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(tokens, tokens)[1].backward()
        assert counter.get_total_flops() / tokens.numel() == flops_per_token(config, 100)["flops"]


def test_each_budget_becomes_the_nearest_number_of_steps() -> None:
    model = model_config()
    n = parameters(model, 257).n_non_embedding
    per_token = flops_per_token(model, 257)["flops"]
    none = {"tokens_budget": None}
    assert training_steps(model, train_config(tokens_budget=256 * 10 + 100), 257) == 10
    assert training_steps(model, train_config(tokens_budget=256 * 10 + 200), 257) == 11
    assert training_steps(model, train_config(**none, tokens_per_param=20), 257) == round(20 * n / 256)
    assert training_steps(model, train_config(**none, flops_budget=per_token * 256 * 77), 257) == 77


def test_the_same_flops_buy_a_wider_model_fewer_tokens() -> None:
    budget = train_config(tokens_budget=None, flops_budget=1e12)
    spent = []
    for width in (16, 32, 64):
        model = model_config(d_model=width)
        spent.append(training_steps(model, budget, 257) * 256 * flops_per_token(model, 257)["flops"])
    assert spent == pytest.approx([1e12] * 3, rel=0.01)


@pytest.mark.parametrize("budget", [{"tokens_budget": 127}, {"tokens_per_param": 0.01}, {"flops_budget": 1e6}], ids=str)
def test_a_budget_below_one_step_is_refused(budget: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="less than one step"):
        training_steps(model_config(), train_config(**{"tokens_budget": None, **budget}), 257)


@pytest.mark.parametrize(
    "heads", [{}, {"n_kv_heads": 1}, {"qk_norm": True}, {"n_kv_heads": 2, "qk_norm": True}], ids=str
)
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_the_memory_forecast_holds_what_the_backward_pass_keeps(
    activation: str, positions: str, heads: dict[str, Any]
) -> None:
    """What autograd really keeps, beside the weights, is within a tenth of the forecast's activations."""
    shape = {"activation": activation, "positions": positions, **heads}
    model = model_config(d_model=64, n_layers=3, n_heads=4, context_length=64, **shape)
    gpt, tokens = GPT(model, 300), torch.zeros(8, 64, dtype=torch.int64)
    weights = {parameter.untyped_storage().data_ptr() for parameter in gpt.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        gpt(tokens, tokens)
    measured = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in weights)
    measured += 2 * 4 * tokens.numel() * 300  # the logits and their gradient, which nothing saves
    data = DataConfig.model_validate({"corpus": "sotu", "tokenizer": {"kind": "byte"}})
    config = TrialConfig(data=data, model=model, train=train_config(batch_tokens=tokens.numel()))
    forecast = memory_bytes(config, 300) - 16 * parameters(model, 300).n_total
    assert forecast == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("needed", "above", "share"),
    [
        (30e9, 0.0, 0.5),  # of 80 GB
        (38e9, 0.0, 0.5),
        (39.5e9, 0.0, 1.0),  # half a device less a context is 39.4 GB
        (1e9, 0.0, 1 / 32),
        (1e9, 0.25, 0.5),  # the least that is more than was tried
        (90e9, 0.0, None),
        (1e9, 1.0, None),
    ],
)
def test_the_share_of_a_gpu_is_the_least_half_of_halves_that_holds_the_bytes(needed, above, share) -> None:
    assert smallest_share(needed, 80e9, above=above) == share


def test_full_shares_and_the_contexts_of_their_processes_fit_on_the_device() -> None:
    for k in (1, 2, 4, 8, 16, 32):
        assert k * (share_bytes(1 / k, 80e9) + CONTEXT_BYTES) <= 80e9 * 1.0001
