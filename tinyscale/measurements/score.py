"""A finished trial scored on another text, or on prompts with answers to choose from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tinyscale.data.prompts import Prompt, read_prompts
from tinyscale.data.tokenizers import Tokenizer
from tinyscale.errors import DataError
from tinyscale.inference.trained import Trained, score
from tinyscale.measurements.subject import Subject
from tinyscale.spec.measurement import Score
from tinyscale.training.evaluate import clustered_mean
from tinyscale.training.model import GPT
from tinyscale.training.own import OwnModel


def measure(subject: Subject, asked: Score) -> list[dict[str, Any]]:
    """One row. Of a text: what `tinyscale eval` prints. Of prompts: `accuracy`, its `chance` and the right answers'
    loss.
    """
    if asked.text is not None:
        trial = subject.trial
        trained = Trained(trial.identity, trial.config, subject.model, subject.tokenizer)
        found = score(trained, asked.text, asked.max_bytes)
        columns = ("loss", "loss_se", "bits_per_byte", "documents")
        return [
            {**{name: found[name] for name in columns}, "text_tokens": found["tokens"], "text_bytes": found["bytes"]}
        ]
    assert asked.prompts is not None, "a score has one of the two"
    return [of_prompts(subject.model, subject.tokenizer, read_prompts(Path(asked.prompts).expanduser()))]


def of_prompts(gpt: GPT | OwnModel, tokenizer: Tokenizer, prompts: list[Prompt]) -> dict[str, Any]:
    """The columns of prompts. loss: nats per token of the right answers, its error clustered by prompt.

    The model's choice is the one of fewest nats per byte. chance: the accuracy of a blind guess.
    """
    nats = [choice_nats(gpt, tokenizer, prompt) for prompt in prompts]
    chosen = [int(np.argmin(each / _bytes(prompt))) for each, prompt in zip(nats, prompts, strict=True)]
    right = np.array([each[prompt.answer] for each, prompt in zip(nats, prompts, strict=True)])
    tokens = np.array([len(tokenizer.encode(prompt.choices[prompt.answer])) for prompt in prompts])
    n_bytes = sum(int(_bytes(prompt)[prompt.answer]) for prompt in prompts)
    loss, loss_se = clustered_mean(right, tokens)
    return {
        "loss": loss,
        "loss_se": loss_se,
        "documents": len(prompts),
        "text_tokens": int(tokens.sum()),
        "text_bytes": n_bytes,
        "answer_bits_per_byte": float(right.sum()) / n_bytes / math.log(2),
        "accuracy": float(np.mean([choice == prompt.answer for choice, prompt in zip(chosen, prompts, strict=True)])),
        "chance": float(np.mean([1 / len(prompt.choices) for prompt in prompts])),
    }


@torch.inference_mode()
def choice_nats(gpt: GPT | OwnModel, tokenizer: Tokenizer, prompt: Prompt) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Nats of each choice after end-of-text and the prompt, of which the model sees the last context_length tokens.

    Prompt and choice are tokenized apart, so a choice holds the space before it. DataError where a choice alone fills
    the context.
    """
    before, context = [tokenizer.eot, *tokenizer.encode(prompt.prompt)], gpt.config.context_length
    nats = []
    for choice in prompt.choices:
        own = tokenizer.encode(choice)
        if len(own) > context:
            raise DataError(
                f"{prompt.where}: a choice of {len(own)} tokens is longer than the trial's context_length = {context}"
            )
        tokens = torch.tensor([*before, *own][-context - 1 :])
        logits = gpt(tokens[None, :-1])[0][0, -len(own) :].float()
        nats.append(F.cross_entropy(logits, tokens[-len(own) :], reduction="sum").item())
    return np.array(nats)


def _bytes(prompt: Prompt) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([len(choice.encode()) for choice in prompt.choices])
