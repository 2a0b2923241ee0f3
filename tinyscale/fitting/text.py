"""A fit as text: what a reader needs before the numbers are believed."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from tinyscale.formatting import compact, distinct, number


def describe(entry: Mapping[str, Any]) -> str:
    """The record of a fit (as in fits.json) as a block of lines."""
    lines = [f"{entry['title']}: {entry['formula']}" + (f", {entry['slice']}" if entry["slice"] else ""), ""]
    lines += [f"  {'':10}{'value':>12}   95 % interval"]
    for name, ends in (entry["params"] | entry["derived"]).items():
        value, low, high = (number(ends[key]) for key in ("value", "low", "high"))
        lines.append(f"  {name:10}{value:>12}   {low} to {high}")
    lines += ["", *(f"  {line}" for line in (_held_out(entry), *_rivals(entry), _rows(entry), _trust(entry)))]
    lines += [f"  {line}" for line in _conventions(entry)]
    return "\n".join(lines + [f"  warning: {note}" for note in entry["warnings"]])


def formula_with_numbers(entry: Mapping[str, Any]) -> str:
    """The law's formula with the fitted values in place of its parameters: L(N) = 2.558 + 34.14 N^-0.3911."""
    values = {name: number(ends["value"]) for name, ends in entry["params"].items()}
    return re.sub(r"[A-Za-z]\w*", lambda word: values.get(word[0], word[0]), entry["formula"])


def verdict(entry: Mapping[str, Any]) -> str:
    """What came of a fit, in a sentence or two."""
    name = next((n for n in ("alpha", "alpha_N", "a", "p", "c0") if n in entry["params"]), next(iter(entry["params"])))
    value, low, high = (number(entry["params"][name][key], 3) for key in ("value", "low", "high"))
    where = f" {entry['slice']}" if entry["slice"] else ""
    text = f"{formula_with_numbers(entry)}{where}, with {name} {value} (95 %: {low} to {high})."
    if held := entry["held_out"]:
        error, carried = (abs(held[f"{name}_percent"]) for name in ("error", "carry_forward"))
        what = "The largest size" if "size" in held else "The best size at the largest budget"
        better, shown = "better than" if error < carried else "no better than", distinct(error, carried)
        text += (
            f" {what}, held out, was predicted with an error of {shown[0]} %, {better} the {shown[1]} % of "
            "carrying the last value forward."
        )
    else:
        text += " Nothing could be held out, so nothing shows that it predicts."
    return text


def as_html(entry: Mapping[str, Any]) -> str:
    """A fit for a notebook: what came of it, and its parameters."""
    ends = pd.DataFrame(entry["params"]).T
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in entry["warnings"])
    return f"<p>{html.escape(verdict(entry))}</p>{ends.to_html(float_format='{:.4g}'.format)}<ul>{notes}</ul>"


def _held_out(entry: Mapping[str, Any]) -> str:
    held = entry["held_out"]
    if held is None:
        return "held out: nothing, too few sizes would remain"
    size = held.get("size") or {"c": held["c"]}
    where = ", ".join(f"{name.upper()} = {compact(value)}" for name, value in size.items())
    what, digits = ("N* ", ".3g") if entry["law"] in ("isoflop", "envelope") else ("", ".4f")
    carried = f"carrying the last {'N*' if what else 'loss'} forward: {held['carry_forward_percent']:+.2f} %"
    return (
        f"held out: {where} from the {held['fitted_sizes']} smaller: {what}predicted {held['predicted']:{digits}}, "
        f"was {held['actual']:{digits}}, error {held['error_percent']:+.2f} % ({carried})"
    )


def _rivals(entry: Mapping[str, Any]) -> list[str]:
    """The runner-up among laws of the same variables."""
    others = [row for row in entry.get("rivals", []) if row["law"] != entry["law"]]
    own = [row for row in entry.get("rivals", []) if row["law"] == entry["law"]]
    if not others or not own:
        return []
    mine, its = distinct(own[0]["held_out_rms_percent"], others[0]["held_out_rms_percent"])
    return [
        f"other laws: over growing subsets this law missed the next size by {mine} %, "
        f"the nearest rival, {others[0]['law']}, by {its} %"
    ]


def _rows(entry: Mapping[str, Any]) -> str:
    dropped = entry["rows"]["dropped"]
    why = "; ".join(f"{rows} dropped: {reason}" for reason, rows in dropped.items()) or "none dropped"
    read = ", ".join(f"{name} = {column}" for name, column in entry["columns"].items())
    return f"points: {entry['points']} runs ({why}); {read}"


def _trust(entry: Mapping[str, Any]) -> str:
    if "noise" not in entry:
        return f"intervals: {entry['intervals']}"
    c = entry["certificate"]
    return (
        f"intervals: {entry['intervals']}; noise of a run {100 * entry['noise']['sd']:.2g} %; "
        f"converged from {c['share_of_starts']:.0%} of {c['starts']} starts, gradient {c['gradient_norm']:.0e}"
    )


def _conventions(entry: Mapping[str, Any]) -> list[str]:
    """How the parameters move when N and FLOPs are counted otherwise."""
    rows = []
    for row in entry.get("conventions", []):
        counted = ", ".join(f"{name} = {row[name]}" for name in ("n", "c") if name in row)
        values = ", ".join(f"{name} {number(row[name])}" for name in entry["params"] if name in row)
        rows.append(f"counted as {row['convention']} ({counted}): {values}")
    return rows
