"""Forecasts that are registered before the runs: what is written, what is refused, and how they are scored."""

from __future__ import annotations

import io
import json
import math
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from helpers import ROOT
from helpers.programs import invoke
from helpers.results import add_sweep
from helpers.runs import HOFFMANN, simulated
from helpers.sweeps import write_search, write_sweep
from helpers.trials import FACTS, known_trial
from tinyscale.analysis.forecasts import (
    Forecast,
    Registered,
    Registration,
    Score,
    calibration_table,
    read_registrations,
    rows_hash,
)
from tinyscale.analysis.predict import predict_all
from tinyscale.analysis.records import read_records
from tinyscale.analysis.register import register_trials
from tinyscale.analysis.score import score
from tinyscale.cli.tables import registered_table
from tinyscale.errors import ConfigError, FitError, ResultsError
from tinyscale.fitting.estimate import Estimate
from tinyscale.planning.make_plan import make_plan
from tinyscale.reporting.page import write_report
from tinyscale.reporting.terminal import PlainConsole
from tinyscale.reporting.write import analyse
from tinyscale.results.schema import point_columns
from tinyscale.results.store import Results, is_final
from tinyscale.spec.cell import Cell
from tinyscale.spec.sweep import load_sweep
from tinyscale.spec.trial import Trial, resolve

TOKENS = 512_000
LATER = "2099-01-01T00:00:00+00:00"


def law(n: float) -> float:
    """The losses of the made results, without noise."""
    return float(1.5 + 40 * n**-0.35 + 90 * TOKENS**-0.4)


def train(results: Results, trial: Trial, loss: float, state: str = "finished", launched: str = LATER) -> None:
    """The rows of a trial that ends with this loss."""
    point = {"step": 1, "tokens": trial.tokens, "val_loss": loss, "decayed": True}
    results.write_trial(trial, [point_columns(trial, point, 100_000, 400_000)], state, None, {"launched": launched})


