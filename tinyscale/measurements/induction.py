"""Induction: does the model copy what followed a token's earlier place, and by which heads?

Sequences are sampled token by token by the frequencies of the trial's own text and then repeated, so that nothing but
their first half helps with the second (Olsson et al. 2022, 2209.11895). Uniform tokens would be unlike any text that
the model has seen.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyscale.data.tokenized import TokenizedCorpus
from tinyscale.errors import DataError
from tinyscale.measurements.interventions import attention_weights
from tinyscale.measurements.subject import Subject
from tinyscale.spec.measurement import Induction
from tinyscale.training.evaluate import token_losses
from tinyscale.training.model import GPT

SEQUENCES, AT_A_TIME = 512, 64


def measure(subject: Subject, asked: Induction) -> list[dict[str, Any]]:
    """A row of the model, and one of each head.

    The model's: `first_loss` and `copy_loss`, the scores of its best heads, and of which head `prefix_score` is. Best
    heads are found on one half of the sequences and scored, as all heads are, on the other half.
    """
    tokens = repeated(subject.corpus, asked.period, SEQUENCES)
    prefix, previous = head_scores(subject.gpt, tokens)  # [sequences, layers, heads]
    first_loss, copy_loss = losses(subject.gpt, tokens)
    (found, prefix_score), (_, previous_score) = best(prefix), best(previous)
    n_heads = subject.gpt.config.n_heads
    model = {"component": "model", "layer": found // n_heads, "head": found % n_heads}
    model |= {"first_loss": first_loss, "copy_loss": copy_loss}
    rows = [{**model, "prefix_score": prefix_score, "previous_score": previous_score}]
    by_head = zip(_reported(prefix).flatten().tolist(), _reported(previous).flatten().tolist(), strict=True)
    for number, (of_prefix, of_previous) in enumerate(by_head):
        head = {"component": "head", "layer": number // n_heads, "head": number % n_heads}
        rows.append({**head, "prefix_score": of_prefix, "previous_score": of_previous})
    return rows


def repeated(corpus: TokenizedCorpus, period: int, sequences: int) -> Tensor:
    """Tokens [sequences, 2 period] by their frequency in the training text, the second half like the first.

    DataError where the text has too few tokens for a token to have one successor in a period: fewer than the period,
    as exp of the entropy counts them.
    """
    counts = np.bincount(corpus.train(), minlength=corpus.facts.vocab_size).astype(float)
    counts[corpus.eot] = 0
    chances = counts / counts.sum()
    effective = math.exp(-(chances[chances > 0] * np.log(chances[chances > 0])).sum())
    if effective < period:
        raise DataError(
            f"the text has {effective:.0f} tokens in effect (exp of their entropy): in a period of {period} a token "
            f"recurs, and what follows it is not one; lower period to at most {int(effective)}, or use a bpe tokenizer"
        )
    half = np.random.default_rng(0).choice(len(chances), (sequences, period), p=chances)
    return torch.from_numpy(np.concatenate([half, half], axis=1))


@torch.inference_mode()
def losses(gpt: GPT, tokens: Tensor) -> tuple[float, float]:
    """Nats per token of sequences [S, 2 period]: of the first half, and of the second from its second token on.

    The first token of the second half is as unknown as any: nothing says that the repetition begins.
    """
    period = tokens.shape[1] // 2
    nats = token_losses(gpt)
    each = torch.cat([nats(batch[:, :-1], batch[:, 1:]) for batch in torch.split(tokens, AT_A_TIME)])
    by_target = each.view(len(tokens), -1).double().mean(0)  # of tokens 1, 2, ...
    return by_target[: period - 1].mean().item(), by_target[period:].mean().item()


def head_scores(gpt: GPT, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean attention over the queries, of each head, [S, layers, heads] each, for sequences [S, 2 period].

    Prefix matching: from a token of the second half to the one after its earlier place. Previous token: from any token
    to the one before it.
    """
    period = tokens.shape[1] // 2
    prefix, previous = [], []
    for batch in torch.split(tokens, AT_A_TIME):
        shown = attention_weights(gpt, batch[:, :-1])  # [layers, S, heads, T, T]
        prefix.append(shown.diagonal(1 - period, -2, -1)[..., 1:].mean(-1))  # from token period on
        previous.append(shown.diagonal(-1, -2, -1).mean(-1))
    return torch.cat(prefix, 1).transpose(0, 1), torch.cat(previous, 1).transpose(0, 1)


def best(scores: Tensor) -> tuple[int, float]:
    """The head of the highest score [S, layers, heads] in the first half of the sequences, and its score in the other.

    A head is numbered through all layers.
    """
    number = int(scores[: len(scores) // 2].mean(0).argmax())
    return number, float(_reported(scores).flatten()[number])


def _reported(scores: Tensor) -> Tensor:
    """Scores of each head [layers, heads] in the half of the sequences that no head was chosen on."""
    return scores[len(scores) // 2 :].mean(0)
