"""Measurements of finished trials: one file per kind, which holds `measure(subject, asked) -> rows`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tinyscale.measurements import ablate, features, induction, memory, quantize, score
from tinyscale.measurements.subject import Subject, load_subject

__all__ = ["MEASURES", "Subject", "load_subject"]

# Kind -> its measurement. Rows hold the columns of the kind that are not settings: see results/schema.py.
MEASURES: Mapping[str, Callable[[Subject, Any], list[dict[str, Any]]]] = {
    "ablate": ablate.measure,
    "features": features.measure,
    "induction": induction.measure,
    "memory": memory.measure,
    "quantize": quantize.measure,
    "score": score.measure,
}
