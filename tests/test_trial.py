# ruff: noqa: E501 - tables of changes
"""A trial's identity: what moves it, and what does not."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from helpers.trials import FACTS, MODEL, TRAIN, known_trial, trial_config
from tinyscale.errors import ConfigError
from tinyscale.spec.config import TrialConfig
from tinyscale.spec.trial import Trial, resolve

DATA = {"corpus": "nowhere.txt", "tokenizer": {"kind": "byte"}}

# These may change only together with SCIENCE_VERSION: they name files in people's results folders.
VECTORS = {
    "d28adb45eb5eb188": {},
    "b92fc9dd0c8a63fe": {"seed": 1, "lr": 3e-3, "betas": [0.9, 0.99], "schedule": "wsd"},
    "4241f903202babc3": {"d_model": 64, "n_heads": 4, "positions": "rotary", "activation": "swiglu", "norm": "rmsnorm"},
    "279a508e11d92c06": {"tokens_budget": None, "tokens_per_param": 20, "precision": "bf16", "tie_embeddings": True},
}


def identity(config: TrialConfig, **text: Any) -> str:
    return resolve(config, replace(FACTS, **text)).identity


@pytest.mark.parametrize(("known", "changes"), VECTORS.items())
def test_identities_are_the_ones_in_results_folders(known: str, changes: dict[str, Any]) -> None:
    assert known_trial(**changes).identity == known


def test_a_process_with_another_hash_seed_gives_the_same_identity() -> None:
    program = "from helpers.trials import known_trial; print(known_trial().identity)"
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        path = os.pathsep.join(sys.path)
        out = subprocess.run(
            [sys.executable, "-c", program],
            env=environment | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        assert out.stdout.strip() == known_trial().identity


@given(st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        items = list(value.items())
        random.shuffle(items)
        return {key: shuffled(inner) for key, inner in items}

    written = {"data": DATA, "model": MODEL, "train": TRAIN, "seed": 0, "resources": {"cpu": 1}}
    assert identity(TrialConfig.model_validate(shuffled(written))) == known_trial().identity


@given(st.integers(1, 3900))
def test_20_and_20_0_and_2e1_are_one_number(tokens_per_param: int) -> None:
    ways = (tokens_per_param, float(tokens_per_param), f"{tokens_per_param}", f"{tokens_per_param}e0")
    found = {known_trial(tokens_budget=None, tokens_per_param=way).identity for way in ways}
    assert len(found) == 1
    assert known_trial(d_model=16.0, batch_tokens=2.56e2).identity == known_trial().identity


@pytest.mark.parametrize(
    "changes",
    [
        {"resources": {"cpu": 2, "workers": 4}},
        {"resources": {"gpu": 0.25}},
        {"data": {"corpus": "elsewhere/moved.txt", "tokenizer": {"kind": "byte"}}}, {"data": {**DATA, "val": "v.txt"}},
        {"data": {**DATA, "separator": "\n\n"}},
        {"d_ff": 64}, {"head_dim": 8}, {"betas": [0.9, 0.95]}, {"weight_decay": 0.1}, {"grad_clip": 1}, {"schedule": "cosine"},
        {"tokens_budget": None, "flops_budget": 5120 * (6 * (2 * 12 * 16 * 16 + 257 * 16) + 12 * 2 * 16 * 32)},
        {"tokens_budget": 5130}, {"repeats": True}, {"decay_fraction": 0.3},
    ],
    ids=str,
)  # fmt: skip
def test_what_changes_no_number_leaves_the_identity(changes: dict[str, Any]) -> None:
    assert identity(trial_config(**{"data": DATA, **changes})) == known_trial().identity


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1}, {"lr": 0.011}, {"d_model": 32}, {"n_layers": 3}, {"n_heads": 4}, {"d_ff": 68}, {"context_length": 64},
        {"positions": "rotary"}, {"norm": "rmsnorm"}, {"activation": "swiglu"}, {"tie_embeddings": True}, {"bias": True},
        {"n_kv_heads": 1}, {"qk_norm": True},
        {"tokens_budget": 21 * 256}, {"batch_tokens": 512}, {"optimizer": "lion"}, {"min_lr_ratio": 0.2},
        {"warmup_fraction": 0.1}, {"schedule": "linear"}, {"weight_decay": 0},
        {"betas": [0.9, 0.99]}, {"grad_clip": 0}, {"precision": "bf16"}, {"eval_points": 4},
        {"data": {**DATA, "val_bytes": 400_000}}, {"data": {**DATA, "unique_tokens": 10_000}},
    ],
    ids=str,
)  # fmt: skip
def test_what_changes_the_numbers_changes_the_identity(changes: dict[str, Any]) -> None:
    assert identity(trial_config(**{"data": DATA, **changes})) != known_trial().identity


def test_as_many_heads_of_keys_as_of_queries_are_no_change() -> None:
    assert known_trial(n_kv_heads=2).identity == known_trial().identity


def test_a_setting_of_the_schedule_counts_where_the_schedule_has_it() -> None:
    def moved(schedule: str, **change: float) -> bool:
        return known_trial(schedule=schedule, **change).identity != known_trial(schedule=schedule).identity

    assert moved("wsd", decay_fraction=0.3)
    assert moved("wsd", min_lr_ratio=0)
    assert moved("linear", min_lr_ratio=0)
    assert not moved("linear", decay_fraction=0.3)
    assert not moved("constant", min_lr_ratio=0)


@pytest.mark.parametrize("text", [{"corpus_hash": "c1"}, {"tokenizer_hash": "71"}, {"split_rule": "rule-2"}], ids=str)
def test_another_text_is_another_trial(text: dict[str, Any]) -> None:
    assert identity(trial_config(DATA), **text) != known_trial().identity


def test_the_identity_hashes_what_decides_the_numbers_and_leaves_out_fields_at_their_default() -> None:
    described = {
        "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 64, "context_length": 32},
        "train": {"tokens_budget": 5120, "batch_tokens": 256, "lr": 0.01, "eval_points": 3},
        "data": {},
        "corpus": "c0", "tokenizer": "70", "split": "rule-1", "science_version": 1,
    }  # fmt: skip
    assert known_trial(seed=0, schedule="cosine").identity == _hash(described), "so a new field re-runs nothing"


@pytest.mark.parametrize(
    ("context", "precision", "version"), [(256, "bf16", 1), (257, "bf16", 2), (257, "fp32", 1)], ids=str
)
def test_only_what_is_computed_in_another_way_than_before_is_trained_again(
    context: int, precision: str, version: int
) -> None:
    changes = {"tokens_budget": 20 * context, "batch_tokens": context}
    described = {
        "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 64, "context_length": context},
        "train": {"lr": 0.01, "eval_points": 3} | changes | ({"precision": precision} if precision != "fp32" else {}),
        "data": {},
        "corpus": "c0", "tokenizer": "70", "split": "rule-1", "science_version": version,
    }  # fmt: skip
    assert known_trial(context_length=context, precision=precision, **changes).identity == _hash(described)


def _hash(described: dict[str, Any]) -> str:
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def test_a_trial_knows_its_steps_tokens_epochs_and_flops() -> None:
    trial: Trial = known_trial(tokens_budget=2_000_100)
    assert (trial.steps, trial.tokens) == (7813, 7813 * 256), "the number of steps nearest to the budget"
    assert trial.epochs == 7813 * 256 / 1_000_000
    assert trial.flops == trial.tokens * trial.flops_per_token["flops"]
    assert trial.config.train.tokens_per_param is None, "the budget is resolved"


def test_the_unique_tokens_are_the_subset_asked_for_or_the_whole_text() -> None:
    assert known_trial().unique_tokens == 1_000_000
    subset = trial_config({**DATA, "unique_tokens": 5000})
    assert resolve(subset, FACTS).unique_tokens == 5000


def test_a_budget_below_one_step_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"allows 100 tokens, less than one step of train.batch_tokens = 256"):
        known_trial(tokens_budget=100)


def test_a_budget_of_more_tokens_than_a_trial_may_train_on_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"allows .*e\+\d+ tokens, more than a trial may train on; lower it"):
        known_trial(tokens_budget=None, flops_budget=1e30)


@pytest.mark.parametrize("changes", [{}, *VECTORS.values(), {"data": {**DATA, "unique_tokens": 10_000}}], ids=str)
def test_a_trial_comes_back_from_json_as_it_was(changes: dict[str, Any]) -> None:
    trial = resolve(trial_config(**{"data": DATA, **changes}), FACTS)
    again = Trial.of_json(json.loads(json.dumps(trial.as_json())))
    assert again == trial
    assert resolve(again.config, again.facts) == trial, "what is resolved stays as it is"


@pytest.mark.parametrize(("part", "field"), [("facts", "vocab_size"), ("config", "seed")])
def test_a_trial_in_json_is_validated(part: str, field: str) -> None:
    written = known_trial().as_json()
    written[part][field] = "many"
    with pytest.raises(ValidationError, match=field):
        Trial.of_json(written)
