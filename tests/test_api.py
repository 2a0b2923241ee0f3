"""What a notebook calls gives what the command line gives, and importing tinyscale loads nothing heavy."""

from __future__ import annotations

from pathlib import Path

import pytest

import tinyscale as ts
from helpers import ROOT
from helpers.programs import HEAVY, loaded
from helpers.results import add_sweep, write_results, write_rows
from helpers.runs import runs_by_rate, runs_of_sizes
from helpers.sweeps import SWEEP, write_tiny_sweep
from tinyscale.analysis.predict import predict_all
from tinyscale.analysis.records import read_records
from tinyscale.analysis.study import find_laws
from tinyscale.errors import FitError, ResultsError
from tinyscale.orchestration.launch import Summary
from tinyscale.results.store import Results


def test_every_name_is_there_and_is_loaded_only_when_used() -> None:
    assert all(callable(getattr(ts, name)) for name in ts.__all__)
    assert set(ts.__all__) <= set(dir(ts))
    assert not loaded("import tinyscale as ts; assert 'launch' in dir(ts)") & HEAVY
    assert not loaded("import tinyscale as ts; ts.fit; ts.predict; ts.plan_launch; ts.plot_fit") & {"torch", "ray"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'train_everything'"):
        ts.train_everything  # noqa: B018


def test_predictions_are_those_of_the_command_line(fitted: str) -> None:
    rows = ts.predict(fitted, flops=1e12)
    made = predict_all(*read_records(fitted), {"c": 1e12})
    assert len(rows) == sum(len(each.values) for each in made)
    assert rows["value"].tolist() == [quantity.value for each in made for quantity in each.values.values()]
    assert (rows["low"] <= rows["value"]).all()


def test_objects_say_in_a_line_what_they_are(tmp_path: Path, long_corpus: Path) -> None:
    text = SWEEP.replace("{kind: byte}", "{kind: byte}, val_bytes: 101K")
    sweep = ts.load_sweep(write_tiny_sweep(tmp_path, text + "axes: {d_model: [16, 32]}\n", corpus=long_corpus))
    assert repr(sweep) == "Sweep('tiny': 2 trials over d_model)"
    plan = ts.plan_launch(sweep, str(tmp_path / "results"), forecast=False)
    assert repr(plan) == "Plan('tiny': 2 trials, 2 to run)"
    assert plan._repr_html_().count("<tr") == 3
    fit = ts.fit(runs_of_sizes())
    assert repr(fit).startswith("Fit(power-n: L(N) = 1.")
    assert "<td>" in fit._repr_html_()
    assert "axes: {d_model: [16, 32]}" in sweep._repr_html_()
    summary = Summary(states={"a": "finished", "b": "failed"}, reasons={"b": "a < b"}, wall_seconds=3)
    assert repr(summary) == "Summary(1 finished, 1 failed; 0.0 s of training in 3.0 s)"
    assert "<li>b: a &lt; b</li>" in summary._repr_html_()
    best = ts.fit(runs_by_rate(), "lr")
    assert repr(best).startswith("Optima(lr: lr* = ")
    assert "<td>" in best._repr_html_()


def test_a_fit_to_results_is_that_of_the_command_line_and_says_what_it_dropped(tmp_path: Path) -> None:
    write_results(tmp_path)
    found, (written,) = ts.fit(ts.read_results(str(tmp_path))), find_laws(str(tmp_path)).fits
    assert found.params == pytest.approx(written.params)
    assert found.record.origin.dropped == written.origin.dropped != {}
    assert "12 dropped: before the end of its schedule" in found._repr_html_()
    final = ts.fit(ts.read_results(str(tmp_path), final=True, sweep="width", arm="base"))
    assert final.params == pytest.approx(found.params)


def test_results_are_read_by_sweep_and_arm_and_what_is_not_there_is_named(tmp_path: Path) -> None:
    write_results(tmp_path, arms=("base", "lion"))
    assert set(ts.read_results(str(tmp_path), sweep="width", arm="lion")["arm"]) == {"lion"}
    assert len(ts.read_results(str(tmp_path), arm="lion", final=True)) == 12
    for asked, said in (({"sweep": "depth"}, "no sweep 'depth'; there are width"), ({"arm": "muon"}, "base, lion")):
        with pytest.raises(ResultsError, match=said):
            ts.read_results(str(tmp_path), **asked)
    with pytest.raises(ResultsError, match="no such folder"):
        ts.read_results(str(tmp_path / "nowhere"))


def test_a_frame_that_is_no_single_curve_is_refused_in_words(tmp_path: Path) -> None:
    results = write_results(tmp_path, arms=("base", "lion"))
    frame = ts.read_results(str(tmp_path), sweep="width")
    with pytest.raises(FitError, match="the frame has no rows"):
        ts.fit(frame[frame["arm"] == "muon"])
    with pytest.raises(FitError, match="more than one arm"):
        ts.fit(frame)
    base = frame[frame["arm"] == "base"].dropna(subset="val_loss")
    for rate in (1e-3, 2e-3):
        again = base.assign(lr=rate).drop(columns=["sweep", "arm"]).dropna(axis=1)
        for trial, rows in again.groupby("trial"):
            write_rows(results, f"{trial}at{rate}", rows.assign(run=trial).to_dict("records"))
    several = ts.read_results(str(tmp_path))
    with pytest.raises(FitError, match="one size was run under several values of lr, which are 2 curves"):
        ts.fit(several)


def test_a_frame_of_ones_own_is_read_as_a_file_is() -> None:
    runs = runs_of_sizes()
    headers = {"n": "Params", "n_non_embedding": "Params", "loss": "Val Loss", "val_loss": "Val Loss"}
    assert ts.fit(runs.rename(columns=headers)).params == ts.fit(runs).params


@pytest.mark.slow
def test_the_example_notebook_runs(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs the test extra: pip install -e '.[test]'")
    nbformat = pytest.importorskip("nbformat")
    sizes = [("base", {"d_model": width, "tokens_budget": 512_000}) for width in (16, 32, 48, 64, 96)]
    add_sweep(Results(str(tmp_path / "results")), "quickstart", "Loss against parameters", sizes)
    notebook = nbformat.read(ROOT / "docs" / "example.ipynb", as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}})
    done = client.execute()
    shown = str([cell.get("outputs") for cell in done.cells])
    assert "image/png" in shown
    assert "Fit(power-n" in shown
