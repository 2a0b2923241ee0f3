"""Commands that take results to laws and figures: fit, predict, suggest, plot, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from tinyscale.cli.options import read_quantity, results_argument
from tinyscale.errors import ResultsError

SUGGESTED = "# Written by tinyscale suggest."  # first line of its files: only those are written over


def _read_columns(_: click.Context, __: click.Parameter, text: str | None) -> dict[str, str]:
    """n=params,d=tokens,loss=val -> a mapping."""
    pairs = [pair.partition("=") for pair in (text or "").split(",") if pair]
    if not all(name and column for name, _, column in pairs):
        raise click.BadParameter(
            f"{text!r} is not NAME=COLUMN,NAME=COLUMN, for example n=params,d=tokens,loss=val_loss"
        )
    return {name.strip(): column.strip() for name, _, column in pairs}


_columns_option = click.option(
    "--columns",
    callback=_read_columns,
    metavar="NAME=COLUMN,...",
    help="Columns of your own table, for example n=params,d=tokens,loss=val.",
)


@click.command()
@click.argument("path", required=False)
@click.option("--results", help="Results folder to read, and to write to when PATH is a file.  [default: results]")
@click.option("--law", help="Law to fit; left out, the one for what varies.")
@_columns_option
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
@click.option(
    "--intervals",
    type=click.Choice(["auto", "profile", "bootstrap", "wild"]),
    default="auto",
    show_default=True,
    help="How intervals are made; auto: profile below 50 clusters of runs, else bootstrap over clusters. "
    "wild: residuals reweighted, no cluster left out.",
)
@click.option(
    "--delta",
    type=click.FloatRange(0, min_open=True),
    help="Of Huber's function on log loss, for example 1e-3; inf: least squares, which profile and wild need.  "
    "[default: inf below 50 clusters of runs, else 1e-3]",
)
@click.option(
    "--convention",
    type=click.Choice(["tinyscale", "kaplan", "hoffmann", "palm", "matmul", "all"]),
    help="How N and FLOPs are counted; all: also print the parameters under each.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def fit(path: str | None, results: str | None, as_json: bool, **options: Any) -> None:
    """Fit a scaling law to a results folder, or to a table of runs at PATH: .csv, .tsv, .parquet, .json or .jsonl.

    One fit a sweep and arm: 95 % intervals, the error on the largest size held out, a plot.
    Writes fits/fits.json, tables/ and plots/ under the results folder.
    """
    from tinyscale.fitting.text import describe
    from tinyscale.reporting.write import analyse

    done = analyse(path or results or "results", results or "results", **options)
    records = [found.record for found in done.fits]
    for said in done.reading:
        click.echo(said, err=as_json)
    if as_json:
        click.echo(json.dumps([record.as_json() for record in records], indent=1))
    else:
        verdicts = [f"{each.sweep}: {each.verdict}" for each in done.contrasts]
        wrote = [f"wrote {name}" for name in done.written]
        click.echo("\n\n".join([*map(describe, records), *verdicts, "\n".join(wrote)]))
    for line in done.refused:
        click.echo(line, err=True)


@click.command()
@results_argument("fits", "[FITS]")
@click.option("--n", callback=read_quantity, help="Parameters, counted as the fit counted them, for example 10M.")
@click.option("--tokens", "d", callback=read_quantity, help="Training tokens, for example 200M.")
@click.option(
    "--flops", "c", callback=read_quantity, help="Training FLOPs: the loss of L(C), or the best N and D, for 1e18."
)
@click.option("--fit", "name", help="Only this fit, by its name in fits.json.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def predict(fits: str, name: str | None, as_json: bool, **sizes: float | None) -> None:
    """Predict from the fits that `tinyscale fit` left in FITS (a results folder or a fits.json), with 95 % intervals.

    The loss of a run of --n parameters and --tokens tokens, or the compute-optimal run for --flops.
    """
    from tinyscale.analysis.predict import describe_prediction, predict_all
    from tinyscale.analysis.records import read_records

    folder, records = read_records(fits)
    chosen = [record for record in records if name in (None, record.name)]
    if not chosen:
        raise click.BadParameter(f"no fit {name!r}; there are {', '.join(record.name for record in records)}")
    made = predict_all(folder, chosen, {key: value for key, value in sizes.items() if value is not None})
    if as_json:
        click.echo(json.dumps([each.as_json() for each in made], indent=1))
    else:
        click.echo("\n\n".join(map(describe_prediction, made)))


@click.command()
@results_argument("fits", "[FITS]")
@click.option(
    "--flops", "budget", required=True, callback=read_quantity, help="Training FLOPs to spend, for example 1e17."
)
@click.option(
    "--target",
    default="loss",
    show_default=True,
    help="Interval to shrink: a parameter, or loss at 10 times the sizes.",
)
@click.option("--fit", "name", help="Name of the fit in fits.json; left out, the first.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Sweep file to write.  [default: <sweep>-next.yaml]"
)
def suggest(fits: str, budget: float, target: str, name: str | None, out: Path | None) -> None:
    """Choose the runs that shrink an interval most for their FLOPs, and write them as a sweep file for `launch`.

    FITS is a results folder or a fits.json. Fits of your own table extend no sweep: their runs are only printed.
    """
    from tinyscale.analysis.suggest import suggest_from

    made, content = suggest_from(fits, budget, target, name)
    click.echo(
        f"{len(made.runs)} run{'s' if len(made.runs) > 1 else ''}, {made.flops:.2g} FLOPs: "
        f"the interval of {made.target} shrinks to {made.shrink:.0%} of its width"
    )
    for run in made.runs:
        sizes = ", ".join(f"{key.upper()} = {value:.3g}" for key, value in run.variables.items())
        fields = ", ".join(f"{field} {value}" for field, value in run.fields.items())
        click.echo(f"  {sizes}, {run.flops:.2g} FLOPs" + (f": {fields}" if fields else ""))
    click.echo(f"  of {budget:.2g} FLOPs; {made.ended}")
    if content is not None:
        path = out or Path(f"{content['name']}.yaml")
        _write_sweep(path, content)
        click.echo(f"wrote {path}")


def _write_sweep(path: Path, content: dict[str, Any]) -> None:
    """Write a sweep file, over no file but one that was written so. ResultsError where that cannot be."""
    from ruamel.yaml import YAML

    try:
        if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(SUGGESTED):
            raise ResultsError(f"{path}: a file that suggest did not write is there; give another --out")
        with path.open("w", encoding="utf-8") as stream:
            stream.write(f"{SUGGESTED}\n")
            yaml = YAML()
            yaml.default_flow_style = None
            yaml.dump(content, stream)
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written ({error.strerror}); give another --out") from error


FIGURES = (".pdf", ".svg", ".png")


def _read_figure(_: click.Context, __: click.Parameter, path: Path) -> Path:
    if path.suffix not in FIGURES:
        raise click.BadParameter(f"'{path}' ends on none of {', '.join(FIGURES)}")
    return path


@click.command()
@results_argument("folder", "[RESULTS]")
@click.option("--law", help="Draw the fit of this law.")
@click.option("--fit", "name", help="Draw this fit, by its name in fits.json.")
@_columns_option
@click.option(
    "--figure",
    type=click.Choice(["law", "residuals", "curves"]),
    default="law",
    show_default=True,
    help="The law with its runs; what it leaves over; or the curves of loss whose lowest points it is fitted to.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    callback=_read_figure,
    help="File to write: .pdf, .svg or .png.",
)
def plot(folder: str, law: str | None, name: str | None, columns: dict[str, str], figure: str, out: Path) -> None:
    """Draw one fit for a paper, from what `tinyscale fit` left in RESULTS, or from a table of runs.

    A law that was not fitted there yet is fitted with its defaults, and not recorded.
    """
    from tinyscale.analysis.study import fit_to_draw
    from tinyscale.reporting.figures import draw_of, save_figure

    found, origin = fit_to_draw(folder, law, name, columns)
    save_figure(out, draw_of(found, figure))
    click.echo(f"wrote {out}: {found.record.name}, {origin}")


@click.command()
@results_argument("folder", "[RESULTS]")
def report(folder: str) -> None:
    """Write report.html into a results folder: one page with each sweep's verdict, law, plots, tables and costs.

    Fits as `tinyscale fit` does without options, and writes what it writes. The page opens from disk and loads
    nothing; its tables are in tables/ as CSV, its plots in plots/ as PNG and SVG.
    """
    from tinyscale.reporting.page import write_report

    *files, page = write_report(folder)
    click.echo(f"wrote {len(files)} tables and plots\nwrote {page}")


COMMANDS = (fit, predict, suggest, plot, report)
