"""Commands from a sweep to its results: plan, tune, launch, status, retry, check-transfer."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinyscale.cli.options import (
    DONE,
    SOME_FAILED,
    STOPPED,
    Command,
    echo,
    examples,
    read_tokens,
    results_argument,
    results_option,
)
from tinyscale.spec.state import State

if TYPE_CHECKING:
    from tinyscale.orchestration.session import Cluster
    from tinyscale.orchestration.summary import Summary
    from tinyscale.planning.plan import Plan
    from tinyscale.reporting.terminal import PlainConsole
    from tinyscale.spec.sweep import Sweep

ASK_ABOVE_SECONDS = 600  # a launch that takes longer asks first


select_option = click.option(
    "--select",
    multiple=True,
    metavar="NAME=VALUE[,VALUE]",
    help="Take a part of the grid: values of a varied field, arms or seeds. Repeatable.",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Override a field of the file's base, e.g. model.n_layers=2; a budget replaces its own. Repeatable.",
)


def grid_options(command: Command) -> Command:
    """The options that choose the cells: SWEEP, --set, --select, --results."""
    for decorate in (
        results_option,
        select_option,
        set_option,
        click.argument("sweep_path", metavar="SWEEP", type=click.Path(path_type=Path)),
    ):
        command = decorate(command)
    return command


def sweep_options(command: Command) -> Command:
    """Those of `grid_options`, --price and --address."""
    for decorate in (
        click.option(
            "--address",
            envvar="RAY_ADDRESS",
            help="A running Ray cluster (host:port or auto).  [default: $RAY_ADDRESS, else a Ray started here]",
        ),
        click.option(
            "--price",
            type=click.FloatRange(0),
            help="Dollars per GPU-hour (per core-hour where no GPU is used).",
        ),
        grid_options,
    ):
        command = decorate(command)
    return command


@click.command(epilog=examples("plan sweeps/width.yaml", "plan sweeps/gpu/width.yaml --select arm=ratio --price 2.5"))
@sweep_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON with a list `trials` and nothing else.")
def plan(price: float | None, as_json: bool, **chosen: Any) -> None:
    """Show what a launch of SWEEP would run and cost."""
    from tinyscale.reporting.terminal import open_console

    console = open_console(quiet=as_json)
    with ExitStack() as stack:
        made, _, _ = _plan(stack, console, **chosen)
    if as_json:
        click.echo(json.dumps(made.as_json(), indent=1))
        return
    _show(console, made, price)


@click.command(
    epilog=examples("launch sweeps/quickstart.yaml", "launch -y sweeps/width.yaml --select seed=0,1 --results runs")
)
@sweep_options
@click.option("-y", "--yes", is_flag=True, help="Do not ask before a launch that takes more than 10 minutes.")
@click.option("--dry-run", is_flag=True, help="Show what would run and why, and exit.")
@click.option("--quiet", is_flag=True, help="No live view; print only failures and the summary.")
@click.option(
    "--keep",
    type=click.Choice(["weights", "none"]),
    default="weights",
    show_default=True,
    help="What to keep of finished trials in addition to their rows.",
)
@click.option(
    "--keep-every",
    metavar="TOKENS",
    callback=read_tokens,
    help="Also keep the weights along training, at every so many tokens, such as 100K.",
)
@click.option(
    "--patience",
    type=click.IntRange(1),
    metavar="K",
    help="Stop a trial whose validation loss was not lower in K evaluations; no fit reads it.",
)
@click.option(
    "--log",
    type=click.Choice(["tensorboard", "wandb", "mlflow"]),
    help="Also log progress and losses to one of these; wandb and mlflow must be installed.",
)
@click.option(
    "--until-settled",
    type=click.IntRange(2),
    metavar="SEEDS",
    help="Add one seed at a time until each arm is settled against the base at 95 %, or there are so many seeds.",
)
def launch(
    price: float | None,
    yes: bool,
    dry_run: bool,
    quiet: bool,
    keep: str,
    keep_every: int | None,
    patience: int | None,
    log: str | None,
    until_settled: int | None,
    **chosen: Any,
) -> None:
    """Train the missing trials of SWEEP, as a Ray Tune grid.

    Finished trials are never trained again: launch the same file again to resume after an interruption, or with
    more values to extend it. After Ctrl-C, running trials write a checkpoint first; Ctrl-C again stops at once.
    Exit status: 0 all done, 1 an error, 2 wrong usage, 3 some trials failed, 130 stopped.
    """
    from tinyscale.cli.tables import best_samples, launch_summary, results_table
    from tinyscale.planning.rounds import refuse_rounds
    from tinyscale.reporting.terminal import open_console
    from tinyscale.results.store import sweep_points

    if keep_every is not None and keep == "none":
        raise click.UsageError("--keep-every keeps weights, and --keep none does not: give one of them")
    console = open_console()
    if log:
        from tinyscale.orchestration.logs import require_package

        require_package(log)
    with ExitStack() as stack:
        made, store, cluster = _plan(stack, console, **chosen)
        if until_settled:
            refuse_rounds(made.sweep, until_settled)
        _show(console, made, price, table=not quiet)
        if until_settled:
            console.print(f"then a seed more at a time, at most {until_settled}, until the arms are settled")
        if dry_run:
            return
        store.folder.require_writable()
        _confirm(made, yes)
        from tinyscale.orchestration.launch import launch as launch_plan
        from tinyscale.orchestration.rounds import launch_until_settled

        cluster = _cluster_for(made, cluster, stack, console, rounds=until_settled is not None)
        options: dict[str, Any] = {
            "console": console, "keep_weights": keep == "weights", "keep_every": keep_every, "patience": patience,
            "quiet": quiet, "log": log,
        }  # fmt: skip
        if until_settled:
            assert cluster is not None, "rounds have one"
            made, summary = launch_until_settled(made, store, cluster, until_settled, **options)
        else:
            summary = launch_plan(made, store, cluster, **options)
    record = store.read_sweep(made.sweep.name)
    assert record is not None, "the launch has written it"
    points = sweep_points(store.read()[0], record)
    if made.sweep.search:
        console.print("the best trial of each cell:")
        points = best_samples(points, made.sweep.search, made.sweep.axes)
    if points["decayed"].any():
        console.print(results_table(points, record.axes))
    for line in launch_summary(summary, len(made.to_run)):
        console.print(line)
    measured = f", {store.measurements} (measurements)" if made.questions else ""
    console.print(f"results: {store.trials} (rows){measured}, {store.sweeps}/{made.sweep.name}.json (the sweep)")
    if summary.stopped:
        console.print("stopped; launch again to resume")
    else:
        console.print(f"next: tinyscale fit {store.location}")
    sys.exit(launch_status(summary))


@click.command(epilog=examples("tune sweeps/quickstart.yaml --budget 25", "tune sweeps/width.yaml --select arm=small"))
@sweep_options
@click.option(
    "--budget",
    type=click.FloatRange(0, min_open=True),
    default=10,
    show_default=True,
    help="FLOPs that the search may cost, in percent of those of SWEEP.",
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask before a search that takes more than 10 minutes.")
def tune(price: float | None, budget: float, yes: bool, **chosen: Any) -> None:
    """Find the best learning rates for SWEEP.

    For the trials whose train.lr is auto: trains some of their sizes on fewer tokens of their text at several rates
    each, with more rates where the lowest or the highest did best, and fits the law of the best rate, which the next
    plan or launch of SWEEP follows. The search is a sweep of its own in the results, named SWEEP's name with -tune.
    """
    from tinyscale.cli.tables import launch_summary
    from tinyscale.planning.make_plan import make_plan
    from tinyscale.planning.tune import tuning_of, with_more_rates
    from tinyscale.reporting.terminal import open_console
    from tinyscale.reporting.write import analyse

    console = open_console()
    with ExitStack() as stack:
        made, store, cluster = _plan(stack, console, measure=False, **chosen)
        search: Sweep | None = tuning_of(made, budget / 100)
        store.folder.require_writable()
        while search is not None:
            with console.status("planning") as status:
                planned = make_plan(search, store, cluster.capacity if cluster else None, notify=status.update)
            _show(console, planned, price)
            if planned.to_run:
                _confirm(planned, yes)
                from tinyscale.orchestration.launch import launch as launch_plan

                cluster = _cluster_for(planned, cluster, stack, console)
                summary = launch_plan(planned, store, cluster, console=console, keep_weights=False)
                for line in launch_summary(summary, len(planned.to_run)):
                    console.print(line)
                if summary.stopped:
                    console.print("stopped; the same command goes on")
                    sys.exit(STOPPED)
            search = with_more_rates(planned, store.read()[0])
    with console.status("fitting"):
        analyse(store.location, store.location)
    for line in make_plan(made.sweep, store, measure=False).notes:
        console.print(line)
    console.print(f"results: {store.trials} (rows), {store.location}/fits (the law); next: tinyscale launch")


def _show(console: PlainConsole, made: Plan, price: float | None, *, table: bool = True) -> None:
    """Print a plan: its trials, and what they cost."""
    from tinyscale.cli.tables import plan_summary, plan_table

    if table:
        console.print(plan_table(made, console.width))
    for line in plan_summary(made, price):
        console.print(line)


def _confirm(made: Plan, yes: bool) -> None:
    """Ask before what takes long, unless the user has said yes."""
    if (made.seconds is None or made.seconds > ASK_ABOVE_SECONDS) and made.has_work and not yes:
        click.confirm("Launch?", abort=True, default=True)


def _cluster_for(
    made: Plan, cluster: Cluster | None, stack: ExitStack, console: PlainConsole, *, rounds: bool = False
) -> Cluster | None:
    """The cluster; without one, and where there is something to train, a Ray on this machine until the stack ends.

    rounds: there may be something to train after this plan.
    """
    from tinyscale.orchestration.session import ray_session

    if cluster is None and (made.has_work or rounds):
        console.print("starting Ray on this machine", style="dim")
        cluster = stack.enter_context(ray_session(None))
    if cluster is not None and cluster.dashboard_url:
        console.print(f"dashboard: {cluster.dashboard_url}", style="dim")
    return cluster


def launch_status(summary: Summary) -> int:
    """The exit status of a launch."""
    return STOPPED if summary.stopped else SOME_FAILED if summary.failed or summary.measurements.failed else DONE


@click.command(epilog=examples("status results"))
@results_argument("folder", "[RESULTS]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def status(folder: str, as_json: bool) -> None:
    """Show how many trials are finished, running or failed.

    Shows each sweep of a results folder, how far its running trials are, and the reason of each failure. The loss is
    that of the last evaluation. Needs no Ray.
    """
    from tinyscale.cli.tables import running_table, status_table
    from tinyscale.reporting.terminal import open_console
    from tinyscale.results.status import read_status
    from tinyscale.results.store import Results

    store = Results(folder)
    store.folder.require_there()
    found = read_status(store)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=1))
        return
    console = open_console()
    console.print(status_table(found) if found.sweeps else f"no sweeps in {store.folder} yet; launch one into it")
    if found.progress:
        console.print(running_table(found))
    for line in [*found.failures(), *found.set_aside]:
        console.print(line)


@click.command(epilog=examples("retry results --state failed --sweep width"))
@results_argument("folder", "[RESULTS]")
@click.option(
    "--state",
    "states",
    type=click.Choice([state.value for state in State if state.is_recorded]),
    multiple=True,
    required=True,
    help="Delete the trials in this state. Repeatable.",
)
@click.option("--sweep", help="Only the trials of this sweep.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before finished trials are deleted.")
def retry(folder: str, states: tuple[str, ...], sweep: str | None, yes: bool) -> None:
    """Delete the trials in a state, to train them again.

    Deletes their rows and checkpoints, so that the next launch trains them from the start. The next launch trains
    failed trials also without this command, from their last checkpoint if there is one. Those that a launch is
    training are left.
    """
    from tinyscale.results.status import read_status
    from tinyscale.results.store import Results

    store = Results(folder)
    store.folder.require_there()
    status = read_status(store)
    names = [record.name for record in status.sweeps]
    if sweep is not None and sweep not in names:
        raise click.BadParameter(f"no sweep {sweep!r} in {store.folder}; there are {', '.join(names) or 'none'}")
    trials = status.trials_in(states, sweep)
    if State.FINISHED in states and trials and not yes:
        click.confirm(f"Delete {len(trials)} trials, finished ones included?", abort=True)
    deleted = sum([store.forget(trial) for trial in trials])
    echo(f"deleted {deleted} trials in {store.trials}; launch their sweeps again to train them")
    measured = {trial for record in status.sweeps if sweep in (None, record.name) for trial in record.trials}
    if forgotten := sum([store.forget_measurements(trial, states) for trial in measured]):
        echo(f"deleted {forgotten} measurements in {store.measurements}; launch their sweeps again to make them")
    if deleted < len(trials):
        echo(f"left {len(trials) - deleted} that a launch is training; stop it first, with Ctrl-C, to delete them too")


@click.command("check-transfer", epilog=examples("check-transfer sweeps/mup_lr.yaml"))
@grid_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def check_transfer(
    sweep_path: Path, overrides: tuple[str, ...], select: tuple[str, ...], results: str, as_json: bool
) -> None:
    """Check whether one learning rate serves all sizes of SWEEP.

    For each arm: how much a few steps move activations as width and depth double, measured now on the CPU; and, where
    the results hold the sweep's trials at several rates, how far the best rate moves. Where one rate serves all sizes,
    each of these is 0. stream: the last residual stream; logits; blocks: the part of the stream's movement that the
    matrices of the blocks make.
    """
    from tinyscale.planning.transfer import check_transfer as check
    from tinyscale.results.store import Results
    from tinyscale.spec.sweep import load_sweep

    found = check(load_sweep(sweep_path, overrides=overrides, select=select), Results(results))
    if as_json:
        click.echo(json.dumps([each.as_json() for each in found], indent=1))
        return
    for each in found:
        echo("\n".join([each.label, *(f"  {line}" for line in (*each.slopes, *each.notes))]))


def _plan(
    stack: ExitStack,
    console: PlainConsole,
    *,
    sweep_path: Path,
    overrides: tuple[str, ...],
    select: tuple[str, ...],
    results: str,
    address: str | None,
    measure: bool = True,
) -> tuple[Any, Any, Any]:
    """The plan, the results that it was compared with, and the cluster where an address is given."""
    from tinyscale.planning.make_plan import make_plan
    from tinyscale.results.store import Results
    from tinyscale.spec.sweep import load_sweep

    sweep = load_sweep(sweep_path, overrides=overrides, select=select)
    store, cluster = Results(results), None
    store.folder.require_reachable()
    if address:
        from tinyscale.orchestration.session import ray_session

        cluster = stack.enter_context(ray_session(address))
    capacity = cluster.capacity if cluster else None
    with console.status("planning") as status:
        return make_plan(sweep, store, capacity, measure=measure, notify=status.update), store, cluster


COMMANDS = (plan, tune, launch, status, retry, check_transfer)
