"""Sparse autoencoders of the residual stream: what they find where the answer is known, and what they cost."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.text import write_text
from helpers.trials import known_trial, make_trial, trial_config
from tinyscale.measurements.features import Site, TopK, measure, token_means, train, unexplained
from tinyscale.measurements.subject import Subject
from tinyscale.spec.data_config import DataConfig
from tinyscale.spec.measurement import Features
from tinyscale.storage import Folder
from tinyscale.training.batches import val_windows
from tinyscale.training.checkpoint import of_bytes
from tinyscale.training.loop import WEIGHTS
from tinyscale.training.loop import train as train_trial
from tinyscale.training.model import GPT

ASKED = {"site": 0, "latents": 32, "active": 2, "sae_tokens": 20_000}


@pytest.fixture(scope="module")
def subject(tiny_corpus: DataConfig) -> Subject:
    """A model at its initial weights, with its text."""
    trial, corpus = make_trial(trial_config(tiny_corpus))
    torch.manual_seed(0)
    return Subject(trial, GPT(trial.config.model, trial.vocab_size).eval(), corpus)


def identity_dictionary(width: int) -> TopK:
    """The latents x_i and -x_i, half of them active: relu loses nothing."""
    sae = TopK(width, 2 * width, width)
    with torch.no_grad():
        for matrix in (sae.encoder, sae.decoder):
            matrix.copy_(torch.cat([torch.eye(width), -torch.eye(width)]))
    return sae


def sparse_sums(dictionary: Tensor, active: int, rows: int, seed: int) -> Tensor:
    """Rows [m, D] that sum so many directions of a dictionary [n, D], each times a number from 0.5 to 1.5."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(rows, len(dictionary), generator=generator).topk(active).indices
    return F.embedding_bag(
        chosen, dictionary, per_sample_weights=0.5 + torch.rand(rows, active, generator=generator), mode="sum"
    )


def test_a_planted_dictionary_is_found_again() -> None:
    planted = F.normalize(torch.randn(40, 32, generator=torch.Generator().manual_seed(1)), dim=1)
    sae = TopK(32, 96, 2)
    train(sae, (sparse_sums(planted, 2, 16384, seed) for seed in range(10)), 150_000, seed=0)
    cosine = (planted @ sae.decoder.T).max(dim=1).values
    assert (cosine > 0.95).float().mean() > 0.95


def test_the_decoder_keeps_unit_norm_and_its_gradient_has_no_part_along_it() -> None:
    sae = TopK(8, 16, 2)
    data = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    train(sae, iter([data]), 2000, seed=0)
    assert torch.allclose(sae.decoder.norm(dim=1), torch.ones(16), atol=1e-6)
    F.mse_loss(sae(data), data).backward()
    sae.drop_parallel()
    assert torch.allclose((sae.decoder.grad * sae.decoder).sum(dim=1), torch.zeros(16), atol=1e-6)


def test_an_identity_dictionary_leaves_nothing_and_the_loss_as_it_was(subject: Subject) -> None:
    site = Site(subject.gpt, 0, subject.corpus.eot)
    sae = identity_dictionary(subject.trial.config.model.d_model).requires_grad_(False)
    windows = [val_windows(*subject.corpus.val(), 32, subject.corpus.eot)[0]]
    means = token_means(map(site.read, windows), subject.trial.vocab_size)
    assert unexplained(map(site.read, windows), sae, *means)["fvu"] == 0
    scored = subject.scored(site.changed(sae))
    assert scored["loss"] == pytest.approx(scored["unchanged_loss"], abs=1e-6)


@pytest.mark.parametrize("block", [0, 1])
def test_a_reconstruction_that_is_the_input_costs_exactly_nothing_and_is_asked_in_every_pass(
    subject: Subject, block: int
) -> None:
    asked: list[int] = []

    def same(x: Tensor) -> Tensor:
        asked.append(len(x))
        return x

    scored = subject.scored(Site(subject.gpt, block, subject.corpus.eot).changed(same))
    assert scored["delta"] == 0
    assert scored["delta_se"] == 0
    evaluation = subject.evaluation
    assert len(asked) == len(evaluation.inputs) // evaluation.rows
    kept = evaluation.inputs[:, 1:] != subject.corpus.eot
    assert sum(asked) == int(kept.sum()), "all but end-of-text and the first of each window"


