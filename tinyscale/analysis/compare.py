"""Does an arm of a sweep differ from its base, by how much, and what is that worth in parameters, data and compute?

Pairs of the same size, tokens (else FLOPs) and seed, so that what they share cancels; then one law for both arms
(efficiency.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import special, stats

from tinyscale.analysis.efficiency import MATCH, efficiency_of
from tinyscale.analysis.multipliers import Multiplier, multipliers_of
from tinyscale.analysis.power import LEVEL, MOST, evidence, more_needed
from tinyscale.analysis.runs import Group
from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Index
from tinyscale.fitting.estimate import Estimate, estimates_json
from tinyscale.fitting.points import COLUMNS, group_sizes
from tinyscale.fitting.uncertainty import LACK_OF_FIT_LEVEL
from tinyscale.formatting import compact, plural
from tinyscale.spec.cell import DEFAULT_ARM

LEAST_SAMPLE = 4  # sizes from which on they can be a sample of sizes
SAME_LENGTH = 0.05  # numbers of tokens whose logarithms differ by less are one: whole steps do not hit one exactly

_Test = tuple[float, float, float, int]  # mean, its standard error, p, degrees of freedom


@dataclass(frozen=True)
class Contrast:
    """One arm against the base.

    difference: arm minus base in `unit`, mean over pairs, its interval corrected for the number of arms; p: by Holm;
    by_size: size -> mean difference; efficiency: rho_N, rho_D and compute by the shared law, empty where it could not
    be fitted (then `efficiency_refused` says why); verdict: one sentence; multipliers: compute multiplier by size, by
    kind; more_seeds, more_sizes: how many would settle a difference whose interval holds zero, if it is the one seen
    (both None: it is settled, changes with size, or MOST would not do); evidence: e-value, corrected for the number of
    arms.
    """

    sweep: str
    arm: str
    base: str
    unit: str
    pairs: int
    difference: Estimate
    p: float
    by_size: Mapping[str, float]
    efficiency: Mapping[str, Estimate]
    efficiency_refused: str
    verdict: str
    multipliers: Mapping[str, Multiplier] = field(default_factory=dict)
    more_seeds: int | None = None
    more_sizes: int | None = None
    evidence: float = 1.0

    @property
    def settled(self) -> bool:
        """Whether the difference is shown, however often it was looked at while seeds were added."""
        return self.evidence >= 1 / LEVEL

    def as_json(self) -> dict[str, Any]:
        """Plain values; an open end is null."""
        ends = dict(zip(("difference", "low", "high"), vars(self.difference).values(), strict=True))
        values = {**vars(self), "by_size": dict(self.by_size), "efficiency": estimates_json(self.efficiency)}
        values["multipliers"] = {kind: each.as_json() for kind, each in self.multipliers.items()}
        parts = [ends if name == "difference" else {name: value} for name, value in values.items()]
        return {name: value for part in parts for name, value in part.items()}


def base_of(groups: Sequence[Group]) -> Group:
    """What a sweep's arms are compared with: the arm called base, or the first."""
    return next((group for group in groups if group.arm == DEFAULT_ARM), groups[0])


def compare_arms(groups: Sequence[Group]) -> list[Contrast]:
    """Every arm of one sweep against its base, the best first. FitError when no runs pair."""
    reference = base_of(groups)
    others = [group for group in groups if group is not reference]
    unit, column = "nats per token", COLUMNS["loss"]
    if pd.concat([group.frame for group in groups]).get("tokenizer_hash", pd.Series(dtype=str)).nunique() > 1:
        unit, column = "bits per byte", "bits_per_byte"  # losses per token of different tokenizers do not compare
    paired = {group.arm: _pairs(reference, group, column) for group in others}
    raw = {arm: _mean_test(pairs) for arm, pairs in paired.items()}
    corrected = dict(zip(raw, _holm([test[2] for test in raw.values()]), strict=True))
    contrasts = [
        _contrast(reference, group, paired[group.arm], raw[group.arm], corrected[group.arm], len(others), unit, column)
        for group in others
    ]
    return sorted(contrasts, key=lambda each: each.difference.value)


