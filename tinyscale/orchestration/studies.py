"""Optuna's studies of a sweep, one for each cell, kept with the results and continued by the next launch.

The results are the truth and a study follows them: trials that ended and that it lacks are added when a launch begins,
and how a trial ended is read from its own rows. `optuna-dashboard results/optuna/<sweep>.log` shows the studies.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import OptunaError, UpdateFinishedTrialError
from optuna.pruners import NopPruner
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tinyscale.errors import ResultsError
from tinyscale.planning.plan import PlannedTrial
from tinyscale.results.leases import held_trials
from tinyscale.results.store import Results
from tinyscale.spec.cell import Cell
from tinyscale.spec.search_space import Search, Values
from tinyscale.spec.state import State

REPEATS = 100  # samples in a row that were sampled before, after which nothing new is left in the cell
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
# What Optuna raises on a journal that is not one, or was cut off by a crash.
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, AssertionError, OptunaError)


class RoundedTPE(TPESampler):
    """TPE whose numbers are rounded, so that the study holds what was trained."""

    def __init__(self, search: Search, seed: int) -> None:
        super().__init__(seed=seed, n_startup_trials=min(10, max(4, search.trials // 3)))
        self.fields = search.fields

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        sampled = super().sample_relative(study, trial, search_space)
        return {path: self._rounded(path, value) for path, value in sampled.items()}

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        return self._rounded(param_name, super().sample_independent(study, trial, param_name, param_distribution))

    def _rounded(self, path: str, value: Any) -> Any:
        return value if self.fields[path].choices else self.fields[path].rounded(value)


class CellStudy:
    """The study of one cell of a sweep: which values its next trial gets. It knows Optuna and the results, and no Ray.

    It first hands out trials that an earlier launch sampled and did not end, then samples values for the stand-ins.
    sweep: its name in the results, whose record says what other launches have sampled. key: a caller's own name for a
    trial, from `suggest` to `end`.
    """

    def __init__(
        self, search: Search, trials: Sequence[PlannedTrial], storage: BaseStorage, results: Results, sweep: str
    ) -> None:
        assert trials[0].sample is not None, "each trial of a search belongs to a study"
        self.search, self.results, self.sweep, self.wanted = search, results, sweep, len(trials)
        self.cell = self._cell_of(trials[0].cell)
        self.distributions = {path: _distribution(values) for path, values in search.fields.items()}
        self.study: Study = optuna.create_study(
            storage=storage,
            study_name=trials[0].sample.study,
            direction="minimize",
            pruner=NopPruner(),  # trials that are behind are stopped by Tune's scheduler
            load_if_exists=True,
        )
        self.stand_ins = [planned for planned in trials if planned.state == State.UNSAMPLED]
        self.sampled = {planned.trial.identity: planned for planned in trials if planned.state != State.UNSAMPLED}
        self.unfinished = [planned for planned in self.sampled.values() if planned.will_run]
        self.running: dict[str, PlannedTrial] = {}  # by key, as the two below
        self.asked: dict[str, optuna.Trial] = {}
        self.reported: dict[str, int] = {}  # tokens at the last loss
        self._catch_up()
        before = f"{self.study.study_name} {len(self.study.trials)}"
        seed = zlib.crc32(before.encode())  # a fixed one would repeat samples
        self.study.sampler = RoundedTPE(search, seed)

    @property
    def work_left(self) -> float:
        """Seconds, or something in proportion to them, of what is still to be started."""
        return sum(planned.seconds or planned.trial.flops for planned in (*self.unfinished, *self.stand_ins))

    def suggest(self, key: str) -> PlannedTrial | None:
        """The trial to train next; None when the cell has its trials.

        Another launch must not sample for the same cell before this trial is in the sweep's record.
        """
        if self.unfinished:
            self.running[key] = self.unfinished.pop(0)
        elif self.stand_ins and len(known := self._identities()) < self.wanted:
            self._sample(key, known)
        else:
            self.stand_ins.clear()
        return self.running.get(key)

    def report(self, key: str, loss: float, tokens: int) -> None:
        """Note a loss on the way; one of tokens that were reported already is left out."""
        asked = self.asked.get(key)
        if asked is not None and tokens > self.reported.get(key, 0):
            self.reported[key] = tokens
            with suppress(UpdateFinishedTrialError):  # another launch took this one for dead
                asked.report(loss, tokens)

    def end(self, key: str) -> None:
        """Record in the study how a trial ended, as its rows say."""
        self._record(self.running.pop(key), self.asked.pop(key, None))

    def _sample(self, key: str, known: set[str]) -> None:
        """Sample until the trial is a new one. One that another sweep has trained is recorded and not trained."""
        for _ in range(REPEATS):
            asked = self.study.ask(self.distributions)
            planned = self.stand_ins[0].with_sample({path: asked.params[path] for path in self.search.fields})
            asked.set_user_attr("trial", planned.trial.identity)
            if planned.trial.identity not in known:
                self.sampled[planned.trial.identity] = self.running[key] = planned
                self.asked[key] = asked
                self.stand_ins.pop(0)
                return
            self._record(planned, asked)
        self.stand_ins.clear()

    def _identities(self) -> set[str]:
        """Trials sampled so far, by this launch or by another one that runs at the same time."""
        record = self.results.read_sweep(self.sweep)
        entries = record.entries if record else ()
        return {*self.sampled, *(entry.trial for entry in entries if self._cell_of(entry.cell) == self.cell)}

    def _cell_of(self, cell: Cell) -> str:
        """What the trials of a study share."""
        return cell.without(self.search.names).key_of_seeds

    def _catch_up(self) -> None:
        """Close what a killed launch left open, and add trials that ended and the study does not know."""
        held = held_trials(self.results.leases)
        for left in self._open():
            identity = left.user_attrs.get("trial", "")
            if identity not in held:
                state, value, _ = ending(self.results, identity)
                self.study.tell(left.number, value, state, skip_if_finished=True)
        for planned in self.sampled.values():
            if not planned.will_run:
                self._record(planned, None)

    def _record(self, planned: PlannedTrial, asked: optuna.Trial | None) -> None:
        """Record how a trial ended; one that no launch asked this study for is added to it.

        Of a trial that another launch is training, that launch records the end, wherever it is open.
        """
        identity = planned.trial.identity
        state, value, on_the_way = ending(self.results, identity)
        if state not in ENDED and identity in held_trials(self.results.leases):
            return
        still_open = {trial.number for trial in self._open() if trial.user_attrs.get("trial") == identity}
        for number in still_open | ({asked.number} if asked else set()):
            self.study.tell(number, value, state, skip_if_finished=True)
        known = {trial.user_attrs.get("trial") for trial in self.study.get_trials(False, ENDED)}
        if state in ENDED and identity not in known:
            self.study.add_trial(
                optuna.trial.create_trial(
                    state=state,
                    value=value,
                    params=self.search.sampled(planned.cell.axes),
                    distributions=self.distributions,
                    user_attrs={"trial": identity},
                    intermediate_values=on_the_way,
                )
            )

    def _open(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _distribution(values: Values) -> BaseDistribution:
    if values.low is None or values.high is None:
        return CategoricalDistribution(values.ends)
    return FloatDistribution(values.low, values.high, log=values.log)


def ending(results: Results, trial: str) -> tuple[TrialState, float | None, dict[int, float]]:
    """How a trial ended, as a study keeps it: its state, its loss, and losses on the way by tokens.

    A trial that diverged or was stopped is pruned: TPE then keeps away from there, while it learns nothing of failures.
    """
    try:
        rows, _ = results.read_trial(trial)
    except (FileNotFoundError, ResultsError):
        return TrialState.FAIL, None, {}
    losses = {row["tokens"]: row["val_loss"] for row in rows if row["val_loss"] is not None}
    if rows[-1]["state"] == State.FINISHED:
        return TrialState.COMPLETE, rows[-1]["val_loss"], losses
    return (
        (TrialState.PRUNED if rows[-1]["state"] in (State.DIVERGED, State.STOPPED) else TrialState.FAIL),
        None,
        losses,
    )


class StudyFile:
    """The journal of a sweep's studies: in the results folder, or for an object store a copy that is put there."""

    def __init__(self, results: Results, sweep: str, scratch: str) -> None:
        self.folder, self.name = results.studies, f"{sweep}.log"
        self.path = Path(self.folder.path if self.folder.is_local else scratch) / self.name
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.folder.is_local and self.folder.exists(self.name):
            self.path.write_bytes(self.folder.read(self.name))
        self.storage = self._open()

    def _open(self) -> BaseStorage:
        """The storage; a damaged journal is set aside, and the studies are made again from the results."""
        try:
            *lines, end = (self.path.read_text() if self.path.exists() else "").split("\n")
            if end or (lines and not json.loads(lines[-1])):  # which Optuna says only at the next reading
                raise ValueError("its last line is cut off")
            return JournalStorage(JournalFileBackend(str(self.path)))
        except _DAMAGE:
            self.path.replace(self.path.with_suffix(".damaged"))
            return JournalStorage(JournalFileBackend(str(self.path)))

    def keep(self) -> None:
        """Put the journal where the results are."""
        if not self.folder.is_local:
            self.folder.write(self.name, self.path.read_bytes())
