"""Commands about this machine: corpora, doctor."""

from __future__ import annotations

import sys

import click

from tinyscale.cli.options import open_console, results_option


@click.command()
def corpora() -> None:
    """List the named corpora: size, licence, where they come from, whether they are on this machine.

    A sweep's data.corpus is one of these names, or a path to .txt, .jsonl, .parquet or a folder of those.
    """
    from tinyscale.data.corpora import named_corpora
    from tinyscale.display import corpora_table

    open_console().print(corpora_table(named_corpora()))


@click.command()
@results_option
@click.option("--no-ray", is_flag=True, help="Do not start Ray, which takes some seconds.")
def doctor(results: str, no_ray: bool) -> None:
    """Check this machine: Python, packages, cores, GPUs, the results folder, free disk, Ray.

    One line a check: ok, warn or fail, with what to do. Exit status: 0, or 1 when a check fails.
    """
    from tinyscale.doctor import examine

    failed = False
    for check in examine(results, with_ray=not no_ray):
        click.echo(str(check))
        failed |= check.level == "fail"
    sys.exit(int(failed))


COMMANDS = (corpora, doctor)
