"""Drawing of arms against their base: a forest plot. Nothing is saved here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from tinyscale.analysis.compare import Contrast
from tinyscale.formatting import compact
from tinyscale.reporting.plot_law import BLUE, GREY, LEGEND, ORANGE, literal, new_axes, shades, tidy

INCHES = 0.75  # of height for an arm, whose name may have three lines
GAP = 0.16  # between an arm's mean and its sizes, of the distance of two arms


def plot_contrasts(contrasts: Sequence[Contrast], ax: Axes | None = None) -> Axes:
    """Each arm's difference from the base with its 95 % interval, and below it the mean at each size.

    Arms are in the order of their differences, the best on top. Blue: better than the base; orange: worse; grey: no
    difference seen. What an arm is worth in compute stands below its name, with its interval.
    """
    ax = ax or new_axes()
    arms = sorted(contrasts, key=lambda each: each.difference.value, reverse=True)
    sizes = sorted({size for each in arms for size in each.by_size}, key=float)
    colours = dict(zip(sizes, shades(len(sizes)), strict=True))
    figure = ax.get_figure(root=True)
    if figure and len(figure.axes) == 1:
        figure.set_figheight(max(figure.get_figheight(), INCHES * len(arms)))
    for row, each in enumerate(arms):
        low, high = each.difference.ends
        colour = BLUE if high < 0 else ORANGE if low > 0 else GREY
        ax.plot([low, high], [row, row], color=colour, lw=2.2, solid_capstyle="butt")
        ax.plot(each.difference.value, row, "s", ms=6, color=colour, mec="white", mew=0.6)
        for size, value in each.by_size.items():
            ax.plot(value, row - GAP, "o", ms=4, color=colours[size], mec="white", mew=0.4)
    for size in sizes:
        ax.plot([], [], "o", ms=4, color=colours[size], label=f"N = {compact(float(size))}")
    ax.axvline(0, color=GREY, lw=0.9, zorder=0)
    tidy(ax)
    ax.set_yticks(np.arange(len(arms)), [_name(each) for each in arms])
    ax.set_ylim(-0.6, len(arms) - 0.4)
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:+.3g}" if value else "0")
    ax.set_xlabel(f"difference from {literal(arms[0].base)} ({arms[0].unit}); left is better")
    if len(sizes) > 1:
        ax.legend(**LEGEND, fontsize="small", loc="best")
    return ax


def _name(each: Contrast) -> str:
    """The arm, and its worth by the law shared with the base; without one, by the base's law at the largest size."""
    by_size = list(each.multipliers["flops"].by_size.items()) if "flops" in each.multipliers else []
    size, worth = by_size[-1] if by_size else ("", None)
    where = f"\nat N = {compact(float(size))}" if size else ""
    if shared := each.efficiency.get("compute"):
        worth, where = shared, ""
    shown = f"\n{worth.value:.2f} x compute ({worth.low:.2f} to {worth.high:.2f}){where}" if worth else ""
    return literal(each.arm) + shown
