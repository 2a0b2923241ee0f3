"""A trial: one training run with all that its numbers depend on, and the identity that follows from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from pydantic import ValidationError

from tinyscale.errors import ConfigError
from tinyscale.spec.code import Code
from tinyscale.spec.config import LONG_CONTEXT, TrainConfig, TrialConfig
from tinyscale.spec.costs import (
    Counted,
    Parameters,
    decay_steps,
    flops_per_token,
    memory_bytes,
    parameters,
    teacher_bytes,
    training_steps,
)
from tinyscale.spec.data_config import SOURCES
from tinyscale.spec.facts import TextFacts

SCIENCE_VERSION = 1  # raised when a default changes, or what the same configuration computes


@dataclass(frozen=True)
class Own:
    """The user's own code that a trial runs: of the model, with what was counted of it, and of the optimizer."""

    model: Code | None = None
    counted: Counted | None = None
    optimizer: Code | None = None

    @classmethod
    def of_json(cls, written: Mapping[str, Any]) -> Self:
        """What `as_json` wrote."""
        model, counted, optimizer = (written.get(name) for name in ("model", "counted", "optimizer"))
        return cls(
            Code.of_json(model) if model else None,
            Counted.of_json(counted) if counted else None,
            Code.of_json(optimizer) if optimizer else None,
        )

    def as_json(self, *, sources: bool) -> dict[str, Any] | None:
        """All of it, as JSON holds it; None where the trial runs none."""
        written = {
            "model": self.model and self.model.as_json(sources=sources),
            "counted": self.counted and self.counted.as_json(),
            "optimizer": self.optimizer and self.optimizer.as_json(sources=sources),
        }
        return written if self.codes else None

    @property
    def codes(self) -> list[Code]:
        """Those that there are."""
        return [code for code in (self.model, self.optimizer) if code]


@dataclass(frozen=True)
class Trial:
    """A training run with every budget and size resolved, and its identity.

    config: the budget is tokens_budget = steps * batch_tokens, whatever form the sweep gave. facts: of its text.
    teacher: the finished trial whose predictions it learns; config.train.teacher is its identity. own: the user's own
    code that it runs.
    """

    identity: str
    config: TrialConfig
    facts: TextFacts
    teacher: Trial | None = None
    own: Own = field(default_factory=Own)

    @classmethod
    def of_json(cls, written: Mapping[str, Any]) -> Self:
        """What `as_json` wrote, under the identity that it had. pydantic's ValidationError where it is not legal."""
        config = TrialConfig.model_validate(written["config"])
        teacher = cls.of_json(written["teacher"]) if written.get("teacher") else None
        own = Own.of_json(written.get("own") or {})
        return cls(str(written["identity"]), config, TextFacts(**written["facts"]), teacher, own)

    def as_json(self, *, sources: bool = True) -> dict[str, Any]:
        """All of it, as JSON holds it. sources: with the text of the user's own code."""
        return {
            "identity": self.identity,
            "config": self.config.model_dump(mode="json"),
            "facts": asdict(self.facts),
            "teacher": self.teacher and self.teacher.as_json(sources=sources),
            "own": self.own.as_json(sources=sources),
        }

    @property
    def vocab_size(self) -> int:
        """Tokens that the model knows."""
        return self.facts.vocab_size

    @property
    def unique_tokens(self) -> int:
        """Training tokens that differ; of a mixture, those until the first of its parts has been read once."""
        return _unique_tokens(self.config, self.facts)

    @property
    def tokens(self) -> int:
        """Training tokens."""
        assert self.config.train.tokens_budget is not None, "a trial's budget is resolved to tokens"
        return self.config.train.tokens_budget

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.tokens // self.config.train.batch_tokens

    @property
    def branch_ends(self) -> tuple[int, ...]:
        """Steps of the shorter trials that the decay branches stand for, ascending."""
        ends = {round(share * self.steps) for share in self.config.train.branches}
        return tuple(sorted(end for end in ends if 0 < end < self.steps))

    @property
    def steps_trained(self) -> int:
        """Optimizer steps with those of the branches, which the trunk does not share."""
        return self.steps + sum(decay_steps(end, self.config.train) for end in self.branch_ends)

    @property
    def epochs(self) -> float:
        """Passes over the unique tokens."""
        return self.tokens / self.unique_tokens

    @property
    def parameters(self) -> Parameters:
        """Parameter counts of the model."""
        return parameters(self.config.model, self.vocab_size, self.own.counted)

    @property
    def flops_per_token(self) -> dict[str, float]:
        """Training FLOPs per token, by convention."""
        return flops_per_token(self.config.model, self.vocab_size, self.own.counted)

    @property
    def memory_bytes(self) -> float:
        """Forecast peak memory of a worker's training step, in bytes."""
        own = memory_bytes(self.config, self.vocab_size, self._tokens_held, self.own.counted)
        return own + (teacher_bytes(self.config, self.teacher.parameters, self.vocab_size) if self.teacher else 0.0)

    @property
    def teacher_flops_per_token(self) -> float:
        """FLOPs of the teacher's forward pass per training token, a third of those of its own training; 0 without."""
        return self.teacher.flops_per_token["flops"] / 3 if self.teacher else 0.0

    @property
    def _tokens_held(self) -> int:
        return self.facts.train_tokens if self.config.data.parts else self.unique_tokens

    @property
    def flops(self) -> float:
        """Training FLOPs of the whole trial, its branches included."""
        return self.flops_per_token["flops"] * self.steps_trained * self.config.train.batch_tokens

    def with_share(self, gpu: float) -> Trial:
        """The same trial on another share of a GPU, which its identity does not depend on."""
        return replace(self, config=self.config.with_values({"resources.gpu": gpu}))


