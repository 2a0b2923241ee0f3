"""Every shipped sweep moves what it says and holds what it says, as two CPU cores run it and as a GPU does."""

from __future__ import annotations

import re
import socket
from itertools import pairwise
from pathlib import Path

import pytest

from helpers import ROOT
from helpers.sweeps import ON_CORES, ON_GPU, SWEEPS
from tinyscale.data.corpora import named_corpora
from tinyscale.data.hub import HUB
from tinyscale.data.synthetic import RECORD, ZipfRecords
from tinyscale.machine import Capacity
from tinyscale.planning.make_plan import make_plan
from tinyscale.results.store import Results
from tinyscale.spec.config import TrialConfig
from tinyscale.spec.document import load_document
from tinyscale.spec.facts import TextFacts
from tinyscale.spec.grid import Variant
from tinyscale.spec.sweep import Sweep, load_sweep
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


def name_of(path: Path) -> str:
    """The name that the file's sweep has: files on a GPU add to that of their sibling."""
    return f"{path.stem}_gpu" if path in ON_GPU else path.stem


@pytest.fixture(params=SWEEPS, ids=name_of)
def path(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def test_there_are_sweeps() -> None:
    assert {"quickstart", "width"} <= {path.stem for path in ON_CORES}
    assert {path.stem for path in ON_GPU} < {path.stem for path in ON_CORES}, "each has a sibling in minutes"


def test_a_sweep_is_named_as_its_file_and_says_its_question(path: Path) -> None:
    sweep = load_sweep(path)
    assert sweep.name == name_of(path)
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
    sweep = load_sweep(ROOT / "sweeps" / "gpu" / "width.yaml")
    for arm in ("ratio", "tokens"):
        assert sorted({v.config.model.d_model for v in sweep.variants if v.cell.arm == arm}) == [64, 128, 256, 512]
    assert sorted({v.config.seed for v in sweep.variants}) == [0, 1, 2]
    options = {"overrides": ["resources.gpu=0", "precision=fp32"], "select": ["arm=ratio", "d_model=64", "seed=0"]}
    (small,) = load_sweep(sweep.path, **options).variants
    assert (small.config.resources.gpu, small.config.train.precision) == (0, "fp32")


def test_the_quickstart_spans_enough_sizes_for_a_law() -> None:
    sweep = load_sweep(ROOT / "sweeps" / "quickstart.yaml")
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
    variants = load_sweep(ROOT / "sweeps" / f"{name}.yaml", **options).variants
    kept = [v for v in variants if v.config.seed == variants[0].config.seed and arm in (None, v.cell.arm)]
    return [(variant, resolved(variant.config)) for variant in kept]


def by(found: list[Cell], axis: str) -> list[list[Trial]]:
    """The trials in groups of one value of an axis."""
    groups: dict[object, list[Trial]] = {}
    for variant, trial in found:
        groups.setdefault(variant.cell.axes[axis], []).append(trial)
    return list(groups.values())


in_both_sizes = pytest.mark.parametrize("folder", ["", "gpu/"], ids=["cores", "gpu"])


def spent(trials: list[Trial]) -> list[float]:
    return [trial.flops for trial in trials]


def same(values: list[float], within: float = 0.01) -> bool:
    return max(values) <= min(values) * (1 + within)


def commands(path: Path) -> list[str]:
    """The commands in the file's comment."""
    return re.findall(r"^#\s+(tinyscale .*)$", path.read_text(), re.MULTILINE)


on_cores = pytest.mark.parametrize("path", ON_CORES, ids=name_of)
on_gpu = pytest.mark.parametrize("path", ON_GPU, ids=name_of)


def test_a_sweep_asks_a_question_and_is_launched_as_it_stands(path: Path) -> None:
    assert path.read_text().splitlines()[0].endswith("?")
    assert commands(path) == [f"tinyscale launch {path.relative_to(ROOT)}"]


@on_cores
def test_two_cores_train_a_sweep_in_minutes_on_text_that_is_installed_or_generated(path: Path) -> None:
    found = trials(load_sweep(path))
    installed = {corpus.name for corpus in named_corpora() if corpus.here == "yes"} - set(HUB)
    assert {trial.config.data.corpus for trial in found} <= installed
    assert {trial.config.resources.gpu for trial in found} == {0}
    assert sum(spent(found)) < 6e13, "a quarter of an hour at 33 GFLOP/s on each core"
    assert min(trial.steps for trial in found) >= 100


@pytest.mark.slow
@on_cores
def test_a_sweep_is_planned_without_a_gpu_and_without_network(
    path: Path, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    plan = make_plan(load_sweep(path), results, Capacity(2, 0), measure=False)
    assert plan.at_once == 2
    assert {planned.key for planned in plan.to_run} == {planned.key for planned in plan.trials}
    assert len(plan.to_run) > 1
    assert max(planned.trial.epochs for planned in plan.trials) <= 8


@on_gpu
def test_the_full_size_trains_three_seeds_on_shares_of_a_gpu_and_more_than_its_sibling(path: Path) -> None:
    variants = load_sweep(path).variants
    assert {v.config.seed for v in variants} == {0, 1, 2}
    assert {v.config.resources.gpu for v in variants} == {0.25}
    assert sum(spent(trials(load_sweep(path)))) > 10 * sum(spent(trials(load_sweep(ROOT / "sweeps" / path.name))))


@pytest.mark.parametrize(
    ("name", "arm"),
    [("width", "small"), ("width", "small_tokens"), ("gpu/width", "ratio"), ("gpu/width", "tokens")],
)
def test_width_moves_heads_and_parameters_with_the_width(name: str, arm: str) -> None:
    trials = [trial for _, trial in cells(name, arm=arm)]
    widths = [trial.config.model.d_model for trial in trials]
    assert widths == ([64, 128, 256, 512] if name.startswith("gpu/") else [16, 24, 32, 48, 64, 96])
    assert len({trial.config.model.head_dim for trial in trials}) == 1
    assert [t.config.model.n_heads * t.config.model.head_dim for t in trials] == widths
    sizes = [trial.parameters.n_non_embedding for trial in trials]
    assert sizes == sorted(set(sizes))
    ratios = [trial.tokens / size for trial, size in zip(trials, sizes, strict=True)]
    assert same([float(t.tokens) for t in trials]) if arm.endswith("tokens") else same(ratios)


@in_both_sizes
def test_depth_moves_the_layers_at_a_fixed_width(folder: str) -> None:
    trials = [trial for _, trial in cells(f"{folder}depth")]
    assert [trial.config.model.n_layers for trial in trials] == [2, 4, 6, 8]
    assert {trial.config.model.d_model for trial in trials} == {256 if folder else 32}
    assert same([t.parameters.n_non_embedding / t.config.model.n_layers for t in trials])


@in_both_sizes
def test_context_spends_the_same_flops_at_every_length(folder: str) -> None:
    trials = [trial for _, trial in cells(f"{folder}context")]
    assert [trial.config.model.context_length for trial in trials] == [128, 256, 512, 1024]
    assert same(spent(trials))
    tokens = [trial.tokens for trial in trials]
    assert tokens == sorted(tokens, reverse=True)


@in_both_sizes
def test_data_reads_each_subset_once_or_until_the_tokens_of_the_largest(folder: str) -> None:
    small, unit = ("", 2_000_000) if folder else ("small_", 500_000)
    wanted = [unit, 2 * unit, 4 * unit, 8 * unit]
    once = [trial for _, trial in cells(f"{folder}data", arm=f"{small}one_epoch")]
    assert [trial.unique_tokens for trial in once][-4:] == wanted
    assert all(0.99 < trial.epochs <= 1 for trial in once)
    repeated = [trial for _, trial in cells(f"{folder}data", arm=f"{small}repeated")]
    assert [trial.unique_tokens for trial in repeated] == wanted
    assert [trial.epochs for trial in repeated] == pytest.approx([8, 4, 2, 1], rel=1e-3)
    assert len({trial.tokens for trial in repeated}) == 1


@in_both_sizes
def test_isoflop_has_five_sizes_at_each_of_its_budgets(folder: str) -> None:
    budgets = by(cells(f"{folder}isoflop"), "flops_budget")
    assert len(budgets) == 3
    for trials in budgets:
        sizes = {trial.parameters.n_non_embedding for trial in trials}
        assert len(sizes) == 5
        assert max(sizes) > 8 * min(sizes)
        assert same(spent(trials))


@in_both_sizes
@pytest.mark.parametrize("name", ["context", "tokenizer", "architecture"])
def test_arms_that_are_compared_at_equal_flops_spend_them(name: str, folder: str) -> None:
    widths = by(cells(f"{folder}ablation_{name}"), "d_model")
    assert len(widths) >= (4 if folder else 2)
    assert all(same(spent(trials)) for trials in widths)


@in_both_sizes
@pytest.mark.parametrize(
    ("name", "field", "values", "on_cores"),
    [
        ("schedule", "train.schedule", ["cosine", "linear", "constant", "wsd"], 4),
        ("context", "model.context_length", [128, 256, 512, 1024], 4),
        ("data", "data.unique_tokens", [2_000_000, 4_000_000, 8_000_000, 16_000_000], 2),
        ("precision", "train.precision", ["fp32", "bf16", "fp16"], 2),
    ],
)
def test_the_arms_of_an_ablation_differ_in_its_field_and_budget_only(
    name: str, field: str, values: list[object], on_cores: int, folder: str
) -> None:
    """on_cores: how many of the arms two cores compare."""
    part, leaf = field.split(".")
    for trials in by(cells(f"{folder}ablation_{name}"), "d_model"):
        dumps = [trial.config.model_dump() for trial in trials]
        assert [dump[part].pop(leaf) for dump in dumps] == (values if folder else values[:on_cores])
        for dump in dumps:
            dump["train"].pop("tokens_budget")
        assert all(dump == dumps[0] for dump in dumps)


@in_both_sizes
def test_the_arms_of_ablation_architecture_change_one_part_of_gpt2_each(folder: str) -> None:
    trials = by(cells(f"{folder}ablation_architecture"), "d_model")[0]
    parts = ("positions", "norm", "activation", "tie_embeddings")
    described = [[getattr(trial.config.model, part) for part in parts] for trial in trials]
    changed = [sum(a != b for a, b in zip(each, described[0], strict=True)) for each in described]
    assert changed == [0, 1, 1, 1, 1, 3]
    assert len(set(map(str, described))) == 6


@in_both_sizes
def test_the_contexts_of_ablation_tokenizer_hold_about_as_many_bytes(folder: str) -> None:
    bytes_per_token = {512: 2.27, 1024: 2.96, 4096: 4.30, 257: 1.0, 100: 1.0}  # on sotu
    for trials in by(cells(f"{folder}ablation_tokenizer"), "d_model"):
        assert len({trial.vocab_size for trial in trials}) == 5
        assert same([t.config.model.context_length * bytes_per_token[t.vocab_size] for t in trials], within=0.15)


@in_both_sizes
def test_each_optimizer_has_as_many_tries_and_differs_in_nothing_else(folder: str) -> None:
    for trials in by(cells(f"{folder}ablation_optimizer"), "d_model"):
        rates: dict[str, list[float]] = {}
        for trial in trials:
            rates.setdefault(trial.config.train.optimizer, []).append(trial.config.train.lr)
        assert list(rates) == ["adamw", "lion", "muon"]
        assert {len(set(tried)) for tried in rates.values()} == {6}
        assert all(b == pytest.approx(2 * a) for tried in rates.values() for a, b in pairwise(tried))
        assert len({trial.tokens for trial in trials}) == 1


@in_both_sizes
def test_one_trial_of_the_grid_gives_four_token_counts_for_less_than_their_sum(folder: str) -> None:
    trials = [trial for _, trial in cells(f"{folder}grid")]
    assert len({trial.parameters.n_non_embedding for trial in trials}) == (9 if folder else 5)
    for trial in trials:
        ends = [*trial.branch_ends, trial.steps]
        assert [round(b / a, 2) for a, b in pairwise(ends)] == [2, 2, 2]
        assert trial.steps_trained < 1.2 * trial.steps < 1.6 * trial.steps < sum(ends)


@in_both_sizes
def test_mup_lr_crosses_the_same_rates_and_widths_in_each_parametrization(folder: str) -> None:
    names = ("standard", "mup", "completep") if folder else ("standard", "mup")
    arms = {arm: cells(f"{folder}mup_lr", arm=arm) for arm in names}
    for arm, found in arms.items():
        assert {trial.config.model.parametrization for _, trial in found} == {arm}
        assert len({trial.tokens for _, trial in found}) == 1
        for trials in by(found, "d_model"):
            rates = [trial.config.train.lr for trial in trials]
            assert all(b == pytest.approx(2 * a) for a, b in pairwise(rates))
    assert len({str([v.cell.axes for v, _ in found]) for found in arms.values()}) == 1


def test_lr_searches_each_width_at_two_token_counts_and_other_batches_at_the_ends() -> None:
    small = [trial for _, trial in cells("lr", arm="small")]
    points = {(trial.config.model.d_model, trial.tokens) for trial in small}
    assert points == {(width, tokens) for width in (16, 32, 64) for tokens in (499712, 1999872)}
    batches = [trial.config for _, trial in cells("lr", arm="small_batches")]
    points = {(config.model.d_model, config.train.batch_tokens) for config in batches}
    assert points == {(width, batch) for width in (16, 64) for batch in (256, 4096)}


def test_lr_searches_each_width_and_other_batches_at_the_ends_on_a_gpu() -> None:
    arms = {arm: [trial.config for _, trial in cells("gpu/lr", arm=arm)] for arm in ("rate", "smallest", "largest")}
    widths = [[config.model.d_model for config in found] for found in arms.values()]
    assert widths == [[32, 64, 128, 256], [32, 32], [256, 256]]
    assert {config.train.batch_tokens for found in arms.values() for config in found} == {1024, 4096, 16384}


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
    shares = {variant.config.data.shares for variant, _ in cells("help/transfer")}
    others = {tuple(name for name, _ in each if name != "de") for each in shares}
    assert others == {(), ("en",), ("nl",), ("fr",), ("el",)}
    assert len(shares) == 9


def test_languages_have_as_much_german_beside_each_number_of_others() -> None:
    german = {
        (len(variant.config.data.shares), round(dict(variant.config.data.shares)["de"] * trial.tokens, -3))
        for variant, trial in cells("help/languages")
    }
    assert german == {(count, tokens) for count in (1, 2, 4, 8) for tokens in (104_000, 208_000, 416_000)}
