"""Text to train on: made of few words, or real where a machine has some."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from helpers import ROOT


def words(count: int, seed: int = 0) -> str:
    """Text of so many words from a vocabulary of 50, most of them rare."""
    rng = np.random.default_rng(seed)
    vocabulary = ["".join(rng.choice(list("abcdefgh"), rng.integers(2, 7))) for _ in range(50)]
    chances = 1 / np.arange(1, 51)
    return " ".join(rng.choice(vocabulary, count, p=chances / chances.sum()))


def write_text(path: Path, count: int = 160_000) -> None:
    """A text of so many words, about 850 KB, in 200 documents."""
    made = words(count).split()
    path.write_text("\n<|endoftext|>\n".join(" ".join(made[number::200]) for number in range(200)))


def shared_file(name: str) -> Path | None:
    """A file of $TINYSCALE_DATA, or of shared/data beside the repository; None where there is none."""
    path = Path(os.environ.get("TINYSCALE_DATA") or ROOT.parent / "shared" / "data") / name
    return path if path.is_file() else None
