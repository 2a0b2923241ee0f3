"""Rounding of weights: the grid of a reference, what is rounded and what is not, and what it costs in loss."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.text import write_text
from helpers.trials import make_trial, model_config, trial_config
from tinyscale.measurements.quantize import linear_layers, matrices, measure, model_bits, round_model
from tinyscale.measurements.subject import Subject
from tinyscale.spec.data_config import DataConfig
from tinyscale.spec.measurement import Quantize
from tinyscale.spec.trial import Trial
from tinyscale.storage import Folder
from tinyscale.training.loop import WEIGHTS, train
from tinyscale.training.model import GPT
from tinyscale.training.rounding import rounded, scale_of

SHAPES: dict[str, dict[str, Any]] = {
    "learned positions": {"bias": True},
    "tied": {"tie_embeddings": True},
    "llama": {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu"},
    "mup": {"parametrization": "mup"},
    "completep": {"parametrization": "completep", "tie_embeddings": True},
}


def trained_subject(data: DataConfig, folder: Path, **changes: Any) -> Subject:
    """A trial, trained for seconds."""
    trial, corpus = make_trial(trial_config(data, **changes))
    checkpoints = Folder.at(folder)
    train(trial, corpus, lambda _: None, checkpoints=checkpoints)
    gpt = GPT(trial.config.model, trial.vocab_size)
    gpt.load_state_dict(torch.load(io.BytesIO(checkpoints.read(WEIGHTS)), weights_only=True))
    return Subject(trial, gpt.eval(), corpus)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A model that has learned most of what there is in its text."""
    folder = tmp_path_factory.mktemp("quantize")
    write_text(folder / "words.txt", 60_000)
    text = {"corpus": str(folder / "words.txt"), "tokenizer": {"kind": "byte"}, "val_bytes": 50_000}
    data = DataConfig.model_validate(text)
    budget = {"tokens_budget": 400 * 512, "batch_tokens": 512, "eval_points": 1}
    return trained_subject(data, folder / "weights", d_model=24, n_heads=3, **budget)


@pytest.fixture(scope="module")
def shaped(tiny_corpus: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Subject]:
    """A model of each of SHAPES, hardly trained."""
    made: dict[str, Subject] = {}

    def make(name: str) -> Subject:
        if name not in made:
            made[name] = trained_subject(tiny_corpus, tmp_path_factory.mktemp("shape"), **SHAPES[name])
        return made[name]

    return make


