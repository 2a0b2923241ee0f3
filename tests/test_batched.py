"""Trials trained as one batched model: each with the losses, weights, checkpoint and end it has when trained alone."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.trials import make_trial, trial_config
from tinyscale.data import TokenizedCorpus
from tinyscale.spec.data_config import DataConfig
from tinyscale.spec.trial import Trial
from tinyscale.storage import Folder
from tinyscale.training.batched import Batched, start_runs, train_batched
from tinyscale.training.loop import RESUME, WEIGHTS, train, weights_at
from tinyscale.training.model import GPT
from tinyscale.training.progress import Outcome, Point
from tinyscale.training.recorded import AHEAD

RATES = (1e-2, 1e-2, 3e-3)  # of the seeds 0, 1, 2


@dataclass
class Group:
    """Trials that differ in seed and learning rate, and what was reported of each while they were trained together."""

    trials: list[Trial]
    corpus: TokenizedCorpus
    reported: dict[int, list[Point]] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)  # in the order in which they came

    def train(self, folder: Path | None = None, **options: Any) -> Group:
        """Train them together, the trial number k with its checkpoints in `folder/k`."""
        self.reported = {index: [] for index in range(len(self.trials))}
        self.outcomes = {}
        folders = [folder and Folder.at(folder / str(index)) for index in range(len(self.trials))]
        report, ended = (lambda index, point: self.reported[index].append(point)), self.outcomes.__setitem__
        train_batched(self.trials, self.corpus, report, ended, checkpoints=folders, **options)
        return self

    def alone(self, index: int, folder: Path | None = None) -> Outcome:
        """One of them trained as any other trial."""
        return train(self.trials[index], self.corpus, lambda _: None, checkpoints=folder and Folder.at(folder))


def group(data: DataConfig, rates: tuple[float, ...] = RATES, **changes: Any) -> Group:
    made = [make_trial(trial_config(data, seed=seed, lr=rate, **changes)) for seed, rate in enumerate(rates)]
    return Group([trial for trial, _ in made], made[0][1])


def losses(outcome: Outcome) -> list[tuple[float, float, float]]:
    return [(point.train_loss, point.val_loss, point.val_loss_se) for point in outcome.points]


def weights(folder: Path, name: str = WEIGHTS) -> dict[str, torch.Tensor]:
    return torch.load(io.BytesIO(Folder.at(folder).read(name)), weights_only=True)


def test_fused_trials_keep_the_weights_along_training_of_trials_trained_alone(
    tiny_corpus: DataConfig, tmp_path: Path
) -> None:
    trained = group(tiny_corpus).train(tmp_path, keep_every=2000)
    for index, trial in enumerate(trained.trials):
        alone = Folder.at(tmp_path / f"alone{index}")
        train(trial, trained.corpus, lambda _: None, checkpoints=alone, keep_every=2000)
        assert Folder.at(tmp_path / str(index)).names() == alone.names()
        found, expected = (weights(tmp_path / each, weights_at(8 * 256)) for each in (str(index), f"alone{index}"))
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4)


SHAPES = [
    {},
    {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "tie_embeddings": True},
    {"bias": True, "tie_embeddings": True, "schedule": "wsd", "grad_clip": 0.1},
    {"parametrization": "mup", "bias": True, "norm": "rmsnorm", "grad_clip": 0},
    {"optimizer": "lion", "positions": "rotary", "bias": True},
    {"parametrization": "completep", "n_layers": 3, "tie_embeddings": True},
    {"n_kv_heads": 1, "qk_norm": True, "positions": "rotary"},
]


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_fused_trials_have_the_losses_and_weights_of_trials_trained_alone(
    tiny_corpus: DataConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    together = group(tiny_corpus, **changes).train(tmp_path / "together")
    for index, outcome in together.outcomes.items():
        alone = together.alone(index, tmp_path / "alone" / str(index))
        assert (outcome.state, outcome.reason) == ("finished", None)
        assert outcome.points == together.reported[index]
        assert [point.fused for point in outcome.points] == [3] * len(alone.points)
        for here, there in zip(losses(outcome), losses(alone), strict=True):
            assert here == pytest.approx(there, abs=1e-4)
        mine, its = weights(tmp_path / "together" / str(index)), weights(tmp_path / "alone" / str(index))
        assert mine.keys() == its.keys()
        matrices = [name for name in its if its[name].dim() >= 2]  # the bias of keys has no gradient but noise
        assert all(torch.allclose(mine[name], its[name], atol=1e-3) for name in matrices)
    assert len({outcome.points[-1].val_loss for outcome in together.outcomes.values()}) == 3


def test_fused_trials_in_bf16_have_the_losses_of_trials_trained_alone(tiny_corpus: DataConfig) -> None:
    together = group(tiny_corpus, precision="bf16", positions="rotary").train()
    for index, outcome in together.outcomes.items():
        assert outcome.points[-1].val_loss == pytest.approx(together.alone(index).points[-1].val_loss, abs=5e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler: g++ is not here")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_batched_model_has_the_losses_of_an_eager_one(tiny_corpus: DataConfig, precision: str) -> None:
    eager, compiled = (
        group(tiny_corpus, positions="rotary", precision=precision, resources={"compile": compiled}).train().outcomes
        for compiled in (False, True)
    )
    for index, outcome in eager.items():
        for here, there in zip(losses(outcome), losses(compiled[index]), strict=True):
            assert here == pytest.approx(there, abs={"fp32": 1e-4, "bf16": 5e-3}[precision])


def test_each_copy_starts_from_the_weights_that_its_seed_gives_and_reads_its_own_batches(
    tiny_corpus: DataConfig,
) -> None:
    together = group(tiny_corpus, tie_embeddings=True)
    batch = Batched(start_runs(together.trials, together.corpus, [None] * 3))
    for index, trial in enumerate(together.trials):
        torch.manual_seed(trial.config.seed)
        alone = GPT(trial.config.model, trial.vocab_size).state_dict()
        own = {name: tensor.clone() for name, tensor in batch.load(index).gpt.state_dict().items()}
        assert own.keys() == alone.keys()
        assert all(torch.equal(own[name], alone[name]) for name in alone)
    first = [run.batches.batch(0)[0] for run in batch.runs]
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("stop_at", [1, 10])
def test_an_interrupted_group_goes_on_as_if_it_had_not_been(
    tiny_corpus: DataConfig, tmp_path: Path, stop_at: int
) -> None:
    together = group(tiny_corpus, positions="rotary")
    whole = [losses(outcome) for outcome in together.train().outcomes.values()]
    stopped = together.train(tmp_path, should_stop=lambda step: step == stop_at).outcomes
    assert {outcome.state for outcome in stopped.values()} == {"running"}
    assert Folder.at(tmp_path / "0").names() == [RESUME]
    torch.randn(10)  # whatever the process did between
    resumed = together.train(tmp_path).outcomes
    assert [losses(outcome) for outcome in resumed.values()] == whole
    assert Folder.at(tmp_path / "0").names() == [WEIGHTS]


def test_a_trial_of_an_interrupted_group_can_go_on_alone_and_the_rest_without_it(
    tiny_corpus: DataConfig, tmp_path: Path
) -> None:
    together = group(tiny_corpus)
    whole = {index: losses(outcome) for index, outcome in together.train().outcomes.items()}
    together.train(tmp_path, should_stop=lambda step: step == 12)
    alone = together.alone(0, tmp_path / "0")
    assert [point.fused for point in alone.points] == [3, 3, 1]
    shutil.rmtree(tmp_path / "1")  # it begins again, so that the three are at three different steps
    resumed = together.train(tmp_path).outcomes
    assert resumed[1].points[-1].fused == 2, "with the first, which had finished and begins again as well"
    assert resumed[2].points[-1].fused == 1
    for index, expected in whole.items():
        for here, there in zip(losses(resumed[index]), expected, strict=True):
            assert here == pytest.approx(there, abs=1e-4)


@pytest.mark.parametrize("at_once", [1, 7])  # losses that are read together, as on a GPU
@pytest.mark.parametrize("wild", [0, 1])
def test_a_trial_that_diverges_ends_alone_and_the_others_go_on(
    tiny_corpus: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wild: int, at_once: int
) -> None:
    monkeypatch.setitem(AHEAD, "cpu", at_once)
    rates = (10, 1e-3, 2e-3) if wild == 0 else (1e-3, 10, 2e-3)
    together = group(tiny_corpus, rates=rates, weight_decay=150, grad_clip=0).train(tmp_path)
    assert next(iter(together.outcomes)) == wild, "reported before the others have ended"
    assert "loss not finite" in str(together.outcomes.pop(wild).reason)
    assert Folder.at(tmp_path / str(wild)).names() == []
    assert sorted(together.outcomes) == sorted({0, 1, 2} - {wild})
    for index in together.outcomes:
        assert together.outcomes[index].state == "finished"
        for here, there in zip(losses(together.outcomes[index]), losses(together.alone(index)), strict=True):
            assert here == pytest.approx(there, abs=1e-4)