def cells(*widths: int, seeds: tuple[int, ...] = (0, 1), **changes: Any) -> list[tuple[Cell, Trial]]:
    """Trials of the ladder, trained or not."""
    made = {"tokens_budget": TOKENS, "repeats": True, **changes}
    return [
        (Cell("base", {"d_model": width}, seed), known_trial(seed=seed, d_model=width, **made))
        for width in widths
        for seed in seeds
    ]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with a fitted sweep of five widths; to be copied."""
    folder = tmp_path_factory.mktemp("small") / "results"
    widths = [("base", {"d_model": width, "tokens_budget": TOKENS}) for width in (16, 32, 48, 64, 96)]
    add_sweep(Results(str(folder)), "ladder", "How far?", widths)
    analyse(str(folder), str(folder), draws=200)
    return folder


@pytest.fixture
def store(small: Path, tmp_path: Path) -> Results:
    return Results(str(shutil.copytree(small, tmp_path / "results")))


def test_each_untrained_trial_has_the_loss_that_the_fit_predicts_with_its_interval(store: Results) -> None:
    made, _ = register_trials(store, "ladder", cells(128, 256))
    folder, (record, *_) = read_records(store.location)
    for forecast, width in zip(made.forecasts, (128, 256), strict=True):
        n = known_trial(d_model=width).parameters.n_non_embedding
        (predicted,) = predict_all(folder, [record], {"n": n})
        assert forecast.loss == predicted.values["loss"]
        assert forecast.sizes == {"n": n, "d": TOKENS}
        assert forecast.loss.value == pytest.approx(law(n), rel=0.01)
        assert forecast.loss.low < law(n) < forecast.loss.high
        assert "power-n" in forecast.laws
        assert sum(forecast.laws.values()) == pytest.approx(1.0)
    assert [forecast.label for forecast in made.forecasts] == ["d_model=128", "d_model=256"]


def test_seeds_share_a_forecast_and_its_distance_is_that_in_compute(store: Results) -> None:
    made, _ = register_trials(store, "ladder", cells(128))
    (forecast,) = made.forecasts
    assert forecast.trials == {trial.identity: cell.seed for cell, trial in cells(128)}
    flops = {width: known_trial(d_model=width, tokens_budget=TOKENS, repeats=True).flops for width in (96, 128)}
    assert forecast.flops == pytest.approx(flops[128])
    assert forecast.times_beyond == pytest.approx(flops[128] / flops[96])
    assert any("times beyond the largest fitted" in note for note in forecast.notes)


def test_what_a_forecast_rests_on_is_named_and_its_hash_follows_from_the_results(store: Results) -> None:
    made, _ = register_trials(store, "ladder", cells(128))
    (basis,) = made.bases
    assert (basis.fit, basis.law, basis.rows) == ("ladder-power-n", "power-n", 10)
    frame = store.read()[0]
    rows = frame[is_final(frame)]
    assert set(basis.trials) == set(rows["trial"])
    assert basis.sha256 == rows_hash(rows, ["n_non_embedding", "val_loss", "trial"])
    changed = rows.assign(val_loss=rows["val_loss"].where(rows.index != rows.index[3], 3.0))
    assert basis.sha256 != rows_hash(changed, ["n_non_embedding", "val_loss", "trial"])
    assert made.time.endswith("+00:00")
    assert made.commit is None or len(made.commit) == 40
    assert read_registrations(store.folder)[0].registered == made


def test_trials_that_are_trained_are_left_out(store: Results) -> None:
    made, said = register_trials(store, "ladder", cells(16, 96, 128))
    assert [forecast.label for forecast in made.forecasts] == ["d_model=128"]
    assert said == ["4 of 6 trials are trained already and have no forecast"]


def test_a_trial_that_has_rows_is_refused_by_name(store: Results) -> None:
    train(store, cells(128)[1][1], 2.5, state="running")
    with pytest.raises(ResultsError, match=r"rows are there of d_model=128 seed=1 \(running\); leave .* --select"):
        register_trials(store, "ladder", cells(128, 256))
    train(store, cells(128)[1][1], 2.5)
    with pytest.raises(ResultsError, match=r"d_model=128 seed=1 \(finished\)"):
        register_trials(store, "ladder", cells(128, 256))
    with pytest.raises(ResultsError, match="all trials of ladder have rows: d_model=16 seed=0"):
        register_trials(store, "ladder", cells(16, 32))
    assert read_registrations(store.folder) == []


def test_a_name_is_never_used_twice(store: Results) -> None:
    register_trials(store, "ladder", cells(128))
    written = store.folder / "forecasts"
    before = written.read("ladder.json")
    with pytest.raises(ResultsError, match="never overwritten; give another --name"):
        register_trials(store, "ladder", cells(256))
    assert written.read("ladder.json") == before
    register_trials(store, "ladder", cells(256), name="ladder-2")
    with pytest.raises(ResultsError, match="no name for a file"):
        register_trials(store, "ladder", cells(256), name="../x")
    assert written.names() == ["ladder-2.json", "ladder.json"]


def test_what_no_fit_is_for_is_refused(store: Results, tmp_path: Path) -> None:
    lion = [(Cell("lion", {}, 0), known_trial(d_model=128, tokens_budget=TOKENS, repeats=True))]
    with pytest.raises(ResultsError, match="no fits for lion; the fits are ladder-power-n: name one with --fit"):
        register_trials(store, "ladder", lion)
    with pytest.raises(ResultsError, match="no fit 'other'"):
        register_trials(store, "ladder", cells(128), fit="other")
    with pytest.raises(ResultsError, match="run tinyscale fit first"):
        register_trials(Results(str(tmp_path / "empty")), "ladder", cells(128))
    with pytest.raises(FitError, match=r"holds at fixed tokens D = 512K, and the trial has D = 1\.02M"):
        register_trials(store, "ladder", cells(128, tokens_budget=2 * TOKENS))
    other = resolve(cells(128)[0][1].config, FACTS.__class__(**{**vars(FACTS), "corpus_hash": "another"}))
    with pytest.raises(FitError, match="fitted to another corpus than the trial's"):
        register_trials(store, "ladder", [(Cell("base", {}, 0), other)])


def test_a_fit_to_other_rows_than_there_are_is_refused(store: Results) -> None:
    train(store, cells(96)[0][1], 2.0)
    with pytest.raises(ResultsError, match=r"the 10 rows behind ladder-power-n are not .* run tinyscale fit again"):
        register_trials(store, "ladder", cells(128))
    for _, trial in cells(16, 32, 48, 64, 96):
        store.forget(trial.identity)
    with pytest.raises(ResultsError, match="the 10 rows behind ladder-power-n are not"):
        register_trials(store, "ladder", cells(128))


def test_a_setting_that_the_fitted_runs_do_not_have_is_said(store: Results) -> None:
    made, _ = register_trials(store, "ladder", cells(128, optimizer="lion"))
    assert "optimizer is adamw in all fitted runs and lion here" in made.forecasts[0].notes


def test_of_several_fits_the_one_of_the_trials_settings_forecasts(tmp_path: Path) -> None:
    store = Results(str(tmp_path / "results"))
    grid = [
        ("base", {"d_model": width, "context_length": length, "tokens_budget": TOKENS})
        for width in (16, 32, 64, 96)
        for length in (16, 64)
    ]
    add_sweep(store, "ladder", "", grid, seeds=1)
    analyse(store.location, store.location, draws=100)
    made, _ = register_trials(store, "ladder", cells(128, context_length=64))
    assert made.forecasts[0].fit == "ladder-context_length=64-power-n"
    with pytest.raises(ResultsError, match=r"2 fits for d_model=128; .*name one with --fit"):
        register_trials(store, "ladder", cells(128, context_length=32), name="between")


def test_a_score_says_error_and_interval_and_leaves_what_was_registered(store: Results) -> None:
    register_trials(store, "ladder", cells(128, 256))
    written = store.folder / "forecasts"
    registered = json.loads(written.read("ladder.json"))
    first, _ = read_registrations(store.folder)[0].registered.forecasts
    assert score(store)[0].notes[0] == "d_model=128 seed=0: not trained yet"
    assert json.loads(written.read("ladder.json")) == registered

    losses = (first.loss.value / 1.001, first.loss.high + 0.1)
    for (_, trial), loss in zip(cells(128), losses, strict=True):
        train(store, trial, loss)
    train(store, cells(256)[0][1], 2.0, state="diverged")
    (made,) = score(store)
    assert [(each.forecast, each.loss, each.inside) for each in made.scores] == [
        ("d_model=128", losses[0], True),
        ("d_model=128", losses[1], False),
    ]
    assert made.scores[0].error_percent == pytest.approx(0.1)
    assert made.notes == ("d_model=256 seed=0: diverged", "d_model=256 seed=1: not trained yet")
    assert {**json.loads(written.read("ladder.json")), "scores": []} == registered
    before = written.read("ladder.json")
    score(store)
    assert written.read("ladder.json") == before, "scoring again changes nothing"
    store.forget(cells(128)[0][1].identity)
    assert score(store)[0].scores == made.scores, "a score stays when the rows are gone"


def test_a_registration_without_forecasts_is_an_error_in_words(store: Results) -> None:
    register_trials(store, "ladder", cells(128))
    path = Path(store.location) / "forecasts" / "ladder.json"
    written = json.loads(path.read_text())
    written["registered"]["forecasts"] = []
    path.write_text(json.dumps(written))
    with pytest.raises(ResultsError, match=r"ladder\.json: not a file of forecasts \(registered.forecasts: .* none"):
        read_registrations(store.folder)


def test_an_edited_registration_is_said_and_not_scored(store: Results) -> None:
    register_trials(store, "ladder", cells(128))
    for _, trial in cells(128):
        train(store, trial, 2.4)
    path = Path(store.location) / "forecasts" / "ladder.json"
    content = json.loads(path.read_text())
    content["registered"]["forecasts"][0]["loss"]["value"] = 2.4
    path.write_text(json.dumps(content))
    edited = path.read_bytes()
    with pytest.raises(ResultsError, match=r"ladder.json: edited after it was registered"):
        invoke("score", store.location)
    assert path.read_bytes() == edited
    assert calibration_table(score(store)).empty


def test_a_run_from_before_the_registration_is_not_scored(store: Results) -> None:
    register_trials(store, "ladder", cells(128, seeds=(0,)))
    train(store, cells(128)[0][1], 2.4, launched="2020-01-01T00:00:00+00:00")
    (made,) = score(store)
    assert made.scores == ()
    assert made.notes == (
        "d_model=128 seed=0: launched at 2020-01-01T00:00:00+00:00, before it was registered, and not scored",
    )


def test_rows_that_changed_since_are_said(store: Results) -> None:
    register_trials(store, "ladder", cells(128))
    train(store, cells(96)[0][1], 2.0)
    assert "the 10 rows behind ladder-power-n are not those that are there now" in score(store)[0].notes


def registration(name: str, *runs: tuple[float | None, float]) -> Registration:
    """Forecasts of a loss of 2 (1.9 to 2.1) at these distances, and the losses that came."""
    loss = Estimate(2.0, 1.9, 2.1)
    forecasts = [Forecast(f"f{i}", "fit", {}, 1.0, times, loss, {"law": 1.0}) for i, (times, _) in enumerate(runs)]
    registered = Registered(name, "trials", "s", LATER, None, None, {}, "", (), tuple(forecasts))
    scores = [Score.of(each, "run", came) for each, (_, came) in zip(forecasts, runs, strict=True)]
    return Registration(registered, tuple(scores))


def test_the_calibration_counts_runs_inside_by_distance_and_in_all() -> None:
    made = [registration("a", (0.5, 2.0), (2.0, 1.6), (20.0, 2.05)), registration("b", (25.0, 2.5), (None, 2.0))]
    table = calibration_table(made).set_index("distance")
    assert table["runs"].to_dict() == {
        "within the data": 1, "1 to 3 times": 1, "10 to 30 times": 2, "compute not known": 1, "all": 5,
    }  # fmt: skip
    assert table["inside"].tolist() == [1, 0, 1, 1, 3]
    assert table.loc["1 to 3 times", "mean_error_percent"] == pytest.approx(25.0)
    assert table.loc["all", "largest_error_percent"] == pytest.approx(25.0)
    assert table.loc["all", "forecasts"] == 5


def test_the_hash_of_rows_is_of_their_content_and_not_their_order() -> None:
    frame = pd.DataFrame({"n": [1, 2], "loss": [3.0, 2.5], "trial": ["a", "b"]})
    assert rows_hash(frame, ["n", "loss", "trial"]) == rows_hash(frame.iloc[::-1].astype({"n": float}), list(frame))
    assert rows_hash(frame, ["n", "loss"]) != rows_hash(frame.assign(loss=[3.0, 2.6]), ["n", "loss"])


# ---- a file of runs


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of simulated runs, fitted, in the working directory."""
    monkeypatch.chdir(tmp_path)
    simulated(0.005).to_csv("runs.csv", index=False)
    invoke("fit", "runs.csv", "--bootstrap", "100")
    return tmp_path / "runs.csv"


