"""What is known of a search's trials when it is planned: those sampled before, and placeholders for those to come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tinyscale.planning.auto import Filled
from tinyscale.results.sweep_record import SweepEntry
from tinyscale.spec.grid import Variant
from tinyscale.spec.search_space import Search
from tinyscale.spec.trial import Trial


@dataclass(frozen=True)
class Sample:
    """Which sample of its study a trial is.

    study: its name, which changes with whatever the trials of the study share. number: how many were sampled before.
    template: for a placeholder, the variant that will receive the sampled values.
    """

    study: str
    number: int
    template: Variant | None = None


@dataclass(frozen=True)
class Samples:
    """The variants of all studies, in the order sampled; placeholders hold the middle of what may be sampled.

    stale: trials of the sweep's record that this search would not have sampled.
    """

    variants: tuple[tuple[Filled, Sample | None], ...]
    stale: frozenset[str]


def known_samples(
    search: Search,
    filled: Sequence[Filled],
    recorded: Sequence[SweepEntry],
    resolve: Callable[[Variant], Trial],
    *,
    whole: bool,
) -> Samples:
    """The recorded trials of each study, then placeholders for those that are still to be sampled.

    filled: a variant for each cell and seed. recorded: the entries of the sweep's record. whole: the sweep is not a
    selection, so that what is recorded of other cells is no longer part of it.
    """
    by_cell: dict[str, list[Filled]] = {}
    for each in filled:
        by_cell.setdefault(each.variant.cell.key_of_seeds, []).append(each)
    recorded_of: dict[str, list[SweepEntry]] = {}
    for entry in recorded:
        recorded_of.setdefault(entry.cell.without(search.names).key_of_seeds, []).append(entry)
    elsewhere = {entry.trial for cell, entries in recorded_of.items() if cell not in by_cell for entry in entries}
    found: list[tuple[Filled, Sample]] = []
    for cell, seeds in by_cell.items():
        middle = seeds[0].variant
        study = " ".join(filter(None, [middle.cell.label_of_seeds, resolve(middle).identity[:8]]))
        sampled = list(_sampled_before(search, seeds, recorded_of.get(cell, []), resolve))
        found += [(each, Sample(study, number)) for number, each in enumerate(sampled)]
        for number in range(len(sampled), search.trials):
            each = seeds[number % len(seeds)]
            found.append((each, Sample(study, number, template=each.variant)))
    kept = {resolve(each.variant).identity for each, sample in found if sample.template is None}
    kept |= set() if whole else elsewhere
    return Samples(tuple(found), frozenset(entry.trial for entry in recorded) - kept)


def with_sample(variant: Variant, values: Mapping[str, Any]) -> Variant:
    """The variant with sampled values, field -> value, which its cell then counts among its axes."""
    axes = {path.rpartition(".")[2]: value for path, value in values.items()}
    cell = replace(variant.cell, axes={**variant.cell.axes, **axes})
    return replace(variant.with_values(values), cell=cell)


def _sampled_before(
    search: Search, seeds: Sequence[Filled], recorded: Sequence[SweepEntry], resolve: Callable[[Variant], Trial]
) -> Iterator[Filled]:
    """Of the trials recorded of a cell, those that its search would train alike today."""
    by_seed = {each.variant.cell.seed: each for each in seeds}
    for entry in recorded:
        each, values = by_seed.get(entry.cell.seed), search.sampled(entry.cell.axes)
        if each is not None and values is not None:
            sampled = replace(each, variant=with_sample(each.variant, values))
            if resolve(sampled.variant).identity == entry.trial:
                yield sampled