def by_torchao(gpt: GPT, bits: int) -> GPT:
    """The model with its embeddings and linear layers rounded by torchao, and back in floats."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # its import says which of its parts for GPUs cannot be loaded
        from torchao.quantization import IntxWeightOnlyConfig, PerAxis, quantize_
        from torchao.quantization.quant_primitives import MappingType

        config = IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, f"int{bits}"),
            granularity=PerAxis(0),
            mapping_type=MappingType.SYMMETRIC_NO_CLIPPING_ERR,
        )
        theirs = copy.deepcopy(gpt)
        quantize_(theirs, config, lambda module, _: isinstance(module, nn.Linear | nn.Embedding))
    for module in theirs.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight = nn.Parameter(module.weight.dequantize(), requires_grad=False)
    return theirs


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounded_weights_are_those_of_torchao_in_every_element(subject: Subject, bits: int) -> None:
    ours = copy.deepcopy(subject.gpt)
    round_model(ours, Quantize(bits=bits), subject)
    theirs = by_torchao(subject.gpt, bits).state_dict()
    assert set(theirs) == set(ours.state_dict())
    for name, matrix in ours.state_dict().items():
        assert torch.equal(matrix, theirs[name]), name


@pytest.mark.parametrize("of", ["all", "blocks"])
@pytest.mark.parametrize("method", ["nearest", "gptq"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_matrix_asked_for_is_on_its_grid_and_nothing_else_moves(
    shaped: Callable[[str], Subject], name: str, method: Any, of: Any
) -> None:
    subject, asked = shaped(name), Quantize(bits=3, method=method, of=of)
    gpt = copy.deepcopy(subject.gpt)
    round_model(gpt, asked, subject)
    before = dict(subject.gpt.named_parameters())
    asked_for = {each for each in before if before[each].ndim == 2 and (of == "all" or each.startswith("blocks."))}
    assert len(matrices(gpt, of)) == len(asked_for)
    for each, parameter in gpt.named_parameters():
        assert torch.equal(parameter, before[each]) == (each not in asked_for), each
        if each in asked_for:
            assert all(len(row.unique()) <= 2**3 for row in parameter), each
    tied = subject.gpt.config.tie_embeddings
    assert (gpt.head.weight is gpt.embedding.weight) == tied
    assert (gpt.positions is not None) == any(each.startswith("positions") for each in before)


@pytest.mark.parametrize("method", ["nearest", "gptq"])
def test_a_group_of_a_row_has_a_grid_of_its_own(subject: Subject, method: Any) -> None:
    gpt = copy.deepcopy(subject.gpt)
    round_model(gpt, Quantize(bits=2, group=8, method=method), subject)
    for matrix in matrices(gpt, "all"):
        assert all(len(group.unique()) <= 4 for group in matrix.reshape(-1, 8))
    assert any(len(row.unique()) > 4 for row in gpt.head.weight)


def test_the_scale_is_the_smallest_that_clips_nothing() -> None:
    rows = torch.tensor([[-8.0, 0.0, 7.0], [-1.0, 0.5, 14.0], [-16.0, 1.0, 3.0], [0.0, 0.0, 0.0]])
    assert scale_of(rows, 4).flatten().tolist() == [1.0, 2.0, 2.0, 1.0]
    assert rounded(rows, 4)[3].eq(0).all()
    assert (rounded(rows, 4) - rows).abs().max() <= 1.0


def packed(gpt: GPT, asked: Quantize) -> bytes:
    """The model as a file could hold it: the codes of all rounded weights as one stream of bits, then the rest."""
    chosen, codes, plain = {id(each) for each in matrices(gpt, asked.of)}, [], []
    for parameter in gpt.parameters():
        if id(parameter) not in chosen:
            plain.append(parameter.detach().numpy().tobytes())
            continue
        groups = parameter.detach().reshape(-1, asked.group or parameter.shape[1])
        scale = scale_of(groups, asked.bits)
        whole = (groups / scale).round().long().flatten().numpy() + 2 ** (asked.bits - 1)
        codes.append((whole[:, None] >> np.arange(asked.bits)) & 1)
        plain.append(scale.half().numpy().tobytes())
    return np.packbits(np.concatenate([each.ravel() for each in codes]).astype(bool)).tobytes() + b"".join(plain)


@pytest.mark.parametrize("name", ["learned positions", "tied", "llama"])
@pytest.mark.parametrize("asked", [{"bits": 5}, {"bits": 3, "group": 4}, {"bits": 4, "of": "blocks"}], ids=str)
def test_model_bits_are_those_of_a_packed_file(
    shaped: Callable[[str], Subject], tmp_path: Path, name: str, asked: dict[str, Any]
) -> None:
    question, gpt = Quantize(**asked), shaped(name).gpt
    path = tmp_path / "model.bin"
    path.write_bytes(packed(gpt, question))
    assert path.stat().st_size == -(-model_bits(gpt, question) // 8)


def test_model_bits_by_hand() -> None:
    gpt = GPT(model_config(d_model=6, n_layers=1, n_heads=1, positions="rotary", tie_embeddings=True), 10)
    matrices_of_block = 6 * 18 + 6 * 6 + 2 * 6 * 24  # qkv, out, and the MLP
    rows, vectors = 18 + 6 + 24 + 6, 3 * 6
    norms = sum(p.numel() for p in gpt.parameters() if p.ndim == 1)
    assert norms >= vectors
    assert model_bits(gpt, Quantize(bits=4)) == 4 * (60 + matrices_of_block) + 16 * (10 + rows) + 32 * norms


def test_sixteen_bits_change_nothing(subject: Subject) -> None:
    (row,) = measure(subject, Quantize(bits=16))
    assert 0 < abs(row["delta"]) < 1e-6
    assert row["loss"] == pytest.approx(row["unchanged_loss"], abs=1e-6)


def test_the_unchanged_model_is_no_worse_than_itself(subject: Subject) -> None:
    scored = subject.scored(copy.deepcopy(subject.gpt))
    assert (scored["delta"], scored["delta_se"]) == (0.0, 0.0)


def test_the_loss_rises_four_times_less_with_each_bit_more(subject: Subject) -> None:
    """Where it is quadratic in the error. The slope of this validation text in the weights, which is not quite zero,
    adds a term of either sign that falls by two alone; the mean of an error and its mirror image is without it.
    """
    bits = np.arange(6, 11)
    delta = np.array([np.mean(both_ways(subject, int(each))) for each in bits])
    assert (delta > 0).all()
    falls = delta[:-1] / delta[1:]
    assert np.exp(np.log(falls).mean()) == pytest.approx(4, rel=0.1)
    assert falls == pytest.approx(np.full(4, 4.0), rel=0.3)


def both_ways(subject: Subject, bits: int) -> tuple[float, float]:
    """What rounding adds to the loss, and what the opposite change of each weight adds."""
    gpt, mirrored = copy.deepcopy(subject.gpt), copy.deepcopy(subject.gpt)
    round_model(gpt, Quantize(bits=bits), subject)
    with torch.no_grad():
        for weight, changed in zip(mirrored.parameters(), gpt.parameters(), strict=True):
            weight.add_(weight - changed)
    return subject.scored(gpt)["delta"], subject.scored(mirrored)["delta"]


def test_gptq_is_better_than_nearest_where_bits_are_few(subject: Subject) -> None:
    for of in ("all", "blocks"):
        nearest, gptq = (measure(subject, Quantize(bits=3, method=m, of=of))[0] for m in ("nearest", "gptq"))
        assert 0 < gptq["delta"] < nearest["delta"]
        assert gptq["model_bits"] == nearest["model_bits"]


def test_gptq_rounds_the_layers_of_a_block_and_then_the_head(subject: Subject) -> None:
    (layers, *_) = linear_layers(subject.gpt, "blocks")
    assert [layer.in_features for layer in layers] == [24, 24, 24, 96]
    assert linear_layers(subject.gpt, "all")[-1] == [subject.gpt.head]


@pytest.mark.parametrize("method", ["nearest", "gptq"])
def test_the_model_is_left_as_it_was(subject: Subject, method: Any) -> None:
    before = {name: value.clone() for name, value in subject.gpt.state_dict().items()}
    first, again = (measure(subject, Quantize(bits=2, method=method)) for _ in range(2))
    assert first == again
    assert all(torch.equal(value, before[name]) for name, value in subject.gpt.state_dict().items())
    assert not any(module._forward_pre_hooks for module in subject.gpt.modules())


def test_a_group_that_divides_no_row_is_refused(subject: Subject) -> None:
    trial: Trial = subject.trial
    assert Quantize(bits=4, group=8).refusal(trial) is None
    assert "group = 32 does not divide d_model = 24" in str(Quantize(bits=4, group=32).refusal(trial))
