"""What a trial reports while it trains, and the progress that its checkpoint stores."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from tinyscale.spec.state import State


@dataclass(frozen=True)
class Point:
    """One evaluation inside a trial. Each field is a column of the results, described in results/store.py."""

    step: int
    tokens: int
    decayed: bool
    lr_now: float
    train_loss: float  # nats per token, mean since the previous point
    val_loss: float  # nats per token
    val_loss_se: float
    wall_seconds: float
    tokens_per_second: float
    peak_memory_bytes: int | None
    entropy_rate: float | None = None  # of the source, nats per token; None if unknown
    excess: float | None = None
    excess_se: float | None = None
    loss_by_position: list[float] | None = None  # at decayed points
    by_part: list[dict[str, Any]] | None = None  # of a mixture
    fused: int = 1  # trials that shared the step
    recorded: bool | None = None  # whether the step was a replayed CUDA graph; None on a CPU
    teacher_loss: float | None = None  # of the teacher on the same targets, nats per token; None without


@dataclass(frozen=True)
class Outcome:
    """How training ended: finished, diverged (with a reason), or still running after a requested stop."""

    state: State
    reason: str | None
    points: list[Point]
    seconds: float  # of training and evaluation, over all attempts


@dataclass
class Progress:
    """What a checkpoint stores in addition to the weights and the optimizer state."""

    step: int = 0
    branches: int = 0  # decay branches that have ended
    seconds: float = 0.0
    points: list[Point] = field(default_factory=list)
    loss_sum: float = 0.0  # over the steps since the last point, as are the next two
    steps_timed: int = 0
    seconds_timed: float = 0.0

    def start_interval(self) -> None:
        """Begin the steps between two points."""
        self.loss_sum, self.steps_timed, self.seconds_timed = 0.0, 0, 0.0

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Progress:
        """Restore what `state` returned."""
        return cls(**{**state, "points": [Point(**point) for point in state["points"]]})
