"""Commands about this machine: corpora, doctor."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from itertools import chain

import click

from tinyscale.cli.options import DONE, ERROR, echo, examples, results_option


@click.command(epilog=examples("corpora"))
def corpora() -> None:
    """List the named corpora.

    Shows size, licence, origin, and whether the text is on this machine. A sweep's data.corpus is one of these names,
    or a path to .txt, .jsonl, .parquet or a folder of those.
    """
    from tinyscale.cli.tables import corpora_table
    from tinyscale.data.corpora import named_corpora
    from tinyscale.reporting.terminal import open_console

    open_console().print(corpora_table(named_corpora()))


@click.command(epilog=examples("doctor", "doctor --address auto --results runs"))
@results_option
@click.option("--address", envvar="RAY_ADDRESS", help="Check the nodes of a running Ray cluster as well.")
@click.option("--no-ray", is_flag=True, help="Do not start Ray, which takes some seconds.")
def doctor(results: str, address: str | None, no_ray: bool) -> None:
    """Check this machine, or each node of a cluster.

    Checks Python, packages, cores, GPUs, the results folder, free disk and Ray. With --address it also checks each node
    of a cluster: its cores, its disk, and whether it shares the results folder.

    One line per check: ok, warn or fail, with what to do. Exit status: 0, or 1 when a check fails.
    """
    from tinyscale.doctor import examine

    failed = False
    with ExitStack() as stack:
        checks = examine(results, with_ray=not no_ray and not address)
        if address:
            from tinyscale.orchestration.nodes import examine_nodes
            from tinyscale.orchestration.session import ray_session

            stack.enter_context(ray_session(address))
            checks = chain(checks, examine_nodes(results))
        for check in checks:
            echo(str(check))
            failed |= check.level == "fail"
    sys.exit(ERROR if failed else DONE)


COMMANDS = (corpora, doctor)
