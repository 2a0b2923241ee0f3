"""What `tinyscale fit` finds: read groups, and fit the laws they support."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tinyscale.analysis.best_lr import at_chosen_rate, judging_seed
from tinyscale.analysis.compare import Contrast, base_of, compare_arms
from tinyscale.analysis.distilled import distilled_groups, worth
from tinyscale.analysis.efficiency import MATCH
from tinyscale.analysis.measured import measured_groups
from tinyscale.analysis.parts import parts_of_table, with_parts
from tinyscale.analysis.records import read_fit, read_records
from tinyscale.analysis.runs import (
    Group,
    by_setting,
    choose_rows,
    free_settings,
    keep_final,
    read_groups,
    refuse_mixed,
    table_groups,
)
from tinyscale.analysis.table import given_columns
from tinyscale.analysis.table_checks import explaining, refuse_scattered
from tinyscale.analysis.table_file import ending_of, typed
from tinyscale.analysis.where import Where
from tinyscale.errors import FitError, ResultsError
from tinyscale.fitting.choose import AnyFit, fit, without_idle_floor
from tinyscale.fitting.conventions import CONVENTIONS, under_conventions
from tinyscale.fitting.diagnostics import untuned_note
from tinyscale.fitting.fit import DRAWS, Fit, Method
from tinyscale.fitting.laws import LAWS
from tinyscale.fitting.laws.optima import LAW_OF, SETTINGS, TUNING
from tinyscale.fitting.optima import Optima
from tinyscale.fitting.points import COLUMNS, held_variables
from tinyscale.fitting.record import TRIALS, Origin, Record
from tinyscale.fitting.support import laws_for
from tinyscale.formatting import plural
from tinyscale.results.store import Results
from tinyscale.storage import Folder

MOST_PARTS = 12  # combinations of settings, each a curve by itself, that are fitted beside the law of the best ones


@dataclass(frozen=True)
class Refusal:
    """Why a group of a sweep has no law, or (group left empty) its arms no comparison."""

    sweep: str
    reason: str
    group: str = ""

    def __str__(self) -> str:
        return f"{self.group}: not fitted: {self.reason}" if self.group else self.reason


@dataclass(frozen=True)
class Analysis:
    """fits: of every group that supports a law; contrasts: of arms; dropped: (sweep, arm) -> rows left out, by reason.

    source: the file the runs came from, or TRIALS; where: the expression that chose them, or empty; reading: how the
    file's columns were read, in sentences; written: paths; replaced: fits that were there, made otherwise; both are
    empty until `write_analysis`.
    """

    fits: tuple[AnyFit, ...]
    contrasts: tuple[Contrast, ...]
    refused: tuple[Refusal, ...]
    dropped: Mapping[tuple[str, str], Mapping[str, int]]
    source: str
    where: str = ""
    reading: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()


def find_laws(
    location: str,
    *,
    law: str | None = None,
    columns: Mapping[str, str] | None = None,
    convention: str | None = None,
    pool: bool = False,
    where: str | None = None,
    **options: Any,
) -> Analysis:
    """Fit every group at `location` and compare arms; nothing is written.

    where: fit only the runs that fulfil this expression over their columns, and compare no arms; the fits say so.
    convention: a name of CONVENTIONS to count N and FLOPs by, or `all` to add how the parameters move under each.
    options: of `fit_law`.
    """
    named = dict(columns or {})
    if convention and convention != "all":
        columns = {**CONVENTIONS[convention], **(columns or {})}
    if ending_of(location):
        columns = _with_loss(law, columns)
    chosen = Where.read(where) if where is not None else None
    groups, source = read_groups(location, columns=columns, pool=pool, where=chosen), source_of(location)
    if source == TRIALS and not pool:
        students = list(distilled_groups(groups))
        groups = [each for group in groups for each in with_parts(group, law)]
        groups += [*students, *_chosen_of(measured_groups(Results(location)), chosen)]
    elif source != TRIALS:
        groups = [each for group in groups for each in parts_of_table(group, law)]
    options["every_convention"] = convention == "all"
    outcomes = [outcome for group in groups for outcome in _outcomes_of(group, law, **options)]
    contrasts = [] if chosen else list(contrasts_of(groups))
    fits = tuple(_from(source, chosen, each) for each in outcomes if not isinstance(each, Refusal))
    notes = [note for group in groups for note in group.notes] + not_used(named, groups, fits)
    return Analysis(
        fits=fits,
        contrasts=tuple(each for each in contrasts if isinstance(each, Contrast)),
        refused=tuple(each for each in (*outcomes, *contrasts) if isinstance(each, Refusal)),
        dropped={(group.sweep, group.arm): group.dropped for group in groups if group.law is None},
        source=source,
        where=chosen.text if chosen else "",
        reading=tuple(dict.fromkeys(notes)),
    )


def _with_loss(law: str | None, columns: Mapping[str, str] | None) -> Mapping[str, str]:
    """The columns that a table is read by: a law of what a change adds reads that in place of a loss."""
    predicts = LAWS[law].predicts if law in LAWS else "loss"
    return {**({} if predicts == "loss" else {"loss": predicts}), **(columns or {})}


def not_used(named: Mapping[str, str], groups: Sequence[Group], fits: Sequence[AnyFit]) -> list[str]:
    """A word on the variables that the user named (-> column) and that no fit reads, keeps apart or holds fixed."""
    read = {name for found in fits for name in found.record.columns}
    read |= {name for found in fits if isinstance(found, Fit) for name in held_variables(found.law)}
    apart = {name for group in groups for name in free_settings(group.frame, columns=group.columns)}
    idle = [f"{name} = {column}" for name, column in named.items()
            if name in (*COLUMNS, "weight") and name not in read and column not in apart]  # fmt: skip
    laws = ", ".join(dict.fromkeys(found.record.law for found in fits))
    return [f"named and not used by {laws}: {', '.join(idle)}"] if fits and idle else []


def _chosen_of(measured: Iterable[Group], where: Where | None) -> list[Group]:
    """The groups of measurements as far as their trials are chosen."""
    return [group for each in measured if (group := choose_rows(each, where)) is not None]


def _from(source: str, where: Where | None, found: AnyFit) -> AnyFit:
    """The fit with what its runs are."""
    origin = replace(found.origin, source=source)
    if where is None:
        return replace(found, origin=origin)
    origin = replace(origin, where=where.text, title=f"{origin.title} where {where.text}")
    return replace(found, origin=origin, warnings=(f"of the runs where {where.text} only", *found.warnings))


def source_of(location: str) -> str:
    """What a fit says of where its runs came from: TRIALS, or the file."""
    if not ending_of(location):
        return TRIALS
    return location if "://" in location else str(Path(location).absolute())


def _outcomes_of(whole: Group, law: str | None, **options: Any) -> Iterator[AnyFit | Refusal]:
    """The fits of a sweep's arm, or why there are none: a law of each setting, then the law of the best settings."""
    if whole.law is not None:
        yield from _of_law(whole, law, **options)
        return
    parts = _parts_of(whole, law)
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


