"""Commands of forecasts that are written down before the runs: register, score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinyscale.cli.options import examples, read_quantity
from tinyscale.cli.sweeps import select_option, set_option
from tinyscale.errors import ConfigError, ResultsError

if TYPE_CHECKING:
    from tinyscale.analysis.forecasts import Registered
    from tinyscale.results.store import Results

_path_argument = click.argument("path", metavar="[RESULTS]", required=False)
_results_option = click.option("--results", help="Results folder, where PATH is a file of runs.  [default: results]")


@click.command(
    epilog=examples(
        "register results --sweep sweeps/width.yaml", "register runs.csv --n 1B --tokens 20B --name runs-1B"
    )
)
@_path_argument
@_results_option
@click.option("--sweep", "sweep_path", type=click.Path(path_type=Path), help="Sweep file whose trials to forecast.")
@select_option
@set_option
@click.option("--n", callback=read_quantity, help="Of a file of runs: parameters of the run, for example 1B.")
@click.option("--tokens", "d", callback=read_quantity, help="Of a file of runs: its training tokens, for example 20B.")
@click.option("--flops", "c", callback=read_quantity, help="Of a file of runs: its training FLOPs, for a law of these.")
@click.option("--fit", help="The fit to forecast with, by its name in fits.json.  [default: the sweep's and arm's own]")
@click.option("--name", help="Name of the file of forecasts.  [default: the sweep's, or the file's]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def register(
    path: str | None,
    results: str | None,
    sweep_path: Path | None,
    select: tuple[str, ...],
    overrides: tuple[str, ...],
    fit: str | None,
    name: str | None,
    as_json: bool,
    **given: float | None,
) -> None:
    """Write down the forecast of runs that are not made yet.

    With --sweep: the loss of each trial of the sweep that is not trained yet, by the fits of RESULTS. RESULTS may also
    be a file of runs that was fitted: then of a run of --n and --tokens. Writes RESULTS/forecasts/<name>.json with
    intervals, hash of the data, commit and time. The file is never overwritten, and a run that has rows is refused.
    """
    from tinyscale.analysis.forecasts import Registration, folder_of
    from tinyscale.analysis.register import register_sizes
    from tinyscale.analysis.table_file import ending_of
    from tinyscale.cli.tables import registered_table, registration_lines
    from tinyscale.reporting.terminal import open_console

    sizes = {key: value for key, value in given.items() if value is not None}
    said: list[str] = []
    if path and ending_of(path):
        if not sizes or sweep_path:
            raise click.UsageError("a file of runs takes the sizes of the run: --n 1B --tokens 20B")
        store = _store(None, results)
        made = register_sizes(store, path, sizes, fit=fit, name=name)
    else:
        if sweep_path is None or sizes:
            raise click.UsageError(
                "say which trials to forecast: --sweep SWEEP; --n and --tokens are for a file of runs"
            )
        store = _store(path, results)
        made, said = _register_sweep(store, sweep_path, select, overrides, fit=fit, name=name)
    if as_json:
        click.echo(json.dumps(Registration(made).as_json(), indent=1))
        return
    console = open_console()
    console.print(registered_table(Registration(made), console.width))
    for line in [*registration_lines(made), *said]:
        console.print(line)
    console.print(f"wrote {folder_of(store.folder)}/{made.name}.json")
    console.print("commit it, make the runs, then hold it against them with tinyscale score")


def _register_sweep(
    store: Results, path: Path, select: tuple[str, ...], overrides: tuple[str, ...], **options: Any
) -> tuple[Registered, list[str]]:
    """Register the trials of a sweep, resolved as `tinyscale plan` does; ConfigError for one that searches.

    The machine's speed is measured only where a precision is chosen by it: no other identity depends on it.
    """
    from tinyscale.analysis.register import register_trials
    from tinyscale.planning.auto import PRECISION
    from tinyscale.planning.make_plan import make_plan
    from tinyscale.spec.sweep import load_sweep

    sweep = load_sweep(path, overrides=overrides, select=select)
    if sweep.search:
        raise ConfigError(
            f"{path}: a search samples its trials while it runs, so none can be forecast; fix their values"
        )
    made = make_plan(sweep, store, measure=any(PRECISION in variant.autos for variant in sweep.variants))
    registered, left_out = register_trials(
        store, sweep.name, [(each.cell, each.trial) for each in made.trials], **options
    )
    return registered, [*made.notes, *left_out]


@click.command(epilog=examples("score results", "score runs.csv"))
@_path_argument
@_results_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def score(path: str | None, results: str | None, as_json: bool) -> None:
    """Hold registered forecasts against the runs that came.

    RESULTS is a results folder; or a file of runs, for the forecasts of it. Fills in loss, error in percent and whether
    the interval held the loss; what was registered is never changed. Exit status 1 where it was edited.
    """
    from tinyscale.analysis.forecasts import EDITED, calibration_table, folder_of
    from tinyscale.analysis.score import score as score_forecasts
    from tinyscale.analysis.table_file import ending_of
    from tinyscale.cli.tables import calibration_lines, registered_table
    from tinyscale.reporting.terminal import open_console

    of_file = path is not None and bool(ending_of(path))
    store = _store(None if of_file else path, results)
    made = score_forecasts(store, path if of_file else None)
    intact = [each for each in made if each.intact]
    if as_json:
        click.echo(json.dumps([each.as_json() for each in intact], indent=1))
    else:
        console = open_console()
        for each in intact:
            console.print(f"{each.name}, {each.registered.origin}")
            console.print(registered_table(each, console.width))
            for note in each.notes:
                console.print(f"  {note}")
        for line in calibration_lines(calibration_table(made)):
            console.print(line)
    if edited := [f"{folder_of(store.folder)}/{each.name}.json" for each in made if not each.intact]:
        raise ResultsError("\n".join(f"{file}: {EDITED}" for file in edited))


def _store(path: str | None, results: str | None) -> Results:
    """The results folder that is named, once."""
    from tinyscale.results.store import Results

    if path and results and path != results:
        raise click.UsageError(f"{path!r} and --results {results!r} name two folders; give one")
    store = Results(path or results or "results")
    store.folder.require_there()
    return store


COMMANDS = (register, score)
