"""Whether one learning rate serves all sizes of a sweep: what a step moves at each size, and where the best rate lies.

The movements are those of `training/coordinates.py`; the best rates are read from the sweep's results.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from tinyscale.analysis.runs import free_settings, read_groups
from tinyscale.errors import ConfigError, FitError, ForecastError, ResultsError
from tinyscale.fitting.arrays import Array
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.minimum import find_minimum
from tinyscale.machine import own_python, usable_cores
from tinyscale.results.store import Results
from tinyscale.spec.config import ModelConfig, TrialConfig
from tinyscale.spec.grid import Variant
from tinyscale.spec.settings import CODE
from tinyscale.spec.sweep import Sweep

AXES = ("d_model", "n_layers")
FOLLOWING = ("n_heads", "head_dim", "n_kv_heads", "d_ff")  # fields that the width may bring with it
TOLD_APART = {"optimizer", *ModelConfig.model_fields} - {*AXES, *FOLLOWING}  # by what a step moves
SEEDS = (0, 1)


@dataclass(frozen=True)
class Slope:
    """How a movement or the best lr grows with a size. power: the log2 of its factor per doubling of the axis."""

    what: str
    axis: str
    power: Estimate

    @property
    def is_flat(self) -> bool:
        """Whether zero is inside the interval."""
        return self.power.holds_zero

    def __str__(self) -> str:
        inside = "0 inside" if self.is_flat else "0 outside"
        value, low, high = (f"{end:.2f}" for end in (self.power.value, *self.power.ends))
        return f"{self.what}: {value} per doubling of {self.axis} (95 %: {low} to {high}), {inside}"


@dataclass(frozen=True)
class Transfer:
    """What was found for one arm, or a part of it. notes: why something was not found."""

    label: str
    slopes: tuple[Slope, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """What `check-transfer --json` lists."""
        slopes = [{"what": slope.what, "axis": slope.axis, **slope.power.as_json()} for slope in self.slopes]
        return {"label": self.label, "slopes": slopes, "notes": list(self.notes)}


def check_transfer(sweep: Sweep, results: Results) -> list[Transfer]:
    """The slopes of each arm, by the values of axes that change what a step moves.

    ConfigError for a user's own code; FitError if no arm has two sizes; ForecastError if the measurement fails.
    """
    parts: dict[str, list[Variant]] = {}
    for variant in sweep.variants:
        if variant.config.runs_own_code:
            where = variant.where(*CODE)
            raise ConfigError(f"{where}: what a step moves is measured in the built-in GPT and by its optimizers alone")
        cell = variant.cell
        label = cell.without([name for name in cell.axes if name not in TOLD_APART]).label_of_seeds
        parts.setdefault(label, []).append(variant)
    found = []
    for label, variants in parts.items():
        configs = list(dict.fromkeys(_config(variant, seed) for variant in variants for seed in SEEDS))
        sizes = pd.DataFrame([{axis: getattr(config.model, axis) for axis in AXES} for config in configs])
        if len(sizes.drop_duplicates()) < 2:
            continue
        moved = pd.DataFrame(_measure(configs))
        slopes = [slope for what in moved for slope in _slopes(str(what), sizes, np.log2(moved[what].to_numpy()))]
        arm = variants[0].cell.arm
        rates, notes = _rate_slopes(sweep.name, arm, {variant.cell.key for variant in variants}, results)
        found.append(Transfer(label or sweep.name, (*slopes, *rates), notes))
    if not found:
        raise FitError(f"{sweep.path}: no arm has two sizes; give it an axis of {' or '.join(AXES)}")
    return found


def _config(variant: Variant, seed: int) -> TrialConfig:
    """What the movements depend on: settings that they do not are made alike, so that equal ones are measured once."""
    train = variant.config.train
    alike: dict[str, Any] = {"lr": 1e-3, "batch_tokens": variant.config.model.context_length, "tokens_budget": 10**6}
    alike |= {"optimizer": train.optimizer, "betas": train.betas, "weight_decay": train.weight_decay}
    values = {"train": alike, "seed": seed, "resources": {}}
    return TrialConfig.model_validate({**variant.config.model_dump(), **values})


def _measure(configs: Sequence[TrialConfig]) -> list[dict[str, float]]:
    """The movements of each configuration, measured in a process of its own."""
    python, path = own_python()
    done = subprocess.run(
        [*python, "-m", "tinyscale.training.coordinates"],
        input=json.dumps([config.model_dump(mode="json") for config in configs]),
        capture_output=True,
        text=True,
        env=os.environ | path | {"OMP_NUM_THREADS": str(usable_cores())},
        check=False,
    )
    if done.returncode:
        message = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ForecastError(f"measuring what a step moves failed: {message}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def _slopes(what: str, sizes: pd.DataFrame, y: Array, sd: Array | None = None) -> Iterator[Slope]:
    """Slopes of y (n,), a log2, on the log2 of the sizes that vary, by least squares with standard deviations sd.

    Intervals by t; where points scatter more than their own sd, by that scatter. Axes that vary in step are one.
    """
    varied = [axis for axis in AXES if sizes[axis].nunique() > 1]
    x = np.log2(sizes[varied].to_numpy(float))
    if np.linalg.matrix_rank(x - x.mean(axis=0), tol=1e-6) < len(varied):
        x, varied = x[:, :1], [" with ".join(varied)]
    weight = np.ones_like(y) if sd is None else 1 / sd
    inverse = np.linalg.pinv(np.column_stack([np.ones_like(y), x]) * weight[:, None])
    found = inverse @ (y * weight)
    residuals = (y - found[0] - x @ found[1:]) * weight
    dof = max(len(y) - len(found), 1)
    scatter = np.sqrt(max(0.0 if sd is None else 1.0, float((residuals**2).sum()) / dof))
    half_widths = special.stdtrit(dof, 0.975) * scatter * np.linalg.norm(inverse, axis=1)
    for axis, value, half_width in zip(varied, found[1:], half_widths[1:], strict=True):
        yield Slope(what, axis, Estimate.around(value, half_width))


def _rate_slopes(name: str, arm: str, cells: set[str], results: Results) -> tuple[tuple[Slope, ...], tuple[str, ...]]:
    """The slopes of the best lr over the sizes in the results of these cells, and why there are none."""
    record = results.read_sweep(name)
    trials = {entry.trial for entry in record.entries if entry.cell.key in cells} if record else set()
    try:
        groups = [group for group in read_groups(results.folder.path) if (group.sweep, group.arm) == (name, arm)]
    except ResultsError:
        groups = []
    frame = pd.concat([group.frame[group.frame["trial"].isin(trials)] for group in groups]) if groups else None
    if frame is None or frame.empty:
        return (), (f"no best lr: {results.folder} has no finished trials of it; launch the sweep",)
    if mixed := [setting for setting in free_settings(frame) if setting != "lr"]:
        return (), (f"no best lr: runs of one size also differ in {', '.join(mixed)}; select a part of the sweep",)
    rows, notes = [], []
    for size, runs in frame.groupby(list(AXES)):
        bottom = find_minimum(
            np.log(runs["lr"].to_numpy(float)), np.log(runs["val_loss"].to_numpy(float)), what="lr", most="highest"
        )
        at = ", ".join(f"{axis} {value}" for axis, value in zip(AXES, size, strict=True))
        if bottom.refused:
            notes.append(f"no best lr at {at}: {bottom.refused}")
        else:
            rows.append(
                {**dict(zip(AXES, size, strict=True)), "best": bottom.at / np.log(2), "sd": bottom.sd / np.log(2)}
            )
            notes.append(f"best lr at {at}: {np.exp(bottom.at):.3g}")
    table = pd.DataFrame(rows)
    if len(table) < 2:
        return (), (*notes, "no slope of the best lr: it needs two sizes with a best lr inside the rates tried")
    best = table["best"].to_numpy(float)
    return tuple(_slopes("best lr", table, best, table["sd"].to_numpy(float))), tuple(notes)
