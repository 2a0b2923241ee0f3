"""Remove trials, or a sweep with everything made of it; what another sweep names is kept."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tinyscale.errors import ResultsError
from tinyscale.formatting import plural
from tinyscale.results.leases import clear_void, held_trials
from tinyscale.results.listing import cells_by_trial, disk_of_trials, require_sweep
from tinyscale.results.store import Results


@dataclass(frozen=True)
class Removal:
    """What `remove` will delete.

    trials: their rows, measurements and checkpoints. shared: trials that are kept, since another sweep names them too.
    sweep: deleted with its record, its launches (files of launches/) and the study of its search. disk: bytes of all
    trials that go.
    """

    trials: tuple[str, ...]
    shared: tuple[str, ...]
    disk: int
    sweep: str | None = None
    launches: tuple[str, ...] = ()


def plan_removal(results: Results, trials: Collection[str] = (), sweep: str | None = None) -> Removal:
    """What removing these trials, and those of a sweep, comes to; nothing is deleted.

    A trial goes where no sweep but one names it, that one being `sweep` if it is given. ResultsError for a sweep that
    is not there, and where a launch is training one of the trials.
    """
    records = results.read_sweeps()
    named = require_sweep(results, sweep, records).trials if sweep is not None else []
    owners = {trial: {each.sweep for each in cells} for trial, cells in cells_by_trial(records).items()}
    asked = list(dict.fromkeys([*named, *trials]))
    shared = [trial for trial in asked if len(owners.get(trial, ())) > 1]
    gone = [trial for trial in asked if trial not in shared]
    running = held_trials(results.leases).intersection(gone)
    if running:
        raise ResultsError(
            f"a launch is training {plural(len(running), 'trial')} of these ({', '.join(sorted(running)[:5])}); "
            "stop it first, with Ctrl-C"
        )
    disk = disk_of_trials(results.folder.sizes())
    of_sweep = re.compile(rf"{re.escape(sweep or '')}-\d+-[0-9a-f]{{6}}\.json")
    launches = [name for name in results.launches.names(".json") if sweep and of_sweep.fullmatch(name)]
    there = [trial for trial in gone if trial in disk]
    size = sum(disk[trial] for trial in there)
    return Removal(tuple(there), tuple(shared), size, sweep, tuple(launches))


def remove(results: Results, removal: Removal) -> list[str]:
    """Delete it, the sweep's record last, so that the same command goes on after an interruption.

    Returns the trials that stayed, since a launch has begun to train them meanwhile; the sweep's record stays with
    them.
    """
    left = [trial for trial in removal.trials if not results.forget(trial)]
    clear_void(results.leases)
    if removal.sweep is not None and not left:
        _delete_sweep(results, removal.sweep, removal.launches)
    return left


def _delete_sweep(results: Results, sweep: str, launches: Sequence[str]) -> None:
    for name in launches:
        results.launches.delete(name)
    results.studies.delete(f"{sweep}.log")
    results.sweeps.delete(f"{sweep}.json")
