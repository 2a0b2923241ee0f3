"""What a launch shows while it runs: totals, running trials, failures as they come; plain lines without a terminal."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tinyscale.formatting import compact, duration
from tinyscale.planning.plan import PlannedTrial
from tinyscale.spec.config import Resources
from tinyscale.spec.state import State

WIDE, BAR = 100, 16  # columns of a terminal wide enough for bars, and of a bar


@dataclass
class Running:
    """A trial under way, by its last reports."""

    planned: PlannedTrial
    tokens: int = 0
    val_loss: float | None = None
    tokens_per_second: float = 0.0
    reported: float = field(default_factory=time.monotonic)
    resumed_at: int | None = None
    part: float | None = None  # of what is not counted in tokens

    def on_report(self, metrics: dict[str, Any]) -> None:
        """Take in a report; speed is that between reports, smoothed."""
        now, tokens = time.monotonic(), int(metrics.get("tokens", 0))
        if self.resumed_at is None:
            self.resumed_at = tokens
        elif now > self.reported and tokens > self.tokens:
            speed = (tokens - self.tokens) / (now - self.reported)
            self.tokens_per_second = speed if not self.tokens_per_second else 0.7 * self.tokens_per_second + 0.3 * speed
        self.tokens, self.reported, self.part = tokens, now, metrics.get("part")
        self.val_loss = metrics.get("val_loss", self.val_loss)

    @property
    def share(self) -> float:
        """Part of the trial that is done."""
        return min(1.0, self.tokens / self.planned.trial.tokens) if self.part is None else self.part

    @property
    def time_left(self) -> str:
        """Words for the time that its other tokens take at its speed; nothing before that is known."""
        if not self.tokens_per_second:
            return ""
        return f"{duration((self.planned.trial.tokens - self.tokens) / self.tokens_per_second)} left"

    def row(self, *, bar: bool) -> list[RenderableType]:
        """Its row in the live part, with or without a bar."""
        loss = f"loss {self.val_loss:.3f}" if self.val_loss is not None else ""
        progress: list[RenderableType] = [ProgressBar(total=1.0, completed=self.share, width=BAR)] if bar else []
        speed = f"{compact(self.tokens_per_second)} tok/s" if self.tokens_per_second else ""
        device = devices(self.planned.trial.config.resources)
        return [self.planned.label, *progress, f"{self.share:.0%}", loss, speed, device, self.time_left]


def devices(resources: Resources) -> str:
    """What a trial runs on: 1 core, 0.25 GPU, 4 x 1 GPU."""
    one = f"{resources.gpu:g} GPU" if resources.gpu else f"{resources.cpu} core{'s' if resources.cpu > 1 else ''}"
    return one if resources.workers == 1 else f"{resources.workers} x {one}"


class Monitor:
    """Counts trials and estimates the time left from the work done so far, in units of the forecast."""

    def __init__(self, to_run: list[PlannedTrial], console: Console, *, quiet: bool) -> None:
        self.work, self.work_done = sum(map(_work, to_run)), 0.0
        self.total, self.console, self.quiet = len(to_run), console, quiet
        self.running: dict[str, Running] = {}
        self.ended: dict[str, State] = {}  # identity -> state
        self.failures: list[tuple[str, str]] = []  # label, reason
        self.began = self.first_report = time.monotonic()
        self.live = Live(console=console, get_renderable=self.render, refresh_per_second=4, transient=True)

    def __enter__(self) -> Monitor:
        if self.console.is_terminal and not self.quiet and not os.environ.get("CI"):
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def started(self, planned: PlannedTrial) -> None:
        """A trial began."""
        if not self.running and not self.ended:
            self.first_report = time.monotonic()
        self.running[planned.trial.identity] = Running(planned)

    def on_report(self, identity: str, metrics: dict[str, Any]) -> None:
        """A trial reported."""
        if identity in self.running:
            self.running[identity].on_report(metrics)

    def end(self, planned: PlannedTrial, state: State, reason: str | None) -> None:
        """A trial ended; failures are shown at once, above the live part."""
        self.running.pop(planned.trial.identity, None)
        self.ended[planned.trial.identity] = state
        self.work_done += _work(planned)
        if state.lacks_loss:
            self.failures.append((planned.label, reason or "no reason given"))
            self.console.print(f"{state}: {planned.label}: {reason}", style="red")
        elif not self.live.is_started and not self.quiet:
            self.console.print(f"{len(self.ended)}/{self.total} {state}: {planned.label}, {self.time_left()} left")

    def note(self, planned: PlannedTrial, text: str) -> None:
        """A trial's process warned of something; it is shown at once, above the live part."""
        self.console.print(f"{planned.label}: {text}", style="yellow")

    def time_left(self) -> str:
        """Words for the time that the rest takes at the rate of the work so far."""
        done = self.work_done + sum(_work(running.planned) * running.share for running in self.running.values())
        elapsed = time.monotonic() - self.first_report
        if done <= 0 or elapsed < 1:
            return "unknown time"
        return duration(elapsed * max(0.0, self.work - done) / done)

    def render(self) -> RenderableType:
        """The live part: a line of totals, and one line per running trial."""
        failed = sum(state.lacks_loss for state in self.ended.values())
        speed = sum(running.tokens_per_second for running in self.running.values())
        totals = Text(
            f"{len(self.ended)}/{self.total} ended, {len(self.running)} running, {failed} failed; "
            f"{compact(speed)} tok/s; {duration(time.monotonic() - self.began)} elapsed, {self.time_left()} left"
        )
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        bar = self.console.width >= WIDE
        for _ in range(6 if bar else 5):
            table.add_column(no_wrap=True, justify="right")
        for running in self.running.values():
            table.add_row(*running.row(bar=bar))
        return Group(totals, table)


def _work(planned: PlannedTrial) -> float:
    """Seconds of a trial; without a forecast, something in proportion to them."""
    return planned.seconds or planned.trial.flops
