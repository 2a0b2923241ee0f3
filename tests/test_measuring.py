"""Measurements of finished trials: what a sweep file may ask, what a plan still has to make, and the launch's second
phase."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from helpers.launches import RAY_WARNS, planned, run
from helpers.programs import PATIENCE, invoke, tinyscale, wait_for
from helpers.sweeps import write_sweep
from tinyscale.errors import ConfigError, LaunchError
from tinyscale.orchestration.measuring import LEASE
from tinyscale.results.leases import Lease
from tinyscale.results.schema import MEASUREMENTS
from tinyscale.results.store import Results
from tinyscale.spec.measurement import KINDS, Quantize, Question
from tinyscale.spec.sweep import load_sweep
from tinyscale.training.loop import WEIGHTS

pytestmark = RAY_WARNS

ASKED = "quantize: {bits: [8, 4], of: [all, blocks]}"


def write_measured(folder: Path, asked: str = ASKED, **options: Any) -> Path:
    """A sweep of two trials of a second, and what it asks of them."""
    path = write_sweep(folder, **options)
    path.write_text(f"{path.read_text()}measure:\n  {asked}\n")
    return path


def measured(results: Results) -> pd.DataFrame:
    return results.read_measurements()[0]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, cluster: Any) -> Path:
    """The folder of a launch that trained two trials and measured them: its text, its sweep and its results."""
    folder = tmp_path_factory.mktemp("launched")
    results = Results(str(folder / "results"))
    assert run(planned(write_measured(folder), results), results, cluster).measurements.made == 8
    return folder


@pytest.fixture
def measured_once(tmp_path: Path, launched: Path) -> Results:
    """The results of that launch, copied into the test's folder with the text beside them."""
    shutil.copytree(launched, tmp_path, dirs_exist_ok=True)
    return Results(str(tmp_path / "results"))


@pytest.fixture
def trained(measured_once: Results) -> Results:
    """The same before anything was measured."""
    for name in measured_once.measurements.names():
        measured_once.measurements.delete(name)
    return measured_once


