"""Forecasts by several laws, and what a fit may be told beforehand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tinyscale as ts
from helpers.programs import invoke
from helpers.runs import TRUE, TRUTHS, runs_of_sizes, simulated
from tinyscale.analysis.records import read_fit, read_records
from tinyscale.errors import FitError
from tinyscale.fitting import Fit, find_law, fit, fit_law
from tinyscale.fitting.forecast import averaged, make_forecast
from tinyscale.fitting.points import read_points
from tinyscale.fitting.solve import solve

# Losses in bits per byte at budgets of FLOPs, and what was measured later at the last: a public study.
FRONTIER = pd.DataFrame({
    "c": [1e18, 3e18, 1e19, 3e19, 1e20, 3e20], "loss": [3.522, 3.339, 3.154, 3.000, 2.848, 2.725],
})  # fmt: skip
AFTERWARDS = (1e23, 2.234)


def bent_runs(change: float, seed: int, at: float = np.inf, noise: float = 0.003) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Six sizes of three seeds, and a run at 30 times the largest; the exponent falls by `change` per e-fold, or from
    `at` on as a whole."""
    rng = np.random.default_rng(seed)

    def runs(n: np.ndarray) -> pd.DataFrame:
        u = np.log(n / 5e4)
        past = np.maximum(u - np.log(at / 5e4), 0.0)
        power = u - (change * past if np.isfinite(at) else change * u**2 / 2)
        loss = TRUE["E"] + TRUE["A"] * 5e4 ** -TRUE["alpha"] * np.exp(-TRUE["alpha"] * power)
        return pd.DataFrame({"n": n, "loss": loss * np.exp(noise * rng.standard_normal(len(n)))})

    return runs(np.repeat(np.geomspace(5e4, 3e6, 6), 3)), runs(np.array([9e7]))


@pytest.mark.parametrize("change", [0.0, 0.034], ids=["the law", "an exponent that falls by 14 % over the study"])
def test_the_interval_holds_a_run_at_thirty_times_the_largest_size(change: float) -> None:
    held = 0
    for seed in range(20):
        runs, beyond = bent_runs(change, seed)
        points = read_points(runs, find_law("power-n"))
        problem = points.problem(find_law("power-n"), np.inf)
        made = make_forecast(points, problem, solve(problem)[0].theta[0], averaged(problem.law)).predict(n=9e7)
        held += int(made["low"][0] < beyond["loss"][0] < made["high"][0])
        assert made["high"][0] / made["low"][0] < 1.2
    assert held >= 18


def test_where_another_law_is_true_the_average_misses_by_less_than_the_law_that_is_printed() -> None:
    law = find_law("farseer")
    frame = simulated(0.0)[["n", "d"]]
    loss = law.loss(TRUTHS["farseer"], n=frame["n"].to_numpy(), d=frame["d"].to_numpy())
    frame = frame.assign(loss=loss * np.exp(0.002 * np.random.default_rng(0).standard_normal(len(frame))))
    top = frame["n"] * frame["d"] > (frame["n"] * frame["d"]).quantile(0.8)
    made = fit(frame[~top], draws=100)
    assert isinstance(made, Fit) and made.forecast is not None
    assert made.law.name == "chinchilla"
    assert made.forecast.members[0].law.name == "farseer"
    sizes = {name: frame.loc[top, name].to_numpy() for name in ("n", "d")}
    truth = frame.loc[top, "loss"].to_numpy()
    alone = made.law.loss(made.params, **sizes)
    average = made.predict(noise=True, **sizes)
    assert np.abs(average["loss"] / truth - 1).mean() < 0.5 * np.abs(alone / truth - 1).mean()
    assert ((average["low"] < truth) & (truth < average["high"])).mean() > 0.9


def test_a_law_that_is_asked_for_forecasts_its_own_curve() -> None:
    found = fit(simulated(0.005).iloc[::5], "chinchilla", draws=100)
    assert isinstance(found, Fit)
    row = found.predict(n=1e11, d=1e12).iloc[0]
    assert row["loss"] == pytest.approx(float(found.law.loss(found.params, n=1e11, d=1e12)), rel=1e-12)
    assert row["low"] < row["loss"] < row["high"]


def test_of_a_joint_law_the_top_fifth_of_compute_is_held_out_and_its_interval_counted() -> None:
    held = fit_law(simulated(0.005).iloc[::3], "chinchilla", draws=100).held_out
    assert held is not None and held.runs and held.reach and held.inside is not None
    assert held.runs == 16
    assert held.reach > 5
    assert held.errors[0] < 1.5 < held.errors[1]
    assert held.inside >= 14


def test_an_isoflop_study_forecasts_losses_too() -> None:
    budgets = np.repeat(np.geomspace(1e19, 1e21, 5), 7)
    n = np.sqrt(budgets / 120) * np.tile(np.geomspace(0.25, 4, 7), 5)
    frame = pd.DataFrame({"n": n, "d": budgets / 6 / n, "c": budgets})
    law = find_law("chinchilla")
    frame["loss"] = law.loss(TRUTHS["chinchilla"], n=frame["n"].to_numpy(), d=frame["d"].to_numpy())
    made = ts.fit(frame, draws=100)
    assert made.law.name == "isoflop"
    row = made.predict(n=1e10, d=2e11).iloc[0]
    assert row["loss"] == pytest.approx(float(law.loss(TRUTHS["chinchilla"], n=1e10, d=2e11)), rel=0.02)


