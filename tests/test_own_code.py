"""A user's own model and optimizer: known by their hash, checked before anything trains, and run as what was hashed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.launches import RAY_WARNS, planned, run
from helpers.own_code import (
    BUILT_IN,
    CAUSAL,
    CONVOLUTIONS,
    NANO,
    NOTHING,
    convolutions,
    counted,
    losses,
    own_trial,
    refused,
)
from helpers.programs import invoke
from helpers.sweeps import write_sweep
from helpers.trials import known_trial, model_config, train_config, trial_config
from tinyscale.analysis.runs import by_setting, read_groups
from tinyscale.data import prepare
from tinyscale.errors import ConfigError, ResultsError
from tinyscale.inference.export import export
from tinyscale.inference.trained import load_gpt, load_trained, sample
from tinyscale.planning.transfer import check_transfer
from tinyscale.results.schema import point_columns, trial_columns
from tinyscale.results.store import Results, read_results
from tinyscale.results.sweep_record import SweepEntry, SweepRecord
from tinyscale.spec.cell import Cell
from tinyscale.spec.code import Code, read_code
from tinyscale.spec.costs import flops_per_token, parameters
from tinyscale.spec.data_config import DataConfig
from tinyscale.spec.measurement import Ablate, Induction, Memory, Quantize, Question
from tinyscale.spec.sweep import load_sweep
from tinyscale.spec.trial import Own, Trial, resolve
from tinyscale.storage import Folder
from tinyscale.training.batched import start_runs
from tinyscale.training.own import named_in
from tinyscale.training.own_checks import OptimizerCheck, Reported

pytestmark = RAY_WARNS

HEAVY_BALL = """\
import torch

