"""`tinyscale report A B`: the laws of two results folders on one page, pair by pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from tinyscale.analysis.study import find_laws
from tinyscale.errors import FitError
from tinyscale.fitting.choose import AnyFit
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.fit import Fit
from tinyscale.fitting.frontier import frontier
from tinyscale.fitting.laws import VARIABLES
from tinyscale.fitting.text import verdict
from tinyscale.formatting import plural
from tinyscale.reporting.blocks import PAGE, Block, Section, render, shown_figure, write_csv
from tinyscale.reporting.figures import write_figure
from tinyscale.reporting.plot_law import BLUE, LEGEND, ORANGE, entitle, literal, new_axes, plot_reaching, tidy
from tinyscale.reporting.tables import Table, facts
from tinyscale.storage import Folder

Pair = tuple[AnyFit, AnyFit]
BUDGETS = 7  # of the frontier that a figure of joint laws shows


def write_side_by_side(
    locations: tuple[str, str], out: str, notify: Callable[[str], None] = lambda _: None
) -> list[str]:
    """The laws of both folders that are of the same runs and form, on one page in the folder `out`; the paths written.

    Nothing is written to the two. FitError where no law of one has its like in the other.
    """
    folder = Folder.at(out)
    fits = []
    for location in locations:
        notify(f"fitting {location}")
        fits.append(find_laws(location).fits)
    pairs = list(_pairs(*fits))
    if not pairs:
        have = "; ".join(
            f"{where} has {', '.join(each.record.name for each in found) or 'no law'}"
            for where, found in zip(locations, fits, strict=True)
        )
        raise FitError(f"no law of {locations[0]} has its like in {locations[1]}: {have}")
    written: list[str] = []
    sections = []
    names = _names(locations)
    for pair in pairs:
        notify(f"drawing {pair[0].record.name}")
        sections.append(_section(folder, names, pair, written))
    fitted = [
        (name, f"{where}, {plural(len(found), 'law')}")
        for name, where, found in zip(names, locations, fits, strict=True)
    ]
    origin = facts("folders", fitted, "The folders that were fitted; the laws that only one has are not shown.")
    written.append(write_csv(folder, origin.name, origin.frame))
    page = render(
        location=" and ".join(locations), notes=[], lead=None, sections=sections, forecasts=[], forecast_answer="",
        origin=[origin],
    )  # fmt: skip
    folder.write(PAGE, page.encode())
    return [*written, f"{folder}/{PAGE}"]


def _names(locations: tuple[str, str]) -> tuple[str, str]:
    """The last parts of their paths where these tell them apart."""
    a, b = (each.rstrip("/").rpartition("/")[2] for each in locations)
    return (a, b) if a != b else locations


def _pairs(first: Sequence[AnyFit], second: Sequence[AnyFit]) -> Iterator[Pair]:
    """Fits of the same law to the same arm of the same sweep, else the only ones of the same law."""

    def of(fit: AnyFit) -> tuple[str, ...]:
        return fit.record.law, fit.origin.sweep, fit.origin.arm

    for a in first:
        same = [b for b in second if of(b) == of(a)]
        alone = [b for b in second if b.record.law == a.record.law]
        single = len(alone) == 1 and len([each for each in first if each.record.law == a.record.law]) == 1
        if same or single:
            yield a, (same or alone)[0]


def _section(folder: Folder, names: tuple[str, str], pair: Pair, written: list[str]) -> Section:
    """One law of both folders: what each says, the curves in one figure, and the parameters with their differences."""
    record = pair[0].record
    blocks: list[Block] = []
    if draw := _figure_of(pair, names):
        written += write_figure(folder, record.name, draw)
        blocks.append(shown_figure(folder, record.name, "The runs and the law of each folder, with 95 % bands."))
    table = _parameters(record.name, pair, names)
    written.append(write_csv(folder, table.name, table.frame))
    said = tuple(f"{where}: {verdict(each.record)}" for where, each in zip(names, pair, strict=True))
    apart = [row["parameter"] for row in table.frame.to_dict("records") if row["apart"]]
    differ = f"Apart by more than chance: {', '.join(apart)}." if apart else "No parameter differs by more than chance."
    title = record.origin.question or record.name
    return Section(record.name, title, (differ, *said), (*blocks, table), sum(each.record.points for each in pair))


def _parameters(name: str, pair: Pair, names: tuple[str, str]) -> Table:
    """Each parameter of both with its interval, their difference, and whether it is more than chance.

    The difference's interval has the half-widths of the two combined in squares, each side for itself: Zou and Donner
    2008, Constructing confidence intervals about functions of parameters, section 2.
    """
    rows = []
    for parameter in [each for each in pair[0].estimates if each in pair[1].estimates]:
        a, b = (each.estimates[parameter] for each in pair)
        low, high = difference(a, b)
        rows.append([parameter, a.value, *a.ends, b.value, *b.ends, a.value - b.value, low, high, low > 0 or high < 0])
    ends = ("", "_low", "_high")
    frame = pd.DataFrame(
        rows, columns=["parameter", *(f"{which}{end}" for which in ("a", "b", "difference") for end in ends), "apart"]
    )
    columns = {"parameter": "parameter"}
    for which, heading in (("a", names[0]), ("b", names[1]), ("difference", "difference")):
        columns |= {which: heading, f"{which}_low": "95 % low", f"{which}_high": "95 % high"}
    caption = (
        "Parameters of both laws and their differences, with 95 % intervals. An end that the data do not set is open."
    )
    return Table(f"{name}-side-by-side", frame, columns | {"apart": "apart"}, caption, missing="open")


def difference(a: Estimate, b: Estimate) -> tuple[float, float]:
    """95 % ends of a - b of independent estimates; an open end leaves the difference open on that side."""
    (a_low, a_high), (b_low, b_high) = a.ends, b.ends
    value = a.value - b.value
    return (
        float(value - np.hypot(a.value - a_low, b_high - b.value)),
        float(value + np.hypot(a_high - a.value, b.value - b_low)),
    )


def _figure_of(pair: Pair, names: tuple[str, str]) -> Callable[..., Axes] | None:
    """What draws both laws on one pair of axes: against their variable, or of joint laws against compute."""
    a, b = pair
    if not (isinstance(a, Fit) and isinstance(b, Fit)):
        return None
    fits = (a, b)
    if len(a.law.variables) == 1:
        return partial(plot_both, fits, names)
    if all(each.record.form.has_frontier and each.curve for each in fits):
        return partial(plot_frontiers, fits, names)
    return None


def plot_both(fits: tuple[Fit, Fit], names: tuple[str, str], ax: Axes | None = None) -> Axes:
    """Two laws of one variable with their runs and bands, dashed beyond the runs."""
    ax = ax or new_axes()
    (name,) = fits[0].law.variables
    for fit, where, colour, marker in zip(fits, names, (BLUE, ORANGE), "os", strict=True):
        runs = fit.runs[name].to_numpy(float)
        grid = np.geomspace(runs.min(), runs.max() * 2, 100)
        curve = fit.predict(noise=False, **{name: grid})
        ax.fill_between(grid, curve["low"], curve["high"], color=colour, alpha=0.18, lw=0)
        plot_reaching(ax, grid, curve["loss"].to_numpy(float), runs.max(), color=colour, lw=1.6, label=literal(where))
        ax.plot(runs, fit.runs["loss"], marker, ms=4.5, mfc="none", mec=colour, mew=0.9)
    symbol, unit = VARIABLES[name]
    return _finished(ax, fits, f"{symbol}: {unit}")


def plot_frontiers(fits: tuple[Fit, Fit], names: tuple[str, str], ax: Axes | None = None) -> Axes:
    """The least loss for a budget by two joint laws with their bands, dashed beyond the largest run."""
    ax = ax or new_axes()
    for fit, where, colour in zip(fits, names, (BLUE, ORANGE), strict=True):
        assert fit.curve is not None, "the caller asked"
        flops = 6 * fit.runs["n"] * fit.runs["d"]
        best = frontier(fit.curve, np.geomspace(flops.min(), 10 * flops.max(), BUDGETS))
        x = best["c"].to_numpy(float)
        ax.fill_between(x, best["loss_low"], best["loss_high"], color=colour, alpha=0.18, lw=0)
        plot_reaching(ax, x, best["loss"].to_numpy(float), flops.max(), color=colour, lw=1.6, label=literal(where))
    return _finished(ax, fits, "C = 6 N D: training compute (FLOPs), N and D the best for it")


def _finished(ax: Axes, fits: tuple[Fit, Fit], label: str) -> Axes:
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(label)
    ax.set_ylabel("Validation loss (nats per token)")
    entitle(ax, fits[0].origin.question, fits[0].origin.title)
    ax.legend(**LEGEND, fontsize="small", loc="upper right")
    tidy(ax)
    return ax
