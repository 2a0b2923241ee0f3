"""What goes in: a results folder or a file of runs -> groups of final points that compare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from tinyscale.analysis.table import Reading, read_table, refuse_misnamed
from tinyscale.analysis.table_file import ENDINGS, ending_of, read_file, stem_of
from tinyscale.analysis.where import Where
from tinyscale.errors import FitError, ResultsError
from tinyscale.fitting.laws import LAWS
from tinyscale.fitting.points import column_of, exact_copies, varying
from tinyscale.fitting.support import laws_for
from tinyscale.results.store import Results, sweep_points
from tinyscale.results.sweep_record import SweepRecord
from tinyscale.spec.config import BUDGETS, ModelConfig, TrainConfig
from tinyscale.spec.state import OUT_OF_PATIENCE, State

# Losses compare only where these agree; a group that mixes them is refused.
SAME_TASK = ("corpus_hash", "tokenizer_hash", "val_tokens", "part")
# Settings: all that tells runs of one size on one text apart, but what the size itself says and what moves no number.
SIZE = ("d_model", "n_layers", "d_ff", *BUDGETS)
NO_SETTING = (*SIZE, "head_dim", "repeats")  # n_heads says what head_dim would
SETTINGS = (
    *(name for part in (ModelConfig, TrainConfig) for name in part.model_fields if name not in NO_SETTING),
    "optimizer_code",
    "optimizer_settings",
    "unique_tokens",
    "shares",
)
LABELS = ("state", "decayed", "trial")
NOT_CHOSEN = "not chosen by --where"
BLANK_ARM = "base"  # of rows of a table that name no arm


@dataclass(frozen=True)
class Group:
    """Rows to fit together: one sweep, one arm, one setting.

    title: the sweep, then the arm where the sweep has several, then the setting; dropped: reason -> rows; diverged: a
    row for each trial that did; searched: settings that were drawn by a search, each draw another; question: the
    sweep's own title, what it asks.
    Of a table: columns (variable of a law -> its column), notes on how it was read, and unread, the columns that
    nothing reads (None: of results, or where runs that differ are fitted together as was asked).
    """

    sweep: str
    arm: str
    title: str
    frame: pd.DataFrame
    dropped: Mapping[str, int]
    diverged: pd.DataFrame = field(default_factory=pd.DataFrame)
    searched: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] | None = None
    law: str | None = None  # of students, of a part of mixtures, and of measurements by their kind: what is fitted
    warnings: tuple[str, ...] = ()  # of that law, for what its runs have in common
    question: str = ""


def read_groups(
    location: str, *, columns: Mapping[str, str] | None = None, pool: bool = False, where: Where | None = None
) -> list[Group]:
    """The groups under a results folder, by sweep and arm, or those of a file of runs (ENDINGS), by task and arm.

    where: only the runs that fulfil it. ResultsError when there is nothing to read, FitError when pooled runs do not
    compare, or none is chosen.
    """
    if ending_of(location):
        found = _table_groups_where(read_file(location), stem_of(location), columns, where)
    elif Path(location).is_file():
        endings = f"{', '.join(ENDINGS)} (or these with .gz)"
        raise ResultsError(f"{location}: a file of runs ends in {endings}; or give a results folder")
    else:
        found = _where(_folder_groups(Results(location), columns or {}), where)
    if pool:
        together = pd.concat([group.frame for group in found])
        if "trial" in together:
            together = together.drop_duplicates("trial")
        dropped = _total(group.dropped for group in found)
        found = [Group("pooled", "", "pooled", together, dropped, columns=found[0].columns, notes=found[0].notes)]
    return found


def _table_groups_where(
    frame: pd.DataFrame, name: str, columns: Mapping[str, str] | None, where: Where | None
) -> list[Group]:
    """The groups of the rows of a table that are chosen, by the columns that it has."""
    if where is None:
        return table_groups(frame, name, columns)
    chosen = where.chosen(frame)
    if not chosen.any():
        raise where.nothing(frame)
    groups = table_groups(frame[chosen], name, columns)
    return [replace(group, dropped={**group.dropped, **_not_chosen(chosen)}) for group in groups]


def _where(groups: Sequence[Group], where: Where | None) -> list[Group]:
    """The groups with their chosen rows only. FitError when there are none."""
    if where is None:
        return list(groups)
    found = [group for each in groups if (group := choose_rows(each, where)) is not None]
    if not found:
        raise where.nothing(pd.concat([group.frame for group in groups], ignore_index=True))
    return found


def _not_chosen(chosen: pd.Series[bool]) -> dict[str, int]:
    return {} if chosen.all() else {NOT_CHOSEN: int((~chosen).sum())}


def choose_rows(group: Group, where: Where | None) -> Group | None:
    """The group with the rows that are chosen; None where there are none."""
    if where is None:
        return group
    chosen = where.chosen(group.frame)
    if not chosen.any():
        return None
    diverged = group.diverged if group.diverged.empty else group.diverged[where.chosen(group.diverged)]
    dropped = {**group.dropped, **_not_chosen(chosen)}
    return replace(group, frame=_renumbered(group.frame[chosen]), diverged=diverged, dropped=dropped)


def table_groups(frame: pd.DataFrame, name: str, columns: Mapping[str, str] | None = None) -> list[Group]:
    """The groups of a table of runs: by task, which do not compare, and by arm, which do."""
    reading = read_table(frame, columns or {}, (*SETTINGS, *SAME_TASK, *LABELS))
    kept, dropped = keep_final(reading.frame, reading.columns)
    if not reading.tasks or kept.empty:
        return _arms_of(name, kept, dropped, reading)
    parts = kept.groupby(list(reading.tasks), sort=False, dropna=False)
    return [
        group
        for values, rows in parts
        for group in _arms_of("-".join([name, *map(_shown, values)]), rows, dropped, reading)
    ]


def _arms_of(sweep: str, rows: pd.DataFrame, dropped: Mapping[str, int], reading: Reading) -> list[Group]:
    """The rows by `arm`; those that name none are an arm of their own."""
    whole = Group(sweep, "", sweep, rows, dropped, columns=reading.columns, notes=reading.notes, unread=reading.unused)
    if "arm" not in rows or rows["arm"].isna().all():
        return [whole]
    arm = rows["arm"].astype(object)
    arm = arm.where(arm.notna(), "blank" if (arm == BLANK_ARM).any() else BLANK_ARM)
    arms = rows.assign(arm=arm).groupby("arm", sort=False)
    return [replace(whole, arm=str(arm), title=f"{sweep}-{arm}", frame=part) for arm, part in arms]


def _shown(value: Any) -> str:
    return "blank" if pd.isna(value) else str(value)


def _folder_groups(results: Results, columns: Mapping[str, str]) -> list[Group]:
    results.folder.require_there()
    frame, set_aside = results.read()
    if frame.empty:
        raise ResultsError(
            f"{results.trials}: no trials to fit; launch a sweep first, or name another folder or file "
            "(fits of a file are shown by tinyscale plot)"
        )
    refuse_misnamed(frame, columns)
    frame = frame.drop(columns=frame.columns[frame.isna().all()].difference(["val_loss"]))
    groups = []
    for record, arm, title, rows in by_arm(frame, results.read_sweeps()):
        diverged = rows[rows["state"] == "diverged"].drop_duplicates("trial")
        kept, dropped = keep_final(rows, columns)
        asked = record.title
        groups.append(Group(record.name, arm, title, kept, dropped, diverged, record.searched, question=asked))
    groups = groups or [Group("all", "", "all", *keep_final(frame, columns))]
    unread = {"file that cannot be read": len(set_aside)} if set_aside else {}
    return [replace(group, dropped={**group.dropped, **unread}, columns=columns) for group in groups]


def by_arm(frame: pd.DataFrame, records: Sequence[SweepRecord]) -> Iterator[tuple[SweepRecord, str, str, pd.DataFrame]]:
    """For each arm of each sweep: the sweep, the arm, a title of both, and the rows of its trials."""
    for record in records:
        points = _without_teachers(sweep_points(frame, record))
        several = points["arm"].nunique() > 1
        for arm, rows in points.groupby("arm", sort=False):
            yield record, str(arm), f"{record.name}-{arm}" if several else record.name, rows


def _without_teachers(points: pd.DataFrame) -> pd.DataFrame:
    """The rows without the arms that are there to teach others only: each is one trial, and no study of its own."""
    if "teacher" not in points:
        return points
    learns = ~points["trial"].isin(points["teacher"].dropna())
    return points[learns.groupby(points["arm"]).transform("any")]


def keep_final(frame: pd.DataFrame, columns: Mapping[str, str] | None = None) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows of finished trials at the end of their schedule, and how many rows were dropped for which reason."""
    dropped: dict[str, int] = {}

    def drop(rows: pd.Series[bool], reason: str) -> None:
        nonlocal frame
        if rows.any():
            dropped[reason] = int(rows.sum())
            frame = frame[~rows]

    if "state" in frame:
        if "reason" in frame:
            impatient = frame["reason"].astype(str).str.startswith(OUT_OF_PATIENCE)
            drop((frame["state"] == State.STOPPED) & impatient, f"trial stopped, {OUT_OF_PATIENCE}")
        for state in frame["state"].unique():
            if state != "finished":
                drop(frame["state"] == state, f"trial {state}")
    if "decayed" in frame:
        drop(~frame["decayed"].fillna(value=False).astype(bool), "before the end of its schedule")
    if len(frame):
        drop(frame[column_of(frame, "loss", columns)].isna(), "no loss")
        drop(exact_copies(frame), "exact copy of another row")
    return _renumbered(frame), dropped


