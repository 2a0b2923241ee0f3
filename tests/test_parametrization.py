"""Parametrizations: what a step moves does not depend on the size, and the settings that this takes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from helpers.trials import model_config, train_config, trial_config
from tinyscale.spec.config import TrialConfig
from tinyscale.training.coordinates import movements
from tinyscale.training.model import GPT
from tinyscale.training.optim import build_optimizer
from tinyscale.training.parametrization import width_scale

DATA = {"corpus": "nowhere.txt", "tokenizer": {"kind": "byte"}}
WIDTHS, DEPTHS = (64, 128, 256), (2, 4, 8, 16)


def config_of(**changes: Any) -> TrialConfig:
    shape = {"d_model": 64, "n_heads": None, "head_dim": 16, "positions": "rotary", "weight_decay": 0}
    return trial_config(DATA, **{**shape, **changes})


@functools.cache
def exponents(axis: str, **changes: Any) -> dict[str, float]:
    """The power of the width or the depth with which each movement grows, over two seeds."""
    sizes = WIDTHS if axis == "d_model" else DEPTHS
    moved = [[movements(config_of(seed=seed, **{axis: size}, **changes)) for seed in (0, 1)] for size in sizes]
    return {
        name: float(np.polyfit(np.log(sizes), np.log([np.mean([seed[name] for seed in each]) for each in moved]), 1)[0])
        for name in moved[0][0]
    }


@pytest.mark.parametrize("parametrization", ["mup", "completep"])
def test_steps_move_activations_as_much_at_every_width(parametrization: str) -> None:
    found = exponents("d_model", parametrization=parametrization)
    assert abs(found["blocks"]) < 0.15, found
    assert abs(found["stream"]) < 0.15, found
    assert found["logits"] < 0.1, found


def test_steps_move_activations_more_in_wide_models_under_the_standard_parametrization() -> None:
    found = exponents("d_model", parametrization="standard")
    assert found["blocks"] > 0.3, found
    assert found["logits"] > 0.3, found


def test_steps_move_activations_as_much_at_every_depth_under_completep_alone() -> None:
    """Dey et al. 2025, figure 3: without the scale of the branches each layer adds its movement."""
    flat, growing = (exponents("n_layers", parametrization=each) for each in ("completep", "mup"))
    for name in ("stream", "logits", "blocks"):
        assert abs(flat[name]) < 0.15, flat
    assert growing["blocks"] > 0.5, growing
    assert growing["stream"] > 0.4, growing


@pytest.mark.parametrize("changes", [{"optimizer": "lion"}, {"tie_embeddings": True}, {"optimizer": "muon"}], ids=str)
@pytest.mark.parametrize("axis", ["d_model", "n_layers"])
def test_completep_holds_for_other_optimizers_and_with_a_tied_head(axis: str, changes: dict[str, Any]) -> None:
    found = exponents(axis, parametrization="completep", **changes)
    assert abs(found["blocks"]) < 0.25, found
    assert abs(found["stream"]) < 0.2, found


def test_muon_moves_wide_models_more_without() -> None:
    assert exponents("d_model", parametrization="standard", optimizer="muon")["blocks"] > 0.4


def groups_by_name(**changes: Any) -> dict[str, dict[str, Any]]:
    """Parameter -> the settings of its group, relative to those of a model of the standard parametrization."""
    config = model_config(d_model=256, n_layers=8, n_heads=16, bias=True, parametrization="completep")
    gpt = GPT(config, 64)
    optimizer = build_optimizer(gpt, train_config(weight_decay=0.1, **changes), config)
    names = {id(parameter): name for name, parameter in gpt.named_parameters()}
    return {names[id(parameter)]: group for group in optimizer.param_groups for parameter in group["params"]}


@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 1 / 4), ("lion", 1 / 4), ("muon", 1 / 2)])
def test_the_settings_of_completep_by_hand(optimizer: str, lr: float) -> None:
    """At four times the base width and four times the base depth."""
    for name, group in groups_by_name(optimizer=optimizer).items():
        matrix, block = group["params"][0].dim() == 2, name.startswith("blocks.")
        assert group.get("scale", 1.0) == (lr if matrix and block else 1.0), name
        assert group["weight_decay"] == pytest.approx(0.1 / group.get("scale", 1.0) if matrix else 0.0), name
        if optimizer == "adamw":
            assert group["eps"] == pytest.approx(1e-8 / (16 if block else 4)), name


def test_the_rate_of_what_grows_with_the_width_is_divided_by_it_under_mup() -> None:
    gpt = GPT(model_config(d_model=256, n_heads=16, parametrization="mup"), 64)
    optimizer = build_optimizer(gpt, train_config(), gpt.config)
    scales = {id(p): group.get("scale", 1.0) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in gpt.named_parameters():
        grows = parameter.dim() == 2 and not name.startswith(("embedding", "positions"))
        assert scales[id(parameter)] == (0.25 if grows else 1.0), name


def test_mup_at_its_own_width_and_standard_at_any_have_one_rate() -> None:
    assert width_scale(model_config(d_model=64, parametrization="mup")) == 1
    assert width_scale(model_config(d_model=512)) == 1
    gpt = GPT(model_config(d_model=64, n_heads=4, parametrization="mup"), 64)
    assert all("scale" not in group for group in build_optimizer(gpt, train_config(), gpt.config).param_groups)


def test_the_residual_stream_of_completep_begins_with_size_one_whatever_the_depth() -> None:
    sizes = []
    for n_layers in (2, 32):
        torch.manual_seed(0)
        gpt = GPT(model_config(d_model=64, n_layers=n_layers, positions="rotary", parametrization="completep"), 64)
        gpt.norm.register_forward_pre_hook(lambda _, given: sizes.append(float(given[0].detach().square().mean())))
        gpt(torch.arange(32)[None])
    assert sizes == pytest.approx([1, 1], rel=0.4)


def test_what_mup_has_no_rule_for_is_refused_and_completep_has_one() -> None:
    with pytest.raises(ValidationError, match="they cannot tie; use parametrization: completep"):
        model_config(parametrization="mup", tie_embeddings=True)
    with pytest.raises(ValidationError, match="muon scales its own steps; use completep"):
        trial_config(DATA, parametrization="mup", optimizer="muon")
    assert trial_config(DATA, parametrization="completep", optimizer="muon", tie_embeddings=True)
