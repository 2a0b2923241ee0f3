"""Figures of rounded models: the front holds the models that none beats, each point a mean of seeds."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")
from matplotlib import pyplot as plt

from tinyscale.reporting.plot_bits import front, plot_delta, plot_front


@pytest.fixture(autouse=True)
def figures_are_closed() -> Iterator[None]:
    yield
    plt.close("all")


def measured() -> pd.DataFrame:
    """Two widths at four bits, two seeds: the wide one is better from 4 bits on, and 8 bits are a waste."""
    rows = [
        {"d_model": width, "bits": bits, "model_bits": 100 * width * bits, "delta": delta * (1 + 0.1 * seed),
         "delta_se": 1e-5, "loss": loss + delta + 0.01 * seed}
        for width, loss in ((8, 4.0), (16, 3.0))
        for bits, delta in ((3, 1.0), (4, 0.2), (5, 0.04), (8, 0.001))
        for seed in (0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_front_holds_the_models_that_none_beats_in_as_few_bits() -> None:
    best = front(measured())
    assert list(zip(best["d_model"], best["bits"], strict=True)) == [
        *((8, bits) for bits in (3, 4, 5)),
        *((16, bits) for bits in (3, 4, 5, 8)),
    ]
    assert best["loss"].is_monotonic_decreasing
    assert best["loss"].iloc[0] == pytest.approx(5.005)


def test_its_models_are_named_by_width_and_bits() -> None:
    _, ax = plt.subplots()
    assert plot_front(measured(), ax) is ax
    assert [text.get_text() for text in ax.texts] == [
        "d8, 3 bits", "d8, 4 bits", "d8, 5 bits", "d16, 3 bits", "d16, 4 bits", "d16, 5 bits", "d16, 8 bits",
    ]  # fmt: skip
    assert ax.get_xlabel() == "bits of the model, scales included"


def test_delta_is_drawn_for_each_width_with_the_slope_of_theory() -> None:
    frame = measured()
    frame.loc[frame["bits"] == 8, "delta"] *= -1
    ax = plot_delta(frame)
    lines = {str(line.get_label()): line for line in ax.lines}
    bits, theory = (np.asarray(each, float) for each in lines["theory: falls by 4 per bit"].get_data())
    assert theory[0] / theory[1] == pytest.approx(4 ** (bits[1] - bits[0]))
    labels = ax.get_legend_handles_labels()[1]
    assert {"d8", "d16"} <= set(labels)
    assert all(np.asarray(line.get_ydata(), float).min() > 0 for line in ax.lines), (
        "what is not above zero is not shown"
    )
