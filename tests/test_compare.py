"""Arms of a sweep, compared where the truth is known."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from helpers.arms import arm
from helpers.programs import invoke
from helpers.results import write_results
from tinyscale.analysis.compare import compare_arms
from tinyscale.analysis.runs import Group
from tinyscale.errors import FitError


@pytest.mark.parametrize("lengths", [1, 5])
def test_an_arm_that_goes_further_is_better_and_its_efficiency_comes_back(lengths: int) -> None:
    (found,) = compare_arms([arm("base", 1.0, seed=1, lengths=lengths), arm("lion", 1.3, seed=2, lengths=lengths)])
    assert found.difference.high < 0
    assert "lion is better than base" in found.verdict
    low, high = found.efficiency["rho_N"].ends
    assert low < 1.3 < high
    low, high = found.efficiency["compute"].ends
    assert low < 1.3**2 < high


def test_equal_arms_are_no_difference_seen_at_this_noise() -> None:
    (found,) = compare_arms([arm("base", 1.0, seed=1), arm("same", 1.0, seed=2)])
    assert found.difference.low < 0 < found.difference.high
    assert found.verdict.startswith("no difference seen at this noise")


def grows(seeds: int) -> list[Group]:
    """A base, and an arm that is behind at the smallest size, ahead at the largest, and its equal on average."""
    base, other = arm("base", 1.0, seed=1, seeds=seeds), arm("mine", 1.0, seed=2, seeds=seeds)
    steps = np.repeat(np.linspace(0.1, -0.1, 6), seeds)
    return [base, Group("t", "mine", "", other.frame.assign(val_loss=other.frame["val_loss"] + steps), {})]


@pytest.mark.parametrize("seeds", [1, 2])
def test_an_arm_that_gets_better_with_size_is_not_called_the_same_for_a_mean_of_zero(seeds: int) -> None:
    (found,) = compare_arms(grows(seeds))
    assert found.difference.low < 0 < found.difference.high
    told = re.fullmatch(
        r"mine against base changes with size, from \+0\.\d+ nats per token at N = 100K to (-0\.\d+) "
        r"\((-0\.\d+) to (-0\.\d+)\) at N = 5M",
        found.verdict,
    )
    assert told is not None, found.verdict
    value, low, high = map(float, told.groups())
    assert low < -0.1 < high
    assert low < value < high
    assert (found.more_seeds, found.more_sizes) == (None, None), "neither would settle what changes"


def test_equal_arms_of_one_seed_are_rarely_said_to_change_with_size() -> None:
    others = range(40)
    called = [compare_arms([arm("base", 1.0, seed=s, seeds=1), arm("s", 1.0, seed=900 + s, seeds=1)]) for s in others]
    assert sum("changes with size" in found.verdict for (found,) in called) <= 6  # at 5 %: more has a chance of 1 %


def test_equal_arms_are_called_different_as_rarely_as_promised() -> None:
    others = range(20)
    called = [compare_arms([arm("base", 1.0, seed=s), arm("same", 1.0, seed=900 + s)])[0] for s in others]
    missed = sum(not found.difference.low < 0 < found.difference.high for found in called)
    assert missed <= 4  # of 20 at 5 %: more has a chance below 1 %


def test_pairs_by_seed_are_tighter_than_means_of_sizes() -> None:
    base, lion = arm("base", 1.0, seed=1), arm("lion", 1.0, seed=2)
    other = arm("lion", 1.0, seed=2, common=2000)
    unpaired = Group("opt", "lion", "", other.frame.assign(seed=other.frame["seed"] + 10), {})
    (paired,), (loose,) = compare_arms([base, lion]), compare_arms([base, unpaired])
    assert paired.pairs == 18
    assert loose.pairs == 6
    assert paired.difference.high - paired.difference.low < loose.difference.high - loose.difference.low


def test_more_arms_make_each_interval_wider() -> None:
    base, lion = arm("base", 1.0, seed=1), arm("lion", 1.1, seed=2)
    alone = compare_arms([base, lion])[0]
    among = compare_arms([base, lion, *(arm(f"x{s}", 1.0, seed=s) for s in (3, 4, 5))])[0]
    assert among.difference.high - among.difference.low > alone.difference.high - alone.difference.low
    assert among.p >= alone.p


def test_different_tokenizers_are_compared_in_bits_per_byte() -> None:
    base, other = (arm(name, 1.0, seed=s) for name, s in (("base", 1), ("char", 2)))
    groups = [
        Group("t", g.arm, "", g.frame.assign(tokenizer_hash=g.arm, bits_per_byte=g.frame["val_loss"] / 3), {})
        for g in (base, other)
    ]
    assert compare_arms(groups)[0].unit == "bits per byte"


def test_two_sizes_give_a_difference_but_no_efficiency() -> None:
    groups = [arm("base", 1.0, seed=1), arm("lion", 1.3, seed=2)]
    few = [Group("t", g.arm, "", g.frame[g.frame["n_non_embedding"] < 3e5], {}) for g in groups]
    (found,) = compare_arms(few)
    assert found.efficiency == {}
    assert "cannot be told apart" in found.efficiency_refused


def test_arms_whose_sizes_shift_a_little_are_paired_size_by_size_though_one_coincides() -> None:
    base, wide = arm("base", 1.0, seed=1, lengths=5), arm("wide", 1.0, seed=2, lengths=5)
    shift = np.repeat([1.03, 1.05, 1.0, 1.08, 0.97, 1.1], 15)
    shifted = wide.frame.assign(n_non_embedding=wide.frame["n_non_embedding"] * shift)
    (found,) = compare_arms([base, Group("opt", "wide", "", shifted, {})])
    assert found.pairs == 90
    assert len(found.by_size) == 6


@pytest.mark.parametrize(("sizes", "dof"), [(2, 4), (6, 5)])
def test_a_difference_that_changes_with_size_is_of_just_these_sizes_when_they_are_few(sizes: int, dof: int) -> None:
    base, other = arm("base", 1.0, seed=1), arm("other", 1.0, seed=2)
    steps = np.repeat(np.arange(6), 3) * 0.1
    frames = [base.frame, other.frame.assign(val_loss=other.frame["val_loss"] - 0.2 - steps)]
    few = [Group("t", name, "", frame.iloc[: 3 * sizes], {}) for name, frame in zip("ab", frames, strict=True)]
    (found,) = compare_arms(few)
    assert "it changes with size, from -0.2" in found.verdict
    change = few[1].frame["val_loss"] - few[0].frame["val_loss"]
    of_size = change.groupby(few[0].frame["n_non_embedding"]).transform("mean")
    noise = (change - of_size).std(ddof=sizes) if sizes < 4 else of_size.std(ddof=1) * np.sqrt((len(change) - 1) / dof)
    reach = stats.t.ppf(0.975, dof) * noise / np.sqrt(len(change))
    assert found.difference.high - found.difference.low == pytest.approx(2 * reach, rel=1e-6)


def test_arms_that_spend_the_same_flops_on_other_numbers_of_tokens_are_paired() -> None:
    base, long = arm("base", 1.0, seed=1), arm("long", 1.0, seed=2)
    flops = 6 * base.frame["n_non_embedding"] * base.frame["tokens"]
    frames = [base.frame.assign(flops=flops), long.frame.assign(tokens=0.6 * long.frame["tokens"], flops=1.004 * flops)]
    (found,) = compare_arms([Group("t", name, "", frame, {}) for name, frame in zip("ab", frames, strict=True)])
    assert (found.pairs, len(found.by_size)) == (18, 6)
    assert found.difference.low < 0 < found.difference.high


def test_arms_without_common_sizes_are_refused() -> None:
    base, lion = arm("base", 1.0, seed=1), arm("lion", 1.3, seed=2)
    with pytest.raises(FitError, match="share fewer than 2 sizes"):
        compare_arms([base, Group("t", "lion", "", lion.frame.iloc[:3], {})])


def test_the_command_prints_a_verdict_and_writes_the_contrasts(tmp_path: Path) -> None:
    write_results(tmp_path, arms=("base", "lion"))
    result = invoke("fit", tmp_path, "--bootstrap", "100")
    assert "lion" in result.output
    assert "no difference seen at this noise" in result.output
    (contrast,) = json.loads((tmp_path / "fits/contrasts.json").read_text())
    assert contrast["base"] == "base"
    assert len(contrast["by_size"]) == 6
