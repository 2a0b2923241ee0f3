"""What every kind of corpus offers: a hash that identifies its text, its documents, and their split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Oracle:
    """What is known exactly of a generated text: the lowest loss that any model can reach."""

    entropy_rate: float  # nats per character
    record_length: int  # characters; records are independent, so a context must hold whole ones
    nats: npt.NDArray[np.float64]  # the source's own loss, -ln p, at each character of the validation text


@dataclass(frozen=True)
class Split:
    """Training and validation documents. With an oracle, validation is one document, one token per character."""

    train: list[str]
    val: list[str]
    oracle: Oracle | None = None


class Source(Protocol):
    """A corpus, opened but not necessarily read. Its methods raise DataError when the text cannot be had or used."""

    def hash(self) -> str:
        """SHA-256, in hex, that changes when the text does. Part of a trial's identity."""
        ...

    def documents(self) -> list[str]:
        """All documents of the corpus."""
        ...

    def split(self, val_bytes: int) -> Split:
        """The corpus with at least val_bytes bytes of UTF-8 held out; a function of the text alone."""
        ...
