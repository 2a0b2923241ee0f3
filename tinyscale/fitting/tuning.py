"""Laws of tuned settings: the learning rate or batch with the least loss at each size, then a power law through those.

Learning rate and batch: Li et al. 2025 (2503.04715), lr* = k N^p D^q; Bi et al. 2024 (2401.02954), powers of C.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from tinyscale.errors import FitError
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.isoflop import Optima
from tinyscale.fitting.points import column_of, group_sizes, varying
from tinyscale.fitting.valley import find_valley
from tinyscale.formatting import compact

SETTINGS = {"lr": "lr", "batch": "batch_tokens"}
BATCH = "batch_tokens"  # each has a best rate of its own
HOLDS_FOR = ("corpus_hash", "tokenizer_hash", "optimizer", "parametrization")  # elsewhere other values are best
LEAST_SIZES = 3


def best_setting(found: Optima, n: float, d: float = 1.0) -> float:
    """The setting at a size, by a law of tuning; d matters only where the law has it."""
    return float(found.params["k"] * n ** found.params["p"] * d ** found.params.get("q", 0.0))


def fit_tuning(frame: pd.DataFrame, law: str, *, columns: Mapping[str, str] | None = None) -> Optima:
    """The best lr (or batch, in tokens) at each N and D by a polynomial in its log, then log-log least squares.

    params k, p (of N) and, where D varies apart from N, q (of D); points: columns n, d, setting, loss.
    Batches of different size have best rates of their own. Sizes whose best value lies at an end of the range are
    refused with the reason; FitError, which says what was found at each size, when fewer than 3 remain.
    """
    setting = SETTINGS[law]
    counts = {name: column_of(frame, name, columns) for name in ("n", "d", "loss")}
    counts["setting"] = column_of(frame, setting, columns)
    points = pd.DataFrame({name: frame[column].to_numpy(float) for name, column in counts.items()})
    if setting != BATCH and varying(frame, [BATCH]):
        points[BATCH] = frame[BATCH].to_numpy(int)
    x = np.log(points[["n", "d"]].to_numpy())
    sizes = np.stack([group_sizes(x[:, 0]), group_sizes(x[:, 1], 0.05), points.get(BATCH, np.zeros(len(x), int))])
    configs, config = np.unique(sizes, axis=1, return_inverse=True)
    parts = [points[config.ravel() == index] for index in range(config.max() + 1)]
    table = pd.DataFrame([_best(part, setting) for part in parts])
    places = np.unique(configs[:2, table["refused"] == ""], axis=1)  # whatever the batch
    if places.shape[1] < LEAST_SIZES:
        found = "; ".join(_describe(row, setting) for row in table.to_dict("records"))
        raise FitError(f"a law of the best {setting} needs {LEAST_SIZES} sizes with a best value inside; {found}")
    shared = {name: frame[name].iloc[0] for name in (*HOLDS_FOR, BATCH) if name in frame and not varying(frame, [name])}
    of = {name: int(value) if name == BATCH else str(value) for name, value in shared.items()}
    return replace(_through(law, setting, table, points, counts), of=MappingProxyType(of))


def _best(part: pd.DataFrame, setting: str) -> dict[str, Any]:
    """A row of the table: the best value at one size, or why there is none."""
    valley = find_valley(np.log(part["setting"].to_numpy()), np.log(part["loss"].to_numpy()))
    why = valley.refused.replace("size", setting).replace("largest lr", "highest lr")
    place = {"n": part["n"].mean(), "d": part["d"].mean(), **({BATCH: part[BATCH].iloc[0]} if BATCH in part else {})}
    return {**place, "optimum": np.exp(valley.at), "log_sd": valley.sd, "loss": np.exp(valley.height), "refused": why}


def _describe(row: Mapping[Any, Any], setting: str) -> str:
    """`N = 12.3K, batch_tokens = 4096: 0.011 (95 %: 0.009 to 0.0134)`, or the reason."""
    place = f"N = {compact(row['n'])}" + (f", {BATCH} = {row[BATCH]}" if BATCH in row else "")
    if row["refused"]:
        return f"{place}: {row['refused']}"
    low, high = row["optimum"] * np.exp(np.array([-1.96, 1.96]) * row["log_sd"])
    return f"{place}: best {setting} {row['optimum']:.3g} (95 %: {low:.3g} to {high:.3g})"


def _through(law: str, setting: str, table: pd.DataFrame, points: pd.DataFrame, counts: Mapping[str, str]) -> Optima:
    """log optimum = log k + p log N (+ q log D), equal weights; intervals by t from the scatter about it."""
    kept = table[table["refused"] == ""]
    n, d = np.log(kept["n"].to_numpy(float)), np.log(kept["d"].to_numpy(float))
    basis, names = np.stack([np.ones_like(n), n], axis=1), ["k", "p"]
    apart = len(kept) > 4 and np.linalg.svd(np.stack([n - n.mean(), d - d.mean()]), compute_uv=False)[-1] > 0.5
    if apart:
        basis, names = np.column_stack([basis, d]), ["k", "p", "q"]
    y = np.log(kept["optimum"].to_numpy(float))
    found, *_ = np.linalg.lstsq(basis, y, rcond=None)
    dof = max(len(y) - len(names), 1)
    variance = max(((y - basis @ found) ** 2).sum() / dof, 1e-24)
    half_widths = special.stdtrit(dof, 0.975) * np.sqrt(variance * np.diag(np.linalg.pinv(basis.T @ basis)))
    estimates = {name: Estimate.around(*each) for name, *each in zip(names, found, half_widths, strict=True)}
    estimates["k"] = estimates["k"].map(lambda log_k: np.exp(np.clip(log_k, -700, 700)))
    notes = [_describe(row, setting) for row in table[table["refused"] != ""].to_dict("records")]
    return Optima(
        law=law,
        formula=f"{setting}* = k N^p" + (" D^q" if apart else ""),
        estimates=MappingProxyType(estimates),
        table=table,
        places="sizes",
        points=points,
        columns=MappingProxyType(dict(counts)),
        objective={"value": None, "kind": "least squares of the log optimum on log N and log D"},
        dof=dof,
        held_out=None,
        warnings=tuple(notes),
    )