def _parts_of(whole: Group, law: str | None) -> list[Group]:
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


def fit_frame(
    frame: pd.DataFrame,
    law: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    delta: float | None = None,
    intervals: Method = "auto",
    draws: int = DRAWS,
    holdout: int = 1,
    seed: int = 0,
    hold: Mapping[str, float] | None = None,
    prior: Mapping[str, tuple[float, float]] | None = None,
    one_sided: bool = False,
) -> AnyFit:
    """Fit a scaling law to a frame of results, or to any frame of one row per run, read as `tinyscale fit` reads it.

    Of results only the last points of finished trials are kept; what was dropped is in the fit's `points` line.
    law: left out, the one for what varies. columns: variables n, d, c, ... and loss, settings and labels -> the frame's
    columns, where they have other names.
    delta: of Huber's function on log loss; None: inf (least squares) below 50 clusters of runs, else 1e-3. intervals:
    auto is profile below 50 clusters, else bootstrap over clusters. draws: bootstrap replicates, and seed theirs.
    holdout: how many of the largest sizes to hold out for the error. hold: parameter -> its value; prior: parameter ->
    mean and standard deviation. one_sided: runs above the law count a tenth. FitError when the runs cannot support the
    law, or are several curves.
    """
    options: dict[str, Any] = {
        "delta": delta, "intervals": intervals, "draws": draws, "holdout": holdout, "seed": seed, "hold": hold,
        "prior": prior, "one_sided": one_sided, "average": law is None,
    }  # fmt: skip
    whole, *others = parts_of_table(_one_group(frame, _with_loss(law, columns)), law)
    if others:
        titles = ", ".join(each.title for each in (whole, *others))
        raise FitError(f"the frame has a law of each part, {titles}: fit the file of it, or give law='mixture'")
    refuse_mixed(whole)
    parts = _parts_of(whole, law)
    if len(parts) > 1:
        free = free_settings(whole.frame, law, whole.columns)
        first = whole.frame[free[0]].iloc[0]
        raise FitError(
            f"one size was run under several values of {', '.join(free)}, which are {len(parts)} curves: fit the rows "
            f"of one, for example frame[frame[{free[0]!r}] == {first!r}], or law='lr' for the best rate"
        )
    main = law or whole.law or laws_for(whole.frame, whole.columns)[0]
    (found,) = fit_group(whole, main, every_convention=False, **options)
    if isinstance(found, Optima) and law is None:
        with suppress(FitError):  # the optima stand without it
            joint = fit(whole.frame, "chinchilla", columns=whole.columns, **options)
            found = replace(found, forecast=joint.forecast)
    notes = (*found.warnings, *untuned_note(whole.frame, whole.columns), *whole.notes[1:])
    notes = (*notes, *not_used(columns or {}, [whole], [found]))
    return replace(found, warnings=notes)


