"""What can go wrong by the user's hand or by the world's, drawn as a tree.

    TinyscaleError
    ├── ConfigError      a sweep file, an option or a field is not legal
    ├── DataError        a corpus or a tokenizer cannot be used
    ├── ResultsError     a results folder cannot be read or written
    ├── FitError         the points do not support the law that was asked for
    ├── ForecastError    the speed of this machine cannot be measured
    └── LaunchError      Ray cannot be reached or cannot place the trials

Each message says what, where and how to mend it; the command line prints it without a traceback.
A mistake of our own is an `assert`, never one of these.
"""

from __future__ import annotations

import re

OUT_OF_MEMORY = re.compile("out of memory|ALLOC_FAILED", re.IGNORECASE)  # torch's, CUDA's and cuBLAS's words


class TinyscaleError(Exception):
    """Root of every error that the user can cause and mend."""


class ConfigError(TinyscaleError):
    """A sweep file, an option or a field is not legal."""


class DataError(TinyscaleError):
    """A corpus or a tokenizer cannot be used. field: of a sweep file, that is to blame (None: the corpus)."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ResultsError(TinyscaleError):
    """A results folder cannot be read or written."""


class FitError(TinyscaleError):
    """The points do not support the law that was asked for."""


class ForecastError(TinyscaleError):
    """The speed of this machine cannot be measured."""


class LaunchError(TinyscaleError):
    """Ray cannot be reached or cannot place the trials."""


def lack_of_memory(error: BaseException | None) -> BaseException | None:
    """The error that says that a GPU's memory ran out: this one, or one that it was raised in the course of.

    It is known by its words: it may be torch's own, CUDA's or a library's.
    """
    while error is not None and not (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))):
        error = error.__cause__ or error.__context__
    return error
