"""`launch --until-settled`: seeds added one by one until each arm is settled against the base, or there are enough."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

from tinyscale.analysis.compare import Contrast
from tinyscale.analysis.group_fits import Refusal
from tinyscale.analysis.power import LEVEL
from tinyscale.analysis.runs import read_groups
from tinyscale.analysis.study import contrasts_of
from tinyscale.errors import ConfigError, FitError
from tinyscale.formatting import plural
from tinyscale.results.store import Results
from tinyscale.spec.grid import Variant
from tinyscale.spec.sweep import Sweep


@dataclass(frozen=True)
class Look:
    """What the results say after a round. following: the sweep with one more seed; None: no round follows."""

    said: tuple[str, ...]
    following: Sweep | None


def refuse_rounds(sweep: Sweep, most: int) -> None:
    """ConfigError for a sweep whose arms more seeds cannot settle."""
    arms, seeds = ({getattr(variant.cell, name) for variant in sweep.variants} for name in ("arm", "seed"))
    if sweep.search:
        raise ConfigError(f"{sweep.path}: --until-settled compares arms, and what a search samples is not compared")
    if len(arms) < 2:
        raise ConfigError(f"{sweep.path}: --until-settled compares arms, and there is one; give the sweep two or more")
    if len(seeds) > most:
        raise ConfigError(
            f"{sweep.path}: has {plural(len(seeds), 'seed')} already; --until-settled takes a larger number"
        )


def look(sweep: Sweep, results: Results, most: int) -> Look:
    """The state of each arm by the results of the sweep, and the next round if one is open and `most` seeds allow it.

    FitError when its arms do not compare.
    """
    seeds = {variant.cell.seed for variant in sweep.variants}
    found = list(contrasts_of([group for group in read_groups(results.location) if group.sweep == sweep.name]))
    contrasts = [each for each in found if isinstance(each, Contrast)]
    refused = [each.reason for each in found if isinstance(each, Refusal)]
    if not contrasts and len(seeds) > 1:
        raise FitError("\n".join(refused or [f"{sweep.name}: its arms do not compare: they vary in more than size"]))
    said = [f"{plural(len(seeds), 'seed')}: {_state(each)}" for each in contrasts]
    if all(each.settled for each in contrasts) and contrasts:
        return Look((*said, *refused, "all arms are settled"), None)
    if len(seeds) >= most:
        return Look((*said, *refused, f"{plural(most, 'seed')} are trained, and not all arms are settled"), None)
    return Look((*said, *refused), with_next_seed(sweep))


def _state(each: Contrast) -> str:
    """One arm in words."""
    mean = each.difference.value
    where = (
        f"{'ahead of' if mean < 0 else 'behind'} {each.base} by {abs(mean):.4f} {each.unit} in the mean of these sizes"
    )
    state = f"{'settled' if each.settled else 'not settled'} (evidence {each.evidence:.3g} of {1 / LEVEL:.0f})"
    return f"{each.arm} is {where}, {state}"


def with_next_seed(sweep: Sweep) -> Sweep:
    """The sweep as its file would make it with the next integer as one more seed."""
    seed = max(variant.cell.seed for variant in sweep.variants) + 1

    def grown(variants: list[Variant]) -> list[Variant]:
        last = variants[-1]
        config = last.config.with_values({"seed": seed})
        return [*variants, replace(last, config=config, cell=replace(last.cell, seed=seed))]

    cells = [list(cell) for _, cell in groupby(sweep.variants, lambda variant: variant.cell.key_of_seeds)]
    return replace(sweep, variants=tuple(variant for cell in cells for variant in grown(cell)))
