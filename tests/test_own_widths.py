"""A user's own model under mup: what follows the width, its learning rates, and the check that says where it fails."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from helpers.launches import planned
from helpers.own_code import BUILT_IN, CAUSAL, CONVOLUTIONS, NANO, counted, losses, own_trial, refused
from helpers.sweeps import write_sweep
from helpers.trials import model_config, trial_config
from tinyscale.data import prepare
from tinyscale.errors import ConfigError
from tinyscale.results.store import Results
from tinyscale.spec.code import Code
from tinyscale.spec.costs import Counted
from tinyscale.spec.data_config import DataConfig
from tinyscale.spec.trial import Own, resolve
from tinyscale.storage import Folder
from tinyscale.training.optim import build_optimizer
from tinyscale.training.own import OwnModel, build_model, named_in
from tinyscale.training.own_widths import names_that_sum, two_widths

ROOT = Path(__file__).parents[1]
TIE = "        self.head.weight = self.wte.weight\n"
BEGIN = """\
    def begin(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens)"""
OF_NANO = NANO[NANO.index("    def begin") : NANO.index("    def forward(self, tokens)")]
HEAD = "        nn.init.normal_(self.head.weight, std=0.02 * 64 / config.d_model)\n"
MINE = (  # nanoGPT's, untied, begun as mup asks
    NANO.replace(OF_NANO, "")
    .replace(TIE, "")
    .replace("    def forward(self, tokens)", BEGIN)
    .replace("self.apply(self.begin)\n", f"self.apply(self.begin)\n{HEAD}")
)
TIED = (  # and tied, with the factor that takes the place of the head's own rate
    MINE.replace(HEAD, f"{TIE}        nn.init.normal_(self.wte.weight, std=0.02)\n")
    .replace("self.apply", "self.factor = 64 / config.d_model\n        self.apply", 1)
    .replace("self.head(self.ln_f(x))", "self.factor * self.head(self.ln_f(x))")
)  # fmt: skip

(SHOWN,) = re.findall(r"^```python\n(def begin.*?)^```", (ROOT / "docs" / "fitting.md").read_text(), re.M | re.S)
GUIDED = NANO.replace(TIE, "").replace("self.apply(self.begin)", "begin(self, config)") + f"\n{SHOWN}"

MIXER = '''\
"""A selective state space in the manner of Mamba, without its scan's speed."""
import torch, torch.nn as nn, torch.nn.functional as F

class Mixer(nn.Module):
    def __init__(self, width, states, rank):
        super().__init__()
        self.sizes = (rank, states, states)
        self.into = nn.Linear(width, 4 * width, bias=False)
        self.conv = nn.Conv1d(2 * width, 2 * width, 4, groups=2 * width)
        self.select = nn.Linear(2 * width, rank + 2 * states, bias=False)
        self.pace = nn.Linear(rank, 2 * width)
        self.decay = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(2 * width, 1))
        self.skip = nn.Parameter(torch.ones(2 * width))
        self.out = nn.Linear(2 * width, width, bias=False)

    def forward(self, x):
        u, gate = self.into(x).chunk(2, -1)
        u = F.silu(self.conv(F.pad(u.transpose(1, 2), (3, 0))).transpose(1, 2))
        pace, into, out = self.select(u).split(self.sizes, -1)
        pace, state, seen = F.softplus(self.pace(pace)), 0, []
        for t in range(x.shape[1]):
            kept = (-pace[:, t, :, None] * self.decay.exp()).exp()
            state = state * kept + (pace[:, t] * u[:, t])[..., None] * into[:, t, None]
            seen.append((state * out[:, t, None]).sum(-1))
        return self.out((torch.stack(seen, 1) + self.skip * u) * F.silu(gate))

class Model(nn.Module):
    def __init__(self, config, vocab_size):
        super().__init__()
        D = config.d_model
        self.embedding, self.norm, self.gate = nn.Embedding(vocab_size, D), nn.RMSNorm(D), nn.Parameter(torch.ones(()))
        self.norms = nn.ModuleList(nn.RMSNorm(D) for _ in range(config.n_layers))
        self.mixers = nn.ModuleList(Mixer(D, 8, 4) for _ in range(config.n_layers))
        self.head = nn.Linear(D, vocab_size, bias=False)
        nn.init.normal_(self.head.weight, std=0.02 * 64 / D)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for norm, mixer in zip(self.norms, self.mixers):
            x = x + self.gate * mixer(norm(x))
        return self.head(self.norm(x))
