"""What a notebook calls gives what the command line gives, and importing tinyscale loads nothing heavy."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyscale as ts
from helpers import ROOT
from helpers.programs import HEAVY, loaded
from helpers.results import add_sweep, write_results, write_rows
from helpers.runs import runs_by_rate, runs_of_sizes
from helpers.sweeps import SWEEP, write_tiny_sweep
from helpers.trials import make_trial, trial_config
from tinyscale.analysis.predict import predict_all
from tinyscale.analysis.records import read_records
from tinyscale.analysis.study import find_laws
from tinyscale.analysis.suggest import suggest_from
from tinyscale.errors import ConfigError, FitError, LaunchError, ResultsError
from tinyscale.orchestration.launch import Summary
from tinyscale.results.schema import point_columns
from tinyscale.results.store import Results
from tinyscale.results.sweep_record import SweepEntry, SweepRecord
from tinyscale.spec.cell import Cell
from tinyscale.spec.data_config import DataConfig
from tinyscale.training.loop import train


def test_every_name_is_there_and_is_loaded_only_when_used() -> None:
    assert all(callable(getattr(ts, name)) for name in ts.__all__)
    assert set(ts.__all__) <= set(dir(ts))
    assert not loaded("import tinyscale as ts; assert 'launch' in dir(ts)") & HEAVY
    assert not loaded("import tinyscale as ts; ts.fit; ts.predict; ts.plan_launch; ts.plot_fit") & {"torch", "ray"}
    assert not loaded(
        "import tinyscale as ts; ts.Sweep; ts.status; ts.suggest; ts.compare; ts.report; ts.load_model"
    ) & {"torch", "ray"}


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
    assert "12 rows dropped: before the end of its schedule" in found._repr_html_()
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


BASE = {
    "data": {"corpus": "CORPUS", "tokenizer": {"kind": "byte"}, "val_bytes": "101K"},
    "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "context_length": 32},
    "train": {"tokens_budget": 5120, "batch_tokens": 256, "lr": 1e-2},
}


def base_on(corpus: Path) -> dict[str, Any]:
    return {**BASE, "data": {**BASE["data"], "corpus": corpus}}


def test_a_sweep_made_in_python_is_that_of_its_file(tmp_path: Path, long_corpus: Path) -> None:
    made = ts.Sweep.of(
        "tiny",
        base_on(long_corpus),
        title="Which?",
        axes={"d_model": np.array([16, 32])},
        arms={"low": {"lr": 1e-5}, "high": {"lr": [0.1, 0.2]}},
        seeds=range(2),
        resources={"cpu": 1},
    )
    (tmp_path / "tiny.yaml").write_text(made.source)
    read = ts.load_sweep(tmp_path / "tiny.yaml")
    assert made.variants == read.variants
    assert len(made.variants) == 12
    assert (
        (made.name, made.title, made.axes)
        == (read.name, read.title, read.axes)
        == ("tiny", "Which?", ("d_model", "lr"))
    )
    identities = [
        [each.trial.identity for each in ts.plan_launch(sweep, str(tmp_path / "results"), forecast=False).trials]
        for sweep in (made, read)
    ]
    assert identities[0] == identities[1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"axes": {"d_mode": [16]}}, "sweep tiny: axes.d_mode: 'd_mode' names no field; nearest: model.d_model"),
        ({"axes": {"d_model": [16, -2]}}, r"sweep tiny: axes.d_model.1: model.d_model = -2: it should be"),
        ({"axes": {"d_model": []}}, "sweep tiny: axes.d_model: d_model has no values"),
        ({"seeds": [object()]}, "sweep tiny: seeds.0: object is not a value of a sweep"),
        ({"base": {"train": {"lr": 1}}}, "data is missing"),
        ({"name": "a b"}, "it should be letters, digits, - and _ only"),
        ({"overrides": ["d_model"]}, "--set d_model: write field=value"),
        ({"select": {"d_model": 7}}, "--select d_model=7: d_model never is 7; it is 16, 32"),
    ],
)
def test_a_mistake_in_python_is_the_error_of_a_file_with_the_key_in_place_of_the_line(
    long_corpus: Path, changes: dict[str, Any], says: str
) -> None:
    keys = {"name": "tiny", "base": base_on(long_corpus), "axes": {"d_model": [16, 32]}, **changes}
    with pytest.raises(ConfigError, match=says):
        ts.Sweep.of(**keys)


def test_overrides_and_a_selection_are_texts_or_mappings(tmp_path: Path, long_corpus: Path) -> None:
    made = ts.Sweep.of(
        "tiny", base_on(long_corpus), axes={"d_model": [16, 32, 48]}, arms={"a": {}, "b": {"bias": True}}
    )
    path = tmp_path / "tiny.yaml"
    path.write_text(made.source)
    by_text = ts.plan_launch(
        path, str(tmp_path), overrides=["lr=2e-5", "tokenizer={kind: char}"], select=["d_model=16,48", "arm=b"],
        forecast=False,
    )  # fmt: skip
    by_mapping = ts.plan_launch(
        path, str(tmp_path), overrides={"lr": 2e-5, "tokenizer": {"kind": "char"}},
        select={"d_model": [16, 48], "arm": "b"}, forecast=False,
    )  # fmt: skip
    assert [each.trial.identity for each in by_text.trials] == [each.trial.identity for each in by_mapping.trials]
    assert {each.trial.config.train.lr for each in by_text.trials} == {2e-5}
    assert [each.cell.axes["d_model"] for each in by_text.trials] == [16, 48]
    with pytest.raises(ConfigError, match="a Sweep is read already: give overrides and select to load_sweep"):
        ts.plan_launch(made, str(tmp_path), overrides={"lr": 1})


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="mlflow is installed")
def test_a_log_that_is_not_installed_is_an_error_before_the_sweep_is_read(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="--log mlflow needs a package that is not installed"):
        ts.launch(tmp_path / "nowhere.yaml", log="mlflow")


def test_states_comparisons_and_suggestions_are_those_of_the_command_line(fitted: str) -> None:
    states = ts.status(fitted)
    assert {record.name for record in states.sweeps} >= {"width", "optimizer"}
    (row,) = ts.compare(fitted, sweep="optimizer").to_dict("records")
    (written,) = json.loads((Path(fitted) / "fits" / "contrasts.json").read_text())
    assert {name: row[name] for name in ("arm", "base", "verdict", "p")} == {
        name: written[name] for name in ("arm", "base", "verdict", "p")
    }
    with pytest.raises(FitError, match="no arms of width to compare"):
        ts.compare(fitted, sweep="width")
    suggestion, content = ts.suggest(fitted, flops=1e13)
    assert content is not None
    assert (suggestion, content) == suggest_from(fitted, 1e13, "loss")
    with pytest.raises(ResultsError, match="no such folder"):
        ts.status("nowhere")


def test_a_report_is_a_page_whose_path_is_given(tmp_path: Path) -> None:
    sizes = [("base", {"d_model": width, "tokens_budget": 512_000}) for width in (16, 32, 48, 64)]
    add_sweep(Results(str(tmp_path)), "width", "", sizes)
    assert Path(ts.report(str(tmp_path))) == tmp_path / "report.html"
    assert (tmp_path / "report.html").exists()


def test_a_model_is_loaded_by_the_cell_of_its_trial(tmp_path: Path, tiny_corpus: DataConfig) -> None:
    results = Results(str(tmp_path))
    trial, corpus = make_trial(trial_config(tiny_corpus))
    outcome = train(trial, corpus, lambda _: None, checkpoints=results.checkpoints(trial.identity))
    rows = [point_columns(trial, vars(point), corpus.val_tokens, corpus.val_bytes) for point in outcome.points]
    results.write_trial(trial, rows, outcome.state, None, {})
    entry = SweepEntry(trial.identity, Cell("base", {"d_model": 16}, 0))
    results.write_sweep(SweepRecord("width", "", "", ("d_model",), (entry,), {}))
    model = ts.load_model(str(tmp_path), "width/d_model=16,seed=0")
    assert model.identity == trial.identity
    assert not model.gpt.training


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
