"""Compiled and reduced-precision training: the same losses, repeatable and resumable like any other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.trials import make_trial, trial_config
from tinyscale.spec.data_config import DataConfig
from tinyscale.storage import Folder
from tinyscale.training.loop import Run, train
from tinyscale.training.progress import Outcome

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler: g++ is not here")


@pytest.fixture
def run(tiny_corpus: DataConfig, tmp_path: Path) -> Callable[..., Outcome]:
    def trained(*, compiled: bool, precision: str = "fp32", pause_at: int | None = None, **changes: Any) -> Outcome:
        resources = {"cpu": 1, "compile": compiled}
        config = trial_config(tiny_corpus, precision=precision, resources=resources, positions="rotary", **changes)
        trial, corpus = make_trial(config)
        folder = Folder.at(tmp_path / "checkpoints")
        if pause_at is not None:
            train(trial, corpus, lambda _: None, checkpoints=folder, should_stop=lambda step: step == pause_at)
        return train(trial, corpus, lambda _: None, checkpoints=folder)

    return trained


def losses(outcome: Outcome) -> list[tuple[float, float]]:
    return [(point.train_loss, point.val_loss) for point in outcome.points]


@pytest.mark.slow
def test_compiled_training_repeats_bit_for_bit_also_when_it_was_interrupted(run: Callable[..., Outcome]) -> None:
    first = losses(run(compiled=True))
    assert losses(run(compiled=True)) == first
    assert losses(run(compiled=True, pause_at=7)) == first
    other = losses(run(compiled=True, batch_tokens=128))
    assert other != first
    assert losses(run(compiled=True)) == first, "whatever the process compiled in between"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_training_gives_the_losses_of_eager_training(run: Callable[..., Outcome], precision: str) -> None:
    eager, compiled = (run(compiled=compiled, precision=precision) for compiled in (False, True))
    within = {"fp32": 1e-4, "bf16": 5e-3}[precision]
    for here, there in zip(losses(eager), losses(compiled), strict=True):
        assert here == pytest.approx(there, abs=within)


@pytest.mark.slow
def test_compiled_bf16_attention_stays_the_products_it_consists_of(tiny_corpus: DataConfig) -> None:
    """Torch's compiler knows attention by its form and would put back the kernel whose backward pass is slow."""
    resources = {"cpu": 1, "compile": True}
    step = Run(*make_trial(trial_config(tiny_corpus, precision="bf16", resources=resources)), None)
    step.update()
    with torch.profiler.profile() as profile:
        step.update()
    called = {event.key for event in profile.key_averages()}
    assert "aten::bmm" in called
    assert not {name for name in called if "scaled_dot_product" in name}