'''


def code_of(text: str) -> Code:
    return Code.of({"x.py": text})


def convolutions(head: str) -> dict[str, str]:
    """The convolutional model, with this std of the head."""
    return {"my_conv.py": CONVOLUTIONS.replace("std=0.02", f"std={head}"), "layers/causal.py": CAUSAL}


def mup(code: Code, **model: Any) -> Counted:
    return counted(code, parametrization="mup", **model)


def built(code: Code, width: int, **model: Any) -> Any:
    config = model_config(code="x.py", d_model=width, n_heads=width // 8, **model)
    return named_in(code, "Model")(config, 257)


# what sums over the width


@pytest.mark.parametrize(
    ("files", "sums"),
    [
        ({"x.py": MINE}, {"attn.weight", "proj.weight", "mlp.0.weight", "mlp.2.weight", "head.weight"}),
        ({"x.py": TIED}, {"attn.weight", "proj.weight", "mlp.0.weight", "mlp.2.weight"}),
        ({"x.py": MIXER}, {"into.weight", "select.weight", "out.weight", "head.weight"}),
        (convolutions("0.02"), {"conv.weight", "head.weight"}),
    ],
    ids=["nano", "tied", "selective", "convolutions"],
)
def test_what_sums_over_the_width_is_known_by_its_shapes(files: dict[str, str], sums: set[str]) -> None:
    """In Mamba's, neither the depthwise convolution sums over it, nor what reads from a fixed rank, nor the states."""
    code = Code.of(files)
    small, large = (built(code, width, extra={"window": 4}) for width in (32, 64))
    found = names_that_sum(small, large)
    assert {name.split(".", 2)[2] if name[-8:] != "d.weight" else name for name in found} == sums
    per_layer = sums - {"head.weight"}
    assert len(found) == 2 * len(per_layer) + ("head.weight" in sums)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ({"d_model": 16, "n_heads": 2}, (64, 8, None, 256)),
        ({"d_model": 768, "n_heads": 12}, (64, 1, None, 256)),
        ({"d_model": 1024, "n_heads": 8}, (64, 1, None, 256)),
        ({"d_model": 96, "n_heads": 4, "d_ff": 96}, (72, 3, None, 72)),
        ({"d_model": 2048, "n_heads": 32, "n_kv_heads": 8}, (64, 8, None, 256)),
        ({"d_model": 64, "n_heads": 8, "n_kv_heads": 2}, (64, 8, 2, 256)),
    ],
    ids=str,
)
def test_the_widths_of_the_check_are_small_and_keep_what_does_not_follow_the_width(
    shape: dict[str, Any], expected: tuple[int | None, ...]
) -> None:
    narrow, wide = two_widths(model_config(**shape, code="x.py", extra={"window": 4}))
    assert (narrow.d_model, narrow.n_heads, narrow.n_kv_heads, narrow.d_ff) == expected
    assert (wide.d_model, wide.n_heads, wide.d_ff) == tuple(
        4 * x for x in (narrow.d_model, narrow.n_heads, narrow.d_ff)
    )
    assert (wide.kv_heads, wide.head_dim) == (shape.get("n_kv_heads", wide.n_heads), narrow.head_dim)
    assert (wide.n_layers, wide.context_length, dict(wide.extra)) == (2, 32, {"window": 4})


# rates


@pytest.mark.parametrize("width", [32, 64, 256])
@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_the_rate_of_what_sums_over_the_width_is_divided_by_it(width: int, optimizer: str) -> None:
    config = model_config(d_model=width, n_heads=width // 8, parametrization="mup", code="x.py")
    trial = trial_config({"corpus": "nowhere.txt", "tokenizer": {"kind": "byte"}}, optimizer=optimizer)
    found = mup(code_of(MINE))
    model = OwnModel(built(code_of(MINE), width), config, found.summing)
    groups = build_optimizer(model, trial.train, config).param_groups
    scales = {id(weight): group.get("scale", 1.0) for group in groups for weight in group["params"]}
    decays = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
    for name, weight in model.model.named_parameters():
        assert scales[id(weight)] == (64 / width if name in found.summing else 1.0), name
        assert decays[id(weight)] == (0.1 if weight.dim() > 1 else 0.0), name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "lion", "lr": 1e-3, "bias": True, "norm": "rmsnorm", "positions": "rotary"},
        {"precision": "bf16", "activation": "swiglu", "tokens_budget": 5 * 256, "d_model": 128, "n_heads": 4},
    ],
    ids=str,
)
def test_the_built_in_model_given_as_a_file_has_its_losses_under_mup_bit_for_bit(
    tiny_corpus: DataConfig, changes: dict[str, Any]
) -> None:
    changes = {"parametrization": "mup", **changes}
    built_in = resolve(trial_config(tiny_corpus, **changes), prepare(tiny_corpus).facts)
    shape = {name: value for name, value in changes.items() if name in type(built_in.config.model).model_fields}
    own = own_trial(tiny_corpus, Own(code_of(BUILT_IN), counted(code_of(BUILT_IN), **shape)), **changes)
    assert losses(own) == losses(built_in)


def test_training_under_mup_goes_on_bit_for_bit_and_differs_by_its_rates_alone(
    tiny_corpus: DataConfig, tmp_path: Path
) -> None:
    code, at_base = code_of(MINE), {"d_model": 64, "n_heads": 8}
    trial = own_trial(tiny_corpus, Own(code, mup(code)), parametrization="mup")
    whole, folder = losses(trial), Folder.at(tmp_path)
    losses(trial, checkpoints=folder, should_stop=lambda step: step == 11)
    assert losses(trial, checkpoints=folder) == whole
    standard = own_trial(tiny_corpus, Own(code, counted(code)))
    assert losses(standard) != whole
    same = [
        losses(own_trial(tiny_corpus, Own(code, counted(code, **at_base, **of)), **at_base, **of))
        for of in ({"parametrization": "mup"}, {"parametrization": "standard"})
    ]
    assert same[0] == same[1]


def test_building_under_mup_takes_no_random_number_and_the_standard_record_is_as_it_was(
    tiny_corpus: DataConfig,
) -> None:
    states, code = [], code_of(MINE)
    for of in ("mup", "standard"):
        torch.manual_seed(0)
        build_model(own_trial(tiny_corpus, Own(code, counted(code, parametrization=of)), parametrization=of))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert counted(code).as_json().keys() == {"parameters", "flops", "saved"}
    assert Counted.of_json(mup(code).as_json()) == mup(code)


# the check


@pytest.mark.parametrize(
    ("files", "model"),
    [
        ({"x.py": BUILT_IN}, {}),
        ({"x.py": BUILT_IN}, {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bias": True}),
        ({"x.py": BUILT_IN}, {"d_model": 64, "n_heads": 8, "n_kv_heads": 2, "qk_norm": True}),
        ({"x.py": BUILT_IN}, {"n_layers": 4, "d_model": 128, "n_heads": 1}),
        ({"x.py": MINE}, {}),
        ({"x.py": MINE.replace(HEAD, "        nn.init.zeros_(self.head.weight)\n")}, {}),
        ({"x.py": TIED}, {}),
        ({"x.py": GUIDED}, {}),
        ({"x.py": MIXER}, {"n_layers": 1}),
        (convolutions("0.02 * 64 / config.d_model"), {"extra": {"window": 4}}),
    ],
    ids=[
        "built in",
        "other switches",
        "shared keys",
        "deep",
        "nano",
        "zero head",
        "tied",
        "guide",
        "selective",
        "convolutions",
    ],
)
def test_models_that_begin_as_mup_asks_pass(files: dict[str, str], model: dict[str, Any]) -> None:
    assert mup(Code.of(files), **model).summing


STANDARD = BUILT_IN.replace(
    "    def forward",
    "    def __init__(self, config, vocab_size):\n"
    "        config = config.model_copy(update={'parametrization': 'standard'})\n"
    "        super().__init__(config, vocab_size)\n\n    def forward",
)
OWN_LINEAR = """\
class Head(nn.Module):
    def __init__(self, width, vocab_size):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(vocab_size, width))
    def forward(self, x):
        return x @ self.weight.T

class Block("""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NANO, r"x\.py, line 4: .*the untrained output of blocks\.0\.attn grows as d_model\^0\.4"),
        (MINE.replace(HEAD, "        nn.init.normal_(self.head.weight, std=0.02)\n"),
         r"line 22: .*the untrained output of head grows as d_model\^0\.(4|5)"),
        (MINE.replace(HEAD, "        nn.init.normal_(self.head.weight, std=0.2 * config.d_model**-0.5)\n"),
         r"line 22: .*steps of blocks\.0\.mlp\.2\.weight do to the loss grows as d_model\^0\.5\d, and that of head"),
        (STANDARD, r"x\.py, line 3: .*blocks\.0\.mlp\.out\.weight do to the loss grows as .* that of head\.weight"),
        (TIED.replace("64 / config.d_model", "1"), r"line 22: .*the untrained output of head grows as d_model\^0\.5"),
        (MINE.replace("self.head(self.ln_f(x))", "64 / self.ln_f.weight.shape[0] * self.head(self.ln_f(x))"),
         r"line 22: .*the steps of head\.weight do to the loss shrinks as d_model\^-(0\.9|1\.0).*needs no factor"),
        (MINE.replace("nn.Linear(config.d_model, vocab_size, bias=False)", "Head(config.d_model, vocab_size)")
         .replace("class Block(", OWN_LINEAR),
         r"line 4: .*the steps of head\.weight do to the loss grows as d_model\^(0\.9|1\.0).*of an nn\.Linear"),
    ],
    ids=["nanoGPT", "head's std", "head's root", "standard", "tied", "factor twice", "own linear"],
)  # fmt: skip
def test_a_model_whose_steps_follow_the_width_is_refused_with_the_module_and_its_class(text: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(refused({"x.py": text}, parametrization="mup", n_layers=1, d_model=64))
    assert counted(code_of(text), d_model=64).flops, "and serves under the standard parametrization"


def test_what_cannot_be_built_at_the_widths_of_the_check_is_refused_with_them() -> None:
    only = MINE.replace("self.wte =", "assert config.d_model == 16, 'only 16'; self.wte =")
    assert "AssertionError: only 16, at d_model 64 and 256" in refused({"x.py": only}, parametrization="mup")
    other = MINE.replace("self.wte =", "self.odd = nn.Linear(4, 4) if config.d_model == 16 else None; self.wte =")
    assert "other names at d_model 64" in refused({"x.py": other}, parametrization="mup")
    endless = MINE.replace(
        "return self.head(self.ln_f(x))", "return self.head(self.ln_f(x)) * (1 if x.shape[-1] < 64 else float('nan'))"
    )
    assert "at d_model 64, the loss is not finite" in refused({"x.py": endless}, parametrization="mup")


def test_what_own_code_has_no_rule_for_is_refused_with_what_to_use() -> None:
    data = {"corpus": "nowhere.txt", "tokenizer": {"kind": "byte"}}
    with pytest.raises(ValidationError, match=r"with model\.code use mup or standard"):
        model_config(code="x.py", parametrization="completep")
    with pytest.raises(ValidationError, match="mup knows no rates for an optimizer of your own; use standard"):
        trial_config(data, code="x.py", parametrization="mup", optimizer={"code": "ball.py"})
    with pytest.raises(ValidationError, match=r"muon is for the matrices .* use adamw or lion"):
        trial_config(data, code="x.py", parametrization="mup", optimizer="muon")
    assert trial_config(data, code="x.py", parametrization="mup", tie_embeddings=True)


@pytest.mark.slow
def test_a_plan_passes_the_rates_on_or_says_where_the_file_fails(
    tmp_path: Path, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYSCALE_CACHE", str(tmp_path / "cache"))
    path = write_sweep(tmp_path, widths="[8, 16]")
    path.write_text(f"{path.read_text()}arms: {{mine: {{model.code: my_gpt.py, parametrization: mup}}}}\n")
    (tmp_path / "my_gpt.py").write_text(MINE)
    for each in planned(path, results).trials:
        assert each.trial.own.counted is not None
        assert "head.weight" in each.trial.own.counted.summing
    (tmp_path / "my_gpt.py").write_text(NANO)
    with pytest.raises(
        ConfigError, match=r"small\.yaml, line \d+: mine d_model=8: my_gpt\.py, line 4: .*blocks\.0\.attn"
    ):
        planned(path, results)
