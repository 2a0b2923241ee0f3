"""Drawing of models rounded to a few bits: (frame, ax=None) -> Axes. Nothing is saved here.

frame: one row per measurement; seeds, which differ in neither d_model nor bits, are one point, their mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from tinyscale.fitting.laws.bits import THEORY
from tinyscale.reporting.plot_law import GREY, LEGEND, ORANGE, entitle, new_axes, shades, tidy

BY = ["d_model", "bits"]
NAME: dict[str, Any] = {  # below a point to the left, aslant, so that names of neighbours do not meet
    "textcoords": "offset points", "ha": "right", "va": "top", "rotation": 35, "rotation_mode": "anchor",
    "fontsize": "x-small", "color": GREY,
}  # fmt: skip


def front(frame: pd.DataFrame) -> pd.DataFrame:
    """The models than which no other has a lower loss in as few bits.

    frame: columns loss, model_bits, d_model and bits. One row per model, from the fewest bits to the most.
    """
    models = frame.groupby(BY, as_index=False)[["model_bits", "loss"]].mean().sort_values(["model_bits", "loss"])
    best_before = models["loss"].cummin().shift(fill_value=np.inf)
    return models[models["loss"] < best_before].reset_index(drop=True)


def plot_front(frame: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Loss against the bits of the whole model, one line per width, and the front with each of its models named.

    frame: columns loss, model_bits, d_model and bits.
    """
    ax = ax or new_axes()
    best = front(frame)
    ax.plot(best["model_bits"], best["loss"], lw=6, color=ORANGE, alpha=0.3, solid_capstyle="round", label="front")
    for (width, rows), colour in zip(frame.groupby("d_model"), shades(frame["d_model"].nunique()), strict=True):
        means = rows.groupby("bits")[["model_bits", "loss"]].mean()
        ax.plot(means["model_bits"], means["loss"], "o-", ms=4, lw=0.9, color=colour, mec="white", mew=0.4,
                label=f"d{width}")  # fmt: skip
    for row in best.itertuples():
        at = float(row.model_bits), float(row.loss)  # type: ignore[arg-type]
        ax.annotate(f"d{row.d_model}, {row.bits} bits", at, (-2, -5), **NAME)
    ax.set_xscale("log")
    ax.set_yscale("log")
    low, high = ax.get_xlim()
    ax.set_xlim(low * (low / high) ** 0.12, high)  # for the leftmost name
    least, most = best["loss"].min(), min(frame["loss"].max(), 1.3 * best["loss"].max())
    ax.set_ylim(least * (least / most) ** 0.18, most)  # a few hardly trained or hardly coded models would rule the axis
    ax.set_xlabel("bits of the model, scales included")
    ax.set_ylabel("Validation loss (nats per token)")
    entitle(ax, title)
    ax.legend(**LEGEND, fontsize="small", loc="upper right")
    tidy(ax)
    return ax


def plot_delta(frame: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """What rounding adds to the loss against the bits of a weight, one line per width, and the slope of theory.

    frame: columns delta, delta_se, d_model and bits. Bars are 95 % intervals; a delta that is not above zero is not
    shown.
    """
    ax = ax or new_axes()
    for (width, rows), colour in zip(frame.groupby("d_model"), shades(frame["d_model"].nunique()), strict=True):
        seeds = rows.assign(variance=rows["delta_se"] ** 2).groupby("bits")
        means = seeds[["delta", "variance"]].mean().assign(seeds=seeds.size())
        means = means[means["delta"] > 0]
        error = 1.96 * np.sqrt(means["variance"] / means["seeds"])
        bars = np.stack([np.minimum(error, 0.999 * means["delta"]), error])
        ax.errorbar(means.index, means["delta"], bars, fmt="o-", ms=4, lw=1, color=colour, mec="white", mew=0.4,
                    elinewidth=0.8, label=f"d{width}")  # fmt: skip
    shown = frame[frame["delta"] > 0]
    bits = np.array([shown["bits"].min(), shown["bits"].max()], float)
    middle = float(np.exp((np.log(shown["delta"]) + shown["bits"] / THEORY["gP"]).median()))
    ax.plot(bits, middle * np.exp(-bits / THEORY["gP"]), "--", lw=1.4, color=GREY, label="theory: falls by 4 per bit")
    ax.set_yscale("log")
    ax.set_ylim(shown["delta"].min() / 3, shown["delta"].max() * 2)
    ax.set_xlabel("P: bits of a weight")
    ax.set_ylabel("loss added by rounding (nats per token)")
    entitle(ax, title)
    ax.legend(**LEGEND, fontsize="small", loc="upper right")
    ax.grid(visible=True, which="major", color="0.9", lw=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
