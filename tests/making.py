"""Texts, trials and sweep files for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tinyscale.data import TokenizedCorpus, prepare
from tinyscale.spec.config import DataConfig, ModelConfig, TrainConfig, TrialConfig
from tinyscale.spec.facts import TextFacts
from tinyscale.spec.trial import Trial, resolve

ROOT = Path(__file__).parent.parent
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))

MODEL = {"d_model": 16, "n_layers": 2, "n_heads": 2, "context_length": 32}
TRAIN = {"tokens_budget": 20 * 256, "batch_tokens": 256, "lr": 1e-2, "eval_points": 3}

FACTS = TextFacts(corpus_hash="c0", split_rule="rule-1", tokenizer_hash="70", vocab_size=257, train_tokens=1_000_000)

SWEEP = """\
name: tiny
base:
  data: {corpus: CORPUS, tokenizer: {kind: byte}}
  model: {d_model: 16, n_layers: 1, n_heads: 2, context_length: 32}
  train: {tokens_budget: 5120, batch_tokens: 256, lr: 1e-2}
"""


def words(count: int, seed: int = 0) -> str:
    """Text of so many words from a vocabulary of 50, most of them rare."""
    rng = np.random.default_rng(seed)
    vocabulary = ["".join(rng.choice(list("abcdefgh"), rng.integers(2, 7))) for _ in range(50)]
    chances = 1 / np.arange(1, 51)
    return " ".join(rng.choice(vocabulary, count, p=chances / chances.sum()))


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


def make_trial(config: TrialConfig) -> tuple[Trial, TokenizedCorpus]:
    """The trial resolved against its text, and the text."""
    corpus = prepare(config.data)
    return resolve(config, corpus.facts), corpus


def known_trial(**changes: Any) -> Trial:
    """A trial on a text that is nowhere: its hashes are given."""
    config = trial_config({"corpus": "nowhere.txt", "tokenizer": {"kind": "byte"}}, **changes)
    return resolve(config, FACTS)


def write_sweep(folder: Path, text: str = SWEEP, corpus: str | Path = "nowhere.txt") -> Path:
    """The sweep file `tiny.yaml` in the folder, its corpus filled in."""
    path = folder / "tiny.yaml"
    path.write_text(text.replace("CORPUS", str(corpus)))
    return path
