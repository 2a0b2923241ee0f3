"""Whether the points have the law's shape: a bend, or a break, that it cannot follow.

Score tests: what a law leaves over is regressed on what it would gain from one parameter more, less what its own
parameters can take up (Rao 1948). So nothing is fitted again.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from tinyscale.fitting.arrays import Array
from tinyscale.fitting.forecast import bends, slopes
from tinyscale.fitting.solve import Problem
from tinyscale.formatting import compact

LEVEL = 0.1  # of the tests of a bend together: a break that is missed costs more than a word too many
KNOTS = np.array([0.25, 0.5, 0.75])  # where in the range of a variable a break is looked for
ALIKE = 2.0  # independent tests that a bend and the breaks of one variable amount to


def shape_notes(problem: Problem, theta: Array) -> list[str]:
    """Words on a bend of the loss inside the points about the law solved at theta (P,)."""
    fitted, jacobian = problem.law.log_loss(theta[None], problem.x)
    residual = problem.y - fitted[0]
    return _about_bends(problem, theta, residual, jacobian[0])


def _about_bends(problem: Problem, theta: Array, residual: Array, jacobian: Array) -> list[str]:
    law, x = problem.law, problem.x
    names: list[tuple[str, float | None]] = [(name, None) for name in law.variables]
    columns = [bends(law, theta, x, (x.max(axis=1) + x.min(axis=1)) / 2)]
    for name, row, slope in zip(law.variables, x, slopes(law, theta, x), strict=True):
        if name == "teacher":  # of most sweeps one or two, and of some runs none
            continue
        knots = row.min() + KNOTS * np.ptp(row)
        names += [(name, float(np.exp(knot))) for knot in knots]
        columns.append(slope * np.maximum(row - knots[:, None], 0.0))
    root = np.sqrt(problem.weight)
    candidates, jacobian, residual = np.concatenate(columns) * root, jacobian * root, residual * root
    basis = np.linalg.svd(jacobian, full_matrices=False)[2]
    left = candidates - (candidates @ basis.T) @ basis
    residual = residual - (residual @ basis.T) @ basis
    power = np.einsum("cn,cn->c", left, left)
    dof = len(residual) - len(theta) - 1
    seen = power > 1e-6 * np.einsum("cn,cn->c", candidates, candidates)
    if dof < 1 or not seen.any():
        return []
    size = np.where(seen, left @ residual / np.where(seen, power, 1.0), 0.0)
    rest = np.maximum(residual @ residual - size**2 * power, 0.0) / dof
    t = np.where(seen, size * np.sqrt(power / np.maximum(rest, 1e-30)), 0.0)
    best = int(np.abs(t).argmax())
    p = min(1.0, 2 * float(special.stdtr(dof, -abs(t[best]))) * ALIKE * len(x))
    if p >= LEVEL:
        return []
    name, knot = names[best]
    change = "slower" if size[best] < 0 else "faster"
    where = f"above about {name.upper()} = {compact(knot)}" if knot else f"the further {name.upper()} goes"
    return [
        f"the loss bends: it falls {change} {where} than this law has it (p = {p:.1g}), so what holds beyond the data "
        "need not be this law; look for what changes there, or fit the runs on one side"
    ]
