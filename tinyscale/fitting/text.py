"""A fit as text: what a reader needs before the numbers are believed."""

from __future__ import annotations

import html
import re

import numpy as np
import pandas as pd
from scipy import special

from tinyscale.fitting.estimate import estimates_json
from tinyscale.fitting.holdout import HeldOut
from tinyscale.fitting.record import Record
from tinyscale.formatting import compact, distinct, number, plural


def describe(record: Record) -> str:
    """A fit as a block of lines."""
    where = f", {record.slice}" if record.slice else ""
    lines = [f"{record.origin.title}: {record.formula}{where}", "", f"  {'':10}{'value':>12}   95 % interval"]
    for name, estimate in record.all_estimates.items():
        value, low, high = estimate.texts()
        derived = f"   theory: {number(record.theory[name])}" if name in record.theory else ""
        lines.append(f"  {name:10}{value:>12}   {low} to {high}{derived}")
    lines += [
        "",
        *(
            f"  {line}"
            for line in (_held_out(record), *_alternatives(record), *_forecast(record), _rows(record), _trust(record))
        ),
    ]
    if any(name.startswith("cost_") for name in record.derived):
        lines.append("  cost_: nats per token that a setting costs at twice or half its best value")
    lines += [f"  {line}" for line in _conventions(record)]
    return "\n".join(lines + [f"  warning: {note}" for note in record.warnings])


def formula_with_numbers(record: Record) -> str:
    """The law's formula with the fitted values in place of its parameters: L(N) = 2.558 + 34.14 N^-0.3911."""
    values = {name: number(estimate.value) for name, estimate in record.estimates.items()}
    return re.sub(r"[A-Za-z]\w*", lambda word: values.get(word[0], word[0]), record.formula).replace("--", "")


def verdict(record: Record) -> str:
    """What came of a fit, in a sentence or two."""
    name = record.headline
    value, low, high = record.estimates[name].texts(3)
    where = f" {record.slice}" if record.slice else ""
    text = f"{formula_with_numbers(record)}{where}, with {name} {value} (95 %: {low} to {high})."
    held = record.held_out
    if held is None:
        return text + " Nothing could be held out, so nothing shows that it predicts."
    error, carried = held.errors
    what = "The largest size" if record.form.kind == "loss" else "The best size at the largest budget"
    what = "The top fifth of compute" if held.runs else what
    better, shown = "better than" if error < carried else "no better than", distinct(error, carried)
    if record.noise is not None and not tells(held, record.noise.sd):
        better = "which at so near a size says little beside"
    return (
        f"{text} {what}, held out, was predicted with an error of {shown[0]} %, {better} the {shown[1]} % of "
        "carrying the last value forward."
    )


def tells(held: HeldOut, sd: float) -> bool:
    """Whether the size held out is so far from the last that the law predicts a fall beyond the noise of two runs.

    sd: of the log loss of one run. Nearer, which of the two predicts it better is chance.
    """
    carried = held.actual * (1 + held.carry_forward_percent / 100)
    return bool(abs(np.log(carried / held.predicted)) > special.ndtri(0.975) * np.sqrt(2) * sd)


def as_html(record: Record) -> str:
    """A fit for a notebook: what came of it, and its parameters."""
    ends = pd.DataFrame(estimates_json(record.estimates)).T
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in record.warnings)
    lines = (html.escape(line) for line in (verdict(record), _rows(record)))
    return f"{''.join(f'<p>{line}</p>' for line in lines)}{ends.to_html(float_format='{:.4g}'.format)}<ul>{notes}</ul>"


def _held_out(record: Record) -> str:
    held, of_loss = record.held_out, record.form.kind == "loss"
    if held is None:
        return "held out: nothing, too few sizes would remain"
    if held.runs:
        error, carried = distinct(*held.errors)
        return (
            f"held out: the top fifth of compute, {held.runs} runs up to {held.reach:.3g} times the fitted: "
            f"error {error} % (rms; carrying the last loss forward: {carried} %), "
            f"the 95 % interval held {held.inside} of them"
        )
    where = ", ".join(f"{name.upper()} = {compact(value)}" for name, value in held.size.items())
    what, digits = ("", ".4f") if of_loss else (f"{record.form.predicts} ", ".3g")
    carried = f"carrying the last {record.form.predicts} forward: {held.carry_forward_percent:+.2f} %"
    return (
        f"held out: {where} from the {held.fitted_sizes} smaller: {what}predicted {held.predicted:{digits}}, "
        f"was {held.actual:{digits}}, error {held.error_percent:+.2f} % ({carried})"
    )


def _alternatives(record: Record) -> list[str]:
    """The best other law of the same variables."""
    others = [row for row in record.alternatives if row["law"] != record.law]
    own = [row for row in record.alternatives if row["law"] == record.law]
    if not others or not own:
        return []
    mine, its = distinct(own[0]["held_out_rms_percent"], others[0]["held_out_rms_percent"])
    return [
        f"other laws: fitted to the lower half and 70 % of the runs, this law missed the others by {mine} %, "
        f"the nearest rival, {others[0]['law']}, by {its} %"
    ]


def describe_members(record: Record) -> str:
    """The laws that a forecast averages, with their weights."""
    laws = ", ".join(f"{row['law']} ({row['weight']:.0%})" for row in record.forecast)
    return f"{len(record.forecast)} laws, {laws}"


def _forecast(record: Record) -> list[str]:
    if not record.forecast:
        return []
    if len(record.forecast) == 1:
        return ["forecast: by this law alone"]
    return [f"forecast: the average of {describe_members(record)}, by their errors on such subsets"]


def _rows(record: Record) -> str:
    dropped = record.origin.dropped
    why = "; ".join(f"{plural(rows, 'row')} dropped: {reason}" for reason, rows in dropped.items()) or "no row dropped"
    read = ", ".join(f"{name} = {column}" for name, column in record.columns.items())
    return f"points: {record.points} runs ({why}); {read}"


def _trust(record: Record) -> str:
    c = record.certificate
    if record.noise is None or c is None:
        return f"intervals: {record.intervals}"
    return (
        f"intervals: {record.intervals}; noise of a run {100 * record.noise.sd:.2g} %; "
        f"converged from {c.share_of_starts:.0%} of {c.starts} starts, gradient {c.gradient_norm:.0e}"
    )


def _conventions(record: Record) -> list[str]:
    """How the parameters move when N and FLOPs are counted otherwise."""
    rows = []
    for row in record.conventions:
        counted = ", ".join(f"{name} = {row[name]}" for name in ("n", "c") if name in row)
        values = ", ".join(f"{name} {number(row[name])}" for name in record.estimates if name in row)
        rows.append(f"counted as {row['convention']} ({counted}): {values}")
    return rows
