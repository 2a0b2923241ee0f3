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
from tinyscale.results.sweep_record import SweepRecord


@dataclass(frozen=True)
class Removal:
    """What `remove` will delete.

    trials: their rows, measurements and checkpoints. shared: trials that are kept, since another sweep names them too.
    sweep: deleted with its record, its launches (files of launches/), the study of its search and its event files.
    disk: bytes of all trials that go.
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
    asked, of_several = list(dict.fromkeys([*named, *trials])), _of_several(records)
    shared = [trial for trial in asked if trial in of_several]
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


def _of_several(records: Sequence[SweepRecord]) -> set[str]:
    """The trials that more than one sweep names."""
    return {trial for trial, cells in cells_by_trial(records).items() if len({each.sweep for each in cells}) > 1}


def remove(results: Results, removal: Removal) -> list[str]:
    """Delete it, the sweep's record last, so that the same command goes on after an interruption.

    Returns the trials that stayed, since a launch has taken them up meanwhile; the sweep's record stays with them.
    """
    taken_up = _of_several(results.read_sweeps())
    left = [trial for trial in removal.trials if trial in taken_up or not results.forget(trial)]
    clear_void(results.leases)
    if removal.sweep is not None and not left:
        _delete_sweep(results, removal.sweep, removal.launches)
    return left


def _delete_sweep(results: Results, sweep: str, launches: Sequence[str]) -> None:
    for name in launches:
        results.launches.delete(name)
    results.studies.delete(f"{sweep}.log")
    events = results.events / sweep
    for path in events.sizes():
        trial, _, name = path.partition("/")
        (events / trial).delete(name)
        (events / trial).delete_empty()
    events.delete_empty()
    results.sweeps.delete(f"{sweep}.json")
