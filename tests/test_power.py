"""What would settle a comparison of arms: more seeds, and a rule that may look after each of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from helpers.arms import arm
from helpers.launches import final_losses, planned
from helpers.programs import invoke
from helpers.sweeps import SWEEP, write_sweep, write_tiny_sweep
from tinyscale.analysis.compare import Contrast, compare_arms
from tinyscale.analysis.power import LEVEL, MOST, POWER, evidence, more_needed
from tinyscale.errors import ConfigError
from tinyscale.fitting.arrays import Array
from tinyscale.planning.rounds import refuse_rounds, with_next_seed
from tinyscale.results.store import Results
from tinyscale.spec.sweep import load_sweep

SIZES, LOOKS = 3, 12


def first_looks(difference: float, repeats: int = 4000, *, arms: int = 1) -> Array:
    """At how many seeds each of many comparisons is settled first, in pair standard deviations; inf: at none of LOOKS.

    The difference scatters over sizes about its mean, as those of arms do.
    """
    of_size = np.array([-0.5, 0.0, 0.5])[:, None]
    pairs = np.random.default_rng(0).standard_normal((repeats, SIZES, LOOKS)) + of_size + difference
    found = np.full(repeats, np.inf)
    for seeds in range(2, LOOKS + 1):
        seen = pairs[:, :, :seeds]
        within = seen.var(axis=2, ddof=1).mean(axis=1)
        t = seen.mean(axis=(1, 2)) / np.sqrt(within / (SIZES * seeds))
        settled = evidence(t, np.array(SIZES * seeds), np.array(SIZES * (seeds - 1))) / arms >= 1 / LEVEL
        found[settled & np.isinf(found)] = seeds
    return found


def test_looking_after_every_seed_settles_equal_arms_in_at_most_one_of_twenty_comparisons() -> None:
    assert np.isfinite(first_looks(0.0)).mean() <= LEVEL
    among_four = np.isfinite(first_looks(0.0, 16000, arms=4)).reshape(-1, 4).any(axis=1)
    assert among_four.mean() <= LEVEL


def test_looking_after_every_seed_with_the_ordinary_test_would_settle_far_more() -> None:
    pairs = np.random.default_rng(1).standard_normal((2000, LOOKS))
    p = np.stack([stats.ttest_1samp(pairs[:, :seeds], 0, axis=1).pvalue for seeds in range(2, LOOKS + 1)])
    assert (p < LEVEL).any(axis=0).mean() > 3 * LEVEL


def test_a_difference_of_one_standard_deviation_is_settled_within_a_few_seeds() -> None:
    looks = first_looks(1.0)
    assert np.isfinite(looks).mean() > 0.95
    assert np.median(looks) <= 5


def test_pairs_without_a_scatter_of_their_own_are_no_evidence() -> None:
    assert evidence(np.array(9.0), np.array(3), np.array(0)) == 1


@pytest.mark.parametrize("effect", [0.3, 0.5, 1.0])
def test_the_seeds_named_give_the_power_promised_and_one_less_does_not(effect: float) -> None:
    count, per_seed = 2, 3
    t, dof = effect * np.sqrt(count * per_seed), count * per_seed - 1
    more = more_needed(t, count, dof)
    assert more is not None

    def power(seeds: int) -> float:
        pairs = np.random.default_rng(2).standard_normal((20000, seeds * per_seed)) + effect
        return float((stats.ttest_1samp(pairs, 0, axis=1).pvalue < LEVEL).mean())

    assert power(count + more) >= POWER - 0.02
    assert power(count + more - 1) <= POWER + 0.02


def test_a_difference_near_zero_has_no_number_of_seeds() -> None:
    assert more_needed(1e-4, 3, 8) is None


def compared(shift: float, *, seeds: int = 3) -> Contrast:
    base, other = arm("base", 1.0, seed=1, seeds=seeds), arm("other", 1.0, seed=2, seeds=seeds)
    frame = other.frame.assign(val_loss=other.frame["val_loss"] + shift)
    return compare_arms([base, replace(other, frame=frame)])[0]


def test_the_verdict_says_how_many_more_seeds_would_settle_what_is_seen() -> None:
    equal = compared(0.0)
    half = equal.difference.high - equal.difference.value
    near = compared(-0.8 * half - equal.difference.value)
    assert near.more_seeds is not None
    assert 1 <= near.more_seeds <= 10
    assert f"other is ahead by {-near.difference.value:.4f}" in near.verdict
    assert f"about {near.more_seeds} more seed" in near.verdict
    assert near.as_json()["more_seeds"] == near.more_seeds
    assert not near.settled
    far, none = compared(-0.1), compared(-equal.difference.value)
    assert (far.more_seeds, far.settled) == (None, True)
    assert f"more than {MOST} more seeds" in none.verdict


def test_the_next_seed_is_the_next_integer_and_its_trials_are_those_of_a_file_with_more_seeds(
    tmp_path: Path, long_corpus: Path
) -> None:
    arms = "arms: {base: {}, lion: {train.optimizer: lion}}\naxes: {d_model: [16, 32]}\nseeds: [0, 3SEEDS]\n"
    text = SWEEP.replace("{kind: byte}", "{kind: byte}, val_bytes: 101K") + arms
    results = Results(str(tmp_path / "results"))
    few = load_sweep(write_tiny_sweep(tmp_path, text.replace("SEEDS", ""), corpus=long_corpus))
    path = write_tiny_sweep(tmp_path, text.replace("SEEDS", ", 4, 5"), corpus=long_corpus)
    more = with_next_seed(with_next_seed(few))
    assert more.variants == load_sweep(path).variants
    assert len({each.trial.identity for each in planned(path, results).trials}) == 16


def test_a_sweep_whose_arms_seeds_cannot_settle_is_refused(tmp_path: Path) -> None:
    path = write_tiny_sweep(tmp_path)
    with pytest.raises(ConfigError, match="there is one; give the sweep two or more"):
        refuse_rounds(load_sweep(path), 5)
    path = write_tiny_sweep(tmp_path, SWEEP + "arms: {a: {}, b: {lr: 2e-2}}\nseeds: [0, 1, 2]\n")
    with pytest.raises(ConfigError, match="has 3 seeds already"):
        refuse_rounds(load_sweep(path), 2)


@pytest.mark.slow
def test_a_launch_until_settled_adds_seeds_until_the_arm_is_settled(tmp_path: Path) -> None:
    """One arm hardly learns, and so is settled after few seeds; launched again, nothing is left to train."""
    path, results = write_sweep(tmp_path, seeds="[0]"), tmp_path / "results"
    path.write_text(f"{path.read_text()}arms: {{base: {{}}, idle: {{train.lr: 1e-5}}}}\n")
    outcome = invoke("launch", "-y", path, "--results", results, "--until-settled", "6", "--quiet")
    assert outcome.exit_code == 0, outcome.output
    assert "then a seed more at a time, at most 6," in outcome.output
    assert "all arms are settled" in outcome.output
    seeds = {each.cell.seed for each in Results(str(results)).read_sweeps()[0].entries}
    assert seeds == set(range(len(seeds)))
    assert 2 <= len(seeds) < 6
    losses = final_losses(results)
    assert len(losses) == 4 * len(seeds)
    again = invoke("launch", "-y", path, "--results", results, "--until-settled", "6", "--quiet")
    assert again.exit_code == 0
    assert final_losses(results).equals(losses)
