"""Options that several commands share, and the console they print to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

LOG_WIDTH = 160  # for tables where there is no terminal

Command = TypeVar("Command", bound=Callable[..., Any])

results_option = click.option(
    "--results", "results", default="results", show_default=True, help="Results folder: a path, s3:// or gs://."
)


def results_argument(name: str, metavar: str) -> Callable[[Command], Command]:
    """The results folder, as an argument or as --results; [default: results]."""

    def either(context: click.Context, _: click.Parameter, given: str | None) -> str:
        option = context.params.pop("results", None)
        if given is not None and option is not None and given != option:
            raise click.BadParameter(f"{given!r} and --results {option!r} name two folders; give one")
        return str(given or option or "results")

    def decorate(command: Command) -> Command:
        command = click.argument(name, metavar=metavar, required=False, callback=either)(command)
        same = f"The same as {metavar.strip('[]')}.  [default: results]"
        return click.option("--results", is_eager=True, help=same)(command)

    return decorate


def read_quantity(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """10M, 2.5e8 -> a number."""
    from tinyscale.spec.config import quantity

    try:
        return None if text is None else float(quantity(text))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a number; write 10M, 1.5B or 1e18") from error


def open_console(*, quiet: bool = False) -> Console:
    """The console that tables and progress are printed to; quiet: to none. Lines of a log or a pipe are not wrapped."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console(quiet=quiet, highlight=False)
    return Console(quiet=quiet, highlight=False, width=LOG_WIDTH, soft_wrap=True)
