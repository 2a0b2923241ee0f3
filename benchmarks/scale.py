"""Seconds of planning, reading results, status and report with 10,000 trials, none of which is trained.

    python benchmarks/scale.py [TRIALS]

Prints the wall seconds of each as JSON.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tinyscale.machine import Capacity
from tinyscale.orchestration.record import record_sweep
from tinyscale.planning.make_plan import make_plan
from tinyscale.planning.plan import Plan
from tinyscale.reporting.page import write_report
from tinyscale.results.status import read_status
from tinyscale.results.store import Results, read_results
from tinyscale.spec.sweep import load_sweep
from tinyscale.spec.trial import Trial

SWEEP = """\
name: many
base:
  data: {{corpus: text.txt, tokenizer: {{kind: char}}, val_bytes: 101K}}
  model: {{d_model: 8, n_layers: 1, n_heads: 1, context_length: 32}}
  train: {{tokens_budget: 512, batch_tokens: 512, eval_points: 1}}
axes:
  train.lr: {rates}
  train.weight_decay: [0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5]
seeds: {seeds}
"""


def write_many(folder: Path, count: int) -> Path:
    """Write a sweep of `count` trials, a multiple of 100: ten lr, ten weight decays, count/100 seeds; its path."""
    (folder / "text.txt").write_text("some words in an order of their own " * 30_000)
    path = folder / "many.yaml"
    rates, seeds = [number / 1000 for number in range(1, 11)], list(range(count // 100))
    path.write_text(SWEEP.format(rates=rates, seeds=seeds))
    return path


def point(trial: Trial) -> dict[str, object]:
    """The last point of a trial; the loss is lowest at lr = 0.004."""
    loss = 2 + 0.1 * math.log(trial.config.train.lr / 0.004) ** 2 + 0.001 * (trial.config.seed % 7)
    return {"step": 1, "tokens": 512, "val_loss": loss, "decayed": True}


def timed(what: str, action: Callable[[], object], figures: dict[str, float]) -> None:
    """Add the seconds of an action to the figures."""
    began = time.perf_counter()
    action()
    figures[what] = round(time.perf_counter() - began, 2)


def main() -> None:
    count, figures = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, {}
    with tempfile.TemporaryDirectory() as folder:
        path = write_many(Path(folder), count)
        results = Results(f"{folder}/results")

        def plan() -> Plan:
            return make_plan(load_sweep(path), results, Capacity(2, 0), measure=False)

        made = plan()  # caches the tokens
        timed("plan, nothing done", plan, figures)
        for each in made.trials:
            results.write_trial(each.trial, [point(each.trial)], "finished", None, {})
        record_sweep(made, results, {})
        timed("read_results, first", lambda: read_results(results.location), figures)
        timed("read_results, again", lambda: read_results(results.location), figures)
        timed("status", lambda: read_status(results), figures)
        timed("plan, all done", plan, figures)
        timed("report", lambda: write_report(results.location), figures)
    print(json.dumps({"trials": count, "seconds": figures}))


if __name__ == "__main__":
    main()
