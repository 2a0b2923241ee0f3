"""Every shipped sweep: it expands, its trials are distinct, and each axis moves what is trained."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from making import SWEEPS

from tinyscale.spec.config import TrialConfig
from tinyscale.spec.document import load_document
from tinyscale.spec.facts import TextFacts
from tinyscale.spec.sweep import Sweep, load_sweep
from tinyscale.spec.trial import Trial, resolve


def trials(sweep: Sweep) -> list[Trial]:
    """The variants resolved as if their text were at hand; a tokenizer is known by what it is asked to be."""
    return [resolved(variant.config) for variant in sweep.variants]


def resolved(config: TrialConfig) -> Trial:
    vocab_size = config.data.tokenizer.vocab_size or 257
    tokenizer = config.data.tokenizer.model_dump_json()
    return resolve(config, TextFacts(config.data.corpus, "rule", tokenizer, vocab_size, train_tokens=10**9))


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
