"""Maximal-update parametrization: activations move as much at every width, and width 64 is where lr is meant."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from helpers.trials import model_config, train_config, trial_config
from tinyscale.training.model import GPT, width_scale
from tinyscale.training.optim import build_optimizer

WIDTHS = (64, 128, 256, 512)
TOKENS = torch.randint(64, (8, 33), generator=torch.Generator().manual_seed(1))


def built(parametrization: str, width: int, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    shape = {"d_model": width, "n_heads": width // 16, "context_length": 32, "positions": "rotary"}
    return GPT(model_config(**shape, parametrization=parametrization), 64)


def movement(parametrization: str, width: int, *, steps: int = 4) -> dict[str, float]:
    """How far some steps at one rate move the hidden state and the logits: root mean square over tokens, two seeds."""
    found: dict[str, list[float]] = {"hidden": [], "logits": []}
    for seed in (0, 1):
        gpt = built(parametrization, width, seed)
        seen: list[torch.Tensor] = []
        gpt.norm.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].detach()))
        train = train_config(lr=5e-3, weight_decay=0)
        optimizer = build_optimizer(gpt, train, width_scale(gpt.config))
        for group in optimizer.param_groups:
            group["lr"] = train.lr * group.get("scale", 1.0)
        before = gpt(TOKENS[:, :-1])[0].detach()
        for _ in range(steps):
            optimizer.zero_grad()
            gpt(TOKENS[:, :-1], TOKENS[:, 1:])[1].backward()
            optimizer.step()
        after = gpt(TOKENS[:, :-1])[0].detach()
        found["hidden"].append((seen[-1] - seen[0]).square().mean().sqrt().item())
        found["logits"].append((after - before).square().mean().sqrt().item())
    return {name: float(np.mean(values)) for name, values in found.items()}


def exponents(parametrization: str) -> dict[str, float]:
    """The power of the width with which the movements grow."""
    moved = [movement(parametrization, width) for width in WIDTHS]
    return {
        name: float(np.polyfit(np.log(WIDTHS), np.log([each[name] for each in moved]), 1)[0])
        for name in ("hidden", "logits")
    }


def test_steps_move_activations_as_much_at_every_width_and_more_in_wide_models_without() -> None:
    """The coordinate check of Yang et al. 2022, appendix D.1."""
    mup, standard = exponents("mup"), exponents("standard")
    assert abs(mup["hidden"]) < 0.2, mup
    assert abs(mup["logits"]) < 0.2, mup
    assert standard["hidden"] > 0.4, standard
    assert standard["logits"] > 0.4, standard


def test_the_rate_of_what_grows_with_the_width_is_divided_by_it() -> None:
    gpt = built("mup", 256)
    optimizer = build_optimizer(gpt, train_config(), width_scale(gpt.config))
    scales = {id(p): group.get("scale", 1.0) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in gpt.named_parameters():
        grows = parameter.dim() == 2 and not name.startswith("embedding")
        assert scales[id(parameter)] == (0.25 if grows else 1.0), name


def test_mup_at_its_own_width_and_standard_at_any_have_one_rate() -> None:
    assert width_scale(model_config(d_model=64, parametrization="mup")) == 1
    assert width_scale(model_config(d_model=512)) == 1
    one = build_optimizer(built("mup", 64), train_config())
    assert all("scale" not in group for group in one.param_groups)


def test_what_mup_has_no_rule_for_is_refused() -> None:
    with pytest.raises(ValidationError, match="they cannot tie"):
        model_config(parametrization="mup", tie_embeddings=True)
    with pytest.raises(ValidationError, match="muon scales its own steps"):
        trial_config({"corpus": "c.txt", "tokenizer": {"kind": "byte"}}, parametrization="mup", optimizer="muon")
