"""The command line: parse, call one function, print. Neither torch nor ray is imported until a command needs it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tinyscale.errors import ResultsError, TinyscaleError

if TYPE_CHECKING:
    from rich.console import Console

Command = TypeVar("Command", bound=Callable[..., Any])

ASK_ABOVE_SECONDS = 600  # a launch that takes longer asks first


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tinyscale")
def cli() -> None:
    """One YAML file in, a defensible scaling law out.

    \b
    tinyscale plan   SWEEP      what will run, what it costs, what is already done
    tinyscale launch SWEEP      train what is missing; Parquet as it goes
    tinyscale fit    results/   power laws with intervals, held-out error, plots
    tinyscale report results/   one page to read and to send
    """


results_option = click.option(
    "--results", "results", default="results", show_default=True, help="Results folder: a path, s3:// or gs://."
)


def results_argument(name: str, metavar: str) -> Callable[[Command], Command]:
    """A results folder, given as the argument or as --results; [default: results]."""

    def either(context: click.Context, _: click.Parameter, given: str | None) -> str:
        option = context.params.pop("results", None)
        if given is not None and option is not None and given != option:
            raise click.BadParameter(f"{given!r} and --results {option!r} name two folders; give one")
        return str(given or option or "results")

    def decorate(command: Command) -> Command:
        command = click.argument(name, metavar=metavar, required=False, callback=either)(command)
        same = f"The same as {metavar.strip('[]')}.  [default: results]"
        return click.option("--results", is_eager=True, help=same)(command)

    return decorate


def sweep_options(command: Command) -> Command:
    """The options that say which trials: SWEEP, --set, --select, --results, --address."""
    for decorate in (
        click.option(
            "--address",
            envvar="RAY_ADDRESS",
            help="A running Ray cluster (host:port or auto); default: $RAY_ADDRESS, else a Ray started here.",
        ),
        results_option,
        click.option(
            "--select",
            multiple=True,
            metavar="NAME=VALUE[,VALUE]",
            help="Keep a part of the grid: a varied field, arm or seed. Repeatable.",
        ),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="FIELD=VALUE",
            help="Override a field of the file's base, e.g. model.n_layers=2; a budget replaces its own. Repeatable.",
        ),
        click.option("--price", type=float, help="Dollars for an hour of a GPU (or core, where no GPU is asked for)."),
        click.argument("sweep_path", metavar="SWEEP", type=click.Path(path_type=Path)),
    ):
        command = decorate(command)
    return command


@cli.command()
@sweep_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON with a list `trials` and nothing else.")
def plan(
    sweep_path: Path,
    overrides: tuple[str, ...],
    select: tuple[str, ...],
    results: str,
    address: str | None,
    price: float | None,
    as_json: bool,
) -> None:
    """Show what launching SWEEP would run and cost, without running it."""
    from tinyscale.display import plan_summary, plan_table

    console = _console(quiet=as_json)
    with ExitStack() as stack:
        made, _, _ = _plan(stack, console, sweep_path, overrides, select, results, address)
    if as_json:
        click.echo(json.dumps(made.as_json(), indent=1))
        return
    console.print(plan_table(made))
    for line in plan_summary(made, price):
        console.print(line)


@cli.command()
@sweep_options
@click.option("-y", "--yes", is_flag=True, help="Do not ask before a launch that takes more than 10 minutes.")
@click.option("--dry-run", is_flag=True, help="Show what would run and why, and end there.")
@click.option("--quiet", is_flag=True, help="No live view; failures and the summary only.")
@click.option(
    "--keep",
    type=click.Choice(["weights", "none"]),
    default="weights",
    show_default=True,
    help="What to keep of finished trials beside their rows.",
)
@click.option(
    "--log",
    type=click.Choice(["tensorboard", "wandb", "mlflow"]),
    help="Tell progress and losses to one of these as well; the last two are packages to install.",
)
def launch(
    sweep_path: Path,
    overrides: tuple[str, ...],
    select: tuple[str, ...],
    results: str,
    address: str | None,
    price: float | None,
    yes: bool,
    dry_run: bool,
    quiet: bool,
    keep: str,
    log: str | None,
) -> None:
    """Train the trials of SWEEP that the results lack, as a Ray Tune grid.

    Trials that finished are never trained again: launch the same file again to go on after an interruption, or with
    more values to extend it. Ctrl-C lets running trials write a checkpoint; Ctrl-C again stops now.
    Exit status: 0 all done, 1 an error, 2 some trials failed, 130 stopped.
    """
    from tinyscale.display import launch_summary, plan_summary, plan_table, results_table
    from tinyscale.results import sweep_points

    console = _console()
    with ExitStack() as stack:
        made, store, cluster = _plan(stack, console, sweep_path, overrides, select, results, address)
        if not quiet:
            console.print(plan_table(made))
        for line in plan_summary(made, price):
            console.print(line)
        if dry_run:
            return
        if (made.seconds is None or made.seconds > ASK_ABOVE_SECONDS) and made.to_run and not yes:
            click.confirm("Launch?", abort=True, default=True)
        from tinyscale.orchestration.launch import launch as launch_plan
        from tinyscale.orchestration.session import ray_session

        if cluster is None and made.to_run:
            console.print("starting Ray on this machine", style="dim")
            cluster = stack.enter_context(ray_session(None))
        if cluster is not None and cluster.dashboard_url:
            console.print(f"dashboard: {cluster.dashboard_url}", style="dim")
        summary = launch_plan(
            made, store, cluster, console=console, keep_weights=keep == "weights", quiet=quiet, log=log
        )
    record = next(record for record in store.read_sweeps() if record.name == made.sweep.name)
    console.print(results_table(sweep_points(store.read()[0], record), made.sweep.axes))
    for line in launch_summary(summary, len(made.to_run)):
        console.print(line)
    console.print(f"results: {store.trials} (rows), {store.sweeps}/{made.sweep.name}.json (the sweep)")
    if summary.stopped:
        console.print("stopped; launch again to go on")
    sys.exit(130 if summary.stopped else 2 if summary.failed else 0)


@cli.command()
def corpora() -> None:
    """List the named corpora: size, licence, where they come from, whether they are on this machine.

    A sweep's data.corpus is one of these names, or a path to .txt, .jsonl, .parquet or a folder of those.
    """
    from tinyscale.data.corpora import named_corpora
    from tinyscale.display import corpora_table

    _console().print(corpora_table(named_corpora()))


@cli.command()
@results_argument("folder", "[RESULTS]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def status(folder: str, as_json: bool) -> None:
    """Show what is done, running and failed in a results folder, sweep by sweep. Needs no Ray."""
    from tinyscale.display import status_table
    from tinyscale.results import Results
    from tinyscale.status import read_status

    found = read_status(Results(folder))
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=1))
        return
    console = _console()
    console.print(status_table(found))
    for line in [*found.failures(), *found.set_aside]:
        console.print(line)


@cli.command()
@results_argument("folder", "[RESULTS]")
@click.option(
    "--state",
    "states",
    type=click.Choice(["failed", "diverged", "running", "finished"]),
    multiple=True,
    required=True,
    help="Forget trials in this state. Repeatable.",
)
@click.option("--sweep", help="Only the trials of this sweep.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before finished trials are forgotten.")
def retry(folder: str, states: tuple[str, ...], sweep: str | None, yes: bool) -> None:
    """Forget trials in some state, rows and checkpoints, so that the next launch trains them from the start.

    Trials that failed are launched again anyway, from their last checkpoint where they have one.
    """
    from tinyscale.results import Results
    from tinyscale.status import read_status

    store = Results(folder)
    trials = read_status(store).trials_in(states, sweep)
    if "finished" in states and trials and not yes:
        click.confirm(f"Forget {len(trials)} trials, finished ones among them?", abort=True)
    for trial in trials:
        store.forget(trial)
    click.echo(f"forgot {len(trials)} trials in {store.trials}; launch their sweeps again to train them")


def _plan(
    stack: ExitStack,
    console: Console,
    sweep_path: Path,
    overrides: tuple[str, ...],
    select: tuple[str, ...],
    location: str,
    address: str | None,
) -> tuple[Any, Any, Any]:
    """The plan, the results it was made against, and the cluster when one runs at the address."""
    from tinyscale.forecast import this_machine
    from tinyscale.plan import make_plan
    from tinyscale.results import Results
    from tinyscale.sweep import load_sweep

    sweep = load_sweep(sweep_path, overrides=overrides, select=select)
    results, cluster = Results(location), None
    results.folder.require_reachable()
    cpus, gpus = map(float, this_machine())
    if address:
        from tinyscale.orchestration.session import ray_session

        cluster = stack.enter_context(ray_session(address))
        cpus, gpus = cluster.cpus, cluster.gpus
    with console.status("planning") as status:
        return make_plan(sweep, results, cpus=cpus, gpus=gpus, notify=status.update), results, cluster


def _console(*, quiet: bool = False) -> Console:
    from rich.console import Console

    return Console(quiet=quiet, highlight=False, soft_wrap=True)


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
@click.option(
    "--convention",
    type=click.Choice(["tinyscale", "kaplan", "hoffmann", "palm", "matmul", "all"]),
    help="How N and FLOPs are counted; all: also print the parameters under each.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def fit(path: str | None, results: str | None, as_json: bool, **options: Any) -> None:
    """Fit a scaling law to a results folder, or to any .csv, .parquet or .jsonl of runs at PATH.

    One fit a sweep and arm: 95 % intervals, the error on the largest size held out, a plot.
    Writes fits/fits.json, tables/ and plots/ under the results folder.
    """
    from tinyscale.analysis import analyse
    from tinyscale.fitting.tables import record
    from tinyscale.fitting.text import describe

    done = analyse(path or results or "results", results or "results", **options)
    records = [record(found) for found in done.fits]
    if as_json:
        click.echo(json.dumps(records, indent=1))
    else:
        verdicts = [f"{each.sweep}: {each.verdict}" for each in done.contrasts]
        wrote = [f"wrote {name}" for name in done.written]
        click.echo("\n\n".join([*map(describe, records), *verdicts, "\n".join(wrote)]))
    for line in done.refused:
        click.echo(line, err=True)


def _quantity(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """10M, 2.5e8 -> a number."""
    from tinyscale.config import quantity

    try:
        return None if text is None else float(quantity(text))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a number; write 10M, 1.5B or 1e18") from error


@cli.command()
@results_argument("fits", "[FITS]")
@click.option("--n", callback=_quantity, help="Parameters, counted as the fit counted them, for example 10M.")
@click.option("--tokens", "d", callback=_quantity, help="Training tokens, for example 200M.")
@click.option(
    "--flops", "c", callback=_quantity, help="Training FLOPs: the loss of L(C), or the best N and D, for 1e18."
)
@click.option("--fit", "name", help="Only this fit, by its name in fits.json.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def predict(fits: str, name: str | None, as_json: bool, **sizes: float | None) -> None:
    """Predict from the fits that `tinyscale fit` left in FITS (a results folder or a fits.json), with 95 % intervals.

    The loss of a run of --n parameters and --tokens tokens, or the compute-optimal run for --flops.
    """
    from tinyscale.fitting.predict import describe_prediction, predict_all
    from tinyscale.fitting.tables import read_records

    folder, records = read_records(fits)
    chosen = [entry for entry in records if name in (None, entry["name"])]
    if not chosen:
        raise click.BadParameter(f"no fit {name!r}; there are {', '.join(entry['name'] for entry in records)}")
    made = predict_all(folder, chosen, {key: value for key, value in sizes.items() if value is not None})
    if as_json:
        click.echo(json.dumps([each.as_json() for each in made], indent=1))
    else:
        click.echo("\n\n".join(map(describe_prediction, made)))


@cli.command()
@results_argument("fits", "[FITS]")
@click.option("--flops", "budget", required=True, callback=_quantity, help="Training FLOPs to spend, for example 1e17.")
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
    from tinyscale.fitting.suggest import suggest_from

    made, content = suggest_from(fits, budget, target, name)
    click.echo(
        f"{len(made.runs)} runs, {made.flops:.2g} FLOPs: "
        f"the interval of {made.target} shrinks to {made.shrink:.0%} of its width"
    )
    for run in made.runs:
        sizes = ", ".join(f"{key.upper()} = {value:.3g}" for key, value in run.variables.items())
        fields = ", ".join(f"{field} {value}" for field, value in run.fields.items())
        click.echo(f"  {sizes}, {run.flops:.2g} FLOPs" + (f": {fields}" if fields else ""))
    if content is not None:
        from ruamel.yaml import YAML

        path = out or Path(f"{content['name']}.yaml")
        try:
            with path.open("w", encoding="utf-8") as stream:
                YAML(typ="safe").dump(content, stream)
        except OSError as error:
            raise ResultsError(f"{path}: cannot be written ({error.strerror}); give another --out") from error
        click.echo(f"wrote {path}")


@cli.command()
@results_argument("folder", "[RESULTS]")
def report(folder: str) -> None:
    """Write report.html into a results folder: one page with each sweep's verdict, law, plots, tables and costs.

    Fits as `tinyscale fit` does without options, and writes what it writes. The page opens from disk and loads
    nothing; its tables are in tables/ as CSV, its plots in plots/ as PNG and SVG.
    """
    from tinyscale.report import write_report

    *files, page = write_report(folder)
    click.echo(f"wrote {len(files)} tables and plots\nwrote {page}")


@cli.command()
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


@cli.command()
@click.argument("trial")
@click.option("--prompt", default="", help="Text to go on from.  [default: the beginning of a document]")
@click.option("--tokens", default=200, show_default=True, type=click.IntRange(1), help="Most tokens to add.")
@click.option("--temperature", default=1.0, show_default=True, type=click.FloatRange(0), help="0: the likeliest token.")
@click.option("--top-k", type=click.IntRange(1), help="Draw among so many likeliest tokens only.")
@click.option("--seed", default=0, show_default=True, type=int, help="Seed of the draws.")
@results_option
def sample(
    trial: str, prompt: str, tokens: int, temperature: float, top_k: int | None, seed: int, results: str
) -> None:
    """Let a trained TRIAL (the beginning of its identity) go on from a prompt."""
    from tinyscale.results import Results
    from tinyscale.use import load_trained
    from tinyscale.use import sample as draw

    trained = load_trained(Results(results), trial)
    click.echo(draw(trained, prompt, tokens, temperature=temperature, top_k=top_k, seed=seed))


@cli.command("eval")
@click.argument("trial")
@click.option("--corpus", required=True, help="A named corpus, or a path to .txt, .jsonl, .parquet or a folder.")
@click.option("--max-bytes", type=click.IntRange(1), help="Read only the first so many bytes of a corpus of the hub.")
@results_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def evaluate(trial: str, corpus: str, max_bytes: int | None, results: str, as_json: bool) -> None:
    """Score all documents of another corpus with a trained TRIAL (the beginning of its identity).

    Standard errors are over documents. Text that the trial was trained on scores too well.
    """
    from tinyscale.results import Results
    from tinyscale.use import load_trained, score

    found = score(load_trained(Results(results), trial), corpus, max_bytes)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    click.echo(
        "{corpus}: {documents:,} documents, {tokens:,} tokens, {bytes:,} bytes\n"
        "loss {loss:.4f} ± {loss_se:.4f} nats a token, perplexity {perplexity:.2f}\n"
        "{bits_per_byte:.4f} ± {bits_per_byte_se:.4f} bits a byte".format(**found)
    )


@cli.command()
@click.argument("trial")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@results_option
def export(trial: str, folder: Path, results: str) -> None:
    """Write a trained TRIAL (the beginning of its identity) to FOLDER, as the transformers library loads it."""
    from tinyscale.export import export as write
    from tinyscale.results import Results
    from tinyscale.use import load_trained

    for path in write(load_trained(Results(results), trial), folder):
        click.echo(f"wrote {path}")


def main() -> None:
    """Run the command line; an error the user can mend is printed as one block, exit status 1."""
    try:
        cli(standalone_mode=True)
    except TinyscaleError as error:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {error}", err=True)
        sys.exit(1)
