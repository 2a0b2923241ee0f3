"""The search that tunes a sweep: shorter trials of some of its sizes, each at several learning rates.

The law of the best rate that `fit` takes from them is what the sweep's `train.lr: auto` then follows. A search costs a
share of the sweep, so the trials that it trains are smaller: as near to the sweep's own sizes as that share pays for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import pandas as pd

from tinyscale.errors import ConfigError
from tinyscale.planning.make_plan import FEW_STEPS
from tinyscale.planning.plan import Plan, PlannedTrial
from tinyscale.spec.cell import Cell
from tinyscale.spec.grid import Variant
from tinyscale.spec.sweep import Sweep

RATE = "train.lr"
SUFFIX = "-tune"
LEAST_SIZES = 3  # that a law of the best rate needs
RATES, STEP = 5, 2.0  # per size, and the factor between two
MOST_RATES = 11  # beyond, a size has no best rate
SHARES = (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64)  # of a trial's tokens that the longer of a search reads


@dataclass(frozen=True)
class _Size:
    """A size that a search trains: one of the sweep's trials on fewer tokens."""

    planned: PlannedTrial
    tokens: int

    @property
    def flops(self) -> float:
        return RATES * self.tokens * self.planned.trial.flops_per_token["flops"]


def tuning_of(plan: Plan, budget: float) -> Sweep:
    """The search for the trials of a plan that leave their learning rate open, one arm after another.

    budget: the share of the trials' FLOPs that the search may cost. ConfigError where no trial leaves its rate open, or
    the budget pays for no search.
    """
    if plan.sweep.search:
        raise ConfigError(f"{plan.sweep.path}: the sweep is a search already; launch it, then run tinyscale fit")
    arms: dict[str, list[PlannedTrial]] = {}
    for planned in plan.trials:
        if RATE in planned.auto_values:
            arms.setdefault(planned.cell.arm, []).append(planned)
    if not arms:
        raise ConfigError(f"{plan.sweep.path}: every trial has a learning rate already; write train.lr: auto")
    sizes = [size for trials in arms.values() for size in _sizes(trials, budget)]
    return _sweep(plan.sweep, [_variant(size, rate) for size in sizes for rate in _rates(size.planned)])


def with_more_rates(plan: Plan, points: pd.DataFrame) -> Sweep | None:
    """The plan's search with rates beyond those of the sizes whose lowest or highest rate did best; None without such.

    points: of the results, of which a trial's last is its loss. A trial that has none diverged.
    """
    last = points.groupby("trial")["val_loss"].last()
    by_size: dict[str, list[PlannedTrial]] = {}
    for planned in plan.trials:
        by_size.setdefault(planned.cell.without(["lr"]).key, []).append(planned)
    more = []
    for trials in by_size.values():
        trials.sort(key=_rate)
        losses = [_finite(last.get(planned.trial.identity)) for planned in trials]
        best = losses.index(min(losses))
        beyond = {0: 1 / STEP, len(trials) - 1: STEP}.get(best)
        if beyond is not None and math.isfinite(losses[best]) and len(trials) < MOST_RATES:
            size = _Size(trials[best], trials[best].trial.tokens)
            more += [_variant(size, _rate(trials[best]) * beyond**number) for number in (1, 2)]
    return _sweep(plan.sweep, [*plan.sweep.variants, *more]) if more else None


def _finite(loss: float | None) -> float:
    return math.inf if loss is None or not math.isfinite(loss) else float(loss)


def _sweep(of: Sweep, variants: Sequence[Variant]) -> Sweep:
    """A sweep of these variants, named after the sweep that it is for."""
    return Sweep(
        name=f"{of.name.removesuffix(SUFFIX)[: 80 - len(SUFFIX)]}{SUFFIX}",
        title=f"Best learning rates for {of.name.removesuffix(SUFFIX)}",
        path=of.path,
        source=of.source,
        axes=tuple(dict.fromkeys(name for variant in variants for name in variant.cell.axes)),
        variants=tuple(variants),
        teachers=of.teachers,
    )


def _sizes(trials: Sequence[PlannedTrial], budget: float) -> list[_Size]:
    """Up to three sizes of an arm, each on two token counts where the budget allows; of those, the nearest to all."""
    total = budget * sum(planned.trial.flops for planned in trials)
    longest: dict[int, PlannedTrial] = {}
    for planned in sorted(trials, key=lambda each: -each.trial.tokens):
        longest.setdefault(_n(planned), planned)
    by_n = [longest[n] for n in sorted(longest)]
    found: list[tuple[float, list[_Size]]] = []
    for top, share, shorter in product(range(len(by_n)), SHARES, ((1, 4, 16), (1, 4), (1,))):
        chosen = [by_n[index] for index in sorted({0, top // 2, top})]
        sizes = [_Size(planned, _tokens(planned, share / less)) for planned in chosen for less in shorter]
        enough = all(size.tokens >= FEW_STEPS * size.planned.trial.config.train.batch_tokens for size in sizes)
        if enough and len(sizes) >= LEAST_SIZES and sum(size.flops for size in sizes) <= total:
            beyond = _n(by_n[-1]) / _n(chosen[-1]) / share
            found.append((beyond if len(shorter) > 1 else 2 * beyond, sizes))
    if not found:
        raise ConfigError(
            f"a budget of {budget:.0%} pays for no search of the learning rate: it needs {LEAST_SIZES} sizes, each at "
            f"{RATES} rates and for {FEW_STEPS} steps; raise --budget, or lower train.batch_tokens"
        )
    return min(found, key=lambda each: (each[0], len(each[1])))[1]


def _n(planned: PlannedTrial) -> int:
    return planned.trial.parameters.n_non_embedding


def _tokens(planned: PlannedTrial, share: float) -> int:
    """A share of the trial's tokens, in whole steps."""
    return max(round(planned.trial.steps * share), 1) * planned.trial.config.train.batch_tokens


def _rates(planned: PlannedTrial) -> list[float]:
    """Rates about the one that planning chose; those of all sizes lie on one grid."""
    middle = round(math.log(_rate(planned), STEP))
    return [STEP ** (middle + number) for number in range(-(RATES // 2), RATES // 2 + 1)]


def _rate(planned: PlannedTrial) -> float:
    return planned.trial.config.train.lr


def _variant(size: _Size, rate: float) -> Variant:
    """The trial of one size at one rate, in three digits, evaluated at its end."""
    values = {"train.lr": float(f"{rate:.3g}"), "train.tokens_budget": size.tokens}
    config = size.planned.trial.config.with_values({**values, "train.eval_points": 1, "train.branches": ()})
    axes = {**size.planned.cell.axes, "tokens_budget": size.tokens, "lr": values["train.lr"]}
    without = {name: value for name, value in axes.items() if name not in ("tokens_per_param", "flops_budget")}
    return Variant(config, Cell(size.planned.cell.arm, without, config.seed))
