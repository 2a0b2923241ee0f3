"""Values that a sweep leaves open (`auto`), resolved when it is planned.

What the first launched plan chose is recorded with the sweep and chosen again, so that a sweep goes on as it began,
whatever has been measured or fitted since.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from tinyscale.errors import ConfigError, FitError, ForecastError
from tinyscale.formatting import compact
from tinyscale.machine import Capacity, this_machine
from tinyscale.planning import forecast
from tinyscale.results.store import Results
from tinyscale.spec.costs import HEADROOM, smallest_share
from tinyscale.spec.grid import Variant
from tinyscale.spec.trial import Trial

LISTED = 8  # values of a field that a line names one by one


@dataclass(frozen=True)
class AutoValue:
    """A value for a field that was open, and the reason for it; an empty reason is not reported.

    n: the parameters of the trial, where the value depends on them.
    """

    value: Any
    why: str
    n: float | None = None


@dataclass(frozen=True)
class Filled:
    """A variant and the values that were chosen for its open fields: field -> value."""

    variant: Variant
    auto_values: Mapping[str, AutoValue] = field(default_factory=dict)

    def fill(self, chosen: Mapping[str, AutoValue]) -> Filled:
        """With those of the chosen values whose fields are open."""
        taken = {path: auto for path, auto in chosen.items() if path in self.variant.autos}
        if not taken:
            return self
        variant = self.variant.with_values({path: auto.value for path, auto in taken.items()})
        return replace(self, variant=variant, auto_values={**self.auto_values, **taken})


@dataclass(frozen=True)
class PlanningContext:
    """What choosers may look at.

    resolve: a variant as a trial, its open fields at the values of AUTO. recorded: for each variant of the sweep, the
    values that it was launched with. capacity: what the trials may use. measure: whether a chooser may measure this
    machine's speed; busy: whether other programs use it.
    """

    results: Results
    resolve: Callable[[Variant], Trial]
    recorded: Sequence[Mapping[str, Any]]
    capacity: Capacity
    measure: bool
    busy: bool = False
    notify: Callable[[str], None] = lambda _: None  # called with what takes seconds


# Chooses for variants of which at least one field is open; it may name more fields than are.
Chooser = Callable[[Sequence[Variant], PlanningContext], Sequence[Mapping[str, AutoValue]]]


def resolve_autos(variants: Sequence[Variant], context: PlanningContext) -> list[Filled]:
    """Fill in the open fields of each variant of a sweep."""
    again = "as when the sweep was first launched"
    filled = [
        Filled(variant).fill(
            {
                path: AutoValue(value, again if (path, value) != (COMPILE, False) else "")
                for path, value in recorded.items()
                if path != SHARE
            }
        )
        for variant, recorded in zip(variants, context.recorded, strict=True)
    ]
    for paths, choose in CHOOSERS:
        open_ = [index for index, each in enumerate(filled) if paths & set(each.variant.autos)]
        if open_:
            chosen = choose([filled[index].variant for index in open_], context)
            for index, values in zip(open_, chosen, strict=True):
                filled[index] = filled[index].fill(values)
    assert not any(each.variant.autos for each in filled), "every field that may be auto has a chooser"
    return filled


def auto_notes(auto_values: Sequence[Mapping[str, AutoValue]]) -> list[str]:
    """What was chosen, one line for each field and reason."""
    chosen: defaultdict[tuple[str, str], list[AutoValue]] = defaultdict(list)
    for each in auto_values:
        for path, auto in each.items():
            chosen[path, auto.why].append(auto)
    return [
        f"{path} auto is {_values(chosen[path, why])} of {len(auto_values)} trials: {why}"
        for path, why in chosen
        if why
    ]


def _values(autos: Sequence[AutoValue]) -> str:
    """Such as `0.02, 0.01 at N = 1.2K, 4.5K for 4`: each value once, in the order of the trials."""
    each = {(auto.value, auto.n): None for auto in autos}
    values = _listed([str(value) for value, _ in each])
    sizes = _listed([compact(n) for _, n in each if n is not None])
    return f"{values}{f' at N = {sizes}' if sizes else ''} for {len(autos)}"


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts) if len(texts) <= LISTED else f"{texts[0]} ... {texts[-1]} ({len(texts)} values)"


PRECISION, COMPILE, SHARE = "train.precision", "resources.compile", "resources.gpu"
COMPILE_SECONDS = 30.0  # to compile a shape for the first time, roughly; later processes find it in the cache


def choose_speed(variants: Sequence[Variant], context: PlanningContext) -> list[Mapping[str, AutoValue]]:
    """The precision in which the whole sweep takes least time, and for each trial whether compiling saves any."""
    recorded = {values[PRECISION] for values in context.recorded if PRECISION in values}
    gpu = any(variant.config.resources.gpu for variant in variants)
    asked = recorded or {"bf16", "fp32"} if any(PRECISION in variant.autos for variant in variants) else {"as set"}
    measured = {each: fastest for each in sorted(asked) if (fastest := _fastest(variants, each, context))}
    if not measured:
        precision = AutoValue(min(recorded, default="bf16" if gpu else "fp32"), "not measured here")
        return [{PRECISION: precision, COMPILE: AutoValue(False, "")} for _ in variants]
    totals = {precision: sum(each.seconds for each in fastest) for precision, fastest in measured.items()}
    best = min(totals, key=totals.__getitem__)
    others = [f"{totals[other] / totals[best]:.2f} times as long in {other}" for other in totals if other != best]
    precision = AutoValue(best, f"the sweep takes {', '.join(others)}" if others else "as the rest of the sweep")
    gains = [each for each in measured[best] if each.compiled]
    slower = sum(each.eager for each in gains) / sum(each.seconds for each in gains) if gains else 1.0
    compiled = {True: AutoValue(True, f"{slower:.2f} times as long without"), False: AutoValue(False, "")}
    return [{PRECISION: precision, COMPILE: compiled[each.compiled]} for each in measured[best]]


class _Fastest(NamedTuple):
    """Seconds of a trial, whether that is compiled, and its seconds without."""

    seconds: float
    compiled: bool
    eager: float


def _fastest(variants: Sequence[Variant], precision: str, context: PlanningContext) -> list[_Fastest] | None:
    """The fastest way to train each variant in a precision; None where nothing can be measured.

    Compiled code is measured only of shapes that train long enough for the measurement itself, which has to compile.
    """

    def trials(compiled: bool) -> list[Trial]:
        of_each = []
        for variant in variants:
            values = {PRECISION: precision, COMPILE: compiled and not variant.config.runs_own_code}
            of_each.append({path: values[path] for path in variant.autos if path in values})
        return [context.resolve(variant.with_values(each)) for variant, each in zip(variants, of_each, strict=True)]

    at_once = min(forecast.slots(variant.config, context.capacity) for variant in variants)
    seconds = _measured(trials(False), at_once, context) if context.measure and at_once else None
    if seconds is None or math.inf in seconds:
        return None
    fastest, compiled = [_Fastest(each, False, each) for each in seconds], trials(True)
    of_shape: defaultdict[str, float] = defaultdict(float)
    for trial, each in zip(compiled, seconds, strict=True):
        of_shape[forecast.shape_key(trial, at_once)] += each / at_once
    worth = [
        index
        for index, trial in enumerate(compiled)
        if trial.config.resources.compile and of_shape[forecast.shape_key(trial, at_once)] > 10 * COMPILE_SECONDS
    ]
    for index, each in zip(worth, _measured([compiled[i] for i in worth], at_once, context) or [], strict=False):
        fastest[index] = min(fastest[index], _Fastest(each, True, seconds[index]))
    return fastest


def _measured(trials: Sequence[Trial], at_once: int, context: PlanningContext) -> list[float] | None:
    """`forecast.trial_seconds`; None where that fails, which the plan says when it comes to its own forecast."""
    try:
        return forecast.trial_seconds(trials, at_once, context.notify, busy=context.busy)
    except ForecastError:
        return None


TUNED = ("train.lr", "train.batch_tokens", "train.weight_decay")


def choose_settings(variants: Sequence[Variant], context: PlanningContext) -> list[Mapping[str, AutoValue]]:
    """The best settings of each size, by the laws that `fit` left in the results, or by a rule. ConfigError without."""
    from tinyscale.analysis.auto_settings import best_settings, tuning_laws  # with scipy

    laws = tuning_laws(context.results)
    chosen: list[Mapping[str, AutoValue]] = []
    for variant in variants:
        open_ = [path.removeprefix("train.") for path in TUNED if path in variant.autos]
        try:
            trial = context.resolve(variant)
            found = best_settings(trial, open_, laws)
        except FitError as error:
            paths = [f"train.{name}" for name in open_]
            raise ConfigError(f"{variant.where(*paths)}: {' and '.join(paths)} = 'auto': {error}") from error
        n = float(trial.parameters.n_non_embedding)
        chosen.append({f"train.{name}": AutoValue(*each, n) for name, each in found.items()})
    return chosen


FASTER = 1.05  # all trials of a device together, for twice as many on it to be worth it


def choose_share(variants: Sequence[Variant], context: PlanningContext) -> list[Mapping[str, AutoValue]]:
    """For each trial the share of a GPU that its memory needs, and more of it where sharing makes nothing faster.

    It is of the machine, not of the sweep: each plan chooses anew.
    """
    gpu_bytes = context.capacity.gpu_bytes
    if not context.capacity.gpus and not context.capacity.grows:
        return [{SHARE: AutoValue(0.0, "there is no GPU")} for _ in variants]
    if gpu_bytes is None:
        return [{SHARE: AutoValue(1.0, "the memory of the GPUs is not known here")} for _ in variants]
    trials = [context.resolve(variant) for variant in variants]
    by_memory = [_share_by_memory(trial, gpu_bytes) for trial in trials]
    by_speed = _shares_by_speed(trials, by_memory, context) if context.measure and this_machine().gpus else by_memory
    return [
        {SHARE: AutoValue(fast, "as its memory needs" if fast == least else "more side by side would be no faster")}
        for least, fast in zip(by_memory, by_speed, strict=True)
    ]


def _share_by_memory(trial: Trial, gpu_bytes: float) -> float:
    """Workers that share a trial take a GPU each, and so does what is forecast not to fit: it may, and says if not."""
    if trial.config.resources.workers > 1:
        return 1.0
    return smallest_share(HEADROOM * trial.memory_bytes, gpu_bytes) or 1.0


def _shares_by_speed(trials: Sequence[Trial], least: Sequence[float], context: PlanningContext) -> list[float]:
    """Halve each trial's share down to its least for as long as a device full of them does more per second.

    No share is so small that there are not cores for as many trials.
    """
    shares, rates = [1.0] * len(trials), [0.0] * len(trials)
    share, halving, here = 1.0, list(range(len(trials))), this_machine().gpus

    def has_cores(trial: Trial, share: float) -> bool:
        there = context.capacity
        return there.grows or there.gpus / share * trial.config.resources.cpu <= there.cpus

    while halving:
        seconds = _measured([trials[i].with_share(share) for i in halving], round(here / share), context)
        if seconds is None:
            return list(least)
        faster = [(i, 1 / share / each) for i, each in zip(halving, seconds, strict=True)]
        faster = [(i, rate) for i, rate in faster if rate > FASTER * rates[i]]
        for i, rate in faster:
            shares[i], rates[i] = share, rate
        share /= 2
        halving = [i for i, _ in faster if least[i] <= share and has_cores(trials[i], share)]
    return shares


# Which fields a chooser fills in; later choosers see what the earlier ones chose.
CHOOSERS: Sequence[tuple[frozenset[str], Chooser]] = (
    (frozenset(TUNED), choose_settings),
    (frozenset({SHARE}), choose_share),
    (frozenset({PRECISION, COMPILE}), choose_speed),
)
