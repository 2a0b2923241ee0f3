"""Optuna's studies of a sweep, one for each group, kept beside the results and gone on with by the next launch.

The results are the truth and a study follows them: what it lacks of trials that ended is added when a launch begins,
and what it is told of a trial is read from the trial's own rows. `optuna-dashboard results/optuna/<sweep>.log` shows
the studies.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search.optuna import OptunaSearch

from tinyscale.errors import ResultsError
from tinyscale.planning.plan import PlannedTrial
from tinyscale.results.leases import held_trials
from tinyscale.results.store import Results
from tinyscale.spec.search_space import Search, Values
from tinyscale.spec.state import State

FOLDER = "optuna"
REPEATS = 100  # draws in a row of what was drawn before, after which a group has nothing new to draw
TOLD = (TrialState.COMPLETE, TrialState.PRUNED)


class RoundedTPE(TPESampler):
    """TPE whose numbers are rounded, so that the study holds what was trained."""

    def __init__(self, search: Search, seed: int) -> None:
        super().__init__(seed=seed, n_startup_trials=min(10, max(4, search.trials // 3)))
        self.fields = search.fields

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        drawn = super().sample_relative(study, trial, search_space)
        return {path: self._rounded(path, value) for path, value in drawn.items()}

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        return self._rounded(param_name, super().sample_independent(study, trial, param_name, param_distribution))

    def _rounded(self, path: str, value: Any) -> Any:
        return value if self.fields[path].choices else self.fields[path].rounded(value)


class GroupStudy(OptunaSearch):  # type: ignore[misc,unused-ignore]
    """The study of one group. It draws for the group's stand-ins, after what an earlier launch drew and did not end."""

    def __init__(self, search: Search, trials: list[PlannedTrial], storage: BaseStorage, results: Results) -> None:
        name = trials[0].draw.study if trials[0].draw else ""
        super().__init__(space=self._ask, metric="val_loss", mode="min", study_name=name, storage=storage)
        self.search, self.results, self.wanted = search, results, len(trials)
        self.study: Study = self._ot_study
        self.stand_ins = [planned for planned in trials if planned.state == State.UNDRAWN]
        self.drawn = {planned.trial.identity: planned for planned in trials if planned.state != State.UNDRAWN}
        self.again = [planned for planned in self.drawn.values() if planned.will_run]
        self.running: dict[str, PlannedTrial] = {}  # by Tune's name for it
        self.heard: dict[str, int] = {}  # tokens of the last loss on the way
        self._catch_up()
        self.begun_at = len(self.study.trials)
        self.study.sampler = RoundedTPE(search, zlib.crc32(f"{name} {self.begun_at}".encode()))  # else draws repeat

    @property
    def work_left(self) -> float:
        """Seconds, or something in proportion to them, of what is still to be started."""
        return sum(planned.seconds or planned.trial.flops for planned in (*self.again, *self.stand_ins))

    def next(self, trial_id: str) -> PlannedTrial | None:
        """A trial to train now: one that an earlier launch left, or a new draw; None when the group has its trials."""
        if self.again:
            self.running[trial_id] = self.again.pop(0)
        elif self.stand_ins and len(self._identities()) < self.wanted:
            self._draw(trial_id)
        else:
            self.stand_ins.clear()
        return self.running.get(trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Losses on the way, by the tokens they were measured at."""
        asked, tokens = self._ot_trials.get(trial_id), result.get("tokens", 0)
        if asked is not None and "val_loss" in result and tokens > self.heard.get(trial_id, 0):
            self.heard[trial_id] = tokens
            with suppress(UpdateFinishedTrialError):  # another launch took this one for dead
                asked.report(result["val_loss"], tokens)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study what came of a trial, as its rows say."""
        self._tell(self.running.pop(trial_id), self._ot_trials.pop(trial_id, None))

    def _ask(self, trial: optuna.Trial) -> None:
        for path, values in self.search.fields.items():
            if values.low is None or values.high is None:
                trial.suggest_categorical(path, values.ends)
            else:
                trial.suggest_float(path, values.low, values.high, log=values.log)

    def _draw(self, trial_id: str) -> None:
        """Draw until it is something new; a trial that another sweep has trained is taken over and not trained."""
        for _ in range(REPEATS):
            planned = self.stand_ins[0].drawn(self.suggest(trial_id))
            asked = self._ot_trials[trial_id]
            asked.set_user_attr("trial", planned.trial.identity)
            if planned.trial.identity not in self.drawn:
                self.drawn[planned.trial.identity] = planned
                self.running[trial_id] = planned
                self.stand_ins.pop(0)
                return
            self._tell(planned, self._ot_trials.pop(trial_id))
        self.stand_ins.clear()

    def _identities(self) -> set[str]:
        """Trials drawn so far, by this launch or another one that draws beside it."""
        others = [
            trial.user_attrs.get("trial", "")
            for trial in self.study.get_trials(False, (*TOLD, TrialState.RUNNING))
            if trial.number >= self.begun_at or trial.state == TrialState.RUNNING
        ]
        return {*self.drawn, *others}

    def _catch_up(self) -> None:
        """Close what a killed launch left open, and add trials that ended and the study does not know."""
        held = held_trials(self.results.folder / "leases")
        for left in self._open():
            identity = left.user_attrs.get("trial", "")
            if identity not in held:
                state, value, _ = ending(self.results, identity)
                self.study.tell(left.number, value, state, skip_if_finished=True)
        known = {trial.user_attrs.get("trial") for trial in self.study.get_trials(False, TOLD)}
        for identity, planned in self.drawn.items():
            if identity not in known and not planned.will_run:
                self._tell(planned, None)

    def _tell(self, planned: PlannedTrial, asked: optuna.Trial | None) -> None:
        """Tell of a trial that was asked for, by this launch or an earlier one, or add one that is not in the study."""
        identity = planned.trial.identity
        state, value, on_the_way = ending(self.results, identity)
        still_open = [trial.number for trial in self._open() if trial.user_attrs.get("trial") == identity]
        if asked is not None or still_open:
            self.study.tell(still_open[0] if asked is None else asked, value, state, skip_if_finished=True)
        elif state in TOLD:
            self.study.add_trial(
                optuna.trial.create_trial(
                    state=state,
                    value=value,
                    params=self.search.drawn(planned.cell.axes),
                    distributions={path: _distribution(values) for path, values in self.search.fields.items()},
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
    """How a study is told of a trial: its state, its loss, and losses on the way by tokens.

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
        self.folder, self.name = results.folder / FOLDER, f"{sweep}.log"
        self.path = Path(self.folder.path if self.folder.is_local else scratch) / self.name
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.folder.is_local and self.folder.exists(self.name):
            self.path.write_bytes(self.folder.read(self.name))
        self.storage = self._open()

    def _open(self) -> BaseStorage:
        """The storage; a journal cut off by a crash is set aside, for the study can be told again from the results."""
        try:
            if self.path.exists() and not f"\n{self.path.read_text()}".endswith("\n"):
                raise ValueError("its last line is cut off")
            return JournalStorage(JournalFileBackend(str(self.path)))
        except (ValueError, KeyError):
            self.path.replace(self.path.with_suffix(".damaged"))
            return JournalStorage(JournalFileBackend(str(self.path)))

    def keep(self) -> None:
        """Put the journal where the results are."""
        if not self.folder.is_local:
            self.folder.write(self.name, self.path.read_bytes())
