"""Compare the losses and the law of bf16 compiled training with those of fp32 eager training.

    python benchmarks/fast_path.py [--lr 3e-3] [--widths 6 10 16 24 36] [--seeds 3] [--steps 500]

Trials like the quickstart's are trained for `steps` steps in three ways. fp32 compiled differs from fp32 eager by
rounding only, and so shows how much training amplifies the smallest difference. For each width the table has the mean
and the standard deviation over seeds of the loss (nats per token) in fp32 eager, and for the other ways the mean and
the largest absolute difference over seeds. Below it is the exponent of L(N) = E + A N^-alpha in each way, with its
95 % interval. No times are measured, so other load on the machine has no effect.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pandas as pd

from tinyscale.data import prepare
from tinyscale.fitting.fit import fit_law
from tinyscale.machine import Capacity
from tinyscale.planning.make_plan import make_plan
from tinyscale.results.store import Results
from tinyscale.spec.sweep import load_sweep
from tinyscale.training.loop import train

SWEEP = """\
name: fast_path
base:
  data: {{corpus: sotu, tokenizer: {{kind: bpe, vocab_size: 512}}, val_bytes: 400K}}
  model: {{n_layers: 2, n_heads: 1, context_length: 64, positions: rotary}}
  train: {{tokens_budget: {tokens}, batch_tokens: 2048, lr: {lr}, eval_points: 1, precision: {precision}}}
axes:
  model.d_model: {widths}
seeds: {seeds}
resources: {{cpu: 1, compile: {compile}}}
"""
WAYS = {
    "fp32, eager": {"precision": "fp32", "compile": "false"},
    "fp32, compiled": {"precision": "fp32", "compile": "true"},
    "bf16, compiled": {"precision": "bf16", "compile": "true"},
}


def losses(way: str, widths: list[int], seeds: int, steps: int, lr: float) -> pd.DataFrame:
    """Final validation loss of each width and seed, nats per token."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fast_path.yaml")
        fields = {"tokens": 2048 * steps, "lr": lr, "widths": widths, "seeds": list(range(seeds)), **WAYS[way]}
        path.write_text(SWEEP.format(**fields))
        plan = make_plan(load_sweep(path), Results(folder), Capacity(1, 0), measure=False)
    rows = []
    for planned in plan.trials:
        config = planned.trial.config
        loss = train(planned.trial, prepare(config.data), lambda _: None).points[-1].val_loss
        size = planned.trial.parameters.n_non_embedding
        rows.append({"d_model": config.model.d_model, "n": size, "seed": config.seed, "loss": loss})
        print(f"{way}: {rows[-1]}", flush=True)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--widths", type=int, nargs="+", default=[6, 10, 16, 24, 36])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    found = {way: losses(way, options.widths, options.seeds, options.steps, options.lr) for way in WAYS}
    exact, *others = found.values()
    names = [f"{way}: mean, largest difference" for way in list(found)[1:]]
    print(f"\n| d_model | loss | seeds' deviation | {' | '.join(names)} |\n|---|---|---{'|---' * len(others)}|")
    for width, rows in exact.groupby("d_model"):
        added = [other["loss"][rows.index] - rows["loss"] for other in others]
        cells = [f"{rows['loss'].mean():.4f}", f"{rows['loss'].std():.4f}"]
        cells += [f"{each.mean():+.5f}, {each.abs().max():.5f}" for each in added]
        print(f"| {width} | {' | '.join(cells)} |")
    for way, frame in found.items():
        law = fit_law(frame, "power-n")
        low, high = law.interval("alpha")
        print(f"{way}: alpha {law.params['alpha']:.4f}, 95 % interval {low:.4f} to {high:.4f}")


if __name__ == "__main__":
    main()
