"""What a launch shows while it runs: totals, running trials, losses of those that finished, failures as they come.

Columns have fixed widths, so that nothing moves as numbers change, and leave room for the ^C of a terminal, which would
wrap a full line and leave it behind. Without a terminal there is a plain line per trial that ended.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
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
SHARE, LOSS, SPEED, LEFT = len("100%"), len("loss 10.234"), len("1.18K tok/s"), len("59m59s left")  # columns of numbers
GAP, SPARE = 2, 3  # columns between two, and at the end of a line
REPLAYED = 0.5  # seconds between reports, below which a resumed trial reports what an earlier attempt did
HIGH = 1.1  # times the loss of a model that knows nothing, above which a loss is pointed out


@dataclass
class Running:
    """A trial under way, by its last reports."""

    planned: PlannedTrial
    tokens: int = 0
    val_loss: float | None = None
    tokens_per_second: float = 0.0
    reported: float = field(default_factory=time.monotonic)
    resumed_at: int | None = None  # tokens of its first report, or of its first after those of an earlier attempt
    replays: bool = False  # whether it reports what an earlier attempt did
    part: float | None = None  # of what is not counted in tokens

    def on_report(self, metrics: dict[str, Any]) -> None:
        """Take in a report; speed is that between reports, smoothed."""
        now, tokens = time.monotonic(), int(metrics.get("tokens", 0))
        if self.resumed_at is None or self.replays:
            self.replays = self.replays and (self.resumed_at is None or now - self.reported < REPLAYED)
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
    def share_here(self) -> float:
        """Part that is done of what an earlier attempt had left."""
        before = (self.resumed_at or 0) / self.planned.trial.tokens if self.planned.state.is_recorded else 0.0
        return max(0.0, self.share - before) / max(1 - before, 1e-9)

    @property
    def time_left(self) -> str:
        """Words for the time that its other tokens take at its speed; nothing before that is known."""
        if not self.tokens_per_second:
            return ""
        return f"{duration((self.planned.trial.tokens - self.tokens) / self.tokens_per_second)} left"

    def row(self, *, bar: bool) -> list[RenderableType]:
        """Its row in the live part, with or without a bar."""
        loss = f"loss {self.val_loss:#.4g}" if self.val_loss is not None else ""
        progress: list[RenderableType] = [ProgressBar(total=1.0, completed=self.share, width=BAR)] if bar else []
        speed = f"{compact(self.tokens_per_second)} tok/s" if self.tokens_per_second else ""
        device = devices(self.planned.trial.config.resources)
        label = self.planned.label or "the trial"
        return [label, *progress, f"{self.share:.0%}", loss, speed, device, self.time_left]


def devices(resources: Resources) -> str:
    """What a trial runs on: 1 core, 0.25 GPU, 4 x 1 GPU."""
    one = f"{resources.gpu:g} GPU" if resources.gpu else f"{resources.cpu} core{'s' if resources.cpu > 1 else ''}"
    return one if resources.workers == 1 else f"{resources.workers} x {one}"


class Monitor:
    """Counts trials and estimates the time left from the work done so far, in units of the forecast.

    at_once: trials that run at a time, for the time left by the forecast alone, until there is any work done; 0: not
    known.
    """

    def __init__(self, to_run: list[PlannedTrial], console: Console, *, quiet: bool, at_once: int = 0) -> None:
        self.work, self.work_done = sum(map(_work, to_run)), 0.0
        timed = at_once and all(planned.seconds for planned in to_run)
        self.expected = self.work / at_once if timed else None  # seconds
        self.total, self.console, self.quiet = len(to_run), console, quiet
        self.running: dict[str, Running] = {}
        self.ended: dict[str, State] = {}  # identity -> state
        self.losses: dict[str, list[str]] = {}  # label of a cell -> losses of its seeds, as they finish
        self.high: set[str] = set()  # trials whose loss was pointed out
        self.failures: list[tuple[str, str]] = []  # label, reason
        self.longest = max((len(planned.label) for planned in to_run), default=0)
        self.device = max((len(devices(planned.trial.config.resources)) for planned in to_run), default=0)
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
        self.longest = max(self.longest, len(planned.label))  # a search samples values that are not in `to_run`
        self.running[planned.trial.identity] = Running(planned, replays=planned.state.is_recorded)

    def on_report(self, identity: str, metrics: dict[str, Any]) -> None:
        """A trial reported."""
        if identity in self.running:
            self.running[identity].on_report(metrics)
            self._point_out_high_loss(self.running[identity])

    def _point_out_high_loss(self, running: Running) -> None:
        """Say once of a trial that its loss is above that of a model which knows nothing."""
        trial, loss = running.planned.trial, running.val_loss
        unknowing = math.log(trial.vocab_size)
        if self.quiet or loss is None or loss < HIGH * unknowing or trial.identity in self.high:
            return
        self.high.add(trial.identity)
        self.note(
            running.planned,
            f"loss {loss:.4g} at {compact(running.tokens)} tokens, above the {unknowing:.2f} of a model that knows "
            "nothing; if it stays there, lower train.lr",
        )

    def end(self, planned: PlannedTrial, state: State, reason: str | None) -> None:
        """A trial ended; failures are shown at once, above the live part."""
        running = self.running.pop(planned.trial.identity, None)
        loss = running.val_loss if running else None
        self.ended[planned.trial.identity] = state
        if state == State.RUNNING:  # it was asked to stop, and goes on in the next launch
            return
        self.work_done += _work(planned)
        if state == State.FINISHED and loss is not None:
            self.losses.setdefault(planned.cell.label_of_seeds or "all seeds", []).append(f"{loss:.4f}")
        if state.lacks_loss:
            self.failures.append((planned.label, reason or "no reason given"))
            self.console.print(f"{state}: {planned.label}: {reason}", style="red")
        elif not self.live.is_started and not self.quiet:
            said = f", loss {loss:.4f}" if loss is not None else ""
            at = f"{len(self.ended)}/{self.total} {state}"
            self.console.print(f"{at}: {planned.label}{said}, {self.time_left()} left")

    def note(self, planned: PlannedTrial, text: str) -> None:
        """A trial's process warned of something; it is shown at once, above the live part."""
        self.console.print(f"{planned.label}: {text}", style="yellow")

    def time_left(self) -> str:
        """Words for the time that the rest takes at the rate of the work so far."""
        done = self.work_done + sum(_work(running.planned) * running.share_here for running in self.running.values())
        elapsed = time.monotonic() - self.first_report
        if done <= 0 or elapsed < 1:
            if self.expected is None:
                return "unknown time"
            return f"about {duration(max(0.0, self.expected - (elapsed if self.running else 0.0)))}"
        return duration(elapsed * max(0.0, self.work - done) / done)

    def render(self) -> RenderableType:
        """The live part: a line of totals, one per running trial, and one per cell with losses of finished trials."""
        ended = Counter[State](state.once_ended for state in self.ended.values())
        finished, waiting = ended.pop(State.FINISHED, 0), self.total - len(self.ended) - len(self.running)
        others = [f"{ended[state]} {state}" for state in State if ended[state]]
        counts = [f"{finished}/{self.total} finished", f"{len(self.running)} running", f"{waiting} waiting", *others]
        speed = sum(running.tokens_per_second for running in self.running.values())
        time_ = f"{duration(time.monotonic() - self.began)} elapsed, {self.time_left()} left"
        said = [", ".join(counts), f"{compact(speed)} tok/s" if speed else "starting", time_]
        if len("; ".join(said)) > self.console.width - SPARE:
            del said[1]
        totals = "; ".join(said)
        return Group(Text(totals, no_wrap=True, overflow="ellipsis"), self._running_table(), *self._finished_lines())

    def _running_table(self) -> Table:
        bar = [BAR] if self.console.width >= WIDE else []
        numbers = [*bar, SHARE, LOSS, SPEED, self.device, LEFT]
        label = min(self.longest, self.console.width - SPARE - sum(numbers) - GAP * len(numbers))
        table = Table.grid(padding=(0, GAP))
        table.add_column(width=max(label, 8), no_wrap=True, overflow="ellipsis")
        for width in numbers:
            table.add_column(width=width, no_wrap=True, justify="right")
        for running in self.running.values():
            table.add_row(*running.row(bar=bool(bar)))
        return table

    def _finished_lines(self) -> list[Text]:
        """The losses of finished trials by cell, the last of them where the terminal has no room for all."""
        if not self.losses:
            return []
        space = max(1, self.console.height - len(self.running) - 5)
        width = max(map(len, self.losses))
        lines = [f"{label:<{width}}  {'  '.join(losses)}" for label, losses in self.losses.items()]
        left_out = [f"... and {len(lines) - space} before these"] if len(lines) > space else []
        shown = ["finished, with the loss of each seed:", *left_out, *lines[-space:]]
        return [Text(line, no_wrap=True, overflow="ellipsis") for line in shown]


def _work(planned: PlannedTrial) -> float:
    """Seconds of a trial; without a forecast, something in proportion to them."""
    return planned.seconds or planned.trial.flops
