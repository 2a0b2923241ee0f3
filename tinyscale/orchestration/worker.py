"""What runs on a node: one Tune trial, which runs a TorchTrainer, which runs our training loop.

A Tune trial trains one assignment: most often one of our trials, else several as one batched model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray import train as ray_train
from ray import tune
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from tinyscale.data import prepare
from tinyscale.errors import DataError
from tinyscale.inference.trained import load_gpt
from tinyscale.orchestration.assignment import Assignment, LaunchSettings, Ticket
from tinyscale.orchestration.recorder import NodeDrainedError, Recorder, Recorders
from tinyscale.orchestration.tuner import MAX_RESTARTS
from tinyscale.results.leases import Lease
from tinyscale.results.store import Results
from tinyscale.spec.state import State
from tinyscale.spec.trial import Trial
from tinyscale.training.batched import train_batched
from tinyscale.training.loop import WEIGHTS
from tinyscale.training.progress import Outcome

PATIENCE_SECONDS = 5.0  # for a trial's process that outlives a killed launcher by a moment

Train = Callable[..., Outcome]  # trains a trial, called as `tinyscale.training.loop.train` is


@dataclass(frozen=True)
class Claimed:
    """Trials that this process trains, with the lease of each. began: when it took them up, seconds since the epoch."""

    trials: tuple[tuple[Trial, Lease], ...]
    settings: LaunchSettings
    train: Train
    began: float


def run_trial(config: Mapping[str, Any], assignments: Mapping[str, str], train: Train) -> None:
    """The Tune function: claim the trials assigned, so that no two launches train them, and run their TorchTrainer.

    assignments: as JSON, by the key of their ticket. That of a trial which a search has sampled is in the config.
    """
    began, text = time.time(), config.get("assignment") or assignments[Ticket.in_config(config).key]
    assignment = Assignment.of_json(text)
    with ExitStack() as stack:
        claimed = tuple(_claim(assignment, stack))
        if claimed:
            _fit(Claimed(claimed, assignment.settings, train, began))


def _claim(assignment: Assignment, stack: ExitStack) -> Iterator[tuple[Trial, Lease]]:
    """Those of the trials that no other launch has, with their leases, which the stack gives back at its end."""
    results = Results(assignment.settings.results)
    for trial in assignment.trials:
        lease = Lease(results.leases, trial.identity, assignment.settings.launch)
        if not lease.claim(PATIENCE_SECONDS):
            _leave(trial, "another launch is training it")
            continue
        stack.callback(lease.release)
        if (state := results.state(trial.identity)) and state.is_kept:
            _leave(trial, "another launch has trained it")
            continue
        if trial.teacher and (reason := _lacks_teacher(trial.teacher, results)):
            _leave(trial, reason)
            continue
        yield trial, lease


def _lacks_teacher(teacher: Trial, results: Results) -> str | None:
    """Why a student of this teacher cannot be trained; None where it can."""
    state = results.state(teacher.identity)
    if state != State.FINISHED:
        how = f"is {state}" if state else "is not trained yet"
        return f"its teacher {teacher.identity} {how}; launch again once it is finished"
    if not results.checkpoints(teacher.identity).exists(WEIGHTS):
        file = f"{results.trials}/{teacher.identity}.parquet"
        return f"the weights of its teacher {teacher.identity} were not kept; delete {file} and launch again"
    return None


def _leave(trial: Trial, reason: str) -> None:
    tune.report({"trial": trial.identity, "state": State.ELSEWHERE, "reason": reason})


def _fit(claimed: Claimed) -> None:
    """One worker trains in this process (Ray Train's local mode); several form a worker group."""
    (trial, _), settings = claimed.trials[0], claimed.settings
    resources = trial.config.resources
    if resources.workers == 1:
        TorchTrainer(partial(train_loop, claimed), scaling_config=ray_train.ScalingConfig(num_workers=0)).fit()
        return
    per_worker = {"CPU": resources.cpu} | ({"GPU": resources.gpu} if resources.gpu else {})
    trainer = TorchTrainer(
        partial(train_loop, claimed),
        torch_config=TorchConfig(backend="nccl" if resources.gpu else "gloo"),
        scaling_config=ray_train.ScalingConfig(
            num_workers=resources.workers, use_gpu=bool(resources.gpu), resources_per_worker=per_worker
        ),
        run_config=ray_train.RunConfig(
            name=f"{settings.sweep}-{trial.identity}",
            storage_path=settings.ray_storage,
            callbacks=[TuneReportCallback()],
            failure_config=ray_train.FailureConfig(max_failures=MAX_RESTARTS, controller_failure_limit=3),
        ),
    )
    trainer.fit()


def train_loop(claimed: Claimed) -> None:
    """Train one trial, or one worker's part of it, or a batched model; record the rows and how each trial ended."""
    each = [Recorder(trial, claimed.settings, lease, claimed.began) for trial, lease in claimed.trials]
    with Recorders(each) as recorders:
        first = recorders.first.trial
        corpus = prepare(first.config.data)
        if corpus.facts != first.facts:
            raise DataError(f"the text of {first.config.data.corpus} is another here than at planning; plan again")
        for recorder in each:
            recorder.corpus = corpus
        if len(each) == 1:
            recorder, stop = recorders.first, recorders.should_stop
            outcome = claimed.train(
                first,
                corpus,
                recorder.point,
                teacher=load_gpt(recorder.results, first.teacher) if first.teacher else None,
                checkpoints=recorder.checkpoints,
                keep_every=claimed.settings.keep_every,
                should_stop=stop,
            )
            recorders.end(0, outcome)
        else:
            train_batched(
                [recorder.trial for recorder in each],
                corpus,
                lambda index, point: each[index].point(point),
                recorders.end,
                checkpoints=[recorder.checkpoints for recorder in each],
                keep_every=claimed.settings.keep_every,
                should_stop=recorders.should_stop,
            )
        if recorders.draining:
            raise NodeDrainedError(f"node {ray.get_runtime_context().get_node_id()} is going away")
