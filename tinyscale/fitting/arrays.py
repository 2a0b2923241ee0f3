"""Types of the arrays that fits compute with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Mask = NDArray[np.bool_]
Pair = tuple[Array, Array]  # a value and its derivatives


def some_of(count: int, most: int) -> Index:
    """Which `most` of so many points to keep: chosen at random, the same each time, in their order."""
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))
