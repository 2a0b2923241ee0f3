"""Drawing: functions (fit, ax=None, frame=None) -> Axes. Nothing is saved here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from tinyscale.fitting.fit import Fit
from tinyscale.fitting.forms import Array, Index
from tinyscale.fitting.isoflop import SAME_BUDGET, Optima
from tinyscale.fitting.laws import VARIABLES
from tinyscale.fitting.points import count, group_sizes
from tinyscale.fitting.tuning import best_setting

# Okabe and Ito 2008: told apart by all common kinds of colour vision, and in grey.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"
LEGEND: dict[str, Any] = {"framealpha": 0.9, "edgecolor": "none"}  # white behind the words, no box
MOST_NAMED = 8  # sizes named in a legend; more would cover the plot


def plot_fit(fit: Fit, ax: Axes | None = None, frame: pd.DataFrame | None = None) -> Axes:
    """The law and the runs behind it: one curve with its 95 % band, or for a joint law a curve for each size.

    frame: points to draw instead of the fitted ones, columns named as the law's variables and `loss`.
    """
    ax = ax or new_axes()
    points = fit.points.frame if frame is None else frame
    if len(fit.law.variables) == 1:
        _draw_curve(fit, points, ax)
    else:
        _draw_family(fit, points, ax)
    ax.set_ylabel("Validation loss (nats per token)")
    ax.set_title("\n".join(filter(None, [fit.labels.get("title"), fit.slice])), fontsize=10, loc="left")
    tidy(ax)
    return ax


def new_axes(columns: int = 1) -> Axes:
    """Axes of a new figure that is wide enough for its labels."""
    axes: Axes = plt.subplots(figsize=(6.4 * columns, 4.4), layout="constrained")[1]
    return axes


def _draw_curve(fit: Fit, points: pd.DataFrame, ax: Axes) -> None:
    """Seeds, their means, the curve with its band, and the largest size as predicted from the smaller ones."""
    name = fit.law.variables[0]
    x, loss = points[name].to_numpy(float), points["loss"].to_numpy(float)
    grid = np.geomspace(x.min() / 1.25, x.max() * 4, 200)
    curve = fit.predict(noise=False, **{name: grid})
    ax.fill_between(grid, curve["low"], curve["high"], color=BLUE, alpha=0.18, lw=0, label="95 % band of the curve")
    ax.plot(grid, curve["loss"], color=BLUE, lw=1.6, label="fit")
    _draw_seeds(ax, x, loss, group_sizes(np.log(x)))
    if fit.held_out:
        label = f"largest size, predicted from the smaller ({fit.held_out.error_percent:+.2f} %)"
        at = (fit.held_out.size[name], fit.held_out.predicted)
        ax.plot(*at, "D", ms=7, mfc="none", mec=ORANGE, mew=1.6, zorder=5, label=label)
    ax.set_xscale("log")
    ax.set_xlim(grid[0], grid[-1])
    shown = np.concatenate([loss, curve["loss"]])
    ax.set_yscale("log")
    _widen(ax, shown, below=0.06, above=0.14)
    symbol, unit = VARIABLES[name]
    ax.set_xlabel(f"{symbol}: {unit} ({fit.points.counts[name]})" if name == "n" else f"{symbol}: {unit}")
    ax.legend(**LEGEND, fontsize=8.5, loc="upper right", title=law_text(fit), title_fontsize=10, alignment="left")


def _widen(ax: Axes, loss: Array, *, below: float, above: float) -> None:
    """Show the losses with room below and above, as shares of their span."""
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


def _draw_family(fit: Fit, points: pd.DataFrame, ax: Axes) -> None:
    """Loss against the second variable, a colour and a curve for each size of the first."""
    first, second, *rest = fit.law.variables
    size = group_sizes(np.log(points[first].to_numpy(float)))
    colours = colormaps["viridis"](np.linspace(0, 0.9, size.max() + 1))
    named = set(np.unique(np.linspace(0, size.max(), min(size.max() + 1, MOST_NAMED)).round().astype(int)))
    for index, colour in enumerate(colours):
        part = points[size == index]
        value = float(np.exp(np.log(part[first]).mean()))
        label = f"{VARIABLES[first][0]} = {count(value)}" if index in named else None
        ax.plot(part[second], part["loss"], "o", ms=4, color=colour, mec="white", mew=0.4, zorder=3, label=label)
        grid = np.geomspace(part[second].min(), part[second].max(), 60)
        sizes = {first: np.full(len(grid), value), second: grid}
        sizes |= {name: np.interp(grid, *_sorted(part[second], part[name])) for name in rest}
        ax.plot(grid, fit.law.loss(fit.params, **sizes), color=colour, lw=1.2)
    ax.set_xscale("log")
    symbol, unit = VARIABLES[second]
    ax.set_xlabel(f"{symbol}: {unit}")
    ax.set_yscale("log")
    _widen(ax, points["loss"].to_numpy(float), below=0.06, above=0.3)
    title = law_text(fit)
    ax.legend(**LEGEND, fontsize=8, title=title, title_fontsize=9, alignment="left", ncols=2, loc="upper right")


def _sorted(x: pd.Series[float], y: pd.Series[float]) -> tuple[Array, Array]:
    pairs: Array = np.array([x, y], float)
    first, second = pairs[:, np.argsort(pairs[0])]
    return first, second


def law_text(fit: Fit) -> str:
    """The law with its numbers as mathematics, or its plain formula."""
    value = fit.params
    floor = f"{value['E']:.3f} + " if "E" in value else ""
    if fit.law.name.startswith("power-"):
        symbol = VARIABLES[fit.law.variables[0]][0]
        return f"$L({symbol}) = {floor}{_scientific(value['A'])}\\;{symbol}^{{-{value['alpha']:.3f}}}$"
    if fit.law.name in ("chinchilla", "tied", "width-depth"):
        first, second = (VARIABLES[name][0] for name in fit.law.variables)
        a, b = (_scientific(value[name]) for name in ("A", "B"))
        alpha, beta = value["alpha"], value.get("beta", value["alpha"])
        return f"$L = {floor}{a}\\;{first}^{{-{alpha:.3f}}} + {b}\\;{second}^{{-{beta:.3f}}}$"
    return fit.law.formula


def _scientific(value: float) -> str:
    mantissa, _, power = f"{value:.3g}".partition("e")
    return f"{mantissa} \\times 10^{{{int(power)}}}" if power else mantissa


def plot_budgets(fit: Optima, ax: Axes | None = None, frame: pd.DataFrame | None = None) -> Axes:
    """Loss against N, a colour for each budget of FLOPs, and the bottom of each curve."""
    ax = ax or new_axes()
    points = fit.points if frame is None else frame
    budget = group_sizes(np.log(points["c"].to_numpy(float)), SAME_BUDGET)
    colours = colormaps["viridis"](np.linspace(0, 0.9, budget.max() + 1))
    for index, colour in enumerate(colours):
        part = points[budget == index].sort_values("n")
        label = f"C = {part['c'].mean():.1e}"
        ax.plot(part["n"], part["loss"], "o-", ms=4, lw=0.9, color=colour, mec="white", mew=0.4, label=label)
    ax.plot(
        fit.table["n_star"],
        fit.table["loss_star"],
        "*",
        ms=11,
        color=ORANGE,
        mec="white",
        mew=0.6,
        label="bottom",
        zorder=5,
    )
    ax.set_xscale("log")
    ax.set_xlabel(f"N: parameters ({fit.columns['n']})")
    ax.set_ylabel("Validation loss (nats per token)")
    ax.set_title(fit.labels.get("title", ""), fontsize=10, loc="left")
    ax.legend(**LEGEND, fontsize=8, loc="upper center", ncols=2)
    ax.set_ylim(top=points["loss"].max() + 0.35 * np.ptp(points["loss"]))
    tidy(ax)
    return ax


def plot_optima(fit: Optima, ax: Axes | None = None, frame: pd.DataFrame | None = None) -> Axes:
    """The compute-optimal N against C with its power law. frame: a table of optima to draw instead of the fit's own."""
    ax = ax or new_axes()
    table = fit.table if frame is None else frame
    table = table[table["refused"] == ""]
    grid = np.geomspace(table["c"].min() / 2, table["c"].max() * 2, 50)
    low, high = fit.interval("a")
    text = f"$N^* = {_scientific(fit.params['k_N'])}\\;C^{{{fit.params['a']:.3f}}}$\na: {low:.3f} to {high:.3f} (95 %)"
    ax.plot(grid, fit.params["k_N"] * grid ** fit.params["a"], color=BLUE, lw=1.6)
    n_star, sd = table["n_star"].to_numpy(float), table["log_n_sd"].to_numpy(float)
    reach = n_star * np.abs(np.expm1([-sd, sd]))
    ax.errorbar(table["c"], n_star, yerr=reach, fmt="*", ms=10, color=ORANGE, lw=1, zorder=3)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("C: training compute (FLOPs)")
    ax.set_ylabel(f"N*: compute-optimal parameters ({fit.columns['n']})")
    ax.text(0.04, 0.95, text, transform=ax.transAxes, va="top", fontsize=10)
    tidy(ax)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"$10^{{{np.log10(value):.0f}}}$"))
    ax.xaxis.set_major_locator(LogLocator(base=10))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    return ax


