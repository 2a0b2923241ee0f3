"""fp16: refused without a GPU, and a loss scaler that keeps its numbers near fp32's and survives an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.sweeps import write_tiny_sweep
from helpers.trials import make_trial, trial_config
from tinyscale.errors import ConfigError
from tinyscale.machine import Capacity
from tinyscale.planning.make_plan import make_plan
from tinyscale.results.store import Results
from tinyscale.spec.data_config import DataConfig
from tinyscale.spec.sweep import load_sweep
from tinyscale.storage import Folder
from tinyscale.training.loop import Run, train


def test_fp16_without_a_gpu_is_refused_and_says_why(long_corpus: Path, tmp_path: Path) -> None:
    sweep = load_sweep(write_tiny_sweep(tmp_path, corpus=long_corpus), overrides=["precision=fp16", "val_bytes=110K"])
    with pytest.raises(ConfigError, match=r"--set precision=fp16: .*needs a GPU.* set precision to bf16 or fp32"):
        make_plan(sweep, Results(str(tmp_path)), Capacity(2, 0), measure=False)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fp16_is_near_fp32_and_scales_its_loss(tiny_corpus: DataConfig, device: str) -> None:
    """The loop itself runs fp16 on a CPU too, if slowly."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    resources = {"gpu": 1 if device == "cuda" else 0}
    exact, rounded = (
        train(*make_trial(trial_config(tiny_corpus, precision=p, resources=resources)), lambda _: None)
        for p in ("fp32", "fp16")
    )
    assert rounded.points[-1].val_loss == pytest.approx(exact.points[-1].val_loss, rel=0.02)
    assert rounded.points[-1].val_loss != exact.points[-1].val_loss
    run = Run(*make_trial(trial_config(tiny_corpus, precision="fp16", resources=resources)), None)
    run.update()
    assert run.state.scaler.get_scale() > 1
    assert not Run(*make_trial(trial_config(tiny_corpus)), None).state.scaler.is_enabled()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_interrupted_fp16_trial_goes_on_with_its_scale(
    tiny_corpus: DataConfig, tmp_path: Path, optimizer: str
) -> None:
    trial, corpus = make_trial(trial_config(tiny_corpus, precision="fp16", optimizer=optimizer))
    folder = Folder.at(tmp_path)
    train(trial, corpus, lambda _: None, checkpoints=folder, should_stop=lambda step: step == 7)
    resumed = train(trial, corpus, lambda _: None, checkpoints=folder)
    whole = train(trial, corpus, lambda _: None)
    assert [p.val_loss for p in resumed.points] == [p.val_loss for p in whole.points]
