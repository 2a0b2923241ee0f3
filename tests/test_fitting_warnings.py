"""What a fit warns of: what is there, and nothing else."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from helpers.runs import HOFFMANN, TRUE, runs_of_sizes
from tinyscale.errors import FitError
from tinyscale.fitting.fit import fit_law
from tinyscale.fitting.laws import find_law
from tinyscale.fitting.residuals import LEVEL, outlying
from tinyscale.fitting.text import verdict


def grid(side: int = 6, sd: float = 0.005, seed: int = 0) -> pd.DataFrame:
    """Runs of Chinchilla's law on a grid, log-normal noise of `sd` in each."""
    n, d = np.repeat(np.geomspace(5e6, 5e8, side), side), np.tile(np.geomspace(1e8, 1e10, side), side)
    noise = np.exp(sd * np.random.default_rng(seed).standard_normal(n.size))
    return pd.DataFrame({"n": n, "d": d, "loss": find_law("chinchilla").loss(HOFFMANN, n=n, d=d) * noise})


def warned(frame: pd.DataFrame, law: str, words: str, holdout: int = 0) -> str:
    """The warnings with these words."""
    return "; ".join(note for note in fit_law(frame, law, draws=200, holdout=holdout).warnings if words in note)


@pytest.mark.parametrize("at", [0, 5, 14, 35])
def test_a_run_twenty_standard_deviations_off_is_named(at: int) -> None:
    frame = grid()
    frame.loc[at, "loss"] *= 1.10
    said = warned(frame, "chinchilla", "the law of the others")
    assert said.startswith(f"row {at} (n = ")
    assert "% above the law of the others: look for the reason and leave such rows out; or fit with --delta" in said
    frame = frame.assign(trial=[f"t{i}" for i in range(36)])
    assert warned(frame, "chinchilla", "the law of the others").startswith(f"trial t{at} (n = ")


def test_two_runs_that_are_off_do_not_hide_each_other() -> None:
    frame = grid(8)
    frame.loc[[10, 40], "loss"] *= [1.1, 1.1]
    said = warned(frame, "chinchilla", "the law of the others")
    assert "row 10" in said
    assert "row 40" in said
    assert "bounded (delta = 0.001)" in said


@pytest.mark.parametrize(("runs", "params"), [(6, 3), (12, 3), (36, 5), (240, 5)])
def test_one_set_of_runs_in_a_hundred_has_an_outlying_run_by_chance_however_many_they_are(
    runs: int, params: int
) -> None:
    rng, studies = np.random.default_rng(0), 600
    alarms = sum(bool(outlying(rng.standard_normal((params, runs)), rng.standard_normal(runs))) for _ in range(studies))
    assert alarms <= 2.5 * LEVEL * studies  # at LEVEL, more has a chance below 0.1 %


def test_a_law_that_holds_is_warned_of_nothing() -> None:
    alarms = [
        note
        for seed in range(40)
        for note in fit_law(runs_of_sizes(seed=seed), "power-n", draws=200, holdout=0).warnings
        if "lack of fit" not in note and "held out" not in note and "floor" not in note
    ]
    bends = [note for note in alarms if "bends" in note]
    assert len(alarms) - len(bends) <= 3  # of 40 at 2 %: more has a chance below 1 %
    assert len(bends) <= 9  # of 40 at 10 %, as here


def test_the_size_that_makes_the_lack_of_fit_is_named() -> None:
    frame = runs_of_sizes(sd=0.001)
    frame["val_loss"] *= np.where(frame["n_non_embedding"] > 2.9e6, 1.03, 1.0)
    assert "there is none without N = 3M, 3.2 % above the law of the others" in warned(frame, "power-n", "lack of fit")


