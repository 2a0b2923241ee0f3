"""Make a plan: each trial resolved against its text, what is done, what will run and why."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from tinyscale.errors import ConfigError, ForecastError, ResultsError
from tinyscale.formatting import compact, plural
from tinyscale.machine import Capacity, this_machine, usable_cores
from tinyscale.planning import forecast
from tinyscale.planning.auto import Filled, PlanningContext, auto_notes, resolve_autos
from tinyscale.planning.measuring import plan_measurements
from tinyscale.planning.plan import Plan, PlannedTrial
from tinyscale.planning.resolve import own_code_of, prepare_texts, resolve_against
from tinyscale.planning.samples import Sample, Samples, known_samples, with_sample
from tinyscale.planning.texts import notes_of, warnings_of
from tinyscale.results.store import Results
from tinyscale.results.sweep_record import SweepEntry
from tinyscale.spec.config import TrialConfig
from tinyscale.spec.grid import Variant
from tinyscale.spec.search_space import Search
from tinyscale.spec.settings import CODE
from tinyscale.spec.state import State
from tinyscale.spec.sweep import Sweep, without_collector
from tinyscale.spec.trial import Trial

BUSY = 0.8  # programs per core that ran in the last minute, above which a forecast is in doubt
FEW_STEPS = 200  # below, warm-up and schedule say more about the loss than the size does


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