def test_lists_are_axes_of_their_kind_and_each_combination_is_a_question(tmp_path: Path) -> None:
    questions = load_sweep(write_measured(tmp_path)).measure
    assert [each.label for each in questions] == [
        "quantize bits=8", "quantize bits=8 of=blocks", "quantize bits=4", "quantize bits=4 of=blocks",
    ]  # fmt: skip
    assert [Question.of_json(each.as_json()) for each in questions] == list(questions)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("quantise: {bits: 4}", "line 10: measure.quantise is not a kind; nearest: quantize"),
        ("quantize: {bit: 4}", "line 10: measure.quantize.bit is not a field; nearest: bits"),
        ("quantize: {}", "measure.quantize.bits is missing; bits of a weight"),
        ("quantize:", "measure.quantize.bits is missing; bits of a weight"),
        ("quantize: {bits: [4, 33]}", "measure.quantize.bits = 33: it should be less than or equal to 16"),
        ("quantize: {bits: [4, 4]}", "measure.quantize.bits lists one value or more, each once"),
        ("quantize: {bits: []}", "measure.quantize.bits lists one value or more, each once"),
        ("quantize: [4]", "measure.quantize = "),
    ],
)
def test_what_is_wrong_with_a_question_is_said_with_its_line(tmp_path: Path, asked: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(write_measured(tmp_path, asked))
    assert message in str(caught.value)


def test_a_measurements_identity_moves_with_what_is_asked_and_with_nothing_else() -> None:
    plain = Question("quantize", Quantize(bits=4), "here")
    assert plain.identity_for("a") == Question("quantize", Quantize(bits=4, of="all"), "there").identity_for("a")
    others = (Quantize(bits=5), Quantize(bits=4, of="blocks"), Quantize(bits=4, group=8))
    identities = {Question("quantize", each).identity_for("a") for each in others}
    identities |= {plain.identity_for("a"), plain.identity_for("b")}
    identities.add(Question("quantize", Quantize(bits=4), text_hash="f0").identity_for("a"))
    assert len(identities) == 6


def test_every_field_of_every_kind_has_a_column() -> None:
    for kind, model in KINDS.items():
        assert set(model.model_fields) <= set(MEASUREMENTS.names), kind


def test_measuring_moves_no_trial_and_a_question_that_suits_none_is_refused(tmp_path: Path, results: Results) -> None:
    plain = [each.trial.identity for each in planned(write_sweep(tmp_path), results).trials]
    plan = planned(write_measured(tmp_path), results)
    assert [each.trial.identity for each in plan.trials] == plain
    assert (plan.measuring.count, plan.measuring.done) == (8, 0)
    with pytest.raises(ConfigError, match=r"no trial can be asked quantize bits=4 group=3: .* does not divide"):
        planned(write_measured(tmp_path, "quantize: {bits: 4, group: 3}"), results)
    some = planned(write_measured(tmp_path, "quantize: {bits: 4, group: 16}"), results)
    assert some.measuring.count == 1
    assert "not measured: quantize bits=4 group=16 of 1 trials" in some.notes[-1]


def test_a_launch_measures_what_it_trained_once_and_what_is_added_later_alone(
    tmp_path: Path, measured_once: Results, cluster: Any
) -> None:
    results = measured_once
    frame = measured(results)
    assert frame.groupby("trial")["measurement"].nunique().eq(4).all()
    assert (frame["state"] == "finished").all()
    assert (frame["loss"] - frame["unchanged_loss"]).to_numpy() == pytest.approx(frame["delta"], abs=1e-9)
    trained = {name: results.trials.read(name) for name in results.trials.names()}
    again = planned(tmp_path / "small.yaml", results)
    assert not again.has_work
    more = planned(write_measured(tmp_path, "quantize: {bits: [8, 4, 3], of: [all, blocks]}"), results)
    assert (more.to_run, more.measuring.count, more.measuring.done) == ([], 4, 8)
    assert run(more, results, cluster).measurements.made == 4
    assert len(measured(results)) == 12
    assert {name: results.trials.read(name) for name in results.trials.names()} == trained
    assert "12/12" in invoke("status", results.location).output


def test_a_score_of_another_text_counts_as_made_until_the_text_changes(
    tmp_path: Path, results: Results, cluster: Any
) -> None:
    (tmp_path / "other.txt").write_text("some other text, to be scored")
    path = write_measured(tmp_path, "score: {text: other.txt}", widths="[8]")
    assert run(planned(path, results), results, cluster).measurements.made == 1
    assert "1/1" in invoke("status", results.location).output
    assert not planned(path, results).has_work
    (tmp_path / "other.txt").write_text("a text that is another now")
    assert planned(path, results).measuring.count == 1


def test_what_cannot_be_measured_is_said_and_measured_by_the_launch_after_it_is_mended(
    tmp_path: Path, trained: Results, cluster: Any
) -> None:
    results = trained
    lost, *_ = results.states()
    weights = results.checkpoints(lost).read(WEIGHTS)
    results.checkpoints(lost).delete(WEIGHTS)
    path = write_measured(tmp_path, "quantize: {bits: 4}")
    summary = run(planned(path, results), results, cluster)
    assert (summary.measurements.made, summary.measurements.failed) == (1, 1)
    assert "has no weights" in summary.measurements.reasons[lost]
    plan = planned(path, results)
    assert (plan.measuring.count, plan.measuring.failed) == (1, 1)
    results.checkpoints(lost).write(WEIGHTS, weights)
    assert invoke("retry", results.location, "--state", "failed").exit_code == 0
    assert len(measured(results)) == 1
    assert run(planned(path, results), results, cluster).measurements.made == 1


def test_a_trial_that_another_launch_is_measuring_is_left_to_it(tmp_path: Path, trained: Results, cluster: Any) -> None:
    for trial in trained.states():
        assert Lease(trained.leases, LEASE + trial).claim()
    assert run(planned(tmp_path / "small.yaml", trained), trained, cluster).measurements.made == 0
    assert measured(trained).empty


def test_memory_needs_no_weights(tmp_path: Path, results: Results, cluster: Any) -> None:
    plan = planned(write_measured(tmp_path, "memory: {}", widths="[8]"), results)
    assert run(plan, results, cluster, keep_weights=False).measurements.made == 1
    (trial,) = results.states()
    assert not results.checkpoints(trial).exists(WEIGHTS)
    assert (measured(results)["weight_bytes"] > 0).all()


def test_a_sweep_that_keeps_no_weights_or_searches_is_not_measured(tmp_path: Path, results: Results) -> None:
    with pytest.raises(LaunchError, match="--keep none leaves no weights to measure"):
        run(planned(write_measured(tmp_path), results), results, None, keep_weights=False)
    path = write_measured(tmp_path)
    fields = "search: {fields: {train.weight_decay: {low: 0.01, high: 0.1}}, trials: 2}"
    path.write_text(f"{path.read_text()}{fields}\n")
    with pytest.raises(ConfigError, match="what a search samples is not measured"):
        load_sweep(path)


def test_a_damaged_file_of_measurements_is_measured_again(tmp_path: Path, measured_once: Results, cluster: Any) -> None:
    results = measured_once
    name, *_ = results.measurements.names()
    whole = measured(results)
    results.measurements.write(name, results.measurements.read(name)[:-200])
    assert f"{name}: set aside" in invoke("status", results.location).output.replace("\n", "")
    assert run(planned(tmp_path / "small.yaml", results), results, cluster).measurements.made == 4
    columns = ["measurement", "loss", "delta", "delta_se"]
    pd.testing.assert_frame_equal(measured(results)[columns], whole[columns])


@pytest.mark.slow
def test_a_launcher_killed_while_it_measures_is_followed_by_one_that_measures_the_rest(tmp_path: Path) -> None:
    bits = list(range(2, 17))
    path = write_measured(tmp_path, f"quantize: {{bits: {bits}, of: [all, blocks]}}", widths="[8]")
    command = ["launch", "-y", "--quiet", str(path), "--results", "killed"]
    program = tinyscale(*command, cwd=tmp_path)
    results = Results(str(tmp_path / "killed"))
    wait_for(lambda: len(measured(results)) > 2, program=program)
    os.killpg(program.pid, signal.SIGKILL)
    program.communicate(timeout=PATIENCE)
    before = measured(results)
    assert 2 < len(before) < 30
    assert tinyscale(*command, cwd=tmp_path).wait(timeout=PATIENCE) == 0
    after = measured(results)
    assert after["measurement"].nunique() == len(after) == 30
    kept = after[after["measurement"].isin(before["measurement"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before)  # also their seconds: none was measured twice