def test_an_exponent_that_hangs_on_a_size_is_said_where_the_size_is_off_and_not_where_it_only_weighs_much() -> None:
    bent = grid()
    bent["loss"] *= np.where(bent["n"] > 4.9e8, 1.03, 1.0)
    assert "alpha hangs on N = 500M" in warned(bent, "chinchilla", "hangs on")
    cries = [bool(warned(runs_of_sizes(sizes=5, seed=seed), "power-n", "hangs on")) for seed in range(40)]
    assert sum(cries) <= 4


def test_a_scatter_that_grows_with_size_is_said() -> None:
    frame = grid(8, sd=0.0)
    noise = 0.002 * (frame["n"] / 5e6) ** 0.5 * np.random.default_rng(0).standard_normal(64)
    said = warned(frame.assign(loss=frame["loss"] * np.exp(noise)), "chinchilla", "scatter more at large n")
    assert "beyond the data they are too narrow" in said


def test_two_kinds_of_runs_by_size_are_said_with_where_they_meet() -> None:
    n = np.geomspace(5e4, 3e6, 12)
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(12))
    frame = pd.DataFrame({"n": n, "loss": (TRUE["E"] + TRUE["A"] * n ** -TRUE["alpha"]) * noise})
    frame["loss"] *= np.where(n > 5e5, 1.05, 1.0)
    assert "the loss steps up by 4.8 % at n = 677K" in warned(frame, "power-n", "two kinds of runs")


def test_a_held_out_size_next_to_the_last_is_no_test_of_the_law() -> None:
    def alarms(factor: float, bad: float) -> int:
        n = np.append(np.geomspace(5e4, 3e6, 6), 3e6 * factor)
        count = 0
        for seed in range(20):
            noise = np.exp(0.005 * np.random.default_rng(seed).standard_normal(7))
            loss = (TRUE["E"] + TRUE["A"] * n ** -TRUE["alpha"]) * noise * np.append(np.ones(6), bad)
            found = fit_law(pd.DataFrame({"n": n, "loss": loss}), "power-n", draws=200)
            said = any("carrying the last" in note for note in found.warnings)
            assert not said or "no better than" in verdict(found.record)
            count += said
        return count

    assert alarms(1.012, 1.0) <= 3
    assert alarms(4.0, 1.12) >= 18


@pytest.mark.parametrize(("rise", "scatter"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.02)])
def test_a_joint_law_of_losses_that_do_not_fall_is_refused(rise: float, scatter: float) -> None:
    frame = grid()
    noise = scatter * np.random.default_rng(4).standard_normal(36)
    with pytest.raises(FitError, match="needs a loss that falls"):
        fit_law(frame.assign(loss=3 + rise * np.log(frame["n"] * frame["d"]) + noise), "chinchilla")


def test_a_variable_that_the_loss_does_not_fall_with_is_named() -> None:
    frame = grid()
    frame["loss"] = 2 + 400 * frame["n"] ** -0.34 * (frame["d"] / 1e8) ** 0.02
    assert warned(frame, "chinchilla", "does not fall with d where the rest is equal")


def test_a_cloud_without_scaling_is_called_one_by_a_law_of_one_size() -> None:
    n = np.geomspace(5e4, 3e6, 8)
    loss = 3 * np.exp(0.01 * np.random.default_rng(3).standard_normal(8))
    assert loss[-1] < loss[0]
    assert warned(pd.DataFrame({"n": n, "loss": loss}), "power-n", "no scaling is seen")


def test_perplexities_given_as_losses_are_said_to_be_above_chance() -> None:
    frame = grid()
    said = warned(frame.assign(loss=np.exp(frame["loss"])), "chinchilla", "more than guessing any token loses")
    assert "and 33 more" in said
    assert "perplexities, whose logarithms are losses" in said


def test_an_exponent_beyond_the_search_is_said_to_have_stopped_at_its_bound() -> None:
    n = np.geomspace(1e4, 1e6, 6)
    found = fit_law(pd.DataFrame({"n": n, "loss": 2 + 1e18 * n**-4.5}), "power-n", draws=200)
    assert any("alpha = 3 stopped at a bound" in note and "nor a prediction" in note for note in found.warnings)
