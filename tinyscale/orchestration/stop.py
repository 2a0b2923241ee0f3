"""Stopping: how Ctrl-C, SIGTERM, a full disk, or a search that has seen enough, reaches running trials."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray.tune.search.basic_variant import BasicVariantGenerator
from rich.console import Console

from tinyscale.orchestration.ray_internals import clear_flag, read_flag, set_flag

STOP_FLAG = b"stop"  # holds the sweep whose launch stops
SIGNALS = (signal.SIGINT, signal.SIGTERM)  # of the user's terminal; of a scheduler or a machine that shuts down


@dataclass
class Stop:
    """Whether a sweep's launch is to stop. (Tune saves what its search holds, and cannot save a threading.Event.)

    refused: why the results take no more rows, if that is the reason.
    """

    sweep: str
    requested: bool = False
    refused: str | None = None

    def request(self) -> None:
        """Begin no more trials, and have those that run write a checkpoint and end."""
        self.requested = True
        set_flag(STOP_FLAG, self.sweep.encode())

    def refuse(self, reason: str) -> None:
        """Stop because nothing can be written any more."""
        self.refused = self.refused or reason
        self.request()


class Grid(BasicVariantGenerator):  # type: ignore[misc,unused-ignore]
    """Tune's grid, which ends early once the launch is to stop."""

    def __init__(self, stop: Stop, **settings: Any) -> None:
        super().__init__(**settings)
        self.stop = stop

    def next_trial(self) -> Any:
        return None if self.stop.requested else super().next_trial()

    def is_finished(self) -> bool:
        return self.stop.requested or bool(super().is_finished())


@contextmanager
def interruptible(sweep: str, console: Console) -> Iterator[Stop]:
    """First Ctrl-C or SIGTERM: running trials write a checkpoint and stop. Second: stop now. Ray is shut down too."""
    stop = Stop(sweep)

    def on_interrupt(*_: object) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.request()
        console.print("stopping: running trials write a checkpoint first (Ctrl-C again: stop now)")

    on_main_thread = threading.current_thread() is threading.main_thread()
    before = {each: signal.signal(each, on_interrupt) for each in SIGNALS} if on_main_thread else {}
    try:
        yield stop
    finally:
        clear_flag(STOP_FLAG)
        for each, handler in before.items():
            signal.signal(each, handler)


def launch_stops(sweep: str) -> bool:
    """Whether the launch of a sweep stops, as a running trial asks."""
    return read_flag(STOP_FLAG) == sweep.encode()


def stop_trial(identity: str) -> None:
    """Ask one running trial to stop."""
    set_flag(_flag_of(identity), b"behind")


def trial_stops(identity: str) -> bool:
    """Whether `stop_trial` was called for it."""
    return read_flag(_flag_of(identity)) is not None


def clear_stop(identity: str) -> None:
    """Forget that a trial was asked to stop."""
    clear_flag(_flag_of(identity))


def _flag_of(identity: str) -> bytes:
    return STOP_FLAG + b":" + identity.encode()
