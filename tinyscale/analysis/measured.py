"""Measurements beside the trials that they are of: the groups of rows whose laws `tinyscale fit` makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from tinyscale.analysis.runs import Group, by_arm, by_setting
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
    """A group for each sweep, arm and kind that was measured, and for each setting that its law does not read."""
    measured, set_aside = results.read_measurements()
    return list(_groups(results, measured, set_aside)) if len(measured) or set_aside else []


def _groups(results: Results, measured: pd.DataFrame, set_aside: Sequence[str]) -> Iterator[Group]:
    points, _ = results.read()
    unread = {"file of measurements that cannot be read": len(set_aside)} if set_aside else {}
    for record, arm, title, rows in by_arm(points, results.read_sweeps()):
        for kind, fits in LAW_OF_KIND.items():
            joined = measurement_rows(rows, measured, kind)
            if joined.empty:
                continue
            failed = joined["state"] == State.FAILED
            other = np.logical_or.reduce([joined[name] != value for name, value in fits.rows.items()] or [failed])
            dropped = unread | ({"failed measurement": int(failed.sum())} if failed.any() else {})
            of_law = joined[~(failed | other)]
            group = Group(record.name, arm, f"{title}-{kind}", of_law, dropped, columns=fits.columns, law=fits.law)
            yield from _by_question(group, kind)


def _by_question(group: Group, kind: str) -> Iterator[Group]:
    """The group split by the fields of its kind that its law does not read, and by the trials' settings."""
    assert group.law is not None, "each kind has its law"
    if group.law not in LAWS:  # a law of optima keeps apart what it has to
        yield replace(group, frame=group.frame.reset_index(drop=True))
        return
    read = {group.columns.get(name, name) for name in LAWS[group.law].variables}
    apart = [name for name in varying(group.frame, list(KINDS[kind].model_fields)) if name not in read]
    parts = group.frame.groupby(apart, sort=False, dropna=False) if apart else [((), group.frame)]
    for values, rows in parts:
        setting = "".join(f"-{name}={value}" for name, value in zip(apart, values, strict=True))
        part = replace(group, title=f"{group.title}{setting}", frame=rows.reset_index(drop=True))
        yield from by_setting(part, group.law)
