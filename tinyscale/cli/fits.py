"""Commands from results to laws and figures: fit, predict, suggest, plot, report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from tinyscale.cli.options import echo, examples, read_quantity, results_argument
from tinyscale.errors import ResultsError

SUGGESTED = "# Written by tinyscale suggest."  # first line of its files: only those are overwritten


def _read_columns(_: click.Context, __: click.Parameter, text: str | None) -> dict[str, str]:
    """n=params,d=tokens,loss=val -> a mapping."""
    pairs = [pair.partition("=") for pair in (text or "").split(",") if pair]
    if not all(name and column for name, _, column in pairs):
        raise click.BadParameter(
            f"{text!r} is not NAME=COLUMN,NAME=COLUMN, for example n=params,d=tokens,loss=val_loss"
        )
    return {name.strip(): column.strip() for name, _, column in pairs}


def _read_held(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, float]:
    """E=1.6 -> a mapping."""
    try:
        return {name.strip(): float(value) for name, value in (each.split("=") for each in given)}
    except ValueError as error:
        raise click.BadParameter(f"{' '.join(given)!r} is not PARAMETER=NUMBER, for example E=1.6") from error


def _read_priors(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """alpha=0.35±0.05, or with +- for ± -> a mapping to mean and sd."""
    found = {}
    for each in given:
        name, *normal = each.replace("+-", "=").replace("±", "=").split("=")
        try:
            mean, sd = map(float, normal)
        except ValueError as error:
            raise click.BadParameter(f"{each!r} is not PARAMETER=MEAN+-SD, for example alpha=0.35+-0.05") from error
        found[name.strip()] = (mean, sd)
    return found


_columns_option = click.option(
    "--columns",
    callback=_read_columns,
    metavar="NAME=COLUMN,...",
    help="Columns of your own table, for example n=params,d=tokens,loss=val.",
)


@click.command(
    epilog=examples(
        "fit results",
        "fit results --where 'd_model >= 64'",
        "fit runs.csv --columns n=params,d=tokens,loss=val --results fits",
    )
)
@click.argument("path", required=False)
@click.option("--results", help="Results folder to read, and to write to when PATH is a file.  [default: results]")
@click.option(
    "--law",
    help="Law to fit, and to forecast by alone.  [default: chosen by what varies; forecasts average the laws of that]",
)
@_columns_option
@click.option(
    "--pool",
    is_flag=True,
    help="Fit all sweeps and arms together; they must share corpus, tokenizer and validation set.",
)
@click.option(
    "--where",
    metavar="EXPRESSION",
    help="Fit only the runs that fulfil this, over their columns, such as 'd_model >= 64'; the fits of all runs stay.",
)
@click.option(
    "--holdout",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="How many of the largest sizes to hold out for the error; 1: of joint laws, the top fifth of compute.",
)
@click.option(
    "--bootstrap",
    "draws",
    type=click.IntRange(100),
    default=1000,
    show_default=True,
    help="Bootstrap replicates for bands and predictions.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the bootstrap.")
@click.option(
    "--intervals",
    type=click.Choice(["auto", "profile", "bootstrap", "wild"]),
    default="auto",
    show_default=True,
    help="Method of the intervals; auto: profile below 50 clusters of runs, else bootstrap over clusters; "
    "wild: the wild bootstrap, which reweights residuals and keeps all clusters.",
)
@click.option(
    "--delta",
    type=click.FloatRange(0, min_open=True),
    help="Delta of Huber's function on log loss, for example 1e-3; inf: least squares, which profile and wild need.  "
    "[default: inf below 50 clusters of runs, else 1e-3]",
)
@click.option(
    "--hold", callback=_read_held, multiple=True, metavar="PARAMETER=NUMBER", help="Hold a parameter, such as E=1.6."
)
@click.option(
    "--prior",
    callback=_read_priors,
    multiple=True,
    metavar="PARAMETER=MEAN±SD",
    help="Normal prior of a parameter, such as alpha=0.35±0.05 (or +-): its mean and standard deviation.",
)
@click.option(
    "--one-sided",
    is_flag=True,
    help="Runs above the law count a tenth: for runs of which some are badly tuned.",
)
@click.option(
    "--convention",
    type=click.Choice(["tinyscale", "kaplan", "hoffmann", "palm", "matmul", "all"]),
    help="How N and FLOPs are counted; all: also print the parameters under each.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def fit(path: str | None, results: str | None, as_json: bool, **options: Any) -> None:
    """Fit scaling laws to a results folder or a table of runs.

    PATH is a results folder, or a .csv, .tsv, .parquet, .json or .jsonl with one row per run. Each sweep and arm has
    one fit: 95 % intervals, the error on the held-out largest size, a plot. Writes fits/fits.json, tables/ and plots/
    under the results folder.
    """
    from tinyscale.analysis.multipliers import in_words
    from tinyscale.analysis.ranks import ranks_in_words
    from tinyscale.fitting.text import describe
    from tinyscale.reporting.write import analyse

    done = analyse(path or results or "results", results or "results", **options)
    records = [found.record for found in done.fits]
    for said in done.reading:
        echo(said, err=as_json)
    if as_json:
        click.echo(json.dumps([record.as_json() for record in records], indent=1))
    else:
        verdicts = [
            "\n  ".join([f"{each.sweep}: {each.verdict}", *in_words(each.multipliers)]) for each in done.contrasts
        ]
        for sweep in dict.fromkeys(each.sweep for each in done.contrasts):
            arms = [each for each in done.contrasts if each.sweep == sweep]
            verdicts += [f"{sweep}: {text}" for text in ranks_in_words(arms)]
        wrote = [f"wrote {name}" for name in done.written]
        echo("\n\n".join([*map(describe, records), *verdicts, "\n".join(wrote)]))
    if done.replaced:
        echo(f"fits made with other options or laws are replaced: {', '.join(done.replaced)}", err=True)
    for line in done.refused:
        echo(str(line), err=True)


@click.command(
    epilog=examples("predict results --n 10M --tokens 200M", "predict results --flops 1e18 --fit width-chinchilla")
)
@results_argument("fits", "[FITS]")
@click.option("--n", callback=read_quantity, help="Parameters, counted as the fit counted them, for example 10M.")
@click.option("--tokens", "d", callback=read_quantity, help="Training tokens, for example 200M.")
@click.option(
    "--flops",
    "c",
    callback=read_quantity,
    help="Training FLOPs, for example 1e18: the loss of L(C), or the best N and D.",
)
@click.option("--fit", "name", help="Only this fit, by its name in fits.json.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def predict(fits: str, name: str | None, as_json: bool, **sizes: float | None) -> None:
    """Predict a loss, or the compute-optimal size for a budget.

    Reads the fits that `tinyscale fit` wrote to FITS, a results folder or a fits.json. Prints, with 95 % intervals, the
    loss of a run of --n parameters and --tokens tokens, or the compute-optimal run for --flops.
    """
    from tinyscale.analysis.predict import describe_prediction, predict_all
    from tinyscale.analysis.records import read_records

    if not any(size is not None for size in sizes.values()):
        raise click.UsageError("say what to predict: --n 10M, --n 10M with --tokens 200M, or --flops 1e18")
    folder, records = read_records(fits)
    chosen = [record for record in records if name in (None, record.name)]
    if not chosen:
        raise click.BadParameter(f"no fit {name!r}; the fits are {', '.join(record.name for record in records)}")
    made = predict_all(folder, chosen, {key: value for key, value in sizes.items() if value is not None})
    if as_json:
        click.echo(json.dumps([each.as_json() for each in made], indent=1))
    else:
        echo("\n\n".join(map(describe_prediction, made)))


@click.command(epilog=examples("suggest results --flops 1e17 --out next.yaml"))
@results_argument("fits", "[FITS]")
@click.option(
    "--flops", "budget", required=True, callback=read_quantity, help="Training FLOPs to spend, for example 1e17."
)
@click.option(
    "--target",
    default="loss",
    show_default=True,
    help="Interval to shrink: that of a parameter, or of the loss at 10 times the sizes.",
)
@click.option("--fit", "name", help="Name of the fit in fits.json.  [default: the first]")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Sweep file to write.  [default: <sweep>-next.yaml]"
)
def suggest(fits: str, budget: float, target: str, name: str | None, out: Path | None) -> None:
    """Choose the next runs, and write them as a sweep file.

    The runs are those that shrink an interval most for their FLOPs; the file is for `tinyscale launch`. FITS is a
    results folder or a fits.json. For a fit of your own table, the runs are only printed.
    """
    from tinyscale.analysis.suggest import suggest_from

    made, content = suggest_from(fits, budget, target, name)
    echo(
        f"{len(made.runs)} run{'s' if len(made.runs) > 1 else ''}, {made.flops:.2g} FLOPs: "
        f"the interval of {made.target} shrinks to {made.shrink:.0%} of its width"
    )
    for run in made.runs:
        sizes = ", ".join(f"{key.upper()} = {value:.3g}" for key, value in run.variables.items())
        fields = ", ".join(f"{field} {value}" for field, value in run.fields.items())
        echo(f"  {sizes}, {run.flops:.2g} FLOPs" + (f": {fields}" if fields else ""))
    echo(f"  of {budget:.2g} FLOPs; {made.ended}")
    if content is not None:
        path = out or Path(f"{content['name']}.yaml")
        _write_sweep(path, content)
        echo(f"wrote {path}")


def _write_sweep(path: Path, content: dict[str, Any]) -> None:
    """Write a sweep file; overwrite only a file of `suggest`. ResultsError where that is not possible."""
    from ruamel.yaml import YAML

    try:
        if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(SUGGESTED):
            raise ResultsError(f"{path}: this file exists and is not from suggest; give another --out")
        with path.open("w", encoding="utf-8") as stream:
            stream.write(f"{SUGGESTED}\n")
            yaml = YAML()
            yaml.default_flow_style = None
            yaml.dump(content, stream)
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written ({error.strerror}); give another --out") from error


ENDINGS = (".pdf", ".svg", ".png")


def _read_figure(_: click.Context, __: click.Parameter, path: Path) -> Path:
    if path.suffix not in ENDINGS:
        raise click.BadParameter(f"'{path}' has none of the endings {', '.join(ENDINGS)}")
    return path


def _read_size(_: click.Context, __: click.Parameter, text: str) -> str | tuple[float, float]:
    """column, text, or 3.3x2.5 -> inches."""
    if text in ("column", "text"):
        return text
    width, by, height = text.partition("x")
    try:
        size = float(width), float(height)
    except ValueError:
        size = math.nan, math.nan
    if not (by and all(0.5 <= each <= 50 for each in size)):
        raise click.BadParameter(f"{text!r} is not column, text, or WIDTHxHEIGHT in inches, for example 3.3x2.5")
    return size


@click.command(
    epilog=examples(
        "plot results --law power-n --out law.pdf",
        "plot results --figure width-loss-flops --size column --no-title --out curves.pdf",
        "plot runs.csv --columns n=params --out law.svg",
    )
)
@results_argument("folder", "[RESULTS]")
@click.option("--law", help="Plot the fit of this law.")
@click.option("--fit", "name", help="Plot this fit, by its name in fits.json.")
@_columns_option
@click.option(
    "--figure",
    default="law",
    show_default=True,
    help="Of the fit: law, residuals, excess (loss above E), curves (whose minima it is fitted to), batch_tokens or "
    "weight_decay (tuned with the learning rate). Or a figure of the report, by its name in plots/.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    callback=_read_figure,
    help="File to write: .pdf, .svg or .png.",
)
@click.option(
    "--size",
    default="6.4x4.4",
    callback=_read_size,
    metavar="[column|text|WxH]",
    help="Inches, or a column or the text of a two-column LaTeX page, at 6 or 9 points.  [default: 6.4x4.4]",
)
@click.option("--points", type=click.FloatRange(3, 40), help="Size of the text, in points.")
@click.option("--font", help="Family of the text, for example serif.")
@click.option("--style", "styles", multiple=True, help="A style of matplotlib: its name or file. Repeatable.")
@click.option("--no-title", is_flag=True, help="Leave the title to the paper's caption.")
def plot(
    folder: str,
    law: str | None,
    name: str | None,
    columns: dict[str, str],
    figure: str,
    out: Path,
    size: str | tuple[float, float],
    points: float | None,
    font: str | None,
    styles: tuple[str, ...],
    no_title: bool,
) -> None:
    """Save one figure for a paper.

    RESULTS is a folder with fits of `tinyscale fit`, or a .csv, .parquet or .jsonl of runs. A law without a fit there
    is fitted with the default options, and not recorded.
    """
    from tinyscale.reporting.figures import COLUMN, FIGURES, TEXT, Look, draw_of, save_figure

    if figure in FIGURES:
        from tinyscale.analysis.study import fit_to_draw

        found, origin = fit_to_draw(folder, law, name, columns)
        draw: Callable[..., object] = draw_of(found, figure)
        what = f"{found.record.name}, {origin}"
    else:
        from tinyscale.reporting.page import figure_of_page

        draw, what = figure_of_page(folder, figure), figure
    look = Look(size) if isinstance(size, tuple) else {"column": COLUMN, "text": TEXT}[size]
    points = look.points if points is None else points
    save_figure(out, draw, replace(look, points=points, font=font, styles=styles, titled=not no_title))
    echo(f"wrote {out}: {what}")


@click.command(epilog=examples("report results --open", "report results theirs --out both"))
@results_argument("folder", "[RESULTS]")
@click.argument("other", required=False)
@click.option("--open", "show", is_flag=True, help="Open the page in the browser.")
@click.option("--out", help="Folder of the page about two folders.  [default: side-by-side]")
def report(folder: str, other: str | None, show: bool, out: str | None) -> None:
    """Write one HTML page about a results folder or two.

    The page, report.html, has each sweep's verdict, law, plots, tables and costs. The command fits as `tinyscale fit`
    without options does, and writes the same files. The page opens from disk and loads nothing; its tables are in
    tables/ as CSV, its plots in plots/ as PNG and SVG. With OTHER, the page has the laws that both folders have, side
    by side, with their differences; it goes into a folder of its own.
    """
    from tinyscale.reporting.page import write_report
    from tinyscale.reporting.side_by_side import write_side_by_side
    from tinyscale.reporting.terminal import open_console

    if out and not other:
        raise click.UsageError("--out is of the page about two folders; name the second one")
    with open_console().status("fitting") as status:
        if other:
            *files, page = write_side_by_side((folder, other), out or "side-by-side", notify=status.update)
        else:
            *files, page = write_report(folder, notify=status.update)
    echo(f"wrote {len(files)} tables and plots\nwrote {page}")
    if show:
        click.launch(page)


COMMANDS = (fit, predict, suggest, plot, report)
