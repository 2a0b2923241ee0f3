"""Drawing of loss against learning rate, for arms that tried several. Nothing is saved here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from tinyscale.formatting import compact
from tinyscale.reporting.plot_law import GREY, literal, new_axes, shades, tidy
from tinyscale.results.store import is_final

STYLES: tuple[tuple[str, Any], ...] = (
    ("o", "-"),
    ("^", "--"),
    ("s", ":"),
    ("D", "-."),
    ("v", (0, (5, 1))),
    ("P", (0, (1, 1))),
)
MOST_SIZES = 3  # drawn: more would hide the arms
FEWEST_RATES = 3


def rates_tried(points: pd.DataFrame, settings: list[str]) -> pd.DataFrame:
    """Loss by arm, n_non_embedding and lr, means over seeds, the best over other settings; none that tried few rates.

    points: rows of one sweep; settings: what it varies. Empty below two arms.
    """
    size = ["arm", "n_non_embedding"]
    others = [name for name in settings if name in points and name not in (*size, "lr", "seed")]
    final = points[is_final(points)]
    seeds = final.groupby([*size, "lr", *others], as_index=False, dropna=False)["val_loss"].mean()
    best: pd.DataFrame = seeds.groupby([*size, "lr"], as_index=False)["val_loss"].min()
    kept = best.loc[best.groupby(size)["lr"].transform("nunique") >= FEWEST_RATES]
    return kept if kept["arm"].nunique() > 1 else kept.head(0)


def plot_rates(tried: pd.DataFrame, ax: Axes | None = None, *, searched: bool = False) -> Axes:
    """A line through the rates of each arm and size, with a ring about its best; at most MOST_SIZES of the sizes.

    tried: of `rates_tried`; searched: a search sampled them, with other settings, so no line joins them. A colour for
    each size, a style for each arm; both are named to the right of the axes.
    """
    ax = ax or new_axes()
    sizes = np.unique(tried["n_non_embedding"])
    sizes = sizes[np.unique(np.linspace(0, len(sizes) - 1, MOST_SIZES).round().astype(int))]
    colours = dict(zip(sizes, shades(len(sizes)), strict=True))
    styles = {arm: STYLES[k % len(STYLES)] for k, arm in enumerate(dict.fromkeys(tried["arm"]))}
    styles = {arm: (marker, "none" if searched else line) for arm, (marker, line) in styles.items()}
    for (arm, n), curve in tried[tried["n_non_embedding"].isin(sizes)].groupby(["arm", "n_non_embedding"]):
        (marker, line), colour, at = styles[arm], colours[n], curve.sort_values("lr")
        ax.plot(at["lr"], at["val_loss"], ls=line, marker=marker, ms=4.5, lw=1.3, color=colour, mec="white", mew=0.4)
        best = at[at["val_loss"] == at["val_loss"].min()]
        ax.plot(best["lr"], best["val_loss"], "o", ms=11, mfc="none", mec=colour, mew=1.5)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("Learning rate")
    ax.set_ylabel("Validation loss (nats per token)")
    tidy(ax)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    handles = [Line2D([], [], color=colours[n], lw=2, label=f"N = {compact(float(n))}") for n in sizes]
    handles += [
        Line2D([], [], color=GREY, marker=marker, ls=line, ms=4.5, label=literal(arm))
        for arm, (marker, line) in styles.items()
    ]
    handles.append(Line2D([], [], color=GREY, marker="o", ls="", ms=11, mfc="none", mew=1.5, label="best rate"))
    outside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0}
    ax.legend(handles=handles, fontsize=8.5, frameon=False, **outside)
    return ax
