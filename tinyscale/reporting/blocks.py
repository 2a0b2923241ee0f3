"""What a page is made of, and its HTML."""

from __future__ import annotations

import re
from dataclasses import dataclass

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from tinyscale.reporting.tables import Table
from tinyscale.storage import Folder

PAGE = "report.html"


@dataclass(frozen=True)
class Figure:
    """A plot of the page: stem of its files, the SVG itself, and what it shows."""

    stem: str
    svg: Markup
    caption: str
    kind = "figure"

    @property
    def viewbox(self) -> str:
        """Of the SVG."""
        return self.svg.partition('viewBox="')[2].partition('"')[0]


@dataclass(frozen=True)
class Notes:
    """A list of plain sentences."""

    title: str
    lines: tuple[str, ...]
    kind = "notes"


@dataclass(frozen=True)
class Heading:
    """The start of a part of a section."""

    text: str
    kind = "heading"


@dataclass(frozen=True)
class Text:
    """The user's own words, from notes.md."""

    html: Markup
    kind = "text"


Block = Table | Figure | Notes | Heading | Text


@dataclass(frozen=True)
class Section:
    """One sweep: its question, what came out in sentences, the evidence, and how many trials it rests on."""

    name: str
    title: str
    verdicts: tuple[str, ...]
    blocks: tuple[Block, ...]
    trials: int

    @property
    def figure(self) -> Figure | None:
        """The one that shows the answer."""
        return next((block for block in self.blocks if isinstance(block, Figure)), None)

    @property
    def answer(self) -> str:
        """What came out, in a sentence."""
        first, *more = self.verdicts[0].split(". ")
        return f"{first}." if more else first


def write_csv(folder: Folder, name: str, frame: pd.DataFrame) -> str:
    """Write a table under tables/; the path."""
    (folder / "tables").write(f"{name}.csv", frame.to_csv(index=False).encode())
    return f"{folder / 'tables'}/{name}.csv"


def shown_figure(folder: Folder, stem: str, caption: str) -> Figure:
    """A plot that was written, without what only a file needs before its <svg>."""
    text = (folder / "plots").read(f"{stem}.svg").decode()
    return Figure(stem, Markup(text[text.index("<svg") :].replace("<svg", f'<svg id="{stem}-drawing"', 1)), caption)


def _raised(text: str) -> Markup:
    """N^-0.39 with its exponent raised."""
    return Markup(re.sub(r"\^(-?[\w.]*\w)", r"<sup>\1</sup>", str(escape(text))))


def render(**content: object) -> str:
    """The page of sections, as HTML."""
    loader = jinja2.PackageLoader("tinyscale.reporting", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["raised"] = _raised
    return environment.get_template("report.html").render(**content)
