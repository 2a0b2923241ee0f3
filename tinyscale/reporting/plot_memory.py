"""Drawing of loss against memory: (frame, what, ax=None) -> Axes. Nothing is saved here."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from tinyscale.fitting.isoflop import lower_hull
from tinyscale.formatting import compact
from tinyscale.reporting.plot_law import LEGEND, ORANGE, literal, new_axes, shades, tidy

LABELS = {"training": "memory of a training step (bytes)", "use": "memory of use at a full context (bytes)"}


def memory_bytes(frame: pd.DataFrame, what: str) -> pd.Series[float]:
    """Bytes of a training step (what: training) or of use at a full context (what: use).

    frame: columns weight_bytes, state_bytes, saved_bytes, logits_bytes, cache_bytes_per_token, context_length.
    """
    if what == "use":
        return frame["weight_bytes"] + frame["cache_bytes_per_token"] * frame["context_length"]
    # A gradient has the bytes of its parameter.
    return 2 * frame["weight_bytes"] + frame["state_bytes"] + frame["saved_bytes"] + frame["logits_bytes"]


def memory_front(frame: pd.DataFrame, what: str) -> pd.DataFrame:
    """The models on the lower convex hull of (log bytes, log loss), from the fewest bytes to the most.

    frame: as of `memory_bytes`, with columns val_loss, arm, n_total and tokens. One row for each model, its loss the
    mean over seeds.
    """
    models = frame.assign(bytes=memory_bytes(frame, what)).groupby(["arm", "n_total", "tokens"], as_index=False)
    means = models[["bytes", "val_loss"]].mean().sort_values(["bytes", "val_loss"])
    return means.iloc[lower_hull(np.log(means["bytes"].to_numpy()), np.log(means["val_loss"].to_numpy()))]


def plot_memory(frame: pd.DataFrame, what: str, ax: Axes | None = None) -> Axes:
    """Loss against memory, a marker for each arm, a colour for each token count, and the front.

    frame, what: as of `memory_front`.
    """
    ax = ax or new_axes()
    best = memory_front(frame, what)
    ax.plot(best["bytes"], best["val_loss"], lw=6, color=ORANGE, alpha=0.3, solid_capstyle="round", label="front")
    runs = frame.assign(bytes=memory_bytes(frame, what))
    for (arm, of_arm), marker in zip(runs.groupby("arm"), cycle("osD^v"), strict=False):
        named = [literal(str(arm))] if runs["arm"].nunique() > 1 else []
        apart = of_arm.groupby("n_total")["tokens"].nunique().max() > 1  # else a size has one token count
        counts = sorted(of_arm["tokens"].unique()) if apart else [None]
        for tokens, colour in zip(counts, shades(len(counts)), strict=True):
            rows = of_arm if tokens is None else of_arm[of_arm["tokens"] == tokens]
            label = ", ".join([*named, *([f"{compact(tokens)} tokens"] if tokens else [])]) or "runs"
            ax.plot(rows["bytes"], rows["val_loss"], marker, ms=4, color=colour, mec="white", mew=0.4, label=label)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(LABELS[what])
    ax.set_ylabel("Validation loss (nats per token)")
    ax.legend(**LEGEND, fontsize="small", loc="best")
    tidy(ax)
    return ax
