"""How the loss falls with the tokens of its document that a model has seen: the column loss_by_position, over seeds."""

from __future__ import annotations

import pandas as pd
from scipy import special

from tinyscale.formatting import compact

CURVE = ["arm", "context_length", "n_non_embedding"]  # what tells curves apart
FLAT = 0.01  # of the loss: a fall of less is called flat


def position_losses(points: pd.DataFrame) -> pd.DataFrame:
    """One row a trial and entry of its loss_by_position, at the end of its schedule; empty where context matters not.

    points: of one sweep, with the column `arm`. Columns: trial, seed, those of CURVE, `seen` (least tokens of the
    document before the target: 1, 2, 4, ...) and `loss`. Context matters where the sweep varies context_length or
    positions, and beside it nothing but sizes that differ in N, arms, and seeds.
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
        falls = [_fall(by_seed[seen] - by_seed[end]) for seen in before]
        shares = [(fall if seeds == 1 else high) / by_seed[end].mean() for fall, _, high, seeds in falls]
        steep = [index for index, share in enumerate(shares) if share >= FLAT]
        at = min(steep[-1] + 1 if steep else 0, len(before) - 1)
        found = dict(zip(("fall", "low", "high", "seeds"), falls[at], strict=True))
        place = {"beyond": before[at], "end": end, "share": shares[at], "flat": shares[at] < FLAT}
        rows.append({**dict(zip(CURVE, names, strict=True)), **place, **found})
    return pd.DataFrame(rows)


def _fall(differences: pd.Series[float]) -> tuple[float, float, float, int]:
    """Mean over seeds, its 95 % ends, and how many seeds."""
    mean, seeds = float(differences.mean()), len(differences)
    reach = float(special.stdtrit(seeds - 1, 0.975) * differences.std() / seeds**0.5) if seeds > 1 else float("nan")
    return mean, mean - reach, mean + reach, seeds


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
