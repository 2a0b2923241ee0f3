"""A results folder as launches would leave it, its losses drawn from a known law: nothing is trained."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from helpers.trials import known_trial
from tinyscale.results.launches import LaunchRecord, write_launch
from tinyscale.results.schema import SCHEMA, point_columns
from tinyscale.results.store import Results
from tinyscale.results.sweep_record import SweepEntry, SweepRecord
from tinyscale.spec.cell import Cell
from tinyscale.spec.config import TrialConfig
from tinyscale.spec.facts import TextFacts
from tinyscale.spec.trial import Trial

PROVENANCE = {
    "commit": "0123abc", "dirty": False, "packages": {"torch": "2.13.0"}, "python": "3.11.7",
    "command": "tinyscale launch sweeps/width.yaml", "launched": "2026-01-02T03:04:05+00:00",
    "host": "node", "platform": "Linux", "processor": "a processor", "cores": 2,
}  # fmt: skip


def loss_of(trial: Trial, tokens: float, better: float = 1.0) -> float:
    """The law behind the made results, with noise of the trial's own. better: how much further N and D go."""
    n = trial.parameters.n_non_embedding * better
    noise = np.random.default_rng([int(trial.identity, 16), int(tokens)]).standard_normal()
    return float((1.5 + 40 * n**-0.35 + 90 * (tokens * better) ** -0.4) * np.exp(0.002 * noise))


