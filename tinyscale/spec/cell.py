"""The cell of a trial in its sweep's grid: the arm, the values of the axes, the seed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

DEFAULT_ARM = "base"
SWEEP_NAME = r"^[A-Za-z][A-Za-z0-9_-]*$"  # it names files


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep's grid, its seed included. axes: name of an axis, such as d_model -> value."""

    arm: str
    axes: Mapping[str, Any]
    seed: int

    @classmethod
    def of_json(cls, written: Mapping[str, Any]) -> Self:
        """The cell in an entry of a sweep's record."""
        return cls(str(written["arm"]), dict(written["axes"]), int(written["seed"]))

    def as_json(self) -> dict[str, Any]:
        """As a sweep's record holds it."""
        return {"arm": self.arm, "seed": self.seed, "axes": dict(self.axes)}

    @property
    def label(self) -> str:
        """In words, such as `lion d_model=64 seed=1`; the default arm goes without saying."""
        return " ".join(filter(None, [self.label_of_seeds, f"seed={self.seed}"]))

    @property
    def label_of_seeds(self) -> str:
        """The label of all seeds of the cell."""
        arm = [self.arm] if self.arm != DEFAULT_ARM else []
        return " ".join([*arm, *(f"{name}={value}" for name, value in self.axes.items())])

    @property
    def name(self) -> str:
        """The label as a command takes it, such as `lion,d_model=64,seed=1`."""
        arm = [self.arm] if self.arm != DEFAULT_ARM else []
        return ",".join([*arm, *(f"{name}={_short(value)}" for name, value in self.axes.items()), f"seed={self.seed}"])

    @property
    def key(self) -> str:
        """Equal for equal cells, also for one that was read from JSON."""
        return json.dumps(self.as_json(), sort_keys=True)

    @property
    def key_of_seeds(self) -> str:
        """Equal for all seeds of the cell."""
        return replace(self, seed=0).key

    def without(self, names: Collection[str]) -> Self:
        """The cell of a grid that does not vary these axes."""
        return replace(self, axes={name: value for name, value in self.axes.items() if name not in names})


def _short(value: Any) -> str:
    """A value as it is typed: 2e+11 for 200000000000.0."""
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)
