"""What is known of a search's trials when it is planned: those drawn before, and stand-ins for those to come."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tinyscale.planning.auto import Settled
from tinyscale.spec.search_space import Search
from tinyscale.spec.sweep import Variant
from tinyscale.spec.trial import Trial


@dataclass(frozen=True)
class Draw:
    """A trial's place in its group's study.

    study: its name, which changes with whatever the group's trials share; number: how many were drawn before it;
    undrawn: of a stand-in, what the values that will be drawn are to be filled into.
    """

    study: str
    number: int
    undrawn: Variant | None = None


@dataclass(frozen=True)
class Draws:
    """The variants of all groups, each group's in the order drawn; stand-ins hold the middle of what may be drawn.

    stale: trials of the sweep's record that this search would not have drawn.
    """

    variants: tuple[tuple[Settled, Draw | None], ...]
    stale: frozenset[str]


def known_draws(
    search: Search,
    settled: Sequence[Settled],
    recorded: Sequence[Mapping[str, Any]],
    resolve: Callable[[Variant], Trial],
    *,
    whole: bool,
) -> Draws:
    """Place the trials of the sweep's record in the groups of the sweep, and say how many are still to draw.

    settled: a variant for each cell and seed; recorded: the groups of the sweep's record; whole: the sweep is not a
    selection, so that what is recorded of other cells is no longer part of it.
    """
    cells: dict[str, list[Settled]] = {}
    for each in settled:
        cells.setdefault(_cell(each.variant.arm, each.variant.axes), []).append(each)
    found: list[tuple[Settled, Draw]] = []
    elsewhere = {group["trial"] for group in recorded if _cell(group["arm"], search.cell(group["axes"])) not in cells}
    for cell, turns in cells.items():
        middle = turns[0].variant
        words = [f"{name}={value}" for name, value in middle.axes.items()]
        study = " ".join([*([middle.arm] if middle.arm != "base" else []), *words, resolve(middle).identity[:8]])
        mine = [group for group in recorded if _cell(group["arm"], search.cell(group["axes"])) == cell]
        drawn = list(_drawn_before(search, turns, mine, resolve))
        found += [(each, Draw(study, number)) for number, each in enumerate(drawn)]
        for number in range(len(drawn), search.trials):
            each = turns[number % len(turns)]
            found.append((each, Draw(study, number, each.variant)))
    kept = {resolve(each.variant).identity for each, draw in found if draw.undrawn is None}
    kept |= set() if whole else elsewhere
    return Draws(tuple(found), frozenset(str(group["trial"]) for group in recorded) - kept)


def with_values(variant: Variant, values: Mapping[str, Any]) -> Variant:
    """The variant with what was drawn, which stands among its axes."""
    axes = {path.rpartition(".")[2]: value for path, value in values.items()}
    return replace(variant.settled(values), axes={**variant.axes, **axes})


def _drawn_before(
    search: Search, turns: Sequence[Settled], recorded: Sequence[Mapping[str, Any]], resolve: Callable[[Variant], Trial]
) -> Iterator[Settled]:
    """Of the trials recorded of a cell, those that its search would train alike today."""
    by_seed = {each.variant.config.seed: each for each in turns}
    for group in recorded:
        each, values = by_seed.get(group["seed"]), search.drawn(group["axes"])
        if each is not None and values is not None:
            drawn = replace(each, variant=with_values(each.variant, values))
            if resolve(drawn.variant).identity == group["trial"]:
                yield drawn


def _cell(arm: str, axes: Mapping[str, Any]) -> str:
    return json.dumps([arm, axes], sort_keys=True)
