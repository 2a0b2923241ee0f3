"""The command line: parse, call one function, print. Neither torch nor ray is imported until a command needs it."""

from __future__ import annotations

import sys
import traceback

import click

from tinyscale.cli import fits, forecasts, imports, machine, models, sweeps, trials
from tinyscale.cli.options import ERROR, STOPPED, echo
from tinyscale.errors import TinyscaleError
from tinyscale.formatting import printable


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tinyscale")
@click.option("--debug", is_flag=True, help="Print a traceback with an error.")
def cli(debug: bool) -> None:  # main reads it, where errors are printed
    """One YAML file in, a defensible scaling law out.

    \b
    tinyscale plan   SWEEP      what would run, what it costs, what is done
    tinyscale launch SWEEP      train the missing trials; write Parquet while they run
    tinyscale fit    results/   power laws with intervals, held-out error, plots
    tinyscale report results/   one page to read and to send
    """


for command in (
    *sweeps.COMMANDS,
    *trials.COMMANDS,
    *imports.COMMANDS,
    *fits.COMMANDS,
    *forecasts.COMMANDS,
    *models.COMMANDS,
    *machine.COMMANDS,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; an error the user can mend is printed as one block. Exit statuses: docs/running.md."""
    try:
        status = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except click.Abort:  # Ctrl-C, or no to a question
        echo("stopped", err=True)
        status = STOPPED
    except (TinyscaleError, OSError) as error:  # of disks and networks, those that no remedy is known for
        if "--debug" in sys.argv:
            traceback.print_exc()
        click.echo(f"{click.style('error:', fg='red', bold=True)} {printable(str(error))}", err=True)
        status = ERROR
    sys.exit(status)
