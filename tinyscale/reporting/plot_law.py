"""Drawing of laws of the loss: (fit, ax=None, frame=None) -> Axes. Nothing is saved here."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from tinyscale.fitting.arrays import Array, Index
from tinyscale.fitting.fit import Fit
from tinyscale.fitting.laws import VARIABLES
from tinyscale.fitting.points import group_sizes
from tinyscale.formatting import compact, printable

# Okabe and Ito 2008: told apart by all common kinds of colour vision, and in grey.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
LEGEND: dict[str, Any] = {"framealpha": 0.9, "edgecolor": "none"}  # white behind the words, no box
MOST_NAMED = 8  # sizes named in a legend; more would cover the plot


def plot_fit(fit: Fit, ax: Axes | None = None, frame: pd.DataFrame | None = None) -> Axes:
    """The law and the runs behind it: one curve with its 95 % band, or for a joint law a curve and band for each size.

    frame: points to draw instead of the fitted ones, columns named as the law's variables and `loss`.
    """
    ax = ax or new_axes()
    points = fit.runs if frame is None else frame
    if len(fit.law.variables) == 1:
        _draw_curve(fit, points, ax)
    elif "teacher" in fit.law.variables:
        _draw_students(fit, points, ax)
    else:
        _draw_family(fit, points, ax)
    ax.set_ylabel(_predicted(fit))
    entitle(ax, fit.origin.question, fit.origin.title, fit.slice)
    tidy(ax)
    return ax


def _predicted(fit: Fit) -> str:
    """What the law is of, with its unit."""
    if fit.law.predicts != "loss":
        return f"{fit.law.predicts}: what is added to the loss (nats per token)"
    column = fit.points.counts["loss"]
    return f"{column}: share of the variance left over" if column == "fvu" else "Validation loss (nats per token)"


def literal(text: object) -> str:
    """A user's text for matplotlib, which takes a pair of dollar signs for mathematics and hides labels after `_`."""
    shown = printable(str(text)).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def entitle(ax: Axes, question: str, *more: str) -> None:
    """Title of the axes: what the sweep asks, and below it which of its runs are shown."""
    below = ", ".join(filter(None, more))
    lines = [line for text in (question, below) for line in textwrap.wrap(text, 80, max_lines=2, placeholder=" ...")]
    ax.set_title("\n".join(map(literal, lines)), fontsize="medium", loc="left")


def shades(number: int) -> Array:
    """Colours (number, 4) from dark to light for what has an order; the lightest still shows on white."""
    found: Array = colormaps["viridis"](np.linspace(0, 0.8, number))
    return found


def new_axes(columns: int = 1) -> Axes:
    """Axes of a new figure that is wide enough for its labels."""
    axes: Axes = plt.subplots(figsize=(6.4 * columns, 4.4), layout="constrained")[1]
    return axes


def plot_reaching(ax: Axes, x: Array, y: Array, reach: float, **style: Any) -> None:
    """A line that is dashed beyond what was measured."""
    inside = x <= reach
    ax.plot(x[inside], y[inside], **style)
    beyond = x >= x[inside][-1]
    ax.plot(x[beyond], y[beyond], **{**style, "ls": "--", "label": None})


def _draw_curve(fit: Fit, points: pd.DataFrame, ax: Axes) -> None:
    """Seeds, their means, the curve with its band, and the largest size as predicted from the smaller ones."""
    name = fit.law.variables[0]
    x, loss = points[name].to_numpy(float), points["loss"].to_numpy(float)
    grid = np.geomspace(x.min() / 1.25, x.max() * (4 if fit.law.sizes else 1.25), 200)
    curve = fit.predict(noise=False, **{name: grid})
    ax.fill_between(grid, curve["low"], curve["high"], color=BLUE, alpha=0.18, lw=0, label="95 % band of the curve")
    plot_reaching(
        ax, grid, curve["loss"].to_numpy(float), x.max(), color=BLUE, lw=1.6, label="fit, dashed beyond the runs"
    )
    _draw_seeds(ax, x, loss, group_sizes(np.log(x)))
    _draw_held_out(ax, fit, name)
    ax.set_xscale("log")
    ax.set_xlim(grid[0], grid[-1])
    shown = np.concatenate([loss, curve["loss"]])
    ax.set_yscale("log")
    _widen(ax, shown, below=0.06, above=0.14)
    symbol, unit = VARIABLES[name]
    ax.set_xlabel(f"{symbol}: {unit} ({literal(fit.points.counts[name])})" if name == "n" else f"{symbol}: {unit}")
    ax.legend(
        **LEGEND, fontsize="small", loc="upper right", title=law_text(fit), title_fontsize="medium", alignment="left"
    )


