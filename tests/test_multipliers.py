"""What an arm is worth in compute, size by size, where the truth is known."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.arms import arm
from helpers.programs import invoke
from helpers.results import write_results
from tinyscale.analysis.compare import Contrast, compare_arms
from tinyscale.analysis.multipliers import charged, in_words
from tinyscale.analysis.runs import Group


def compared(other: Group, *, speed: float | None = None, sizes: int = 6) -> Contrast:
    """The base against this arm, on the smallest sizes, of which it makes `speed` times as many tokens per second."""
    groups = [arm("base", 1.0, seed=1), other]
    if speed is not None:
        frames = [
            group.frame.assign(tokens_per_second=rate) for group, rate in zip(groups, (1e5, speed * 1e5), strict=True)
        ]
        groups = [replace(group, frame=frame) for group, frame in zip(groups, frames, strict=True)]
    (found,) = compare_arms([replace(group, frame=group.frame.iloc[: 3 * sizes]) for group in groups])
    return found


@pytest.mark.parametrize(("gain", "rate", "published"), [(1.1300, 0.9306, 1.0515), (1.1274, 0.9052, 1.0205)])
def test_a_multiplier_is_the_gain_in_steps_times_the_throughput(gain: float, rate: float, published: float) -> None:
    assert float(charged(np.array(gain), np.array(rate))) == pytest.approx(published, abs=1.01e-4)


@pytest.mark.parametrize("sizes", [3, 4, 6])
def test_the_multiplier_at_each_size_is_the_true_one_and_an_even_gain_has_no_trend(sizes: int) -> None:
    found = compared(arm("lion", 1.3, seed=2), sizes=sizes).multipliers["flops"]
    assert len(found.by_size) == sizes
    for each in found.by_size.values():
        assert each.low < 1.3**2 < each.high
        assert each.high / each.low < 1.25
    assert found.trend is not None
    assert found.trend.low < 0 < found.trend.high
    assert found.said == ""


def test_sizes_at_which_the_base_never_comes_so_far_are_named_and_the_others_have_theirs() -> None:
    lion = arm("lion", 1.3, seed=2)
    below = np.repeat([0, 0, 0, 0, 0.8, 0.8], 3)  # of the law's floor, which is 1.4
    found = compared(replace(lion, frame=lion.frame.assign(val_loss=lion.frame["val_loss"] - below))).multipliers
    assert [each.value for each in found["flops"].by_size.values()] == pytest.approx([1.69] * 4, rel=0.1)
    assert "none at N = 2.29M, 5M, where the base's law comes to no such loss" in found["flops"].said
    assert "none at N = 2.29M, 5M" in in_words(found)[0]


def test_two_sizes_give_multipliers_and_no_trend() -> None:
    found = compared(arm("lion", 1.3, seed=2), sizes=2).multipliers["flops"]
    assert [each.value for each in found.by_size.values()] == pytest.approx([1.69, 1.69], rel=0.1)
    assert (found.trend, found.said) == (None, "")


@pytest.mark.parametrize(
    ("rho", "said"), [((1.5, 1.02), "the gain shrinks with size"), ((1.02, 1.4), "the gain grows")]
)
def test_a_gain_that_changes_with_size_is_said(rho: tuple[float, float], said: str) -> None:
    rhos = np.geomspace(*rho, 6)
    frames = [arm("lion", each, seed=2).frame.iloc[3 * k : 3 * k + 3] for k, each in enumerate(rhos)]
    whole = arm("lion", 1.0, seed=2)
    frame = whole.frame.assign(val_loss=np.concatenate([frame["val_loss"] for frame in frames]))
    found = compared(replace(whole, frame=frame)).multipliers["flops"]
    assert found.said.startswith(said)
    assert [each.value for each in found.by_size.values()] == pytest.approx(list(rhos**2), rel=0.06)


def test_an_arm_that_is_slower_by_what_it_gains_is_worth_nothing_on_the_clock() -> None:
    both = compared(arm("lion", 1.3, seed=2), speed=1 / 1.69).multipliers
    for size, each in both["seconds"].by_size.items():
        assert each.value == pytest.approx(both["flops"].by_size[size].value / 1.69)
        assert each.low < 1 < each.high
    assert "seconds" not in compared(arm("lion", 1.3, seed=2)).multipliers, "runs without a speed"


def test_an_arm_that_spends_more_flops_on_the_same_tokens_is_charged_for_them() -> None:
    lion = arm("lion", 1.3, seed=2)
    flops = 6 * lion.frame["n_non_embedding"] * lion.frame["tokens"]
    dear = compared(replace(lion, frame=lion.frame.assign(flops=1.5 * flops))).multipliers["flops"]
    plain = compared(lion).multipliers["flops"]
    assert [each.value * 1.5 for each in dear.by_size.values()] == pytest.approx(
        [each.value for each in plain.by_size.values()]
    )


def test_the_command_and_the_report_say_what_an_arm_is_worth_by_size(tmp_path: Path) -> None:
    write_results(tmp_path, arms=("base", "lion"), tokens_per_second=1e5)
    said = " ".join(invoke("fit", tmp_path, "--bootstrap", "100").output.split())
    assert "compute multiplier in FLOPs (loss only): " in said
    assert "compute multiplier in wall-clock time (loss and tokens per second): " in said
    (contrast,) = json.loads((tmp_path / "fits/contrasts.json").read_text())
    assert contrast["multipliers"].keys() == {"flops", "seconds"}
    assert contrast["multipliers"]["flops"]["by_size"].keys() == contrast["by_size"].keys()
    assert invoke("report", tmp_path).exit_code == 0
    assert "Compute multipliers by size" in (tmp_path / "report.html").read_text()
