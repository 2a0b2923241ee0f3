"""Muon: its update against the published one, AdamW for what is no hidden matrix, and a state that goes on."""

from __future__ import annotations

import copy

import pytest
import torch

from tinyscale.spec.config import ModelConfig, TrainConfig
from tinyscale.training.model import GPT
from tinyscale.training.optim import build_optimizer

SHAPE = {"d_model": 16, "n_layers": 2, "n_heads": 2, "context_length": 32, "bias": True}
TOKENS = torch.randint(50, (4, 32), generator=torch.Generator().manual_seed(1))


def model() -> GPT:
    torch.manual_seed(0)
    return GPT(ModelConfig.model_validate(SHAPE), 50)


def training(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"tokens_budget": 5120, "batch_tokens": 256, "lr": 1e-2, **changes})


def steps(gpt: GPT, optimizer: object, count: int) -> dict[str, torch.Tensor]:
    for _ in range(count):
        optimizer.zero_grad()
        gpt(TOKENS, TOKENS)[1].backward()
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in gpt.named_parameters()}


def newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    """The quintic iteration of Jordan's post, in the arithmetic it names."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x if wide else x.T).float()


def test_a_hidden_matrix_moves_by_its_orthogonalised_nesterov_momentum() -> None:
    gpt, train = model(), training(optimizer="muon", weight_decay=0.5)
    weight = gpt.blocks[0].mlp.into.weight
    optimizer = build_optimizer(gpt, train)
    momentum, expected = torch.zeros_like(weight), weight.detach().clone()
    for seed in range(3):
        gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        weight.grad = gradient.clone()
        optimizer.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        update = newton_schulz(0.05 * gradient + 0.95 * momentum)
        expected = expected * (1 - 0.01 * 0.5) - 0.01 * 0.2 * max(weight.shape) ** 0.5 * update
        assert torch.allclose(weight, expected, atol=8e-4)  # steps of up to 0.03, in bf16


def test_the_update_has_the_size_of_adamws_whatever_the_gradients() -> None:
    gpt = model()
    weight = gpt.blocks[0].attention.qkv.weight
    before = weight.detach().clone()
    weight.grad = 1e-4 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    build_optimizer(gpt, training(optimizer="muon", weight_decay=0)).step()
    moved = (weight - before).detach() / 1e-2
    assert moved.square().mean().sqrt() == pytest.approx(0.2, rel=0.15)
    singular = torch.linalg.svdvals(moved) / (0.2 * max(weight.shape) ** 0.5)
    assert 0.6 < singular.min() < singular.max() < 1.3


def test_embeddings_head_and_vectors_take_adamws_step() -> None:
    muon, adamw = model(), model()
    ours = steps(muon, build_optimizer(muon, training(optimizer="muon")), 1)
    theirs = steps(adamw, build_optimizer(adamw, training()), 1)
    for name, parameter in ours.items():
        hidden = name.startswith("blocks") and parameter.dim() == 2
        assert torch.equal(parameter, theirs[name]) != hidden, name


def test_every_parameter_is_in_one_group_and_the_rate_of_all_can_be_set() -> None:
    gpt = model()
    optimizer = build_optimizer(gpt, training(optimizer="muon"))
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, gpt.parameters()))
    before = steps(gpt, optimizer, 1)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    after = steps(gpt, optimizer, 1)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_optimizer_with_a_loaded_state_goes_on_as_the_first_would() -> None:
    first, second = model(), model()
    optimizer = build_optimizer(first, training(optimizer="muon"))
    steps(first, optimizer, 3)
    second.load_state_dict(first.state_dict())
    other = build_optimizer(second, training(optimizer="muon"))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    alone, resumed = steps(first, optimizer, 2), steps(second, other, 2)
    assert all(torch.equal(alone[name], resumed[name]) for name in alone)
