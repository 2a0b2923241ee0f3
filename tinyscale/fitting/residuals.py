"""What the residuals of a fit speak against: single runs, equal scatter at all sizes, one kind of runs at all sizes.

Each test adds to the law, linear about its optimum, what it asks after, and reads a t value, whose distribution is
known however few the runs. Divided by the number of places asked (Bonferroni), a false alarm has the chance LEVEL.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from tinyscale.fitting.arrays import Array, Index, Mask
from tinyscale.fitting.points import Points, group_sizes
from tinyscale.fitting.solve import Problem
from tinyscale.formatting import compact

LEVEL = 0.01  # chance that a test says something of runs that follow the law
LEAST_SHIFT = 1e-4  # of log loss: less is rounding of the losses
FIXED = 1e-6  # share of its own residual that a point keeps after the fit, below which the law goes through it
MOST_NAMED = 3
MOST_RUNS, SHARE = 10, 10  # of the runs, at most a tenth and ten are asked after: more are another kind of runs


@dataclass(frozen=True)
class _Line:
    """The law about its optimum as a linear model: residual (n,) of log loss, measured minus predicted, as the linear
    model leaves it; basis (n, P) orthonormal; freedom (n,): the share of its own residual that each point keeps."""

    residual: Array
    basis: Array
    freedom: Array

    @property
    def dof(self) -> int:
        """Degrees of freedom once one quantity more is fitted."""
        return int(len(self.residual) - self.basis.shape[1] - 1)

    def t_values(self, product: Array, length: Array) -> Array:
        """Of quantities with such products with the residual and squared lengths after the fit; 0 where undetermined.

        Cook and Weisberg 1982, section 2.2.2.
        """
        drop = np.where(length > FIXED, product**2 / np.maximum(length, FIXED), 0.0)
        left = np.maximum(float((self.residual**2).sum()) - drop, 1e-300) / self.dof
        return np.where(length > FIXED, product / np.sqrt(np.maximum(length, FIXED) * left), 0.0)


def _linear(jacobian: Array, residual: Array) -> _Line:
    """From the derivatives (P, n) of the log loss by the parameters that are free."""
    _, values, rows = np.linalg.svd(jacobian, full_matrices=False)
    basis = rows[values > 1e-10 * values.max(initial=1e-300)].T
    return _Line(residual - basis @ (basis.T @ residual), basis, 1 - (basis**2).sum(axis=1))


def residual_notes(points: Points, problem: Problem, theta: Array, *, fixed: tuple[str, ...], alike: bool) -> list[str]:
    """What the residuals of a law solved at theta (P,) speak against.

    fixed: parameters that stopped at a bound; alike: whether runs of one setting scatter no less than settings do.
    """
    predicted, jacobian = problem.law.log_loss(theta[None], problem.x)
    free = [name not in fixed for name in problem.law.params]
    root = np.sqrt(problem.weight)
    slopes, residual = jacobian[0][free] * root, (problem.y - predicted[0]) * root
    runs = [(i, shift / root[i]) for i, shift in outlying(slopes, residual) if abs(shift) > LEAST_SHIFT]
    kept = np.delete(np.arange(len(points)), [i for i, _ in runs])
    return [
        *_about_runs(points, runs, problem.delta),
        *_about_sizes(points, kept, slopes[:, kept], residual[kept], alike=alike),
    ]


def _about_runs(points: Points, found: Sequence[tuple[int, float]], delta: float) -> list[str]:
    if not found:
        return []
    said = []
    for i, shift in found[:MOST_NAMED]:
        at = ", ".join(f"{name} = {compact(float(points.frame[name].iloc[i]))}" for name in _variables(points))
        said.append(f"{points.names[i]} ({at}) lies {off_by(shift)} the law of the others")
    more = f", and so do {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    bound = f"the pull of each is bounded (delta = {delta:g})"
    if np.isinf(delta):
        bound = "or fit with --delta 1e-3, which bounds the pull of each"
    return [f"{'; '.join(said)}{more}: look for the reason and leave such rows out; {bound}"]


def off_by(shift: float) -> str:
    """A difference of log loss in words, such as `3.1 % above`."""
    return f"{_percent(shift)} {'above' if shift > 0 else 'below'}"


def _percent(shift: float) -> str:
    percent = 100 * abs(float(np.expm1(shift)))
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def _variables(points: Points) -> list[str]:
    return [name for name in points.counts if name not in ("loss", "weight")]


def outlying(slopes: Array, residual: Array) -> list[tuple[int, float]]:
    """Runs that the law of the others does not hold, and by how much each is off it, the worst first.

    The worst run is taken away, and the next, as far as a tenth of them; outlying are all up to the last whose t value
    is too large, so that two do not hide each other. Rosner 1983, Technometrics 25; with regression: Paul and Fung
    1991, Technometrics 33.
    """
    kept = np.arange(len(residual))
    taken: list[int] = []
    shifts: dict[int, float] = {}
    last = 0
    for _ in range(min(MOST_RUNS, max(1, len(residual) // SHARE))):
        line = _linear(slopes[:, kept], residual[kept])
        if line.dof < 1:
            break
        t = np.abs(line.t_values(line.residual, line.freedom))
        worst = int(t.argmax())
        taken.append(int(kept[worst]))
        if t[worst] > _limit(len(kept), line.dof):
            last = len(taken)
        kept = np.delete(kept, worst)
    if last:
        others = np.setdiff1d(np.arange(len(residual)), taken[:last])
        found, *_ = np.linalg.lstsq(slopes[:, others].T, residual[others], rcond=None)
        shifts = {i: float(residual[i] - slopes[:, i] @ found) for i in taken[:last]}
    return sorted(shifts.items(), key=lambda each: -abs(each[1]))


def _limit(places: int, dof: int) -> float:
    """The t value that none of so many places exceeds but with the chance LEVEL."""
    return float(special.stdtrit(dof, 1 - LEVEL / (2 * places)))


def _about_sizes(points: Points, kept: Index, slopes: Array, residual: Array, *, alike: bool) -> Iterator[str]:
    """A scatter that grows, or else a step, of the points kept; slopes (P, n) and residual (n,) are theirs.

    Read from the means of settings, as seeds share what else is particular to their setting; a scatter from the runs
    where they share nothing.
    """
    config = np.unique(points.config[kept], return_inverse=True)[1]
    seeds = np.bincount(config)
    root = np.sqrt(seeds)
    means = _linear(np.stack([np.bincount(config, row) / root for row in slopes]), np.bincount(config, residual) / root)
    runs = dict(zip(_variables(points), points.x[:, kept], strict=True))
    settings = {name: np.bincount(config, row) / seeds for name, row in runs.items()}
    if means.dof < 1:
        return
    line, at = (_linear(slopes, residual), runs) if alike else (means, settings)
    scatter = [note for name, row in at.items() for note in _about_scatter(line, name, row, len(at))]
    yield from scatter or _about_step(means, settings, root)


def _about_step(line: _Line, settings: Mapping[str, Array], root: Array) -> Iterator[str]:
    """The largest step, where it is larger than chance makes the largest of so many."""
    steps = [(name, *each) for name, row in settings.items() for each in _steps(line, row, root)]
    if steps:
        name, at, shift, t = max(steps, key=lambda each: abs(each[3]))
        if abs(t) > _limit(len(steps), line.dof) and abs(shift) > LEAST_SHIFT:
            yield (
                f"the loss steps {'up' if shift > 0 else 'down'} by {_percent(shift)} at "
                f"{name} = {compact(at)} against the law: two kinds of runs (another learning rate, text or code), or "
                "a law that does not hold on both sides; fit each side by itself"
            )


def _about_scatter(line: _Line, name: str, x: Array, tests: int) -> Iterator[str]:
    """Rank correlation of the size of the residuals with x (n,)."""
    seen = line.freedom > FIXED
    size = np.abs(line.residual[seen]) / np.sqrt(line.freedom[seen])
    if line.dof < 3 or np.ptp(x) == 0 or np.sqrt((size**2).mean()) < LEAST_SHIFT:
        return
    r = np.corrcoef(_ranks(size), _ranks(x[seen]))[0, 1]
    t = r * np.sqrt((line.dof - 1) / max(1 - r * r, 1e-12))
    if abs(t) > _limit(tests, line.dof - 1):
        upper = x[seen] > np.median(x[seen])
        low, high = (100 * float(np.sqrt((size[part] ** 2).mean())) for part in (~upper, upper))
        yield (
            f"runs scatter {'more' if r > 0 else 'less'} at large {name} ({high:.2g} % in the upper half, {low:.2g} % "
            "in the lower), and the intervals take them to scatter alike: beyond the data they are too "
            f"{'narrow' if r > 0 else 'wide'}"
        )


def _ranks(values: Array) -> Array:
    """Ranks (n,), ties sharing their mean."""
    _, index, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count - 1) / 2)[index], float)


def _steps(line: _Line, x: Array, root: Array) -> Iterator[tuple[float, float, float]]:
    """Of each step with two sizes at least on either side: the first size above, its height and its t value."""
    size = group_sizes(x)
    for first in range(2, int(size.max())):
        above: Mask = size >= first
        indicator = root * above
        across = indicator - line.basis @ (line.basis.T @ indicator)
        product, length = float(across @ line.residual), float(across @ across)
        if length > FIXED:
            t = float(line.t_values(np.array([product]), np.array([length]))[0])
            yield float(np.exp(x[size == first].mean())), product / length, t
