"""A number with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tinyscale.formatting import number


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 95 % interval; an end is infinite where the data set none."""

    value: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float, half_width: float) -> Estimate:
        """With an interval that reaches as far on both sides."""
        return cls(float(value), float(value - half_width), float(value + half_width))

    @classmethod
    def of_json(cls, entry: Mapping[str, float | None]) -> Estimate:
        """What `as_json` wrote."""
        value, low, high = (entry[name] for name in ("value", "low", "high"))
        return cls(
            value=math.nan if value is None else value,
            low=-math.inf if low is None else low,
            high=math.inf if high is None else high,
        )

    def as_json(self) -> dict[str, float | None]:
        """Plain values; what is not finite is null."""
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}

    @property
    def ends(self) -> tuple[float, float]:
        """Low and high."""
        return self.low, self.high

    @property
    def holds_zero(self) -> bool:
        """Whether the interval does: of a difference, none is seen."""
        return self.low <= 0 <= self.high

    def map(self, function: Callable[[float], Any]) -> Estimate:
        """The estimate of a monotone function of this number."""
        low, high = sorted(float(function(end)) for end in self.ends)
        return Estimate(float(function(self.value)), low, high)

    def texts(self, digits: int = 4) -> tuple[str, str, str]:
        """Value, low and high for people; an end that the data do not set is `open`."""
        return number(self.value, digits), number(self.low, digits), number(self.high, digits)

    def __str__(self) -> str:
        return "{} ({} to {})".format(*self.texts(3))


def estimates_json(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    """Named estimates as plain values."""
    return {name: each.as_json() for name, each in estimates.items()}
