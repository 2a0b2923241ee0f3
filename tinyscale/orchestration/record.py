"""The sweep's record in the results: which trials it consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tinyscale.planning.plan import Plan, PlannedTrial
from tinyscale.results.store import Results
from tinyscale.results.sweep_record import SweepRecord
from tinyscale.spec.state import State


def record_sweep(plan: Plan, results: Results, provenance: Mapping[str, Any]) -> None:
    """Write which trials the sweep consists of, and the user's own code that they run. provenance: the launch's.

    Of a search, trials that another launch has sampled since, or that a selection leaves out, stay.
    """
    sweep, entries = plan.sweep, [each.entry for each in plan.trials if each.state != State.UNSAMPLED]
    for code in {code for each in plan.trials for code in each.trial.own.codes}:
        results.keep_code(code)
    searched = tuple(sweep.search.names) if sweep.search else ()
    axes = tuple(dict.fromkeys((*sweep.axes, *searched)))
    with results.sweeps.lock():
        if searched:
            known = {entry.trial for entry in entries} | plan.stale
            before = results.read_sweep(sweep.name)
            entries += [entry for entry in before.entries if entry.trial not in known] if before else []
        record = SweepRecord(
            sweep.name, sweep.title, sweep.source, axes, tuple(entries), provenance, searched, plan.questions
        )
        results.write_sweep(record)


def record_sampled(plan: Plan, results: Results, sampled: PlannedTrial) -> None:
    """Add a trial that a search has sampled."""
    with results.sweeps.lock():
        record = results.read_sweep(plan.sweep.name)
        assert record is not None, "a launch records its sweep before it samples"
        results.write_sweep(replace(record, entries=(*record.entries, sampled.entry)))
