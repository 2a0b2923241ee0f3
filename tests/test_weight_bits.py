"""Training with rounded weights: what is computed, what the optimizer moves, and what is loaded afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from helpers.trials import known_trial, make_trial, model_config, trial_config
from tinyscale.errors import ConfigError
from tinyscale.inference.trained import load_gpt
from tinyscale.measurements import load_subject
from tinyscale.measurements.quantize import measure
from tinyscale.results.schema import point_columns
from tinyscale.results.store import Results
from tinyscale.spec.config import Resources
from tinyscale.spec.data_config import DataConfig
from tinyscale.spec.measurement import Quantize
from tinyscale.training.batched import start_runs
from tinyscale.training.checkpoint import of_bytes
from tinyscale.training.loop import WEIGHTS, Run, train
from tinyscale.training.model import GPT
from tinyscale.training.rounding import Linear, round_for_good, round_in_use, rounded


def finished(results: Results, data: DataConfig, **changes: Any) -> tuple[str, list[Any]]:
    """A trial, trained and written; its identity and points."""
    trial, corpus = make_trial(trial_config(data, **changes))
    outcome = train(trial, corpus, lambda _: None, checkpoints=results.checkpoints(trial.identity))
    rows = [point_columns(trial, vars(point), corpus.val_tokens, corpus.val_bytes) for point in outcome.points]
    results.write_trial(trial, rows, outcome.state, None, {})
    return trial.identity, outcome.points


def test_it_is_absent_by_default_and_moves_no_identity() -> None:
    assert known_trial(weight_bits=None).identity == known_trial().identity
    assert len({known_trial(weight_bits=bits).identity for bits in (None, 3, 4)}) == 3


def test_the_forward_pass_has_exactly_the_rounded_weights_and_the_gradient_passes_straight_through() -> None:
    torch.manual_seed(0)
    layer, x = Linear(6, 5), torch.randn(7, 6)
    layer.bits = 3
    plain = rounded(layer.weight.detach(), 3).requires_grad_()
    ours, theirs = layer(x), F.linear(x, plain, layer.bias)
    assert torch.equal(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    assert layer.weight.grad is not None
    assert plain.grad is not None
    assert torch.equal(layer.weight.grad, plain.grad)


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True, "parametrization": "completep"}], ids=str)
def test_rounding_in_use_and_for_good_are_one_model_of_which_only_blocks_are_rounded(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    in_use = GPT(model_config(**changes), 50)
    for_good = GPT(model_config(**changes), 50)
    for_good.load_state_dict(in_use.state_dict())
    tokens = torch.randint(50, (2, 32))
    before = in_use(tokens)[0]
    round_in_use(in_use.blocks, 2)
    round_for_good(for_good.blocks, 2)
    assert torch.equal(in_use(tokens)[0], for_good(tokens)[0])
    assert not torch.equal(in_use(tokens)[0], before)
    moved = {name for name, value in for_good.state_dict().items() if not torch.equal(value, in_use.state_dict()[name])}
    assert moved == {
        name for name, value in in_use.named_parameters() if name.startswith("blocks.") and value.ndim == 2
    }
    round_in_use(in_use.blocks, None)
    assert torch.equal(in_use(tokens)[0], before)


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "muon"}, {"schedule": "wsd", "branches": [0.5], "decay_fraction": 0.3}], ids=str
)
def test_a_loaded_model_has_the_loss_that_was_recorded_and_the_checkpoint_the_weights_before_rounding(
    tiny_corpus: DataConfig, results: Results, changes: dict[str, Any]
) -> None:
    identity, points = finished(results, tiny_corpus, weight_bits=3, **changes)
    subject = load_subject(results, identity, Resources())
    assert subject.unchanged.val_loss == pytest.approx(points[-1].val_loss, rel=1e-6)
    held = of_bytes(results.checkpoints(identity).read(WEIGHTS))["blocks.0.mlp.into.weight"]
    loaded = load_gpt(results, results.load_trial(identity)).state_dict()["blocks.0.mlp.into.weight"]
    assert torch.equal(loaded, rounded(held, 3))
    assert len(held[0].unique()) > 8
    assert results.read_trial(identity)[0][-1]["weight_bits"] == 3
    (again,) = measure(subject, Quantize(bits=3, of="blocks"))
    assert abs(again["delta"]) < 1e-5, "what is on the grid stays on it"


def test_training_with_few_bits_loses_less_than_rounding_afterwards(tiny_corpus: DataConfig, results: Results) -> None:
    longer = {"tokens_budget": 200 * 256, "repeats": True}
    _, points = finished(results, tiny_corpus, weight_bits=2, **longer)
    plain, _ = finished(results, tiny_corpus, **longer)
    (after,) = measure(load_subject(results, plain, Resources()), Quantize(bits=2, of="blocks"))
    assert points[-1].val_loss < after["loss"]


@pytest.mark.slow
def test_it_works_compiled(tiny_corpus: DataConfig) -> None:
    losses = []
    for resources in ({}, {"compile": True}):
        trial, corpus = make_trial(trial_config(tiny_corpus, weight_bits=4, resources=resources, tokens_budget=5 * 256))
        losses.append(train(trial, corpus, lambda _: None).points[-1].val_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_batched_model_refuses_it(tiny_corpus: DataConfig) -> None:
    trials, corpora = zip(*(make_trial(trial_config(tiny_corpus, weight_bits=4, seed=s)) for s in (0, 1)), strict=True)
    with pytest.raises(ConfigError, match=r"leave out fuse, or train\.weight_bits"):
        start_runs(trials, corpora[0], [None, None])


def test_another_run_of_the_process_is_not_rounded(tiny_corpus: DataConfig, tmp_path: Path) -> None:
    rounds = [
        {
            layer.bits
            for layer in Run(*make_trial(trial_config(tiny_corpus, **changes)), None).gpt.modules()
            if isinstance(layer, Linear)
        }
        for changes in ({"weight_bits": 4}, {})
    ]
    assert rounds == [{4}, {None}]
