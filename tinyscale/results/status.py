"""The states of the trials in a results folder, read from its files alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tinyscale.results.leases import held_trials
from tinyscale.results.store import Results
from tinyscale.results.sweep_record import SweepRecord
from tinyscale.spec.state import State


@dataclass(frozen=True)
class Status:
    """States by trial, as (state, reason); a trial without rows is missing, one that nobody trains is interrupted.

    measured: the states of measurements, by identity.
    """

    sweeps: tuple[SweepRecord, ...]
    states: dict[str, tuple[State, str | None]]
    set_aside: tuple[str, ...]
    measured: Mapping[str, State] = field(default_factory=dict)

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
                        {**entry.as_json(), "state": state, "reason": reason}
                        for entry in sweep.entries
                        for state, reason in [self.of(entry.trial)]
                    ],
                }
                for sweep in self.sweeps
            ],
            "set_aside": list(self.set_aside),
        }


def read_status(results: Results) -> Status:
    """Read a results folder: one pass over the trials' files, without Ray."""
    states, set_aside = results.states_and_unreadable()
    held = held_trials(results.leases)
    shown = {
        trial: (State.INTERRUPTED, reason) if state == State.RUNNING and trial not in held else (state, reason)
        for trial, (state, reason) in states.items()
    }
    measured, unreadable = results.measurement_states()
    return Status(tuple(results.read_sweeps()), shown, (*set_aside, *unreadable), measured)