def test_a_saved_fit_forecasts_as_the_fit_did(tmp_path: Path) -> None:
    simulated(0.005).iloc[::5].to_csv(tmp_path / "runs.csv", index=False)
    assert invoke("fit", str(tmp_path / "runs.csv"), "--results", str(tmp_path), "--bootstrap", "100").exit_code == 0
    folder, (record,) = read_records(str(tmp_path))
    again = read_fit(folder, record).predict(n=1e11, d=1e12)
    first = ts.fit(pd.read_csv(tmp_path / "runs.csv"), draws=100).predict(n=1e11, d=1e12)
    pd.testing.assert_frame_equal(first, again, rtol=1e-9)


def test_a_break_inside_the_data_is_said() -> None:
    warned = [
        any("the loss bends" in note for note in fit_law(runs, "power-n", draws=100).warnings)
        for runs, _ in (bent_runs(0.25, seed, at=4e5, noise=0.001) for seed in range(5))
    ]
    assert all(warned)


def test_a_run_far_off_the_law_is_named() -> None:
    frame = runs_of_sizes(sd=0.002)
    frame.loc[7, "val_loss"] *= 1.08
    assert any("lies" in note and "above the law" in note for note in fit_law(frame, "power-n", draws=100).warnings)
    assert not any("lies" in note for note in fit_law(runs_of_sizes(sd=0.002), "power-n", draws=100).warnings)


def test_with_its_floor_held_a_law_gives_the_forecast_that_was_registered() -> None:
    held = fit_law(FRONTIER, "power-c", hold={"E": 1.6}, draws=100)
    assert held.interval("E") == (1.6, 1.6)
    assert held.params["alpha"] == pytest.approx(0.0941, abs=2e-4)
    assert held.predict(c=AFTERWARDS[0])["loss"][0] == pytest.approx(2.252, abs=1e-3)


def test_without_it_the_interval_holds_what_was_measured_later() -> None:
    row = fit(FRONTIER, draws=100).predict(c=AFTERWARDS[0]).iloc[0]  # type: ignore[union-attr]
    assert row["low"] < AFTERWARDS[1] < row["high"]
    assert row["high"] / row["low"] < 1.1


def test_a_prior_draws_a_parameter_as_far_as_the_data_leave_it_free() -> None:
    frame = runs_of_sizes(sd=0.01)
    free = fit_law(frame, "power-n", draws=100).params["alpha"]
    drawn = [
        fit_law(frame, "power-n", prior={"alpha": (0.5, sd)}, draws=100).params["alpha"] for sd in (10, 0.05, 1e-4)
    ]
    assert drawn[0] == pytest.approx(free, rel=1e-3)
    assert free < drawn[1] < 0.5
    assert drawn[2] == pytest.approx(0.5, abs=1e-3)


def test_one_sided_fits_follow_the_best_runs() -> None:
    frame = runs_of_sizes(sd=0.001)
    frame.loc[frame.index % 3 == 0, "val_loss"] *= 1.03
    n = np.geomspace(1e5, 1e6, 3)
    truth = TRUE["E"] + TRUE["A"] * n ** -TRUE["alpha"]
    usual, best = (fit_law(frame, "power-n", one_sided=side, draws=100) for side in (False, True))
    above = [np.abs(found.law.loss(found.params, n=n) / truth - 1).mean() for found in (usual, best)]
    assert above[1] < 0.3 * above[0]


def test_the_table_of_floors_is_likeliest_at_the_estimate() -> None:
    found = fit_law(FRONTIER, "power-c", draws=100)
    floors = found.floors(c=1e23)
    assert floors["floor"][floors["likelihood"].idxmax()] == pytest.approx(found.params["E"], rel=1e-6)
    assert floors["loss"].is_monotonic_increasing


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"hold": {"F": 1.0}}, "has no F"),
        ({"hold": {"E": -1.0}}, "lies outside 0 to 1000"),
        ({"hold": dict(TRUE)}, "nothing to fit"),
        ({"prior": {"alpha": (0.3, 0.0)}}, "an sd above zero"),
    ],
)
def test_what_cannot_be_held_is_refused_with_the_reason(options: dict, reason: str) -> None:
    with pytest.raises(FitError, match=reason):
        fit_law(runs_of_sizes(), "power-n", **options)


def test_options_that_are_no_numbers_are_refused_by_name(tmp_path: Path) -> None:
    runs_of_sizes().to_csv(tmp_path / "runs.csv", index=False)
    for option, given, remedy in (("--hold", "E:1", "E=1.6"), ("--prior", "alpha=0.35", "alpha=0.35+-0.05")):
        result = invoke("fit", str(tmp_path / "runs.csv"), option, given)
        assert result.exit_code == 2
        assert remedy in result.output
