"""The second phase of a launch: each process puts all questions of one finished trial, and writes a row as it goes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from ray import tune

from tinyscale.errors import TinyscaleError, UnusableError
from tinyscale.formatting import plural
from tinyscale.measurements import MEASURES, Subject, load_subject
from tinyscale.orchestration.assignment import LaunchSettings, Ticket
from tinyscale.orchestration.monitor import Monitor
from tinyscale.orchestration.stop import Grid, Stop, launch_stops
from tinyscale.orchestration.summary import Measurements
from tinyscale.orchestration.tuner import MAX_RESTARTS, run_tuner
from tinyscale.orchestration.worker import PATIENCE_SECONDS
from tinyscale.planning.plan import PlannedTrial
from tinyscale.results.leases import Lease
from tinyscale.results.provenance import machine_provenance
from tinyscale.results.store import Results
from tinyscale.spec.config import Resources
from tinyscale.spec.measurement import Question
from tinyscale.spec.state import State
from tinyscale.spec.trial import Trial

LEASE = "measure-"  # before the trial, in the name of its lease
# What a measurement may raise; anything else is our own mistake, and ends the process.
FAILURES = (TinyscaleError, RuntimeError, ValueError, ArithmeticError, LookupError, MemoryError)


@dataclass(frozen=True)
class Job:
    """What one process measures: the questions to one trial. resources: what it may use, those of one worker."""

    trial: str
    resources: Resources
    questions: tuple[Question, ...]
    settings: LaunchSettings

    @classmethod
    def of_json(cls, text: str) -> Self:
        """What `as_json` wrote."""
        written = json.loads(text)
        questions = tuple(map(Question.of_json, written["questions"]))
        resources = Resources(**written["resources"])
        return cls(written["trial"], resources, questions, LaunchSettings(**written["settings"]))

    def as_json(self) -> str:
        """All of it, as a text."""
        asked = [question.as_json() for question in self.questions]
        resources = self.resources.model_dump()
        written = {"trial": self.trial, "resources": resources, "questions": asked, "settings": asdict(self.settings)}
        return json.dumps(written)


def measure(
    trials: Sequence[PlannedTrial],
    missing: Mapping[str, Sequence[Question]],
    settings: LaunchSettings,
    stop: Stop,
    monitor: Monitor,
    *,
    at_once: int,
) -> Measurements:
    """Put the missing questions to these finished trials, by Ray Tune. stop: of the launch."""
    if not trials:
        return Measurements()
    jobs = {each.trial.identity: _job(each.trial, missing, settings) for each in trials}
    count = sum(len(job.questions) for job in jobs.values())
    monitor.console.print(f"measuring {plural(len(trials), 'trial')}: {plural(count, 'measurement')}")
    tickets = [Ticket.of(each.trial, f"measure {each.label}", jobs[each.trial.identity].resources) for each in trials]
    with monitor:
        watch = MeasuringWatch(jobs, {each.trial.identity: each for each in trials}, monitor, stop)
        run_tuner(
            tune.with_parameters(run_job, jobs={trial: job.as_json() for trial, job in jobs.items()}),
            settings,
            order={"search_alg": Grid(stop, max_concurrent=max(1, at_once))},
            callbacks=[watch],
            configs={"ticket": tune.grid_search([ticket.as_json() for ticket in tickets])},
        )
    return Measurements(watch.made, watch.failed, 0, watch.reasons)


def _job(trial: Trial, missing: Mapping[str, Sequence[Question]], settings: LaunchSettings) -> Job:
    alone = trial.config.resources.model_copy(update={"workers": 1, "compile": False})
    return Job(trial.identity, alone, tuple(missing[trial.identity]), settings)


def run_job(config: Mapping[str, Any], jobs: Mapping[str, str]) -> None:
    """The Tune function: measure one trial, unless another launch does."""
    job = Job.of_json(jobs[Ticket.in_config(config).key])
    lease = Lease(Results(job.settings.results).leases, LEASE + job.trial, job.settings.launch)
    if not lease.claim(PATIENCE_SECONDS):
        tune.report({"part": 1.0, "made": 0, "failed": 0, "reason": "another launch is measuring it"})
        return
    try:
        _answer(job, lease)
    except UnusableError as error:
        tune.report({"part": 1.0, "made": 0, "failed": 0, "refused": str(error)})
    finally:
        lease.release()


def _answer(job: Job, lease: Lease) -> None:
    """Put the questions that have no answer yet, one after another, until the launch stops."""
    results = Results(job.settings.results, guard=lease.held)
    rows = results.measured(job.trial)
    answered = {row["measurement"] for row in rows if row["state"] == State.FINISHED}
    asked = [each for each in job.questions if each.identity_for(job.trial) not in answered]
    provenance = {**job.settings.provenance, **machine_provenance()}
    trained = any(question.needs_weights for question in asked)
    subject: Subject | None = None
    made, failed = len(job.questions) - len(asked), 0
    tune.report({"part": 0.0, "made": made, "failed": failed})
    for number, question in enumerate(asked, 1):
        if launch_stops(job.settings.sweep) or not lease.is_ours:
            return
        lease.keep()
        began, reason = time.monotonic(), None
        answer: list[dict[str, Any]] = [{}]
        try:
            subject = subject or load_subject(results, job.trial, job.resources, trained=trained)
            answer = MEASURES[question.kind](subject, question.fields)
        except UnusableError:
            raise
        except FAILURES as error:
            reason = f"{question.label}: {str(error) or type(error).__name__}"
        identity = question.identity_for(job.trial)
        about = {
            "measurement": identity,
            "kind": question.kind,
            "state": State.FAILED if reason else State.FINISHED,
            "reason": reason,
            "wall_seconds": time.monotonic() - began,
            **question.fields.model_dump(mode="json"),
        }
        rows = [row for row in rows if row["measurement"] != identity] + [{**row, **about} for row in answer]
        results.write_measurements(job.trial, rows, provenance)
        made, failed = made + (reason is None), failed + (reason is not None)
        tune.report({"part": number / len(asked), "made": made, "failed": failed, "reason": reason})


class MeasuringWatch(tune.Callback):  # type: ignore[misc,unused-ignore]
    """Counts what the jobs report, by trial, and passes it on to the monitor."""

    def __init__(
        self, jobs: Mapping[str, Job], planned: Mapping[str, PlannedTrial], monitor: Monitor, stop: Stop
    ) -> None:
        self.jobs, self.planned, self.monitor, self.stop = jobs, planned, monitor, stop
        self.made = self.failed = 0
        self.reasons: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves its callbacks to restore them, and ours lives as long as the launch does."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.monitor.started(self._planned(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        planned = self._planned(trial)
        self.monitor.on_report(planned.trial.identity, result)
        if result.get("refused"):
            self.stop.refuse(result["refused"])
        if result.get("reason"):
            self.reasons[planned.trial.identity] = result["reason"]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        last = trial.last_result or {}
        self._end(trial, last.get("made", 0), last.get("failed", 0))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        planned, last = self._planned(trial), trial.last_result or {}
        made = last.get("made", 0)
        self.reasons[planned.trial.identity] = f"its process ended {MAX_RESTARTS + 1} times; see the error of the trial"
        self._end(trial, made, len(self.jobs[planned.trial.identity].questions) - made)

    def _planned(self, trial: Any) -> PlannedTrial:
        return self.planned[Ticket.in_config(trial.config).key]

    def _end(self, trial: Any, made: int, failed: int) -> None:
        self.made, self.failed = self.made + made, self.failed + failed
        planned = self._planned(trial)
        state = State.FAILED if failed else State.FINISHED
        self.monitor.end(planned, state, self.reasons.get(planned.trial.identity))
