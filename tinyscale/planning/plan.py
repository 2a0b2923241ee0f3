"""What a launch would do and cost: each trial resolved against its text, what is done, what will run and why."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pandas as pd

from tinyscale.errors import ConfigError, ForecastError, ResultsError
from tinyscale.formatting import compact, plural
from tinyscale.machine import Capacity, this_machine, usable_cores
from tinyscale.planning import forecast
from tinyscale.planning.auto import AutoValue, Filled, PlanningContext, auto_notes, resolve_autos
from tinyscale.planning.measuring import Measuring, plan_measurements
from tinyscale.planning.resolve import own_code_of, prepare_texts, resolve_against
from tinyscale.planning.samples import Sample, Samples, known_samples, with_sample
from tinyscale.planning.texts import notes_of, warnings_of
from tinyscale.results.schema import PARAMETER_COLUMNS
from tinyscale.results.store import Results
from tinyscale.results.sweep_record import SweepEntry
from tinyscale.spec.cell import Cell
from tinyscale.spec.config import TrialConfig
from tinyscale.spec.grid import Variant
from tinyscale.spec.measurement import Question
from tinyscale.spec.search_space import Search
from tinyscale.spec.settings import CODE
from tinyscale.spec.state import State
from tinyscale.spec.sweep import Sweep, without_collector
from tinyscale.spec.trial import Trial, resolve

BUSY = 0.8  # programs per core that ran in the last minute, above which a forecast is in doubt
FEW_STEPS = 200  # below, warm-up and schedule say more about the loss than the size does

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


@without_collector()
def make_plan(
    sweep: Sweep,
    results: Results,
    capacity: Capacity | None = None,
    *,
    measure: bool = True,
    notify: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Resolve a sweep against its text and the results so far.

    capacity: what the trials may use; None: this machine. measure: this machine's speed, for the forecast. notify
    is called with what takes seconds. TinyscaleError on text that cannot be used, trials that ask for more than the
    text holds, and axes that move nothing.
    """
    capacity, busy = capacity or this_machine(), _other_load()
    notify("reading and tokenizing the text")
    texts = prepare_texts(sweep)
    recorded = [entry for record in results.read_sweeps() if record.name == sweep.name for entry in record.entries]
    searched = sweep.search.names if sweep.search else ()
    recorded_at = {entry.cell.without(searched).key: entry for entry in recorded}
    notify("choosing what the sweep leaves open")
    chosen = {key: entry.auto_values for key, entry in recorded_at.items()}
    teachers: dict[str, Trial] = {}  # by identity
    once = _once(partial(resolve_against, texts, own_code_of(sweep, texts, notify), teachers))

    def fill(variants: Sequence[Variant]) -> list[Filled]:
        recorded = [chosen.get(variant.cell.key, {}) for variant in variants]
        return resolve_autos(
            variants, PlanningContext(results, once, recorded, capacity, measure, busy is not None, notify)
        )

    states = results.states()
    filled_teachers = fill(list(sweep.teachers.values()))
    identities = {}
    for name, each in zip(sweep.teachers, filled_teachers, strict=True):
        trial = once(each.variant)
        teachers[trial.identity], identities[name] = trial, trial.identity
    filled = fill([_with_teacher(variant, identities) for variant in sweep.variants])
    samples = Samples(tuple((each, None) for each in (*filled_teachers, *filled)), frozenset())
    if sweep.search:
        _refuse_idle_axes(sweep, _corners(sweep.search, filled, once))
        samples = known_samples(sweep.search, filled, recorded, once, whole=sweep.whole)
    trials = [_planned(each, sample, once, states) for each, sample in samples.variants]
    if not sweep.search:
        _refuse_idle_axes(sweep, trials)
    trials = _explain_changes(results, recorded_at, trials)
    at_once = forecast.side_by_side([planned.trial.config for planned in trials], capacity)
    measuring = plan_measurements(sweep.measure, _measurable(trials), results)
    unmeasured: list[str] = []
    pass_seconds: dict[str, float] = {}
    if measure and at_once and (measuring.missing or any(planned.will_run for planned in trials)):
        notify("measuring this machine's speed")
        trials, unmeasured = _timed(trials, at_once, notify, busy)
        trials = _without_what_is_done(trials, results)
        pass_seconds = _pass_seconds(
            [each for each in _measurable(trials) if each.identity in measuring.missing], at_once
        )
    autos = auto_notes([planned.auto_values for planned in trials])
    notes = (*notes_of(texts), *autos, *_teacher_notes(identities, trials), *measuring.notes)
    warnings = (*warnings_of(texts), *_warnings(trials), *_unplaceable(trials, capacity), *unmeasured)
    return Plan(sweep, tuple(trials), at_once, warnings, notes, samples.stale, measuring, pass_seconds)


