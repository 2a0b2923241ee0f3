"""How long a launch will take: slots, order, and a real measurement."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.programs import PATIENCE, tinyscale, trap
from helpers.sweeps import write_sweep
from helpers.trials import known_trial, make_trial, trial_config
from tinyscale.errors import ForecastError, ResultsError
from tinyscale.machine import Capacity
from tinyscale.planning import calibrate, forecast
from tinyscale.planning.calibrate import lighten, measure
from tinyscale.planning.forecast import learn, makespan, shape_key, slots, spreads, trial_seconds
from tinyscale.planning.make_plan import make_plan
from tinyscale.results.store import Results
from tinyscale.spec.data_config import DataConfig
from tinyscale.spec.sweep import load_sweep
from tinyscale.spec.trial import Trial
from tinyscale.storage import Folder

EVEN = {"step": 1.0, "evaluation": 1.0, "start": 0.0, "least": 1.0, "most": 1.0}  # a measurement


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "expected"),
    [
        ({"cpu": 1}, 2, 0, 2), ({"cpu": 3}, 8, 0, 2), ({"cpu": 4}, 2, 0, 0), ({"gpu": 0.25}, 16, 1, 4),
        ({"gpu": 0.25}, 2, 1, 2), ({"gpu": 1 / 3}, 16, 2, 6), ({"gpu": 0.1}, 16, 1, 10), ({"gpu": 1}, 16, 0, 0),
        ({"workers": 4, "gpu": 1}, 64, 8, 2), ({"workers": 2, "cpu": 2}, 9, 0, 2),
    ],
)  # fmt: skip
def test_as_many_trials_run_at_once_as_fit(
    resources: dict[str, float], cpus: float, gpus: float, expected: int
) -> None:
    config = trial_config({"corpus": "x", "tokenizer": {"kind": "byte"}}, resources=resources)
    assert slots(config, Capacity(cpus, gpus)) == expected


@pytest.mark.parametrize(
    ("seconds", "at_once", "expected"),
    [
        ([], 2, 0),
        ([3], 2, 3),
        ([3, 2, 1], 1, 6),
        ([3, 2, 1], 2, 3),
        ([1, 1, 1, 9], 2, 10),
        ([9, 1, 1, 1], 2, 9),
        ([1], 0, 1),
    ],
)
def test_the_makespan_of_trials_in_their_order(seconds: list[float], at_once: int, expected: float) -> None:
    assert makespan(seconds, at_once) == expected


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=30), st.integers(1, 8))
def test_a_makespan_is_between_its_bounds(seconds: list[float], at_once: int) -> None:
    found = makespan(sorted(seconds, reverse=True), at_once)
    least = max(*seconds, sum(seconds) / at_once)
    assert least - 1e-6 <= found <= 4 / 3 * least + max(seconds) / 3 + 1e-6, (
        "longest first is near the best (Graham 1969)"
    )
    assert found <= sum(seconds) + 1e-6


def test_trials_of_one_shape_share_a_measurement_and_others_do_not() -> None:
    key = shape_key(known_trial(), 2)
    for same in ({"seed": 1}, {"lr": 1e-3}, {"tokens_budget": 512_000}, {"weight_decay": 0}):
        assert shape_key(known_trial(**same), 2) == key
    for other in (
        {"d_model": 32},
        {"batch_tokens": 512},
        {"precision": "bf16"},
        {"optimizer": "lion"},
        {"resources": {"cpu": 2}},
    ):
        assert shape_key(known_trial(**other), 2) != key
    assert shape_key(known_trial(), 1) != key


def test_without_a_gpu_trials_of_one_have_no_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "this_machine", lambda: Capacity(2, 0))
    assert trial_seconds([known_trial(resources={"gpu": 0.5})], 2) is None


def test_a_measurement_is_positive_kept_and_grows_with_the_steps(tiny_corpus: DataConfig, own_cache: Path) -> None:
    trials = [make_trial(trial_config(tiny_corpus, tokens_budget=steps * 256))[0] for steps in (20, 40, 80)]
    first = trial_seconds(trials, 1)
    assert first is not None
    assert 0 < first[0] < first[1] < first[2] < 60
    steps = [b - a for a, b in pairwise(first)]
    assert steps[1] == pytest.approx(2 * steps[0]), "one measurement serves all lengths"
    known = json.loads((own_cache / "calibration.json").read_text())
    assert set(known[shape_key(trials[0], 1)]) == {"step", "evaluation", "start", "least", "most", "busy"}
    assert trial_seconds(trials, 1) == first, "measured once"


def test_what_trials_took_corrects_the_forecast_of_their_shape(tiny_corpus: DataConfig, own_cache: Path) -> None:
    trial, _ = make_trial(trial_config(tiny_corpus))
    expected = trial_seconds([trial], 1)
    assert expected is not None
    spread = spreads([trial], 1)
    learn([(trial, 3 * expected[0])], 1)
    assert trial_seconds([trial], 1) == [pytest.approx(3 * expected[0])]
    assert spreads([trial], 1) == spread


def test_steps_that_ran_unevenly_make_a_wide_range_of_the_expected_time(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "_measure", lambda trials, *_: [EVEN | {"least": 0.9, "most": 1.5}] * len(trials))
    plan = make_plan(load_sweep(write_sweep(tmp_path)), Results(str(tmp_path / "results")))
    assert plan.seconds is not None
    training = plan.seconds - forecast.LAUNCH_SECONDS
    between = pytest.approx((0.9 * training + forecast.LAUNCH_SECONDS, 1.5 * training + forecast.LAUNCH_SECONDS))
    assert plan.seconds_between == between


def test_what_was_measured_on_a_busy_machine_serves_until_it_is_not_busy(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def measure(trials: list[Trial], *_: object) -> list[dict[str, float]]:
        made.append(len(trials))
        return [EVEN | {"step": float(len(made)), "evaluation": 0.0}] * len(trials)

    monkeypatch.setattr(forecast, "_measure", measure)
    trial = known_trial()
    times = [trial_seconds([trial], 1, busy=busy) for busy in (True, True, False, True, False)]
    assert times == [[trial.steps], [trial.steps], *[[2 * trial.steps]] * 3]


def test_a_damaged_cache_of_measurements_is_made_anew(tiny_corpus: DataConfig, own_cache: Path) -> None:
    (own_cache / "calibration.json").write_text('{"half": ')
    trial, _ = make_trial(trial_config(tiny_corpus))
    assert trial_seconds([trial], 1) is not None
    assert shape_key(trial, 1) in json.loads((own_cache / "calibration.json").read_text())


def test_measuring_runs_no_file_of_the_working_directory(
    tiny_corpus: DataConfig, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, _ = make_trial(trial_config(tiny_corpus))
    trap(tmp_path, monkeypatch)
    assert trial_seconds([trial], 1) is not None
    assert not (tmp_path / "RAN").exists()


def test_a_measurement_that_fails_says_why(own_cache: Path) -> None:
    with pytest.raises(ForecastError, match=r"measuring this machine's speed failed: .*nowhere\.txt"):
        trial_seconds([known_trial(seed=77, d_ff=100)], 1)


def test_a_trial_that_runs_out_of_memory_is_measured_as_one_that_never_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(trial: Trial) -> dict[str, float]:
        if trial.config.seed:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return EVEN

    trials = json.dumps([known_trial(seed=1).as_json(), known_trial().as_json()])
    monkeypatch.setattr(calibrate, "measure", measure)
    monkeypatch.setattr(sys, "stdin", io.StringIO(trials))
    calibrate.main()
    assert [json.loads(line)["step"] for line in capsys.readouterr().out.splitlines()] == [math.inf, 1.0]


def test_as_many_trials_are_measured_at_once_as_will_run_each_on_a_gpu_of_its_own(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Measured:
        def __init__(self, *_: Any, env: dict[str, str], **__: Any) -> None:
            seen.append(env.get("CUDA_VISIBLE_DEVICES"))
            self.stdin, self.stdout = io.BytesIO(), io.BytesIO(json.dumps(EVEN).encode() + b"\n")

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Measured)
    monkeypatch.setattr(forecast, "this_machine", lambda: Capacity(6, 2))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for share, at_once, devices in (
        (1.0, 2, ["0", "1"]),
        (0.5, 4, ["0", "1"] * 2),
        (0.25, 8, ["0", "1"] * 3),
        (0.0, 4, [None] * 4),
    ):
        seen.clear()
        assert trial_seconds([known_trial(d_ff=200, resources={"gpu": share})], at_once) is not None
        assert seen == devices, "never more than the six cores hold"


def test_a_measured_step_is_near_what_training_takes(tiny_corpus: DataConfig) -> None:
    from tinyscale.training.loop import train

    trial, corpus = make_trial(trial_config(tiny_corpus, tokens_budget=200 * 256, repeats=True, eval_points=1))
    expected = forecast._seconds(trial, measure(trial))
    assert 0.2 < train(trial, corpus, lambda _: None).seconds / expected < 5


@pytest.mark.parametrize(
    ("fixed", "per_row", "rows"),
    [
        (0.003, 0.0, 1024),  # all of it is launches
        (0.0, 0.001, 512),
        (0.0, 10.0, 1),
    ],
)
def test_a_batch_is_measured_in_part_only_where_a_step_of_it_takes_long(
    fixed: float, per_row: float, rows: int
) -> None:
    large = known_trial(d_model=1024, n_layers=24, context_length=256, batch_tokens=1024 * 256, tokens_budget="1M")
    light = lighten(large, lambda part: fixed + per_row * part.config.train.batch_tokens / 256)
    assert light.config.train.batch_tokens == rows * 256


def test_a_worker_of_several_is_measured_on_its_part_of_the_batch() -> None:
    shared = known_trial(batch_tokens=4096, resources={"workers": 4})
    assert lighten(shared, lambda _: 0.0).config.train.batch_tokens == 1024
    assert lighten(known_trial(), lambda _: 0.0).config == known_trial().config


@pytest.mark.slow
def test_a_plan_that_waits_for_another_process_to_measure_says_so_and_ctrl_c_ends_it(
    tmp_path: Path, own_cache: Path
) -> None:
    path = write_sweep(tmp_path)
    with Folder.at(own_cache).lock():
        program = tinyscale("plan", str(path), cwd=tmp_path)
        assert program.stdout is not None
        line = program.stdout.readline()
        program.send_signal(signal.SIGINT)
        rest, _ = program.communicate(timeout=PATIENCE)
    assert f"waiting for process {os.getpid()}, which measures this machine's speed and holds " in line
    assert (program.returncode, rest.strip()) == (130, "stopped")


def test_a_cache_without_room_for_what_was_measured_stops_nothing(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise ResultsError("no space left")

    (own_cache / "calibration.json").write_text("[1]")
    monkeypatch.setattr(Folder, "write", full)
    monkeypatch.setattr(forecast, "_measure", lambda *_: [EVEN | {"evaluation": 0.0}])
    trial = known_trial()
    assert trial_seconds([trial], 1) == [trial.steps]
    assert (own_cache / "calibration.json").read_text() == "[1]"
