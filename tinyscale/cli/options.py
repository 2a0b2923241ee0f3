"""Options that several commands share, and how lines are printed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from tinyscale.formatting import printable

# Exit statuses; click's own 2 says that a command is misspelt.
DONE, ERROR, SOME_FAILED, STOPPED = 0, 1, 3, 130

Command = TypeVar("Command", bound=Callable[..., Any])


def examples(*commands: str) -> str:
    """The epilog of a command's help: lines to copy."""
    return "\n".join(
        ["\b", "Examples:" if len(commands) > 1 else "Example:", *(f"  tinyscale {each}" for each in commands)]
    )


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
    from tinyscale.spec.values import quantity

    try:
        value = None if text is None else float(quantity(text))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a number; write 10M, 1.5B or 1e18") from error
    if value is not None and not 0 < value < math.inf:
        raise click.BadParameter(f"{text!r} is not above zero and finite; write 10M, 1.5B or 1e18")
    return value


def read_tokens(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """100K -> a whole number, one at least."""
    value = read_quantity(context, parameter, text)
    return None if value is None else max(1, round(value))


def echo(text: str, *, err: bool = False) -> None:
    """Print lines that may hold a user's text, without a console; err: to standard error."""
    click.echo(printable(text), err=err)
