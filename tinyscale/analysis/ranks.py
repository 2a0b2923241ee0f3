"""The order of a sweep's arms: by worth, and whether that at small sizes is that at the largest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tinyscale.analysis.compare import Contrast
from tinyscale.formatting import compact, plural


def ranks_in_words(contrasts: Sequence[Contrast]) -> list[str]:
    """What several arms of one sweep have in common to say: their order by worth, and that of smaller sizes."""
    if len(contrasts) < 2:
        return []
    table = ranks_table([each.as_json() for each in contrasts])
    return [_by_worth(contrasts), *([_by_size(table)] if len(table) else [])]


def _by_worth(contrasts: Sequence[Contrast]) -> str:
    base = contrasts[0].base
    places = {each.arm: (each.difference.value, _place(each)) for each in contrasts} | {base: (0.0, base)}
    order = "; ".join(text for _, text in sorted(places.values()))
    return (
        "the arms by worth, the best first, with 95 % intervals that hold together (Bonferroni over "
        f"{plural(len(contrasts), 'arm')}): {order}"
    )


def _place(each: Contrast) -> str:
    low, high = each.difference.ends
    same = ", no difference seen" if each.difference.holds_zero else ""
    return f"{each.arm} {each.difference.value:+.4f} ({low:+.4f} to {high:+.4f}){same}"


def ranks_table(entries: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """How well each smaller size ranks a sweep's arms as the largest does, of sweeps with three arms or more.

    entries: contrasts as JSON. One row per size: n and largest (of the base), arms, kendall and spearman (1: the order
    is the same, -1: reversed), best (the arm that is best there) and regret (what that costs at the largest size).
    """
    rows: list[dict[str, Any]] = []
    for sweep in dict.fromkeys(entry["sweep"] for entry in entries):
        of_sweep = [entry for entry in entries if entry["sweep"] == sweep]
        table = pd.DataFrame({entry["arm"]: entry["by_size"] for entry in of_sweep}, dtype=float).dropna()
        table = table.assign(**{of_sweep[0]["base"]: 0.0}).set_axis(table.index.astype(float)).sort_index()
        if table.shape[1] < 3 or table.empty:
            continue
        last = table.iloc[-1]
        for n, here in table.iloc[:-1].iterrows():
            best = str(here.idxmin())
            order = {"kendall": _kendall(here, last), "spearman": here.rank().corr(last.rank())}
            cost = {"best": best, "regret": last[best] - last.min()}
            rows.append({"sweep": sweep, "n": n, "largest": last.name, "arms": len(last), **order, **cost})
    return pd.DataFrame(rows)


def _kendall(first: pd.Series[float], second: pd.Series[float]) -> float:
    """Kendall's tau: pairs of arms in the same order less those in the other, over all pairs."""
    signs = [np.sign(np.subtract.outer(each.to_numpy(), each.to_numpy())) for each in (first, second)]
    return float((signs[0] * signs[1]).sum() / (len(first) * (len(first) - 1)))


def _by_size(table: pd.DataFrame) -> str:
    shown = {"n": compact, "kendall": "{:.2f}".format, "regret": "{:.4f}".format}
    sizes, taus, costs = (", ".join(map(write, table[name])) for name, write in shown.items())
    arms, largest = int(table["arms"].iloc[0]), compact(float(table["largest"].iloc[0]))
    return (
        f"the order of {arms} arms at N = {sizes} against that at N = {largest}: Kendall's tau {taus}; to choose the "
        f"best arm there would cost {costs} at the largest size"
    )
