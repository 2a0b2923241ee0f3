"""Types of the arrays that fits compute with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Mask = NDArray[np.bool_]
Pair = tuple[Array, Array]  # a value and its derivatives
