"""Values that a sweep leaves open (`auto`), settled when it is planned.

What the first plan that was launched chose is kept with the sweep and chosen again, so that a sweep goes on as it began
whatever has been measured or fitted since.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tinyscale import forecast
from tinyscale.errors import ConfigError, FitError
from tinyscale.results import Results
from tinyscale.sweep import Variant
from tinyscale.trial import Trial


@dataclass(frozen=True)
class Choice:
    """A value for a field that was open, and where it comes from, in words; no words: nothing to tell."""

    value: Any
    why: str


@dataclass(frozen=True)
class Settled:
    """A variant with nothing left open, and what was chosen for it: field -> choice."""

    variant: Variant
    choices: Mapping[str, Choice] = field(default_factory=dict)

    def take(self, choices: Mapping[str, Choice]) -> Settled:
        """Fill in those of the choices that are open."""
        taken = {path: choice for path, choice in choices.items() if path in self.variant.autos}
        if not taken:
            return self
        variant = self.variant.settled({path: choice.value for path, choice in taken.items()})
        return replace(self, variant=variant, choices={**self.choices, **taken})


@dataclass(frozen=True)
class Means:
    """What choosers may look at.

    resolve: a variant as a trial, with what is still open at a stand-in value. before: for each variant of the sweep,
    the values that it was launched with. measure: whether a chooser may measure this machine's speed.
    """

    results: Results
    resolve: Callable[[Variant], Trial]
    before: Sequence[Mapping[str, Any]]
    cpus: float
    gpus: float
    measure: bool


# Chooses for variants of which at least one field is open; it may name more fields than are.
Chooser = Callable[[Sequence[Variant], Means], Sequence[Mapping[str, Choice]]]


def settle(variants: Sequence[Variant], means: Means) -> list[Settled]:
    """Settle each variant of a sweep."""
    again = "as when the sweep was first launched"
    settled = [
        Settled(variant).take({path: Choice(value, again) for path, value in known.items()})
        for variant, known in zip(variants, means.before, strict=True)
    ]
    for paths, choose in CHOOSERS:
        open_ = [index for index, each in enumerate(settled) if paths & set(each.variant.autos)]
        if open_:
            chosen = choose([settled[index].variant for index in open_], means)
            for index, choices in zip(open_, chosen, strict=True):
                settled[index] = settled[index].take(choices)
    assert not any(each.variant.autos for each in settled), "every field that may be auto has a chooser"
    return settled


def settled_notes(choices: Sequence[Mapping[str, Choice]]) -> list[str]:
    """What was chosen, a line for each field, value and reason."""
    counted = Counter((path, choice) for each in choices for path, choice in each.items())
    return [
        f"{path} auto is {choice.value} for {number} of {len(choices)} trials: {choice.why}"
        for (path, choice), number in counted.items()
        if choice.why
    ]


PRECISION, COMPILE = "train.precision", "resources.compile"
COMPILE_SECONDS = 30.0  # to compile a shape for the first time, roughly; later processes find it in the cache


def choose_speed(variants: Sequence[Variant], means: Means) -> list[Mapping[str, Choice]]:
    """The precision in which the whole sweep takes least time, and for each trial whether compiling saves any."""
    former = {values[PRECISION] for values in means.before if PRECISION in values}
    gpu = any(variant.config.resources.gpu for variant in variants)
    asked = former or {"bf16", "fp32"} if any(PRECISION in variant.autos for variant in variants) else {"as set"}
    measured = {precision: fastest for precision in sorted(asked) if (fastest := _fastest(variants, precision, means))}
    if not measured:
        precision = Choice(min(former, default="bf16" if gpu else "fp32"), "not measured here")
        return [{PRECISION: precision, COMPILE: Choice(False, "")} for _ in variants]
    totals = {precision: sum(seconds for seconds, _ in fastest) for precision, fastest in measured.items()}
    best = min(totals, key=totals.__getitem__)
    others = [f"{totals[other] / totals[best]:.2f} times as long in {other}" for other in totals if other != best]
    precision = Choice(best, f"the sweep takes {', '.join(others)}" if others else "as the rest of the sweep")
    compiled = {True: Choice(True, "saves more time than it costs"), False: Choice(False, "")}
    return [{PRECISION: precision, COMPILE: compiled[compile_]} for _, compile_ in measured[best]]


def _fastest(variants: Sequence[Variant], precision: str, means: Means) -> list[tuple[float, bool]] | None:
    """Seconds of each variant in a precision, and whether that is compiled; None where nothing can be measured.

    Compiled code is measured only of shapes that train long enough for the measurement itself, which has to compile.
    """

    def trials(compiled: bool) -> list[Trial]:
        values = {PRECISION: precision, COMPILE: compiled}
        return [means.resolve(v.settled({path: values[path] for path in v.autos if path in values})) for v in variants]

    eager, compiled = trials(False), trials(True)
    at_once = min(forecast.slots(trial.config, means.cpus, means.gpus) for trial in eager)
    seconds = forecast.trial_seconds(eager, at_once) if means.measure and at_once else None
    if seconds is None:
        return None
    fastest = [(each, False) for each in seconds]
    of_shape: defaultdict[str, float] = defaultdict(float)
    for trial, each in zip(compiled, seconds, strict=True):
        of_shape[forecast.shape_key(trial, at_once)] += each / at_once
    worth = [
        index
        for index, trial in enumerate(compiled)
        if trial.config.resources.compile and of_shape[forecast.shape_key(trial, at_once)] > 10 * COMPILE_SECONDS
    ]
    for index, each in zip(worth, forecast.trial_seconds([compiled[i] for i in worth], at_once) or [], strict=False):
        fastest[index] = min(fastest[index], (each, True))
    return fastest


RATE = "train.lr"


def choose_rate(variants: Sequence[Variant], means: Means) -> list[Mapping[str, Choice]]:
    """The best learning rate of each size, by a law that `fit` left in the results. ConfigError when there is none."""
    from tinyscale.fitting.rate import best_rate, rate_laws  # with scipy

    laws = rate_laws(means.results)
    chosen: list[Mapping[str, Choice]] = []
    for variant in variants:
        try:
            chosen.append({RATE: Choice(*best_rate(means.resolve(variant), laws))})
        except FitError as error:
            raise ConfigError(f"{variant.where(RATE)}: train.lr = 'auto': {error}") from error
    return chosen


# Which fields a chooser can settle; later choosers see what the earlier ones chose.
CHOOSERS: Sequence[tuple[frozenset[str], Chooser]] = (
    (frozenset({PRECISION, COMPILE}), choose_speed),
    (frozenset({RATE}), choose_rate),
)
