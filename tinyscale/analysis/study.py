"""What `tinyscale fit` finds: read groups, and fit the laws they support."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tinyscale.analysis.best_lr import at_chosen_rate, judging_seed
from tinyscale.analysis.compare import Contrast, base_of, compare_arms
from tinyscale.analysis.efficiency import MATCH
from tinyscale.analysis.records import (
    TRIALS,
    Found,
    label,
    law_name,
    read_fit,
    read_records,
    slug,
)
from tinyscale.analysis.runs import READERS, Group, by_setting, free_settings, read_groups, refuse_mixed
from tinyscale.errors import FitError, ResultsError
from tinyscale.fitting.choose import fit, laws_for
from tinyscale.fitting.fit import Fit
from tinyscale.fitting.honesty import CONVENTIONS, under_conventions, untuned_note
from tinyscale.fitting.laws import LAWS
from tinyscale.fitting.points import COLUMNS, column_of
from tinyscale.fitting.tuning import SETTINGS
from tinyscale.storage import Folder


@dataclass(frozen=True)
class Refusal:
    """Why a group of a sweep has no law, or its arms no comparison."""

    sweep: str
    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Analysis:
    """fits: of every group that supports a law; contrasts: of arms; dropped: (sweep, arm) -> rows left out, by reason.

    source: the file the runs came from, or TRIALS; written: paths, empty until `write_analysis`.
    """

    fits: tuple[Found, ...]
    contrasts: tuple[Contrast, ...]
    refused: tuple[Refusal, ...]
    dropped: Mapping[tuple[str, str], Mapping[str, int]]
    source: str
    written: tuple[str, ...] = ()


def find_laws(
    location: str,
    *,
    law: str | None = None,
    columns: Mapping[str, str] | None = None,
    convention: str | None = None,
    pool: bool = False,
    **options: Any,
) -> Analysis:
    """Fit every group at `location` and compare arms; nothing is written.

    convention: a name of CONVENTIONS to count N and FLOPs by, or `all` to add how the parameters move under each.
    options: of `fit_law`.
    """
    named = columns or {}
    if convention and convention != "all":
        columns = {**CONVENTIONS[convention], **(columns or {})}
    fits: list[Found] = []
    refused: list[Refusal] = []
    groups = read_groups(location, columns=columns, pool=pool)
    _refuse_misnamed(groups, named)
    for whole in groups:
        parts = [whole] if law in SETTINGS else [] if whole.searched else by_setting(whole, law)
        for group in parts:
            try:
                found = fit_group(group, law, columns=columns, every_convention=convention == "all", **options)
                fits += [replace(each, warnings=(*each.warnings, *untuned_note(whole.frame))) for each in found]
            except FitError as error:
                refused.append(Refusal(group.sweep, f"{group.title}: not fitted: {error}"))
        if len(parts) != 1 and (law is None or whole.searched):
            laws, reasons = tuned(whole, columns)
            fits += laws
            refused += reasons if whole.searched else []  # in a grid the settings need not be the question
    contrasts = contrasts_of(groups, refused)
    dropped = {(group.sweep, group.arm): group.dropped for group in groups}
    source = source_of(location)
    fits = [replace(found, labels=MappingProxyType({**found.labels, "source": source})) for found in fits]
    return Analysis(tuple(fits), tuple(contrasts), tuple(refused), dropped, source)


def source_of(location: str) -> str:
    """What a fit says of where its runs came from: TRIALS, or the file."""
    if not location.endswith(tuple(READERS)):
        return TRIALS
    return location if "://" in location else str(Path(location).absolute())


def _refuse_misnamed(groups: Sequence[Group], columns: Mapping[str, str]) -> None:
    """FitError for a variable that no law has, or a column that is not there: else another law would be fitted."""
    for variable in columns:
        if variable not in (*COLUMNS, "weight"):
            raise FitError(f"--columns {variable}=...: no law has {variable!r}; legal: {', '.join(COLUMNS)}, weight")
        for group in groups:
            column_of(group.frame, variable, columns)


def contrasts_of(groups: list[Group], refused: list[Refusal]) -> list[Contrast]:
    """The arms of each sweep against its base, where each arm is one group; what cannot be compared joins `refused`.

    Arms that tried several learning rates are compared each at its own.
    """
    contrasts: list[Contrast] = []
    for sweep in dict.fromkeys(group.sweep for group in groups):
        arms = [group for group in groups if group.sweep == sweep and not group.frame.empty and not group.searched]
        free = {name for group in arms for name in free_settings(group.frame)}
        if len(arms) < 2 or free - {"lr"} or not all({*MATCH, "seed"} <= set(group.frame.columns) for group in arms):
            continue
        try:
            contrasts += _compare_at_chosen_rates(arms, refused) if free else compare_arms(arms)
        except FitError as error:
            refused.append(Refusal(sweep, str(error)))
    return contrasts


def _compare_at_chosen_rates(arms: list[Group], refused: list[Refusal]) -> list[Contrast]:
    """Arms with a best rate inside its range, against the base if it has one; the others join `refused`."""
    seed, chosen = judging_seed(arms), []
    for arm in arms:
        try:
            chosen.append(at_chosen_rate(arm, seed))
        except FitError as error:
            refused.append(Refusal(arm.sweep, str(error)))
    if base_of(arms).arm not in [arm.arm for arm in chosen] or len(chosen) < 2:
        return []
    how = f"each at its own learning rate, chosen on seed {seed} and compared on the others"
    return [replace(each, verdict=f"{each.verdict}; {how}") for each in compare_arms(chosen)]


def fit_group(
    group: Group, law: str | None, *, columns: Mapping[str, str] | None, every_convention: bool, **options: Any
) -> list[Found]:
    """The laws that a group supports, the main one first. FitError when the main one is refused."""
    refuse_mixed(group)
    main, *others = [law] if law else laws_for(group.frame, columns)
    fits = [fit(group.frame, main, columns=columns, **options)]
    for name in others:
        try:
            fits.append(fit(group.frame, name, columns=columns, **options))
        except FitError:
            continue  # a second law is a bonus
    return [label(found, group, **_conventions(group, found, every_convention)) for found in fits]


def tuned(group: Group, columns: Mapping[str, str] | None) -> tuple[list[Found], list[Refusal]]:
    """Laws of the best learning rate and batch where the runs support them, and why not where they do not."""
    found: list[Found] = []
    refused: list[Refusal] = []
    laws = [law for law, setting in SETTINGS.items() if not group.searched or setting in group.searched]
    for law in laws:
        try:
            found.append(label(fit(group.frame, law, columns=columns), group))
        except FitError as error:
            refused.append(Refusal(group.sweep, f"{group.title}: not fitted: {error}"))
    return found, refused


def _conventions(group: Group, found: Found, wanted: bool) -> dict[str, Any]:
    if not wanted or not isinstance(found, Fit):
        return {}
    return {"conventions": under_conventions(group.frame, found.law, found.delta)}


def fit_to_draw(location: str, law: str | None = None, name: str | None = None) -> tuple[Found, str]:
    """The one fit at a results folder or a file of runs that answers to a law and a name in fits.json, and its origin.

    It is read where `tinyscale fit` left all that a plot needs, else fitted. FitError when none answers, or several do.
    """
    folder: Folder | None = None
    records: list[dict[str, Any]] = []
    if not location.endswith(tuple(READERS)):
        with suppress(ResultsError):  # not fitted before
            folder, records = read_records(location)
    entries = [entry for entry in records if name in (None, entry["name"]) and law in (None, entry["law"])]
    if folder and len(entries) == 1 and entries[0]["law"] in LAWS:
        return read_fit(folder, entries[0]), f"read from {folder}/fits.json"
    if len(entries) > 1:
        raise _which([entry["name"] for entry in entries])
    done = find_laws(location, law=entries[0]["law"] if entries else law)
    fits = [found for found in done.fits if name in (None, slug(found)) and law in (None, law_name(found))]
    if not fits:
        there = ", ".join(dict.fromkeys([*(entry["name"] for entry in records), *map(slug, done.fits)]))
        reasons = "\n".join(map(str, done.refused))
        raise FitError(f"no fit {name or law} to draw" + (f"; there are {there}" if there else f"\n{reasons}"))
    if len(fits) > 1:
        raise _which([slug(found) for found in fits])
    return fits[0], "fitted now"


def _which(names: Sequence[str]) -> FitError:
    return FitError(f"{len(names)} fits to draw; name one with --fit: {', '.join(names)}")
