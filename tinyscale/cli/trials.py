"""Commands that look at the trials of a results folder and remove them: ls, show, du, rm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from tinyscale.cli.options import echo, examples, results_argument, results_option
from tinyscale.errors import TinyscaleError
from tinyscale.spec.state import State

if TYPE_CHECKING:
    from tinyscale.results.details import TrialDetails
    from tinyscale.results.store import Results

LISTED = tuple(state.value for state in State if state.is_recorded or state in (State.INTERRUPTED, State.MISSING))


@click.command("ls", epilog=examples("ls results --sweep width", "ls --state failed --state diverged"))
@results_argument("folder", "[RESULTS]")
@click.option("--sweep", help="Only the trials of this sweep.")
@click.option("--state", "states", type=click.Choice(LISTED), multiple=True, help="Only this state. Repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def list_trials(folder: str, sweep: str | None, states: tuple[str, ...], as_json: bool) -> None:
    """List trials with their state, loss, size and disk.

    The identity is shown as far as it names the trial; commands take it so, or the cell. N counts the parameters of the
    blocks, the time is that of training.
    """
    from tinyscale.results.listing import list_trials as read_list
    from tinyscale.results.store import Results

    store = Results(folder)
    store.folder.require_there()
    trials = read_list(store, sweep=sweep, states=states)
    if as_json:
        click.echo(json.dumps([trial.as_json() for trial in trials], indent=1))
    elif trials:
        from tinyscale.cli.trial_tables import trials_table
        from tinyscale.reporting.terminal import open_console

        console = open_console()
        console.print(trials_table(trials, console.width))
    else:
        which = [*states, *([f"in {sweep}"] if sweep else [])]
        echo(f"no trials {' '.join(which)}".rstrip() + f" in {store.folder}; tinyscale status shows what there is")


@click.command(epilog=examples("show 3f2a91", "show width/d_model=64,seed=0 --json"))
@click.argument("trial")
@results_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def show(trial: str, results: str, as_json: bool) -> None:
    """Show one trial: settings, curve, provenance, sample.

    TRIAL is the beginning of an identity, or a cell such as width/d_model=64,seed=0 (tinyscale ls lists both).
    """
    from tinyscale.results.details import read_details
    from tinyscale.results.listing import find_trial
    from tinyscale.results.store import Results

    store = Results(results)
    found = read_details(store, find_trial(store, trial))
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=1))
        return
    from tinyscale.cli.trial_tables import curve_table, details_lines, origin_lines
    from tinyscale.reporting.terminal import open_console

    console = open_console()
    for line in details_lines(found):
        console.print(line)
    console.print(curve_table(found, console.width))
    for line in origin_lines(found):
        console.print(line)
    for line in _sample_lines(store, found):
        console.print(line)


def _sample_lines(results: Results, found: TrialDetails) -> Iterator[str]:
    """What the model writes, or why that is not shown."""
    if not found.has_weights:
        why = "launch --keep none leaves none" if found.state == State.FINISHED else f"the trial is {found.state}"
        yield f"no sample: there are no final weights ({why})"
        return
    from tinyscale.inference.trained import short_sample

    try:
        text = short_sample(results, found.trial.identity)
    except TinyscaleError as error:
        yield f"no sample: {error}"
        return
    yield "sample (tinyscale sample makes others):"
    yield from (f"  {line}" for line in text.split("\n"))


@click.command(epilog=examples("du results"))
@results_argument("folder", "[RESULTS]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def du(folder: str, as_json: bool) -> None:
    """Show the disk use of a results folder.

    A trial of several sweeps counts in each; the last column counts only what tinyscale rm of the sweep would free. The
    cache of this machine, which all results share, is listed too.
    """
    from tinyscale.results.store import Results
    from tinyscale.results.usage import read_usage

    store = Results(folder)
    store.folder.require_there()
    usage = read_usage(store)
    if as_json:
        click.echo(json.dumps(usage.as_json(), indent=1))
        return
    from tinyscale.cli.trial_tables import usage_tables
    from tinyscale.reporting.terminal import open_console

    console = open_console()
    for table in usage_tables(usage, str(store.folder)):
        console.print(table)


@click.command(epilog=examples("rm width/d_model=64,seed=0 3f2a91", "rm --sweep width"))
@click.argument("trials", nargs=-1)
@click.option("--sweep", help="Remove this sweep: its trials, its record, and all else of it.")
@results_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask first.")
def rm(trials: tuple[str, ...], sweep: str | None, results: str, yes: bool) -> None:
    """Remove trials, or a sweep with all its trials.

    Deletes rows, measurements and checkpoints. A trial that several sweeps name is kept. Each of TRIALS is the
    beginning of an identity, or a cell such as width/d_model=64,seed=0. Refuses where a launch is training one of them.
    Registered forecasts are kept. The fits are made anew by tinyscale fit.
    """
    from tinyscale.formatting import data_size, plural
    from tinyscale.results.listing import find_trial
    from tinyscale.results.removal import plan_removal, remove
    from tinyscale.results.store import Results

    if not trials and sweep is None:
        raise click.UsageError("say what to remove: trials, such as width/d_model=64,seed=0, or --sweep NAME")
    store = Results(results)
    store.folder.require_there()
    removal = plan_removal(store, [find_trial(store, trial) for trial in trials], sweep)
    if removal.shared:
        echo(f"kept: {plural(len(removal.shared), 'trial')} that another sweep names too")
    what = [f"the sweep {sweep}"] if sweep else []
    what += [f"{plural(len(removal.trials), 'trial')} ({data_size(removal.disk)})"] if removal.trials else []
    if not what:
        return
    if not yes:
        click.confirm(f"Remove {' and '.join(what)} from {store.folder}?", abort=True)
    left = remove(store, removal)
    if left:
        echo(f"kept: {plural(len(left), 'trial')} that a launch has taken up meanwhile, and the sweep")
    gone = len(removal.trials) - len(left)
    record = f" and the record of {sweep}" if sweep and not left else ""
    echo(f"removed {plural(gone, 'trial')}{record} from {store.folder}; fits of them stay until tinyscale fit runs")


COMMANDS = (list_trials, show, du, rm)
