"""`tinyscale report`: one HTML page; its tables are CSVs under tables/ too, its plots PNGs and SVGs under plots/."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from markdown_it import MarkdownIt
from markupsafe import Markup

from tinyscale.analysis.forecasts import Registration, forecasts_table, read_registrations
from tinyscale.analysis.score import score_all
from tinyscale.analysis.study import find_laws
from tinyscale.errors import FitError
from tinyscale.formatting import nearest, plural
from tinyscale.reporting.blocks import PAGE, Block, Notes, Text, render
from tinyscale.reporting.figures import FIGURES
from tinyscale.reporting.sections import Sections
from tinyscale.reporting.tables import provenance_of
from tinyscale.reporting.write import write_analysis
from tinyscale.results.store import Results
from tinyscale.storage import Folder

NOTES = "notes.md"


def write_report(location: str, notify: Callable[[str], None] = lambda _: None) -> list[str]:
    """Fit what a results folder holds, write its tables and plots, and put them on one page; the paths written.

    notify is called with what takes seconds.
    """
    store = Results(location)
    done = write_analysis(store.folder, find_laws(location))
    page = Sections(store, done)
    sections, set_aside = page.sections(notify)
    origin: list[Block] = [page.table(provenance_of(store))]
    if unreadable := (*set_aside, *page.unreadable):
        origin.append(Notes("Files that could not be read", unreadable))
    scored = _scored(store)
    own = _own_words(store.folder, [each.name for each in sections])
    sections = [replace(each, blocks=(*own.pop(each.name, ()), *each.blocks)) for each in sections]
    html = render(
        location=str(store.folder),
        notes=[block for blocks in own.values() for block in blocks],
        lead=next((each for each in sections if each.figure), None) if len(sections) > 1 else None,
        sections=sections,
        forecasts=list(page.forecasts(scored)),
        forecast_answer=_came(scored),
        origin=origin,
    )
    store.folder.write(PAGE, html.encode())
    return [*done.written, *page.written, f"{store.folder}/{PAGE}"]


def figure_of_page(location: str, name: str) -> Callable[..., object]:
    """What draws a figure of the page, by the stem of its files; nothing is written. FitError for another name."""
    store = Results(location)
    page = Sections(store, find_laws(location), writes=False)
    page.sections()
    list(page.forecasts(_scored(store)))
    if name not in page.drawn:
        close = nearest(name, page.drawn)
        raise FitError(
            f"{location} has no figure {name!r}{close}; its page lists them, and a fit has {', '.join(FIGURES)}"
        )
    return page.drawn[name]


def _scored(store: Results) -> list[Registration]:
    """The registered forecasts with their scores."""
    registered = read_registrations(store.folder)
    return score_all(store, registered) if registered else []


def _own_words(folder: Folder, sweeps: Sequence[str]) -> dict[str, tuple[Text, ...]]:
    """What notes.md beside the results says, in Markdown: below `## SWEEP` of that sweep, all else of the whole page.

    Keys: the sweeps' names, and an empty one for the page.
    """
    written = folder.read(NOTES).decode(errors="replace") if folder.exists(NOTES) else ""
    parts, name = {"": ""}, ""
    for line in written.splitlines(keepends=True):
        if line.startswith("## "):
            heading = line.removeprefix("## ").strip()
            name = heading if heading in sweeps else ""
            if name:
                continue  # its section has that heading already
        parts[name] = parts.get(name, "") + line
    rendered = {name: MarkdownIt("commonmark", {"html": False}).render(text) for name, text in parts.items() if text}
    return {name: (Text(Markup(html)),) for name, html in rendered.items()}


def _came(made: list[Registration]) -> str:
    """How many of the forecasts have a run by now, and how many of those runs their intervals held."""
    rows = forecasts_table([each for each in made if each.intact])
    if rows.empty:
        return ""
    return f"{rows['inside'].sum():.0f} of {plural(int(rows['runs'].sum()), 'run')} inside the 95 % interval."