def _contrast(
    base: Group, arm: Group, pairs: pd.DataFrame, test: _Test, p: float, arms: int, unit: str, column: str
) -> Contrast:
    """What is said of one arm of so many. p: that of the test, corrected."""
    mean, sd, _, dof = test
    difference = Estimate.around(mean, float(special.stdtrit(dof, 1 - LEVEL / 2 / arms)) * sd)
    efficiency, refused = efficiency_of(base.frame, arm.frame, column)
    verdict, more, by = _verdict(arm.arm, base.arm, difference, unit, efficiency), None, _unit_of_more(pairs)
    trend = _changes_with_size(pairs, LEVEL / arms)
    if difference.holds_zero and trend:
        verdict = f"{arm.arm} against {base.arm} changes with size, {_ends(pairs, f' {unit}', LEVEL / arms)}"
    elif difference.holds_zero:
        count = pairs["n"].nunique() if by == "sizes" else arm.frame["seed"].nunique()
        more = more_needed(mean / sd, count, dof, level=LEVEL / arms)
        verdict += _needed(arm.arm, mean, more, by)
    elif trend:
        verdict += f"; it changes with size, {_ends(pairs, '', LEVEL / arms)}"
    return Contrast(
        sweep=arm.sweep,
        arm=arm.arm,
        base=base.arm,
        unit=unit,
        pairs=len(pairs),
        difference=difference,
        p=p,
        by_size={f"{n:.4g}": float(d) for n, d in pairs.groupby("n")["difference"].mean().items()},
        efficiency=efficiency,
        efficiency_refused=refused,
        verdict=verdict,
        multipliers=multipliers_of(_with_spent(base.frame), pairs, column),
        more_seeds=more if by == "seeds" else None,
        more_sizes=more if by == "sizes" else None,
        evidence=_evidence(pairs) / arms,
    )


def _pairs(base: Group, arm: Group, column: str) -> pd.DataFrame:
    """One row per pair: n of the base, difference, and what each spent. Pairs share size and seed; without common
    seeds, means of a size.

    They share the tokens, or the FLOPs where arms that spend these alike read other numbers of tokens.
    """
    frames = [_with_spent(group.frame).assign(side=side) for side, group in enumerate((base, arm))]
    both = pd.concat(frames, ignore_index=True)
    means = ["n", "value", "tokens", "flops", "seconds"]
    for spent in (name for name in (MATCH[1], COLUMNS["c"]) if name in base.frame or name in arm.frame):
        size, length = _sizes(both, spent)
        named = both.assign(size=size, length=length, n=both[MATCH[0]], value=both[column])
        first, second = (named[named["side"] == side] for side in (0, 1))
        for keys in (["size", "length", "seed"], ["size", "length"]):
            sides = [side.groupby(keys, as_index=False)[means].mean() for side in (first, second)]
            pairs = sides[0].merge(sides[1], on=keys, suffixes=("", "_arm"))
            if pairs["size"].nunique() >= 2:
                return pairs.assign(difference=pairs["value_arm"] - pairs["value"])
    raise FitError(
        f"{arm.sweep}: arms {base.arm} and {arm.arm} share fewer than 2 sizes of equal tokens or FLOPs, so nothing "
        "compares; launch both at the same sizes if they should"
    )


