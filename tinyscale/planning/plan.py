"""A plan: what a launch would do and cost, each trial with its state and its forecast."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from tinyscale.planning import forecast
from tinyscale.planning.auto import AutoValue
from tinyscale.planning.measuring import Measuring
from tinyscale.planning.samples import Sample, with_sample
from tinyscale.results.schema import PARAMETER_COLUMNS
from tinyscale.results.sweep_record import SweepEntry
from tinyscale.spec.cell import Cell
from tinyscale.spec.config import TrialConfig
from tinyscale.spec.measurement import Question
from tinyscale.spec.state import State
from tinyscale.spec.sweep import Sweep
from tinyscale.spec.trial import Trial, resolve

WHY = {
    State.NEW: "not trained yet",
    State.FAILED: "failed before",
    State.RUNNING: "was interrupted; goes on from its last checkpoint",
    State.CHANGED: "was trained under another configuration",
    State.UNSAMPLED: "to be sampled by the search",
}


@dataclass(frozen=True)
class PlannedTrial:
    """A trial with its cell in the sweep, the state it is in before the launch, and its forecast."""

    trial: Trial
    cell: Cell
    state: State
    reason: str | None
    auto_values: Mapping[str, AutoValue] = field(default_factory=dict)  # what planning chose for open fields
    sample: Sample | None = None  # of a search
    seconds: float | None = None  # expected, of training; None: not forecast
    spread: tuple[float, float] = (1.0, 1.0)  # the least and most that it may take, in units of `seconds`

    @property
    def entry(self) -> SweepEntry:
        """What the sweep's record holds of it."""
        return SweepEntry(self.trial.identity, self.cell, self._chosen)

    @property
    def _chosen(self) -> dict[str, Any]:
        return {path: auto.value for path, auto in self.auto_values.items()}

    @property
    def key(self) -> tuple[str, int | None]:
        """Equal only for the same trial: its identity, or for a placeholder its study and number."""
        if self.sample and self.sample.template:
            return self.sample.study, self.sample.number
        return self.trial.identity, None

    @property
    def will_run(self) -> bool:
        """Whether a launch trains it."""
        return self.state.is_trained

    @property
    def label(self) -> str:
        """Its cell in words, such as `d_model=64 seed=1`; for a placeholder with its number in the study."""
        if self.state != State.UNSAMPLED or self.sample is None:
            return self.cell.label
        return replace(self.cell, axes={**self.cell.axes, "sample": self.sample.number + 1}).label

    def with_share(self, gpu: float) -> PlannedTrial:
        """The same trial on another share of a GPU."""
        return replace(self, trial=self.trial.with_share(gpu))

    def as_json(self) -> dict[str, Any]:
        """What `plan --json` lists."""
        trial = self.trial
        counts = {name: getattr(trial.parameters, name) for name in PARAMETER_COLUMNS}
        identity = None if self.state == State.UNSAMPLED else trial.identity
        cell = {"trial": identity, "arm": self.cell.arm, "seed": self.cell.seed, **self.cell.axes}
        costs = {**counts, "steps": trial.steps, "tokens": trial.tokens, "flops": trial.flops, "epochs": trial.epochs}
        costs["memory_bytes"] = trial.memory_bytes
        ends = {"state": self.state, "reason": self.reason, "settled": self._chosen, "seconds": self.seconds}
        return {**cell, **costs, **ends}

    def with_sample(self, values: Mapping[str, Any]) -> PlannedTrial:
        """The trial that a placeholder becomes with sampled values: field -> value."""
        assert self.sample is not None, "only trials of a search are sampled"
        assert self.sample.template is not None, "each trial is sampled once"
        variant, middle = with_sample(self.sample.template, values), self.trial
        config = variant.config.with_values({"resources": middle.config.resources})
        trial = resolve(config, middle.facts, own=middle.own)
        sample = replace(self.sample, template=None)
        return replace(self, trial=trial, cell=variant.cell, state=State.NEW, sample=sample)


