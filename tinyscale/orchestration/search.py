"""What Tune needs to run a search in place of a grid: the next trial, and under asha which trial to give up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher

from tinyscale.errors import UnusableError
from tinyscale.orchestration.assignment import Assignment, LaunchSettings, Ticket
from tinyscale.orchestration.record import record_sampled
from tinyscale.orchestration.stop import Stop, clear_stop, stop_trial
from tinyscale.orchestration.studies import CellStudy, StudyFile
from tinyscale.planning.plan import Plan, PlannedTrial
from tinyscale.results.leases import Lease
from tinyscale.results.store import Results


def search_order(
    plan: Plan, results: Results, sets: dict[str, list[PlannedTrial]], settings: LaunchSettings, stop: Stop
) -> dict[str, Any]:
    """Tune's settings for which trial of a search comes next, and which is given up: see `SweepSearch`."""
    search = ConcurrencyLimiter(SweepSearch(plan, results, sets, settings, stop), plan.at_once)
    order = {"search_alg": search, "num_samples": len(plan.to_run)}
    return order | ({"scheduler": Halving(sets)} if settings.halving else {})


class SweepSearch(Searcher):  # type: ignore[misc,unused-ignore]
    """What Tune asks for the next trial: of the studies with the fewest running trials that with most work left.

    sets: gets each trial that is sampled, by its ticket's key, before it trains.
    """

    def __init__(
        self,
        plan: Plan,
        results: Results,
        sets: dict[str, list[PlannedTrial]],
        settings: LaunchSettings,
        stop: Stop,
    ) -> None:
        super().__init__()
        search = plan.sweep.search
        assert search is not None, "a sweep without a search is a grid"
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.plan, self.results, self.sets, self.settings, self.stop = plan, results, sets, settings, stop
        self.file = StudyFile(results, plan.sweep.name, settings.ray_storage)
        by_study: dict[str, list[PlannedTrial]] = {}
        for planned in plan.trials:
            assert planned.sample is not None, "each trial of a search belongs to a study"
            by_study.setdefault(planned.sample.study, []).append(planned)
        with self.file.folder.lock():  # while no other launch samples
            self.studies = [
                CellStudy(search, trials, self.file.storage, results, plan.sweep.name)
                for trials in by_study.values()
                if any(planned.will_run for planned in trials)
            ]
        self.study_of: dict[str, CellStudy] = {}  # by Tune's name for a trial

    def suggest(self, trial_id: str) -> Any:
        """The configuration of the next trial; its assignment is in it, since no launcher knew it before."""
        while not self.stop.requested and (open_ := [study for study in self.studies if study.work_left]):
            study = min(open_, key=lambda study: (len(study.running), -study.work_left))
            planned = None
            with self._writing():
                planned = self._suggested_by(study, trial_id)
            if planned is not None:
                self.study_of[trial_id] = study
                assignment = Assignment((planned.trial,), self.settings)
                ticket = Ticket.of(planned.trial, planned.label)
                return {"ticket": ticket.as_json(), "assignment": assignment.as_json()}
        return Searcher.FINISHED

    def _suggested_by(self, study: CellStudy, trial_id: str) -> PlannedTrial | None:
        """The study's next trial, if any, and a new one in the sweep's record; launches sample one after another.

        Until its process claims the trial, the lease is the launcher's, so that no other launch takes it for left open.
        """
        with self.file.folder.lock():
            planned = study.suggest(trial_id)
            if planned is None:
                return None
            Lease(self.results.leases, planned.trial.identity, self.settings.launch).claim()
            if planned.trial.identity not in self.sets:
                self.sets[planned.trial.identity] = [planned]
                record_sampled(self.plan, self.results, planned)
        return planned

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if "val_loss" in result:
            with self._writing():
                self.study_of[trial_id].report(trial_id, result["val_loss"], result["tokens"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        with self._writing():
            self.study_of.pop(trial_id).end(trial_id)
            self.file.keep()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Where the studies or the sweep's record cannot be written, the launch stops; the results are the truth."""
        try:
            yield
        except (UnusableError, OSError) as error:  # the latter from Optuna
            self.stop.refuse(str(error))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the studies are kept with the results."""


class Halving(FIFOScheduler):  # type: ignore[misc,unused-ignore]
    """Asynchronous successive halving (Li et al. 2020, 1810.05934) inside each cell, at 1/16 and 1/4 of its tokens.

    A trial that is behind is asked to stop, and records that itself; Tune would end it in the middle of a step.
    """

    REDUCTION = 4

    def __init__(self, sets: Mapping[str, Sequence[PlannedTrial]]) -> None:
        super().__init__()
        self.sets = sets
        self.studies: dict[str, ASHAScheduler] = {}
        self.asked_to_stop: set[str] = set()

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        clear_stop(Ticket.in_config(trial.config).key)
        self._study(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        identity = Ticket.in_config(trial.config).key
        at_the_end = result.get("tokens", 0) >= self.sets[identity][0].trial.tokens
        if "val_loss" in result and not at_the_end and identity not in self.asked_to_stop:
            decision = self._study(trial).on_trial_result(tune_controller, trial, result)
            if decision == TrialScheduler.STOP:
                self.asked_to_stop.add(identity)
                stop_trial(identity)
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        clear_stop(Ticket.in_config(trial.config).key)

    def _study(self, trial: Any) -> ASHAScheduler:
        (planned,) = self.sets[Ticket.in_config(trial.config).key]
        assert planned.sample is not None, "each trial of a search belongs to a study"
        if planned.sample.study not in self.studies:
            tokens = planned.trial.tokens
            self.studies[planned.sample.study] = ASHAScheduler(
                time_attr="tokens",
                metric="val_loss",
                mode="min",
                max_t=tokens,
                grace_period=max(1, int(0.9 * tokens / self.REDUCTION**2)),  # an evaluation is a step early or late
                reduction_factor=self.REDUCTION,
            )
        return self.studies[planned.sample.study]
