# ruff: noqa: E501 - tables of rates
"""Learning-rate schedules by tables of numbers; optimizers against other implementations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from lion_pytorch import Lion

from helpers.trials import model_config, train_config
from tinyscale.training.model import GPT
from tinyscale.training.optim import build_optimizer, lr_at


def rates(steps: int, **changes: Any) -> list[float]:
    train = train_config(lr=1.0, **changes)
    return [lr_at(step, steps, train) for step in range(steps)]


@pytest.mark.parametrize(
    ("changes", "table"),
    [
        ({"schedule": "linear", "min_lr_ratio": 0}, [0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0]),
        ({"schedule": "linear", "min_lr_ratio": 0.2}, [0.5, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]),
        ({"schedule": "constant"}, [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "wsd", "decay_fraction": 0.4, "min_lr_ratio": 0}, [0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]),
        ({"schedule": "wsd", "decay_fraction": 1, "min_lr_ratio": 0}, [0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0]),
        (
            {"schedule": "cosine", "min_lr_ratio": 0},
            [0.5, 1, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060, 0],
        ),
        (
            {"schedule": "cosine", "min_lr_ratio": 0.1},
            [0.5, 1, 0.965746, 0.868198, 0.722208, 0.55, 0.377792, 0.231802, 0.134254, 0.1],
        ),
    ],
    ids=str,
)  # fmt: skip
def test_ten_steps_of_each_schedule(changes: dict[str, Any], table: list[float]) -> None:
    assert rates(10, warmup_fraction=0.2, **changes) == pytest.approx(table, abs=1e-6)


@given(
    st.integers(1, 2000),
    st.sampled_from(["cosine", "linear", "wsd"]),
    st.floats(0, 0.99),
    st.floats(0.01, 1),
    st.floats(0, 1),
)
@example(10, "cosine", 0.99, 0.2, 0.1)
@example(1, "wsd", 0.05, 0.2, 0.1)
def test_a_schedule_rises_to_its_peak_falls_and_ends_at_its_least_rate(
    steps: int, schedule: str, warmup: float, decay: float, least: float
) -> None:
    found = rates(steps, schedule=schedule, warmup_fraction=warmup, decay_fraction=decay, min_lr_ratio=least)
    top = found.index(max(found))
    assert found[: top + 1] == sorted(found[: top + 1])
    assert all(a >= b - 1e-12 for a, b in zip(found[top:], found[top + 1 :], strict=False))
    assert found[-1] == pytest.approx(least), "whatever the shares round to"
    assert all(0 <= rate <= 1 + 1e-12 for rate in found)
    assert found[0] > 0 or least == 0


def test_the_first_step_already_trains() -> None:
    assert rates(100, warmup_fraction=0.1)[0] == pytest.approx(0.1)


def small_model(seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    return GPT(model_config(bias=True), 50)


def after_steps(model: GPT, optimizer: torch.optim.Optimizer, steps: int = 5) -> list[torch.Tensor]:
    tokens = torch.randint(50, (4, 32), generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        model(tokens, tokens)[1].backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def test_adamw_without_decay_is_torchs() -> None:
    train = train_config(weight_decay=0, betas=[0.8, 0.9])
    ours, theirs = small_model().double(), small_model().double()
    reference = torch.optim.AdamW(theirs.parameters(), lr=train.lr, betas=(0.8, 0.9), weight_decay=0, foreach=False)
    for a, b in zip(after_steps(ours, build_optimizer(ours, train)), after_steps(theirs, reference), strict=True):
        assert torch.allclose(a, b, atol=1e-8)


def test_adamw_of_one_number_by_hand() -> None:
    weight = torch.nn.Parameter(torch.tensor([[2.0]]))
    holder = torch.nn.Module()
    holder.register_parameter("weight", weight)
    optimizer = build_optimizer(holder, train_config(lr=0.1, weight_decay=0.5, betas=[0.9, 0.99]))
    expected, m, v = 2.0, 0.0, 0.0
    for step, gradient in enumerate((3.0, -1.0, 0.5), 1):
        weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
        expected *= 1 - 0.1 * 0.5
        expected -= 0.1 * (m / (1 - 0.9**step)) / ((v / (1 - 0.99**step)) ** 0.5 + 1e-8)
        assert weight.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_matrices_decay_and_vectors_do_not(optimizer: str) -> None:
    model = small_model()
    train = train_config(optimizer=optimizer, weight_decay=0.5, lr=0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(2.0)
            parameter.grad = torch.zeros_like(parameter)
    build_optimizer(model, train).step()
    for name, parameter in model.named_parameters():
        expected = 2.0 * (1 - 0.1 * 0.5) if parameter.dim() >= 2 else 2.0
        assert torch.allclose(parameter, torch.tensor(expected)), name


def test_every_parameter_is_optimized_once_a_tied_one_too() -> None:
    model = GPT(model_config(tie_embeddings=True, bias=True), 50)
    held = [p for group in build_optimizer(model, train_config()).param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))


def test_lion_is_the_published_one() -> None:
    model = small_model()
    assert isinstance(build_optimizer(model, train_config(optimizer="lion")), Lion)
    weight = torch.nn.Parameter(torch.tensor([[2.0]]))
    holder = torch.nn.Module()
    holder.register_parameter("weight", weight)
    optimizer = build_optimizer(holder, train_config(optimizer="lion", lr=0.1, weight_decay=0.5, betas=[0.9, 0.99]))
    expected, m = 2.0, 0.0
    for gradient in (3.0, -1.0, -3.0):
        weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        update = 0.9 * m + 0.1 * gradient
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * ((update > 0) - (update < 0))
        m = 0.99 * m + 0.01 * gradient
        assert weight.item() == pytest.approx(expected, rel=1e-5)
