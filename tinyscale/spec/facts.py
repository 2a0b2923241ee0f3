"""What a trial's numbers depend on of its text, in five facts."""

from __future__ import annotations

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class TextFacts:
    """A text in a tokenizer's tokens, as the trials on it know it.

    split_rule: what separates training from validation text. vocab_size: the end-of-text token included.
    train_tokens: of the whole training stream.
    """

    corpus_hash: str
    split_rule: str
    tokenizer_hash: str
    vocab_size: int
    train_tokens: int
