"""Drawing of runs: what a law leaves over; loss against tokens, FLOPs, time, and position. Nothing is saved here."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator

from tinyscale.fitting.choose import AnyFit
from tinyscale.fitting.fit import Fit
from tinyscale.fitting.laws import VARIABLES
from tinyscale.formatting import compact
from tinyscale.reporting.plot_law import (
    BLUE,
    GREY,
    LEGEND,
    MOST_NAMED,
    entitle,
    literal,
    new_axes,
    plot_reaching,
    shades,
    tidy,
)
from tinyscale.reporting.tables import anchor

AXES = {
    "tokens": "Training tokens",
    "flops": "Training compute (FLOPs)",
    "wall_seconds": "Training time of the run (seconds)",
}
LINES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
MARKERS = ("o", "^", "s", "D", "v", "P")  # no factor in common with the lines: 30 arms before a pair comes again


def plot_residuals(fit: Fit, ax: Axes | None = None) -> Axes:
    """How far each run lies from the law, against the law's first variable, with the noise of a run as a band."""
    ax = ax or new_axes()
    name = fit.law.variables[0]
    sd = 100 * fit.noise.sd
    ax.axhspan(-sd, sd, color=BLUE, alpha=0.15, lw=0, label="± noise of a run (1 sd)")
    ax.axhline(0, color=BLUE, lw=1.2)
    residual = 100 * fit.table()["residual"]
    ax.plot(fit.runs[name], residual, "o", ms=5, mfc="none", mec=GREY, mew=0.9, label="runs")
    ax.set_xscale("log")
    symbol, unit = VARIABLES[name]
    ax.set_xlabel(f"{symbol}: {unit} ({literal(fit.points.counts[name])})" if name == "n" else f"{symbol}: {unit}")
    ax.set_ylabel("Residual of the loss (%)")
    entitle(ax, fit.origin.question, fit.origin.title)
    farthest = 1.6 * max(sd, float(residual.abs().max()))
    ax.set_ylim(-farthest, farthest)
    ax.legend(frameon=False, fontsize="small", loc="upper right", ncols=2)
    tidy(ax)
    return ax


def has_floor(fit: AnyFit) -> bool:
    """Whether a law of one variable has a loss E that no size goes below, with an interval above zero."""
    floor = fit.estimates.get("E")
    return isinstance(fit, Fit) and len(fit.law.variables) == 1 and floor is not None and (floor.low or 0) > 0


def plot_excess(fit: Fit, ax: Axes | None = None) -> Axes:
    """Loss above the law's floor E against its variable: where the law holds, the runs lie on a straight line."""
    ax = ax or new_axes()
    name, floor = fit.law.variables[0], fit.params["E"]
    x, loss = fit.runs[name].to_numpy(float), fit.runs["loss"].to_numpy(float)
    grid = np.geomspace(x.min(), 4 * x.max(), 100)
    line = fit.predict(noise=False, **{name: grid})["loss"].to_numpy(float) - floor
    plot_reaching(ax, grid, line, x.max(), color=BLUE, lw=1.6, label="fit, dashed beyond the runs")
    above = loss > floor
    ax.plot(x[above], loss[above] - floor, "o", ms=5, mfc="none", mec=GREY, mew=0.9, label="runs")
    ax.set_xscale("log")
    ax.set_yscale("log")
    symbol, unit = VARIABLES[name]
    ax.set_xlabel(f"{symbol}: {unit}")
    ax.set_ylabel(f"Loss above E = {floor:.4g} (nats per token)")
    entitle(ax, fit.origin.question, fit.origin.title, fit.slice)
    ax.legend(**LEGEND, fontsize="small", loc="upper right")
    tidy(ax)
    return ax