def resolve(config: TrialConfig, facts: TextFacts, teacher: Trial | None = None, own: Own | None = None) -> Trial:
    """Fix what depends on the text, and name the trial by everything that its numbers depend on.

    The identity leaves out resources, paths and fields at their default: it moves with none of them. That of the
    teacher stands for all that its predictions depend on; with a teacher_weight of 0 the trial has none. own: the code
    that the configuration names, whose hash stands in the identity for its path.
    ConfigError when the budget allows no step, or more tokens than a trial may train on.
    """
    own = own or Own()
    assert (own.model is None) == (config.model.code is None), "a trial has the code that its configuration names"
    unique_tokens = _unique_tokens(config, facts)
    steps = training_steps(config.model, config.train, facts.vocab_size, unique_tokens, own.counted)
    tokens, teacher = steps * config.train.batch_tokens, teacher if config.train.teacher_weight else None
    try:
        fixed = {"train.tokens_budget": tokens, "train.teacher": teacher and teacher.identity}
        resolved = config.with_values(fixed)
    except ValidationError as error:
        raise ConfigError(f"the budget allows {tokens:.3g} tokens, more than a trial may train on; lower it") from error
    left_out: Any = {
        "resources": True,
        "data": {
            "corpus",
            "parts",
            "val",
            "separator",
            "max_bytes",
            *SOURCES.values(),
            "tokenizer",
        },  # hashes say what these hold
        "train": _idle(resolved.train),
    }
    described = resolved.model_dump(mode="json", exclude_defaults=True, exclude=left_out)
    if own.model:
        described["model"]["code"] = own.model.hash
    if own.optimizer:
        described["train"]["optimizer"]["code"] = own.optimizer.hash
    described |= {
        "corpus": facts.corpus_hash,
        "tokenizer": facts.tokenizer_hash,
        "split": facts.split_rule,
        "science_version": _science_version(resolved),
    }
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"))
    identity = hashlib.sha256(canonical.encode()).hexdigest()[:16]
    return Trial(identity, resolved, facts, teacher, own)


def _science_version(config: TrialConfig) -> int:
    """The version of what a configuration computes: raised for those alone that compute another thing than before."""
    in_blocks = config.train.precision == "bf16" and config.model.context_length > LONG_CONTEXT
    return SCIENCE_VERSION + (in_blocks and config.model.code is None)


def _unique_tokens(config: TrialConfig, facts: TextFacts) -> int:
    if shares := dict(config.data.shares):
        return min(int(tokens / shares[name]) for name, tokens in facts.part_tokens if name in shares)
    return min(facts.train_tokens, config.data.unique_tokens or facts.train_tokens)


def _idle(train: TrainConfig) -> set[str]:
    """Fields of the training that have no effect, given the other fields."""
    of_schedule = {"constant": {"min_lr_ratio", "decay_fraction"}, "wsd": set[str]()}
    of_teacher = set() if train.teacher else {"teacher_weight", "temperature"}
    return {"repeats"} | of_teacher | of_schedule.get(train.schedule, {"decay_fraction"})  # repeats is a permission
