"""What `tinyscale fit` finds: read groups, fit the laws they support, compare arms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyscale.analysis.best_lr import at_chosen_rate, judging_seed
from tinyscale.analysis.compare import Contrast, base_of, compare_arms
from tinyscale.analysis.distilled import distilled_groups
from tinyscale.analysis.efficiency import MATCH
from tinyscale.analysis.group_fits import Refusal, outcomes_of
from tinyscale.analysis.measured import measured_groups
from tinyscale.analysis.parts import parts_of_table, with_parts
from tinyscale.analysis.records import read_fit, read_records
from tinyscale.analysis.runs import Group, choose_rows, free_settings, read_groups
from tinyscale.analysis.table import given_columns
from tinyscale.analysis.table_file import ending_of
from tinyscale.analysis.where import Where
from tinyscale.errors import FitError, ResultsError
from tinyscale.fitting.choose import AnyFit
from tinyscale.fitting.conventions import CONVENTIONS
from tinyscale.fitting.fit import Fit
from tinyscale.fitting.laws import LAWS
from tinyscale.fitting.points import COLUMNS, held_variables
from tinyscale.fitting.record import TRIALS, Record
from tinyscale.results.store import Results
from tinyscale.storage import Folder


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
        columns = with_loss(law, columns)
    chosen = Where.read(where) if where is not None else None
    groups, source = read_groups(location, columns=columns, pool=pool, where=chosen), source_of(location)
    if source == TRIALS and not pool:
        students = list(distilled_groups(groups))
        groups = [each for group in groups for each in with_parts(group, law)]
        groups += [*students, *_chosen_of(measured_groups(Results(location)), chosen)]
    elif source != TRIALS:
        groups = [each for group in groups for each in parts_of_table(group, law)]
    options["every_convention"] = convention == "all"
    outcomes = [outcome for group in groups for outcome in outcomes_of(group, law, **options)]
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


def with_loss(law: str | None, columns: Mapping[str, str] | None) -> Mapping[str, str]:
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
