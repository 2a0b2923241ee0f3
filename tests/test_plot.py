"""Plots are drawn on the axes they are given, say what they show, and save nothing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from helpers.runs import HOFFMANN, grid_of, runs_by_rate, runs_of_sizes
from tinyscale.fitting.fit import fit_law
from tinyscale.fitting.isoflop import fit_isoflop
from tinyscale.fitting.laws import find_law
from tinyscale.fitting.record import Origin
from tinyscale.fitting.tuning import best_setting, fit_tuning

mpl.use("Agg")
import itertools

from matplotlib import pyplot as plt
from matplotlib.text import Text

from tinyscale.reporting import plot_optima as plot_optima_module
from tinyscale.reporting.figures import figures_of
from tinyscale.reporting.plot_law import new_axes, plot_fit
from tinyscale.reporting.plot_optima import plot_budgets, plot_optima, plot_settings, plot_tuning
from tinyscale.reporting.plot_runs import _style, plot_residuals, plot_runs


@pytest.fixture(autouse=True)
def figures_are_closed() -> Iterator[None]:
    yield
    plt.close("all")


def test_it_draws_on_the_given_axes_and_saves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, ax = plt.subplots()
    assert plot_fit(fit_law(runs_of_sizes(), "power-n"), ax) is ax
    assert list(tmp_path.iterdir()) == []


def test_axes_carry_units_and_the_law_its_numbers() -> None:
    found = fit_law(runs_of_sizes(), "power-n")
    ax = plot_fit(found)
    assert ax.get_xlabel() == "N: parameters (n_non_embedding)"
    assert ax.get_ylabel() == "Validation loss (nats per token)"
    legend = ax.get_legend()
    assert legend is not None
    assert f"{found.params['alpha']:.3f}" in legend.get_title().get_text()
    assert any("as the smaller predict it" in text.get_text() for text in legend.get_texts())


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


@pytest.mark.parametrize(
    "name", ["chinchilla", "data-constrained", "kaplan", "width-depth", "broken", "bits", "bits-n", "bits-alone"]
)
def test_every_kind_of_law_can_be_drawn(name: str) -> None:
    found = fit_law(grid_of(find_law(name)).sample(40, random_state=0, replace=True), name, draws=100, holdout=0)
    ax = plot_fit(found)
    ax.figure.draw_without_rendering()
    assert ax.get_legend() is not None


def test_best_rates_are_drawn_with_their_law_and_its_band_and_with_the_curves_behind_them() -> None:
    found = fit_tuning(runs_by_rate(), "lr")
    ax = plot_tuning(found)
    legend = ax.get_legend()
    assert legend is not None
    assert f"{found.params['p']:.3f}" in legend.get_title().get_text()
    (band,) = [each for each in ax.collections if each.get_label() == "95 % band of the line"]
    ends = band.get_paths()[0].get_extents()
    assert ends.y0 < found.table["best"].min()
    assert ends.y1 > found.table["best"].max()
    curves = plot_settings(found)
    assert curves.get_xlabel() == "lr: peak learning rate"
    dots = sum(len(line.get_xdata()) for line in curves.lines if line.get_marker() == "o")
    assert dots == len(found.runs), "every seed is a point"


def test_the_best_batch_is_drawn_beside_the_best_rate() -> None:
    rng, n = np.random.default_rng(0), np.repeat(np.geomspace(1e6, 1e9, 5), 40)
    z = rng.uniform(-1.5, 1.5, (2, len(n)))
    loss = 3 * n**-0.05 * np.exp(0.01 * z[0] ** 2 + 0.01 * z[1] ** 2 + 1e-4 * rng.standard_normal(len(n)))
    settings = {"lr": 0.3 * n**-0.35 * np.exp(z[0]), "batch_tokens": 20 * n**0.4 * np.exp(z[1])}
    found = fit_tuning(pd.DataFrame({"n": n, "d": 20 * n, "loss": loss, **settings}))
    figures = figures_of(found)
    assert list(figures) == ["curves", "law", "batch_tokens"]
    ax = figures["batch_tokens"](ax=new_axes())
    assert ax.get_ylabel() == "Best batch_tokens"
    (stars,) = [line for line in ax.lines if line.get_marker() == "*"]
    np.testing.assert_allclose(np.asarray(stars.get_ydata(), float), 20 * np.unique(n) ** 0.4, rtol=0.1)
    assert f"{found.params['p_B']:.3f}" in ax.get_legend().get_title().get_text()


def test_the_band_of_best_rates_is_that_of_the_fits_own_intervals() -> None:
    """Far away the width of the band in log rate is that of p alone."""
    found = fit_tuning(runs_by_rate(), "lr")
    far = np.exp(np.array([1000.0, 1001.0]) / 2)
    best = found.table["best"].to_numpy(float)
    low, high = plot_optima_module._tuning_band(found, far, lambda n: best_setting(found.estimates, n), best, "p")
    widening = np.diff(np.log(high / low) / 2)[0] / 0.5
    assert widening == pytest.approx((found.interval("p")[1] - found.interval("p")[0]) / 2, rel=1e-3)


def test_the_held_out_size_is_marked_on_curves_and_families() -> None:
    for found in (
        fit_law(runs_of_sizes(), "power-n"),
        fit_law(grid_of(find_law("chinchilla")), "chinchilla", draws=100),
    ):
        assert found.held_out is not None
        (diamond,) = [line for line in plot_fit(found).lines if line.get_marker() == "D"]
        assert list(diamond.get_ydata()) == [found.held_out.predicted]


def test_budgets_and_their_optima_are_drawn_with_the_refused_ones_left_out() -> None:
    truth = find_law("chinchilla")
    rows = []
    for c in np.geomspace(1e15, 1e18, 4):
        n = 0.05 * c**0.51 * (np.geomspace(0.2, 5, 8) if c < 1e18 else np.geomspace(2, 9, 8))
        rows.append(pd.DataFrame({"n": n, "d": c / 6 / n, "c": c, "loss": truth.loss(HOFFMANN, n=n, d=c / 6 / n)}))
    found = fit_isoflop(pd.concat(rows))
    assert plot_budgets(found).get_xlabel() == "N: parameters (n)"
    stars = [each for each in plot_optima(found).lines if len(each.get_xdata()) == 3]
    assert [each.get_marker() for each in stars] == ["*", "*"], "of D and of N"


def test_the_curve_of_a_budget_is_drawn_through_the_bottom_that_the_fit_has() -> None:
    n = np.geomspace(1e6, 1e8, 7)
    runs = [
        pd.DataFrame({"n": k * n, "d": 1e8, "c": 1e16 * k**2, "loss": 3 / k * (n / 1e7) ** 0.02}) for k in (1, 2, 4)
    ]
    runs = [each.assign(loss=each["loss"] + 0.05 * np.log(each["n"] / each["n"].median()) ** 2) for each in runs]
    found = fit_isoflop(pd.concat(runs))
    curves = [each for each in plot_budgets(found).lines if each.get_linestyle() == "-" and len(each.get_xdata()) == 60]
    assert [float(np.min(each.get_ydata())) for each in curves] == pytest.approx(found.table["loss"], rel=1e-3)


def test_a_law_is_dashed_beyond_the_runs() -> None:
    found = fit_law(runs_of_sizes(), "power-n")
    solid, dashed = [each for each in plot_fit(found).lines if len(each.get_xdata()) > 20]
    largest = found.runs["n"].max()
    assert max(solid.get_xdata()) <= largest <= min(dashed.get_xdata()) * 1.05
    assert dashed.get_linestyle() == "--"


def test_a_title_is_the_sweep_s_own_with_what_is_shown_below() -> None:
    found = replace(fit_law(runs_of_sizes(), "power-n"), origin=Origin(title="width-a", question="Does width pay?"))
    assert drawn(plot_fit(found)._left_title).splitlines() == ["Does width pay?", f"width-a, {found.slice}"]


def test_thirty_arms_have_thirty_looks() -> None:
    assert len({tuple(_style(arm).values()) for arm in range(30)}) == 30


@pytest.mark.parametrize("text", ["cost $x_$", "$5 and $10", r"\frac{$", "one $", r"a \$ b $c$"])
def test_dollar_signs_in_titles_arms_and_columns_are_text(text: str) -> None:
    runs = runs_of_sizes()
    found = replace(fit_law(runs, "power-n"), origin=Origin(title=text))
    tuned = replace(fit_tuning(runs_by_rate(), "lr"), origin=Origin(title=text))
    points = pd.DataFrame({
        "trial": ["a", "b"], "arm": [text, "_hidden"], "sweep": text, "corpus": [text, "x"],
        "tokens": [1e6, 2e6], "val_loss": [3.0, 2.9],
    })  # fmt: skip
    for ax in (plot_fit(found), plot_settings(tuned), plot_tuning(tuned), plot_residuals(found)):
        assert drawn(ax._left_title).startswith(text)
    ax = plot_runs(points, by="corpus")
    ax.figure.draw_without_rendering()
    assert drawn(ax._left_title) == text
    legend = ax.get_legend()
    assert legend is not None
    assert [drawn(each).strip() for each in legend.get_texts()] == [text, "x", text, "_hidden"]


def drawn(text: Text) -> str:
    """What matplotlib shows of it; an error where it is mathematics that does not parse."""
    shown, is_mathematics = text._preprocess_math(text.get_text())
    assert not is_mathematics
    return str(shown)
