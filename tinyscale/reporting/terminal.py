"""What is printed to a terminal: text as it is, whatever it holds. Titles, arms and reasons are no markup."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from tinyscale.formatting import printable

LOG_WIDTH = 160  # for tables where there is no terminal


class PlainConsole(Console):
    """A console that reads no markup and no emoji codes in text, and spells control characters out."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(printable(text), **settings)


def open_console(*, quiet: bool = False) -> PlainConsole:
    """The console that tables and progress are printed to; quiet: to none. Lines of a log or a pipe are not wrapped."""
    if sys.stdout.isatty():
        return PlainConsole(quiet=quiet)
    return PlainConsole(quiet=quiet, width=LOG_WIDTH, soft_wrap=True)
