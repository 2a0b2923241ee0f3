"""Fields left open as `auto`: settled at planning from a measurement, told, recorded, and kept by the next launch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.sweeps import SWEEP, write_tiny_sweep
from tinyscale.errors import ConfigError, ForecastError
from tinyscale.machine import Capacity
from tinyscale.orchestration.record import record_sweep
from tinyscale.planning import auto, forecast
from tinyscale.planning.make_plan import make_plan
from tinyscale.planning.plan import Plan
from tinyscale.results.store import Results
from tinyscale.spec.sweep import load_sweep
from tinyscale.spec.trial import Trial

OPEN = SWEEP.replace("{kind: byte}", "{kind: byte}, val_bytes: 101K") + "axes: {d_model: [16, 32]}\n"
CORES = Capacity(2, 0)


@pytest.fixture
def plan(tmp_path: Path, long_corpus: Path) -> Callable[..., Plan]:
    def make(*overrides: str, text: str = OPEN, measure: bool = True, capacity: Capacity = CORES) -> Plan:
        sweep = load_sweep(write_tiny_sweep(tmp_path, text, corpus=long_corpus), overrides=overrides)
        return make_plan(sweep, Results(str(tmp_path / "results")), capacity, measure=measure)

    return make


def of_autos(plan: Plan) -> tuple[str, ...]:
    """The notes but those on the text."""
    return tuple(note for note in plan.notes if not note.startswith("text "))


def precisions(plan: Plan) -> list[str]:
    return [planned.trial.config.train.precision for planned in plan.trials]


@pytest.mark.slow
def test_an_open_precision_is_measured_the_same_for_the_whole_sweep_and_told(plan: Callable[..., Plan]) -> None:
    made = plan("precision=auto")
    assert len(set(precisions(made))) == 1
    assert set(precisions(made)) <= {"fp32", "bf16"}
    (note,) = of_autos(made)
    other = ({"fp32", "bf16"} - set(precisions(made))).pop()
    assert note.startswith(f"train.precision auto is {precisions(made)[0]} for 2 of 2 trials: the sweep takes ")
    assert note.endswith(f"times as long in {other}")
    assert made.as_json()["trials"][0]["settled"]["train.precision"] == precisions(made)[0]


@pytest.mark.slow
def test_a_trial_is_named_by_what_was_settled(plan: Callable[..., Plan]) -> None:
    made = plan("precision=auto")
    written_out = plan(f"precision={precisions(made)[0]}")
    assert [p.trial.identity for p in made.trials] == [p.trial.identity for p in written_out.trials]


@pytest.mark.parametrize("chosen", ["fp32", "bf16"])
def test_what_was_launched_is_chosen_again_also_for_trials_that_are_added(
    plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    def seconds(trials: list[Trial], at_once: int, *_: object, **__: object) -> list[float]:
        return [1.0 if trial.config.train.precision == chosen else 2.0 for trial in trials]

    with monkeypatch.context() as patch:
        patch.setattr(forecast, "trial_seconds", seconds)
        first = plan("precision=auto")
    record_sweep(first, Results(str(tmp_path / "results")), {})
    larger = plan("precision=auto", text=OPEN.replace("[16, 32]", "[16, 32, 48]"), measure=False)
    assert precisions(larger) == [chosen] * 3
    assert any("as when the sweep was first launched" in note for note in larger.notes)


def test_without_a_measurement_a_cpu_computes_in_fp32_and_compiles_nothing(plan: Callable[..., Plan]) -> None:
    made = plan("precision=auto", measure=False)
    assert precisions(made) == ["fp32"] * 2
    assert not any(planned.trial.config.resources.compile for planned in made.trials)
    assert of_autos(made) == ("train.precision auto is fp32 for 2 of 2 trials: not measured here",)


def test_short_trials_are_not_compiled_unless_the_sweep_says_so(plan: Callable[..., Plan]) -> None:
    assert not any(planned.trial.config.resources.compile for planned in plan().trials)
    assert of_autos(plan()) == ()
    assert all(planned.trial.config.resources.compile for planned in plan("compile=true", measure=False).trials)


@pytest.mark.parametrize(
    ("eager", "compiled", "expected"), [(7000.0, 4000.0, True), (7000.0, 8000.0, False), (70.0, 40.0, False)]
)
def test_a_shape_is_compiled_where_that_is_faster_by_more_than_compiling_takes(
    plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, eager: float, compiled: float, expected: bool
) -> None:
    asked = []

    def seconds(trials: list[Trial], at_once: int, *_: object, **__: object) -> list[float]:
        asked.extend(trials)
        return [compiled if trial.config.resources.compile else eager for trial in trials]

    monkeypatch.setattr(forecast, "trial_seconds", seconds)
    made = plan()
    assert [planned.trial.config.resources.compile for planned in made.trials] == [expected] * 2
    told = "resources.compile auto is True for 2 of 2 trials: 1.75 times as long without"
    assert of_autos(made) == ((told,) if expected else ())
    assert any(trial.config.resources.compile for trial in asked) == (eager > 1000), "measuring is what compiles"


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("axes: {train.precision: [auto, fp32]}", "auto is no value to vary train.precision by"),
        ("axes: {model.d_model: [auto, 16]}", "d_model = 'auto'"),
    ],
)
def test_auto_stands_only_where_something_can_settle_it(tmp_path: Path, axes: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_sweep(write_tiny_sweep(tmp_path, SWEEP + axes + "\n"))
    assert "tiny.yaml, line 6" in str(caught.value)


# shares of a GPU


def shares(plan: Plan) -> list[float]:
    return [planned.trial.config.resources.gpu for planned in plan.trials]


ON_GPU = Capacity(16, 2, gpu_bytes=8e9)


def test_a_share_is_what_the_memory_forecast_needs_and_is_chosen_anew_on_another_machine(
    plan: Callable[..., Plan], tmp_path: Path
) -> None:
    wide, large_batch = OPEN.replace("[16, 32]", "[16, 512]"), ("batch_tokens=65536", "tokens_budget=655360")
    made = plan("gpu=auto", *large_batch, text=wide, measure=False, capacity=ON_GPU)
    assert shares(made) == [0.25, 0.5], "0.5 and 3 GB of 8, each beside a context"
    assert made.at_once == 5, "of two GPUs, the mean over 8 and 4"
    record_sweep(made, Results(str(tmp_path / "results")), {})
    on_cores = plan("gpu=auto", *large_batch, text=wide, measure=False)
    assert shares(on_cores) == [0.0, 0.0]
    assert "resources.gpu auto is 0.0 for 2 of 2 trials: there is no GPU" in on_cores.notes
    assert [p.trial.identity for p in on_cores.trials] == [p.trial.identity for p in made.trials]


def test_a_share_is_no_smaller_than_sharing_makes_a_device_faster(
    plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def seconds(trials: list[Trial], at_once: int, *_: object, **__: object) -> list[float]:
        """Of two GPUs: two trials at once on each lose nothing, four take nearly twice as long."""
        asked.append((at_once, {trial.config.resources.gpu for trial in trials}))
        return [max(10.0, 4.9 * at_once / 2) for _ in trials]

    monkeypatch.setattr(forecast, "trial_seconds", seconds)
    monkeypatch.setattr(auto, "this_machine", lambda: Capacity(16, 2))
    made = plan("gpu=auto", "compile=false", capacity=ON_GPU)
    assert shares(made) == [0.5, 0.5]
    assert asked[:3] == [(2, {1.0}), (4, {0.5}), (8, {0.25})], "on two GPUs"
    assert any("more side by side would be no faster" in note for note in made.notes)


@pytest.mark.parametrize(("cpus", "needs", "expected"), [(16, 0.0, 0.125), (4, 0.0, 0.5), (16, 0.5, 0.5)])
def test_a_share_is_no_smaller_than_there_are_cores_for_or_than_fits_when_measured(
    plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, cpus: int, needs: float, expected: float
) -> None:
    def seconds(trials: list[Trial], at_once: int, *_: object, **__: object) -> list[float]:
        """Trials that lose nothing by others at the same time, and need so much of the memory."""
        return [10.0 if trial.config.resources.gpu >= needs else math.inf for trial in trials]

    monkeypatch.setattr(forecast, "trial_seconds", seconds)
    monkeypatch.setattr(auto, "this_machine", lambda: Capacity(cpus, 2))
    made = plan("gpu=auto", "compile=false", capacity=replace(ON_GPU, cpus=cpus))
    assert shares(made) == [expected] * 2


def test_a_plan_says_why_the_time_is_not_forecast(plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(trials: list[Trial], at_once: int, *_: object, **__: object) -> list[float]:
        raise ForecastError("measuring this machine's speed failed: no word")

    with monkeypatch.context() as patch:
        patch.setattr(forecast, "trial_seconds", fails)
        failed = plan()
    assert failed.seconds is None
    assert "the time is not forecast: measuring this machine's speed failed: no word" in failed.warnings
    monkeypatch.setattr(forecast, "trial_seconds", lambda *_, **__: [math.inf, 1.0])
    tight = plan("compile=false")
    assert [planned.seconds for planned in tight.trials] == [None, 1.0]
    assert any(line.startswith("out of memory when measured: d_model=16 seed=0;") for line in tight.warnings)


def test_a_cluster_that_will_have_gpus_gets_whole_ones_until_their_memory_is_known(plan: Callable[..., Plan]) -> None:
    assert shares(plan("gpu=auto", measure=False, capacity=Capacity(2, 0, grows=True))) == [1.0, 1.0]
