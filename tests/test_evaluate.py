"""What evaluation says beside the loss: the excess over a known source, and the loss by position in the document."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.trials import make_trial, trial_config
from tinyscale.data import TokenizedCorpus
from tinyscale.spec.data_config import DataConfig
from tinyscale.training.batches import NOT_SCORED
from tinyscale.training.evaluate import Evaluation, clustered_mean, position_buckets, token_losses
from tinyscale.training.loop import train

ZIPF = {
    "corpus": "zipf_records",
    "tokenizer": {"kind": "char"},
    "zipf": {"topics": 40, "letters": 4, "train_bytes": 60_000},
    "val_bytes": 16_000,
}
CPU = torch.device("cpu")


class Uniform(nn.Module):
    """A model that knows nothing: every token is as likely."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.zeros(*tokens.shape, self.vocab_size), None


@pytest.fixture(scope="module")
def zipf() -> TokenizedCorpus:
    return make_trial(trial_config(ZIPF))[1]


@pytest.mark.parametrize("context", [16, 48])
def test_the_excess_is_the_loss_above_the_oracles_on_the_same_targets(zipf: TokenizedCorpus, context: int) -> None:
    scores = Evaluation(zipf, context, CPU).scores(token_losses(Uniform(zipf.facts.vocab_size)), nullcontext())
    oracle = zipf.oracle()
    assert oracle is not None
    assert scores.val_loss == pytest.approx(np.log(zipf.facts.vocab_size), rel=1e-6)
    assert scores.excess == pytest.approx(np.log(zipf.facts.vocab_size) - oracle[1:-1].mean(), rel=1e-6)
    by_record = np.log(zipf.facts.vocab_size) - oracle[1:-1].reshape(-1, 16).mean(axis=1)
    assert scores.excess_se == pytest.approx(by_record.std(ddof=1) / len(by_record) ** 0.5, rel=1e-4)


def test_a_trial_on_a_known_source_records_its_excess() -> None:
    trial, corpus = make_trial(trial_config(ZIPF, lr=2e-2, tokens_budget=51200, eval_points=2))
    first, last = train(trial, corpus, lambda _: None).points
    assert first.entropy_rate == last.entropy_rate == corpus.entropy_rate
    assert first.excess is not None
    assert last.excess is not None
    assert first.excess > last.excess > 0.05, "40 topics are not learned in 200 steps"
    assert last.excess_se is not None
    assert last.excess_se < 0.02


def test_text_has_no_excess(tiny_corpus: DataConfig) -> None:
    trial, corpus = make_trial(trial_config(tiny_corpus, eval_points=1))
    (point,) = train(trial, corpus, lambda _: None).points
    assert (point.entropy_rate, point.excess, point.excess_se) == (None, None, None)


def test_a_targets_bucket_is_how_much_of_its_document_it_sees() -> None:
    documents = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 2, 2, 2]])
    # Seen before the target, in the window and in its document: 0 1 2 3 4 | 0 1 2, then 1 2 3 4 5 | 0 1 2.
    assert position_buckets(documents).tolist() == [[0, 0, 1, 1, 2, 0, 0, 1], [0, 1, 1, 2, 2, 0, 0, 1]]
    one_long = position_buckets(torch.zeros(3, 8, dtype=torch.long))
    assert one_long[1:].tolist() == [[0, 1, 1, 2, 2, 2, 2, 2]] * 2, "the last bucket holds those that see all 8"


@pytest.mark.parametrize("context", [2, 7, 32])
def test_the_loss_by_position_is_the_mean_over_the_targets_of_a_bucket(tiny_corpus: DataConfig, context: int) -> None:
    _, corpus = make_trial(trial_config(tiny_corpus))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(corpus.facts.vocab_size, corpus.facts.vocab_size))
    evaluation = Evaluation(corpus, context, CPU)

    def as_ours(tokens: torch.Tensor) -> tuple[torch.Tensor, None]:
        return model(tokens), None

    scores = evaluation.scores(token_losses(as_ours), nullcontext())
    logits = model(evaluation.inputs).flatten(0, 1)
    targets = evaluation.targets.flatten()
    nats = F.cross_entropy(logits, targets, ignore_index=NOT_SCORED, reduction="none").detach().double()
    scored, buckets = targets != NOT_SCORED, evaluation.buckets.flatten()
    expected = [nats[scored & (buckets == k)].mean().item() for k in range(int(buckets.max()) + 1)]
    assert scores.loss_by_position == pytest.approx(expected, rel=1e-5)
    sizes = [int((scored & (buckets == k)).sum()) for k in range(len(expected))]
    mean, _ = clustered_mean(np.array(expected) * sizes, np.array(sizes, dtype=float))
    assert mean == pytest.approx(scores.val_loss, rel=1e-5)


def test_the_loss_by_position_is_in_the_last_point(tiny_corpus: DataConfig) -> None:
    trial, corpus = make_trial(trial_config(tiny_corpus, eval_points=2))
    first, last = train(trial, corpus, lambda _: None).points
    assert first.loss_by_position is None
    assert last.loss_by_position is not None
    assert len(last.loss_by_position) == 5  # of a context of 32
