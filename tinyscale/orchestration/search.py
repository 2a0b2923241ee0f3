"""What Tune needs to run a search in place of a grid: the next trial, drawn, and under asha which trial to give up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher

from tinyscale.orchestration.ray_internals import clear_flag, set_flag
from tinyscale.orchestration.record import record_sampled
from tinyscale.orchestration.studies import CellStudy, StudyFile
from tinyscale.orchestration.watch import place
from tinyscale.orchestration.worker import placed, stop_key
from tinyscale.planning.plan import Plan, PlannedTrial
from tinyscale.results.store import Results


def search_settings(
    plan: Plan, results: Results, groups: dict[str, list[PlannedTrial]], scratch: str, stopping: Callable[[], bool]
) -> dict[str, Any]:
    """Settings of Tune that run a plan's search: see `SweepSearch`."""
    assert plan.sweep.search is not None, "a sweep without a search is a grid"
    draws = SweepSearch(plan, results, groups, scratch, stopping)
    settings = {"search_alg": ConcurrencyLimiter(draws, plan.at_once), "num_samples": len(plan.to_run)}
    return settings | ({"scheduler": Halving(groups)} if plan.sweep.search.scheduler == "asha" else {})


class SweepSearch(Searcher):  # type: ignore[misc,unused-ignore]
    """What Tune asks for the next trial of a sweep: the study with the least running, of those the one with most left.

    groups: gets each trial that is drawn, a group of its own by its identity, before it trains; stopping: whether the
    user asked to stop.
    """

    def __init__(
        self,
        plan: Plan,
        results: Results,
        groups: dict[str, list[PlannedTrial]],
        scratch: str,
        stopping: Callable[[], bool],
    ) -> None:
        super().__init__()
        assert plan.sweep.search is not None, "a sweep without a search is a grid"
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.plan, self.results, self.groups, self.stopping = plan, results, groups, stopping
        self.file = StudyFile(results, plan.sweep.name, scratch)
        by_study: dict[str, list[PlannedTrial]] = {}
        for each in plan.trials:
            assert each.sample is not None, "each trial of a search has a place in a study"
            by_study.setdefault(each.sample.study, []).append(each)
        self.studies = [
            CellStudy(plan.sweep.search, trials, self.file.storage, results)
            for trials in by_study.values()
            if any(each.will_run for each in trials)
        ]
        self.study_of: dict[str, CellStudy] = {}  # by Tune's name for a trial

    def suggest(self, trial_id: str) -> Any:
        """The next trial, which travels with its config."""
        while not self.stopping() and (open_ := [study for study in self.studies if study.work_left]):
            study = min(open_, key=lambda study: (len(study.running), -study.work_left))
            drawn = study.suggest(trial_id)
            if drawn is not None:
                self.study_of[trial_id] = study
                if drawn.trial.identity not in self.groups:
                    self.groups[drawn.trial.identity] = [drawn]
                    record_sampled(self.plan, self.results, drawn)
                return {"placed": place(drawn), "drawn": drawn.trial}
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if "val_loss" in result:
            self.study_of[trial_id].report(trial_id, result["val_loss"], result["tokens"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.study_of.pop(trial_id).end(trial_id)
        self.file.keep()

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the studies are kept with the results."""


class Halving(FIFOScheduler):  # type: ignore[misc,unused-ignore]
    """Asynchronous successive halving (Li et al. 2020, 1810.05934) inside each group, at 1/16 and 1/4 of its tokens.

    A trial that is behind is asked to stop, and records that itself; Tune would end it in the middle of a step.
    """

    REDUCTION = 4

    def __init__(self, groups: Mapping[str, list[PlannedTrial]]) -> None:
        super().__init__()
        self.groups = groups
        self.studies: dict[str, ASHAScheduler] = {}
        self.asked_to_stop: set[str] = set()

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        clear_flag(stop_key(placed(trial.config)["trial"]))
        self._study(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        identity = placed(trial.config)["trial"]
        at_the_end = result.get("tokens", 0) >= self.groups[identity][0].trial.tokens
        if "val_loss" in result and not at_the_end and identity not in self.asked_to_stop:
            decision = self._study(trial).on_trial_result(tune_controller, trial, result)
            if decision == TrialScheduler.STOP:
                self.asked_to_stop.add(identity)
                set_flag(stop_key(identity), b"behind")
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        clear_flag(stop_key(placed(trial.config)["trial"]))

    def _study(self, trial: Any) -> ASHAScheduler:
        (planned,) = self.groups[placed(trial.config)["trial"]]
        assert planned.sample is not None, "each trial of a search has a place in a study"
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
