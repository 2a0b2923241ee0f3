"""Fit a frame as `tinyscale fit` fits a file of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pandas as pd

from tinyscale.analysis.group_fits import fit_group, parts_of
from tinyscale.analysis.parts import parts_of_table
from tinyscale.analysis.runs import Group, free_settings, keep_final, refuse_mixed, table_groups
from tinyscale.analysis.study import not_used, with_loss
from tinyscale.analysis.table_file import typed
from tinyscale.errors import FitError
from tinyscale.fitting.choose import AnyFit, fit
from tinyscale.fitting.diagnostics import untuned_note
from tinyscale.fitting.fit import DRAWS, Method
from tinyscale.fitting.optima import Optima
from tinyscale.fitting.support import laws_for


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
    whole, *others = parts_of_table(_one_group(frame, with_loss(law, columns)), law)
    if others:
        titles = ", ".join(each.title for each in (whole, *others))
        raise FitError(f"the frame has a law of each part, {titles}: fit the file of it, or give law='mixture'")
    refuse_mixed(whole)
    parts = parts_of(whole, law)
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
