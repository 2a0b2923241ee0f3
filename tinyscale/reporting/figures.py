"""Figures of fits as files: under plots/ of a results folder, or one for a paper."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tinyscale.errors import FitError, ResultsError
from tinyscale.fitting.choose import AnyFit
from tinyscale.storage import Folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = ("law", "curves", "residuals", "excess", "batch_tokens", "weight_decay")
COORDINATE = re.compile(r"(?<=[ \"MLQCz\n-])\d+\.\d\d+")
# The same fit gives the same file: what to leave out of its description, by kind of file.
UNDATED: dict[str, dict[str, None] | None] = {"png": None, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def write_plots(folder: Folder, fits: Sequence[AnyFit]) -> list[str]:
    """Draw each fit as PNG and SVG under plots/; the paths written. What is left over is drawn for the page alone."""
    return [
        path
        for found in fits
        for what, draw in figures_of(found).items()
        if what not in ("residuals", "excess")
        for path in write_figure(folder, stem_of(found, what), draw)
    ]


def stem_of(found: AnyFit, what: str) -> str:
    """Name of a figure's files, without their ending."""
    return found.record.name if what == "law" else f"{found.record.name}-{what}"


def figures_of(found: AnyFit) -> dict[str, Callable[..., Axes]]:
    """The figures of a fit: what each shows -> what draws it.

    The law, the curves behind it, the loss above its floor, its residuals; by their names, the settings that are tuned
    beside the first.
    """
    from tinyscale.reporting import plot_law, plot_optima, plot_runs

    beside = found.record.objective.get("tuned", [])[1:]

    drawn: dict[str, dict[str, Callable[..., Axes]]] = {
        "loss": {
            "law": plot_law.plot_fit,
            **({"excess": plot_runs.plot_excess} if plot_runs.has_floor(found) else {}),
            "residuals": plot_runs.plot_residuals,
        },
        "budgets": {"curves": plot_optima.plot_budgets, "law": plot_optima.plot_optima},
        "sizes": {
            "curves": plot_optima.plot_settings,
            "law": plot_optima.plot_tuning,
            **{name: partial(plot_optima.plot_tuning, setting=name) for name in beside},
        },
        "jumps": {"law": plot_optima.plot_formation},
        "texts": {"law": plot_optima.plot_mixture},
    }
    return {what: partial(draw, found) for what, draw in drawn[found.record.form.kind].items()}


def draw_of(found: AnyFit, what: str) -> Callable[..., Axes]:
    """What draws one of `FIGURES`. FitError where the fit has no such figure."""
    figures = figures_of(found)
    if what not in figures:
        names = ", ".join(name for name in FIGURES if name in figures)
        raise FitError(f"{found.record.name} has no figure {what!r}; it has {names}")
    return figures[what]


@dataclass(frozen=True)
class Look:
    """Of a figure for a paper: size in inches, points of its text (None: the style's, or 10), family of its font,
    styles of matplotlib (names, addresses or files), and whether it has a title.
    """

    size: tuple[float, float] = (6.4, 4.4)
    points: float | None = None
    font: str | None = None
    styles: tuple[str, ...] = ()
    titled: bool = True


# Widths of a column and of the text in two-column LaTeX styles (ICML 2025: 3.25 and 6.75 inches).
COLUMN, TEXT = Look((3.25, 2.4), points=6), Look((6.75, 4.0), points=9)


def save_figure(path: Path, draw: Callable[..., object], look: Look | None = None) -> None:
    """Draw on new axes and save as the path's suffix says; text stays text. ResultsError when it cannot be written."""
    import matplotlib as mpl

    with mpl.rc_context({"pdf.fonttype": 42}), _drawn(draw, look or Look()) as figure:
        try:
            figure.savefig(path, dpi=300, metadata=UNDATED[path.suffix.removeprefix(".")])
        except OSError as error:
            raise ResultsError(f"{path}: cannot be written ({error.strerror}); give another --out") from error


def write_figure(folder: Folder, stem: str, draw: Callable[..., object]) -> list[str]:
    """Draw on new axes and save as PNG and SVG under plots/ of a results folder; the paths written."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    png, svg = io.BytesIO(), io.BytesIO()
    with _drawn(draw) as figure:
        figure.savefig(png, dpi=200, metadata=UNDATED["png"])
        figure.set_layout_engine("none")
        canvas = FigureCanvasSVG(figure)  # its savefig would draw twice, to lay out again
        canvas.print_svg(svg, metadata=UNDATED["svg"])  # type: ignore[no-untyped-call]
    contents = {"png": png.getvalue(), "svg": _shortened(svg.getvalue())}
    for kind, content in contents.items():
        (folder / "plots").write(f"{stem}.{kind}", content)
    return [f"{folder / 'plots'}/{stem}.{kind}" for kind in contents]


def _shortened(svg: bytes) -> bytes:
    """The drawing with coordinates to a tenth of a point, links on its own page, no word of the program, and of the
    twelve fonts that each text could have the first and the last.
    """
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", svg.decode(), flags=re.DOTALL)
    text = re.sub(r"(font-family: [^,;]+), [^;]*sans-serif", r"\1, sans-serif", text)
    text = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", text)
    text = re.sub(r"\n +", "\n", text.replace(' target="_blank"', ""))
    return re.sub(
        r' (?:d|x|y)="[^"]*"', lambda tag: COORDINATE.sub(lambda at: f"{float(at[0]):.1f}", tag[0]), text
    ).encode()


@contextmanager
def _drawn(draw: Callable[..., object], look: Look | None = None) -> Iterator[Figure]:
    """A figure with new axes that are drawn on, closed at the end. ResultsError for a style that there is not."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "tinyscale"  # for the same names inside
    mpl.rcParams["svg.fonttype"] = "none"  # text that a page can find, and a fourth of the bytes
    from matplotlib import pyplot as plt

    look = look or Look()
    try:
        plt.style.use(list(look.styles))
    except OSError as error:
        names = ", ".join(name for name in plt.style.available if not name.startswith("_"))
        raise ResultsError(f"--style {' '.join(look.styles)}: no file, and none of {names}") from error
    mpl.rcParams.update({"font.family": look.font} if look.font else {})
    mpl.rcParams.update({"font.size": look.points} if look.points else {})
    figure, ax = plt.subplots(figsize=look.size, layout="constrained")
    try:
        draw(ax=ax)
        if not look.titled:
            ax.set_title("", loc="left")
        yield figure
    finally:
        plt.close(figure)