def plot_tuning(fit: Optima, ax: Axes | None = None, frame: pd.DataFrame | None = None) -> Axes:
    """The best setting against N with its power law. frame: a table of optima to draw instead of the fit's own."""
    ax = ax or new_axes()
    table = fit.table if frame is None else frame
    table = table[table["refused"] == ""]
    best, sd = table["optimum"].to_numpy(float), table["log_sd"].to_numpy(float)
    ax.errorbar(
        table["n"], best, yerr=best * np.abs(np.expm1([-sd, sd])), fmt="o", ms=5, color=GREY, lw=1, label="best, ± 1 sd"
    )
    for d in np.unique(table["d"]) if "q" in fit.params else [1.0]:
        grid = np.geomspace(table["n"].min() / 1.5, table["n"].max() * 1.5, 50)
        label = f"D = {count(d)}" if "q" in fit.params else "fit"
        ax.plot(grid, [best_setting(fit, n, d) for n in grid], lw=1.4, label=label)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(f"N: parameters ({fit.columns['n']})")
    ax.set_ylabel(f"Best {fit.columns['setting']}")
    ax.set_title(fit.labels.get("title", ""), fontsize=10, loc="left")
    ax.set_ylim(best.min() / 3, best.max() * 3)  # a factor is what matters in a setting: do not magnify less
    powers = ", ".join(f"{name} = {fit.params[name]:.3f}" for name in fit.params if name != "k")
    ax.legend(**LEGEND, fontsize=8.5, title=f"{fit.formula}: {powers}", title_fontsize=9, alignment="left")
    tidy(ax)
    ax.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    return ax


def tidy(ax: Axes) -> None:
    """Ticks at 1, 2, 5 (few decades) or at decades, written 100K, 2M, 1B; plain numbers for the loss; a light grid."""
    low, high = ax.get_xlim()
    decades = np.log10(high / low)
    steps = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0, 3.0) if decades < 4 else (1.0,)
    ax.xaxis.set_major_locator(LogLocator(base=10, subs=steps, numticks=20))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    bottom, top = ax.get_ylim()
    wide = ax.get_yscale() == "log" and top > 8 * bottom
    ax.yaxis.set_major_locator(
        LogLocator(base=10, subs=(1.0, 2.0, 5.0)) if wide else MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
    )
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.grid(visible=True, which="major", color="0.9", lw=0.7)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
