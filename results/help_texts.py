"""Make the texts of the studies `transfer` and `languages`: the LibreOffice help, one page a line, in eight languages.

    apt-get download libreoffice-help-{en-us,de,nl,fr,it,pt-br,cs,el}
    for package in libreoffice-help-*.deb; do dpkg -x "$package" packages; done
    python results/help_texts.py packages sweeps/help

It writes sweeps/help/en.jsonl, sweeps/help/de.jsonl, ... of {"page": path of the page, "text": its text without
markup}. The text is under the Mozilla Public License 2.0 (packages/usr/share/doc/libreoffice-help-*/copyright). A page
is the same in every language, so that a held-out page is held out of all. Pages of which more than 15 % stands in lines
of the English page are not translated and are left out; so are pages under three lines, and repeats.
"""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path

LANGUAGES = {"en-US": "en", "de": "de", "nl": "nl", "fr": "fr", "it": "it", "pt-BR": "pt", "cs": "cs", "el": "el"}
UNTRANSLATED = 0.15  # share of a page's characters in lines of the English one
FEWEST_LINES = 3
BLOCKS = {"p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "li", "tr", "td", "th", "br", "pre", "table", "ul", "ol"}
NO_TEXT = {"script", "style"}


class Page(HTMLParser):
    """The text of a help page: what stands in its element DisplayArea."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0  # of open <div> from DisplayArea on; 0 outside
        self.skipped = 0
        self.pieces: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.depth += tag == "div" and (self.depth > 0 or ("id", "DisplayArea") in attrs)
        self.skipped += tag in NO_TEXT
        self.pieces += "\n" if tag in BLOCKS else ""

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag == "div" and self.depth > 0
        self.skipped -= tag in NO_TEXT
        self.pieces += "\n" if tag in BLOCKS else ""

    def handle_data(self, data: str) -> None:
        self.pieces += [data.replace("\n", " ")] if self.depth and not self.skipped else []

    @property
    def lines(self) -> list[str]:
        """Its lines that hold text."""
        stripped = (" ".join(line.split()) for line in "".join(self.pieces).split("\n"))
        return [line for line in stripped if line]


def read_pages(folder: Path) -> dict[str, list[str]]:
    """Path of each page in a language's folder -> its lines."""
    found: dict[str, list[str]] = {}
    for path in sorted((folder / "text").rglob("*.html")):
        page = Page()
        page.feed(path.read_text("utf-8"))
        found[str(path.relative_to(folder / "text"))] = page.lines
    return found


def is_translated(lines: list[str], english: list[str]) -> bool:
    """Whether at most UNTRANSLATED of the page stands in lines of the English one."""
    same = sum(len(line) for line in lines if line in set(english))
    return same <= UNTRANSLATED * sum(map(len, lines))


def main(packages: Path, out: Path) -> None:
    """Write a file of each language that is there."""
    out.mkdir(parents=True, exist_ok=True)
    help_of = packages / "usr/share/libreoffice/help"
    english = read_pages(help_of / "en-US")
    for folder, name in LANGUAGES.items():
        pages = read_pages(help_of / folder) if folder != "en-US" else english
        if not pages:
            print(f"{name}: no pages under {help_of / folder}: download its package and unpack it")
            continue
        seen: set[str] = set()
        with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for page, lines in pages.items():
                text = "\n".join(lines)
                kept = len(lines) >= FEWEST_LINES and text not in seen
                if kept and (name == "en" or is_translated(lines, english.get(page, []))):
                    file.write(json.dumps({"page": page, "text": text}, ensure_ascii=False) + "\n")
                    seen.add(text)
        print(f"{name}: {len(seen):,} pages, {sum(len(text.encode()) for text in seen):,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
