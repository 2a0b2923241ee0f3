"""Fields, their numbers, and the rules between them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from helpers.trials import model_config, train_config, trial_config
from tinyscale.spec.config import ModelConfig, Resources, TrainConfig, TrialConfig
from tinyscale.spec.data_config import DataConfig, TokenizerConfig
from tinyscale.spec.values import quantity

DATA = {"corpus": "x", "tokenizer": {"kind": "byte"}}


def refused(model: type[BaseModel], values: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("2M", 2e6), ("1.5B", 1.5e9), ("10k", 1e4), ("3 G", 3e9), ("2e3K", 2e6), ("7", 7.0), ("1T", 1e12), (5, 5)],
)
def test_quantities_are_read_with_powers_of_a_thousand(written: object, meant: float) -> None:
    assert quantity(written) == meant


@pytest.mark.parametrize("written", ["M", "2MM", "-2M", "2 M B", "two", "", "0x10", "1_000", None, True, [2]])
def test_what_is_no_quantity_is_left_for_the_type_to_refuse(written: object) -> None:
    assert quantity(written) is written


@given(st.integers(1, 999), st.sampled_from("KMBGT"))
def test_a_count_reads_every_way_of_writing_a_number_alike(number: int, suffix: str) -> None:
    scale = {"K": 3, "M": 6, "B": 9, "G": 9, "T": 12}[suffix]
    ways = (f"{number}{suffix}", f"{number}{suffix.lower()}", number * 10**scale, float(number * 10**scale))
    assert {train_config(tokens_budget=way).tokens_budget for way in ways} == {number * 10**scale}


def test_whole_numbers_may_be_written_as_floats_but_fractions_are_refused() -> None:
    assert model_config(d_model=32.0).d_model == 32
    assert "d_model" in refused(ModelConfig, {"d_model": 32.5, "n_layers": 1, "n_heads": 1, "context_length": 8})


@pytest.mark.parametrize("wrong", ["16", True, None, [16], float("nan"), float("inf")])
def test_a_width_is_a_number_and_nothing_else(wrong: object) -> None:
    refused(ModelConfig, {"d_model": wrong, "n_layers": 1, "n_heads": 1, "context_length": 8})


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), "nan", True, 0, -1, 11])
def test_a_learning_rate_is_finite_and_between_its_bounds(wrong: object) -> None:
    refused(TrainConfig, {"tokens_budget": 1, "batch_tokens": 2, "lr": wrong})


def test_heads_follow_the_width_when_head_dim_is_given() -> None:
    shape = {"n_layers": 1, "head_dim": 16, "context_length": 8}
    heads = {width: ModelConfig.model_validate({"d_model": width, **shape}).n_heads for width in (16, 64, 96)}
    assert heads == {16: 1, 64: 4, 96: 6}


def test_heads_must_divide_the_width() -> None:
    assert "3 heads do not divide d_model 16" in refused(
        ModelConfig, dict(model_config(n_heads=1)) | {"n_heads": 3, "head_dim": None}
    )
    shape = {"d_model": 16, "n_layers": 1, "context_length": 8}
    assert "head_dim 5 does not divide d_model 16" in refused(ModelConfig, {**shape, "head_dim": 5})
    assert "4 heads of 8 are not d_model 16" in refused(ModelConfig, {**shape, "head_dim": 8, "n_heads": 4})
    assert "give n_heads or head_dim" in refused(ModelConfig, shape)
    assert "n_kv_heads 3 does not divide n_heads 4" in refused(ModelConfig, {**shape, "n_heads": 4, "n_kv_heads": 3})
    assert "n_kv_heads 4 does not divide n_heads 2" in refused(ModelConfig, {**shape, "n_heads": 2, "n_kv_heads": 4})


def test_rotary_positions_need_an_even_head() -> None:
    assert "must be even" in refused(
        ModelConfig, {"d_model": 9, "n_heads": 3, "n_layers": 1, "context_length": 8, "positions": "rotary"}
    )


@pytest.mark.parametrize(("activation", "width", "d_ff"), [("gelu", 48, 192), ("swiglu", 48, 128), ("swiglu", 64, 176)])
def test_the_mlp_follows_the_width(activation: str, width: int, d_ff: int) -> None:
    assert model_config(d_model=width, activation=activation).d_ff == d_ff


def test_a_trial_has_exactly_one_budget() -> None:
    rest = {"batch_tokens": 2, "lr": 1e-3}
    assert "found none" in refused(TrainConfig, rest)
    both = refused(TrainConfig, {**rest, "tokens_budget": 1, "flops_budget": 1e9})
    assert "found tokens_budget and flops_budget" in both


@pytest.mark.parametrize("budget", [{"tokens_budget": 10**400}, {"tokens_per_param": 1e308}, {"flops_budget": 1e308}])
def test_a_budget_beyond_any_machine_is_refused_not_overflown(budget: dict[str, Any]) -> None:
    refused(TrainConfig, {"batch_tokens": 2, "lr": 1e-3, **budget})


def test_betas_are_two_numbers_below_one() -> None:
    assert train_config(betas=[0.8, 0.9]).betas == (0.8, 0.9)
    for wrong in ([0.9], [0.9, 1.0], [0.9, -0.1], [0.9, 0.9, 0.9], 0.9, "0.9"):
        refused(TrainConfig, dict(train_config()) | {"betas": wrong})


def test_only_bpe_takes_a_vocab_size_and_it_needs_one() -> None:
    assert TokenizerConfig(kind="bpe", vocab_size=258).vocab_size == 258
    assert "bpe needs a vocab_size" in refused(TokenizerConfig, {"kind": "bpe"})
    assert "only bpe takes a vocab_size" in refused(TokenizerConfig, {"kind": "char", "vocab_size": 300})
    refused(TokenizerConfig, {"kind": "bpe", "vocab_size": 257})


@pytest.mark.parametrize("gpu", [0, 0.5, 0.25, 1 / 3, 0.333333333, 1])
def test_a_share_of_a_gpu_that_packs_is_taken(gpu: float) -> None:
    assert Resources(gpu=gpu).gpu == gpu


@pytest.mark.parametrize(
    "wrong", [{"gpu": 0.4}, {"gpu": 0.3}, {"gpu": 2}, {"gpu": 0.5, "workers": 2}, {"cpu": 0}, {"cpu": 0.5}]
)
def test_resources_that_do_not_pack_are_refused(wrong: dict[str, float]) -> None:
    refused(Resources, wrong)


def test_a_batch_is_whole_contexts_that_divide_among_the_workers() -> None:
    assert "not a multiple of context_length" in refused_trial(batch_tokens=250)
    assert "do not divide among 3 workers" in refused_trial(resources={"workers": 3})
    assert trial_config(DATA, resources={"workers": 4}).resources.workers == 4


def test_a_validation_text_takes_the_place_of_what_is_held_out() -> None:
    data = {"corpus": "x.txt", "val": "v.txt", "tokenizer": {"kind": "byte"}}
    assert "give one" in refused(DataConfig, {**data, "val_bytes": 400_000})
    assert "of known entropy" in refused(DataConfig, {**data, "corpus": "zipf_records"})
    held_out = trial_config({"corpus": "x.txt", "val_bytes": 400_000, "tokenizer": {"kind": "byte"}})
    assert held_out.with_values({"data.val": "v.txt"}).data == DataConfig.model_validate(data)


def refused_trial(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        trial_config(DATA, **changes)
    return str(caught.value)


@pytest.mark.parametrize("model", [TokenizerConfig, DataConfig, ModelConfig, TrainConfig, Resources, TrialConfig])
def test_models_are_frozen_refuse_unknown_keys_and_describe_every_field(model: type[BaseModel]) -> None:
    assert model.model_config["frozen"]
    assert "Extra inputs are not permitted" in refused(model, {"surprise": 1})
    assert all(field.description for field in model.model_fields.values())


def test_a_copy_with_other_values_is_validated_as_a_whole() -> None:
    config = trial_config(DATA, betas=[0.9, 0.99], head_dim=8)
    assert config.with_values({}) == config
    changed = config.with_values({"train.lr": 1e-3, "seed": 3, "resources.gpu": 0.5})
    assert (changed.train.lr, changed.seed, changed.resources.gpu) == (1e-3, 3, 0.5)
    assert changed.with_values({"train.lr": config.train.lr, "seed": 0, "resources": config.resources}) == config
    for illegal in (
        {"train.lr": -1},
        {"resources.gpu": 0.3},
        {"train.batch_tokens": 33},
        {"train.rate": 1},
        {"sead": 1},
    ):
        with pytest.raises(ValidationError):
            config.with_values(illegal)


def test_a_copy_drops_what_says_the_same_as_a_value_that_is_set() -> None:
    config = trial_config(DATA)
    by_ratio = config.with_values({"train.tokens_per_param": 20, "model.head_dim": 4})
    assert (by_ratio.train.tokens_budget, by_ratio.train.tokens_per_param) == (None, 20)
    assert (by_ratio.model.n_heads, by_ratio.model.head_dim) == (4, 4)
