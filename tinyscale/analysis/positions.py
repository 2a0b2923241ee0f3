"""How the loss falls with the tokens of its document that a model has seen: the column loss_by_position, over seeds."""

from __future__ import annotations

import pandas as pd
from scipy import special

from tinyscale.fitting.estimate import Estimate
from tinyscale.formatting import compact

CURVE = ["arm", "context_length", "n_non_embedding"]  # what tells curves apart
FLAT = 0.01  # of the loss: a fall of less is called flat


def position_losses(points: pd.DataFrame) -> pd.DataFrame:
    """One row per trial and entry of its loss_by_position, at the end of its schedule; empty where context matters not.

    points: of one sweep, with the column `arm`. Columns: trial, seed, those of CURVE, `seen` (least tokens of the
    document before the target: 1, 2, 4, ...) and `loss`. Context matters where the sweep varies context_length or
    positions, and apart from it only sizes that differ in N, arms, and seeds.
    """
    final = points[(points["state"] == "finished") & points["loss_by_position"].notna()].sort_values("tokens")
    last = final.drop_duplicates("trial", keep="last")
    varies = last["context_length"].nunique() > 1 or last["positions"].nunique() > 1
    if not varies or last.duplicated([*CURVE, "seed"]).any():
        last = last.iloc[:0]
    rows = last.rename(columns={"loss_by_position": "loss"})[["trial", "seed", *CURVE, "loss"]].explode("loss")
    rows = rows.assign(seen=2 ** rows.groupby("trial").cumcount(), loss=rows["loss"].astype(float))
    return rows.dropna(subset="loss").reset_index(drop=True)


def positions_over_seeds(losses: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation (n - 1) and number of seeds of each entry of each curve."""
    groups = losses.groupby([*CURVE, "seen"], sort=False)["loss"]
    return groups.agg(loss="mean", loss_std="std", seeds="count").reset_index()


def falls_beyond(losses: pd.DataFrame) -> pd.DataFrame:
    """For each curve: beyond how many tokens the loss is flat, and how far it falls from there to the end.

    Columns: those of CURVE, `beyond` (the least for which the fall's upper end is under FLAT; else the last but one),
    `fall`, `low`, `high` (nats per token; 95 % by t over seeds, each against itself; NaN for one seed), `share` (the
    upper end, or with one seed the fall, over the loss at the end), `flat`, `end` (the last entry) and `seeds`.
    """
    rows = []
    for names, curve in losses.groupby(CURVE, sort=False):
        by_seed = curve.pivot_table(index="seed", columns="seen", values="loss").dropna(axis="columns")
        *before, end = by_seed.columns
        if not before:
            continue
        seeds = len(by_seed)
        falls = [_fall(by_seed[seen] - by_seed[end]) for seen in before]
        shares = [(fall.value if seeds == 1 else fall.high) / by_seed[end].mean() for fall in falls]
        steep = [index for index, share in enumerate(shares) if share >= FLAT]
        at = min(steep[-1] + 1 if steep else 0, len(before) - 1)
        fall = {"fall": falls[at].value, "low": falls[at].low, "high": falls[at].high, "seeds": seeds}
        where = {"beyond": before[at], "end": end, "share": shares[at], "flat": shares[at] < FLAT}
        rows.append({**dict(zip(CURVE, names, strict=True)), **where, **fall})
    return pd.DataFrame(rows)


def _fall(differences: pd.Series[float]) -> Estimate:
    """Mean over seeds; no interval for one seed."""
    seeds = len(differences)
    half_width = special.stdtrit(seeds - 1, 0.975) * differences.std() / seeds**0.5 if seeds > 1 else float("nan")
    return Estimate.around(differences.mean(), half_width)


def positions_verdict(falls: pd.DataFrame) -> str:
    """What the longest context of the largest model says, in a sentence."""
    best = falls.sort_values(["n_non_embedding", "context_length"], kind="stable").iloc[-1]
    where = f"at context_length {best['context_length']} and N = {compact(best['n_non_embedding'])}"
    ends = f"95 % over {best['seeds']} seeds: {best['low']:.3f} to {best['high']:.3f}"
    how = f"{best['fall']:.3f} nats per token ({ends if best['seeds'] > 1 else 'one seed, so no interval'})"
    if not best["flat"]:
        return (
            f"The loss still falls by {how} between targets that see {best['beyond']} tokens of their document and "
            f"those that see {best['end']}, {where}: more context would help."
        )
    return (
        f"Beyond {best['beyond']} tokens of the document the loss falls by less than {100 * FLAT:g} %: by {how}, "
        f"{where}."
    )
