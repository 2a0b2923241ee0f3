"""What is known of a search's trials when it is planned: those drawn before, and stand-ins for those to come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tinyscale.planning.auto import Settled
from tinyscale.results.store import SweepEntry
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
    recorded: Sequence[SweepEntry],
    resolve: Callable[[Variant], Trial],
    *,
    whole: bool,
) -> Draws:
    """Place the trials of the sweep's record in the groups of the sweep, and say how many are still to draw.

    settled: a variant for each cell and seed; recorded: the entries of the sweep's record; whole: the sweep is not a
    selection, so that what is recorded of other cells is no longer part of it.
    """
    cells: dict[str, list[Settled]] = {}
    for each in settled:
        cells.setdefault(each.variant.cell.key_of_seeds, []).append(each)
    found: list[tuple[Settled, Draw]] = []
    of_cell: dict[str, list[SweepEntry]] = {}
    for entry in recorded:
        of_cell.setdefault(entry.cell.without(search.names).key_of_seeds, []).append(entry)
    elsewhere = {entry.trial for cell, entries in of_cell.items() if cell not in cells for entry in entries}
    for cell, turns in cells.items():
        middle = turns[0].variant
        study = " ".join(filter(None, [middle.cell.label_of_seeds, resolve(middle).identity[:8]]))
        drawn = list(_drawn_before(search, turns, of_cell.get(cell, []), resolve))
        found += [(each, Draw(study, number)) for number, each in enumerate(drawn)]
        for number in range(len(drawn), search.trials):
            each = turns[number % len(turns)]
            found.append((each, Draw(study, number, each.variant)))
    kept = {resolve(each.variant).identity for each, draw in found if draw.undrawn is None}
    kept |= set() if whole else elsewhere
    return Draws(tuple(found), frozenset(entry.trial for entry in recorded) - kept)


def with_values(variant: Variant, values: Mapping[str, Any]) -> Variant:
    """The variant with what was drawn, which stands among its axes."""
    axes = {path.rpartition(".")[2]: value for path, value in values.items()}
    cell = replace(variant.cell, axes={**variant.cell.axes, **axes})
    return replace(variant.with_values(values), cell=cell)


def _drawn_before(
    search: Search, turns: Sequence[Settled], recorded: Sequence[SweepEntry], resolve: Callable[[Variant], Trial]
) -> Iterator[Settled]:
    """Of the trials recorded of a cell, those that its search would train alike today."""
    by_seed = {each.variant.cell.seed: each for each in turns}
    for entry in recorded:
        each, values = by_seed.get(entry.cell.seed), search.drawn(entry.cell.axes)
        if each is not None and values is not None:
            drawn = replace(each, variant=with_values(each.variant, values))
            if resolve(drawn.variant).identity == entry.trial:
                yield drawn
