"""How long a launch will take, from a short measurement of each shape on this machine, kept for the next time."""

from __future__ import annotations

import hashlib
import heapq
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from filelock import FileLock

from tinyscale.errors import ForecastError
from tinyscale.machine import Capacity, cache_folder, own_python, this_machine, usable_cores
from tinyscale.spec.config import Resources, TrialConfig
from tinyscale.spec.trial import Trial

LAUNCH_SECONDS = 8.0  # Ray's start and stop, and a process's first import of torch
WORKER_GROUP_SECONDS = 14.0  # Ray Train's start of a trial that several workers share


def slots(config: TrialConfig, capacity: Capacity) -> int:
    """How many such trials run at once; 0 when not even one fits."""
    resources = config.resources
    fit = [capacity.cpus // (resources.cpu * resources.workers)]
    if resources.gpu:
        fit.append(capacity.gpus / (resources.gpu * resources.workers) + 1e-9)
    return int(min(fit))


def lacking(resources: Resources, capacity: Capacity) -> str | None:
    """Which resource one such trial is short of, and the remedy; None when it fits."""
    for what, field, each, there in (
        ("CPU cores", "cpu", resources.cpu, capacity.cpus),
        ("GPUs", "gpu", resources.gpu, capacity.gpus),
    ):
        if each * resources.workers > there:
            wanted = f"{each * resources.workers:g} {what} at once"
            return f"needs {wanted} where there are {there:g}: lower them with --set resources.{field}=..."
    return None


def side_by_side(configs: Sequence[TrialConfig], capacity: Capacity) -> int:
    """How many of these trials run at once on average, each in the share it asks for; 0 when one does not fit."""
    each = [slots(config, capacity) for config in configs]
    return int(len(each) / sum(1 / fit for fit in each) + 1e-9) if all(each) else 0


def trial_seconds(trials: Sequence[Trial], at_once: int) -> list[float] | None:
    """Expected seconds of each trial when `at_once` run side by side; None when this machine lacks their GPU.

    Infinite where a trial ran out of its GPU's memory. ForecastError when the measurement fails.
    """
    if any(trial.config.resources.gpu for trial in trials) and not this_machine().gpus:
        return None
    keys = [shape_key(trial, at_once) for trial in trials]
    with _kept_measurements() as known:
        unknown = {key: trial for key, trial in zip(keys, trials, strict=True) if key not in known}
        for resources, alike in _by_resources(unknown).items():
            measured = _measure(list(alike.values()), resources, at_once)
            known |= dict(zip(alike, measured, strict=True))
        return [_seconds(trial, known[key]) for key, trial in zip(keys, trials, strict=True)]


def learn(trained: Sequence[tuple[Trial, float]], at_once: int) -> None:
    """Correct what is kept of each shape by the seconds that whole trials of it took: half a second measures less."""
    by_shape: dict[str, list[tuple[Trial, float]]] = {}
    for trial, seconds in trained:
        by_shape.setdefault(shape_key(trial, at_once), []).append((trial, seconds))
    with _kept_measurements() as known:
        for key, each in by_shape.items():
            expected = sum(_seconds(trial, known[key]) for trial, _ in each) if key in known else math.inf
            if math.isfinite(expected):
                ratio = sum(seconds for _, seconds in each) / expected
                known[key] = {what: value * ratio for what, value in known[key].items()}


@contextmanager
def _kept_measurements() -> Iterator[dict[str, dict[str, float]]]:
    """Seconds of a step, of an evaluation and of a start by shape, from the cache, written back at the end."""
    path = cache_folder() / "calibration.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        try:
            known = dict(json.loads(path.read_text()))
        except (FileNotFoundError, ValueError):  # none yet, or a process was killed while it wrote
            known = {}
        before = json.dumps(known)
        yield known
        if json.dumps(known) != before:
            path.write_text(json.dumps(known, indent=1))


def shape_key(trial: Trial, at_once: int) -> str:
    """Name of a shape class: trials of one class take equally long a step on one machine."""
    train = trial.config.train
    shape = {
        "model": trial.config.model.model_dump(),
        "vocab_size": trial.vocab_size,
        "validation": [trial.facts.corpus_hash, trial.config.data.val_bytes, trial.facts.tokenizer_hash],
        "train": [train.batch_tokens, train.optimizer, train.precision],
        "resources": trial.config.resources.model_dump(),
        "at_once": at_once,
        "machine": [platform.node(), platform.machine(), usable_cores(), importlib.metadata.version("torch")],
    }
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:24]


def makespan(seconds: Sequence[float], at_once: int) -> float:
    """Seconds until the last trial ends, when they start in this order as slots come free."""
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
    """The trials, by shape, in parts that ask for the same resources."""
    parts: defaultdict[Resources, dict[str, Trial]] = defaultdict(dict)
    for key, trial in trials.items():
        parts[trial.config.resources][key] = trial
    return parts


def _measure(trials: list[Trial], resources: Resources, at_once: int) -> list[dict[str, float]]:
    """Measure in processes of their own, as many at once as trials will be and fit here; the mean over them.

    resources: those of each trial.
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
            errors = stack.enter_context(tempfile.TemporaryFile())  # a pipe that nobody reads would fill up
            process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=own)
            processes.append((process, errors))
        for process, _ in processes:
            assert process.stdin is not None
            process.stdin.write(asked)
            process.stdin.close()
        for process, errors in processes:
            assert process.stdout is not None
            output = [json.loads(line) for line in process.stdout]
            process.stdout.close()
            if process.wait() == 0:
                complete.append(output)
            else:
                errors.seek(0)
                failed = errors.read().decode(errors="replace").strip()
    if not complete:
        raise ForecastError(f"measuring this machine's speed failed: {(failed or 'no word').splitlines()[-1]}")
    return [{key: sum(row[key] for row in rows) / len(rows) for key in rows[0]} for rows in zip(*complete, strict=True)]


def _one_gpu(number: int, gpus: int) -> dict[str, str]:
    """What lets the process of this number see one GPU, so that all of them have equally many."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[number % gpus].strip()}
