"""The GPT: untrained loss, causality, attention, positions, generation, counts."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.trials import model_config
from tinyscale.training.model import GPT, attend, rotary_cos_sin, rotate, sample

V = 100


def gpt(vocab_size: int = V, **changes: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(model_config(**changes), vocab_size)


def tokens_of(rows: int, length: int, vocab_size: int = V, seed: int = 1) -> Tensor:
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize(("width", "vocab_size"), [(16, 64), (64, 257), (256, 1024), (512, 100), (1024, 512)])
def test_an_untrained_model_knows_nothing_its_loss_is_ln_v(width: int, vocab_size: int, tie: bool) -> None:
    model = gpt(vocab_size, d_model=width, n_layers=4, tie_embeddings=tie)
    stream = tokens_of(32, 33, vocab_size)
    with torch.inference_mode():
        loss = model(stream[:, :-1], stream[:, 1:])[1]
    assert float(loss) == pytest.approx(math.log(vocab_size), rel=0.02)


@pytest.mark.parametrize("tie", [False, True])
def test_an_untrained_model_does_not_favour_the_token_it_has_just_read(tie: bool) -> None:
    tokens = tokens_of(32, 32)
    with torch.inference_mode():
        loss = gpt(d_model=512, tie_embeddings=tie)(tokens, tokens)[1]
    assert float(loss) == pytest.approx(math.log(V), rel=0.05)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_later_token_does_not_change_earlier_logits(positions: str, precision: torch.dtype) -> None:
    model = gpt(positions=positions).to(precision)
    before = tokens_of(3, 32)
    for place in (1, 16, 31):
        after = before.clone()
        after[:, place] = (after[:, place] + 1) % V
        with torch.inference_mode():
            old, new = model(before)[0], model(after)[0]
        assert torch.equal(old[:, :place], new[:, :place])
        assert not torch.equal(old[:, place], new[:, place])


def test_gradients_flow_to_every_parameter_and_from_no_later_token() -> None:
    model = gpt(positions="rotary", activation="swiglu", bias=True)
    x = model.embedding(tokens_of(1, 32)).detach().requires_grad_()
    hidden = x
    for block in model.blocks:
        hidden = block(hidden)
    hidden[0, 10].sum().backward()
    assert x.grad is not None
    assert not x.grad[0, 11:].any()
    assert x.grad[0, :11].any(dim=1).all(), "each position looks at all before it"
    tokens = tokens_of(4, 32)
    model(tokens, tokens)[1].backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_forward_gives_logits_and_with_targets_their_mean_loss() -> None:
    model, tokens, targets = gpt().requires_grad_(False), tokens_of(2, 8), tokens_of(2, 8, seed=2)
    logits, nothing = model(tokens)
    assert nothing is None
    assert logits.shape == (2, 8, V)
    targets[0, :3] = -100
    logits, loss = model(tokens, targets)
    picked = logits.log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    assert float(loss) == pytest.approx(float(-picked[targets >= 0].mean()), abs=1e-5), "unshifted, marks left out"


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 40), st.integers(1, 16), st.integers(0, 99))
def test_bf16_attention_on_a_cpu_is_that_of_torchs_kernel(
    rows: int, heads: int, length: int, width: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(rows, heads, length, width, generator=generator).bfloat16() for _ in range(3))
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
    assert (attend(q, k, v).float() - exact).abs().max() < 0.04
    assert torch.equal(attend(q.float(), k.float(), v.float()), exact)


@pytest.mark.parametrize("length", [256, 257, 600, 701])
def test_bf16_attention_in_a_long_context_is_that_of_torchs_kernel(length: int) -> None:
    q, k, v = torch.randn(3, 2, 4, length, 16, generator=torch.Generator().manual_seed(0)).bfloat16().unbind()
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
    assert (attend(q, k, v).float() - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("length", [32, 300], ids=["short", "in_blocks"])
def test_bf16_attention_on_a_cpu_has_the_gradients_of_torchs_kernel(length: int) -> None:
    q, k, v = torch.randn(3, 2, 4, length, 16, generator=torch.Generator().manual_seed(0)).unbind()
    wanted = [x.clone().requires_grad_() for x in (q, k, v)]
    F.scaled_dot_product_attention(*wanted, is_causal=True).square().sum().backward()
    found = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    attend(*found).float().square().sum().backward()
    for ours, theirs in zip(found, wanted, strict=True):
        assert F.cosine_similarity(ours.grad.float().flatten(), theirs.grad.flatten(), dim=0) > 0.999


@settings(max_examples=25)
@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 500), st.sampled_from([2, 8, 32]))
def test_rotary_scores_depend_on_the_distance_alone(a: int, b: int, shift: int, width: int) -> None:
    generator = torch.Generator().manual_seed(a)
    q, k = (torch.randn(1, 1, 1, width, generator=generator) for _ in range(2))

    def score(at: int, to: int) -> float:
        rotated = [rotate(x, rotary_cos_sin(torch.tensor([place]), width)) for x, place in ((q, at), (k, to))]
        return float((rotated[0] * rotated[1]).sum())

    assert score(a + shift, b + shift) == pytest.approx(score(a, b), abs=2e-3)


def test_rotary_positions_keep_lengths_leave_position_0_and_follow_the_published_angles() -> None:
    x = torch.randn(1, 1, 50, 8, generator=torch.Generator().manual_seed(0))
    rotated = rotate(x, rotary_cos_sin(torch.arange(50), 8))
    assert torch.allclose(rotated.norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert torch.equal(rotated[:, :, 0], x[:, :, 0])
    unit = torch.zeros(1, 1, 1, 8)
    unit[..., 1] = 1.0  # pair 1 is the components 1 and 5
    angle = 3 * 10000 ** (-2 / 8)
    expected = torch.zeros(8)
    expected[1], expected[5] = math.cos(angle), math.sin(angle)
    assert torch.allclose(rotate(unit, rotary_cos_sin(torch.tensor([3]), 8))[0, 0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_order_matters(positions: str) -> None:
    model, tokens = gpt(positions=positions), tokens_of(1, 16)
    swapped = tokens.clone()
    swapped[0, [2, 5]] = tokens[0, [5, 2]]
    with torch.inference_mode():
        assert not torch.allclose(model(tokens)[0][0, -1], model(swapped)[0][0, -1], atol=1e-5)


# shared keys and values, normalised queries and keys


def whole_of(shared: GPT, groups: int) -> GPT:
    """The model whose heads each have the keys and values that they share in `shared`."""
    config = shared.config
    whole = GPT(config.model_copy(update={"n_kv_heads": None}), V)
    state = shared.state_dict()
    for name in [name for name in state if "qkv" in name]:
        heads = state[name].unflatten(0, (-1, config.head_dim))
        q, k, v = heads.split([config.n_heads, config.kv_heads, config.kv_heads])
        state[name] = torch.cat([q, *(each.repeat_interleave(groups, dim=0) for each in (k, v))]).flatten(0, 1)
    whole.load_state_dict(state)
    return whole


@pytest.mark.parametrize("changes", [{}, {"positions": "rotary", "bias": True, "qk_norm": True}], ids=str)
@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_shared_keys_and_values_are_repeated_ones_and_get_the_sum_of_their_gradients(
    n_kv_heads: int, changes: dict[str, Any]
) -> None:
    shared = gpt(d_model=32, n_heads=4, n_kv_heads=n_kv_heads, **changes)
    whole, tokens = whole_of(shared, 4 // n_kv_heads), tokens_of(2, 32)
    assert torch.allclose(shared(tokens)[0], whole(tokens)[0], atol=1e-6)
    for model in (shared, whole):
        model(tokens, tokens)[1].backward()
    of_shared, of_whole = (model.blocks[0].attention.qkv.weight.grad.unflatten(0, (-1, 8)) for model in (shared, whole))
    keys = of_whole[4:8].unflatten(0, (n_kv_heads, -1)).sum(1)
    assert torch.allclose(of_shared[4 : 4 + n_kv_heads], keys, atol=1e-6)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_as_many_heads_of_keys_as_of_queries_is_plain_attention_bit_for_bit(positions: str) -> None:
    said, unsaid = gpt(n_kv_heads=2, positions=positions), gpt(positions=positions)
    assert said.config == unsaid.config
    assert torch.equal(said(tokens_of(2, 32))[0], unsaid(tokens_of(2, 32))[0])


def test_normalised_queries_and_keys_bound_the_attention_logits_however_large_the_weights() -> None:
    largest = {}
    for normed in (False, True):
        model, seen = gpt(qk_norm=normed), []
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            model.blocks[0].attention.qkv.weight.mul_(100)
            patch.setattr("tinyscale.training.model.attend", lambda q, k, v, seen=seen: seen.append((q, k)) or v)
            model(tokens_of(2, 32))
        q, k = seen[0]
        largest[normed] = float((q @ k.transpose(-2, -1)).abs().max()) / 8**0.5
    assert largest[True] <= 8**0.5 * 1.001, "sqrt(K), where queries and keys of RMS one are parallel"
    assert largest[False] > 100


def test_normalised_queries_and_keys_keep_the_attention_logits_small_when_the_rate_is_too_high() -> None:
    """The instability of Wortsman et al. 2023 (2309.14322, section 3.1), at a rate 30 times the best one."""
    largest = {}
    stream = tokens_of(40, 33)
    for normed in (False, True):
        model, seen = gpt(qk_norm=normed, positions="rotary"), []
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.3)
        for _ in range(60):
            optimizer.zero_grad()
            model(stream[:, :-1], stream[:, 1:])[1].backward()
            optimizer.step()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tinyscale.training.model.attend", lambda q, k, v, seen=seen: seen.append(q @ k.mT) or v)
            model(stream[:, :-1])
        largest[normed] = max(float(scores.detach().abs().max()) for scores in seen) / 8**0.5
    assert largest[False] > 10 * largest[True], largest


# generation


def test_greedy_generation_is_deterministic_and_takes_the_likeliest_token() -> None:
    model, prompt = gpt(), tokens_of(2, 5)
    out = model.generate(prompt, 10, temperature=0)
    assert out.shape == (2, 15)
    assert torch.equal(out, model.generate(prompt, 10, temperature=0))
    for place in range(5, 15):
        assert torch.equal(out[:, place], model(out[:, :place])[0][:, -1].argmax(-1))


def test_the_one_likeliest_token_is_the_greedy_one_at_any_temperature() -> None:
    model, prompt = gpt(), tokens_of(2, 5)
    assert torch.equal(model.generate(prompt, 10, top_k=1), model.generate(prompt, 10, temperature=0))


def test_sampling_follows_the_distribution_its_temperature_and_top_k() -> None:
    torch.manual_seed(0)
    chances = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = chances.log().expand(20_000, 4)

    def shares(temperature: float, top_k: int | None) -> Tensor:
        return torch.bincount(sample(logits, temperature, top_k), minlength=4) / 20_000

    assert torch.allclose(shares(1.0, None), chances, atol=0.015)
    assert torch.allclose(shares(0.5, None), chances**2 / (chances**2).sum(), atol=0.015)
    assert torch.allclose(shares(1.0, 2), torch.tensor([0.625, 0.375, 0, 0]), atol=0.015)
    assert torch.allclose(shares(1.0, 99), chances, atol=0.015), "more than there are: all"


def test_the_same_seed_samples_the_same_text() -> None:
    model, prompt, outs = gpt(), tokens_of(2, 5), []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        outs.append(model.generate(prompt, 20))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


def test_generation_stops_when_every_sequence_has_ended() -> None:
    model, prompt = gpt(), tokens_of(2, 5)
    free = model.generate(prompt, 12, temperature=0)
    eos = int(free[0, 6])
    assert eos != free[0, 5], "it is the second new token of the first sequence"
    assert eos not in free[1, 5:7], "and the other sequence goes on longer"
    alone = model.generate(prompt[:1], 12, temperature=0, eos_token_id=eos)
    assert torch.equal(alone, free[:1, :7])
    both = model.generate(prompt, 12, temperature=0, eos_token_id=eos)
    assert (both[0, 6:] == eos).all(), "an ended sequence goes on with the end"
    ends = (free[1, 5:] == eos).nonzero()
    assert both.shape[1] == (5 + int(ends[0]) + 1 if len(ends) else 17)
    assert torch.equal(both[1], free[1, : both.shape[1]])


def test_generation_sees_the_last_context_only_and_may_go_past_it() -> None:
    model, prompt = gpt(), tokens_of(1, 50)  # the context is 32
    out = model.generate(prompt, 5, temperature=0)
    assert torch.equal(out[:, :50], prompt)
    assert torch.equal(out[:, 50:], model.generate(prompt[:, -32:], 5, temperature=0)[:, 32:])


def test_no_new_tokens_leave_the_prompt() -> None:
    prompt = tokens_of(1, 5)
    assert torch.equal(gpt().generate(prompt, 0), prompt)


# counts and initialisation


@pytest.mark.parametrize(
    "chosen", list(itertools.product([False, True], [False, True], ["learned", "rotary"])), ids=str
)
def test_parameter_groups_add_up(chosen: tuple[int, int, str]) -> None:
    tie, bias, positions = bool(chosen[0]), bool(chosen[1]), chosen[2]
    model = gpt(tie_embeddings=tie, bias=bias, positions=positions, activation="swiglu")
    groups = model.count_parameters()
    total = groups.pop("total")
    assert sum(groups.values()) == total == sum(p.numel() for p in model.parameters())
    assert set(groups) == {"embedding", "positions", "attention", "mlp", "norms", "head"}
    assert groups["head"] == (0 if tie else V * 16)
    assert groups["attention"] == 2 * (4 * 16 * 16 + (4 * 16 if bias else 0))


def test_a_tied_head_is_the_embedding() -> None:
    model = gpt(tie_embeddings=True)
    assert model.head.weight is model.embedding.weight


def test_matrices_keep_variance_and_residual_outputs_shrink_with_depth() -> None:
    model = gpt(d_model=256, n_layers=8, bias=True)
    block = model.blocks[0]
    assert float(block.attention.qkv.weight.detach().std()) == pytest.approx(256**-0.5, rel=0.05)
    assert float(block.attention.out.weight.detach().std()) == pytest.approx(256**-0.5 / 4, rel=0.05)
    assert float(block.mlp.out.weight.detach().std()) == pytest.approx(1024**-0.5 / 4, rel=0.05)
    assert not block.mlp.into.bias.any()
    assert (block.attention_norm.weight == 1).all()
