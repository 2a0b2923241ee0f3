"""Measurements: questions that a sweep puts to the weights of its finished trials. See docs/sweep-file.md.

    measure:
      quantize: {bits: [8, 6, 5, 4, 3], of: [all, blocks]}

A measurement has a kind, whose fields say what is asked. A list is an axis of that kind. A measurement changes no
trial: `measure` added to a file that was launched trains nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from tinyscale.errors import ConfigError
from tinyscale.formatting import nearest
from tinyscale.spec.data_config import SOURCES
from tinyscale.spec.document import Document
from tinyscale.spec.settings import in_words, relative_to_file
from tinyscale.spec.trial import Trial
from tinyscale.spec.values import STRICT, Count, Int, refuse

PATHS = {"text", "prompts"}  # fields that say where another text lies: its hash is in the identity in their place
MAX_QUESTIONS = 1000  # of one kind, to each trial
TOKENS_PER_LATENT = 20  # of a sparse autoencoder, at least
PASS_TOKENS = 100_000  # about those of a pass over the validation text


class Kind(Protocol):
    """The fields of a measurement of one kind. version: of how it is measured; a change measures again."""

    version: ClassVar[int]

    def refusal(self, trial: Trial) -> str | None:
        """Why this cannot be asked of the trial, in words; None where it can."""

    def passes(self, trial: Trial) -> float:
        """Expected work, in passes over the validation text."""

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
        """A group that does not divide the inputs of a matrix, and blocks or layers of a model that has its own."""
        if trial.own.model and (self.of, self.group, self.method) != ("all", None, "nearest"):
            return f"{trial.own.model.name} has layers of its own; ask for of: all, by nearest and without group"
        model = trial.config.model
        if self.group and any(inputs % self.group for inputs in (model.d_model, model.d_ff)):
            return f"group = {self.group} does not divide d_model = {model.d_model} and d_ff = {model.d_ff}"
        return None

    def passes(self, trial: Trial) -> float:
        """One, and for gptq what it reads: a sixth of as many tokens for each block, and for the head."""
        return 1.0 if self.method == "nearest" else 1.0 + (trial.config.model.n_layers + 1) / 6


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

    def passes(self, trial: Trial) -> float:
        """One for each part."""
        model = trial.config.model
        return float(model.n_layers * (2 if self.of == "sublayers" else model.n_heads))


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

    def passes(self, trial: Trial) -> float:  # noqa: ARG002
        """One, of sequences about as long."""
        return 1.0


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

    def passes(self, trial: Trial) -> float:  # noqa: ARG002
        """One, of a text as long."""
        return 1.0


class Features(BaseModel):
    """A sparse autoencoder of the residual stream."""

    model_config = STRICT
    version: ClassVar[int] = 1

    site: Int = Field(ge=0, description="block after which the residual stream is read; the first is 0")
    latents: Int = Field(ge=2, description="features that there are")
    active: Int = Field(ge=1, description="features that describe one token, at most")
    sae_tokens: Count = Field(default=500_000, ge=1000, description="tokens of the training text to train on")

    def refusal(self, trial: Trial) -> str | None:
        """A block that the model lacks, nothing sparse to find, or too little training."""
        width, depth = trial.config.model.d_model, trial.config.model.n_layers
        if self.site >= depth:
            return f"site = {self.site} is no block of n_layers = {depth}, the first is 0"
        if self.active >= width:
            return f"active = {self.active} is not sparse for d_model = {width}; take fewer"
        if self.latents < width:
            return f"latents = {self.latents} is less than d_model = {width}; take more"
        if self.sae_tokens < TOKENS_PER_LATENT * self.latents:
            least = TOKENS_PER_LATENT * self.latents
            return f"sae_tokens = {self.sae_tokens:,} is too few for {self.latents:,} latents; take {least:,} or more"
        return None

    def passes(self, trial: Trial) -> float:  # noqa: ARG002
        """Four, and each token of the training three times: forwards, and twice backwards."""
        return 4.0 + 3.0 * self.sae_tokens / PASS_TOKENS


class Memory(BaseModel):
    """The memory of a training step by its parts, counted."""

    model_config = STRICT
    version: ClassVar[int] = 1

    def refusal(self, trial: Trial) -> str | None:  # noqa: ARG002
        """None: any trial has a training step."""
        return None

    def passes(self, trial: Trial) -> float:  # noqa: ARG002
        """Less than one: two steps."""
        return 0.5


KINDS: dict[str, type[Any]] = {
    "quantize": Quantize,
    "score": Score,
    "features": Features,
    "ablate": Ablate,
    "induction": Induction,
    "memory": Memory,
}
UNTRAINED = {"memory"}  # kinds that are the same whatever a model has learned


OF_THE_GPT = {"features", "ablate", "induction", "memory"}  # kinds that look into its parts


@dataclass(frozen=True)
class Question:
    """One combination of a kind's fields, asked of each trial of a sweep: with a trial it is a measurement.

    origin: where the sweep file asks it; text_hash: of the text that it reads besides the trial's own, if any.
    """

    kind: str
    fields: Kind
    origin: str = field(default="", compare=False)
    text_hash: str | None = None

    @classmethod
    def of_json(cls, written: Mapping[str, Any]) -> Self:
        """What `as_json` wrote."""
        return cls(written["kind"], KINDS[written["kind"]](**written["fields"]), text_hash=written["text_hash"])

    def as_json(self) -> dict[str, Any]:
        """Without the fields at their default, so that a new one moves no identity."""
        fields = self.fields.model_dump(mode="json", exclude_defaults=True)
        return {"kind": self.kind, "fields": fields, "text_hash": self.text_hash}

    @property
    def label(self) -> str:
        """In words, such as `quantize bits=4 of=blocks`."""
        asked = self.fields.model_dump(mode="json", exclude_defaults=True)
        return " ".join([self.kind, *(f"{name}={value}" for name, value in asked.items())])

    @property
    def needs_weights(self) -> bool:
        """Whether a trial can only be asked where its weights were kept."""
        return self.kind not in UNTRAINED

    @cached_property
    def _digest(self) -> str:
        asked = self.fields.model_dump(mode="json", exclude_defaults=True, exclude={*PATHS, "max_bytes"})
        described = {**self.as_json(), "fields": asked, "version": self.fields.version}
        return json.dumps(described, sort_keys=True, separators=(",", ":"))

    def refusal(self, trial: Trial) -> str | None:
        """Why this cannot be asked of the trial, in words; None where it can."""
        if trial.own.model and self.kind in OF_THE_GPT:
            return f"{self.kind} looks into the built-in GPT, and this trial's model is {trial.own.model.name}"
        return self.fields.refusal(trial)

    def identity_for(self, trial: str) -> str:
        """The identity of the measurement that puts this question to a trial, given by its own identity."""
        return hashlib.sha256(f"{trial}:{self._digest}".encode()).hexdigest()[:16]


def read_questions(written: Mapping[str, Mapping[str, Any]], document: Document) -> tuple[Question, ...]:
    """The questions of a sweep file's `measure`; a list is an axis of its kind. ConfigError with the line at fault."""
    found = []
    for kind, fields in written.items():
        origin = document.origin(("measure", kind))
        if kind not in KINDS:
            raise ConfigError(
                f"{origin}: measure.{kind} is not a kind{nearest(kind, KINDS)}; legal: {', '.join(KINDS)}"
            )
        lists = {name: value if isinstance(value, list) else [value] for name, value in fields.items()}
        for path in PATHS & lists.keys():
            lists[path] = relative_to_file(lists[path], document)
        for name, values in lists.items():
            if len(set(map(repr, values))) < max(1, len(values)):
                where = document.origin(("measure", kind, name))
                raise ConfigError(f"{where}: measure.{kind}.{name} lists one value or more, each once")
        if math.prod(map(len, lists.values())) > MAX_QUESTIONS:
            raise ConfigError(f"{origin}: more than {MAX_QUESTIONS:,} measurements of each trial; ask for fewer values")
        for chosen in itertools.product(*lists.values()):
            try:
                asked = KINDS[kind](**dict(zip(lists, chosen, strict=True)))
            except ValidationError as error:
                raise _problem(error, kind, document) from error
            found.append(Question(kind, asked, origin))
    return tuple(found)


def _problem(error: ValidationError, kind: str, document: Document) -> ConfigError:
    """One error as text with its line; misspelt fields come before those that are then missing."""
    first = min(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    name = str(first["loc"][0]) if first["loc"] else str(first.get("ctx", {}).get("field", ""))
    where, path = document.origin(("measure", kind, name)), f"measure.{kind}.{name}"
    if first["type"] == "extra_forbidden":
        legal = KINDS[kind].model_fields
        return ConfigError(f"{where}: {path} is not a field{nearest(name, legal)}\n  legal: {', '.join(legal)}")
    if first["type"] == "missing":
        return ConfigError(f"{where}: {path} is missing; {KINDS[kind].model_fields[name].description}")
    return ConfigError(f"{where}: {path} = {first['input']!r}: {in_words(first)}")