def _with_teacher(variant: Variant, identities: Mapping[str, str]) -> Variant:
    """With its teacher's identity in place of the name; the variants of `tune` have it already."""
    if variant.teacher is None:
        return variant
    return variant.with_values({"train.teacher": identities.get(variant.teacher, variant.teacher)})


def _teacher_notes(identities: Mapping[str, str], trials: Sequence[PlannedTrial]) -> Iterator[str]:
    """Which trials are trained first, and for how many."""
    for name, identity in identities.items():
        students = [planned.trial for planned in trials if planned.trial.config.train.teacher == identity]
        teacher = next(planned.trial for planned in trials if planned.trial.identity == identity)
        size = f"N = {compact(teacher.parameters.n_non_embedding)}, {compact(teacher.tokens)} tokens"
        forward = compact(sum(each.teacher_flops_per_token * each.tokens for each in students))
        yield (
            f"teacher {name} ({identity}; {size}) is trained before its {plural(len(students), 'student')}, whose "
            f"training adds {forward} FLOPs of its forward passes"
        )


def _measurable(trials: Sequence[PlannedTrial]) -> list[Trial]:
    """The trials that are finished or may yet be."""
    return [planned.trial for planned in trials if planned.state not in (State.DIVERGED, State.UNSAMPLED)]


def _pass_seconds(trials: list[Trial], at_once: int) -> dict[str, float]:
    """Identity -> seconds of the validation text, where that can be measured."""
    with suppress(ForecastError):  # said of the trials' own time
        seconds = forecast.evaluation_seconds(trials, at_once) or []
        return {trial.identity: each for trial, each in zip(trials, seconds, strict=False) if math.isfinite(each)}
    return {}


def _once(resolve: Callable[[Variant], Trial]) -> Callable[[Variant], Trial]:
    """Resolve each configuration once, however often it is asked for."""
    known: dict[TrialConfig, Trial] = {}

    def resolved(variant: Variant) -> Trial:
        if variant.config not in known:
            known[variant.config] = resolve(variant)
        return known[variant.config]

    return resolved


def _planned(
    each: Filled,
    sample: Sample | None,
    resolve: Callable[[Variant], Trial],
    states: Mapping[str, tuple[State, str | None]],
) -> PlannedTrial:
    """The variant as a trial, with its state."""
    variant, trial = each.variant, resolve(each.variant)
    state, reason = states.get(trial.identity, (State.NEW, None))
    if sample is None and state == State.STOPPED:
        state = State.RUNNING  # what a search gave up is here trained to its end
    if sample and sample.template:
        state, reason = State.UNSAMPLED, None
    return PlannedTrial(trial, variant.cell, state, reason, each.auto_values, sample)


def _other_load() -> str | None:
    """A warning where other programs use this machine. A measurement adds to its load, so ask before."""
    load, cores = os.getloadavg()[0], usable_cores()
    if load <= BUSY * cores:
        return None
    return f"this machine is busy (a load of {load:.1f} on {plural(cores, 'core')}): the expected time may be off"


def _timed(
    trials: list[PlannedTrial], at_once: int, notify: Callable[[str], None], busy: str | None
) -> tuple[list[PlannedTrial], list[str]]:
    """The trials with how long each takes, where that can be measured; warnings of what it may be wrong for."""
    resolved = [planned.trial for planned in trials]
    try:
        seconds = forecast.trial_seconds(resolved, at_once, notify, busy=busy is not None)
    except ForecastError as error:
        return trials, [f"the time is not forecast: {error}"]
    if seconds is None:
        return trials, []
    timed = [
        replace(planned, seconds=each if math.isfinite(each) else None, spread=spread)
        for planned, each, spread in zip(trials, seconds, forecast.spreads(resolved, at_once), strict=True)
    ]
    tight = [planned.label for planned, each in zip(trials, seconds, strict=True) if not math.isfinite(each)]
    large = f"out of memory when measured: {', '.join(tight)}; raise resources.gpu or lower train.batch_tokens"
    return timed, [*([large] if tight else []), *([busy] if busy else [])]


