"""A trial: one training run with all that its numbers depend on, and the identity that follows from it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

from tinyscale.spec.config import ALTERNATIVES, TrainConfig, TrialConfig
from tinyscale.spec.costs import Parameters, decay_steps, flops_per_token, memory_bytes, parameters, training_steps

SCIENCE_VERSION = 1  # raised when a default changes, or what the same configuration computes


@dataclass(frozen=True)
class Trial:
    """A training run with every budget and size resolved, and its identity.

    config: the budget is tokens_budget = steps * batch_tokens, whatever form the sweep gave.
    """

    identity: str
    config: TrialConfig
    corpus_hash: str
    tokenizer_hash: str
    vocab_size: int
    unique_tokens: int  # training tokens that differ

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
        return parameters(self.config.model, self.vocab_size)

    @property
    def flops_per_token(self) -> dict[str, float]:
        """Training FLOPs per token, by convention."""
        return flops_per_token(self.config.model, self.vocab_size)

    @property
    def memory_bytes(self) -> float:
        """Forecast peak memory of a worker's training step, in bytes."""
        return memory_bytes(self.config, self.vocab_size)

    @property
    def flops(self) -> float:
        """Training FLOPs of the whole trial, its branches included."""
        return self.flops_per_token["flops"] * self.steps_trained * self.config.train.batch_tokens

    def with_share(self, gpu: float) -> Trial:
        """The same trial on another share of a GPU, which its identity does not depend on."""
        resources = self.config.resources.model_copy(update={"gpu": gpu})
        return replace(self, config=self.config.model_copy(update={"resources": resources}))


def resolve(
    config: TrialConfig, *, corpus_hash: str, split_rule: str, tokenizer_hash: str, vocab_size: int, train_tokens: int
) -> Trial:
    """Fix what depends on the text, and name the trial by everything that its numbers depend on.

    The identity leaves out resources, paths and fields at their default: it moves with none of them.
    """
    unique_tokens = min(train_tokens, config.data.unique_tokens or train_tokens)
    steps = training_steps(config.model, config.train, vocab_size, unique_tokens)
    budget: dict[str, Any] = {name.removeprefix("train."): None for name in ALTERNATIVES[0]}
    budget["tokens_budget"] = steps * config.train.batch_tokens
    resolved = config.model_copy(update={"train": config.train.model_copy(update=budget)})
    left_out: Any = {
        "resources": True,
        "data": {"corpus", "max_bytes", "zipf", "tokenizer"},  # hashes say what these hold
        "train": _idle(config.train),
    }
    described = resolved.model_dump(mode="json", exclude_defaults=True, exclude=left_out)
    described |= {
        "corpus": corpus_hash,
        "tokenizer": tokenizer_hash,
        "split": split_rule,
        "science_version": SCIENCE_VERSION,
    }
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"))
    identity = hashlib.sha256(canonical.encode()).hexdigest()[:16]
    return Trial(identity, resolved, corpus_hash, tokenizer_hash, vocab_size, unique_tokens)


def _idle(train: TrainConfig) -> set[str]:
    """Fields of the training that no number depends on, as the others are set."""
    of_schedule = {"constant": {"min_lr_ratio", "decay_fraction"}, "wsd": set[str]()}
    return {"repeats"} | of_schedule.get(train.schedule, {"decay_fraction"})  # repeats is a permission
