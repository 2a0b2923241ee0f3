"""Other texts and prompts: numbers are those of `tinyscale eval` and of a sum by hand, and mistakes name their line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from helpers.text import words
from helpers.trials import make_trial, trial_config
from tinyscale.data.prompts import Prompt, read_prompts, text_hash
from tinyscale.errors import DataError
from tinyscale.inference.trained import Trained, score
from tinyscale.measurements.score import choice_nats, measure
from tinyscale.measurements.subject import Subject
from tinyscale.spec.data_config import DataConfig
from tinyscale.spec.measurement import Question, Score
from tinyscale.training.model import GPT


@pytest.fixture
def subject(tiny_corpus: DataConfig) -> Subject:
    trial, corpus = make_trial(trial_config(tiny_corpus))
    torch.manual_seed(0)
    return Subject(trial, GPT(trial.config.model, trial.vocab_size).eval(), corpus)


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


SKY = {"prompt": "The sky is", "choices": [" blue", " green", " of é"], "answer": 0}


def test_the_loss_of_a_text_is_what_eval_prints(subject: Subject, tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    written(path, {"text": words(300, seed=1)}, {"text": words(20, seed=2)})
    (row,) = measure(subject, Score(text=str(path)))
    printed = score(Trained("", subject.trial.config, subject.gpt, subject.tokenizer), str(path))
    for ours, theirs in {"text_tokens": "tokens", "text_bytes": "bytes"}.items():
        assert row.pop(ours) == printed[theirs]
    assert row == {name: printed[name] for name in ("loss", "loss_se", "bits_per_byte", "documents")}


def test_the_nats_of_a_choice_by_hand(subject: Subject) -> None:
    prompt = Prompt("ab", ("cd", "é"), 0, "")
    for choice, nats in zip(prompt.choices, choice_nats(subject.gpt, subject.tokenizer, prompt), strict=True):
        own = subject.tokenizer.encode(choice)
        tokens = [subject.tokenizer.eot, *subject.tokenizer.encode("ab"), *own]
        log_p = F.log_softmax(subject.gpt(torch.tensor([tokens]))[0][0], dim=-1)
        by_hand = -sum(log_p[-len(own) - 1 + k, token].item() for k, token in enumerate(own))
        assert nats == pytest.approx(by_hand, rel=1e-5)
    long = Prompt("x" * 100, ("cd" * 16, "y"), 0, "f, line 3")
    assert np.isfinite(choice_nats(subject.gpt, subject.tokenizer, long)).all()
    with pytest.raises(DataError, match=r"f, line 3: a choice of 34 tokens is longer than .* context_length = 32"):
        choice_nats(subject.gpt, subject.tokenizer, Prompt("x", ("cd" * 17, "y"), 0, "f, line 3"))


class Prefers(torch.nn.Module):
    """Expects one letter, each other byte with chance 1/1000 of it."""

    def __init__(self, letter: str, subject: Subject) -> None:
        super().__init__()
        self.config, self.logits = subject.gpt.config, torch.zeros(subject.corpus.facts.vocab_size)
        self.logits[subject.tokenizer.encode(letter)[0]] = math.log(1000)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.logits.expand(*tokens.shape, -1), None


def test_accuracy_and_chance_of_a_model_that_prefers_a_letter(subject: Subject, tmp_path: Path) -> None:
    path = written(
        tmp_path / "prompts.jsonl",
        {"prompt": "p", "choices": ["aaaa", "b"], "answer": "aaaa"},  # longer, and still likelier per byte
        {"prompt": "p", "choices": ["b", "a", "c", "d"], "answer": 1},
        {"prompt": "p", "choices": ["b", "a"], "answer": 0},
    )
    (row,) = measure(Subject(subject.trial, Prefers("a", subject), subject.corpus), Score(prompts=str(path)))  # type: ignore[arg-type]
    assert row["accuracy"] == pytest.approx(2 / 3)
    assert row["chance"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 2) / 3)
    others = math.log(1000 + subject.trial.vocab_size - 1)
    nats = 5 * (others - math.log(1000)) + others
    assert (row["documents"], row["text_tokens"], row["text_bytes"]) == (3, 6, 6)
    assert row["loss"] == pytest.approx(nats / 6, rel=1e-5)
    assert row["answer_bits_per_byte"] == pytest.approx(nats / 6 / math.log(2), rel=1e-5)
    assert row["loss_se"] > 0


def test_the_hash_is_of_what_is_read_and_a_part_of_the_identity(tmp_path: Path) -> None:
    path = written(tmp_path / "prompts.jsonl", SKY)
    asked = Score(prompts=str(path))
    first = text_hash(asked)
    written(path, f"\n{json.dumps({**SKY, 'answer': ' blue'}, indent=None)}")
    assert text_hash(asked) == first, "the same prompt on another line, its answer by its text"
    written(path, {**SKY, "answer": 1})
    assert text_hash(asked) != first
    (tmp_path / "text.txt").write_text("some text")
    of_text = text_hash(Score(text=str(tmp_path / "text.txt")))
    assert len({Question("score", asked, text_hash=each).identity_for("t") for each in (None, first, of_text)}) == 3


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "not JSON"),
        ("[]", 'no string under the key "prompt"'),
        ({**SKY, "prompt": 3}, 'no string under the key "prompt"'),
        ({**SKY, "choices": [" blue"]}, '"choices" must be two or more texts'),
        ({**SKY, "choices": [" blue", ""]}, '"choices" must be two or more texts, none empty'),
        ({**SKY, "choices": [" blue", " blue"]}, 'two of its "choices" are the same'),
        ({**SKY, "answer": 3}, '"answer" = 3 must be a number from 0 to 2, or one of its choices'),
        ({**SKY, "answer": " red"}, "\"answer\" = ' red' must be"),
        ({**SKY, "answer": True}, '"answer" = True must be'),
        ('{"prompt": "\\ud800", "choices": ["a", "b"], "answer": 0}', '"prompt" contains half of a surrogate pair'),
    ],
    ids=str,
)
def test_a_row_that_is_no_prompt_is_named_by_file_and_line(tmp_path: Path, row: Any, said: str) -> None:
    path = written(tmp_path / "prompts.jsonl", SKY, row)
    with pytest.raises(DataError) as error:
        read_prompts(path)
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert said in str(error.value)


def test_files_that_hold_no_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no prompts"):
        read_prompts(written(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match=r"prompts are read from \.jsonl"):
        read_prompts(tmp_path / "prompts.csv")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "give either text or prompts"),
        ({"text": "a", "prompts": "b"}, "give either text or prompts"),
        ({"prompts": "b", "max_bytes": 10}, "remove max_bytes"),
        ({"text": "repeats"}, "generated and has no documents"),
    ],
)
def test_a_score_asks_one_thing(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Score.model_validate(fields)
