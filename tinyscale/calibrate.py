"""Measure seconds per optimizer step and per evaluation of some trials, for the forecast.

Run as a program, so that planning itself needs no torch: reads a pickled list of trials from standard input,
prints one JSON object a trial.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from dataclasses import replace

from tinyscale.data import prepare
from tinyscale.train import Run
from tinyscale.trial import Trial

SECONDS = 0.4  # of timed steps a trial
FLOPS = 3e10  # of one timed step at most: above it a part of the batch is timed and scaled up


def lighten(trial: Trial) -> Trial:
    """The trial with so small a batch that a step takes seconds at most, but at least one sequence."""
    train, context = trial.config.train, trial.config.model.context_length
    affordable = max(1, int(FLOPS / trial.flops_per_token["flops"]) // context)
    rows = min(train.batch_tokens // context, affordable)
    light = train.model_copy(update={"batch_tokens": rows * context})
    return replace(trial, config=trial.config.model_copy(update={"train": light}))


def measure(trial: Trial) -> dict[str, float]:
    """Seconds of one full step and of one full evaluation."""
    light = lighten(trial)
    run = Run(light, prepare(trial.config.data), None)
    run.update()  # the first step allocates
    begun, steps = time.monotonic(), 0
    while time.monotonic() - begun < SECONDS:
        run.update()
        steps += 1
    step = (time.monotonic() - begun) / steps * trial.config.train.batch_tokens / light.config.train.batch_tokens
    return {"step": step, "evaluation": _evaluation(run)}


def _evaluation(run: Run) -> float:
    """Seconds of the whole evaluation, from a part of its windows."""
    windows, evaluation = len(run.evaluation.inputs), run.evaluation
    evaluation.rows = max(1, min(evaluation.rows, windows))
    evaluation.inputs = evaluation.inputs[: evaluation.rows]
    begun = time.monotonic()
    evaluation.scores(run.gpt, run.autocast())
    return (time.monotonic() - begun) * windows / len(evaluation.inputs)


def main() -> None:
    """Measure what standard input lists."""
    for trial in pickle.load(sys.stdin.buffer):
        print(json.dumps(measure(trial)), flush=True)


if __name__ == "__main__":
    main()
