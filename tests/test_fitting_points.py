"""Which points belong together."""

import numpy as np
import pandas as pd
import pytest

from helpers.runs import grid_of
from tinyscale.fitting import fit, fit_law, laws_for
from tinyscale.fitting.laws import find_law
from tinyscale.fitting.points import SAME_SIZE, group_sizes, read_points


def test_seeds_of_one_size_are_one_cluster() -> None:
    frame = pd.DataFrame({"n": [1e6, 1e6, 2e6, 2e6], "loss": [3.0, 3.1, 2.8, 2.9], "run": ["a", "b", "c", "d"]})
    assert read_points(frame, find_law("power-n")).cluster.tolist() == [0, 0, 1, 1]


def test_points_of_one_run_are_one_cluster_together_with_their_seeds() -> None:
    frame = pd.DataFrame({
        "n": [1e6, 1e6, 1e6, 1e6, 2e6], "d": [1e7, 2e7, 1e7, 2e7, 1e7],
        "run": ["a", "a", "b", "b", "c"], "loss": [3.0, 2.9, 3.1, 2.8, 2.7],
    })  # fmt: skip
    assert read_points(frame, find_law("chinchilla")).cluster.tolist() == [0, 0, 0, 0, 1]


def test_without_runs_each_configuration_is_a_cluster() -> None:
    frame = pd.DataFrame({"n": [1e6, 1e6, 2e6], "d": [1e7, 2e7, 1e7], "loss": [3.0, 2.9, 2.8]})
    assert read_points(frame, find_law("chinchilla")).cluster.tolist() == [0, 1, 2]


def test_sizes_within_a_percent_are_one() -> None:
    assert group_sizes(np.log([1e6, 2e6, 1.003e6])).tolist() == [0, 1, 0]


@pytest.mark.parametrize("step", [1e-4, 0.003, 0.009, 0.0099])
def test_sizes_do_not_join_into_chains(step: float) -> None:
    logarithm = np.random.default_rng(0).permutation(step * np.arange(500))
    size = group_sizes(logarithm)
    spread = [np.ptp(logarithm[size == index]) for index in range(size.max() + 1)]
    assert max(spread) <= 2 * SAME_SIZE
    assert size.max() + 1 >= np.ptp(logarithm) / (3 * SAME_SIZE)
    assert (np.diff(size[np.argsort(logarithm)]) >= 0).all()


def test_a_chain_is_cut_where_its_sizes_are_furthest_apart() -> None:
    assert group_sizes(np.array([0, 0.005, 0.014, 0.019, 0.021])).tolist() == [0, 0, 1, 1, 1]


def test_equal_sizes_share_a_setting_wherever_they_lie() -> None:
    for n in np.geomspace(1e6, 1.02e6, 200):
        frame = pd.DataFrame({"n": [n, 1.001 * n, 3 * n], "d": 1e7, "loss": [3.0, 3.1, 2.5]})
        points = read_points(frame, find_law("chinchilla"))
        assert points.cluster.tolist() == [0, 0, 1]
        assert points.configs() == 2


def test_a_dense_sweep_of_sizes_is_fitted_with_a_size_held_out() -> None:
    n = np.geomspace(1e6, 1e8, 500)
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(500))
    found = fit(pd.DataFrame({"n": n, "d": 20 * n, "loss": (1.4 + 60 * n**-0.29) * noise}), draws=200)
    assert found.held_out is not None
    assert found.params["alpha"] == pytest.approx(0.29, abs=0.02)


def test_compute_that_just_varies_is_no_set_of_budgets() -> None:
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(np.log(1e7), np.log(1e9), (2, 1500)))
    assert laws_for(pd.DataFrame({"n": n, "d": 20 * d, "c": 120 * n * d})) == ("chinchilla",)


def test_a_copy_of_a_row_is_no_second_run() -> None:
    frame = grid_of(find_law("chinchilla"))
    frame["loss"] *= np.exp(0.005 * np.random.default_rng(0).standard_normal(len(frame)))
    once = fit_law(frame, "chinchilla", draws=200)
    thrice = fit_law(pd.concat([frame] * 3, ignore_index=True), "chinchilla", draws=200)
    assert thrice.estimates == once.estimates
    assert thrice.noise == once.noise
    assert f"{2 * len(frame)} rows left out: exact copies of others" in thrice.warnings[0]
    seeds = pd.concat([frame.assign(seed=seed) for seed in range(3)], ignore_index=True)
    assert len(fit_law(seeds, "chinchilla", draws=200, holdout=0).points) == 3 * len(frame)
