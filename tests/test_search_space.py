"""The `search` block of a sweep file: what is legal, and what it says of groups, draws and seeds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from helpers.sweeps import SWEEP, write_tiny_sweep
from helpers.trials import FACTS
from tinyscale.errors import ConfigError
from tinyscale.planning.auto import Filled
from tinyscale.planning.samples import Samples, known_samples, with_sample
from tinyscale.results.sweep_record import SweepEntry
from tinyscale.spec.grid import Variant
from tinyscale.spec.search_space import Search, Values
from tinyscale.spec.sweep import Sweep, load_sweep
from tinyscale.spec.trial import Trial, resolve

SEARCHED = (
    SWEEP.replace(", lr: 1e-2", "")
    + """\
axes: {d_model: [16, 32]}
search:
  fields: {train.lr: {low: 1e-4, high: 1e-1, log: true}}
  trials: 4
seeds: [0, 1]
"""
)

numbers = st.floats(1e-9, 1e9)


def load(tmp_path: Path, text: str = SEARCHED, **options: Any) -> Sweep:
    return load_sweep(write_tiny_sweep(tmp_path, text), **options)


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("log: true", "lgo: true", 8, "unknown key 'search.fields.train.lr.lgo'; nearest: lo"),
        ("trials: 4", "trails: 4", 9, "unknown key 'search.trails'; nearest: trials"),
        ("  trials: 4\n", "", 7, "search.trials is missing"),
        ("trials: 4", "trials: 1", 9, "search.trials = 1: it should be greater than or equal to 2"),
        ("low: 1e-4", "low: 1", 8, "low 1 must be below high 0.1"),
        ("low: 1e-4", "low: 0", 8, "begins above 0"),
        ("high: 1e-1", "high: 20", 8, "train.lr = 20"),
        ("high: 1e-1, ", "", 8, "write a range"),
        ("{low: 1e-4, high: 1e-1, log: true}", "{choices: [1e-2]}", 8, "at least two values"),
        ("high: 1e-1", "high: 1e-1, choices: [1e-2, 1e-3]", 8, "not both"),
        ("train.lr:", "train.lrr:", 8, "names no field; nearest: train.lr"),
        ("train.lr:", "n_layers:", 8, "model.n_layers is not searched; make it an axis"),
        ("train.lr:", "batch_tokens:", 8, "give {choices: [...]}"),
        ("{train.lr:", "{optimizer: {choices: [adamw, lino]}, train.lr:", 8, "nearest: lion"),
        ("{train.lr:", "{batch_tokens: {choices: [256, 1000]}, train.lr:", 8, "not a multiple of context_length"),
        ("[16, 32]}", "[16, 32], lr: [1e-3, 1e-2]}", 8, "train.lr is varied beside train.lr"),
        ("seeds: [0, 1]", "arms: {low: {train.lr: 1e-3}}", 10, "train.lr is searched"),
        ("trials: 4", "trials: 4\n  scheduler: ahsa", 10, "'none' or 'asha'"),
        (", batch_tokens", ", eval_points: 4, batch_tokens", None, None),  # with no scheduler it does not matter
        ("trials: 4", "trials: 4\n  scheduler: asha", None, None),
    ],
)
def test_a_mistake_is_one_error_with_its_line(
    tmp_path: Path, old: str, new: str, line: int | None, message: str | None
) -> None:
    assert old in SEARCHED
    text = SEARCHED.replace(old, new)
    if message is None:
        assert load(tmp_path, text).search is not None
        return
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert f"tiny.yaml, line {line}: " in str(caught.value)
    assert message in str(caught.value)


def test_asha_needs_evaluations_on_the_way(tmp_path: Path) -> None:
    text = SEARCHED.replace("trials: 4", "trials: 4\n  scheduler: asha").replace(", batch", ", eval_points: 4, batch")
    with pytest.raises(ConfigError, match=r"line 10: asha compares trials at 1/16 and 1/4 .* raise it to 5"):
        load(tmp_path, text)


def test_the_command_line_sets_keys_of_the_search_and_no_searched_field(tmp_path: Path) -> None:
    search = load(tmp_path, overrides=["search.trials=7", "search.scheduler=asha"]).search
    assert search is not None
    assert (search.trials, search.scheduler) == (7, "asha")
    with pytest.raises(ConfigError, match=r"search\.trials = 0"):
        load(tmp_path, overrides=["search.trials=0"])
    with pytest.raises(ConfigError, match=r"--set lr=3e-3: train\.lr is varied by the sweep"):
        load(tmp_path, overrides=["lr=3e-3"])


def test_too_many_combinations_of_choices_are_refused(tmp_path: Path) -> None:
    many = ", ".join(str(0.001 * n) for n in range(1, 600))
    text = SEARCHED.replace("{train.lr:", f"{{weight_decay: {{choices: [{many}]}}, train.lr:")
    with pytest.raises(ConfigError, match="1,198 combinations of choices, more than 1,000"):
        load(tmp_path, text)


@given(st.tuples(numbers, numbers).filter(lambda pair: pair[0] < pair[1]), st.booleans(), st.floats(0, 1))
def test_a_number_drawn_has_three_digits_and_stays_in_its_range(
    ends: tuple[float, float], log: bool, share: float
) -> None:
    values = Values(low=ends[0], high=ends[1], log=log)
    number = values.rounded(ends[0] + share * (ends[1] - ends[0]))
    assert values.holds(number)
    assert number in ends or float(f"{number:.3g}") == number
    assert values.rounded(number) == number, "rounding again moves nothing"
    assert values.holds(values.middle)


@given(st.dictionaries(st.sampled_from(["low", "high", "log", "choices", "step"]), st.integers(-2, 2) | st.booleans()))
def test_values_are_read_whole_or_refused(written: dict[str, Any]) -> None:
    try:
        values = Values.model_validate(written)
    except ValidationError:
        return
    assert len(values.ends) >= 2
    assert all(values.holds(end) for end in (*values.ends, values.middle))


def test_corners_are_all_combinations_of_ends_and_choices() -> None:
    fields = {"train.lr": {"low": 0.1, "high": 1.0}, "train.optimizer": {"choices": ["adamw", "lion", "muon"]}}
    search = Search.model_validate({"fields": fields, "trials": 5})
    corners = list(search.corners())
    assert len(corners) == 6
    assert {"train.lr": 1.0, "train.optimizer": "lion"} in corners
    assert search.sampled({"d_model": 8, "lr": 0.5, "optimizer": "lion"}) == {
        "train.lr": 0.5,
        "train.optimizer": "lion",
    }
    assert search.sampled({"d_model": 8, "lr": 5.0, "optimizer": "lion"}) is None


def as_trial(variant: Variant) -> Trial:
    return resolve(variant.config, FACTS)


def samples(sweep: Sweep, recorded: list[SweepEntry]) -> Samples:
    assert sweep.search is not None
    return known_samples(sweep.search, [Filled(v) for v in sweep.variants], recorded, as_trial, whole=sweep.whole)


def recorded(sweep: Sweep, *rates: float) -> list[SweepEntry]:
    """What the sweep's record would hold had each variant drawn these rates."""
    drawn = [with_sample(variant, {"train.lr": lr}) for variant in sweep.variants for lr in rates]
    return [SweepEntry(as_trial(variant).identity, variant.cell) for variant in drawn]


