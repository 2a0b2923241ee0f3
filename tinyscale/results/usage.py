"""What a results folder takes on disk, by kind of file and by sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tinyscale.machine import cache_folder
from tinyscale.results.listing import cells_by_trial, disk_of_trials
from tinyscale.results.store import Results
from tinyscale.storage import Folder

# Folder of the results -> what its files are.
KINDS = {
    "trials": "rows",
    "measurements": "measurements",
    "fits": "fits, tables and plots",
    "tables": "fits, tables and plots",
    "plots": "fits, tables and plots",
    "report.html": "report",
    "sweeps": "records of sweeps, launches and forecasts",
    "launches": "records of sweeps, launches and forecasts",
    "forecasts": "records of sweeps, launches and forecasts",
    "leases": "records of sweeps, launches and forecasts",
    "optuna": "studies of searches",
    "tensorboard": "logs of TensorBoard",
    ".cache": "copies of rows that make reading faster",
}
CACHED = {
    "tokens": "tokenized texts",
    "hub": "downloaded texts",
    "corpora": "texts given in Python",
    "inductor": "compiled steps",
    "calibration.json": "measured speeds",
}
OTHER = "other files"


@dataclass(frozen=True)
class SweepUsage:
    """Of a sweep's trials: their number, the bytes of their files, and those of trials that no other sweep names."""

    sweep: str
    trials: int
    bytes: int
    own_bytes: int


@dataclass(frozen=True)
class Usage:
    """Bytes of a results folder by kind of file and by sweep, and of this machine's cache, which all folders share.

    no_sweep: bytes of trials that no sweep names.
    """

    kinds: Mapping[str, int]
    sweeps: tuple[SweepUsage, ...]
    no_sweep: int
    cache: Mapping[str, int]
    cache_folder: str

    @property
    def bytes(self) -> int:
        """Of the whole results folder."""
        return sum(self.kinds.values())

    def as_json(self) -> dict[str, Any]:
        """What `du --json` prints."""
        return {"bytes": self.bytes, **asdict(self)}


def read_usage(results: Results) -> Usage:
    """Measure a results folder and the cache; sizes are those of the files, not of the blocks that they occupy."""
    sizes = results.folder.sizes()
    disk = disk_of_trials(sizes)
    records = results.read_sweeps()
    owners = {trial: {each.sweep for each in cells} for trial, cells in cells_by_trial(records).items()}
    sweeps = []
    for record in records:
        trials = [trial for trial in dict.fromkeys(record.trials) if trial in disk]
        own = sum(disk[trial] for trial in trials if len(owners[trial]) == 1)
        sweeps.append(SweepUsage(record.name, len(trials), sum(disk[trial] for trial in trials), own))
    unnamed = sum(size for trial, size in disk.items() if trial not in owners)
    cache = Folder.at(cache_folder()).sizes()
    return Usage(_by_kind(sizes, _kind), tuple(sweeps), unnamed, _by_kind(cache, _cached), str(cache_folder()))


def _by_kind(sizes: Mapping[str, int], kind_of: Callable[[str], str]) -> dict[str, int]:
    """Bytes by kind, the largest first."""
    kinds = Counter[str]()
    for path, size in sizes.items():
        kinds[kind_of(path)] += size
    return {kind: size for kind, size in kinds.most_common() if size}


def _kind(path: str) -> str:
    folder, _, rest = path.partition("/")
    if folder == "checkpoints":
        return "weights" if rest.rpartition("/")[2].startswith("weights") else "checkpoints to resume from"
    return KINDS.get(folder, OTHER)


def _cached(path: str) -> str:
    return CACHED.get(path.partition("/")[0], OTHER)
