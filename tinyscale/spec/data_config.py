"""The text that a trial is trained on, as the field `data` of a sweep file has it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, field_validator, model_validator

from tinyscale.spec.values import STRICT, Count, Int, Quantity, refuse

SEPARATOR = "<|endoftext|>"  # between documents in plain text, where nothing else is named
ZIPF_RECORDS, REPEATS = "zipf_records", "repeats"  # the corpora that ZipfConfig and RepeatsConfig describe
NAMED_CORPORA = (
    "sotu",
    "tinystories",
    "tinystories_v2",
    "ag_news",
    "wikitext2",
    ZIPF_RECORDS,
    REPEATS,
)  # not paths, whatever lies beside a sweep file


class TokenizerConfig(BaseModel):
    """How text becomes tokens. Every kind is lossless: bytes represent what is not in the vocabulary."""

    model_config = STRICT

    kind: Literal["bpe", "char", "byte"] = Field(
        description="bpe: byte-level merges; char: the training split's characters; byte: the 256 bytes"
    )
    vocab_size: Int | None = Field(
        default=None, ge=258, le=1 << 20, description="tokens wanted of bpe, the end-of-text token included"
    )

    @model_validator(mode="after")
    def _vocab_size_belongs_to_bpe(self) -> Self:
        if self.kind == "bpe" and self.vocab_size is None:
            raise refuse("vocab_size", "bpe needs a vocab_size, for example 1024")
        if self.kind != "bpe" and self.vocab_size is not None:
            raise refuse("vocab_size", f"only bpe takes a vocab_size; {self.kind} takes it from the text: remove it")
        return self


class ZipfConfig(BaseModel):
    """The source `zipf_records`: records of 16 characters, whose entropy is known exactly."""

    model_config = STRICT

    topics: Int = Field(default=32768, ge=2, le=32768, description="topics, each with transitions of its own")
    topic_exponent: Quantity = Field(default=0.5, gt=0, le=4, description="a: topic k has probability ~ k^-(1+a)")
    letters: Int = Field(default=16, ge=2, le=26, description="letters of a record's body")
    letter_exponent: Quantity = Field(
        default=2.0, ge=0, le=8, description="s: the letter of rank r follows with ~ r^-s"
    )
    seed: Int = Field(default=0, ge=0, le=2**31 - 1, description="seeds the transitions and the text")
    train_bytes: Count = Field(default=10_000_000, ge=1000, description="characters of training text")


class RepeatsConfig(BaseModel):
    """The source `repeats`: records of one random pattern each, repeated."""

    model_config = STRICT

    symbols: Int = Field(default=64, ge=2, le=94, description="characters that patterns are made of")
    exponent: Quantity = Field(default=0.0, ge=0, le=8, description="s: the symbol of rank r is drawn with ~ r^-s")
    period: Int = Field(default=16, ge=2, le=4096, description="symbols of the longest pattern; a record is twice that")
    shortest: Int | None = Field(
        default=None,
        ge=2,
        description="symbols of the shortest pattern; where lengths vary, no fixed distance leads to what comes next; "
        "default: the period",
    )
    seed: Int = Field(default=0, ge=0, le=2**31 - 1, description="seeds the text")
    train_bytes: Count = Field(default=10_000_000, ge=1000, description="characters of training text")

    @model_validator(mode="after")
    def _shortest_is_not_longer(self) -> Self:
        if self.shortest is not None and self.shortest > self.period:
            raise refuse("shortest", f"shortest {self.shortest} is above period {self.period}")
        return self


SOURCES = {ZIPF_RECORDS: "zipf", REPEATS: "repeats"}  # generated corpus -> the field of `data` that describes it


def _pairs(value: Any) -> Any:
    """A mapping as pairs in the order of their names, so that a configuration has a hash; pairs as they are."""
    if isinstance(value, dict):
        return tuple(sorted(value.items(), key=lambda pair: str(pair[0])))
    if isinstance(value, list | tuple):
        return tuple(map(tuple, value))
    raise refuse("", "give names with values, such as {de: 1, en: 4}")


PartName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=40)]
Parts = Annotated[tuple[tuple[PartName, str], ...], BeforeValidator(_pairs)]
Shares = Annotated[tuple[tuple[PartName, Quantity], ...], BeforeValidator(_pairs)]


class DataConfig(BaseModel):
    """Which text, or mixture of texts, in which tokens, and how much of it is held out."""

    model_config = STRICT

    corpus: str = Field(
        min_length=1,
        description="a named corpus, or a path to .txt, .jsonl, .parquet or a folder; of parts, their names",
    )
    parts: Parts = Field(
        default=(),
        description="in place of corpus, the texts of a mixture: name -> corpus; one tokenizer serves all",
    )
    shares: Shares = Field(
        default=(),
        description="name of a part -> its share of the training tokens, in any unit; default: all parts alike",
    )
    tokenizer: TokenizerConfig = Field(description="how the text becomes tokens")
    val_bytes: Count = Field(
        default=500_000,
        ge=1000,
        description="bytes of UTF-8 to hold out, of each part, in whole documents; at least 100,000 tokens",
    )
    val: str | None = Field(
        default=None,
        min_length=1,
        description="the validation text, in place of a part held out of corpus: .txt, .jsonl, .parquet or a folder; "
        "at least 100,000 tokens. The tokenizer is trained on corpus alone",
    )
    separator: str = Field(
        default=SEPARATOR,
        min_length=1,
        description='what stands between the documents of a .txt file, of corpus and of val; "\\n\\n" makes paragraphs '
        "documents",
    )
    max_bytes: Count | None = Field(
        default=None, ge=1000, description="read only this many bytes, from the start, of a corpus of the hub"
    )
    unique_tokens: Count | None = Field(
        default=None,
        ge=1000,
        description="train on only this many tokens, the first of the training split; subsets nest",
    )
    zipf: ZipfConfig = Field(default=ZipfConfig(), description="the source of the corpus zipf_records")
    repeats: RepeatsConfig = Field(default=RepeatsConfig(), description="the source of the corpus repeats")

    @model_validator(mode="before")
    @classmethod
    def _name_the_mixture(cls, data: Any) -> Any:
        """The corpus of parts is called by their names, such as de+en; without shares, all parts have the same."""
        parts = data.get("parts") if isinstance(data, dict) else None
        if not isinstance(parts, dict | list | tuple):
            return data
        names = [str(part[0]) for part in _pairs(parts) if part]
        filled = {
            "corpus": data.get("corpus") or "+".join(names),
            "shares": data.get("shares") or dict.fromkeys(names, 1),
        }
        return {**data, **filled} if names else data

    @field_validator("shares")
    @classmethod
    def _shares_sum_to_one(cls, shares: Shares) -> Shares:
        """Mixtures that are the same have the same shares."""
        if wrong := [name for name, share in shares if not 0 <= share < math.inf]:
            raise refuse("shares", f"the share of {wrong[0]} must be zero or above")
        total = math.fsum(share for _, share in shares)
        if shares and not total:
            raise refuse("shares", "no part has a share above zero")
        return tuple((name, share / total) for name, share in shares if share)

    @model_validator(mode="after")
    def _shares_are_of_the_parts(self) -> Self:
        names = [name for name, _ in self.parts]
        if self.shares and not names:
            raise refuse("shares", "shares are those of parts: give data.parts, or remove them")
        if not names:
            return self
        if self.corpus != "+".join(names):
            raise refuse("corpus", "a mixture is of its parts: give corpus or parts, not both")
        if len(names) < 2:
            raise refuse("parts", "a mixture has two parts or more: give one text as data.corpus")
        if unknown := [name for name, _ in self.shares if name not in names]:
            raise refuse("shares", f"there is no part {unknown[0]!r}; the parts are {', '.join(names)}")
        if self.separator != SEPARATOR:
            raise refuse("separator", "separator is of one text; give the parts of a mixture as .jsonl, and remove it")
        if self.unique_tokens is not None:
            raise refuse("unique_tokens", "unique_tokens takes the first tokens of one text; shorten the parts instead")
        return self

    @model_validator(mode="after")
    def _validation_is_held_out_or_given(self) -> Self:
        if self.val is None:
            return self
        if self.parts:
            raise refuse("val", "each part of a mixture is scored on what is held out of it: remove val")
        if self.corpus in SOURCES:
            raise refuse("val", f"{self.corpus} generates its validation text, of known entropy: remove val")
        if self.val_bytes != type(self).model_fields["val_bytes"].default:
            raise refuse("val_bytes", "val_bytes are held out of the corpus, and val is a text of its own: give one")
        return self

    @model_validator(mode="after")
    def _the_source_belongs_to_its_corpus(self) -> Self:
        for corpus, field in SOURCES.items():
            if self.corpus != corpus and getattr(self, field) != type(self).model_fields[field].default:
                raise refuse(field, f"{field} describes the corpus {corpus}, not {self.corpus}: remove it")
        if self.corpus in SOURCES and self.tokenizer.kind == "bpe":
            raise refuse("tokenizer.kind", f"{self.corpus} has a known entropy per character: use char or byte")
        return self
