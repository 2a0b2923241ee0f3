"""All that a results folder holds of one trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinyscale.results.listing import SweepCell, cells_by_trial
from tinyscale.results.status import read_status
from tinyscale.results.store import Results
from tinyscale.spec.state import State
from tinyscale.spec.trial import Trial

CURVE = ("step", "tokens", "flops", "train_loss", "val_loss", "val_loss_se", "bits_per_byte", "lr_now", "wall_seconds")


@dataclass(frozen=True)
class TrialDetails:
    """A trial with its curve, one mapping of the columns CURVE per evaluation, and its provenance.

    measured: how many measurements of each kind it has; kept_at: tokens at which weights were kept along training.
    """

    trial: Trial
    cells: tuple[SweepCell, ...]
    state: State
    reason: str | None
    curve: tuple[Mapping[str, Any], ...]
    measured: Mapping[str, int]
    provenance: Mapping[str, Any]
    kept_at: tuple[int, ...] = ()
    has_weights: bool = False  # the final ones

    def as_json(self) -> dict[str, Any]:
        """What `show --json` prints."""
        trial = self.trial.as_json()
        return {
            "trial": trial.pop("identity"),
            "cells": [cell.as_json() for cell in self.cells],
            "state": self.state,
            "reason": self.reason,
            **trial,
            "curve": [dict(point) for point in self.curve],
            "measured": dict(self.measured),
            "provenance": dict(self.provenance),
            "kept_at": list(self.kept_at),
            "has_weights": self.has_weights,
        }


def read_details(results: Results, identity: str) -> TrialDetails:
    """Read a trial that has rows. ResultsError where they cannot be read."""
    rows, metadata = results.read_trial(identity)
    state, reason = read_status(results).of(identity)
    kinds = {row["measurement"]: row["kind"] for row in results.measured(identity)}
    return TrialDetails(
        trial=results.load_trial(identity),
        cells=tuple(cells_by_trial(results.read_sweeps()).get(identity, ())),
        state=state,
        reason=reason,
        curve=tuple({name: row.get(name) for name in CURVE} for row in rows if row["val_loss"] is not None),
        measured={kind: list(kinds.values()).count(kind) for kind in dict.fromkeys(kinds.values())},
        provenance=metadata.get("provenance", {}),
        kept_at=tuple(results.kept_at(identity)),
        has_weights=results.checkpoints(identity).exists("weights.pt"),
    )
