"""The subject of measurements: a finished trial's model, its text, and the loss that it has unchanged."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from tinyscale.data.tokenized import TokenizedCorpus
from tinyscale.data.tokenizers import Tokenizer
from tinyscale.inference.trained import load_corpus, load_gpt
from tinyscale.results.store import Results
from tinyscale.spec.config import Resources
from tinyscale.spec.trial import Trial
from tinyscale.training.device import prepare_process
from tinyscale.training.evaluate import Evaluation, Scores, token_losses
from tinyscale.training.model import GPT
from tinyscale.training.own import OwnModel


@dataclass(frozen=True)
class Subject:
    """A finished trial to be asked. gpt: in fp32 on `device`, in evaluation mode; a measurement leaves it as it was."""

    trial: Trial
    model: GPT | OwnModel
    corpus: TokenizedCorpus

    @property
    def gpt(self) -> GPT:
        """The model, where planning allows no other."""
        assert isinstance(self.model, GPT), "a question to parts of the GPT is refused for a user's own model"
        return self.model

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.model.parameters()).device

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The trial's own."""
        return self.corpus.tokenizer()

    @cached_property
    def evaluation(self) -> Evaluation:
        """The trial's validation text, scored against the unchanged model."""
        plain = Evaluation(self.corpus, self.trial.config.model.context_length, self.device)
        return plain.against(token_losses(self.model))

    @cached_property
    def unchanged(self) -> Scores:
        """Of the unchanged model on its validation text, in fp32: training may have scored in another precision."""
        return self.evaluation.scores(token_losses(self.model), nullcontext())

    def scored(self, model: Callable[..., Any]) -> dict[str, Any]:
        """The columns of a changed model: its loss, and what the change adds to it, in nats per token.

        model: called as the GPT is, tokens [B, T] -> (logits [B, T, V], ...). delta is paired: both models are scored
        on the same targets, and delta_se is the standard error of the differences, clustered by document.
        """
        scores = self.evaluation.scores(token_losses(model), nullcontext())
        corpus = self.corpus
        return {
            "loss": scores.val_loss,
            "loss_se": scores.val_loss_se,
            "unchanged_loss": self.unchanged.val_loss,
            "delta": scores.excess,
            "delta_se": scores.excess_se,
            "bits_per_byte": scores.val_loss * corpus.val_tokens / corpus.val_bytes / math.log(2),
            "val_tokens": corpus.val_tokens,
        }


def load_subject(results: Results, identity: str, resources: Resources, *, trained: bool = True) -> Subject:
    """A finished trial of a results folder, on what it may use. ResultsError without its weights, DataError without
    its text. trained: with the weights that it ended with; False: untrained, for what does not depend on them.
    """
    trial = results.load_trial(identity)
    gpt = load_gpt(results, trial) if trained else GPT(trial.config.model, trial.vocab_size).eval()
    return Subject(trial, gpt.to(prepare_process(resources)), load_corpus(trial))