@dataclass(frozen=True)
class Plan:
    """A sweep resolved: its trials in the sweep's order, and what a launch on so many slots would take."""

    sweep: Sweep
    trials: tuple[PlannedTrial, ...]
    at_once: int
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()  # what was chosen for fields that the sweep leaves open
    stale: frozenset[str] = frozenset()  # trials of the search's record that are no longer part of it
    measuring: Measuring = field(default_factory=Measuring)
    pass_seconds: Mapping[str, float] = field(default_factory=dict)  # trial to measure -> of its validation text

    @property
    def to_run(self) -> list[PlannedTrial]:
        """What a launch trains, the longest first so that no slot is left with a long one at the end; each once."""
        missing = {planned.key: planned for planned in self.trials if planned.will_run}
        return sorted(missing.values(), key=lambda planned: planned.seconds or planned.trial.flops, reverse=True)

    @property
    def questions(self) -> tuple[Question, ...]:
        """What is asked of each finished trial."""
        return self.measuring.questions

    @property
    def to_measure(self) -> list[PlannedTrial]:
        """The trials that a launch measures, the longest work first, each once; `seconds` are those of measuring."""
        missing = {each.trial.identity: each for each in self.trials if each.trial.identity in self.measuring.missing}
        timed = [replace(each, seconds=self._measuring_seconds(each.trial)) for each in missing.values()]
        return sorted(timed, key=lambda each: each.seconds or self.measuring.passes(each.trial), reverse=True)

    def _measuring_seconds(self, trial: Trial) -> float | None:
        each = self.pass_seconds.get(trial.identity)
        return None if each is None else each * self.measuring.passes(trial)

    @property
    def has_work(self) -> bool:
        """Whether a launch has anything to train or to measure."""
        return bool(self.to_run or self.measuring.missing)

    @property
    def batched_sets(self) -> list[list[PlannedTrial]]:
        """What a launch trains, in its order: sets that one batched model trains (see `fuse`), most of one trial."""
        return batched_sets(self.to_run, self.sweep.fuse)

    @property
    def seconds(self) -> float | None:
        """Expected seconds of the launch, Ray's start included; None where a trial has no forecast.

        Of a batched set it is the time of its trials one after another, the most that it should take.
        """
        return self._launch_seconds(lambda _: 1.0)

    @property
    def seconds_between(self) -> tuple[float, float] | None:
        """The least and most seconds of the launch, by how unevenly the steps ran that were measured."""
        least = self._launch_seconds(lambda planned: planned.spread[0])
        most = self._launch_seconds(lambda planned: planned.spread[1])
        return None if least is None or most is None else (least, most)

    def _launch_seconds(self, times: Callable[[PlannedTrial], float]) -> float | None:
        to_run, to_measure = self.to_run, self.to_measure
        if any(planned.seconds is None for planned in (*to_run, *to_measure)):
            return None
        sets = (batched_sets(to_run, self.sweep.fuse), [[planned] for planned in to_measure])
        phases = [[sum((p.seconds or 0.0) * times(p) for p in each) for each in phase] for phase in sets]
        total = sum(forecast.makespan(phase, self.at_once) for phase in phases if phase)
        return total + forecast.LAUNCH_SECONDS if any(phases) else 0.0

    @property
    def device_hours(self) -> tuple[float, str] | None:
        """Hours of GPUs (or of CPU cores, where none is asked for) that the trials take; None where not forecast."""
        each = [(planned.seconds, planned.trial.config.resources) for planned in self.to_run]
        device = "GPU" if any(resources.gpu for _, resources in each) else "core"
        hours = 0.0
        for seconds, resources in each:
            if seconds is None:
                return None
            hours += seconds / 3600 * resources.workers * (resources.gpu if device == "GPU" else resources.cpu)
        return hours, device

    def __repr__(self) -> str:
        return f"Plan({self.sweep.name!r}: {len(self.trials)} trials, {len(self.to_run)} to run)"

    def _repr_html_(self) -> str:
        rows = [{**planned.as_json(), "seconds": planned.seconds} for planned in self.trials]
        shown = pd.DataFrame(rows).drop(columns=["trial", "reason", *PARAMETER_COLUMNS[1:]])
        return f"<p>{html.escape(repr(self))}</p>{shown.to_html(index=False, float_format='{:.4g}'.format)}"

    def as_json(self) -> dict[str, Any]:
        """What `plan --json` prints."""
        return {
            "sweep": self.sweep.name,
            "seconds": self.seconds,
            "seconds_between": self.seconds_between,
            "at_once": self.at_once,
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "trials": [planned.as_json() for planned in self.trials],
            "measurements": [
                {"trial": trial, "measurement": question.identity_for(trial), **question.as_json()}
                for trial, questions in self.measuring.missing.items()
                for question in questions
            ],
        }


def batched_sets(trials: Sequence[PlannedTrial], fuse: Sequence[str]) -> list[list[PlannedTrial]]:
    """The trials in sets that differ only in the fields of `fuse`, the longest first; without any, each alone."""
    sets: dict[Any, list[PlannedTrial]] = {}
    for planned in trials:
        key = _apart_from(planned.trial.config, fuse) if fuse else planned.key
        sets.setdefault(key, []).append(planned)
    return sorted(sets.values(), key=lambda each: sum(p.seconds or p.trial.flops for p in each), reverse=True)


def _apart_from(config: TrialConfig, fields: Sequence[str]) -> TrialConfig:
    """The configuration with these fields at one value, the same for all."""
    same: dict[str, tuple[str, Any]] = {"lr": ("train.lr", 1.0), "seed": ("seed", 0)}
    return config.with_values(dict(same[name] for name in fields))