def _one_group(frame: pd.DataFrame, columns: Mapping[str, str]) -> Group:
    """The rows of a frame that are fitted. FitError where there are none, or they are several groups."""
    if frame.empty:
        raise FitError("the frame has no rows; launch a sweep first, or look at what was filtered")
    if {"trial", "state"} <= set(frame.columns):
        kept, dropped = keep_final(_once(frame), columns)
        groups = [Group("frame", "", "frame", kept, dropped, columns=columns)]
        apart = "arm" if "arm" in kept and kept["arm"].nunique() > 1 else ""
    else:
        groups = table_groups(typed(frame), "frame", columns)
        apart = "arm or task" if len(groups) > 1 else ""
    if apart:
        raise FitError(
            f"the frame holds runs of more than one {apart}, whose laws are fitted apart: fit the rows of one, for "
            "example ts.read_results('results', sweep=..., arm=...)"
        )
    return groups[0]


def _once(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of results, each once: a trial of several sweeps may have been read for each of them."""
    return frame.drop_duplicates([name for name in ("trial", "arm", "tokens", "decayed", "state") if name in frame])


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


def contrasts_of(groups: Sequence[Group]) -> Iterator[Contrast | Refusal]:
    """The arms of each sweep against its base, where each arm is one group, or why they do not compare.

    Arms that tried several learning rates are compared each at its own.
    """
    for sweep in dict.fromkeys(group.sweep for group in groups):
        of_sweep = [group for group in groups if group.sweep == sweep and group.law is None]
        arms = [group for group in of_sweep if not group.frame.empty and not group.searched]
        free = {name for group in arms for name in free_settings(group.frame, columns=group.columns)}
        if len(arms) < 2 or free - {"lr"} or not all({*MATCH, "seed"} <= set(group.frame.columns) for group in arms):
            continue
        try:
            yield from _compare_at_chosen_rates(arms) if free else compare_arms(arms)
        except FitError as error:
            yield Refusal(sweep, str(error))


def _compare_at_chosen_rates(arms: Sequence[Group]) -> Iterator[Contrast | Refusal]:
    """Arms with a best rate inside its range, against the base if it has one; why not, for the others."""
    seed, chosen = judging_seed(arms), []
    for arm in arms:
        try:
            chosen.append(at_chosen_rate(arm, seed))
        except FitError as error:
            yield Refusal(arm.sweep, str(error))
    if base_of(arms).arm in [arm.arm for arm in chosen] and len(chosen) > 1:
        how = f"each at its own learning rate, chosen on seed {seed} and compared on the others"
        yield from (replace(each, verdict=f"{each.verdict}; {how}") for each in compare_arms(chosen))


def fit_to_draw(
    location: str, law: str | None = None, name: str | None = None, columns: Mapping[str, str] | None = None
) -> tuple[AnyFit, str]:
    """The one fit at a results folder or a file of runs that answers to a law and a name in fits.json, and its origin.

    Left out, both, it is the only one, or the only one of the loss.

    It is read where `tinyscale fit` left all that a plot needs, else fitted, to the file that the fit was of. columns:
    of `find_laws`. FitError when none answers, or several do.
    """
    folder: Folder | None = None
    records: list[Record] = []
    if not ending_of(location):
        with suppress(ResultsError):  # not fitted before
            folder, records = read_records(location)
    asked = [each for each in records if _is_asked(each, law, name)]
    if law is None and name is None:  # the law of the loss, where a search left one of its settings beside it
        of_loss = [each for each in asked if each.is_of_loss]
        asked = of_loss if len(of_loss) == 1 else asked
    if folder and len(asked) == 1 and asked[0].form.kind == "loss":
        return read_fit(folder, asked[0]), f"read from {folder}/fits.json"
    if len(asked) > 1:
        raise _which(asked)
    if name and records and not asked and law is None:
        raise FitError(f"no fit {name} to draw; there are {', '.join(each.name for each in records)}")
    if asked and asked[0].origin.source != TRIALS:
        location, columns = asked[0].origin.source, columns or given_columns(asked[0].columns)
    where = (asked[0].origin.where if asked else "") or None
    done = find_laws(location, law=asked[0].law if asked else law, columns=columns, where=where)
    fits = [found for found in done.fits if _is_asked(found.record, law, name)]
    if not fits:
        there = ", ".join(dict.fromkeys(each.name for each in (*records, *(found.record for found in done.fits))))
        reasons = "\n".join([*map(str, done.refused), *done.reading])
        which = f"no fit {name or law} to draw" if name or law else "no fit to draw"
        raise FitError(which + (f"; there are {there}" if there else f"\n{reasons}"))
    if len(fits) > 1:
        raise _which([found.record for found in fits])
    return fits[0], "fitted now"


def _is_asked(record: Record, law: str | None, name: str | None) -> bool:
    """Whether a fit answers to these; one of chosen runs answers to its name alone."""
    return name == record.name or (name is None and law in (None, record.law) and not record.origin.where)


def _which(records: Sequence[Record]) -> FitError:
    names = ", ".join(record.name for record in records)
    return FitError(f"{len(records)} fits to draw; name one with --fit: {names}")
