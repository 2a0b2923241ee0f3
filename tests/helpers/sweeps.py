"""Sweep files: one that is only read, one that trains in seconds, one that searches."""

from __future__ import annotations

from pathlib import Path

from helpers import ROOT
from helpers.text import write_text

ON_CORES = sorted((ROOT / "sweeps").glob("*.yaml"))
ON_GPU = sorted((ROOT / "sweeps" / "gpu").glob("*.yaml"))
SWEEPS = [*ON_CORES, *ON_GPU]

SWEEP = """\
name: tiny
base:
  data: {corpus: CORPUS, tokenizer: {kind: byte}}
  model: {d_model: 16, n_layers: 1, n_heads: 2, context_length: 32}
  train: {tokens_budget: 5120, batch_tokens: 256, lr: 1e-2}
"""


def write_tiny_sweep(folder: Path, text: str = SWEEP, corpus: str | Path = "nowhere.txt") -> Path:
    """The sweep file `tiny.yaml`, its corpus filled in."""
    path = folder / "tiny.yaml"
    path.write_text(text.replace("CORPUS", str(corpus)))
    return path


GRID = """\
name: {name}
base:
  data: {{corpus: text.txt, tokenizer: {{kind: char}}, val_bytes: 101K}}
  model: {{d_model: 8, n_layers: 1, n_heads: 1, context_length: 32}}
  train: {{tokens_budget: {tokens}, batch_tokens: 512, lr: 1e-2, eval_points: 2}}
axes:
  model.d_model: {widths}
seeds: {seeds}
"""


def write_sweep(
    folder: Path, name: str = "small", tokens: str = "20K", widths: str = "[8, 16]", seeds: str = "[0]"
) -> Path:
    """A sweep over widths and seeds that trains in seconds, and its text."""
    return _beside_text(folder / f"{name}.yaml", GRID.format(name=name, tokens=tokens, widths=widths, seeds=seeds))


SEARCH = """\
name: rates
base:
  data: {{corpus: text.txt, tokenizer: {{kind: char}}, val_bytes: 101K}}
  model: {{d_model: 8, n_layers: 1, n_heads: 1, context_length: 32}}
  train: {{tokens_budget: {tokens}, batch_tokens: 512, eval_points: 6}}
axes: {{model.d_model: [8, 16]}}
search:
  fields: {{train.lr: {{low: {low}, high: {high}, log: true}}}}
  trials: {trials}
seeds: [0, 1]
"""


def write_search(folder: Path, *, tokens: str = "10K", low: str = "1e-4", high: str = "1", trials: int = 3) -> Path:
    """A sweep `rates.yaml` that searches the learning rate at two widths and two seeds, and its text."""
    return _beside_text(folder / "rates.yaml", SEARCH.format(tokens=tokens, low=low, high=high, trials=trials))


def _beside_text(path: Path, sweep: str) -> Path:
    if not (path.parent / "text.txt").exists():
        write_text(path.parent / "text.txt")
    path.write_text(sweep)
    return path