def test_a_row_added_to_a_file_scores_its_forecast(table: Path) -> None:
    n, d = 4e11, 8e12
    arguments = ("register", "runs.csv", "--n", "400B", "--tokens", "8T")
    assert "wrote results/forecasts/runs.json" in invoke(*arguments).output
    (made,) = read_registrations(Results("results").folder)
    (forecast,) = made.registered.forecasts
    fitted = pd.read_csv(table)
    assert forecast.times_beyond == pytest.approx(n * d / (fitted["n"] * fitted["d"]).max())
    assert "no row has these sizes yet" in invoke("score", "runs.csv").output

    loss = HOFFMANN["E"] + HOFFMANN["A"] * n ** -HOFFMANN["alpha"] + HOFFMANN["B"] * d ** -HOFFMANN["beta"]
    with table.open("a") as file:
        file.write(f"{n},{2 * d},1.0\n{n},{d},{loss}\n")
    output = invoke("score", "runs.csv").output
    assert "1 of 1 run inside" in output
    (scored,) = read_registrations(Results("results").folder)
    assert [(each.run, each.loss) for each in scored.scores] == [(f"line {len(fitted) + 3}", loss)]
    assert invoke("score", "results").output == output, "the folder reads the file too"
    table.rename("elsewhere.csv")
    assert "runs.csv: cannot be read" in invoke("score", "results").output
    Path("elsewhere.csv").rename(table)
    table.write_text(table.read_text().replace("n,d,loss\n", "n,d,loss\n1e9,3e10,2.5\n"))
    invoke("score", "runs.csv")
    assert [each.run for each in read_registrations(Results("results").folder)[0].scores] == [f"line {len(fitted) + 4}"]
    with pytest.raises(ResultsError, match=rf"line {len(fitted) + 4} has these sizes already"):
        invoke(*arguments, "--name", "again")


