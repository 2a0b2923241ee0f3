"""The check of transfer: slopes per doubling, of what a step moves and of the best learning rate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from helpers.trials import FACTS
from tinyscale.cli import cli
from tinyscale.errors import FitError
from tinyscale.planning.transfer import _slopes, check_transfer
from tinyscale.results.schema import point_columns
from tinyscale.results.store import Results
from tinyscale.results.sweep_record import SweepEntry, SweepRecord
from tinyscale.spec.sweep import Sweep, load_sweep
from tinyscale.spec.trial import resolve

SWEEP = """\
name: rates
base:
  data: {corpus: nowhere.txt, tokenizer: {kind: byte}}
  model: {n_layers: 2, head_dim: 16, context_length: 32, positions: rotary}
  train: {tokens_budget: 64K, batch_tokens: 1024, weight_decay: 0}
arms:
  standard: {}
  mup: {model.parametrization: mup}
axes:
  model.d_model: [32, 64, 128]
  train.lr: [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2]
seeds: [0, 1]
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep of widths and rates, in two parametrizations; the working directory is another than ours."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rates.yaml").write_text(SWEEP)
    return tmp_path / "rates.yaml"


def write_results(sweep: Sweep, results: Results, drift: dict[str, float]) -> None:
    """Losses whose best rate is 5e-3 at width 64, and moves by `drift` of the arm per doubling, in log2."""
    rng, entries = np.random.default_rng(0), []
    for variant in sweep.variants:
        trial, model = resolve(variant.config, FACTS), variant.config.model
        best = np.log2(5e-3) + drift[variant.cell.arm] * np.log2(model.d_model / 64)
        loss = 3 * np.exp(0.01 * (np.log2(variant.config.train.lr) - best) ** 2 + 1e-4 * rng.standard_normal())
        measured = {"step": trial.steps, "tokens": trial.tokens, "val_loss": loss, "decayed": True}
        results.write_trial(trial, [point_columns(trial, measured, 100_000, 400_000)], "finished", None, {})
        entries.append(SweepEntry(trial.identity, variant.cell))
    results.write_sweep(SweepRecord(sweep.name, "", "", (), tuple(entries), {}))


def test_slopes_of_width_and_depth_are_found_apart_and_their_intervals_hold_them_19_times_of_20() -> None:
    sizes = pd.DataFrame(
        [{"d_model": width, "n_layers": depth} for width in (64, 128, 256) for depth in (2, 4, 8) for _ in (0, 1)]
    )
    exact = (0.5 * np.log2(sizes["d_model"]) - 1.5 * np.log2(sizes["n_layers"])).to_numpy()
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        width, depth = _slopes("stream", sizes, exact + 0.01 * rng.standard_normal(len(sizes)))
        assert (width.axis, depth.axis) == ("d_model", "n_layers")
        held += [width.power.low < 0.5 < width.power.high, depth.power.low < -1.5 < depth.power.high]
    assert 0.93 < np.mean(held) < 0.97
    assert not width.is_flat
    assert width.power.value == pytest.approx(0.5, abs=0.02)


def test_width_and_depth_that_grow_in_step_are_one_axis() -> None:
    sizes = pd.DataFrame({"d_model": [64, 128, 256, 512], "n_layers": [2, 4, 8, 16]})
    (slope,) = _slopes("stream", sizes, np.array([0.0, 0.1, -0.1, 0.0]))
    assert slope.axis == "d_model with n_layers"
    assert slope.is_flat
    assert "0 inside" in str(slope)


@pytest.mark.slow
def test_the_check_finds_what_a_step_moves_and_where_the_best_rate_lies(path: Path) -> None:
    sweep, results = load_sweep(path), Results("results")
    write_results(sweep, results, {"standard": -0.6, "mup": 0.0})
    found = {each.label: each for each in check_transfer(sweep, results)}
    slopes = {label: {slope.what: slope for slope in each.slopes} for label, each in found.items()}
    for label, drift in (("standard", -0.6), ("mup", 0.0)):
        rate = slopes[label]["best lr"].power
        assert rate.value == pytest.approx(drift, abs=0.05)
        assert rate.low < drift < rate.high
    assert slopes["mup"]["best lr"].is_flat
    assert not slopes["standard"]["best lr"].is_flat
    assert abs(slopes["mup"]["blocks"].power.value) < 0.2
    assert slopes["standard"]["blocks"].power.low > 0.2
    assert "best lr at d_model 64, n_layers 2: 0.005" in found["mup"].notes
    listed = json.loads(json.dumps(found["mup"].as_json()))
    assert {slope["what"] for slope in listed["slopes"]} == {"stream", "logits", "blocks", "best lr"}


def test_without_results_the_command_says_so_and_still_checks_the_movements(path: Path) -> None:
    chosen = ["--select", "arm=mup", "--select", "d_model=32,64"]
    done = CliRunner().invoke(cli, ["check-transfer", str(path), *chosen])
    assert "per doubling of d_model" in done.output, done.output
    assert "no best lr: results has no finished trials of it; launch the sweep" in done.output


def test_a_sweep_of_one_size_is_refused(path: Path) -> None:
    with pytest.raises(FitError, match="no arm has two sizes"):
        check_transfer(load_sweep(path, select=("d_model=64",)), Results("results"))
