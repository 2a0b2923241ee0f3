"""The states of a trial: one list for its rows, for plans, for launches and for what is shown."""

from __future__ import annotations

from enum import StrEnum

OUT_OF_PATIENCE = "out of patience"  # begins the reason of a trial that launch --patience has stopped


class State(StrEnum):
    """Where a trial is between its sweep file and its last row; in the order in which tables show them."""

    FINISHED = "finished"
    STOPPED = "stopped"  # by a search or --patience, which have seen enough; another launch trains it to its end
    RUNNING = "running"
    INTERRUPTED = "interrupted"  # running by its rows, and no process trains it
    MISSING = "missing"  # recorded as a sweep's, and without rows
    FAILED = "failed"
    DIVERGED = "diverged"
    NEW = "new"  # planned, and without rows
    CHANGED = "changed"  # planned where another trial was trained before
    UNSAMPLED = "unsampled"  # planned for a search, which has not sampled its values yet
    ELSEWHERE = "elsewhere"  # another launch has trained it or is training it

    @property
    def is_recorded(self) -> bool:
        """Whether rows may have it."""
        return self in (State.FINISHED, State.STOPPED, State.RUNNING, State.FAILED, State.DIVERGED)

    @property
    def is_kept(self) -> bool:
        """Whether the trial's rows stay: to train it again would give the same numbers."""
        return self in (State.FINISHED, State.DIVERGED)

    @property
    def is_trained(self) -> bool:
        """Whether a launch trains a planned trial that is in this state."""
        return not self.is_kept and self != State.STOPPED

    @property
    def lacks_loss(self) -> bool:
        """Whether the trial ended without the loss it was trained for; there is a reason then."""
        return self in (State.FAILED, State.DIVERGED)

    @property
    def once_ended(self) -> State:
        """The state of a trial whose process has ended: one that was asked to stop is interrupted."""
        return State.INTERRUPTED if self == State.RUNNING else self