def test_a_file_of_runs_without_a_fit_or_sizes_is_refused(table: Path) -> None:
    with pytest.raises(FitError, match="no fit forecasts a loss from --n; runs-chinchilla takes --n with --tokens"):
        invoke("register", "runs.csv", "--n", "1T")
    shutil.copy(table, "other.csv")
    with pytest.raises(ResultsError, match=r"no fit of other.csv; run tinyscale fit other.csv"):
        invoke("register", "other.csv", "--n", "1T", "--tokens", "1T")
    assert "--n 1B --tokens 20B" in invoke("register", "runs.csv").output
    with pytest.raises(ResultsError, match="no registered forecasts"):
        invoke("score", "results")


# ---- the command line, the page, the README


def test_a_sweep_file_is_planned_registered_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_sweep(tmp_path, "ladder", widths="[8, 16, 32, 48, 96]", seeds="[0, 1]")
    store = Results("results")
    planned = make_plan(load_sweep(path), store, measure=False).trials
    noise = np.random.default_rng(0)
    for each in (each for each in planned if each.cell.axes["d_model"] < 96):
        train(store, each.trial, law(each.trial.parameters.n_non_embedding) * math.exp(noise.normal(0, 2e-3)))
    invoke("fit", "results", "--bootstrap", "100")
    made = invoke("register", "results", "--sweep", "ladder.yaml", "--select", "d_model=48,96")
    assert "2 of 4 trials are trained already" in made.output
    assert "wrote results/forecasts/ladder.json" in made.output
    for each in (each for each in planned if each.cell.axes["d_model"] == 96):
        train(store, each.trial, law(each.trial.parameters.n_non_embedding))
    scored = invoke("score", "results")
    assert "2 of 2 runs inside" in scored.output
    entries = json.loads(invoke("score", "--json").output)
    assert [entry["registered"]["name"] for entry in entries] == ["ladder"]
    assert "say which trials to forecast: --sweep" in invoke("register", "results").output


