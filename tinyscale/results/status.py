"""The states of the trials in a results folder, read from its files alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tinyscale.errors import ResultsError
from tinyscale.results.leases import held_tokens
from tinyscale.results.store import Results
from tinyscale.results.sweep_record import SweepRecord
from tinyscale.spec.state import State


@dataclass(frozen=True)
class Progress:
    """How far a running trial is: tokens of how many, the loss and the speed of its last evaluation."""

    tokens: int
    tokens_budget: int | None = None
    val_loss: float | None = None
    tokens_per_second: float | None = None

    @property
    def share(self) -> float | None:
        """Part of the trial that is done; None before its first evaluation."""
        return self.tokens / self.tokens_budget if self.tokens_budget else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest takes at that speed."""
        if not self.tokens_budget or not self.tokens_per_second:
            return None
        return (self.tokens_budget - self.tokens) / self.tokens_per_second

    def as_json(self) -> dict[str, Any]:
        """What `status --json` prints of it."""
        return {**asdict(self), "share": self.share, "seconds_left": self.seconds_left}


@dataclass(frozen=True)
class Status:
    """States by trial, as (state, reason); a trial without rows is missing, one that nobody trains is interrupted.

    measured: the states of measurements, by identity. progress: of the trials that a launch is training, by identity.
    """

    sweeps: tuple[SweepRecord, ...]
    states: dict[str, tuple[State, str | None]]
    set_aside: tuple[str, ...]
    measured: Mapping[str, State] = field(default_factory=dict)
    progress: Mapping[str, Progress] = field(default_factory=dict)

    def of(self, trial: str) -> tuple[State, str | None]:
        """State and reason of a trial."""
        return self.states.get(trial, (State.MISSING, None))

    def counts(self, sweep: SweepRecord) -> Counter[State]:
        """Trials of a sweep by state."""
        return Counter(self.of(trial)[0] for trial in dict.fromkeys(sweep.trials))

    def measurements(self, sweep: SweepRecord) -> Counter[State]:
        """Measurements of a sweep by state."""
        return Counter(
            self.measured.get(question.identity_for(trial), State.MISSING)
            for trial in dict.fromkeys(sweep.trials)
            for question in sweep.questions
        )

    def failures(self) -> list[str]:
        """One line per trial that failed or diverged: its cell, and why."""
        return [
            f"{state}: {sweep.name} {entry.cell.label}: {reason}"
            for sweep in self.sweeps
            for entry in sweep.entries
            for state, reason in [self.of(entry.trial)]
            if state.lacks_loss
        ]

    def trials_in(self, states: Sequence[str], sweep: str | None) -> list[str]:
        """Trials in one of these states (`running` takes in the interrupted), of one sweep or of all."""
        wanted = {*states, *([State.INTERRUPTED] if State.RUNNING in states else [])}
        named = {trial for record in self.sweeps if record.name == sweep for trial in record.trials}
        trials = self.states if sweep is None else [trial for trial in self.states if trial in named]
        return [trial for trial in trials if self.states[trial][0] in wanted]

    def as_json(self) -> dict[str, Any]:
        """What `status --json` prints."""
        return {
            "sweeps": [
                {
                    "sweep": sweep.name,
                    "counts": self.counts(sweep),
                    "measurements": self.measurements(sweep),
                    "trials": [
                        {**entry.as_json(), "state": state, "reason": reason, **self._progress_of(entry.trial)}
                        for entry in sweep.entries
                        for state, reason in [self.of(entry.trial)]
                    ],
                }
                for sweep in self.sweeps
            ],
            "set_aside": list(self.set_aside),
        }

    def _progress_of(self, trial: str) -> dict[str, Any]:
        return {"progress": self.progress[trial].as_json()} if trial in self.progress else {}


def read_status(results: Results) -> Status:
    """Read a results folder: one pass over the trials' files, without Ray."""
    states, set_aside = results.states_and_unreadable()
    held, sweeps = held_tokens(results.leases), tuple(results.read_sweeps())
    shown = {
        trial: (State.INTERRUPTED, reason) if state == State.RUNNING and trial not in held else (state, reason)
        for trial, (state, reason) in states.items()
    }
    named = {trial for record in sweeps for trial in record.trials}
    shown |= {trial: (State.RUNNING, None) for trial in held if trial in named and trial not in states}
    progress = {
        trial: _progress(results, trial, held[trial]) for trial in held if shown.get(trial) == (State.RUNNING, None)
    }
    measured, unreadable = results.measurement_states()
    return Status(sweeps, shown, (*set_aside, *unreadable), measured, progress)


def _progress(results: Results, trial: str, tokens: int) -> Progress:
    """By the last evaluation of a trial, and the tokens since."""
    try:
        last = results.read_trial(trial)[0][-1]
    except (FileNotFoundError, ResultsError):  # no evaluation yet
        return Progress(tokens)
    return Progress(
        max(tokens, last["tokens"] or 0), last["tokens_budget"], last["val_loss"], last["tokens_per_second"]
    )
