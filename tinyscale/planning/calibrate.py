"""Measure seconds per optimizer step and per evaluation of some trials, for the forecast.

Run as a program, so that planning itself needs no torch: reads a JSON list of trials from standard input,
prints one JSON object per trial. Seconds of a trial that the memory of its GPU does not hold are infinite.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from tinyscale.data import TokenizedCorpus, prepare
from tinyscale.errors import lack_of_memory
from tinyscale.spec.trial import Trial
from tinyscale.training.loop import Run

SECONDS = 0.4  # of timed steps per trial
LONG_SECONDS = 5.0  # of timed steps, from which on no more are timed
STEP_SECONDS = 0.5  # of one step, from which on a part of the batch is timed and scaled up
FLOPS = 3e10  # of the first step that is tried, which takes any device a second at most
EVALUATIONS = 3


def lighten(trial: Trial, step_seconds: Callable[[Trial], float]) -> Trial:
    """The trial with a worker's whole batch, or a part of it where a step of the whole takes long.

    The part is doubled until a step takes STEP_SECONDS: a short one may cost what launching its kernels does, whatever
    the batch, and says nothing of the whole.
    """
    train, context = trial.config.train, trial.config.model.context_length
    whole = train.batch_tokens // context // trial.config.resources.workers  # what one device has to hold
    rows = max(1, int(FLOPS / trial.flops_per_token["flops"]) // context)
    while rows < whole and step_seconds(_with_rows(trial, rows)) < STEP_SECONDS:
        rows *= 2
    return _with_rows(trial, min(rows, whole))


def _with_rows(trial: Trial, rows: int) -> Trial:
    """The trial with so many sequences per step."""
    light = {"train.batch_tokens": rows * trial.config.model.context_length, "resources.workers": 1}
    return replace(trial, config=trial.config.with_values(light))


def measure(trial: Trial) -> dict[str, float]:
    """Seconds of one full step and of one full evaluation, and what compiled code costs each trial at its start."""
    corpus, start = prepare(trial.config.data), 0.0
    light = lighten(trial, lambda part: _second_step(part, corpus))
    if trial.config.resources.compile:
        _begin(light, corpus)  # compiles, and leaves the code in a cache for this run and for the trials
        start = _begin(light, corpus)[1]
    run, _ = _begin(light, corpus)
    step = _step_seconds(run) * trial.config.train.batch_tokens / light.config.train.batch_tokens
    evaluation = statistics.median(_evaluation_seconds(run) for _ in range(EVALUATIONS))
    return {"step": step, "evaluation": evaluation, "start": start}


def _second_step(trial: Trial, corpus: TokenizedCorpus) -> float:
    """Seconds of the second step, the first that allocates nothing, in code that is not compiled."""
    resources = trial.config.resources.model_copy(update={"compile": False})
    run = Run(replace(trial, config=trial.config.model_copy(update={"resources": resources})), corpus, None)
    for _ in range(2):
        begun = time.monotonic()
        run.update()
        run.read_losses()  # waits for the step
    return time.monotonic() - begun


def _begin(trial: Trial, corpus: TokenizedCorpus) -> tuple[Run, float]:
    """A run that has done its first step and evaluation, which allocate and compile, and their seconds."""
    run, begun = Run(trial, corpus, None), time.monotonic()
    run.update()
    _evaluate_a_part(run)
    return run, time.monotonic() - begun


def _step_seconds(run: Run) -> float:
    """Median over single steps, which is not moved by what else the machine does for a moment.

    On a GPU over stretches of steps after which the losses are read: a step alone would end before its work does.
    """
    seconds: list[float] = []
    while sum(seconds) < SECONDS or (len(seconds) < 3 and sum(seconds) < LONG_SECONDS):
        begun = time.monotonic()
        for _ in range(run.losses_at_once):
            run.update()
        run.read_losses()  # waits for the last step
        seconds.append(time.monotonic() - begun)
    return statistics.median(seconds) / run.losses_at_once


def _evaluation_seconds(run: Run) -> float:
    """Seconds of a whole evaluation, by its first pass."""
    begun = time.monotonic()
    windows = _evaluate_a_part(run)
    return (time.monotonic() - begun) * windows / run.evaluation.rows


def _evaluate_a_part(run: Run) -> int:
    """Score the first pass of the windows; how many windows there are."""
    evaluation = run.evaluation
    windows, evaluation.inputs = evaluation.inputs, evaluation.inputs[: evaluation.rows]
    evaluation.scores(run.nats, run.autocast())
    evaluation.inputs = windows
    return len(windows)


def main() -> None:
    """Measure what standard input lists."""
    for written in json.load(sys.stdin):
        try:
            measured = measure(Trial.of_json(written))
        except RuntimeError as error:
            if not lack_of_memory(error):
                raise
            measured = {"step": math.inf, "evaluation": math.inf, "start": 0.0}
        print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
