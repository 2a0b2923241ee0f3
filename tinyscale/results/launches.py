"""How each launch into a results folder went: one small file per launch, written once, at its end."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tinyscale.errors import ResultsError
from tinyscale.storage import Folder, validated


def _documented(what: str) -> Any:
    return field(metadata={"doc": what})


@dataclass(frozen=True)
class LaunchRecord:
    """How one launch went: what results/launches/<sweep>-<time>-<random>.json holds.

    Each file has a unique name, so that simultaneous launches do not overwrite each other.
    """

    sweep: str = _documented("the sweep launched")
    trials: int = _documented("how many trials there were to train")
    states: Mapping[str, int] = _documented("state -> how many trials ended in it")
    slots: int = _documented("how many run at once")
    wall_seconds: float = _documented("from the start of the grid to the end of its last trial")
    train_seconds: float = _documented("sum of the trials' own training seconds in this launch")
    expected_seconds: float | None = _documented(
        "what the plan expected, Ray's start included; null where nothing was forecast"
    )
    efficiency: float = _documented(
        "training seconds divided by those of all slots, from the first trial's start to the last one's end"
    )
    overhead_per_trial: float = _documented("mean seconds of a process per trial outside training")
    stopped: bool = _documented("whether the user stopped it")
    provenance: Mapping[str, Any] = _documented("commit, packages, command and time of the launch")

    @property
    def launched(self) -> str:
        """When it began, in UTC, to the second."""
        return str(self.provenance.get("launched", ""))


def forecast_error(expected_seconds: float | None, wall_seconds: float, stopped: bool) -> float | None:
    """By what share a launch was expected to take longer than it did; None without a forecast, or if it was stopped."""
    return expected_seconds / wall_seconds - 1 if expected_seconds and not stopped else None


FIELDS: Mapping[str, str] = {each.name: each.metadata["doc"] for each in fields(LaunchRecord)}


def write_launch(folder: Folder, record: LaunchRecord) -> None:
    """Record how a launch went, beside all others. folder: launches/ of a results folder."""
    when = re.sub(r"\D", "", record.launched.partition("+")[0])
    name = f"{record.sweep}-{when}-{uuid.uuid4().hex[:6]}.json"
    folder.write(name, json.dumps(asdict(record), indent=1).encode())


def read_launches(folder: Folder) -> list[LaunchRecord]:
    """The launches into a results folder, the oldest first. ResultsError on a file that is none."""
    records = []
    for name in folder.names(".json"):
        try:
            records.append(validated(LaunchRecord, json.loads(folder.read(name))))
        except (ValueError, RecursionError) as error:
            raise ResultsError(f"{folder}/{name}: not a launch's record ({error}); delete it") from error
    return sorted(records, key=lambda record: record.launched)
