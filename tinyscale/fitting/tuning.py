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
from tinyscale.fitting.arrays import Array
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.laws.optima import SETTINGS, OptimaLaw, with_optimum
from tinyscale.fitting.minimum import find_minimum
from tinyscale.fitting.optima import Optima
from tinyscale.fitting.points import column_of, group_sizes, positive, varying
from tinyscale.formatting import compact

BATCH = "batch_tokens"  # each has a best rate of its own
HOLDS_FOR = ("corpus_hash", "tokenizer_hash", "optimizer", "parametrization")  # elsewhere other values are best
LEAST_SIZES = 3


def best_setting(law: Mapping[str, Estimate], n: float, d: float = 1.0, batch: float = 1.0) -> float:
    """The setting at a size, by the estimates of a law of tuning; d and batch matter only where the law has them."""
    k, p, q, r = (law[name].value if name in law else 0.0 for name in ("k", "p", "q", "r"))
    return float(k * n**p * d**q * batch**r)


def fit_tuning(frame: pd.DataFrame, law: str, *, columns: Mapping[str, str] | None = None) -> Optima:
    """The best lr (or batch, in tokens) at each N and D by a polynomial in its log, then log-log least squares.

    params k, p (of N), q (of D) and, for rates, r (of the batch), where these vary apart from the others; points:
    columns n, d, setting, loss. Batches of different size have best rates of their own. Sizes whose best value lies at
    an end of the range are refused with the reason; FitError, which says what was found at each size, when fewer than 3
    remain.
    """
    form = SETTINGS[law]
    setting = form.predicts
    counts = {name: column_of(frame, name, columns) for name in ("n", "d", "loss")}
    counts["setting"] = column_of(frame, setting, columns)
    points = pd.DataFrame({name: positive(frame[column]) for name, column in counts.items()})
    if setting != BATCH and varying(frame, [BATCH]):
        points[BATCH] = positive(frame[BATCH]).astype(int)
    x = np.log(points[["n", "d"]].to_numpy())
    sizes = np.stack([group_sizes(x[:, 0]), group_sizes(x[:, 1], 0.05), points.get(BATCH, np.zeros(len(x), int))])
    configs, config = np.unique(sizes, axis=1, return_inverse=True)
    parts = [points[config.ravel() == index] for index in range(config.max() + 1)]
    table = pd.DataFrame([_best(part, setting) for part in parts])
    optima = np.unique(configs[:2, table["refused"] == ""], axis=1)  # whatever the batch
    if optima.shape[1] < LEAST_SIZES:
        found = "; ".join(_describe(row, setting) for row in table.to_dict("records"))
        raise FitError(f"a law of the best {setting} needs {LEAST_SIZES} sizes with a best value inside; {found}")
    shared = {name: frame[name].iloc[0] for name in (*HOLDS_FOR, BATCH) if name in frame and not varying(frame, [name])}
    of = {name: int(value) if name == BATCH else str(value) for name, value in shared.items()}
    return replace(_through(form, table, points, counts), of=MappingProxyType(of))


def _best(part: pd.DataFrame, setting: str) -> dict[str, Any]:
    """A row of the table: the best value at one size, or why there is none."""
    found = find_minimum(
        np.log(part["setting"].to_numpy()),
        np.log(part["loss"].to_numpy()),
        what=setting,
        most="highest" if setting == "lr" else "largest",
    )
    at = {"n": part["n"].mean(), "d": part["d"].mean(), **({BATCH: part[BATCH].iloc[0]} if BATCH in part else {})}
    optimum = {"best": np.exp(found.at), "log_sd": found.sd, "loss": np.exp(found.height)}
    return {**at, **optimum, "refused": found.refused}


def _describe(row: Mapping[Any, Any], setting: str) -> str:
    """`N = 12.3K, batch_tokens = 4096: 0.011 (95 %: 0.009 to 0.0134)`, or the reason."""
    at = f"N = {compact(row['n'])}" + (f", {BATCH} = {row[BATCH]}" if BATCH in row else "")
    if row["refused"]:
        return f"{at}: {row['refused']}"
    low, high = row["best"] * np.exp(np.array([-1.96, 1.96]) * row["log_sd"])
    return f"{at}: best {setting} {row['best']:.3g} (95 %: {low:.3g} to {high:.3g})"


def _through(law: OptimaLaw, table: pd.DataFrame, points: pd.DataFrame, counts: Mapping[str, str]) -> Optima:
    """log optimum = log k + p log N (+ q log D + r log batch), equal weights; intervals by t from the scatter about it.

    D and the batch are read where they vary apart from what is read before them, and optima are left over.
    """
    kept, setting = with_optimum(table), law.predicts
    basis, names, blurred = np.log(kept[["n"]].to_numpy(float)), ["p"], []
    for name, column in (("q", "d"), ("r", BATCH)):
        if column in kept and kept[column].nunique() > 1:
            wider = np.column_stack([basis, np.log(kept[column].to_numpy(float))])
            if len(kept) > wider.shape[1] + 2 and _vary_apart(wider):
                basis, names = wider, [*names, name]
            elif column == BATCH:
                blurred = [f"batches differ ({BATCH}) and follow the size: the law is of the batch that each size had"]
    basis, names = np.column_stack([np.ones(len(kept)), basis]), ["k", *names]
    y = np.log(kept["best"].to_numpy(float))
    found, *_ = np.linalg.lstsq(basis, y, rcond=None)
    dof = max(len(y) - len(names), 1)
    variance = max(((y - basis @ found) ** 2).sum() / dof, 1e-24)
    half_widths = special.stdtrit(dof, 0.975) * np.sqrt(variance * np.diag(np.linalg.pinv(basis.T @ basis)))
    estimates = {name: Estimate.around(*each) for name, *each in zip(names, found, half_widths, strict=True)}
    estimates["k"] = estimates["k"].map(lambda log_k: np.exp(np.clip(log_k, -700, 700)))
    notes = [_describe(row, setting) for row in table[table["refused"] != ""].to_dict("records")] + blurred
    return Optima(
        law=law,
        formula=f"{setting}* = k N^p" + (" D^q" if "q" in names else "") + (" B^r" if "r" in names else ""),
        estimates=MappingProxyType(estimates),
        table=table,
        runs=points,
        columns=MappingProxyType(dict(counts)),
        objective={"value": None, "kind": "least squares of the log optimum on log N and log D"},
        dof=dof,
        held_out=None,
        warnings=tuple(notes),
    )


def _vary_apart(logarithms: Array) -> bool:
    """Whether the columns (n, k) vary apart from each other, and not all along one line."""
    centred = logarithms - logarithms.mean(axis=0)
    return bool(np.linalg.svd(centred, compute_uv=False)[-1] > 0.5)
