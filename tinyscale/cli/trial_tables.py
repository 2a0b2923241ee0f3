"""Tables for the terminal: the trials of a results folder, one of them, and the disk they take."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from ruamel.yaml import YAML

from tinyscale.cli.tables import PLAIN, that_fit
from tinyscale.formatting import compact, data_size, duration, plural
from tinyscale.results.details import TrialDetails
from tinyscale.results.listing import ListedTrial
from tinyscale.results.usage import Usage

MOST_POINTS = 12  # of a curve that are shown


def trials_table(trials: Sequence[ListedTrial], width: int | None = None) -> Table:
    """One row per trial. width: of the terminal, in characters; the least important columns give way."""
    rows = [_trial_row(trial) for trial in trials]
    return _table(rows, ("tokens", "disk", "N"), width, folded="cell", left=("trial", "cell", "state"))


def _trial_row(trial: ListedTrial) -> dict[str, str]:
    own, *others = dict.fromkeys(each.sweep for each in trial.cells) or [""]
    also = f" (also {', '.join(others)})" if others else ""
    return {
        "trial": trial.short,
        "cell": f"{trial.cells[0]}{also}" if own else "(of no sweep)",
        "state": trial.state,
        "loss": _shown(trial.loss, "{:.4f}".format),
        "N": _shown(trial.n, compact),
        "tokens": _shown(trial.tokens, compact),
        "time": _shown(trial.seconds, duration),
        "disk": data_size(trial.disk) if trial.disk else "",
    }


def _shown(value: Any, how: Any) -> str:
    return "" if value is None else str(how(value))


def _table(
    rows: Sequence[dict[str, str]],
    least_wanted: Sequence[str],
    width: int | None,
    *,
    folded: str = "",
    left: Sequence[str] = (),
) -> Table:
    """A table of these rows. folded: the column whose text is broken where the terminal is too narrow for it."""
    table = Table(**PLAIN)
    shown = that_fit(rows, list(rows[0]), least_wanted, width)
    for name in shown:
        justify: Any = "left" if name in left else "right"
        table.add_column(name, justify=justify, no_wrap=name != folded, overflow="fold")
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    return table


def details_lines(found: TrialDetails) -> Iterator[str]:
    """Lines: the trial, its cells, its state, and its settings as a sweep file writes them."""
    trial = found.trial
    yield f"trial {trial.identity}: {found.state}" + (f": {found.reason}" if found.reason else "")
    yield from (f"  {cell}" for cell in found.cells)
    yield (
        f"  N = {compact(trial.parameters.n_non_embedding)} ({compact(trial.parameters.n_total)} with embeddings), "
        f"{compact(trial.tokens)} tokens, {plural(trial.steps, 'step')}, {compact(trial.flops)} FLOPs"
    )
    yield from (f"  {number} {kind} measured" for kind, number in found.measured.items())
    if found.kept_at:
        yield f"  weights kept at {', '.join(map(compact, found.kept_at))} tokens"
    yield "settings (those at their default are left out):"
    yield from (f"  {line}" for line in _yaml(trial.config.model_dump(mode="json", exclude_defaults=True)).splitlines())


def _yaml(content: Mapping[str, Any]) -> str:
    stream, yaml = io.StringIO(), YAML()
    yaml.default_flow_style, yaml.width = None, 100
    yaml.dump(dict(content), stream)
    return stream.getvalue()


def curve_table(found: TrialDetails, width: int | None = None) -> Table:
    """The trial's evaluations, or as many of them, evenly spaced, as are read at a glance."""
    chosen = np.unique(np.linspace(0, len(found.curve) - 1, min(len(found.curve), MOST_POINTS)).round().astype(int))
    rows = [_point_row(found.curve[index]) for index in chosen]
    if not rows:
        return Table("no evaluation yet", **PLAIN)
    return _table(rows, ("lr", "FLOPs", "bits_per_byte"), width)


def _point_row(point: Mapping[str, Any]) -> dict[str, str]:
    loss = f"{point['val_loss']:.4f}" + _shown(point["val_loss_se"], " ± {:.4f}".format)
    return {
        "step": _shown(point["step"], "{:,}".format),
        "tokens": _shown(point["tokens"], compact),
        "FLOPs": _shown(point["flops"], compact),
        "train_loss": _shown(point["train_loss"], "{:.4f}".format),
        "val_loss": loss,
        "bits_per_byte": _shown(point["bits_per_byte"], "{:.4f}".format),
        "lr": _shown(point["lr_now"], "{:.3g}".format),
        "time": _shown(point["wall_seconds"], duration),
    }


def origin_lines(found: TrialDetails) -> Iterator[str]:
    """Lines: when, where and with what code the trial was trained."""
    said = found.provenance
    if "commit" in said:
        yield f"code: commit {said['commit'] or 'unknown'}{', with changes' if said.get('dirty') else ''}"
    for what, names in (("launched", ("launched", "command")), ("machine", ("host", "processor", "cores", "gpu"))):
        values = [f"{said[name]}{' cores' if name == 'cores' else ''}" for name in names if said.get(name)]
        if values:
            yield f"{what}: {', '.join(values)}"
    if packages := said.get("packages"):
        yield "packages: " + ", ".join(f"{name} {version}" for name, version in packages.items())


def usage_tables(usage: Usage, folder: str) -> Iterator[Table | str]:
    """Bytes by kind of file, by sweep, and those of the machine's cache: headings and tables."""
    yield f"{folder}: {data_size(usage.bytes)}"
    yield _sizes_table(usage.kinds)
    rows = [(each.sweep, str(each.trials), data_size(each.bytes), data_size(each.own_bytes)) for each in usage.sweeps]
    rows += [("(of no sweep)", "", data_size(usage.no_sweep), "")] if usage.no_sweep else []
    if rows:
        yield ""
        names = ("sweep", "trials", "disk", "its own")
        yield _table([dict(zip(names, row, strict=True)) for row in rows], (), None, left=("sweep",))
    if usage.cache:
        yield f"\ncache of this machine, {usage.cache_folder}: {data_size(sum(usage.cache.values()))}"
        yield _sizes_table(usage.cache)


def _sizes_table(sizes: Mapping[str, int]) -> Table:
    table = Table(show_header=False, **PLAIN)
    table.add_column("kind", no_wrap=True)
    table.add_column("disk", justify="right", no_wrap=True)
    for kind, size in sizes.items():
        table.add_row(kind, data_size(size))
    return table
