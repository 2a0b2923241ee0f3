"""What a notebook calls gives what the command line gives, and importing tinyscale loads nothing heavy."""

from __future__ import annotations

from pathlib import Path

import pytest

import tinyscale as ts
from helpers import ROOT
from helpers.programs import HEAVY, loaded
from helpers.results import make_results
from helpers.runs import runs_by_rate, runs_of_sizes
from helpers.sweeps import SWEEP, write_tiny_sweep
from tinyscale.analysis.predict import predict_all
from tinyscale.analysis.records import read_records
from tinyscale.orchestration.launch import Summary


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


@pytest.mark.slow
def test_the_example_notebook_runs(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs the test extra: pip install -e '.[test]'")
    nbformat = pytest.importorskip("nbformat")
    make_results(str(tmp_path / "results"))
    notebook = nbformat.read(ROOT / "docs" / "example.ipynb", as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}})
    done = client.execute()
    shown = str([cell.get("outputs") for cell in done.cells])
    assert "image/png" in shown
    assert "Fit(power-n" in shown
