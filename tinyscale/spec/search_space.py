"""A search: fields of the training whose values Optuna samples, one trial after another; an axis would list them.

    search:
      fields: {train.lr: {low: 1e-4, high: 1e-1, log: true}}
      trials: 24

- Each cell of arms and axes has a study of its own with so many trials: what is best at one size is not at another. The
  seeds follow each other round-robin, so that no value wins by the luck of one seed, and a curve through the samples
  of a cell is one of their mean.
- A sample is a trial like any other, with an identity, a file of rows and a cell in the sweep, which counts the sampled
  values among its axes. Numbers are rounded to three digits, so that a trial can be written down and repeated.
- Launched again, a search goes on. Samples that ended are kept; those that failed or were interrupted are trained again
  with the same values; only what is missing is sampled. A change of what all trials share begins the search anew.
- Under `scheduler: asha` a trial that is behind the others of its cell at 1/16 or 1/4 of its tokens is stopped there:
  its state is `stopped`, its last point is not decayed, and no fit reads it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from tinyscale.spec.values import STRICT, Int, Quantity, quantity

DIGITS = 3  # significant ones, of a sampled number
ASHA_POINTS = 5  # evaluations, the last ones at 1/16, 1/8, 1/4, 1/2 and all of the tokens
MAX_COMBINATIONS = 1000  # of ends and choices, each of which is checked before anything starts

# What may be searched. Sizes, text and seeds are what a sweep compares at their best settings: axes.
NUMBERS = (
    "train.lr", "train.weight_decay", "train.warmup_fraction", "train.min_lr_ratio", "train.decay_fraction",
    "train.grad_clip",
)  # fmt: skip
SEARCHABLE = (*NUMBERS, "train.batch_tokens", "train.optimizer", "train.schedule", "train.precision")


class Values(BaseModel):
    """What one field is sampled from: the numbers from low to high, or a few choices."""

    model_config = STRICT

    low: Quantity | None = Field(default=None, description="smallest number that may be sampled")
    high: Quantity | None = Field(default=None, description="largest number that may be sampled")
    log: bool = Field(default=False, description="sample evenly in the logarithm")
    choices: tuple[Any, ...] = Field(default=(), strict=False, description="in place of low and high: a list of values")

    @model_validator(mode="after")
    def _a_range_or_choices(self) -> Self:
        if self.choices:
            if (self.low, self.high, self.log) != (None, None, False):
                raise _refuse("give low and high, or choices, not both")
            if len(set(map(repr, self.choices))) < max(2, len(self.choices)):
                raise _refuse("choices are at least two values, each written once")
            return self
        if self.low is None or self.high is None:
            raise _refuse("write a range, such as {low: 1e-4, high: 1e-1, log: true}, or {choices: [...]}")
        if not self.low < self.high:
            raise _refuse(f"low {self.low:g} must be below high {self.high:g}")
        if self.log and self.low <= 0:
            raise _refuse(f"a range in the logarithm begins above 0, not at {self.low:g}")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values at the edge of what may be sampled: low and high, or every choice."""
        return tuple(map(_plain, self.choices)) or (self.low, self.high)

    @property
    def middle(self) -> Any:
        """A value to forecast by: the middle of the range, in its scale, or the middle choice."""
        if self.low is None or self.high is None:
            return self.ends[len(self.choices) // 2]
        return self.rounded(math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2)

    def rounded(self, number: float) -> float:
        """The nearest number of so few digits that it can be written, inside the range."""
        assert self.low is not None, "choices are not rounded"
        assert self.high is not None, "choices are not rounded"
        return min(max(float(f"{number:.{DIGITS}g}"), self.low), self.high)

    def holds(self, value: Any) -> bool:
        """Whether the value may be sampled."""
        if self.low is None or self.high is None:
            return value in self.ends
        return bool(self.low <= value <= self.high)

    def __str__(self) -> str:
        if self.choices:
            return " or ".join(map(str, self.choices))
        return f"{self.low:g} to {self.high:g}"


class Search(BaseModel):
    """The keys of `search`."""

    model_config = STRICT

    fields: dict[str, Values] = Field(min_length=1, description="field -> {low, high, log} or {choices: [...]}")
    trials: Int = Field(
        ge=2, le=10_000, description="trials of each cell of arms and axes; the seeds follow each other round-robin"
    )
    scheduler: Literal["none", "asha"] = Field(
        default="none", description="asha: stop trials early that are behind others of their cell; no fit reads those"
    )

    @property
    def names(self) -> dict[str, str]:
        """The searched fields as axes are called: lr -> train.lr."""
        return {path.rpartition(".")[2]: path for path in self.fields}

    @property
    def middle(self) -> dict[str, Any]:
        """A value for each field, to check and to forecast by."""
        return {path: values.middle for path, values in self.fields.items()}

    def __str__(self) -> str:
        return ", ".join(self.names)

    def corners(self) -> Iterator[dict[str, Any]]:
        """Every combination of the fields' ends: what is legal there is legal between them."""
        for ends in itertools.product(*(values.ends for values in self.fields.values())):
            yield dict(zip(self.fields, ends, strict=True))

    def sampled(self, axes: Mapping[str, Any]) -> dict[str, Any] | None:
        """The sampled values, field -> value, of a trial with these axes; None if this search cannot sample them."""
        values = {path: axes.get(name) for name, path in self.names.items()}
        legal = all(value is not None and self.fields[path].holds(value) for path, value in values.items())
        return values if legal else None


def _plain(choice: Any) -> Any:
    """A choice as a configuration holds it: 2K is 2000."""
    number = quantity(choice)
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _refuse(message: str) -> PydanticCustomError:
    return PydanticCustomError("tinyscale", "{message}", {"message": message})
