"""Measurements: questions that a sweep puts to the weights of its finished trials. See docs/sweep-file.md.

    measure:
      quantize: {bits: [8, 6, 5, 4, 3], of: [all, blocks]}

A measurement has a kind, whose fields say what is asked. A list is an axis of that kind. A measurement changes no
trial: `measure` added to a file that was launched trains nothing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

from pydantic import BaseModel, Field, model_validator

from tinyscale.spec.config import SOURCES, STRICT, Count, Int, refuse
from tinyscale.spec.trial import Trial


class Kind(Protocol):
    """The fields of a measurement of one kind. version: of how it is measured; a change measures again."""

    version: ClassVar[int]

    def refusal(self, trial: Trial) -> str | None:
        """Why this cannot be asked of the trial, in words; None where it can."""

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """As a pydantic model has it."""


class Quantize(BaseModel):
    """The loss with weights rounded to a few bits."""

    model_config = STRICT
    version: ClassVar[int] = 1

    bits: Int = Field(ge=2, le=16, description="bits of a weight; its scale is counted apart")
    of: Literal["all", "blocks"] = Field(
        default="all", description="which matrices: all, or those of the blocks, without embeddings and head"
    )
    group: Int | None = Field(
        default=None, ge=2, description="weights of a row that share a scale; default: the whole row"
    )
    method: Literal["nearest", "gptq"] = Field(
        default="nearest", description="nearest: each weight by itself; gptq: the later ones make up for the earlier"
    )

    def refusal(self, trial: Trial) -> str | None:
        """A group that does not divide the inputs of a matrix."""
        model = trial.config.model
        if self.group and any(inputs % self.group for inputs in (model.d_model, model.d_ff)):
            return f"group = {self.group} does not divide d_model = {model.d_model} and d_ff = {model.d_ff}"
        return None


class Ablate(BaseModel):
    """The loss without what one part of the model writes, for each part in turn."""

    model_config = STRICT
    version: ClassVar[int] = 1

    of: Literal["sublayers", "heads"] = Field(
        default="sublayers", description="the parts: attention and MLP of each layer, or each attention head"
    )
    by: Literal["zero", "mean", "resample"] = Field(
        default="mean",
        description="what takes its place: zero, its mean over the text, or what it writes for another sequence",
    )

    def refusal(self, trial: Trial) -> str | None:
        """Heads of a model that has one in each layer."""
        if self.of == "heads" and trial.config.model.n_heads == 1:
            return "n_heads = 1: the head is all of the layer's attention; ask for of: sublayers"
        return None


class Induction(BaseModel):
    """Whether the model predicts the second half of sequences that repeat their first half."""

    model_config = STRICT
    version: ClassVar[int] = 1

    period: Int = Field(ge=2, description="tokens of the first half, sampled by the frequencies of the trial's text")

    def refusal(self, trial: Trial) -> str | None:
        """A sequence longer than the context, or fewer symbols than a first half has."""
        context = trial.config.model.context_length
        if 2 * self.period > context:
            return f"period = {self.period} is above half of context_length = {context}"
        kind = trial.config.data.tokenizer.kind
        if kind != "bpe" and trial.vocab_size <= self.period:
            return f"period = {self.period} needs more symbols than the {trial.vocab_size} of a {kind} tokenizer"
        return None


class Score(BaseModel):
    """The loss of another text, or how often the right one of several answers is the likeliest."""

    model_config = STRICT
    version: ClassVar[int] = 1

    text: str | None = Field(
        default=None, min_length=1, description="a named corpus, or a path to .txt, .jsonl, .parquet or a folder"
    )
    prompts: str | None = Field(
        default=None, min_length=1, description='a path to .jsonl of {"prompt": ..., "choices": [...], "answer": 0}'
    )
    max_bytes: Count | None = Field(
        default=None, ge=1, description="read only this many bytes, from the start, of a text of the hub"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.text is None) == (self.prompts is None):
            raise refuse("text", "give either text or prompts")
        if self.prompts is not None and self.max_bytes is not None:
            raise refuse("max_bytes", "prompts are read whole: remove max_bytes")
        if self.text in SOURCES:
            raise refuse("text", f"{self.text} is generated and has no documents; name another text")
        return self

    def refusal(self, trial: Trial) -> str | None:  # noqa: ARG002
        """None: every trial can read another text."""
        return None


KINDS: dict[str, type[Any]] = {"quantize": Quantize, "ablate": Ablate, "induction": Induction, "score": Score}


@dataclass(frozen=True)
class Measurement:
    """One question to one finished trial. text_hash: of the text that it reads besides the trial's own, if any."""

    trial: str
    kind: str
    asked: Kind
    text_hash: str | None = None

    @property
    def identity(self) -> str:
        """A hash of all that its values depend on. Fields at their default are left out, so that new ones move none."""
        described = {
            "trial": self.trial,
            "kind": self.kind,
            "asked": self.asked.model_dump(mode="json", exclude_defaults=True),
            "version": self.asked.version,
        }
        described |= {"text": self.text_hash} if self.text_hash else {}
        canonical = json.dumps(described, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]
