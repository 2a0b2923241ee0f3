"""Loss against learning rate, for arms that tried several rates."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tinyscale.reporting.plot_rates import plot_rates, rates_tried

RATES = {"adamw": (1e-3, 2e-3, 4e-3, 8e-3), "lion": (2e-4, 4e-4, 8e-4, 1.6e-3)}
BEST = {"adamw": 4e-3, "lion": 4e-4}


def points(arms: tuple[str, ...] = ("adamw", "lion"), rates: int = 4) -> pd.DataFrame:
    """Finished trials of two widths and two seeds, each with a point on the way, at two weight decays."""
    rows = [
        {
            "arm": arm, "n_non_embedding": n, "lr": lr, "seed": seed, "weight_decay": decay, "state": "finished",
            "decayed": decayed, "val_loss": loss + decay + 0.1 * seed + (0 if decayed else 1),
        }
        for arm in arms
        for n in (1000, 10000)
        for lr in RATES[arm][:rates]
        for seed in (0, 1)
        for decay in (0.0, 0.1)
        for decayed in (False, True)
        for loss in [4 - 0.2 * np.log10(n) + 0.1 * np.log(lr / BEST[arm]) ** 2]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_tried_rates_are_means_over_seeds_at_the_best_of_other_settings() -> None:
    tried = rates_tried(points(), ["d_model", "lr", "weight_decay"])
    assert len(tried) == 2 * 2 * 4
    best = tried.loc[tried.groupby(["arm", "n_non_embedding"])["val_loss"].idxmin()]
    assert best.groupby("arm")["lr"].unique().map(list).to_dict() == {arm: [lr] for arm, lr in BEST.items()}
    assert best["val_loss"].min() == pytest.approx(4 - 0.2 * 4 + 0.05)


def test_few_rates_or_a_single_arm_are_no_figure() -> None:
    assert rates_tried(points(("adamw",)), ["lr"]).empty
    assert rates_tried(points(rates=2), ["lr"]).empty


def test_each_arm_and_size_is_a_line_of_its_own_with_a_ring_about_its_best_and_the_legend_is_beside_the_axes() -> None:
    ax = plot_rates(rates_tried(points(), ["lr"]))
    curves = [line for line in ax.lines if len(line.get_xdata()) > 1]
    rings = [line for line in ax.lines if len(line.get_xdata()) == 1]
    assert len({(str(line.get_color()), line.get_marker(), line.get_linestyle()) for line in curves}) == 4
    assert sorted(float(np.asarray(ring.get_xdata())[0]) for ring in rings) == [4e-4, 4e-4, 4e-3, 4e-3]
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["N = 1K", "N = 10K", "adamw", "lion", "best rate"]
    ax.figure.draw_without_rendering()
    assert legend.get_window_extent().x0 >= ax.get_window_extent().x1
