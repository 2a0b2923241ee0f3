"""The laws of one group of runs, or why it has none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from tinyscale.analysis.distilled import worth
from tinyscale.analysis.runs import Group, by_setting, refuse_mixed
from tinyscale.analysis.table_checks import explaining, refuse_scattered
from tinyscale.errors import FitError
from tinyscale.fitting.choose import AnyFit, fit, without_idle_floor
from tinyscale.fitting.conventions import under_conventions
from tinyscale.fitting.diagnostics import untuned_note
from tinyscale.fitting.fit import Fit
from tinyscale.fitting.laws import LAWS
from tinyscale.fitting.laws.optima import LAW_OF, SETTINGS, TUNING
from tinyscale.fitting.record import Origin
from tinyscale.fitting.support import laws_for
from tinyscale.formatting import plural

MOST_PARTS = 12  # combinations of settings, each a curve by itself, that are fitted beside the law of the best ones


@dataclass(frozen=True)
class Refusal:
    """Why a group of a sweep has no law, or (group left empty) its arms no comparison."""

    sweep: str
    reason: str
    group: str = ""

    def __str__(self) -> str:
        return f"{self.group}: not fitted: {self.reason}" if self.group else self.reason


def outcomes_of(whole: Group, law: str | None, **options: Any) -> Iterator[AnyFit | Refusal]:
    """The fits of a sweep's arm, or why there are none: a law of each setting, then the law of the best settings."""
    if whole.law is not None:
        yield from _of_law(whole, law, **options)
        return
    parts = parts_of(whole, law)
    tuned = _tuned(whole) if len(parts) != 1 and (law is None or whole.searched) else None
    if len(parts) > MOST_PARTS and tuned is not None and not isinstance(tuned, Refusal):
        without = f"the loss has no law of its own at each of the {len(parts)} combinations of settings: ask with --law"
        yield replace(tuned, warnings=(*tuned.warnings, without))
        return
    note, refused = untuned_note(whole.frame, whole.columns), []
    for group in parts:
        try:
            for found in fit_group(group, law, **options):
                yield replace(found, warnings=(*found.warnings, *note))
        except FitError as error:
            refused.append(Refusal(group.sweep, str(error), group.title))
    yield from _joined(refused)
    # In a grid the settings need not be the question, so that they have no law is no news.
    if tuned is not None and (whole.searched or not isinstance(tuned, Refusal)):
        yield tuned


def _of_law(group: Group, law: str | None, **options: Any) -> Iterator[AnyFit | Refusal]:
    """The law of students, of a part or of a kind of measurements, unless another one was asked for."""
    if law not in (None, group.law):
        return
    try:
        for found in fit_group(group, group.law, **options):
            yield worth(replace(found, warnings=(*group.warnings, *found.warnings)), group.frame)
    except FitError as error:
        yield Refusal(group.sweep, str(error), group.title)


def _joined(refused: Sequence[Refusal]) -> Iterator[Refusal]:
    """One refusal in place of those of several settings, with the reason of the first."""
    if refused:
        first, more = refused[0], len(refused) - 1
        group = f"{first.group} and {plural(more, 'setting')} more" if more else first.group
        yield replace(first, group=group)


def parts_of(whole: Group, law: str | None) -> list[Group]:
    """What is fitted by itself: the whole for a law of settings; else each setting, and none of a search's samples."""
    if law in TUNING:
        return [whole]
    return [] if whole.searched else by_setting(whole, law)


def fit_group(group: Group, law: str | None, *, every_convention: bool, **options: Any) -> list[AnyFit]:
    """The laws that a group supports, the main one first. FitError, that of the main one, when all are refused."""
    refuse_mixed(group)
    columns, notes = group.columns, []
    main, *others = [law] if law else laws_for(group.frame, columns)
    if group.unread is not None and main not in TUNING:
        group = _without_idle(group, LAWS[main].variables if main in LAWS else ())
        notes = refuse_scattered(group.frame, group.columns, group.unread or ())
    # Of results, points that share a run are decay branches, each trained apart from the others for a while.
    options["clustered"] = bool(group.frame.index.name)
    options.setdefault("average", law is None)
    fits, refused = [], None
    for name in (main, *others):
        try:
            fits.append(fit(group.frame, name, columns=columns, **options))
        except FitError as error:  # a second law is a bonus, or stands in for the first
            refused = refused or (error if name == main else None)
    if refused and not fits:
        raise refused
    if options["average"]:
        fits = [without_idle_floor(found, group.frame, columns=columns, **options) for found in fits]
    notes += [f"{main} was not fitted: {refused}"] if refused else []
    fits = [replace(found, origin=_origin(group, found), warnings=(*notes, *found.warnings)) for found in fits]
    fits = [_with_unread(found, group) for found in fits]
    return [_under_conventions(found, group) for found in fits] if every_convention else fits


def _without_idle(group: Group, variables: Sequence[str]) -> Group:
    """The group of a table with its columns of what other laws alone read among the unread."""
    idle = [name for name in ("total", "languages", "teacher") if name in group.columns and name not in variables]
    read = {name: column for name, column in group.columns.items() if name not in idle}
    return replace(group, columns=read, unread=(*(group.unread or ()), *(group.columns[name] for name in idle)))


def _with_unread(found: AnyFit, group: Group) -> AnyFit:
    """The fit with a warning where a column of the table that nothing reads goes with what the law leaves over."""
    if not isinstance(found, Fit) or not group.unread:
        return found
    residual = found.table()["residual"].to_numpy(float)
    if len(residual) < len(group.frame):  # copies, or runs beyond those that are fitted, were left out
        return found
    why = explaining(group.frame, residual, group.unread, len(residual) - len(found.params))
    notes = [
        f"what the law leaves over goes with {name}: fit its values apart, for example with --columns arm={name}"
        for name in why
    ]
    return replace(found, warnings=(*notes, *found.warnings))


def _tuned(group: Group) -> AnyFit | Refusal:
    """The law of the best settings of those that a search sampled, or a grid varies, or why there is none."""
    law = LAW_OF.get(tuple(name for name in SETTINGS if name in group.searched), TUNING["settings"])
    diverged = group.diverged
    if not diverged.empty:  # what diverged was tried
        diverged = diverged.assign(tokens=diverged["tokens_budget"], val_loss=np.inf)
    try:
        found = fit(pd.concat([group.frame, diverged]), law.name, columns=group.columns)
    except FitError as error:
        return Refusal(group.sweep, str(error), group.title)
    return replace(found, origin=_origin(group, found))


def _origin(group: Group, found: AnyFit) -> Origin:
    """Of a fit to the rows of a group; a law may have left out some more."""
    dropped = {**group.dropped, **found.origin.dropped}
    return Origin(group.sweep, group.arm, group.title, dropped, question=group.question)


def _under_conventions(found: AnyFit, group: Group) -> AnyFit:
    """The fit with how its parameters move under each convention; a law of optima has none."""
    if not isinstance(found, Fit):
        return found
    return replace(found, conventions=tuple(under_conventions(group.frame, found.law, found.delta)))
