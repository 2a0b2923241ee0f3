"""What a trial tells while it trains, and what of it must survive an interruption."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from tinyscale.spec.state import State


@dataclass(frozen=True)
class Point:
    """One evaluation inside a trial; the names are columns of the results."""

    step: int
    tokens: int
    decayed: bool
    lr_now: float
    train_loss: float  # nats per token, mean since the point before
    val_loss: float  # nats per token
    val_loss_se: float
    wall_seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    entropy_rate: float | None = None  # of the source, nats per token, where it is known
    excess: float | None = None
    excess_se: float | None = None
    loss_by_position: list[float] | None = None  # where decayed
    fused: int = 1  # trials that shared the step
    recorded: bool | None = None  # whether the step was a replayed CUDA graph; None on a CPU


@dataclass(frozen=True)
class Outcome:
    """How training ended: `finished`; `diverged` with a reason; or still `running`, when it was asked to stop."""

    state: State
    reason: str | None
    points: list[Point]
    seconds: float  # of training, evaluation included


@dataclass
class Progress:
    """What must survive an interruption beside weights and optimizer state."""

    step: int = 0
    branches: int = 0  # decay branches that have ended
    seconds: float = 0.0
    points: list[Point] = field(default_factory=list)
    loss_sum: float = 0.0  # over the steps since the last point
    steps_timed: int = 0
    seconds_timed: float = 0.0

    def state(self) -> dict[str, Any]:
        """Plain values, as a checkpoint holds them."""
        return asdict(self)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Progress:
        """The inverse of `state`."""
        return cls(**{**state, "points": [Point(**point) for point in state["points"]]})
