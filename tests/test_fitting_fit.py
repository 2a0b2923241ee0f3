"""`fit` on data whose law is known."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from helpers.runs import TRUE, runs_of_sizes
from tinyscale.analysis.fit_frame import fit_frame
from tinyscale.analysis.study import find_laws
from tinyscale.errors import FitError
from tinyscale.fitting.diagnostics import untuned_note
from tinyscale.fitting.fit import fit_law


def test_without_noise_the_parameters_come_back_exactly() -> None:
    found = fit_law(runs_of_sizes(sd=0.0), "power-n")
    for name, value in TRUE.items():
        assert found.params[name] == pytest.approx(value, rel=1e-7)
        low, high = found.interval(name)
        assert low <= value * (1 + 1e-6)
        assert high >= value * (1 - 1e-6)


def test_with_noise_the_intervals_hold_the_truth_and_are_not_empty() -> None:
    found = fit_law(runs_of_sizes(), "power-n")
    for name, value in TRUE.items():
        low, high = found.interval(name)
        assert low < found.params[name] < high
        assert low < value < high


@pytest.mark.parametrize(("seeds", "intervals"), [(1, "profile"), (3, "profile"), (3, "wild")])
def test_five_in_a_hundred_intervals_miss_with_six_sizes(seeds: int, intervals: Any) -> None:
    hits = 0
    for seed in range(30):
        frame = runs_of_sizes(seeds=seeds, seed=seed)
        low, high = fit_law(frame, "power-n", intervals=intervals, draws=200, holdout=0).interval("alpha")
        hits += low <= TRUE["alpha"] <= high
    assert hits >= 25  # of 30 at 95 %: fewer has a chance below 1 %


def test_the_largest_size_is_predicted_better_than_by_carrying_the_last_loss_forward() -> None:
    held = fit_law(runs_of_sizes(), "power-n").held_out
    assert held is not None
    assert held.fitted_sizes == 5
    assert held.size["n"] == pytest.approx(3e6)
    assert abs(held.error_percent) < 1.5 < held.carry_forward_percent


def test_sizes_that_scatter_more_than_their_seeds_are_called_a_lack_of_fit_and_widen_the_interval() -> None:
    frame = runs_of_sizes(sd=0.001)
    bent = frame.assign(val_loss=frame["val_loss"] * np.repeat([1, 1.02, 0.98, 1.02, 0.98, 1], 3))
    straight, crooked = fit_law(frame, "power-n"), fit_law(bent, "power-n")
    assert any("lack of fit" in note for note in crooked.warnings)
    assert crooked.noise.dof == 3
    assert np.subtract(*crooked.interval("alpha")) < 3 * np.subtract(*straight.interval("alpha"))


def test_a_floor_that_the_data_do_not_show_is_called_unidentified() -> None:
    found = fit_law(runs_of_sizes(sd=0.03), "power-n")
    assert found.interval("E")[0] == 0
    assert any("floor E is not identified" in note for note in found.warnings)


def test_the_slice_says_what_was_held_fixed() -> None:
    frame = runs_of_sizes()
    assert fit_law(frame, "power-n").slice == "at a fixed ratio D/N = 20"
    assert fit_law(frame.assign(tokens=2e6), "power-n").slice == "at fixed tokens D = 2M"
    assert "neither" in fit_law(frame.assign(tokens=frame["n_non_embedding"] ** 0.5), "power-n").slice


def test_the_same_seed_gives_the_same_numbers() -> None:
    first, again = fit_law(runs_of_sizes(), "power-n", seed=7), fit_law(runs_of_sizes(), "power-n", seed=7)
    assert first.record.as_json() == again.record.as_json()
    pd.testing.assert_frame_equal(first.predict(n=1e8), again.predict(n=1e8))


def test_a_prediction_interval_is_wider_than_the_curves_and_grows_with_distance() -> None:
    found = fit_law(runs_of_sizes(), "power-n")
    curve, run = found.predict(n=[1e6, 1e9], noise=False), found.predict(n=[1e6, 1e9])
    width = [frame["high"] - frame["low"] for frame in (curve, run)]
    assert (width[1] > width[0]).all()
    assert width[1][1] > width[1][0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n_non_embedding": 1e6}, "needs n to vary"),
        ({"val_loss": np.linspace(2, 3, 18)}, "needs a loss that falls"),
        ({"val_loss": np.full(18, np.nan)}, "18 of 18 values are not positive"),
    ],
)
def test_data_that_cannot_support_the_law_are_refused_with_the_reason(change: dict, reason: str) -> None:
    with pytest.raises(FitError, match=reason):
        fit_law(runs_of_sizes().assign(**change), "power-n")


@pytest.mark.parametrize("intervals", ["profile", "wild", "bootstrap"])
def test_each_kind_of_interval_holds_the_estimate_and_says_how_it_was_made(intervals: Any) -> None:
    found = fit_law(runs_of_sizes(sizes=8), "power-n", intervals=intervals, draws=300)
    low, high = found.interval("alpha")
    assert low < found.params["alpha"] < high
    assert found.method == intervals
    assert intervals in found.intervals


def test_a_profile_of_a_robust_objective_is_refused_for_it_is_no_likelihood() -> None:
    with pytest.raises(FitError, match="for least squares"):
        fit_law(runs_of_sizes(), "power-n", intervals="profile", delta=1e-3)


def test_one_wild_run_among_many_hardly_moves_the_robust_fit() -> None:
    frame = runs_of_sizes(sizes=60, seeds=1, sd=0.002)
    wild = frame.assign(val_loss=frame["val_loss"].where(frame.index != 30, 2 * frame["val_loss"]))
    clean, robust = fit_law(frame, "power-n", draws=200), fit_law(wild, "power-n", draws=200)
    assert robust.delta == 1e-3
    assert robust.params["alpha"] == pytest.approx(clean.params["alpha"], abs=0.01)


def test_the_influence_table_shows_the_size_that_bends_the_exponent() -> None:
    frame = runs_of_sizes(sizes=7, seeds=2, sd=0.0)
    bent = frame.assign(val_loss=frame["val_loss"].where(frame["n_non_embedding"] < 2.9e6, 1.03 * frame["val_loss"]))
    found = fit_law(bent, "power-n")
    without = found.influence[-1]
    assert without["without_n"] == pytest.approx(3e6)
    assert without["alpha"] == pytest.approx(TRUE["alpha"], rel=1e-5)
    assert abs(found.params["alpha"] - TRUE["alpha"]) > 0.02


@pytest.mark.parametrize("seeds", [1, 2])
def test_four_sizes_are_just_enough_and_say_how_little_that_is(seeds: int) -> None:
    found = fit_law(runs_of_sizes(sizes=4, seeds=seeds), "power-n")
    low, high = found.interval("alpha")
    assert low < TRUE["alpha"] < high
    assert found.held_out is not None
    assert found.held_out.fitted_sizes == 3


def test_of_more_runs_than_are_fitted_the_others_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("tinyscale.fitting.fit")
    monkeypatch.setattr(module, "MOST_RUNS", 30)
    frame = runs_of_sizes(sizes=8, seeds=5)
    found = fit_law(frame, "power-n", draws=100)
    assert (len(found.points), found.origin.dropped) == (30, {module.TOO_MANY: 10})
    assert found.estimates == fit_law(frame, "power-n", draws=100).estimates, "the same ones each time"


def test_three_sizes_are_too_few() -> None:
    with pytest.raises(FitError, match="at least 4 different sizes and there are 3"):
        fit_law(runs_of_sizes(sizes=3), "power-n")


@pytest.mark.parametrize(("sizes", "law"), [(2, "power-n"), (3, "power-n"), (3, "broken")])
def test_too_few_sizes_for_every_law_are_not_advised_another_law(sizes: int, law: str) -> None:
    with pytest.raises(FitError, match=r"add sizes$"):
        fit_law(runs_of_sizes(sizes=sizes), law)


def test_a_law_that_the_sizes_would_support_is_named() -> None:
    with pytest.raises(FitError, match="take --law power-n or power-n-no-floor"):
        fit_law(runs_of_sizes(sizes=5), "broken")


def test_two_sizes_at_many_lengths_do_not_tell_a_joint_laws_floor() -> None:
    n, d = np.repeat([1e7, 1e9], 7), np.tile(np.geomspace(1e8, 1e11, 7), 2)
    frame = pd.DataFrame({"n": n, "d": d, "loss": 1.7 + 400 * n**-0.34 + 410 * d**-0.28})
    with pytest.raises(FitError, match=r"with 2 values of n .* fit --law tied"):
        fit_law(frame, "chinchilla")
    assert fit_law(frame, "tied", draws=100).params["alpha"] > 0


def test_a_missing_column_is_answered_with_the_columns_there_are() -> None:
    with pytest.raises(FitError, match=r"n_non_embedding.*params.*--columns"):
        fit_law(runs_of_sizes().rename(columns={"n_non_embedding": "params"}), "power-n")


@pytest.mark.parametrize(
    ("change", "warned"),
    [
        ({"lr": 1e-3}, True),
        ({"lr": [1e-3, 1e-3, 5e-4, 5e-4]}, False),  # tuned to the size, or chosen from a law
        ({"lr": 1e-3, "parametrization": "mup"}, False),
        ({"lr": 1e-3, "parametrization": "completep"}, False),
        ({"lr": 1e-3, "n_non_embedding": 1e5}, False),  # one size
        ({}, False),  # somebody's table, which says nothing of rates
    ],
)
def test_one_learning_rate_for_all_sizes_is_warned_of(change: dict, warned: bool) -> None:
    frame = pd.DataFrame({"n_non_embedding": [1e4, 3e4, 1e5, 3e5]}).assign(**change)
    assert bool(untuned_note(frame)) == warned


def test_the_warning_stands_with_the_fit_unless_rates_were_swept(tmp_path: Path) -> None:
    frame = runs_of_sizes().assign(lr=1e-3)
    for rates, expected in ((frame, [True]), (pd.concat([frame, frame.assign(lr=2e-3)]), [False, False])):
        rates.to_csv(tmp_path / "runs.csv", index=False)
        fits = find_laws(str(tmp_path / "runs.csv")).fits
        assert [any("one learning rate" in note for note in found.warnings) for found in fits] == expected


@pytest.mark.parametrize("floor", [0.0, 2.0])
def test_a_floor_is_shown_where_the_runs_identify_one_and_left_out_where_a_line_predicts_as_well(floor: float) -> None:
    n = np.geomspace(1e4, 1e6, 6).repeat(2)
    noise = 2e-3 * np.random.default_rng(0).standard_normal(len(n))
    runs = pd.DataFrame({"n": n, "loss": (floor + 8 * n**-0.15) * np.exp(noise)})
    found = fit_frame(runs)
    assert found.record.law == ("power-n" if floor else "power-n-no-floor")
    said = [note for note in found.warnings if note.startswith("shown without a floor E")]
    assert len(said) == (0 if floor else 1)
    assert fit_frame(runs, "power-n").record.law == "power-n", "a law that is asked for is not replaced"
