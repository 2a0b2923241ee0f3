"""Forecast of a launch's duration, from a short measurement of each trial shape on this machine, which is cached."""

from __future__ import annotations

import functools
import hashlib
import heapq
import importlib.metadata
import json
import logging
import math
import os
import platform
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass

from tinyscale.errors import ForecastError, ResultsError
from tinyscale.formatting import plural
from tinyscale.machine import Capacity, cache_folder, own_python, this_machine, usable_cores
from tinyscale.spec.config import Resources, TrialConfig
from tinyscale.spec.trial import Trial
from tinyscale.storage import Folder, validated

LAUNCH_SECONDS = 8.0  # to start and stop Ray, and to import torch once
CALIBRATION = "calibration.json"  # in the cache: shape key -> its seconds
WORKER_GROUP_SECONDS = 14.0  # for Ray Train to start a trial of several workers


def slots(config: TrialConfig, capacity: Capacity) -> int:
    """Number of such trials that run at once; 0 if not even one fits."""
    resources = config.resources
    fit = [capacity.cpus // (resources.cpu * resources.workers)]
    if resources.gpu:
        fit.append(capacity.gpus / (resources.gpu * resources.workers) + 1e-9)
    return int(min(fit))


def lacking(resources: Resources, capacity: Capacity) -> str | None:
    """The resource that one such trial lacks, and the remedy, as text for an error; None if the trial fits."""
    for what, field, each, available in (
        ("CPU core", "cpu", resources.cpu, capacity.cpus),
        ("GPU", "gpu", resources.gpu, capacity.gpus),
    ):
        wanted = each * resources.workers
        if wanted > available:
            needs = f"{wanted:g} {what}{'s' if wanted > 1 else ''} at once"
            there = f"there are {available:g}" if available else "there is none"
            return f"needs {needs} where {there}: lower them with --set resources.{field}=..."
    return None


def side_by_side(configs: Sequence[TrialConfig], capacity: Capacity) -> int:
    """Number of these trials that run at once on average (harmonic mean of `slots`); 0 if one of them does not fit."""
    each = [slots(config, capacity) for config in configs]
    return int(len(each) / sum(1 / fit for fit in each) + 1e-9) if all(each) else 0


def trial_seconds(
    trials: Sequence[Trial], at_once: int, notify: Callable[[str], None] = lambda _: None, *, busy: bool = False
) -> list[float] | None:
    """Expected seconds of each trial while `at_once` trials run; None if they need a GPU and this machine has none.

    A trial that ran out of GPU memory has infinite seconds. notify is called with how much is measured. busy: whether
    other programs use the machine; what is measured meanwhile serves until it is not. ForecastError if the measurement
    fails.
    """
    measured = _measured(trials, at_once, notify, busy=busy)
    return None if measured is None else [_seconds(*each) for each in zip(trials, measured, strict=True)]


def evaluation_seconds(trials: Sequence[Trial], at_once: int) -> list[float] | None:
    """Expected seconds of each trial's validation text once over, as `trial_seconds` has those of the whole trial."""
    measured = _measured(trials, at_once)
    return None if measured is None else [each["evaluation"] for each in measured]


def spreads(trials: Sequence[Trial], at_once: int) -> list[tuple[float, float]]:
    """Least and most seconds of each trial in units of the expected ones: as if all steps took the time of few.

    They are those of the first and of the last decile of the steps measured; (1, 1) where nothing is.
    """
    with _kept_measurements() as known:
        measured = [known.get(shape_key(trial, at_once), {}) for trial in trials]
    return [(each.get("least", 1.0), each.get("most", 1.0)) for each in measured]


def _measured(
    trials: Sequence[Trial], at_once: int, notify: Callable[[str], None] = lambda _: None, *, busy: bool = True
) -> list[dict[str, float]] | None:
    """The measurement of each trial's shape; None if they need a GPU and this machine has none."""
    if any(trial.config.resources.gpu for trial in trials) and not this_machine().gpus:
        return None
    keys = [shape_key(trial, at_once) for trial in trials]
    with _kept_measurements() as known:
        wanted = {key: trial for key, trial in zip(keys, trials, strict=True) if _is_wanted(known.get(key), busy)}
        for resources, alike in _by_resources(wanted).items():
            measured = _measure(list(alike.values()), resources, at_once, notify)
            known |= {key: each | {"busy": float(busy)} for key, each in zip(alike, measured, strict=True)}
        return [known[key] for key in keys]


def _is_wanted(known: dict[str, float] | None, busy: bool) -> bool:
    """Whether a shape is to be measured: it never was, or on a machine that was busy and no longer is."""
    return known is None or (bool(known["busy"]) and not busy)


def learn(trained: Sequence[tuple[Trial, float]], at_once: int) -> None:
    """Scale the cached measurement of each shape by the measured over the expected seconds of whole trials.

    trained: trials with the seconds that each took. A calibration times a second only, so this is more accurate.
    """
    by_shape: dict[str, list[tuple[Trial, float]]] = {}
    for trial, seconds in trained:
        by_shape.setdefault(shape_key(trial, at_once), []).append((trial, seconds))
    with _kept_measurements() as known:
        for key, each in by_shape.items():
            expected = sum(_seconds(trial, known[key]) for trial, _ in each) if key in known else math.inf
            if math.isfinite(expected):
                ratio = sum(seconds for _, seconds in each) / expected
                known[key] |= {what: known[key][what] * ratio for what in SCALED} | {"busy": 0.0}


@dataclass(frozen=True)
class _Measured:
    """As `calibrate.measure` returns it. busy: 1 where other programs used the machine."""

    step: float
    evaluation: float
    start: float
    least: float
    most: float
    busy: float


SCALED = ("step", "evaluation", "start")  # of a measurement: the seconds


@contextmanager
def _kept_measurements() -> Iterator[dict[str, dict[str, float]]]:
    """The cached measurements by shape key, as `calibrate.measure` returns them. Changes are written back."""
    folder = Folder.at(cache_folder())

    def say(holder: str) -> None:
        logging.getLogger(__name__).warning(
            "waiting for %s, which measures this machine's speed and holds %s/.lock; Ctrl-C stops", holder, folder
        )

    with folder.lock(say):
        try:
            kept = validated(dict[str, _Measured], json.loads(folder.read(CALIBRATION)))
            known = {shape: asdict(measured) for shape, measured in kept.items()}
        except (OSError, ValueError, RecursionError):  # none yet, or a damaged one
            known = {}
        before = json.dumps(known)
        yield known
        if json.dumps(known) != before:
            with suppress(ResultsError):  # without room it is measured again the next time
                folder.write(CALIBRATION, json.dumps(known, indent=1).encode())


def shape_key(trial: Trial, at_once: int) -> str:
    """Hash of everything that the seconds of a step and of an evaluation depend on, this machine included."""
    train = trial.config.train
    shape = {
        "model": trial.config.model.model_dump(),
        "vocab_size": trial.vocab_size,
        "validation": [
            *(trial.facts.corpus_hash, trial.config.data.val_bytes, trial.facts.tokenizer_hash),
            *(name for name, _ in trial.config.data.shares),
            *([trial.facts.split_rule] if trial.config.data.val else ()),
        ],
        "train": [train.batch_tokens, train.optimizer_name, train.precision],
        "resources": trial.config.resources.model_dump(),
        "at_once": at_once,
        **({"teacher": trial.teacher.config.model.model_dump()} if trial.teacher else {}),
        "own": trial.own.as_json(sources=False),
        "machine": [platform.node(), platform.machine(), usable_cores(), _torch_version()],
    }
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:24]


