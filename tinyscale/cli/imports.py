"""The command that makes a table of runs out of the logs of other tools: import."""

from __future__ import annotations

from pathlib import Path

import click

from tinyscale.cli.options import echo, examples
from tinyscale.errors import ResultsError
from tinyscale.formatting import plural

ENDINGS = (".csv", ".parquet")
MOST_NAMED = 5  # runs without a loss that are named


def _file_of(_: click.Context, __: click.Parameter, out: Path) -> Path:
    """The file to write; runs.csv in a folder."""
    if out.suffix and out.suffix not in ENDINGS:
        raise click.BadParameter(f"'{out}' has none of the endings {', '.join(ENDINGS)}")
    return out if out.suffix else out / "runs.csv"


@click.command("import", epilog=examples("import mlruns --map mapping.yaml --out runs.csv", "import logs --curve"))
@click.argument("source")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs.csv"),
    show_default=True,
    callback=_file_of,
    help="Folder, or file that ends in .csv or .parquet, to write.",
)
@click.option(
    "--map",
    "mapping",
    type=click.Path(path_type=Path, dir_okay=False),
    help="YAML file that says which key is n, d, c, loss, ...  [default: every key under its own name]",
)
@click.option("--curve", is_flag=True, help="Every point of each run.  [default: the last one with a loss]")
def import_(source: str, out: Path, mapping: Path | None, curve: bool) -> None:
    """Make a table of runs from the logs of other tools.

    SOURCE is a folder with TensorBoard's event files, an MLflow store (mlruns or mlflow.db), a .csv that W&B exported,
    or a .jsonl or a folder of these. The table is for tinyscale fit.
    """
    from tinyscale.analysis.log_table import read_mapping, table_of
    from tinyscale.analysis.logs import read_logs

    if out.exists():
        raise ResultsError(f"{out}: this file exists; delete it, or give another --out")
    made = table_of(read_logs(source), read_mapping(mapping) if mapping else None, curve=curve)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".csv":
            made.frame.to_csv(out, index=False)
        else:
            made.frame.to_parquet(out, index=False)
    except OSError as error:
        raise ResultsError(f"{out}: cannot be written ({error.strerror}); give another --out") from error
    if made.left_out:
        some = ", ".join(made.left_out[:MOST_NAMED]) + (", ..." if len(made.left_out) > MOST_NAMED else "")
        echo(f"left out {plural(len(made.left_out), 'run')} without a loss: {some}", err=True)
    echo(f"{plural(made.runs, 'run')}, {plural(len(made.frame), 'row')}: wrote {out}\nnext: tinyscale fit {out}")


COMMANDS = (import_,)
