"""How numbers, durations, counts and near names are shown."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable

# All but tab and new line; what reverses the direction of writing; halves of surrogate pairs, which no file can hold.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with its control characters spelt out (`\\x1b`), so that no terminal obeys them."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def compact(value: float, digits: int = 3) -> str:
    """1234567 -> 1.23M. Beyond a thousand T, powers of ten."""
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if scale * 0.9995 <= abs(value) < scale * 1e3 * 0.9995:
            return f"{value / scale:.{digits}g}{suffix}"
    return f"{value:.{digits}g}"


def data_size(number: float) -> str:
    """A number of bytes: 1234567 -> 1.23MB."""
    return f"{compact(number).replace('B', 'G')}B"


def number(value: float | None, digits: int = 4) -> str:
    """A value for people: 0.3042, 52.31, 1.234e+09; None and infinity are `open`, an end of an interval."""
    return "open" if value is None or math.isinf(value) else f"{value:.{digits}g}"


def scientific(value: float, digits: int = 3) -> str:
    """1.2e10 as mathematics in LaTeX, without the dollar signs."""
    mantissa, _, power = f"{value:.{digits}g}".partition("e")
    return f"{mantissa} \\times 10^{{{int(power)}}}" if power else mantissa


def distinct(first: float, second: float) -> tuple[str, str]:
    """Two values with as few digits as show which is larger, two to six."""
    texts = [tuple(_with_digits(value, digits) for value in (first, second)) for digits in range(2, 7)]
    return next(((a, b) for a, b in texts if a != b), (texts[0][0], texts[0][1]))


def _with_digits(value: float, digits: int) -> str:
    """So many significant digits, and never fewer than those before the point."""
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:#.{digits}g}".rstrip(".")


def duration(seconds: float) -> str:
    """12s, 3m05s, 2h10m, 3d04h."""
    whole = max(0, math.ceil(seconds))
    for size, letter, small, small_letter in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{letter}{whole % size // small:02d}{small_letter}"
    return f"{whole}s"


def plural(number: int, thing: str) -> str:
    """1 trial, 2 trials."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """`; nearest: x` when a known name is close to this one, else nothing."""
    names = {word: full for full in known for word in (full.rpartition(".")[2], full)}
    close = [*difflib.get_close_matches(name, names, 1), *difflib.get_close_matches(name.rpartition(".")[2], names, 1)]
    return f"; nearest: {names[close[0]]}" if close else ""
