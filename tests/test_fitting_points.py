"""Which points belong together."""

import numpy as np
import pandas as pd

from tinyscale.fitting.laws import find_law
from tinyscale.fitting.points import group_sizes, read_points


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