def _widen(ax: Axes, loss: Array, *, below: float, above: float) -> None:
    """Show the losses with margins below and above, as shares of their span."""
    low, high = np.log(loss.min()), np.log(loss.max())
    span = max(high - low, 1e-3)
    ax.set_ylim(np.exp(low - below * span), np.exp(high + above * span))


def _draw_seeds(ax: Axes, x: Array, loss: Array, size: Index) -> None:
    """Every seed as a small open point; the mean of a size where there are several."""
    repeats = np.bincount(size)
    if repeats.max() == 1:
        ax.plot(x, loss, "o", ms=5.5, color=GREY, mec="white", mew=0.6, label="runs", zorder=4)
        return
    ax.plot(x, loss, "o", ms=5, mfc="none", mec=GREY, mew=0.9, alpha=0.8, label="seeds", zorder=3)
    centre, mean = np.exp(np.bincount(size, np.log(x)) / repeats), np.bincount(size, loss) / repeats
    ax.plot(centre, mean, "_", ms=13, color="black", mew=1.6, label="mean of a size", zorder=4)


def _draw_held_out(ax: Axes, fit: Fit, name: str, *, wide: bool = True) -> None:
    """The loss that the smaller sizes alone predict for the largest, with a stem to what was measured there."""
    if held := fit.held_out:
        said = "largest size, as the smaller predict it" if wide else "largest size, as\nthe smaller predict"
        x, label = held.size[name], f"{said} ({held.error_percent:+.2f} %)"
        ax.plot([x, x], [held.predicted, held.actual], color=ORANGE, lw=1.2, zorder=4)
        ax.plot(x, held.predicted, "D", ms=7, mfc="none", mec=ORANGE, mew=1.6, zorder=5, label=label)


def _draw_family(fit: Fit, points: pd.DataFrame, ax: Axes) -> None:
    """Loss against the second variable, or the bits, a colour and a curve for each size of the first.

    A further variable follows the second in the curves; where that is the bits, it has the mean of the size.
    """
    first, second, *rest = sorted(fit.law.variables, key=lambda name: (name != fit.law.variables[0], name != "bits"))
    size = group_sizes(np.log(points[first].to_numpy(float)))
    colours = shades(size.max() + 1)
    named = set(np.unique(np.linspace(0, size.max(), min(size.max() + 1, MOST_NAMED)).round().astype(int)))
    for index, colour in enumerate(colours):
        part = points[size == index]
        value = float(np.exp(np.log(part[first]).mean()))
        label = f"{VARIABLES[first][0]} = {compact(value)}" if index in named else None
        ax.plot(part[second], part["loss"], "o", ms=4, color=colour, mec="white", mew=0.4, zorder=3, label=label)
        grid = np.geomspace(part[second].min(), part[second].max(), 60)
        sizes = {first: np.full(len(grid), value), second: grid}
        for name in rest:
            middle = np.full(len(grid), np.exp(np.log(part[name]).mean()))
            sizes[name] = middle if second == "bits" else np.interp(grid, *_sorted(part[second], part[name]))
        curve = fit.predict(noise=False, **sizes)
        ax.fill_between(grid, curve["low"], curve["high"], color=colour, alpha=0.18, lw=0)
        ax.plot(grid, curve["loss"], color=colour, lw=1.2)
    ax.fill_between([], [], [], color=GREY, alpha=0.18, lw=0, label="95 % band")
    if second == "bits":  # the curves are lines; what was held out are several bits, whose mean is no point of them
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        _draw_held_out(ax, fit, second, wide=False)
        ax.set_xscale("log")
    symbol, unit = VARIABLES[second]
    ax.set_xlabel(f"{symbol}: {unit}")
    ax.set_yscale("log")
    _widen(ax, points["loss"].to_numpy(float), below=0.06, above=0.14)
    name_family(ax, law_text(fit))


