"""Plots are drawn on the axes they are given, say what they show, and save nothing."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from test_fitting_fit import runs_of_sizes

from tinyscale.fitting.fit import fit_law

mpl.use("Agg")
import itertools

from matplotlib import pyplot as plt

from tinyscale.plot import plot_fit


@pytest.fixture(autouse=True)
def figures_are_closed() -> Iterator[None]:
    yield
    plt.close("all")


def test_it_draws_on_the_given_axes_and_saves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, ax = plt.subplots()
    assert plot_fit(fit_law(runs_of_sizes(), "power-n"), ax=ax) is ax
    assert list(tmp_path.iterdir()) == []


def test_axes_carry_units_and_the_law_its_numbers() -> None:
    found = fit_law(runs_of_sizes(), "power-n")
    ax = plot_fit(found)
    assert ax.get_xlabel() == "N: parameters (n_non_embedding)"
    assert ax.get_ylabel() == "Validation loss (nats per token)"
    legend = ax.get_legend()
    assert legend is not None
    assert f"{found.params['alpha']:.3f}" in legend.get_title().get_text()
    assert any("predicted from the smaller" in text.get_text() for text in legend.get_texts())


def test_ticks_are_counts_and_do_not_overlap() -> None:
    ax = plot_fit(fit_law(runs_of_sizes(), "power-n"))
    ax.figure.draw_without_rendering()
    low, high = ax.get_xlim()
    shown = [t for t, at in zip(ax.get_xticklabels(), ax.get_xticks(), strict=True) if low <= at <= high]
    assert "1M" in [tick.get_text() for tick in shown]
    boxes = [tick.get_window_extent() for tick in shown]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_every_seed_is_a_point() -> None:
    found = fit_law(runs_of_sizes(), "power-n")
    (seeds,) = [line for line in plot_fit(found).lines if line.get_label() == "seeds"]
    np.testing.assert_allclose(np.sort(seeds.get_ydata()), np.sort(found.points.frame["loss"]))