def _with_spent(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs with the FLOPs of each, 6 N D where the rows do not hold them, and seconds where they hold a speed."""
    held = pd.to_numeric(frame.get("flops", pd.Series(np.nan, frame.index)), errors="coerce")
    flops = held if (held > 0).all() else 6.0 * frame[MATCH[0]] * frame["tokens"]
    speed = pd.to_numeric(frame.get("tokens_per_second", pd.Series(np.nan, frame.index)), errors="coerce")
    return frame.assign(flops=flops, seconds=frame["tokens"] / speed)


def _sizes(both: pd.DataFrame, spent: str) -> tuple[Index, Index]:
    """Size and length (n,) of each run, alike in both arms where N and the column `spent` are.

    Arms that change N itself (as many sizes, none in common or each nearest to its like) are matched by rank, smallest
    to smallest, and so are their lengths.
    """
    n, d = (np.log(both[name].to_numpy(float)) for name in (MATCH[0], spent))
    size, length, second = group_sizes(n), group_sizes(d, SAME_LENGTH), both["side"].to_numpy() == 1
    ranks = [np.unique(size[second == s]) for s in (False, True)]
    if len(ranks[0]) != len(ranks[1]) or (ranks[0] == ranks[1]).all():
        return size, length
    mean = np.bincount(size, n) / np.bincount(size)
    distance = np.abs(mean[ranks[0]][:, None] - mean[ranks[1]])
    alike = all((distance.argmin(axis=axis) == np.arange(len(distance))).all() for axis in (0, 1))
    if not alike and set(ranks[0]) & set(ranks[1]):
        return size, length
    size = np.where(second, np.searchsorted(ranks[1], size), np.searchsorted(ranks[0], size))
    within = pd.DataFrame({"size": size, "second": second, "length": length}).groupby(["size", "second"])["length"]
    return size, within.rank(method="dense").to_numpy(np.intp)


def _mean_test(pairs: pd.DataFrame) -> _Test:
    """Mean difference, its standard error, two-sided p and degrees of freedom.

    Where the difference changes with size, the sizes are the sample. Fewer than four do not show how it scatters over
    sizes: then the mean is that of just these sizes, and the scatter that of their pairs.
    """
    values, number, sizes = pairs["difference"].to_numpy(float), len(pairs), pairs["n"].nunique()
    variance, dof = values.var(ddof=1), number - 1
    if number > sizes and _changes_with_size(pairs):
        between, within = _mean_squares(pairs)
        variance, dof = (between, sizes - 1) if sizes >= LEAST_SAMPLE else (within, number - sizes)
    sd = float(np.sqrt(max(variance / number, 1e-24)))
    p = float(2 * special.stdtr(dof, -abs(values.mean()) / sd))
    return float(values.mean()), sd, p, dof


def _unit_of_more(pairs: pd.DataFrame) -> Literal["seeds", "sizes"]:
    """What has to be added to narrow the interval of the mean difference: what it takes for its sample."""
    of_sizes = pairs["n"].nunique() >= LEAST_SAMPLE and _changes_with_size(pairs)
    return "sizes" if of_sizes else "seeds"


def _evidence(pairs: pd.DataFrame) -> float:
    """The e-value of a mean difference of just these sizes, by the scatter of the pairs of each."""
    number, dof = len(pairs), len(pairs) - pairs["n"].nunique()
    if dof == 0 or pairs["n"].nunique() < 2:
        return 1.0
    sd = np.sqrt(max(_mean_squares(pairs)[1] / number, 1e-24))
    return float(evidence(np.array(pairs["difference"].mean() / sd), np.array(number), np.array(dof)))


def _changes_with_size(pairs: pd.DataFrame, level: float = LACK_OF_FIT_LEVEL) -> bool:
    """Whether the differences of sizes scatter more than those of pairs of one size do.

    Of one pair a size, whether they follow a line in log N. level: the chance to say so where they do not.
    """
    sizes, number = pairs["n"].nunique(), len(pairs)
    if sizes == number:
        return sizes >= LEAST_SAMPLE and bool(_line(pairs).pvalue < level)
    if sizes < 2:
        return False
    between, within = _mean_squares(pairs)
    return bool(special.fdtrc(sizes - 1, number - sizes, between / max(within, 1e-300)) < level)


def _line(pairs: pd.DataFrame) -> Any:
    """scipy's regression of the difference on log N."""
    return stats.linregress(np.log(pairs["n"]), pairs["difference"])


def _mean_squares(pairs: pd.DataFrame) -> tuple[float, float]:
    """Mean squares of the differences between sizes and within them."""
    difference, of_size = pairs["difference"], pairs.groupby("n")["difference"].transform("mean")
    sizes = pairs["n"].nunique()
    between = float(((of_size - difference.mean()) ** 2).sum()) / (sizes - 1)
    return between, float(((difference - of_size) ** 2).sum()) / (len(pairs) - sizes)


def _holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, step down. Holm 1979."""
    order = np.argsort(values)
    stepped = np.array(values)[order] * np.arange(len(values), 0, -1)
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return corrected.tolist()


def _verdict(arm: str, base: str, difference: Estimate, unit: str, efficiency: Mapping[str, Estimate]) -> str:
    mean, (near, far) = difference.value, sorted(map(abs, difference.ends))
    if difference.holds_zero:
        return (
            f"no difference seen at this noise: {arm} against {base} is {mean:+.4f} {unit}, "
            f"and less than {far:.4f} either way"
        )
    text = (
        f"{arm} is {'better' if mean < 0 else 'worse'} than {base} by {abs(mean):.4f} {unit} ({near:.4f} to {far:.4f})"
    )
    if "compute" in efficiency:
        worth = efficiency["compute"]
        text += f", worth {worth.value:.2f} times the compute ({worth.low:.2f} to {worth.high:.2f})"
    return text


def _needed(arm: str, mean: float, more: int | None, by: str) -> str:
    """How many more seeds or sizes would show the difference that was seen."""
    if more is None:
        return f"; more than {MOST} more {by} would be needed to settle a difference as small as the one seen"
    side = "ahead" if mean < 0 else "behind"
    return f"; {arm} is {side} by {abs(mean):.4f}, and about {plural(more, 'more ' + by[:-1])} would settle it at 95 %"


def _ends(pairs: pd.DataFrame, unit: str, level: float) -> str:
    """The difference at the smallest size, and at the largest with its interval, by pairs or by the line in log N."""
    by_size, sizes, number = pairs.groupby("n")["difference"], pairs["n"].nunique(), len(pairs)
    means = by_size.mean()
    first, last, small, large = *means.iloc[[0, -1]].tolist(), *means.index[[0, -1]].tolist()
    if number > sizes:
        sd, dof = np.sqrt(_mean_squares(pairs)[1] / by_size.size().iloc[-1]), number - sizes
    else:
        x, line, dof = np.log(pairs["n"]), _line(pairs), number - 2
        last = float(line.intercept + line.slope * x.max())
        sd = line.stderr * np.sqrt(((x - x.mean()) ** 2).mean() + (x.max() - x.mean()) ** 2)
    at_largest = Estimate.around(last, float(special.stdtrit(dof, 1 - level / 2) * sd))
    between = f"({at_largest.low:+.4f} to {at_largest.high:+.4f})"
    return f"from {first:+.4f}{unit} at N = {compact(small)} to {last:+.4f} {between} at N = {compact(large)}"
