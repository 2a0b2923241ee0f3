"""Trials are listed, shown, named in short, measured on disk and removed: in a folder and on S3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result

from helpers.programs import invoke
from helpers.results import PROVENANCE, add_launch, add_sweep, write
from helpers.trials import known_trial
from tinyscale.errors import ResultsError
from tinyscale.results.leases import Lease
from tinyscale.results.listing import cells_by_trial, find_trial, list_trials
from tinyscale.results.removal import plan_removal, remove
from tinyscale.results.status import read_status
from tinyscale.results.store import Results
from tinyscale.results.usage import read_usage
from tinyscale.spec.state import State

SIZES = [("base", {"d_model": width}) for width in (16, 32, 48)]
ARMS = [("base", {"d_model": 48}), ("lion", {"d_model": 48}), ("lion", {"d_model": 96, "lr": 2e-3})]


@pytest.fixture(params=["folder", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Results:
    """Two sweeps: `width`, whose last size diverged, `arms`, which shares it; and a trial of neither."""
    location = str(tmp_path / "results")
    if request.param == "s3":
        location = request.getfixturevalue("server").uri(tmp_path.name)
    results = Results(location)
    add_sweep(results, "arms", "", ARMS)
    add_sweep(results, "width", "", SIZES, cell2="diverged")
    add_launch(results, "width", 6)
    add_launch(results, "width-tune", 6)
    write(results, known_trial(seed=7))
    for trial in identities(results, "width"):
        results.checkpoints(trial).write("weights.pt", b"w" * 1000)
    return results


def identities(results: Results, sweep: str) -> list[str]:
    record = results.read_sweep(sweep)
    assert record is not None
    return record.trials


def run(results: Results, *arguments: str) -> Result:
    return invoke(*arguments, "--results", results.location)


def test_each_trial_is_listed_once_with_its_cell_its_loss_and_its_bytes(folder: Results) -> None:
    listed = list_trials(folder)
    assert len(listed) == len({each.trial for each in listed}) == len(folder.trials.names(".parquet"))
    assert listed[-1].cells == ()
    (first,) = [each for each in listed if [str(cell) for cell in each.cells] == ["width/d_model=16,seed=0"]]
    rows, _ = folder.read_trial(first.trial)
    last = rows[-1]
    assert (first.loss, first.n, first.tokens) == (last["val_loss"], last["n_non_embedding"], last["tokens"])
    assert first.disk == 1000 + len(folder.trials.read(f"{first.trial}.parquet"))
    assert first.trial.startswith(first.short)
    assert len({each.short for each in listed}) == len(listed)
    (lost,) = [each for each in list_trials(folder, sweep="width") if "d_model=48,seed=1" in str(each.cells[0])]
    assert (lost.state, lost.reason) == (State.DIVERGED, "the loss was not finite")
    assert [cell.sweep for cell in lost.cells] == ["width", "arms"]


def test_the_list_is_filtered_by_sweep_and_state(folder: Results) -> None:
    printed = run(folder, "ls", "--sweep", "width", "--state", "finished", "--json").output
    assert [each["cells"][0]["axes"]["d_model"] for each in json.loads(printed)] == [16, 16, 32, 32]
    assert "d_model=48,seed=0 (also arms)" in run(folder, "ls", "--sweep", "width").output
    assert run(folder, "ls", "--state", "stopped").output.startswith("no trials stopped in ")
    with pytest.raises(ResultsError, match=r"no sweep 'widht' in .*; nearest: width; there are arms, width"):
        list_trials(folder, sweep="widht")


def test_a_trial_is_named_by_its_beginning_or_its_cell(folder: Results) -> None:
    trial = identities(folder, "arms")[4]
    short = next(each.short for each in list_trials(folder) if each.trial == trial)
    for name in (
        trial, short, "arms/lion,d_model=96,lr=0.002,seed=0", "arms/d_model=96,seed=0", "arms/seed=0,train.lr=2e-3",
        "arms/arm=lion, d_model=96, seed=0",
    ):  # fmt: skip
        assert find_trial(folder, name) == trial, name
    assert find_trial(folder, "arms/d_model=48,seed=0") == identities(folder, "arms")[0], "the whole name comes first"


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("zz", "no trial begins with 'zz' in .*; tinyscale ls .* lists them"),
        ("", r"\d+ trials begin with '' .*; give more of the name; tinyscale ls"),
        ("widht/d_model=16", "no sweep 'widht' .*nearest: width"),
        ("width/d_model=17,seed=0", "no trial of width is d_model=17,seed=0; nearest: d_model=16,seed=0; tinyscale ls"),
        ("width/d_model=16", "2 trials of width are d_model=16: d_model=16,seed=0, d_model=16,seed=1; give more"),
    ],
)
def test_a_wrong_name_is_one_error_that_says_how_to_find_the_right_one(tmp_path: Path, named: str, says: str) -> None:
    results = Results(str(tmp_path / "results"))
    add_sweep(results, "width", "", SIZES)
    with pytest.raises(ResultsError, match=says):
        find_trial(results, named)


def test_a_near_beginning_is_named(results: Results) -> None:
    write(results, known_trial())
    right = known_trial().identity
    wrong = right[:5] + ("0" if right[5] != "0" else "1")
    with pytest.raises(ResultsError, match=f"nearest: {right[:6]}"):
        find_trial(results, wrong)


def test_a_cell_without_rows_says_that_it_is_not_trained(folder: Results) -> None:
    trial = identities(folder, "width")[0]
    folder.forget(trial)
    with pytest.raises(ResultsError, match=f"trial {trial} has no rows in .*; launch width to train it"):
        find_trial(folder, "width/d_model=16,seed=0")
    missing = list_trials(folder, states=["missing"])
    assert [(each.trial, each.loss, each.disk) for each in missing] == [(trial, None, 0)]


def test_a_trial_is_shown_with_its_settings_its_curve_and_its_provenance(folder: Results) -> None:
    found = json.loads(run(folder, "show", "width/d_model=16,seed=1", "--json").output)
    assert found["trial"] == identities(folder, "width")[1]
    assert found["config"]["model"]["d_model"] == 16
    assert [point["tokens"] for point in found["curve"]] == [1280, 2560, 5120]
    assert found["provenance"] == PROVENANCE
    printed = run(folder, "show", "width/d_model=16,seed=1").output
    for text in ("width/d_model=16,seed=1", "d_model: 16", "5.12K", "commit 0123abc", "torch 2.13.0", "2 cores"):
        assert text in printed, text


def test_the_bytes_of_all_files_are_counted_once_by_kind(folder: Results) -> None:
    usage = read_usage(folder)
    assert usage.bytes == sum(folder.folder.sizes().values())
    assert usage.kinds["weights"] == 6000
    by_sweep = {each.sweep: each for each in usage.sweeps}
    shared = sum(each.disk for each in list_trials(folder) if len(each.cells) == 2)
    assert by_sweep["width"].bytes == sum(each.disk for each in list_trials(folder, sweep="width"))
    assert by_sweep["width"].bytes - by_sweep["width"].own_bytes == shared > 0
    assert usage.no_sweep == list_trials(folder)[-1].disk
    assert json.loads(run(folder, "du", "--json").output)["bytes"] >= usage.bytes
    assert "its own" in run(folder, "du").output


def test_a_sweep_is_removed_with_all_of_it_and_what_another_sweep_names_is_kept(folder: Results) -> None:
    width, arms = identities(folder, "width"), identities(folder, "arms")
    shared = set(width) & set(arms)
    folder.write_measurements(width[0], [], PROVENANCE)
    folder.studies.write("width.log", b"{}\n")
    (folder.events / "width" / width[0]).write("events.out.tfevents.1.host", b"")
    said = run(folder, "rm", "-y", "--sweep", "width").output
    assert "kept: 2 trials that another sweep names too" in said
    assert "removed 4 trials and the record of width" in said
    left = set(folder.states())
    assert left == {*arms, known_trial(seed=7).identity}
    assert [record.name for record in folder.read_sweeps()] == ["arms"]
    assert [name.partition("-2026")[0] for name in folder.launches.names()] == ["width-tune"]
    files = folder.folder.sizes()
    assert not [path for path in files if path.startswith(("tensorboard", "optuna"))]
    assert not [path for path in files if any(trial in path for trial in set(width) - shared)]
    assert {path.split("/")[1] for path in files if path.startswith("checkpoints/")} == shared


def test_a_trial_is_removed_and_its_sweep_still_lacks_it(folder: Results) -> None:
    said = run(folder, "rm", "-y", "width/d_model=16,seed=0", "width/d_model=48,seed=0").output
    assert "kept: 1 trial " in said
    assert read_status(folder).counts(folder.read_sweeps()[1]) == {"finished": 3, "diverged": 2, "missing": 1}


def test_nothing_is_removed_that_a_launch_trains(results: Results) -> None:
    add_sweep(results, "width", "", SIZES)
    trial = identities(results, "width")[2]
    assert Lease(results.leases, trial).claim()
    for trials, sweep in ([], "width"), ([trial], None):
        with pytest.raises(ResultsError, match=rf"a launch is training 1 trial of these \({trial}\); stop it first"):
            plan_removal(results, trials, sweep)
    assert len(results.states()) == 6


def test_a_trial_that_a_launch_took_up_meanwhile_stays_and_so_does_its_sweep(results: Results) -> None:
    add_sweep(results, "width", "", SIZES)
    removal = plan_removal(results, sweep="width")
    trial = identities(results, "width")[2]
    assert Lease(results.leases, trial).claim()
    assert remove(results, removal) == [trial]
    assert list(results.states()) == [trial]
    assert results.read_sweep("width") is not None


def test_a_trial_that_another_sweep_names_since_the_question_stays(results: Results) -> None:
    add_sweep(results, "width", "", SIZES)
    removal = plan_removal(results, sweep="width")
    add_sweep(results, "again", "", SIZES[:1], seeds=1)
    trial = identities(results, "width")[0]
    assert remove(results, removal) == [trial]
    assert list(results.states()) == [trial]


def test_no_to_the_question_removes_nothing_and_nothing_named_is_wrong_usage(results: Results) -> None:
    add_sweep(results, "width", "", SIZES)
    assert run(results, "rm", "--sweep", "width").exit_code == 1
    assert len(results.states()) == 6
    assert "say what to remove" in run(results, "rm").output


def test_a_trial_of_two_arms_of_one_sweep_belongs_to_one_sweep(results: Results) -> None:
    add_sweep(results, "width", "", [*SIZES[:1], ("same", SIZES[0][1])], seeds=1)
    (cells,) = cells_by_trial(results.read_sweeps()).values()
    assert [str(cell) for cell in cells] == ["width/d_model=16,seed=0", "width/same,d_model=16,seed=0"]
    assert plan_removal(results, sweep="width").shared == ()
