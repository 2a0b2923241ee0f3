"""What came of a launch, and where the seconds went."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tinyscale.spec.state import State


@dataclass(frozen=True)
class Timing:
    """When a trial's process began and ended it (seconds since the epoch), and how long it trained in all.

    Of a batched model's seconds each trial has its share. A resumed trial has those of the times before as well.
    """

    trial: str
    process: int
    began: float
    ended: float
    train_seconds: float

    @property
    def seconds_here(self) -> float:
        """Training seconds since this process took it up; of a resumed trial, at most."""
        return min(self.train_seconds, self.ended - self.began)


@dataclass(frozen=True)
class Measurements:
    """What came of the measurements of a launch. unasked: of trials that did not finish; reasons: trial -> of those
    that failed.
    """

    made: int = 0
    failed: int = 0
    unasked: int = 0
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(repr=False)
class Summary:
    """What came of a launch."""

    states: dict[str, State] = field(default_factory=dict)  # by identity
    reasons: dict[str, str] = field(default_factory=dict)
    timings: list[Timing] = field(default_factory=list)
    slots: int = 1
    wall_seconds: float = 0.0
    expected_seconds: float | None = None
    stopped: bool = False
    refused: str | None = None  # why the results took no more rows, if that stopped it
    measurements: Measurements = field(default_factory=Measurements)

    def __repr__(self) -> str:
        counted = Counter(self.states.values()).items()
        states = ", ".join(f"{number} {state}" for state, number in counted) or "nothing to run"
        return f"Summary({states}; {self.train_seconds:.1f} s of training in {self.wall_seconds:.1f} s)"

    def _repr_html_(self) -> str:
        """For a notebook: a line, and the reasons of what failed."""
        reasons = "".join(f"<li>{trial}: {html.escape(why)}</li>" for trial, why in self.reasons.items())
        return f"<p>{html.escape(repr(self))}</p>" + (f"<ul>{reasons}</ul>" if reasons else "")

    @property
    def failed(self) -> int:
        """Trials that failed; a diverged one is a result."""
        return sum(state == State.FAILED for state in self.states.values())

    @property
    def finished(self) -> list[Timing]:
        """Timings of the trials that finished."""
        return [timing for timing in self.timings if self.states[timing.trial] == State.FINISHED]

    @property
    def train_seconds(self) -> float:
        """Sum of the trials' own training seconds in this launch."""
        return sum(timing.seconds_here for timing in self.timings)

    @property
    def efficiency(self) -> float:
        """Training seconds over the seconds of all slots between the first trial's begin and the last one's end."""
        if not self.timings:
            return 0.0
        span = max(t.ended for t in self.timings) - min(t.began for t in self.timings)
        taken_up = len({(t.process, t.began) for t in self.timings})  # trials of a batched model at once
        return self.train_seconds / max(span * min(self.slots, taken_up), 1e-9)

    @property
    def overhead_per_trial(self) -> float:
        """Mean seconds per trial that its process did not train, the time since its trial before included."""
        last: dict[int, float] = {}
        overheads = []
        for timing in sorted(self.timings, key=lambda timing: timing.began):
            overheads.append(timing.ended - last.get(timing.process, timing.began) - timing.seconds_here)
            last[timing.process] = timing.ended
        return sum(overheads) / len(overheads) if overheads else 0.0
