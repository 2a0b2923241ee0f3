"""A fit as text: what a reader needs before the numbers are believed."""

from __future__ import annotations

import math

from tinyscale.fitting.fit import Fit
from tinyscale.fitting.points import count


def number(value: float, digits: int = 4) -> str:
    """A value for people: 0.3042, 52.31, 1.234e+09."""
    return "∞" if math.isinf(value) else f"{value:.{digits}g}"


def describe(found: Fit) -> str:
    """The whole fit as a block of lines."""
    lines = [f"{found.labels['title']}: {found.law.formula}" + (f", {found.slice}" if found.slice else ""), ""]
    lines += [f"  {'':10}{'value':>12}   95 % interval"]
    for name, value in found.params.items():
        low, high = found.interval(name)
        lines.append(f"  {name:10}{number(value):>12}   {number(low)} to {number(high)}")
    lines += ["", *(f"  {line}" for line in [_held_out(found), _rows(found), _trust(found)])]
    return "\n".join(lines + [f"  warning: {note}" for note in found.warnings])


def _held_out(found: Fit) -> str:
    held = found.held_out
    if held is None:
        return "held out: nothing, too few sizes would remain"
    size = ", ".join(f"{name.upper()} = {count(value)}" for name, value in held.size.items())
    error = f"error {held.error_percent:+.2f} % (carrying the last loss forward: {held.carry_forward_percent:+.2f} %)"
    return (
        f"held out: {size} from the {held.fitted_sizes} smaller sizes: "
        f"predicted {held.predicted:.4f}, was {held.actual:.4f}, {error}"
    )


def _rows(found: Fit) -> str:
    dropped = found.labels.get("rows", {}).get("dropped", {})
    why = "; ".join(f"{rows} dropped: {reason}" for reason, rows in dropped.items()) or "none dropped"
    read = ", ".join(f"{name} = {column}" for name, column in found.points.counts.items())
    return f"points: {len(found.points)} runs at {found.points.sizes} sizes ({why}); {read}"


def _trust(found: Fit) -> str:
    c = found.certificate
    return (
        f"intervals: {found.method}; noise of a run {100 * found.noise.sd:.2g} %; "
        f"converged from {c.share_of_starts:.0%} of {c.starts} starts, gradient {c.gradient_norm:.0e}"
    )