def write(results: Results, trial: Trial, better: float = 1.0, state: str = "finished") -> None:
    """The rows of a trial: three points on the way, the last one at the end of the schedule."""
    points = []
    for share in (0.25, 0.5, 1.0):
        tokens = int(trial.tokens * share)
        seconds = 1e-5 * tokens
        loss = loss_of(trial, tokens, better) * (1.2 if share < 1 else 1)
        point = {"step": tokens // 256, "tokens": tokens, "val_loss": loss, "decayed": share == 1}
        point |= {"wall_seconds": seconds, "tokens_per_second": 1e5}
        point["loss_by_position"] = _by_position(trial, loss) if share == 1 else None
        points.append(point_columns(trial, point, 100_000, 400_000))
    reason = None if state == "finished" else "the loss was not finite"
    results.write_trial(trial, points if state == "finished" else points[:2], state, reason, PROVENANCE)


def write_loss(results: Results, trial: Trial, loss: float) -> None:
    """The rows of a finished trial that was evaluated once, at its end."""
    point = {"step": trial.steps, "tokens": trial.tokens, "val_loss": loss, "decayed": True}
    point |= {"wall_seconds": 1.0, "tokens_per_second": 1.0}
    results.write_trial(trial, [point_columns(trial, point, 100_000, 400_000)], "finished", None, PROVENANCE)


def _by_position(trial: Trial, loss: float) -> list[float]:
    """Losses of targets that see 1, 2, 4, ... tokens: about 1.6 / seen above the trial's own."""
    noise = np.random.default_rng(trial.config.seed).standard_normal(20)
    entries = range(trial.config.model.context_length.bit_length() - 1)
    return [loss + 1.6 / 2**k * float(np.exp(0.03 * noise[k])) for k in entries]


def add_launch(results: Results, sweep: str, trials: int, second: int = 5) -> None:
    """The record of a launch that kept two slots busy for all but a tenth of its time."""
    launched = {**PROVENANCE, "launched": f"2026-01-02T03:04:{second:02d}+00:00"}
    record = LaunchRecord(sweep, trials, {"finished": trials}, 2, 50.0, 90.0, 60.0, 0.9, 0.25, False, launched)
    write_launch(results.launches, record)


def add_sweep(
    results: Results, name: str, title: str, cells: list[tuple[str, dict[str, Any]]], seeds: int = 2, **states: str
) -> None:
    """Trials of cells (arm, varied fields) and seeds. The arm `lion` is better; states: `cell0` -> its state."""
    entries = []
    for index, (arm, axes) in enumerate(cells):
        for seed in range(seeds):
            more = {"optimizer": "lion"} if arm == "lion" else {}
            trial = known_trial(seed=seed, repeats=True, **axes, **more)
            write(results, trial, 1.3 if arm == "lion" else 1.0, states.get(f"cell{index}", "finished"))
            entries.append(SweepEntry(trial.identity, Cell(arm, axes, seed)))
    results.write_sweep(SweepRecord(name, title, "", tuple(cells[0][1]), tuple(entries), PROVENANCE))


def _budget(flops: float, widths: tuple[int, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    for width in widths:
        trial = known_trial(d_model=width)
        tokens = round(flops / trial.flops_per_token["flops"] / 256) * 256
        yield "base", {"d_model": width, "tokens_budget": tokens}


def make_results(location: str) -> Results:
    """Six sweeps: sizes with failures, arms, a grid of N and D, budgets of compute, contexts, and one of one size."""
    results = Results(location)
    widths = (16, 32, 48, 64, 96, 128)
    sizes = [("base", {"d_model": width, "tokens_budget": 512_000}) for width in widths]
    add_sweep(results, "width", "Loss against parameters", sizes, cell5="diverged")
    arms = [(arm, {"d_model": w, "tokens_budget": 409_600}) for arm in ("base", "lion") for w in (16, 32, 64, 96)]
    add_sweep(results, "optimizer", "Is Lion better than AdamW?", arms)
    grid = [
        ("base", {"d_model": w, "tokens_budget": d}) for w in (16, 32, 64, 128) for d in (51200, 102400, 204800, 819200)
    ]
    add_sweep(results, "grid", "Loss against parameters and tokens", grid)
    budgets = [
        cell for flops in (4e9, 1.2e10, 4e10, 1.2e11) for cell in _budget(flops, (8, 12, 16, 24, 32, 48, 64, 96))
    ]
    add_sweep(results, "budgets", "The best size for a budget", budgets, seeds=1)
    add_sweep(results, "single", "One size only", [("base", {"d_model": 16, "tokens_budget": 25_600})])
    lengths = [("base", {"context_length": length, "tokens_budget": 256_000}) for length in (16, 32, 64, 128)]
    add_sweep(results, "context", "How long a context pays?", lengths, seeds=3)
    add_launch(results, "width", 10)
    add_launch(results, "width", 2)
    return results


WIDTHS = (64, 96, 128, 192, 256, 384)


CONFIG = TrialConfig.model_validate({
    "data": {"corpus": "tinystories", "tokenizer": {"kind": "bpe", "vocab_size": 1024}},
    "model": {"d_model": 64, "n_layers": 4, "head_dim": 16, "context_length": 256},
    "train": {"tokens_per_param": 20, "batch_tokens": 16384, "lr": 3e-3},
})  # fmt: skip

FACTS = TextFacts("a", "rule-1", "70", vocab_size=1024, train_tokens=10**9)


def write_rows(results: Results, trial: str, rows: list[dict[str, Any]], config: TrialConfig = CONFIG) -> None:
    """A trial's file, from its rows."""
    buffer = io.BytesIO()
    rows = [{**row, "trial": trial, "vocab_size": 1024, "schema_version": 1} for row in rows]
    footer = {"tinyscale.config": config.model_dump_json(), "tinyscale.facts": json.dumps(asdict(FACTS))}
    schema = SCHEMA.with_metadata(footer)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
    results.trials.write(f"{trial}.parquet", buffer.getvalue())


def write_results(folder: Path, *, sweep: bool = True, arms: tuple[str, ...] = ("base",), **config: Any) -> Results:
    """Finished trials of six widths, two seeds and two points each, and one diverged trial."""
    results, rng, entries = Results(str(folder)), np.random.default_rng(0), []
    for arm in arms:
        for width in WIDTHS:
            n = 48 * width**2
            for seed in (0, 1):
                trial = f"{arm}{width}s{seed}"
                loss = (1.4 + 60 * n**-0.29) * np.exp(0.004 * rng.standard_normal())
                common = {"run": trial, "seed": seed, "n_non_embedding": n, "lr": 1e-3, "corpus_hash": "a", **config}
                rows = [
                    {**common, "state": "finished", "tokens": 10 * n, "val_loss": 1.1 * loss, "decayed": False},
                    {**common, "state": "finished", "tokens": 20 * n, "val_loss": loss, "decayed": True},
                ]
                write_rows(results, trial, rows)
                entries.append(SweepEntry(trial, Cell(arm, {"d_model": width}, seed)))
    lost = {"state": "diverged", "reason": "loss is nan", "seed": 2, "n_non_embedding": 48 * 64**2, "tokens": 5}
    write_rows(results, "lost", [lost])
    entries.append(SweepEntry("lost", Cell(arms[0], {"d_model": 64}, 2)))
    if sweep:
        results.write_sweep(SweepRecord("width", "", "", ("d_model",), tuple(entries), {}))
    return results