def test_each_group_has_its_trials_and_the_seeds_take_turns(tmp_path: Path) -> None:
    found = samples(load(tmp_path), []).variants
    assert Counter(sample.study.split()[0] for _, sample in found if sample) == {"d_model=16": 4, "d_model=32": 4}
    assert [each.variant.config.seed for each, _ in found] == [0, 1, 0, 1] * 2
    assert {each.variant.config.train.lr for each, _ in found} == {0.00316}, "the middle of the range stands in"


def test_what_was_drawn_stands_and_only_the_rest_is_drawn(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    found = samples(sweep, recorded(sweep, 2e-3)).variants
    drawn = [each.variant for each, sample in found if sample and sample.template is None]
    assert [(v.cell.axes["d_model"], v.cell.axes["lr"], v.config.train.lr, v.config.seed) for v in drawn] == [
        (16, 2e-3, 2e-3, 0), (16, 2e-3, 2e-3, 1), (32, 2e-3, 2e-3, 0), (32, 2e-3, 2e-3, 1),
    ]  # fmt: skip
    assert len(found) == 8


def test_a_change_of_what_trials_share_begins_the_study_anew(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    before = recorded(sweep, 2e-3)
    longer = load(tmp_path, SEARCHED.replace("5120", "10240"))
    found = samples(longer, before)
    assert all(sample and sample.template for _, sample in found.variants)
    assert found.stale == {entry.trial for entry in before}
    studies = [{sample.study for _, sample in samples(each, []).variants if sample} for each in (sweep, longer)]
    assert not studies[0] & studies[1]


def test_draws_outside_a_new_range_are_no_longer_part_of_the_search(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    narrow = load(tmp_path, SEARCHED.replace("high: 1e-1", "high: 1e-2"))
    found = samples(narrow, recorded(sweep, 2e-3, 5e-2))
    assert sum(sample is not None and sample.template is None for _, sample in found.variants) == 4
    assert len(found.stale) == 4


def test_a_selection_keeps_what_it_leaves_out_and_a_whole_sweep_does_not(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    before = recorded(sweep, 2e-3)
    assert samples(load(tmp_path, select=["d_model=16"]), before).stale == frozenset()
    smaller = samples(load(tmp_path, SEARCHED.replace("[16, 32]", "[16]")), before)
    assert smaller.stale == {entry.trial for entry in before if entry.cell.axes["d_model"] == 32}
    assert samples(replace(sweep, whole=False), before).stale == frozenset()