def _without_what_is_done(trials: list[PlannedTrial], results: Results) -> list[PlannedTrial]:
    """The trials, those that were interrupted with the seconds of what is left after their last evaluation."""
    if not any(planned.state == State.RUNNING for planned in trials):
        return trials
    frame, _ = results.read(columns=["trial", "state", "tokens"])
    reached = frame.groupby("trial")["tokens"].max().dropna().to_dict()

    def left(planned: PlannedTrial) -> PlannedTrial:
        if planned.seconds is None or planned.state != State.RUNNING:
            return planned
        done = reached.get(planned.trial.identity, 0) / planned.trial.tokens
        return replace(planned, seconds=planned.seconds * (1 - done))

    return [left(planned) for planned in trials]


def _corners(search: Search, filled: Sequence[Filled], resolve: Callable[[Variant], Trial]) -> list[PlannedTrial]:
    """The ends of what a search may sample, resolved, so that what is wrong with one is found before it is sampled."""
    variants = [with_sample(each.variant, values) for each in filled for values in search.corners()]
    return [PlannedTrial(resolve(variant), variant.cell, State.NEW, None) for variant in variants]


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


def _explain_changes(
    results: Results, recorded_at: Mapping[str, SweepEntry], trials: list[PlannedTrial]
) -> list[PlannedTrial]:
    """Say of a new trial how it differs from the trial that was recorded in its cell."""

    def explained(planned: PlannedTrial) -> PlannedTrial:
        twin = recorded_at.get(planned.cell.key)
        if planned.state == State.NEW and twin is not None:
            with suppress(FileNotFoundError, ResultsError):  # nothing written, or nothing that can be read
                reason = "; ".join(_differences(results.load_trial(twin.trial), planned.trial))
                return replace(planned, state=State.CHANGED, reason=reason)
        return planned

    return [explained(planned) for planned in trials]


def _differences(before: Trial, now: Trial) -> list[str]:
    """What separates a trial from one that was trained: fields, the text, the tokenizer, or the code's own numbers."""
    old, new = (dict(_leaves(trial.config.model_dump(mode="json"))) for trial in (before, now))
    found = [f"{path} was {old[path]}, is {value}" for path, value in new.items() if old.get(path, value) != value]
    for code, other in ((before.own.model, now.own.model), (before.own.optimizer, now.own.optimizer)):
        if (named := other or code) and code != other:
            found.append(f"changed: {named.name}")
    if before.facts.corpus_hash != now.facts.corpus_hash:
        found.append("the text changed")
    elif before.facts.tokenizer_hash != now.facts.tokenizer_hash:
        found.append("the tokenizer changed")
    elif before.facts.split_rule != now.facts.split_rule:
        found.append("the validation text changed")
    return found or ["the code's numbers changed"]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    elif not path.startswith(("resources", *CODE)):
        yield path, value


def _refuse_idle_axes(sweep: Sweep, trials: Sequence[PlannedTrial]) -> None:
    """ConfigError when two cells of an arm are one trial: an axis that changes nothing is a mistake in the file."""
    seen: dict[tuple[str, str], PlannedTrial] = {}
    for planned in trials:
        twin = seen.setdefault((planned.cell.arm, planned.trial.identity), planned)
        if twin is not planned:
            moved = [name for name, value in planned.cell.axes.items() if value != twin.cell.axes.get(name)]
            what = " and ".join(moved) or "a value written twice"
            raise ConfigError(
                f"{sweep.path}: {what} moves nothing: ({twin.label}) and ({planned.label}) are the same "
                "trial; remove the repeated value, or the axis"
            )


def _unplaceable(trials: Sequence[PlannedTrial], capacity: Capacity) -> Iterator[str]:
    """Why nothing runs, or not yet: what the first trial for which there is no place lacks."""
    lacks = ((planned, forecast.lacking(planned.trial.config.resources, capacity)) for planned in trials)
    for planned, lack in lacks:
        if planned.will_run and lack:
            yield f"{planned.label} {lack}" + (", or wait for the autoscaler to add nodes" if capacity.grows else "")
            return


def _warnings(trials: Sequence[PlannedTrial]) -> list[str]:
    fewest = min(trials, key=lambda planned: planned.trial.steps)
    found = []
    if fewest.trial.steps < FEW_STEPS:
        found.append(
            f"{fewest.label} takes only {fewest.trial.steps} optimizer steps; under {FEW_STEPS} the schedule shapes "
            "the loss: lower train.batch_tokens or raise the budget"
        )
    diverged = sum(planned.state == State.DIVERGED for planned in trials)
    if diverged:
        found.append(f"{diverged} trials diverged before and would again; they are left as they are")
    return found
