"""The command line: parse, call one function, print. Neither torch nor ray is imported until a command needs it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from tinyscale.errors import FitError, TinyscaleError

if TYPE_CHECKING:
    from tinyscale.fitting.fit import Fit
    from tinyscale.fitting.tables import Group
    from tinyscale.storage import Folder


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tinyscale")
def cli() -> None:
    """One YAML file in, a defensible scaling law out."""


def _read_columns(_: click.Context, __: click.Parameter, text: str | None) -> dict[str, str]:
    """n=params,d=tokens,loss=val -> a mapping."""
    pairs = [pair.partition("=") for pair in (text or "").split(",") if pair]
    if not all(name and column for name, _, column in pairs):
        raise click.BadParameter(
            f"{text!r} is not NAME=COLUMN,NAME=COLUMN, for example n=params,d=tokens,loss=val_loss"
        )
    return {name.strip(): column.strip() for name, _, column in pairs}


@cli.command()
@click.argument("path", required=False)
@click.option("--results", help="Results folder to read, and to write to when PATH is a file.  [default: results]")
@click.option("--law", help="Law to fit; left out, the one for what varies.")
@click.option(
    "--columns",
    callback=_read_columns,
    metavar="NAME=COLUMN,...",
    help="Columns of your own table, for example n=params,d=tokens,loss=val.",
)
@click.option(
    "--pool",
    is_flag=True,
    help="Fit all sweeps and arms together; they must share corpus, tokenizer and validation set.",
)
@click.option(
    "--holdout", type=click.IntRange(0), default=1, show_default=True, help="Largest sizes to hold out for the error."
)
@click.option(
    "--bootstrap",
    "draws",
    type=click.IntRange(100),
    default=1000,
    show_default=True,
    help="Refits behind bands and predictions.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the refits.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def fit(
    *,
    path: str | None,
    results: str | None,
    law: str | None,
    columns: dict[str, str],
    pool: bool,
    holdout: int,
    draws: int,
    seed: int,
    as_json: bool,
) -> None:
    """Fit a scaling law to a results folder, or to any .csv, .parquet or .jsonl of runs at PATH.

    One fit a sweep and arm: 95 % intervals, the error on the largest size held out, a plot.
    Writes fits/fits.json, tables/ and plots/ under the results folder.
    """
    from tinyscale.fitting import tables, text
    from tinyscale.storage import Folder

    groups = tables.read_groups(path or results or "results", columns=columns, pool=pool)
    fits, refused = [], []
    for group in groups:
        try:
            fits.append(_fit_group(group, law, columns=columns, holdout=holdout, draws=draws, seed=seed))
        except FitError as error:
            refused.append(f"{group.title}: not fitted: {error}")
    if not fits:
        raise FitError("\n".join(refused))
    is_file = path is not None and path.endswith(tuple(tables.READERS))
    folder = Folder.at(results or "results" if is_file else path or results or "results")
    written = tables.write_tables(folder, fits) + _write_plots(folder, fits)
    if as_json:
        click.echo(json.dumps([found.as_json() for found in fits], indent=1))
    else:
        click.echo("\n\n".join([*map(text.describe, fits), "\n".join(f"wrote {name}" for name in written)]))
    for line in refused:
        click.echo(line, err=True)


def _fit_group(group: Group, law: str | None, *, columns: dict[str, str], holdout: int, draws: int, seed: int) -> Fit:
    from tinyscale.fitting import tables
    from tinyscale.fitting.fit import fit as fit_law

    tables.refuse_mixed(group)
    name = law or tables.choose_law(group.frame, columns)
    found = fit_law(group.frame, name, columns=columns, holdout=holdout, draws=draws, seed=seed)
    return tables.label(found, group)


def _write_plots(folder: Folder, fits: list[Fit]) -> list[str]:
    """Draw each fit as PNG and SVG; the paths written."""
    import io

    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from tinyscale.fitting.tables import slug
    from tinyscale.plot import plot_fit

    written = []
    for found in fits:
        figure, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
        plot_fit(found, ax=ax)
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=200)
            (folder / "plots").write(f"{slug(found)}.{kind}", buffer.getvalue())
            written.append(f"{folder / 'plots'}/{slug(found)}.{kind}")
        plt.close(figure)
    return written


def main() -> None:
    """Run the command line; an error the user can mend is printed as one block, exit status 1."""
    try:
        cli(standalone_mode=True)
    except TinyscaleError as error:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {error}", err=True)
        sys.exit(1)
