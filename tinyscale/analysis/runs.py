"""What goes in: a results folder or a file of runs -> groups of final points that compare."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import pandas as pd

from tinyscale.errors import FitError, ResultsError
from tinyscale.fitting.laws import LAWS
from tinyscale.fitting.points import COLUMNS, column_of, varying
from tinyscale.fitting.support import laws_for
from tinyscale.results.store import Results, sweep_points
from tinyscale.spec.config import BUDGETS, ModelConfig, TrainConfig
from tinyscale.storage import Folder

READERS: dict[str, Callable[[io.BytesIO], pd.DataFrame]] = {
    ".csv": pd.read_csv,
    ".parquet": pd.read_parquet,
    ".jsonl": lambda file: pd.read_json(file, lines=True),
}

# Losses compare only where these agree; a group that mixes them is refused.
SAME_TASK = ("corpus_hash", "tokenizer_hash", "val_tokens")
# Settings: all that tells runs of one size on one text apart, but what the size itself says and what moves no number.
SIZE = ("d_model", "n_layers", "d_ff", *BUDGETS)
NO_SETTING = (*SIZE, "head_dim", "repeats")  # n_heads says what head_dim would
SETTINGS = (
    *(name for part in (ModelConfig, TrainConfig) for name in part.model_fields if name not in NO_SETTING),
    "unique_tokens",
)


@dataclass(frozen=True)
class Group:
    """Rows to fit together: one sweep, one arm, one setting.

    title: the sweep, then the arm where the sweep has several, then the setting; dropped: reason -> rows; diverged: a
    row for each trial that did; searched: settings that were drawn by a search, each draw another.
    """

    sweep: str
    arm: str
    title: str
    frame: pd.DataFrame
    dropped: Mapping[str, int]
    diverged: pd.DataFrame = field(default_factory=pd.DataFrame)
    searched: tuple[str, ...] = ()


def read_groups(location: str, *, columns: Mapping[str, str] | None = None, pool: bool = False) -> list[Group]:
    """The groups under a results folder, by sweep and arm, or those of a .csv, .parquet or .jsonl file, by `arm`.

    ResultsError when there is nothing to read, FitError when pooled runs do not compare.
    """
    if PurePosixPath(location).suffix in READERS:
        found = _file_groups(location, columns)
    elif Path(location).is_file():
        raise ResultsError(f"{location}: a file of runs ends in {', '.join(READERS)}; or give a results folder")
    else:
        found = _folder_groups(Results(location), columns)
    if pool:
        together = pd.concat([group.frame for group in found])
        if "trial" in together:
            together = together.drop_duplicates("trial")
        found = [Group("pooled", "", "pooled", together, _total(group.dropped for group in found))]
    return found


def _file_groups(location: str, columns: Mapping[str, str] | None) -> list[Group]:
    path = PurePosixPath(location)
    folder = Folder.at(str(path.parent) if "://" not in location else location.rsplit("/", 1)[0])
    try:
        frame = READERS[path.suffix](io.BytesIO(folder.read(path.name)))
    except (OSError, ValueError, TypeError, LookupError, NotImplementedError) as error:
        raise ResultsError(f"{location}: cannot be read as {path.suffix[1:]} ({error})") from error
    kept, dropped = keep_final(frame, columns)
    if "arm" not in kept:
        return [Group(path.stem, "", path.stem, kept, dropped)]
    arms = kept.groupby("arm", sort=False)
    return [Group(path.stem, str(arm), f"{path.stem}-{arm}", rows, dropped) for arm, rows in arms]


def _folder_groups(results: Results, columns: Mapping[str, str] | None) -> list[Group]:
    frame, set_aside = results.read()
    if frame.empty:
        raise ResultsError(f"{results.trials}: no trials to fit; launch a sweep first, or name another folder or file")
    frame = frame.drop(columns=frame.columns[frame.isna().all()].difference(["val_loss"]))
    groups = []
    for record in results.read_sweeps():
        points = sweep_points(frame, record)
        several = points["arm"].nunique() > 1
        for arm, rows in points.groupby("arm", sort=False):
            title = f"{record.name}-{arm}" if several else record.name
            diverged = rows[rows["state"] == "diverged"].drop_duplicates("trial")
            kept, dropped = keep_final(rows, columns)
            groups.append(Group(record.name, str(arm), title, kept, dropped, diverged, record.searched))
    groups = groups or [Group("all", "", "all", *keep_final(frame, columns))]
    unread = {"file that cannot be read": len(set_aside)} if set_aside else {}
    return [replace(group, dropped={**group.dropped, **unread}) for group in groups]


def keep_final(frame: pd.DataFrame, columns: Mapping[str, str] | None = None) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows of finished trials at the end of their schedule, and how many rows were dropped for which reason."""
    dropped: dict[str, int] = {}

    def drop(rows: pd.Series[bool], reason: str) -> None:
        nonlocal frame
        if rows.any():
            dropped[reason] = int(rows.sum())
            frame = frame[~rows]

    if "state" in frame:
        for state in frame["state"].unique():
            if state != "finished":
                drop(frame["state"] == state, f"trial {state}")
    if "decayed" in frame:
        drop(~frame["decayed"].fillna(value=False).astype(bool), "before the end of its schedule")
    if len(frame):
        drop(frame[column_of(frame, "loss", columns)].isna(), "no loss")
    return frame.reset_index(drop=True), dropped


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for dropped in counts:
        for reason, rows in dropped.items():
            total[reason] = total.get(reason, 0) + rows
    return total


def free_settings(frame: pd.DataFrame, law: str | None = None) -> list[str]:
    """Settings (lr, context, ...) of which one size was run under several, and that a joint law does not read.

    law: left out, the one for what varies.
    """
    sizes = ["n_non_embedding", "tokens"]
    if frame.empty or "n_non_embedding" not in frame or not varying(frame, sizes):
        return []  # of one size, the setting is what was swept
    free = [name for name in varying(frame, SETTINGS) if (frame.groupby(sizes)[name].nunique() > 1).any()]
    return [name for name in free if name not in _read_jointly(law, frame)]


def _read_jointly(law: str | None, frame: pd.DataFrame) -> set[str]:
    """The columns of a law of several variables, such as unique_tokens; a law of one reads the slice that is left."""
    try:
        name = law or laws_for(frame)[0]
    except FitError:
        return set()
    variables = LAWS[name].variables if name in LAWS else ()
    return {COLUMNS[variable] for variable in variables} if len(variables) > 1 else set()


def by_setting(group: Group, law: str | None = None) -> list[Group]:
    """The group, split where one size was run under several settings: they are different curves."""
    free = free_settings(group.frame, law)
    if not free:
        return [group]
    parts = []
    for values, rows in group.frame.groupby(free, sort=False, dropna=False):
        setting = "-".join(f"{name}={value}" for name, value in zip(free, values, strict=True))
        parts.append(replace(group, title=f"{group.title}-{setting}", frame=rows.reset_index(drop=True)))
    return parts


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
