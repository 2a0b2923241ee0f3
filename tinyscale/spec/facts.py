"""The facts of a text that the numbers of a trial on it depend on."""

from __future__ import annotations

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class TextFacts:
    """The facts of a tokenized text that enter a trial and its identity.

    split_rule: how training and validation text are separated. vocab_size: the end-of-text token included.
    train_tokens: of the whole training stream.
    """

    corpus_hash: str
    split_rule: str
    tokenizer_hash: str
    vocab_size: int
    train_tokens: int
