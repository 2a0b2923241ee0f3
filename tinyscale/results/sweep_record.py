"""What a results folder keeps of a sweep: its trials, their cells, and where the file came from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from tinyscale.results.schema import IDENTITY
from tinyscale.spec.cell import Cell
from tinyscale.spec.measurement import Question
from tinyscale.storage import validated


@dataclass(frozen=True)
class SweepEntry:
    """A trial of a sweep: its identity, its cell, and field -> value of what the file left to planning as `auto`."""

    trial: str
    cell: Cell
    auto_values: Mapping[str, Any] = field(default_factory=dict)  # in the file, `settled`

    @classmethod
    def of_json(cls, written: Mapping[str, Any]) -> Self:
        """What `as_json` wrote."""
        trial = str(written["trial"])
        if not re.fullmatch(IDENTITY, trial):
            raise ValueError(f"{trial!r} is not a trial's identity")
        return cls(trial, Cell.of_json(written), dict(written.get("settled", {})))

    def as_json(self) -> dict[str, Any]:
        """As the sweep's file holds it."""
        return {"trial": self.trial, **self.cell.as_json(), "settled": dict(self.auto_values)}


@dataclass(frozen=True)
class _WrittenEntry:
    """An entry of `groups` in a sweep's file."""

    trial: str
    arm: str
    seed: int
    axes: dict[str, Any]
    settled: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _WrittenSweep:
    """What a sweep's file holds."""

    name: str
    title: str
    source: str
    axes: list[str]
    groups: list[_WrittenEntry]
    provenance: dict[str, Any]
    searched: list[str] = field(default_factory=list)
    measure: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class SweepRecord:
    """What results/sweeps/<name>.json holds: enough to know which trials are whose, without the sweep file."""

    name: str
    title: str
    source: str
    axes: tuple[str, ...]
    entries: tuple[SweepEntry, ...]  # in the file, `groups`
    provenance: Mapping[str, Any]
    searched: tuple[str, ...] = ()  # axes whose values a search samples

    @property
    def axis_columns(self) -> list[str]:
        """The columns of the rows that the axes are."""
        return [axis.rpartition(".")[2] for axis in self.axes]

    questions: tuple[Question, ...] = ()  # asked of each finished trial; in the file, `measure`

    @property
    def trials(self) -> list[str]:
        """Identities of the sweep's trials, in its own order."""
        return [entry.trial for entry in self.entries]

    @classmethod
    def of_json(cls, written: Mapping[str, Any]) -> Self:
        """What `as_json` wrote. KeyError, TypeError or ValueError where it is not legal."""
        validated(_WrittenSweep, written)
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in dict(written).items()
        }
        questions = tuple(map(Question.of_json, fields.pop("measure", ())))
        return cls(entries=tuple(map(SweepEntry.of_json, fields.pop("groups"))), questions=questions, **fields)

    def as_json(self) -> dict[str, Any]:
        """As the sweep's file holds it."""
        names = ("name", "title", "source", "axes", "groups", "provenance", "searched")
        fields = {**vars(self), "groups": [entry.as_json() for entry in self.entries]}
        asked = {"measure": [question.as_json() for question in self.questions]} if self.questions else {}
        return {name: fields[name] for name in names} | asked