def _renumbered(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows numbered again, but those of a table, whose numbers are where they stand in the file."""
    return frame if frame.index.name else frame.reset_index(drop=True)


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for dropped in counts:
        for reason, rows in dropped.items():
            total[reason] = total.get(reason, 0) + rows
    return total


def free_settings(frame: pd.DataFrame, law: str | None = None, columns: Mapping[str, str] | None = None) -> list[str]:
    """Settings (lr, context, ...) of which one size was run under several, and that a joint law does not read.

    law: left out, the one for what varies.
    """
    sizes = [name for variable in ("n", "d") if (name := _column(frame, variable, columns))]
    sizes = sizes or [name for name in (_column(frame, "c", columns),) if name]
    if frame.empty or not sizes or not varying(frame, sizes):
        return []  # of one size, the setting is what was swept
    settings = dict.fromkeys((*SETTINGS, *((columns or {}).get(name, "") for name in ("t", "u"))))
    swept = varying(frame, list(settings))
    of_results = not frame.index.name  # in which a column that came later is blank in older files
    free = [name for name in swept if (frame.groupby(sizes)[name].nunique(dropna=of_results) > 1).any()]
    return [name for name in free if name not in _read_jointly(law, frame, columns)]


def _column(frame: pd.DataFrame, variable: str, columns: Mapping[str, str] | None) -> str:
    """The column of a variable, or an empty name where there is none."""
    try:
        return column_of(frame, variable, columns)
    except FitError:
        return ""


def _read_jointly(law: str | None, frame: pd.DataFrame, columns: Mapping[str, str] | None) -> set[str]:
    """The columns of a law of several variables, such as unique_tokens; a law of one reads the slice that is left."""
    try:
        name = law or laws_for(frame, columns)[0]
    except FitError:
        return set()
    variables = LAWS[name].variables if name in LAWS else ()
    return {_column(frame, variable, columns) for variable in variables} if len(variables) > 1 else set()


def by_setting(group: Group, law: str | None = None) -> list[Group]:
    """The group, split where one size was run under several settings: they are different curves."""
    free = free_settings(group.frame, law, group.columns)
    if not free:
        return [group]
    parts, shown = [], leading(group.frame, free)
    for _, rows in group.frame.groupby(free, sort=False, dropna=False):
        setting = "-".join(f"{name}={rows[name].iloc[0]}" for name in shown)
        parts.append(replace(group, title=f"{group.title}-{setting}", frame=_renumbered(rows)))
    return parts


def leading(frame: pd.DataFrame, settings: list[str]) -> list[str]:
    """The settings without those that follow from one before: the others say all that tells the rows apart."""
    texts = frame[settings].astype(str)
    leading: list[str] = []
    for name in settings:
        if not any((texts.groupby(other)[name].nunique() == 1).all() for other in leading):
            leading.append(name)
    return leading


def refuse_mixed(group: Group) -> None:
    """FitError when the losses of a group do not compare, or there is none."""
    if group.frame.empty:
        why = ", ".join(f"{rows} rows: {reason}" for reason, rows in group.dropped.items())
        raise FitError(
            f"{group.title}: no finished runs to fit ({why or 'no rows'}); launch the sweep to its end, or add rows"
        )
    mixed = varying(group.frame, SAME_TASK)
    if mixed:
        raise FitError(
            f"{group.title}: runs differ in {', '.join(mixed)}, so their losses do not compare; "
            "make the corpora or tokenizers arms of the sweep, and fit without --pool"
        )
