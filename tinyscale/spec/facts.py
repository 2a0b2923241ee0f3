"""The facts of a text that the numbers of a trial on it depend on."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict
from pydantic.dataclasses import dataclass


def _of_json(value: Any) -> Any:
    """Lists as the tuples that they were before they were written."""
    return tuple(map(_of_json, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class TextFacts:
    """The facts of a tokenized text that enter a trial and its identity.

    split_rule: how training and validation text are separated. vocab_size: the end-of-text token included.
    train_tokens: of the whole training stream; part_tokens: of a mixture, (name, tokens) of each of its parts there.
    """

    corpus_hash: str
    split_rule: str
    tokenizer_hash: str
    vocab_size: int
    train_tokens: int
    part_tokens: Annotated[tuple[tuple[str, int], ...], BeforeValidator(_of_json)] = ()
