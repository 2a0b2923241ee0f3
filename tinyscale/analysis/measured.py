"""Measurements beside the trials that they are of: the groups of rows whose laws `tinyscale fit` makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from tinyscale.analysis.runs import Group, by_arm, by_setting, leading
from tinyscale.fitting.laws import LAWS
from tinyscale.fitting.points import varying
from tinyscale.results.schema import MEASUREMENT_COLUMNS
from tinyscale.results.store import Results, is_final
from tinyscale.spec.measurement import KINDS
from tinyscale.spec.state import State


@dataclass(frozen=True)
class KindLaw:
    """The law of a kind's measurements. columns: variables of the law -> columns, where these have other names;
    rows: column -> the value in the rows that the law is of.
    """

    law: str
    columns: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, str] = field(default_factory=dict)


SIZES = {"n": ("d_model", "n_layers", "d_ff"), "d": ("tokens",)}  # columns that make up a variable

LAW_OF_KIND: Mapping[str, KindLaw] = {
    "quantize": KindLaw("bits", {"loss": "delta"}),
    "features": KindLaw("power-latents", {"loss": "fvu"}),
    "induction": KindLaw("formation", {"loss": "copy_loss"}, {"component": "model"}),
}


def measurement_rows(points: pd.DataFrame, measured: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The rows of a kind, each with the columns of its trial's last point. A name that both have is the measurement's.

    points: rows of trials; measured: of measurements.
    """
    rows = measured[(measured["kind"] == kind)]
    final = points[is_final(points)].drop(columns=[name for name in rows if name in points and name != "trial"])
    own = [name for name, *_ in MEASUREMENT_COLUMNS if name in rows]
    joined = rows[own].merge(final, on="trial").assign(decayed=True)
    return joined.drop(columns=joined.columns[joined.isna().all()])


def measured_groups(results: Results) -> list[Group]:
    """A group for each sweep, arm and kind that the sweep measures, and for each setting that its law does not read."""
    measured, set_aside = results.read_measurements()
    return list(_groups(results, measured, set_aside)) if len(measured) or set_aside else []


def _groups(results: Results, measured: pd.DataFrame, set_aside: Sequence[str]) -> Iterator[Group]:
    points, _ = results.read()
    unread = {"file of measurements that cannot be read": len(set_aside)} if set_aside else {}
    for record, arm, title, rows in by_arm(points, results.read_sweeps()):
        asked = {question.kind for question in record.questions}  # its trials may be those of other sweeps as well
        for kind, fits in LAW_OF_KIND.items():
            if kind not in asked:
                continue
            joined = measurement_rows(rows, measured, kind)
            if joined.empty:
                continue
            failed = joined["state"] == State.FAILED
            other = np.logical_or.reduce([joined[name] != value for name, value in fits.rows.items()] or [failed])
            dropped = unread | ({"failed measurement": int(failed.sum())} if failed.any() else {})
            of_law = joined[~(failed | other)]
            named = title if title == kind else f"{title}-{kind}"
            group = Group(
                record.name, arm, named, of_law, dropped, columns=fits.columns, law=fits.law, question=record.title
            )
            yield from _by_question(group, kind)


def _by_question(group: Group, kind: str) -> Iterator[Group]:
    """The group split by the fields of its kind and the sizes that its law does not read, and by trials' settings."""
    assert group.law is not None, "each kind has its law"
    if group.law not in LAWS:  # a law of optima keeps apart what it has to
        yield replace(group, frame=group.frame.reset_index(drop=True))
        return
    variables = LAWS[group.law].variables
    sizes = [name for variable, names in SIZES.items() if variable not in variables for name in names]
    fields = [name for name in KINDS[kind].model_fields if name not in variables]
    apart = leading(group.frame, varying(group.frame, [*fields, *sizes]))
    parts = group.frame.groupby(apart, sort=False, dropna=False) if apart else [((), group.frame)]
    for values, rows in parts:
        setting = "".join(f"-{name}={_shown(value)}" for name, value in zip(apart, values, strict=True))
        part = replace(group, title=f"{group.title}{setting}", frame=rows.reset_index(drop=True))
        yield from by_setting(part, group.law)


def _shown(value: object) -> str:
    """A value of a field; whole numbers that share a column with blanks are floats there."""
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)