def test_another_stream_costs_something_at_either_block(subject: Subject) -> None:
    for block in (0, 1):
        scored = subject.scored(Site(subject.gpt, block, subject.corpus.eot).changed(torch.neg))
        assert scored["delta"] != 0


def test_the_mean_leaves_all_of_the_variance_however_large_it_is() -> None:
    x = 1000 + torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    readings = [(torch.arange(300) % 7, x[:300]), (torch.arange(200) % 7, x[300:])]
    mean, of_token = token_means(readings, 7)
    assert unexplained(readings, mean.expand_as, mean, of_token)["fvu"] == 1


def test_the_variance_within_a_token_by_hand() -> None:
    """Token 0 at 0 and 2, token 2 at 7: about the mean 3 it is 9 + 1 + 16, about the means of tokens 1 + 1."""
    readings = [(torch.tensor([0, 2]), torch.tensor([[0.0], [7.0]])), (torch.tensor([0]), torch.tensor([[2.0]]))]
    mean, of_token = token_means(readings, 3)
    assert mean.tolist() == [3]
    assert of_token[[0, 2]].tolist() == [[1], [7]]
    found = unexplained(readings, lambda x: x - 1, mean, of_token)
    assert found == {"fvu": pytest.approx(3 / 26), "fvu_token": pytest.approx(2 / 26)}


def test_the_same_question_gets_the_same_numbers_and_leaves_the_model_as_it_was(subject: Subject) -> None:
    before = {name: weight.clone() for name, weight in subject.gpt.state_dict().items()}
    first, second = (measure(subject, Features(**ASKED)) for _ in range(2))
    assert first == second
    assert all(torch.equal(weight, before[name]) for name, weight in subject.gpt.state_dict().items())
    assert all(parameter.grad is None for parameter in subject.gpt.parameters())


def test_more_latents_explain_more_of_a_trained_model_and_cost_fewer_nats(tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt", 20_000)
    data = {"corpus": str(tmp_path / "text.txt"), "tokenizer": {"kind": "byte"}, "val_bytes": 5000}
    trial, corpus = make_trial(trial_config(data, tokens_budget=400 * 256, repeats=True))
    train_trial(trial, corpus, lambda _: None, checkpoints=Folder.at(tmp_path))
    gpt = GPT(trial.config.model, trial.vocab_size)
    gpt.load_state_dict(of_bytes(Folder.at(tmp_path).read(WEIGHTS)))
    subject = Subject(trial, gpt.eval(), corpus)
    few, many = (measure(subject, Features(**{**ASKED, "latents": latents}))[0] for latents in (16, 256))
    assert 0 < many["fvu"] < few["fvu"] < 1
    assert 0 < many["delta"] < few["delta"] < few["mean_ablation"]
    assert 0 <= few["dead"] <= 1
    assert few["mean_ablation"] == many["mean_ablation"]
    assert few["fvu_token"] == many["fvu_token"]
    assert few["sae_flops"] == 6 * (16 + 2) * 16 * 20_000
    assert all(math.isfinite(value) for value in few.values())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"site": 2}, "site = 2 is no block of n_layers = 2"),
        ({"active": 16}, "active = 16 is not sparse for d_model = 16"),
        ({"latents": 15}, "latents = 15 is less than d_model = 16"),
        ({"latents": 1001}, "sae_tokens = 20,000 is too few for 1,001 latents; take 20,020"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_of_a_trial_is_refused_with_the_reason(changes: dict[str, int], why: str) -> None:
    assert Features(**ASKED).refusal(known_trial()) is None
    refusal = Features(**{**ASKED, **changes}).refusal(known_trial())
    assert refusal is not None
    assert re.search(why, refusal)
