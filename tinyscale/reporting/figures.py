"""Figures of fits as files: under plots/ of a results folder, or one for a paper."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tinyscale.analysis.records import Found, slug
from tinyscale.errors import FitError, ResultsError
from tinyscale.fitting.fit import Fit
from tinyscale.fitting.tuning import SETTINGS
from tinyscale.storage import Folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The same fit gives the same file: what to leave out of its description, by kind of file.
UNDATED: dict[str, dict[str, None] | None] = {"png": None, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def write_plots(folder: Folder, fits: Sequence[Found]) -> list[str]:
    """Draw each fit as PNG and SVG under plots/; the paths written."""
    return [
        path for found in fits for stem, draw in figures_of(found).items() for path in write_figure(folder, stem, draw)
    ]


def figures_of(found: Found) -> dict[str, Callable[..., Axes]]:
    """The figures of a fit: stem of the file -> what draws it."""
    from tinyscale.reporting import plot_law, plot_optima

    if isinstance(found, Fit):
        return {slug(found): partial(plot_law.plot_fit, found)}
    if found.law in SETTINGS:
        curves, law = partial(plot_optima.plot_settings, found), partial(plot_optima.plot_tuning, found)
    else:
        curves, law = partial(plot_optima.plot_budgets, found), partial(plot_optima.plot_optima, found)
    return {f"{slug(found)}-curves": curves, slug(found): law}


def draw_of(found: Found, what: str) -> Callable[..., Axes]:
    """What draws the law, its residuals or the curves behind it. FitError where the fit has no such figure."""
    from tinyscale.reporting.plot_runs import plot_residuals

    *curves, law = figures_of(found).values()
    figures = {"law": law}
    if curves:
        figures["curves"] = curves[0]
    if isinstance(found, Fit):
        figures["residuals"] = partial(plot_residuals, found)
    if what not in figures:
        raise FitError(f"{slug(found)} has no figure {what!r}; it has {', '.join(figures)}")
    return figures[what]


def save_figure(path: Path, draw: Callable[..., object]) -> None:
    """Draw on new axes and save as the path's suffix says; text stays text. ResultsError when it cannot be written."""
    import matplotlib as mpl

    with _drawn(draw) as figure, mpl.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):
        try:
            figure.savefig(path, dpi=300, metadata=UNDATED[path.suffix.removeprefix(".")])
        except OSError as error:
            raise ResultsError(f"{path}: cannot be written ({error.strerror}); give another --out") from error


def write_figure(folder: Folder, stem: str, draw: Callable[..., object]) -> list[str]:
    """Draw on new axes and save as PNG and SVG under plots/ of a results folder; the paths written."""
    written = []
    with _drawn(draw) as figure:
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=200, metadata=UNDATED[kind])
            figure.set_layout_engine("none")  # what is laid out once need not be again
            (folder / "plots").write(f"{stem}.{kind}", buffer.getvalue())
            written.append(f"{folder / 'plots'}/{stem}.{kind}")
    return written


@contextmanager
def _drawn(draw: Callable[..., object]) -> Iterator[Figure]:
    """A figure with new axes that are drawn on, closed at the end."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "tinyscale"  # for the same names inside
    from matplotlib import pyplot as plt

    figure, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    try:
        draw(ax=ax)
        yield figure
    finally:
        plt.close(figure)