def test_the_trials_of_a_search_are_not_forecast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    with pytest.raises(ConfigError, match="a search samples its trials while it runs"):
        invoke("register", "results", "--sweep", write_search(tmp_path))


def test_a_terminal_of_80_columns_shows_the_table_whole(store: Results) -> None:
    register_trials(store, "ladder", cells(128, 256))
    for _, trial in cells(128, 256):
        train(store, trial, 2.4)
    out = io.StringIO()
    console = PlainConsole(file=out, width=80)
    console.print(registered_table(score(store)[0], console.width))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("d_model=128")
    assert "…" not in out.getvalue()


def test_the_report_shows_registered_forecasts_and_their_calibration(store: Results) -> None:
    register_trials(store, "ladder", cells(128, 256))
    register_trials(store, "ladder", cells(256), name="edited")
    train(store, cells(128)[0][1], 2.4)
    path = Path(store.location) / "forecasts" / "edited.json"
    path.write_text(path.read_text().replace('"seed"', '"seeds"').replace('"rows": 10', '"rows": 11'))
    written = write_report(store.location)
    assert any(name.endswith("plots/forecasts.svg") for name in written)
    frame = pd.read_csv(Path(store.location) / "tables" / "forecasts.csv")
    assert frame["name"].tolist() == ["ladder", "ladder"]
    assert frame["runs"].tolist() == [1, 0]
    assert math.isnan(frame["measured"][1])
    calibration = pd.read_csv(Path(store.location) / "tables" / "forecasts-calibration.csv")
    assert calibration["runs"].tolist() == [1]
    html = (Path(store.location) / "report.html").read_text()
    assert "forecasts/edited.json: edited after it was registered" in html
    assert "ladder: d_model=128 seed=1: not trained yet" in html
    assert json.loads((Path(store.location) / "forecasts" / "ladder.json").read_text())["scores"] == []


def test_the_readmes_table_is_made_from_the_files(store: Results) -> None:
    register_trials(store, "ladder", cells(128, 256, seeds=(0,)))
    train(store, cells(128)[0][1], 2.4)
    score(store)
    made = runpy.run_path(str(ROOT / "docs" / "generate.py"))["forecasts"](Path(store.location).parent)
    (first, second) = made.splitlines()[2:]
    loss = read_registrations(store.folder)[0].registered.forecasts[0].loss
    assert f"| {loss.value:.4f} ({loss.low:.4f} to {loss.high:.4f}) | 2.4000 |" in first
    assert "not run yet" in second
