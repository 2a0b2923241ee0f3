"""Drawing: functions (fit, frame, ax=None) -> Axes. Nothing is saved here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from tinyscale.fitting.laws import VARIABLES
from tinyscale.fitting.points import count

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from tinyscale.fitting.fit import Fit

# Okabe and Ito 2008: told apart by all common kinds of colour vision, and in grey.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"


def plot_fit(fit: Fit, frame: pd.DataFrame | None = None, ax: Axes | None = None) -> Axes:
    """Loss against the law's variable: seeds, their means, the curve with its 95 % band, the held-out prediction."""
    ax = ax or plt.subplots(figsize=(6.4, 4.4), layout="constrained")[1]
    name = fit.law.variables[0]
    points = fit.points.frame if frame is None else frame
    x, loss = points[name].to_numpy(float), points["loss"].to_numpy(float)
    grid = np.geomspace(x.min() / 1.25, x.max() * (4 if fit.held_out else 1.6), 200)
    curve = fit.predict(noise=False, **{name: grid})
    ax.fill_between(grid, curve["low"], curve["high"], color=BLUE, alpha=0.18, lw=0, label="95 % band of the curve")
    ax.plot(grid, curve["loss"], color=BLUE, lw=1.6, label="fit")
    _draw_points(ax, x, loss, fit.points.size)
    if fit.held_out:
        at = fit.held_out.size[name]
        ax.plot(at, fit.held_out.predicted, "D", ms=7, mfc="none", mec=ORANGE, mew=1.6, zorder=5,
                label=f"largest size, predicted from the smaller ({fit.held_out.error_percent:+.2f} %)")  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlim(grid[0], grid[-1])
    shown = np.concatenate([loss, curve["loss"]])
    pad = 0.06 * np.ptp(shown)
    ax.set_ylim(max(shown.min() - pad, 0), shown.max() + 2.2 * pad)
    symbol, unit = VARIABLES[name]
    ax.set_xlabel(f"{symbol}: {unit} ({fit.points.counts[name]})" if name == "n" else f"{symbol}: {unit}")
    ax.set_ylabel("Validation loss (nats per token)")
    _count_ticks(ax)
    ax.set_title("\n".join(filter(None, [fit.labels.get("title"), fit.slice])), fontsize=10, loc="left")
    ax.legend(frameon=False, fontsize=8.5, loc="upper right", title=_law_text(fit), title_fontsize=10, alignment="left")
    return ax


def _draw_points(ax: Axes, x: np.ndarray, loss: np.ndarray, size: np.ndarray) -> None:
    """Every seed as a small open point; the mean of a size where there are several."""
    repeats = np.bincount(size)
    if repeats.max() == 1:
        ax.plot(x, loss, "o", ms=5.5, color=GREY, mec="white", mew=0.6, label="runs", zorder=4)
        return
    ax.plot(x, loss, "o", ms=5, mfc="none", mec=GREY, mew=0.9, alpha=0.8, label="seeds", zorder=3)
    centre, mean = np.exp(np.bincount(size, np.log(x)) / repeats), np.bincount(size, loss) / repeats
    ax.plot(centre, mean, "_", ms=13, color="black", mew=1.6, label="mean of a size", zorder=4)


def _law_text(fit: Fit) -> str:
    """The law with its numbers, as mathematics."""
    symbol = VARIABLES[fit.law.variables[0]][0]
    alpha = f"{fit.params['alpha']:.3f}"
    floor = f"{fit.params['E']:.3f} + " if "E" in fit.params else ""
    mantissa, _, power = f"{fit.params['A']:.3g}".partition("e")
    scale = f"{mantissa} \\times 10^{{{int(power)}}}" if power else mantissa
    return f"$L({symbol}) = {floor}{scale}\\;{symbol}^{{-{alpha}}}$"


def _count_ticks(ax: Axes) -> None:
    """Ticks at 1, 2, 5 (within two decades) or at decades, written 100K, 2M, 1B; plain numbers for the loss."""
    low, high = ax.get_xlim()
    decades = np.log10(high / low)
    steps = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0, 3.0) if decades < 4 else (1.0,)
    ax.xaxis.set_major_locator(LogLocator(base=10, subs=steps, numticks=20))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    ax.grid(visible=True, which="major", color="0.9", lw=0.7)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