def name_family(ax: Axes, title: str) -> None:
    """The law above the axes, and a legend to their right, where it covers no run."""
    ax.legend(fontsize="small", frameon=False, borderaxespad=0, loc="upper left", bbox_to_anchor=(1.01, 1))
    ax.text(
        0.99,
        0.985,
        title,
        transform=ax.transAxes,
        fontsize="small",
        ha="right",
        va="top",
        bbox={"fc": "white", "ec": "none", "alpha": 0.9},
    )


STYLES = (("o", "-"), ("^", "--"), ("s", ":"), ("D", "-."))  # of runs without a teacher, and of each teacher's


def _draw_students(fit: Fit, points: pd.DataFrame, ax: Axes) -> None:
    """Loss against tokens, a colour for each size; the runs of each teacher have a marker and a style of line."""
    size, level = group_sizes(np.log(points["n"].to_numpy(float))), points["teacher"].round(3)
    teachers = sorted(level.unique(), reverse=True)
    teachers = sorted(teachers[: len(STYLES) - 1] if teachers[-1] else teachers[: len(STYLES)])
    teachers = [0.0, *teachers] if (level == 0).any() and 0.0 not in teachers else teachers
    for index, colour in enumerate(shades(size.max() + 1)):
        at = float(np.exp(np.log(points.loc[size == index, "n"]).mean()))
        ax.plot([], [], color=colour, lw=1.4, label=f"N = {compact(at)}")
        for (marker, line), teacher in zip(STYLES, teachers, strict=False):
            part = points[(size == index) & (level == teacher)]
            if part.empty:
                continue
            ax.plot(part["d"], part["loss"], marker, ms=4, color=colour, mec="white", mew=0.4, zorder=3)
            grid = np.geomspace(part["d"].min(), part["d"].max(), 60)
            curve = fit.predict(noise=False, n=np.full(60, at), d=grid, teacher=np.full(60, part["teacher"].mean()))
            ax.plot(grid, curve["loss"], line, color=colour, lw=1.2)
    for (marker, line), teacher in zip(STYLES, teachers, strict=False):
        said = f"teacher of loss {teacher:.3f}" if teacher else "without a teacher"
        ax.plot([], [], marker + line, color=GREY, ms=4, lw=1.2, label=said)
        if teacher:
            ax.axhline(teacher, color=GREY, ls=line, lw=0.8, alpha=0.6)
    ax.set_xscale("log")
    ax.set_xlabel("D: training tokens")
    ax.set_yscale("log")
    _widen(ax, points["loss"].to_numpy(float), below=0.06, above=0.14)
    name_family(ax, _worth(fit))


def _worth(fit: Fit) -> str:
    """What a distilled token is worth, with its interval."""
    rho = fit.estimates["rho"]
    return f"a distilled token is worth {rho.value:.3g} ({rho.low:.3g} to {rho.high:.3g}) of text"


def _sorted(x: pd.Series[float], y: pd.Series[float]) -> tuple[Array, Array]:
    pairs: Array = np.array([x, y], float)
    first, second = pairs[:, np.argsort(pairs[0])]
    return first, second


def law_text(fit: Fit) -> str:
    """The law with its numbers as mathematics, or its plain formula."""
    return fit.law.latex(fit.params) if fit.law.latex else fit.law.formula


def tidy(ax: Axes) -> None:
    """Ticks at 1, 2, 5 (few decades) or at decades, written 100K, 2M, 1B; plain numbers for the loss; a light grid."""
    if ax.get_xscale() == "log":
        low, high = ax.get_xlim()
        decades = np.log10(high / low)
        few = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0) if decades < 0.8 else (1.0, 2.0, 5.0)
        steps = few if decades < 2.5 else (1.0, 3.0) if decades < 4 else (1.0,)
        ax.xaxis.set_major_locator(LogLocator(base=10, subs=steps, numticks=20))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    bottom, top = ax.get_ylim()
    wide = ax.get_yscale() == "log" and top > 8 * bottom
    ax.yaxis.set_major_locator(
        LogLocator(base=10, subs=(1.0, 2.0, 5.0)) if wide else MaxNLocator(8, steps=[1, 2, 2.5, 5, 10])
    )
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.grid(visible=True, which="major", color="0.9", lw=0.7)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
