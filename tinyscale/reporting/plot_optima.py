"""Drawing of best sizes and best settings: the curves they are the bottoms of, and the power laws through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from tinyscale.fitting.arrays import Array, Index
from tinyscale.fitting.isoflop import optimum_line
from tinyscale.fitting.laws.optima import ISOFLOP, with_optimum
from tinyscale.fitting.minimum import Line, find_minimum, weighted_line
from tinyscale.fitting.optima import Optima
from tinyscale.fitting.points import SAME_BUDGET, group_sizes
from tinyscale.fitting.tuning import SYMBOLS, best_setting, setting_beside
from tinyscale.formatting import compact, scientific
from tinyscale.reporting.plot_law import (
    BLUE,
    GREEN,
    GREY,
    LEGEND,
    ORANGE,
    entitle,
    literal,
    name_family,
    new_axes,
    plot_reaching,
    shades,
    tidy,
)

LABELS = {"lr": "lr: peak learning rate", "batch_tokens": "batch_tokens: tokens of one step"}
STAR: dict[str, Any] = {"ms": 11, "color": ORANGE, "mec": "white", "mew": 0.6, "zorder": 5}
SLOPES = ((0.73, "-.", "slope of N*, Kaplan 2020: 0.73"), (0.5, "--", "Hoffmann 2022: 0.5"))


def _factor(value: Array, log_sd: pd.Series[float]) -> Array:
    """Error bars (2, n) of values whose logarithms have these standard deviations."""
    sd = log_sd.to_numpy(float)
    bars: Array = value * np.abs(np.expm1([-sd, sd]))
    return bars


def _draw_stars(ax: Axes, fit: Optima, table: pd.DataFrame, x: str, y: str, label: str) -> None:
    """Best sizes; where they are bottoms of curves, bars along N are one standard deviation."""
    if fit.law is ISOFLOP and y != "best_d":
        bars = _factor(table["best"].to_numpy(float), table["log_sd"])
        across, up = (bars, None) if x == "best" else (None, bars)
        ax.errorbar(table[x], table[y], up, across, fmt="none", ecolor=ORANGE, elinewidth=1, zorder=4)
        label += ", ± 1 sd"
    ax.plot(table[x], table[y], "*", **STAR, label=label)


def _draw_curves(
    ax: Axes, points: pd.DataFrame, x: str, group: Index, name: Callable[[pd.DataFrame], str], line: str = "-"
) -> None:
    """Runs of each group in a colour of its own, a thin line through their means, and its name."""
    for index, colour in enumerate(shades(group.max() + 1)):
        part = points[group == index].sort_values(x)
        means = part.groupby(group_sizes(np.log(part[x].to_numpy(float))))[[x, "loss"]].mean()
        ax.plot(part[x], part["loss"], "o", ms=4, color=colour, mec="white", mew=0.4, label=name(part))
        ax.plot(means[x], means["loss"], line, lw=0.9, color=colour)


def _finish_curves(ax: Axes, fit: Optima, points: pd.DataFrame, legend: str) -> Axes:
    ax.set_xscale("log")
    ax.set_ylabel("Validation loss (nats per token)")
    entitle(ax, fit.origin.question, fit.origin.title)
    small: dict[str, Any] = {
        "fontsize": "small",
        "title": legend,
        "title_fontsize": "small",
        "alignment": "left",
        "ncols": 2,
    }
    ax.legend(**LEGEND, **small, loc="upper center")
    ax.set_ylim(top=points["loss"].max() + 0.4 * np.ptp(points["loss"]))
    tidy(ax)
    return ax


def plot_budgets(fit: Optima, ax: Axes | None = None, frame: pd.DataFrame | None = None) -> Axes:
    """Loss against N, a colour for each budget of FLOPs, the polynomial of each, and its bottom."""
    ax = ax or new_axes()
    points = fit.runs if frame is None else frame
    budget = group_sizes(np.log(points["c"].to_numpy(float)), SAME_BUDGET)
    _draw_curves(ax, points, "n", budget, lambda part: f"C = ${scientific(part['c'].mean(), 3)}$", ":")
    for index, colour in enumerate(shades(budget.max() + 1) if fit.law is ISOFLOP and frame is None else ()):
        found = find_minimum(
            *np.log(points.loc[budget == index, ["n", "loss"]].to_numpy(float).T),
            degree=fit.table["degree"][index] or None,
        )
        if not found.refused:
            grid = np.linspace(*found.reach, 60)
            ax.plot(np.exp(grid), np.exp(found.curve(grid)), lw=1.4, color=colour)
    _draw_stars(ax, fit, fit.table, "best", "loss", "bottom")
    ax.set_xlabel(f"N: parameters ({literal(fit.columns['n'])})")
    return _finish_curves(ax, fit, points, "C in FLOPs")


def plot_settings(fit: Optima, ax: Axes | None = None, frame: pd.DataFrame | None = None) -> Axes:
    """Loss against the setting, a colour for each size, and the bottom of each curve."""
    ax = ax or new_axes()
    points = fit.runs if frame is None else frame
    sizes = np.log(points[["n", "d"]].to_numpy(float))
    pairs = np.stack([group_sizes(sizes[:, 0]), group_sizes(sizes[:, 1], SAME_BUDGET)])
    size = np.unique(pairs, axis=1, return_inverse=True)[1].ravel()
    both = points.groupby(pairs[0])["d"].nunique().max() > 1

    def name(part: pd.DataFrame) -> str:
        d = f", D = {compact(part['d'].mean())}" if both else ""
        return f"N = {compact(part['n'].mean())}{d}"

    _draw_curves(ax, points, "setting", size, name)
    kept = fit.kept
    bars = _factor(kept["best"].to_numpy(float), kept["log_sd"])
    ax.errorbar(kept["best"], kept["loss"], xerr=bars, fmt="none", ecolor=ORANGE, elinewidth=1, zorder=4)
    ax.plot(kept["best"], kept["loss"], "*", **STAR, label="bottom, ± 1 sd")
    ax.set_xlabel(LABELS.get(setting := fit.columns["setting"], literal(setting)))
    return _finish_curves(ax, fit, points, "")


def plot_optima(fit: Optima, ax: Axes | None = None, frame: pd.DataFrame | None = None) -> Axes:
    """The compute-optimal N and D against C with their power laws, dashed beyond the largest budget.

    Thin lines have the slopes of N* in Kaplan et al. 2020 (2001.08361), 0.73, and Hoffmann et al. 2022 (2203.15556),
    0.5. frame: a table of optima to draw instead of the fit's own.
    """
    ax = ax or new_axes()
    table = fit.kept if frame is None else with_optimum(frame)
    grid = np.geomspace(table["c"].min() / 2, table["c"].max() * 4, 100)
    for column, colour, what in (("best_d", GREEN, "D*: tokens"), ("best", BLUE, "N*: parameters")):
        line = optimum_line(fit.kept, column)
        value, lowest, highest = _band(line, grid)
        ax.fill_between(grid, lowest, highest, color=colour, alpha=0.18, lw=0)
        label = f"{what}, C^{line.slope:.3f} ± {line.slope_half_width:.3f}"
        plot_reaching(ax, grid, value, float(table["c"].max()), color=colour, lw=1.6, label=label)
        _draw_stars(ax, fit, table, "c", column, "best of a budget" if column == "best" else "")
    middle = np.exp(line.middle)
    for slope, style, whose in SLOPES:
        ax.plot(grid, np.exp(line.level) * (grid / middle) ** slope, style, color=GREY, lw=0.9, label=whose)
    if held := fit.held_out:
        label = f"largest budget, predicted from the smaller ({held.error_percent:+.1f} %)"
        ax.plot(held.size["c"], held.predicted, "D", ms=7, mfc="none", mec="black", mew=1.4, zorder=6, label=label)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("C: training compute (FLOPs)")
    ax.set_ylabel("N*: best parameters; D*: best tokens")
    entitle(ax, fit.origin.question, fit.origin.title)
    ax.set_ylim(top=ax.get_ylim()[1] * 30)  # for the legend
    text = f"$N^* = {scientific(fit.params['k_N'])}\\;C^{{{fit.params['a']:.3f}}}$; bands and ±: 95 %"
    ax.legend(
        **LEGEND, fontsize="small", loc="upper left", title=text, title_fontsize="medium", alignment="left", ncols=2
    )
    tidy(ax)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"$10^{{{np.log10(value):.0f}}}$"))
    ax.xaxis.set_major_locator(LogLocator(base=10))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    return ax


def plot_mixture(fit: Optima, ax: Axes | None = None) -> Axes:
    """The best share of each part with its interval, and equal shares for comparison."""
    ax = ax or new_axes()
    value, low, high = np.array([(each.value, *each.ends) for each in fit.estimates.values()]).T
    place = np.arange(len(value))
    ax.barh(place, value, color=BLUE, alpha=0.85)
    ax.hlines(place, low, high, color=GREY, lw=1.5)
    ax.axvline(1 / len(value), ls="--", color=GREY, lw=1.2, label="equal shares")
    ax.set_yticks(place, [literal(name.removeprefix("share_of_")) for name in fit.estimates])
    ax.invert_yaxis()
    ax.set_xlabel("share of the training tokens at which the mean loss is least")
    entitle(ax, fit.origin.question, fit.origin.title)
    ax.legend(**LEGEND, fontsize="small")
    tidy(ax)
    return ax


def plot_formation(fit: Optima, ax: Axes | None = None) -> Axes:
    """The tokens after which induction forms against the tokens of a step, a colour for each N, with the law and the
    slope of 1/2 that Aoyama et al. (2511.16893) found.
    """
    ax = ax or new_axes()
    table = fit.kept
    batch, middle = table["batch_tokens"].to_numpy(float), float(np.exp(np.log(table["best"]).mean()))
    grid = np.geomspace(batch.min() / 1.5, batch.max() * 1.5, 20)
    for n, colour in zip(sorted(table["n"].unique().astype(float)), shades(table["n"].nunique()), strict=True):
        rows = table[table["n"] == n]
        bars = _factor(rows["best"].to_numpy(float), rows["log_sd"])
        ax.errorbar(rows["batch_tokens"], rows["best"], bars, fmt="o", ms=5, color=colour, mec="white", mew=0.4,
                    elinewidth=1, label=f"N = {compact(n)}")  # fmt: skip
        size = n ** fit.params.get("q", 0.0)
        ax.plot(grid, fit.params["k"] * grid ** fit.params["p"] * size, color=colour, lw=1.2)
    half = middle * np.sqrt(grid / np.exp(np.log(batch).mean()))
    ax.plot(grid, half, "--", color=GREY, lw=1.2, label="slope 1/2")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("B C: tokens of one step")
    ax.set_ylabel("D*: tokens after which induction forms")
    entitle(ax, fit.origin.question, fit.origin.title)
    ax.legend(**LEGEND, fontsize="small", loc="upper left")
    tidy(ax)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    return ax


def plot_tuning(
    fit: Optima, ax: Axes | None = None, frame: pd.DataFrame | None = None, *, setting: str | None = None
) -> Axes:
    """The best setting against N with its power law. frame: a table of optima to draw instead of the fit's own.

    setting: one that is tuned beside the first, as the batch beside the learning rate; left out, the first.
    """
    ax = ax or new_axes()
    table = fit.kept if frame is None else with_optimum(frame)
    beside = f"_{setting}" if setting else ""
    ending = f"_{SYMBOLS[setting]}" if setting else ""
    best, log_sd = table[f"best{beside}"].to_numpy(float), table[f"log_sd{beside}"]
    grid = np.geomspace(table["n"].min() / 1.5, table["n"].max() * 2.5, 50)
    batch = np.exp(np.log(table["batch_tokens"].to_numpy(float)).mean()) if "batch_tokens" in table else None

    def law(n: float, d: float = 1.0) -> float:
        if setting:
            return setting_beside(fit.estimates, setting, n, d)
        return best_setting(fit.estimates, n, d, batch)

    by_d = f"q{ending}" in fit.params
    if not by_d and not _at_given_batch(fit):
        low, high = _tuning_band(fit, grid, law, best, f"p{ending}")
        ax.fill_between(grid, low, high, color=BLUE, alpha=0.18, lw=0, label="95 % band of the line")
    sizes = np.unique(table["d"]) if by_d else [1.0]
    for d, colour in zip(sizes, shades(len(sizes)), strict=True):
        label, shade = (f"D = {compact(d)}", colour) if by_d else ("fit", BLUE)
        plot_reaching(ax, grid, np.array([law(n, d) for n in grid]), table["n"].max(), lw=1.6, color=shade, label=label)
        of = (table["d"] == d).to_numpy() if by_d else np.full(len(table), True)
        star = STAR | ({"color": shade} if by_d else {})
        n, bars = table["n"][of], _factor(best[of], log_sd[of])
        ax.errorbar(n, best[of], bars, fmt="none", ecolor=star["color"], elinewidth=1, zorder=4)
        ax.plot(n, best[of], "*", **star, label=None if by_d else "best of a size, ± 1 sd")
    if by_d:
        ax.plot([], [], "*", **STAR | {"color": GREY}, label="best of a size, ± 1 sd")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(f"N: parameters ({literal(fit.columns['n'])})")
    ax.set_ylabel(f"Best {literal(setting or fit.columns['setting'])}")
    entitle(ax, fit.origin.question, fit.origin.title)
    ax.set_ylim(best.min() / 3, best.max() * 8)  # a factor is what matters in a setting: do not magnify less
    text = _tuning_text(fit, setting)
    if len(sizes) > 3:  # a legend inside would cover them
        name_family(ax, text)
    else:
        ax.legend(**LEGEND, fontsize="small", loc="upper right", title=text, title_fontsize="medium", alignment="left")
    tidy(ax)
    ax.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    return ax


def _tuning_band(
    fit: Optima, grid: Array, law: Callable[[float], float], best: Array, exponent: str
) -> tuple[Array, Array]:
    """95 % ends of a law: those of a line through the optima, as wide as makes its slope's interval that of p."""
    line = weighted_line(np.log(fit.kept["n"].to_numpy(float)), np.log(best), None)
    low, high = fit.interval(exponent)
    wider = (high - low) / 2 / line.slope_half_width
    value = np.array([law(n) for n in grid])
    half_width = wider * np.array([line.at(x).high - line.at(x).value for x in np.log(grid)])
    return value * np.exp(-half_width), value * np.exp(half_width)


def _band(line: Line, grid: Array) -> tuple[Array, Array, Array]:
    """A power law on a grid (n,), and the ends of its 95 % band."""
    value, low, high = np.exp([(each.value, *each.ends) for each in map(line.at, np.log(grid))]).T
    return value, low, high


def _tuning_text(fit: Optima, setting: str | None) -> str:
    """The law with its numbers as mathematics, and the interval of its first exponent."""
    ending = f"_{SYMBOLS[setting]}" if setting else ""
    powers = {"N": f"p{ending}", "D": f"q{ending}"} | ({"B": "r"} if _at_given_batch(fit) else {})
    law = scientific(fit.params[f"k{ending}"]) + "".join(
        f"\\;{of}^{{{fit.params[name]:.3f}}}" for of, name in powers.items() if name in fit.params
    )
    low, high = fit.interval(f"p{ending}")
    return f"{literal(setting or fit.columns['setting'])}* = ${law}$, p: {low:.3f} to {high:.3f} (95 %)"


def _at_given_batch(fit: Optima) -> bool:
    """Whether the law gives a setting at each batch that was tried, and not at the best batch."""
    return "r" in fit.params and "k_B" not in fit.params