@functools.cache
def _torch_version() -> str:
    """Read from its files once: a plan asks for each of its trials."""
    return importlib.metadata.version("torch")


def makespan(seconds: Sequence[float], at_once: int) -> float:
    """Seconds until the last trial ends, if trials start in this order as slots become free."""
    busy = [0.0] * max(1, at_once)
    for each in seconds:
        heapq.heapreplace(busy, busy[0] + each)
    return max(busy)


def _seconds(trial: Trial, measured: dict[str, float]) -> float:
    workers = trial.config.resources.workers
    evaluations = trial.config.train.eval_points + len(trial.branch_ends)
    training = trial.steps_trained * measured["step"] + evaluations * measured["evaluation"] + measured["start"]
    return training if workers == 1 else training / workers + WORKER_GROUP_SECONDS


def _by_resources(trials: Mapping[str, Trial]) -> dict[Resources, dict[str, Trial]]:
    """The trials (by shape key), grouped by their resources."""
    parts: defaultdict[Resources, dict[str, Trial]] = defaultdict(dict)
    for key, trial in trials.items():
        parts[trial.config.resources][key] = trial
    return parts


def _measure(
    trials: list[Trial], resources: Resources, at_once: int, notify: Callable[[str], None]
) -> list[dict[str, float]]:
    """Run calibrations in subprocesses, as many at once as trials will run at once here; the mean over them.

    resources: of each trial.
    """
    (python, path), here = own_python(), this_machine()
    program = [*python, "-m", "tinyscale.planning.calibrate"]
    environment = os.environ | path | {"OMP_NUM_THREADS": str(resources.cpu)}
    fit = slots(trials[0].config, here)
    asked = json.dumps([trial.as_json() for trial in trials]).encode()
    complete, failed = [], ""
    with ExitStack() as stack:
        processes = []
        for number in range(max(1, min(at_once, fit))):
            own = environment | (_one_gpu(number, int(here.gpus)) if resources.gpu else {})
            errors = stack.enter_context(tempfile.TemporaryFile())  # a pipe would fill up, as nothing reads it
            process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=own)
            processes.append((process, errors))
        for process, _ in processes:
            assert process.stdin is not None
            process.stdin.write(asked)
            process.stdin.close()
        for process, errors in processes:
            assert process.stdout is not None
            output = []
            for line in process.stdout:
                output.append(json.loads(line))
                notify(f"measuring this machine's speed: {len(output)} of {plural(len(trials), 'shape')}")
            process.stdout.close()
            if process.wait() == 0:
                complete.append(output)
            else:
                errors.seek(0)
                failed = errors.read().decode(errors="replace").strip()
    if not complete:
        raise ForecastError(f"measuring this machine's speed failed: {(failed or 'no message').splitlines()[-1]}")
    return [{key: sum(row[key] for row in rows) / len(rows) for key in rows[0]} for rows in zip(*complete, strict=True)]


def _one_gpu(number: int, gpus: int) -> dict[str, str]:
    """The environment that shows process `number` one GPU, so that the processes are spread over all GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[number % gpus].strip()}
