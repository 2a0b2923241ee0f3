"""Trials of a second, and their parts."""

from __future__ import annotations

from typing import Any

from tinyscale.data import TokenizedCorpus, prepare
from tinyscale.spec.config import ModelConfig, TrainConfig, TrialConfig
from tinyscale.spec.data_config import DataConfig
from tinyscale.spec.facts import TextFacts
from tinyscale.spec.trial import Trial, resolve

MODEL = {"d_model": 16, "n_layers": 2, "n_heads": 2, "context_length": 32}
TRAIN = {"tokens_budget": 20 * 256, "batch_tokens": 256, "lr": 1e-2, "eval_points": 3}

FACTS = TextFacts(corpus_hash="c0", split_rule="rule-1", tokenizer_hash="70", vocab_size=257, train_tokens=1_000_000)


def model_config(**changes: Any) -> ModelConfig:
    """A model of two layers of width 16, changed in the fields named."""
    return ModelConfig.model_validate({**MODEL, **changes})


def train_config(**changes: Any) -> TrainConfig:
    """Training of 20 steps of 256 tokens, changed in the fields named."""
    return TrainConfig.model_validate({**TRAIN, **changes})


def trial_config(data: DataConfig | dict[str, Any], **changes: Any) -> TrialConfig:
    """A trial of a second; a change names a field of the model, of the training, or of the trial itself."""
    parts: dict[str, Any] = {"data": data, "model": dict(MODEL), "train": dict(TRAIN)}
    for name, value in changes.items():
        holds = {"model": ModelConfig.model_fields, "train": TrainConfig.model_fields}
        parts.get(next((part for part, fields in holds.items() if name in fields), ""), parts)[name] = value
    return TrialConfig.model_validate(parts)


def make_trial(config: TrialConfig, teacher: Trial | None = None) -> tuple[Trial, TokenizedCorpus]:
    """The trial resolved against its text, and the text."""
    corpus = prepare(config.data)
    return resolve(config, corpus.facts, teacher), corpus


def known_trial(teacher: Trial | None = None, **changes: Any) -> Trial:
    """A trial on a text that is nowhere: its hashes are given."""
    named = {"teacher": teacher.identity} if teacher else {}
    config = trial_config({"corpus": "nowhere.txt", "tokenizer": {"kind": "byte"}}, **named, **changes)
    return resolve(config, FACTS, teacher)
