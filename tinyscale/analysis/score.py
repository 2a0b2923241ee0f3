"""`tinyscale score`: registered forecasts held against the runs that came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from tinyscale.analysis.forecasts import (
    Basis,
    Registration,
    Score,
    read_registrations,
    with_scores,
    write_scores,
)
from tinyscale.analysis.runs import read_groups
from tinyscale.analysis.table import given_columns
from tinyscale.errors import FitError, ResultsError
from tinyscale.fitting.points import SAME_SIZE
from tinyscale.results.store import Results, is_final


def score(store: Results, file: str | None = None) -> list[Registration]:
    """Score the registered forecasts of a results folder, or those of a file of runs there, and write the scores.

    ResultsError where there are none. What was edited after it was registered is returned as it is, without new scores.
    """
    made = read_registrations(store.folder)
    if file:
        name = PurePosixPath(file).name
        made = [each for each in made if PurePosixPath(each.registered.source).name == name]
    if not made:
        raise ResultsError(f"{store.folder / 'forecasts'}: no registered forecasts; tinyscale register writes them")
    scored = score_all(store, made, file)
    for each in scored:
        if each.intact:
            write_scores(store.folder, each)
    return scored


def score_all(store: Results, made: list[Registration], file: str | None = None) -> list[Registration]:
    """The registrations with what is there by now; nothing is written. file: in place of the registered one."""
    of_trials = any(not each.registered.of_file for each in made)
    frame = store.read()[0] if of_trials else pd.DataFrame()
    return [
        each if not each.intact else _of_file(each, file) if each.registered.of_file else _of_trials(store, frame, each)
        for each in made
    ]


def _of_trials(store: Results, frame: pd.DataFrame, made: Registration) -> Registration:
    """The registration scored by the last points of its trials."""
    bases = {basis.fit: basis for basis in made.registered.bases}
    states = frame.drop_duplicates("trial", keep="last").set_index("trial")["state"]
    final = frame[is_final(frame)].sort_values("tokens", kind="stable").drop_duplicates("trial", keep="last")
    losses, scores = final.set_index("trial").to_dict("index"), []
    notes = [note for basis in made.registered.bases for note in _changed(frame, basis)]
    for forecast in made.registered.forecasts:
        for trial, seed in forecast.trials.items():
            run = f"{forecast.label} seed={seed}"
            if trial not in losses:
                notes.append(f"{run}: {states.get(trial, 'not trained yet')}")
            elif early := _launched_before(store, trial, made.registered.time):
                notes.append(f"{run}: launched at {early}, before it was registered, and not scored")
            else:
                loss = float(losses[trial][bases[forecast.fit].columns["loss"]])
                scores.append(Score.of(forecast, trial, loss))
    return with_scores(made, scores, notes)


def _launched_before(store: Results, trial: str, time: str) -> str:
    """When the trial was launched, where that is before this time; else empty."""
    launched = str(store.read_trial(trial)[1].get("provenance", {}).get("launched") or "")
    return launched if launched and datetime.fromisoformat(launched) < datetime.fromisoformat(time) else ""


def _changed(frame: pd.DataFrame, basis: Basis) -> list[str]:
    """A note where the rows that a fit rested on are not those that are there now."""
    if basis.rests_on(frame[is_final(frame) & frame["trial"].isin(basis.trials)]):
        return []
    return [f"the {basis.rows} rows behind {basis.fit} are not those that are there now"]


def _of_file(made: Registration, file: str | None) -> Registration:
    """The registration scored by the rows of a file that have its sizes; None: the file that it names, if it can be."""
    try:
        return _of_rows(made, file or made.registered.source)
    except (FitError, ResultsError) as error:
        if file:
            raise
        return replace(made, notes=(f"{error} (tinyscale score FILE reads another place)",))


def _of_rows(made: Registration, file: str) -> Registration:
    bases = {basis.fit: basis for basis in made.registered.bases}
    scores, notes = [], []
    for forecast in made.registered.forecasts:
        found = rows_at(file, bases[forecast.fit], forecast.sizes)
        if found:  # whose lines may have moved
            made = replace(made, scores=tuple(each for each in made.scores if each.forecast != forecast.label))
        scores += [Score.of(forecast, run, loss) for run, loss in found.items()]
        notes += [] if found else [f"{forecast.label}: no row has these sizes yet"]
    return with_scores(made, scores, notes)


def rows_at(file: str, basis: Basis, sizes: Mapping[str, float]) -> dict[str, float]:
    """The losses of a file's rows of these sizes, of the fit's arm, by where they stand: `line 12` -> loss."""
    found: dict[str, float] = {}
    for group in read_groups(file, columns=given_columns(basis.columns)):
        known = [name for name in sizes if name in group.columns]
        if (group.sweep, group.arm) != (basis.sweep, basis.arm) or not known:
            continue
        apart = [np.log(group.frame[group.columns[name]].to_numpy(float) / sizes[name]) for name in known]
        here = group.frame[(np.abs(apart) < SAME_SIZE).all(axis=0)]
        where = here.index.name or "row"
        found |= {f"{where} {line}": float(loss) for line, loss in here[group.columns["loss"]].items()}
    return found