def plot_runs(
    points: pd.DataFrame, x: str = "tokens", by: str = "n_non_embedding", ax: Axes | None = None, title: str = ""
) -> Axes:
    """Validation loss against `x` (tokens, flops or wall_seconds), a line a trial.

    points: rows of the results, with the column `arm` where there are arms; by: the column that sets the colour, the
    arm sets the line's style; title: left out, the names of the sweeps.
    """
    ax = ax or new_axes()
    points = points[(points[x] > 0) & (points["val_loss"] > 0)]
    values = list(dict.fromkeys(points[by].sort_values()))
    colours = dict(zip(values, shades(len(values)), strict=True))
    arms = list(dict.fromkeys(points["arm"])) if "arm" in points and by != "arm" else []
    for _, rows in points.groupby([*(["arm"] if arms else []), "trial"], sort=False):
        run = rows.sort_values(x)
        style = _style(arms.index(run["arm"].iloc[0]) if arms else 0)
        link = f"#{anchor(run['sweep'].iloc[0], run['trial'].iloc[0])}" if "sweep" in run else None
        colour = colours[run[by].iloc[0]]
        ax.plot(run[x], run["val_loss"], **style, ms=3, lw=1.1, color=colour, url=link)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(AXES[x])
    ax.set_ylabel("Validation loss (nats per token)")
    sweeps = ", ".join(dict.fromkeys(points["sweep"])) if "sweep" in points else ""
    entitle(ax, title or sweeps)
    low, high = np.log(points["val_loss"].min()), np.log(points["val_loss"].max())
    ax.set_ylim(np.exp(low - 0.05 * (high - low + 0.01)), np.exp(high + 0.08 * (high - low + 0.01)))
    _legend(ax, by, colours, arms)
    tidy(ax)
    if x == "flops":
        low, high = ax.get_xlim()
        ax.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0,) if high > 30 * low else (1.0, 3.0)))
        ax.xaxis.set_major_formatter(LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(inf, inf)))
    return ax


def plot_positions(means: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Loss against the tokens of its document that a target has before it, a line a context length.

    means: rows of `positions_over_seeds`, of one size per arm; where a length has several arms, these set the line's
    style.
    """
    ax = ax or new_axes()
    lengths = sorted(means["context_length"].unique())
    colours = dict(zip(lengths, shades(len(lengths)), strict=True))
    several = means.groupby("context_length")["arm"].nunique().max() > 1
    arms = list(dict.fromkeys(means["arm"])) if several else []
    for (arm, length), curve in means.groupby(["arm", "context_length"], sort=False):
        x, spread = curve["seen"] * 2**0.5, curve["loss_std"].fillna(0)  # the middle of the entry, seen to 2 seen - 1
        style = _style(arms.index(arm) if several else 0)
        ax.fill_between(x, curve["loss"] - spread, curve["loss"] + spread, color=colours[length], alpha=0.2, lw=0)
        ax.plot(x, curve["loss"], **style, ms=4, lw=1.4, color=colours[length], mec="white", mew=0.4)
    ax.set_xscale("log")
    ax.set_xlabel("Tokens of its document before the target")
    ax.set_ylabel("Validation loss (nats per token)")
    _legend(ax, "context_length", colours, arms)
    tidy(ax)
    ax.xaxis.set_major_locator(LogLocator(base=2, numticks=20))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return ax


def _legend(ax: Axes, by: str, colours: dict[Any, Any], arms: list[str]) -> None:
    """A column of colours to the right of the axes and, below it, the styles of several arms."""
    values = list(colours)
    named = [values[i] for i in sorted({round(i) for i in np.linspace(0, len(values) - 1, MOST_NAMED)})]
    handles = [Line2D([], [], color=colours[value], lw=2, label=_text(value)) for value in named]
    if len(arms) > 1:
        handles += [Line2D([], [], color=GREY, ms=3, **_style(i), label=literal(arm)) for i, arm in enumerate(arms)]
    if len(handles) > 1:
        small: dict[str, Any] = {"fontsize": "small", "title_fontsize": "small", "frameon": False, "borderaxespad": 0}
        ax.legend(handles=handles, title=literal(by), loc="upper left", bbox_to_anchor=(1.01, 1), **small)


def _style(arm: int) -> dict[str, Any]:
    """Line and marker of an arm by its number."""
    return {"ls": LINES[arm % len(LINES)], "marker": MARKERS[arm % len(MARKERS)]}


def _text(value: object) -> str:
    if isinstance(value, int | np.integer) and value < 10_000:  # a d_model or a context_length of 1024 is no 1.02K
        return str(value)
    return compact(float(value)) if isinstance(value, int | float | np.number) and value >= 1000 else literal(value)
