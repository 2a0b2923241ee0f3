"""Measure seconds per optimizer step and per evaluation of some trials, for the forecast.

Run as a program, so that planning itself needs no torch: reads a JSON list of trials from standard input,
prints one JSON object per trial.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import replace

from tinyscale.data import TokenizedCorpus, prepare
from tinyscale.spec.trial import Trial
from tinyscale.training.loop import Run

SECONDS = 0.4  # of timed steps a trial
FLOPS = 3e10  # of one timed step at most: above it a part of the batch is timed and scaled up


def lighten(trial: Trial) -> Trial:
    """The trial with so small a batch that a step takes seconds at most, but at least one sequence."""
    train, context = trial.config.train, trial.config.model.context_length
    affordable = max(1, int(FLOPS / trial.flops_per_token["flops"]) // context)
    rows = min(train.batch_tokens // context, affordable)
    light = {"train.batch_tokens": rows * context, "resources.workers": 1}
    return replace(trial, config=trial.config.with_values(light))


def measure(trial: Trial) -> dict[str, float]:
    """Seconds of one full step and of one full evaluation, and what compiled code costs each trial at its start."""
    light, corpus = lighten(trial), prepare(trial.config.data)
    start = 0.0
    if trial.config.resources.compile:
        _begin(light, corpus)  # compiles, and leaves the code in a cache for this run and for the trials
        start = _begin(light, corpus)[1]
    run, _ = _begin(light, corpus)
    step = _step_seconds(run) * trial.config.train.batch_tokens / light.config.train.batch_tokens
    begun = time.monotonic()
    windows = _evaluate_a_part(run)
    return {"step": step, "evaluation": (time.monotonic() - begun) * windows / run.evaluation.rows, "start": start}


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
    while sum(seconds) < SECONDS or len(seconds) < 3:
        begun = time.monotonic()
        for _ in range(run.losses_at_once):
            run.update()
        seconds.append(time.monotonic() - begun)
    return statistics.median(seconds) / run.losses_at_once


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
        print(json.dumps(measure(Trial.of_json(written))), flush=True)


if __name__ == "__main__":
    main()
