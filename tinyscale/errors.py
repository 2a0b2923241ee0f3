"""The errors that a user can cause and correct.

    TinyscaleError
    ├── ConfigError      a sweep file, an option or a field is not legal
    ├── DataError        a corpus or a tokenizer cannot be used
    ├── ResultsError     a results folder cannot be read or written
    │   └── UnusableError    as a whole, now: no room, no right, no answer
    ├── FitError         the points do not support the law that was asked for
    ├── ForecastError    the speed of this machine cannot be measured
    └── LaunchError      Ray cannot be reached or cannot schedule the trials

Each message says what is wrong, where, and the remedy; the command line prints it without a traceback.
Our own mistakes are failed assertions, never one of these.
"""

from __future__ import annotations

import re

OUT_OF_MEMORY = re.compile("out of memory|ALLOC_FAILED", re.IGNORECASE)  # in messages of torch, CUDA and cuBLAS


class TinyscaleError(Exception):
    """Base class of every error that the user can cause and correct."""


class ConfigError(TinyscaleError):
    """A sweep file, an option or a field is not legal."""


class DataError(TinyscaleError):
    """A corpus or a tokenizer cannot be used. field: the field of a sweep file that caused it (None: the corpus)."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ResultsError(TinyscaleError):
    """A results folder cannot be read or written."""


class UnusableError(ResultsError):
    """A folder takes no files now: there is no room or no right, or its store does not answer."""


class FitError(TinyscaleError):
    """The points do not support the law that was asked for."""


class ForecastError(TinyscaleError):
    """The speed of this machine cannot be measured."""


class LaunchError(TinyscaleError):
    """Ray cannot be reached or cannot schedule the trials."""


def lack_of_memory(error: BaseException | None) -> BaseException | None:
    """The error that says that GPU memory ran out: this error, or one in its chain of causes; None if there is none.

    It is recognised by its message, as torch, CUDA and libraries raise different types.
    """
    while error is not None and not (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))):
        error = error.__cause__ or error.__context__
    return error
