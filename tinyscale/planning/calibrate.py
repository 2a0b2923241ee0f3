"""Measure the seconds per optimizer step and per evaluation of some trials, for the forecast.

The forecast runs this as a program, so that planning needs no torch. It reads a JSON list of trials from standard input
and prints one JSON object per trial. A trial that does not fit in GPU memory has infinite seconds.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace

import numpy as np

from tinyscale.data import TokenizedCorpus, prepare
from tinyscale.errors import lack_of_memory
from tinyscale.spec.trial import Trial
from tinyscale.training.loop import Run
from tinyscale.training.own import build_model

SECONDS = 1.0  # of timed steps per trial, in at least three measurements
LONG_SECONDS = 5.0  # of timed steps, after which fewer measurements suffice
STEP_SECONDS = 0.5  # if a step takes longer, a part of the batch is timed and scaled up
FLOPS = 3e10  # of the first step that is tried, which takes any device a second at most
EVALUATIONS = 3


def lighten(trial: Trial, step_seconds: Callable[[Trial], float]) -> Trial:
    """The trial with the batch of one worker, or with a part of it if a step takes STEP_SECONDS.

    The part doubles until a step takes that long. The time of a shorter step may be the launching of kernels, which
    does not depend on the batch and so cannot be scaled up. step_seconds: measures a step of a trial.
    """
    train, context = trial.config.train, trial.config.model.context_length
    whole = train.batch_tokens // context // trial.config.resources.workers  # rows that one device must hold
    rows = max(1, int(FLOPS / trial.flops_per_token["flops"]) // context)
    while rows < whole and step_seconds(_with_rows(trial, rows)) < STEP_SECONDS:
        rows *= 2
    return _with_rows(trial, min(rows, whole))


def _with_rows(trial: Trial, rows: int) -> Trial:
    """The trial with `rows` sequences per step, on one worker."""
    light = {"train.batch_tokens": rows * trial.config.model.context_length, "resources.workers": 1}
    return replace(trial, config=trial.config.with_values(light))


def measure(trial: Trial) -> dict[str, float]:
    """Mean seconds of one whole step, of one whole evaluation, and of a trial's start (loading compiled code).

    least and most: the first and the last decile of the steps, in units of their mean.
    """
    corpus, start = prepare(trial.config.data), 0.0
    light = lighten(trial, lambda part: _second_step(part, corpus))
    if trial.config.resources.compile:
        _begin(light, corpus)  # compiles, and caches the code for the run below and for the trials
        start = _begin(light, corpus)[1]
    run, _ = _begin(light, corpus)
    steps = _step_seconds(run)
    step = statistics.fmean(steps)
    least, most = np.quantile(steps, (0.1, 0.9)).tolist()
    whole = trial.config.train.batch_tokens / light.config.train.batch_tokens
    evaluation = statistics.fmean(_evaluation_seconds(run) for _ in range(EVALUATIONS))
    return {
        "step": step * whole,
        "evaluation": evaluation,
        "start": start,
        "least": min(1.0, least / step),
        "most": max(1.0, most / step),
    }


def _second_step(trial: Trial, corpus: TokenizedCorpus) -> float:
    """Seconds of the second step, which allocates no more memory, in eager code."""
    resources = trial.config.resources.model_copy(update={"compile": False})
    run = _run(replace(trial, config=trial.config.model_copy(update={"resources": resources})), corpus)
    for _ in range(2):
        begun = time.monotonic()
        run.update()
        run.read_losses()  # waits for the step
    return time.monotonic() - begun


def _run(trial: Trial, corpus: TokenizedCorpus) -> Run:
    """A run that keeps nothing; a teacher of random weights takes as long as one that has learned."""
    teacher = build_model(trial.teacher) if trial.teacher else None
    return Run(trial, corpus, None, teacher=teacher)


def _begin(trial: Trial, corpus: TokenizedCorpus) -> tuple[Run, float]:
    """A run after its first step and evaluation, which allocate and compile, and the seconds of both."""
    run, begun = _run(trial, corpus), time.monotonic()
    run.update()
    _evaluate_first_pass(run)
    return run, time.monotonic() - begun


def _step_seconds(run: Run) -> list[float]:
    """Seconds of each step that is timed.

    On a GPU, steps are timed in groups that end with a reading of losses: a step returns before its kernels have run.
    """
    seconds: list[float] = []
    while sum(seconds) < SECONDS or (len(seconds) < 3 and sum(seconds) < LONG_SECONDS):
        begun = time.monotonic()
        for _ in range(run.losses_at_once):
            run.update()
        run.read_losses()  # waits for the last step
        seconds.append(time.monotonic() - begun)
    return [each / run.losses_at_once for each in seconds]


def _evaluation_seconds(run: Run) -> float:
    """Seconds of a whole evaluation, extrapolated from its first forward pass."""
    begun = time.monotonic()
    windows = _evaluate_first_pass(run)
    return (time.monotonic() - begun) * windows / run.evaluation.rows


def _evaluate_first_pass(run: Run) -> int:
    """Score the windows of the first forward pass; returns the number of all windows."""
    evaluation = run.evaluation
    windows, evaluation.inputs = evaluation.inputs, evaluation.inputs[: evaluation.rows]
    evaluation.scores(run.nats, run.autocast())
    evaluation.inputs = windows
    return len(windows)


def main() -> None:
    """Measure the trials on standard input. What a user's own code prints goes to standard error."""
    for trial in json.load(sys.stdin):
        try:
            with redirect_stdout(sys.stderr):
                measured = measure(Trial.of_json(trial))
        except RuntimeError as error:
            if not lack_of_memory(error):
                raise
            measured = {"step": math.inf, "evaluation": math.inf, "start": 0.0, "least": 1.0, "most": 1.0}
        print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