def build(named_parameters, config):
    parameters = [parameter for _, parameter in named_parameters]
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.optimizer.settings["momentum"])
"""


# the files and their hash


def test_the_local_files_that_a_file_imports_belong_to_it_and_no_others(tmp_path: Path) -> None:
    for path, text in {
        "mine.py": "import math, torch\nfrom layers import causal\nimport helper\nfrom tinyscale import errors\n",
        "layers/__init__.py": "",
        "layers/causal.py": "from .deep import x\nfrom . import other\n",
        "layers/deep.py": "x = 1\n",
        "layers/other.py": "",
        "helper.py": "import numpy\n",
        "unused.py": "",
        "math.py": "raise ImportError('never')\n",
        "tinyscale/errors.py": "raise ImportError('never')\n",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    code = read_code(tmp_path / "mine.py")
    assert code.name == "mine.py"
    expected = {"helper.py", "layers/__init__.py", "layers/causal.py", "layers/deep.py", "layers/other.py"}
    assert set(code.files[1:]) == expected


def test_the_hash_follows_the_text_of_all_files_and_not_where_they_lie(tmp_path: Path) -> None:
    def written(folder: str, name: str, helper: str) -> Code:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "helper.py").write_text(helper)
        (tmp_path / folder / name).write_text("import helper\n")
        return read_code(tmp_path / folder / name)

    first = written("a", "mine.py", "x = 1\n")
    assert written("b", "renamed.py", "x = 1\n").hash == first.hash
    assert written("c", "mine.py", "x = 2\n").hash != first.hash


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", r"mine\.py, line 1: not Python: invalid syntax"),
        ("x = 1\ndef f():\n    import helper\n", r"mine\.py, line 3: imports helper inside a function"),
    ],
)
def test_a_file_that_cannot_be_read_as_code_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_code(tmp_path / "mine.py")


def test_the_identity_holds_the_hash_and_the_settings_and_not_the_path(tiny_corpus: DataConfig) -> None:
    def identity(text: str, path: str = "x.py", **extra: Any) -> str:
        own = Own(Code.of({"x.py": text}), NOTHING)
        config = trial_config(tiny_corpus, code=path, extra=extra)
        return resolve(config, prepare(tiny_corpus).facts, own=own).identity

    assert identity("a") == identity("a", path="/elsewhere/y.py")
    others = {identity("a"), identity("b"), identity("a", window=16), identity("a", window=32)}
    assert len(others) == 4
    assert identity("a", window=16) == identity("a", window=16.0)


def test_a_trial_keeps_its_code_as_json_and_in_the_results_by_its_hash(
    tiny_corpus: DataConfig, results: Results
) -> None:
    trial = own_trial(tiny_corpus, Own(convolutions(), NOTHING), extra={"window": 4})
    assert Trial.of_json(json.loads(json.dumps(trial.as_json()))).own.model.sources == trial.own.model.sources  # type: ignore[union-attr]
    results.keep_code(convolutions())
    results.write_trial(trial, [], "failed", "no reason", {})
    loaded = results.load_trial(trial.identity)
    assert loaded == trial
    assert loaded.own.model is not None
    assert not loaded.own.model.sources, "the copy in code/ is the one"
    assert results.read_code(loaded.own.model).sources == convolutions().sources
    kept = Path(results.location) / "code" / convolutions().hash
    assert (kept / "layers" / "causal.py").read_text() == CAUSAL
    (kept / "my_conv.py").write_text("")
    with pytest.raises(ResultsError, match=r"the copy of my_conv\.py was changed"):
        results.read_code(loaded.own.model)


def test_the_code_and_its_settings_are_columns(tiny_corpus: DataConfig) -> None:
    own = Own(convolutions(), NOTHING, Code.of({"ball.py": HEAVY_BALL}))
    ball = {"code": "ball.py", "momentum": 0.5}
    row = trial_columns(own_trial(tiny_corpus, own, extra={"window": 4}, optimizer=ball))
    assert (row["code"], row["extra"]) == (convolutions().hash, '{"window": 4}')
    assert (row["optimizer"], row["optimizer_settings"]) == ("ball.py", '{"momentum": 0.5}')
    assert row["kv_cache_per_token"] is None


def test_settings_of_an_own_optimizer_are_kept_apart_by_the_analysis(tiny_corpus: DataConfig, results: Results) -> None:
    trials = [
        own_trial(
            tiny_corpus,
            Own(optimizer=Code.of({"ball.py": HEAVY_BALL})),
            optimizer={"code": "ball.py", "momentum": momentum},
            n_layers=layers,
        )
        for momentum in (0.5, 0.9)
        for layers in (2, 3)
    ]
    for trial in trials:
        point = {"step": trial.steps, "tokens": trial.tokens, "val_loss": 3.0, "decayed": True}
        results.write_trial(trial, [point_columns(trial, point, 100_000, 400_000)], "finished", None, {})
    entries = tuple(SweepEntry(trial.identity, Cell("base", {}, 0)) for trial in trials)
    results.write_sweep(SweepRecord("all", "", "", (), entries, {}))
    (group,) = read_groups(results.location)
    assert [part.frame["optimizer_settings"].nunique() for part in by_setting(group)] == [1, 1]


# what a sweep file says


def test_settings_of_own_code_are_axes_and_arms_change_the_optimizer_as_a_whole(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    path.write_text(
        path.read_text().replace("lr: 1e-2", "lr: 1e-2, optimizer: {code: ball.py, momentum: 0.5}")
        + "arms:\n  base: {train.optimizer: lion}\n  mine: {model.code: my.py, model.extra.window: [2, 4]}\n"
        + "  ball: {train.optimizer.momentum: [0.8, 0.9]}\n"
    )
    variants = load_sweep(path, select=["d_model=8"]).variants
    assert [(variant.cell.arm, variant.cell.axes) for variant in variants] == [
        ("base", {"d_model": 8}),
        *(("mine", {"d_model": 8, "window": window}) for window in (2, 4)),
        *(("ball", {"d_model": 8, "momentum": momentum}) for momentum in (0.8, 0.9)),
    ]
    assert variants[0].config.train.optimizer == "lion"
    assert variants[1].config.model.code == str(tmp_path / "my.py")
    assert [dict(variant.config.model.extra) for variant in variants[1:3]] == [{"window": 2}, {"window": 4}]
    assert [variant.config.train.optimizer.settings for variant in variants[3:]] == [  # type: ignore[union-attr]
        {"momentum": 0.8},
        {"momentum": 0.9},
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("arms: {a: {model.extra: {window: 3}}}", "extra holds settings of code of your own: give model.code"),
        ("arms: {a: {model.code: my.py, model.extra.window: {x: 1}}}", "it should be a number, a text, true or false"),
        (
            "arms: {a: {model.code: my.py, parametrization: completep}}",
            "completep has rules for the blocks of the",
        ),
        ("arms: {a: {model.code: my.py, train.optimizer: muon}}", "muon is for the matrices of the built-in GPT's"),
        ("arms: {a: {model.code: my.py, train.weight_bits: 4}}", "only the built-in GPT rounds its blocks"),
        ("arms: {a: {model.code: my.py, resources.compile: true}}", "code of your own runs eagerly"),
        ("arms: {a: {train.optimizer: {momentum: 0.9}}}", "name a Python file"),
        ("arms: {a: {train.optimizer: lion, train.optimizer.momentum: 1}}", "a setting of an optimizer of your own"),
        ("arms: {a: {model.code: my.py}}\nfuse: [seed]", r"model.code = '.*my.py' cannot be fused"),
        ("arms: {a: {train.optimizer: {code: my.py}}}\nfuse: [seed]", "train.optimizer = 'my.py' cannot be fused"),
    ],
)
def test_what_own_code_cannot_have_is_refused_with_the_line(tmp_path: Path, more: str, message: str) -> None:
    path = write_sweep(tmp_path)
    path.write_text(f"{path.read_text()}{more}\n")
    with pytest.raises(ConfigError, match=rf"small\.yaml, line \d+: .*{message}"):
        load_sweep(path)


# the checks


def test_a_model_that_is_the_built_in_one_counts_as_its_formulas_say() -> None:
    for changes in ({}, {"positions": "rotary", "activation": "swiglu", "norm": "rmsnorm"}, {"tie_embeddings": True}):
        found, config = counted(Code.of({"x.py": BUILT_IN}), **changes), model_config(**changes)
        assert found.parameters == parameters(config, 257)
        assert found.flops == flops_per_token(config, 257)["flops"]


def test_parameters_of_other_models_are_counted_by_group() -> None:
    nano = counted(Code.of({"x.py": NANO})).parameters
    per_block = 12 * 16**2 + (3 + 1 + 4 + 1) * 16 + 4 * 16
    assert (nano.n_embedding, nano.n_lm_head) == (257 * 16 + 32 * 16, 0), "a tied head counts once"
    assert (nano.n_non_embedding, nano.n_positions) == (2 * per_block + 2 * 16, 32 * 16)
    conv = counted(convolutions(), extra={"window": 4})
    assert conv.parameters.n_non_embedding == 2 * (4 * 16**2 + 16)
    assert conv.parameters.n_lm_head == 257 * 17
    assert conv.flops == pytest.approx(6 * conv.parameters.n_matmul, rel=0.2), "convolutions see padding as well"


PLAIN = """\
import torch, torch.nn as nn
class Model(nn.Module):
    def __init__(self, config, vocab_size):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.head = nn.Linear(config.d_model, vocab_size)
        nn.init.normal_(self.head.weight, std=0.02)
    def forward(self, tokens):
        x = self.embedding(tokens)
        return self.head(x)
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tokens)\n        return", "tokens)\n        x = x + 1e-3 * x.roll(-1, 1)\n        return",
         r"x\.py, line 8: a later token changes an earlier logit: with another token at \d+"),
        ("tokens)\n        return", "tokens)\n        x = torch.cat([x[:, :20], x[:, 20:21] + x[:, 21:22], x[:, 21:]], "
         "1)\n        return", r"line 8: .* with another token at 21, the logits at 20 differ"),
        ("tokens)\n        return", "tokens)\n        x = x + 1e-3 * x.mean(1, keepdim=True)\n        return",
         r"x\.py, line 8: a later token changes an earlier logit: with another token at 1, the logits at 0 differ"),
        ("return self.head(x)", "return self.head(x)[:, 1:]", r"x\.py, line 8: for tokens \(2, 32\), logits are"),
        ("return self.head(x)", "return self.head(x).argmax(-1)", r"line 8: .* expected \(2, 32, 257\)"),
        ("return self.head(x)", "return self.head(x), 3", r"line 8: beside logits, forward may return one loss"),
        ("return self.head(x)", "return self.heads(x)", r"x\.py, line 10: AttributeError: .*'heads'; expected class"),
        ("self, config, vocab_size", "self, config", r"x\.py: TypeError: .*__init__.*; expected class Model"),
        ("std=0.02", "std=2.0", r"x\.py, line 3: the untrained loss is .*; expected about ln V = 5\.55"),
        ("std=0.02)", "std=0.02)\n        self.noise = nn.Parameter(torch.empty(3).exponential_(generator="
         "torch.Generator().manual_seed(__import__('time').time_ns() % 2**31)))",
         r"x\.py, line 3: the same seed gives other weights in noise"),
        ("class Model(", "class Modell(", r"x\.py: defines no Model; it should define a class Model\(nn\.Module\)"),
        ("import torch, ", "import torch, nowhere_to_be_found, ", r"x\.py, line 1: ModuleNotFoundError"),
        ("super().__init__()", "raise SystemExit(3)", r"x\.py, line 4: SystemExit: 3"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_used_is_refused_with_file_line_and_what_is_expected(
    old: str, new: str, message: str
) -> None:
    assert PLAIN.count(old) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(refused({"x.py": PLAIN.replace(old, new)}))


def test_a_leak_that_the_first_weights_hide_is_found() -> None:
    hidden = PLAIN.replace("std=0.02", "std=0.0").replace("(tokens)\n", "(tokens)\n        x = x + x.flip(1)\n")
    assert "a later token changes an earlier logit" in refused({"x.py": hidden})


STILL = """\
import torch
class Still(torch.optim.SGD):
    def step(self, closure=None):
        pass
def build(named, config):
    return Still([weight for _, weight in named], lr=0.1)
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def build(named, config):\n    return 3\n", "build returns a int; it should be a torch.optim.Optimizer"),
        (HEAVY_BALL.replace("lr=config.lr", "lr=config.rate"), "ball.py, line 5: AttributeError"),
        (HEAVY_BALL.replace("= [", "= [torch.zeros(1, requires_grad=True)] or ["), "ball.py: the optimizer has 0 of "),
        (STILL, "a step of the optimizer moves no weight"),
    ],
)
def test_an_optimizer_that_cannot_be_used_is_refused(text: str, message: str) -> None:
    train_ = train_config(optimizer={"code": "ball.py", "momentum": 0.9})
    said: list[dict[str, Any]] = []
    with Reported(said.append, check := OptimizerCheck(Code.of({"ball.py": text}), train_, None, model_config(), 257)):
        check.run()
    assert message in said[0]["wrong"]


def test_the_coordinate_check_is_for_the_built_in_model_alone(tmp_path: Path, results: Results) -> None:
    path = write_sweep(tmp_path)
    path.write_text(f"{path.read_text()}arms: {{a: {{model.code: my.py}}}}\n")
    with pytest.raises(ConfigError, match=r"small\.yaml, line \d+: a d_model=8: what a step moves is measured"):
        check_transfer(load_sweep(path), results)


# training


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16", "schedule": "wsd", "branches": [0.5]}], ids=str)
def test_the_built_in_model_given_as_a_file_has_its_losses_bit_for_bit(
    tiny_corpus: DataConfig, changes: dict[str, Any]
) -> None:
    corpus = prepare(tiny_corpus)
    built_in = resolve(trial_config(tiny_corpus, **changes), corpus.facts)
    own = own_trial(tiny_corpus, Own(Code.of({"x.py": BUILT_IN}), NOTHING), **changes)
    assert own.identity != built_in.identity
    assert losses(own) == losses(built_in)


@pytest.mark.parametrize(
    ("code", "extra"),
    [(Code.of({"x.py": NANO}), {"dropout": 0.1}), (convolutions(), {"window": 4})],
    ids=["nano with dropout", "convolutions"],
)
def test_other_models_learn_and_go_on_bit_for_bit_after_an_interruption(
    tiny_corpus: DataConfig, tmp_path: Path, code: Code, extra: dict[str, Any]
) -> None:
    trial = own_trial(tiny_corpus, Own(code, counted(code, extra=extra)), extra=extra)
    whole, folder = losses(trial), Folder.at(tmp_path)
    losses(trial, checkpoints=folder, should_stop=lambda step: step == 11)
    torch.rand(3)
    assert losses(trial, checkpoints=folder) == whole
    assert whole[-1][0] < whole[0][0] < math.log(257)


def test_a_models_own_loss_is_trained_on_and_no_part_of_the_validation_loss(tiny_corpus: DataConfig) -> None:
    def first(penalty: str) -> tuple[float, float]:
        text = PLAIN.replace("return self.head(x)", f"return self.head(x), {penalty}")
        trial = own_trial(tiny_corpus, Own(Code.of({"x.py": text}), NOTHING), lr=1e-9)
        return losses(trial)[0]

    (val, loss), (same, more) = first("torch.tensor(0.0)"), first("torch.tensor(7.0)")
    assert same == pytest.approx(val, abs=1e-6)
    assert more == pytest.approx(loss + 7, abs=1e-4)


def test_an_own_optimizer_follows_our_schedule_and_clipping_and_its_groups_scale(tiny_corpus: DataConfig) -> None:
    text = """
import torch
RATES = []
class Watched(torch.optim.SGD):
    def step(self, closure=None):
        norm = sum(float(p.grad.square().sum()) for g in self.param_groups for p in g["params"]) ** 0.5
        RATES.append((*(g["lr"] for g in self.param_groups), norm))
def build(named_parameters, config):
    first, *others = [parameter for _, parameter in named_parameters]
    return Watched([{"params": [first], "scale": 0.5}, {"params": others}], lr=config.lr)
"""
    code = Code.of({"watched.py": text})
    trial = own_trial(tiny_corpus, Own(optimizer=code), optimizer={"code": "watched.py"}, grad_clip=0.01)
    losses(trial)
    rates = named_in(code, "RATES")
    assert len(rates) == trial.steps
    assert max(rate for _, rate, _ in rates) == trial.config.train.lr
    assert all(half == pytest.approx(rate / 2) for half, rate, _ in rates)
    assert all(norm == pytest.approx(0.01, rel=1e-3) for *_, norm in rates)


def test_two_codes_whose_helpers_have_one_name_do_not_meet_in_one_process(tiny_corpus: DataConfig) -> None:
    gelu, relu = (
        Code.of({"x.py": CONVOLUTIONS, "layers/causal.py": CAUSAL.replace("gelu", name)}) for name in ("gelu", "relu")
    )
    one, other = (own_trial(tiny_corpus, Own(code, NOTHING), extra={"window": 2}) for code in (gelu, relu))
    first = losses(one)
    assert losses(other) != first
    assert losses(one) == first


def test_several_trials_of_own_code_are_not_trained_as_one_batched_model(tiny_corpus: DataConfig) -> None:
    trial = own_trial(tiny_corpus, Own(convolutions(), NOTHING), extra={"window": 2})
    with pytest.raises(ConfigError, match="a batched model runs no code of your own"):
        start_runs([trial, trial], prepare(tiny_corpus), [None, None])


# planning, launching and what follows


def test_questions_to_parts_of_the_gpt_are_refused_of_other_models(tiny_corpus: DataConfig) -> None:
    trial = own_trial(tiny_corpus, Own(convolutions(), NOTHING), extra={"window": 2})
    asked = {
        "induction": Induction(period=16),
        "ablate": Ablate(),
        "memory": Memory(),
        "quantize": Quantize(bits=4, of="blocks"),
    }
    refusals = {kind: Question(kind, fields).refusal(trial) for kind, fields in asked.items()}
    assert all("my_conv.py" in str(reason) for reason in refusals.values()), refusals
    assert Question("quantize", Quantize(bits=4)).refusal(trial) is None
    assert Question("ablate", Ablate()).refusal(known_trial()) is None


def with_arms(folder: Path, **files: str) -> Path:
    path = write_sweep(folder, widths="[8]")
    path.write_text(f"{path.read_text()}arms: {{base: {{}}, mine: {{model.code: my_gpt.py}}}}\n")
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return path


@pytest.mark.slow
def test_planning_checks_each_shape_once_and_says_where_a_broken_file_was_named(
    tmp_path: Path, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYSCALE_CACHE", str(tmp_path / "cache"))
    path = with_arms(tmp_path, my_gpt=NANO)
    _, mine = planned(path, results).trials
    assert mine.trial.parameters.n_embedding == mine.trial.vocab_size * 8 + 32 * 8
    monkeypatch.setattr("subprocess.run", None)  # what passed is not checked again
    assert planned(path, results).trials[1].trial == mine.trial
    monkeypatch.undo()
    (tmp_path / "my_gpt.py").write_text(PLAIN.replace("self.head(x)", "self.head(x)[:, 1:]"))
    with pytest.raises(ConfigError, match=r"small\.yaml, line \d+: mine d_model=8: my_gpt\.py, line 8: for tokens"):
        planned(path, results)
    (tmp_path / "my_gpt.py").write_text("import os\nos._exit(7)\n")
    with pytest.raises(ConfigError, match=r"my_gpt\.py: its check ended with exit code 7"):
        planned(path, results)
    (tmp_path / "my_gpt.py").unlink()
    with pytest.raises(ConfigError, match=r"mine d_model=8: .*my_gpt\.py: no such file"):
        planned(path, results)


@pytest.mark.slow
def test_a_launch_keeps_the_code_that_later_commands_run_and_other_code_is_another_trial(
    tmp_path: Path, cluster: Any
) -> None:
    path, results = with_arms(tmp_path, my_gpt=BUILT_IN), Results(str(tmp_path / "results"))
    path.write_text(f"{path.read_text()}measure: {{quantize: {{bits: 4}}}}\n")
    plan = planned(path, results)
    base, mine = (each.trial for each in plan.trials)
    run(plan, results, cluster)
    rows = read_results(results.location, final=True).set_index("trial")
    assert rows.loc[mine.identity, "val_loss"] == rows.loc[base.identity, "val_loss"]
    assert rows.loc[mine.identity, "code"] == read_code(tmp_path / "my_gpt.py").hash
    assert len(results.measured(mine.identity)) == 1
    (tmp_path / "my_gpt.py").write_text("# tomorrow\n" + BUILT_IN)
    trained = load_trained(results, mine.identity)
    assert sample(trained, "a", 5, temperature=0, top_k=None, seed=0)
    assert set(load_gpt(results, results.load_trial(mine.identity)).state_dict())
    with pytest.raises(ResultsError, match="a model of your own, which transformers does not have"):
        export(trained, tmp_path / "exported")
    again = planned(path, results)
    assert [(each.state, each.reason) for each in again.trials][1] == ("changed", "changed: my_gpt.py")
    shown = invoke("plan", path, "--results", results.location)
    assert "changed: my_gpt.py" in shown.output
