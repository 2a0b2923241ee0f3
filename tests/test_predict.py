"""From fits on disk to predictions, budgets and next runs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers.programs import invoke
from helpers.results import CONFIG, write_results, write_rows
from helpers.runs import HOFFMANN, simulated
from tinyscale.analysis.suggest import suggest_from
from tinyscale.errors import FitError, ResultsError
from tinyscale.fitting import compute_for, exponents, fit, fit_isoflop, fit_law, frontier
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.uncertainty import profile_of
from tinyscale.spec.config import TrialConfig
from tinyscale.spec.sweep import load_sweep


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A results folder with one Chinchilla fit of 240 simulated runs; to be read only."""
    folder = tmp_path_factory.mktemp("joint")
    simulated(0.005).to_csv(folder / "runs.csv", index=False)
    assert invoke("fit", str(folder / "runs.csv"), "--results", str(folder / "out")).exit_code == 0
    return str(folder / "out")


def test_the_frontier_is_where_no_other_split_of_the_budget_has_less_loss() -> None:
    found = fit_law(simulated(0.0), "chinchilla", draws=100, holdout=0)
    best = frontier(found.curve, 1e21).iloc[0]
    assert 6 * best["n"] * best["d"] == pytest.approx(1e21)
    n = best["n"] * np.geomspace(0.5, 2, 41)
    losses = found.law.loss(found.params, n=n, d=1e21 / 6 / n)
    assert losses.argmin() == 20
    assert losses[20] == pytest.approx(best["loss"])


def test_the_frontiers_inverse_gives_the_budget_back() -> None:
    found = fit_law(simulated(0.0), "chinchilla", draws=100, holdout=0)
    loss = frontier(found.curve, 3e22)["loss"].iloc[0]
    assert compute_for(found.curve, loss).value == pytest.approx(3e22, rel=1e-9)
    with pytest.raises(FitError, match="the fitted floor"):
        compute_for(found.curve, 1.0)


def test_the_exponents_of_the_frontier_hold_the_truth() -> None:
    a = exponents(fit_law(simulated(0.005), "chinchilla", holdout=0).curve)["a"]
    assert a.low < HOFFMANN["beta"] / (HOFFMANN["alpha"] + HOFFMANN["beta"]) < a.high
    assert a.low < a.value < a.high


def few_runs() -> pd.DataFrame:
    """Every fifth of the simulated runs: few enough for profiles."""
    return simulated(0.005).iloc[::5]


def test_profiles_of_the_frontier_hold_the_estimate_and_their_parts_agree() -> None:
    curve = fit_law(few_runs(), "chinchilla", draws=100, holdout=0).curve
    assert curve.profiled is not None
    best = frontier(curve, 1e21).iloc[0]
    for name in ("n", "d", "loss"):
        assert best[f"{name}_low"] < best[name] < best[f"{name}_high"]
    assert 6 * best["n_low"] * best["d_high"] == pytest.approx(1e21)
    compute = compute_for(curve, best["loss_high"])
    assert compute.value < 1e21
    assert compute.high == pytest.approx(1e21, rel=0.01)  # a budget is in the interval when its loss is
    assert compute.low < compute.value


def test_a_profile_of_a_parameter_taken_as_a_quantity_is_the_parameters_own() -> None:
    found = fit_law(few_runs(), "chinchilla", draws=100, holdout=0)
    problem = found.points.problem(found.law, np.inf)
    theta = found.law.to_solver(np.array(list(found.params.values())))
    for index, name in enumerate(found.law.params):
        direction = np.eye(5)[index]
        held = profile_of(problem, theta, found.noise, lambda at, v=direction: (at @ v, np.broadcast_to(v, at.shape)))
        natural = np.exp(held.ends) if name in ("A", "B") else np.array(held.ends)
        width = np.diff(found.interval(name))[0]
        np.testing.assert_allclose(natural, found.interval(name), atol=0.02 * width)


def test_the_exponents_of_a_tied_law_are_certain() -> None:
    assert exponents(fit_law(few_runs(), "tied", draws=100, holdout=0).curve)["a"] == Estimate(0.5, 0.5, 0.5)


def test_a_loss_near_the_floor_may_never_be_reached() -> None:
    curve = fit_law(few_runs(), "chinchilla", draws=100, holdout=0).curve
    assert compute_for(curve, curve.params["E"] * 1.001).high == np.inf


def test_saved_fits_have_the_intervals_of_the_frontier_that_were_fitted(tmp_path: Path) -> None:
    few_runs().to_csv(tmp_path / "runs.csv", index=False)
    invoke("fit", str(tmp_path / "runs.csv"), "--results", str(tmp_path / "out"), "--bootstrap", "100")
    best = frontier(fit_law(few_runs(), "chinchilla", draws=100, holdout=0).curve, 1e21).iloc[0]
    (made,) = json.loads(invoke("predict", str(tmp_path / "out"), "--flops", "1e21", "--json").stdout)
    assert made["values"]["N*"]["low"] == pytest.approx(best["n_low"], rel=1e-6)
    (run,) = json.loads(
        invoke("predict", str(tmp_path / "out"), "--n", str(best["n"]), "--tokens", str(best["d"]), "--json").stdout
    )
    assert made["values"]["loss"]["high"] == pytest.approx(run["values"]["loss"]["high"], rel=1e-6)


def test_isoflop_finds_the_true_optima_and_refuses_a_budget_whose_bottom_is_not_inside() -> None:
    law = fit_law(simulated(0.0), "chinchilla", draws=100, holdout=0)
    rows = []
    for c in np.geomspace(1e19, 1e22, 5):
        best = frontier(law.curve, c)["n"].iloc[0]
        span = (1.2, 12) if c == 1e22 else (1 / 6, 6)
        n = best * np.geomspace(*span, 9)
        rows.append(pd.DataFrame({"n": n, "d": c / 6 / n, "c": c, "loss": law.law.loss(law.params, n=n, d=c / 6 / n)}))
    found = fit_isoflop(pd.concat(rows))
    assert found.params["a"] == pytest.approx(HOFFMANN["beta"] / (HOFFMANN["alpha"] + HOFFMANN["beta"]), abs=0.005)
    assert found.table["refused"].tolist()[:4] == [""] * 4
    assert "lowest at the smallest size" in found.table["refused"].iloc[4]
    assert any("lowest at the smallest size" in note for note in found.warnings)


def test_one_ratio_of_tokens_to_parameters_cannot_tell_alpha_from_beta() -> None:
    frame = simulated(0.005)
    with pytest.raises(FitError, match="cannot be told apart"):
        fit(frame.assign(d=20 * frame["n"]), "chinchilla")


def test_predict_gives_the_loss_of_a_run_with_its_interval(joint: str) -> None:
    (made,) = json.loads(invoke("predict", joint, "--n", "1B", "--tokens", "20B", "--json").stdout)
    truth = HOFFMANN["E"] + HOFFMANN["A"] * 1e9 ** -HOFFMANN["alpha"] + HOFFMANN["B"] * 2e10 ** -HOFFMANN["beta"]
    assert made["values"]["loss"]["low"] < truth < made["values"]["loss"]["high"]
    (note,) = made["notes"]
    assert "the forecast of 5 laws" in note
    assert [row["likelihood"] for row in made["floors"]].count(1.0) == 1


def test_predict_gives_the_best_run_of_a_budget_and_says_how_far_out_it_lies(joint: str) -> None:
    result = invoke("predict", f"{joint}/fits/fits.json", "--flops", "1e27")
    assert result.exit_code == 0
    assert "N*" in result.output
    assert "times beyond the largest fitted" in result.output
    assert "a guess" in result.output


def test_predict_says_what_the_fits_need_when_it_cannot(joint: str) -> None:
    with pytest.raises(FitError, match="from --n alone; runs-chinchilla takes --n with --tokens, or --flops alone"):
        invoke("predict", joint, "--n", "1B")


def test_a_law_along_a_ratio_says_that_tokens_were_not_used(tmp_path: Path) -> None:
    write_results(tmp_path)
    invoke("fit", str(tmp_path), "--bootstrap", "100")
    output = invoke("predict", str(tmp_path), "--n", "20M", "--tokens", "1B").output
    assert "at a fixed ratio D/N = 20; D is not in it and was not used" in output


def test_suggested_runs_shrink_the_interval_within_the_budget(joint: str) -> None:
    made, content = suggest_from(joint, 1e22, "alpha")
    assert content is None
    assert made.flops <= 1e22
    assert made.shrink < 1


def test_suggest_writes_a_sweep_that_can_be_launched(tmp_path: Path) -> None:
    write_results(tmp_path)
    invoke("fit", str(tmp_path), "--bootstrap", "100")
    out = tmp_path / "next.yaml"
    result = invoke("suggest", str(tmp_path), "--flops", "1e17", "--target", "alpha", "--out", str(out))
    assert f"wrote {out}" in result.output
    sweep = load_sweep(out)
    assert sweep.name == "width-next"
    assert 1 <= len(sweep.variants) <= 12
    assert len({variant.config.model.d_model for variant in sweep.variants}) == len(sweep.variants)
    assert {variant.config.seed for variant in sweep.variants} == {3}
    assert {variant.config.train.tokens_per_param for variant in sweep.variants} == {20}


def test_suggest_keeps_the_sweeps_number_of_heads_and_leaves_defaults_out(tmp_path: Path) -> None:
    results = write_results(tmp_path)
    for trial, width in (("base64s0", 64), ("lost", 384)):  # the sweep's first and last
        shape = {"d_model": width, "n_layers": 4, "n_heads": 1, "context_length": 256, "positions": "rotary"}
        config = TrialConfig.model_validate({**CONFIG.model_dump(), "model": shape})
        rows, _ = results.read_trial(trial)
        write_rows(results, trial, rows, config)
    invoke("fit", str(tmp_path), "--bootstrap", "100")
    made, content = suggest_from(str(tmp_path), 1e17, "alpha")
    assert content is not None
    assert content["base"]["model"] == {"n_layers": 4, "n_heads": 1, "context_length": 256, "positions": "rotary"}
    assert content["base"]["train"] == {"tokens_per_param": 20, "batch_tokens": 16384, "lr": 3e-3}
    assert "resources" not in content
    assert all(width % 2 == 0 for width in content["zip"]["model.d_model"])
    assert made.ended


def test_suggested_widths_are_divided_by_heads_that_share_keys(tmp_path: Path) -> None:
    results = write_results(tmp_path)
    for trial, width in (("base64s0", 64), ("lost", 384)):
        shape = {"d_model": width, "n_layers": 4, "head_dim": 16, "n_kv_heads": 2, "context_length": 256}
        config = TrialConfig.model_validate({**CONFIG.model_dump(), "model": shape})
        rows, _ = results.read_trial(trial)
        write_rows(results, trial, rows, config)
    invoke("fit", str(tmp_path), "--bootstrap", "100")
    _, content = suggest_from(str(tmp_path), 1e17, "alpha")
    assert content is not None
    assert content["base"]["model"]["n_kv_heads"] == 2
    assert all(width % 32 == 0 for width in content["zip"]["model.d_model"])


def test_suggest_writes_over_its_own_file_only_and_says_why_it_ends(tmp_path: Path) -> None:
    write_results(tmp_path)
    invoke("fit", str(tmp_path), "--bootstrap", "100")
    arguments = ("suggest", str(tmp_path), "--flops", "1e15", "--target", "alpha", "--out")
    for _ in range(2):
        output = invoke(*arguments, str(tmp_path / "next.yaml")).output
        assert "of 1e+15 FLOPs; the next run takes" in output
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    with pytest.raises(ResultsError, match="is not from suggest"):
        invoke(*arguments, str(tmp_path / "mine.yaml"))
    assert (tmp_path / "mine.yaml").read_text() == "name: mine\n"


def test_a_budget_that_pays_for_nothing_is_refused(joint: str) -> None:
    with pytest.raises(FitError, match="pay for no run"):
        suggest_from(joint, 1e3, "alpha")


def test_what_reads_parquet_starts_no_thread_of_arrows(fitted: str, tmp_path: Path) -> None:
    """Such a thread aborts a process that ends just after it was started, its answer printed."""
    pd.DataFrame({"text": ["a", "b"]}).to_parquet(tmp_path / "text.parquet")
    program = (
        "import os, sys; from pathlib import Path; import tinyscale as ts; ts.predict; ts.read_results\n"
        "import pyarrow.parquet, scipy.optimize, tinyscale.data.files as files\n"
        "threads = lambda: sorted(os.listdir('/proc/self/task'))\n"
        "before = threads()\n"
        "ts.predict(sys.argv[1], flops=1e12); ts.read_results(sys.argv[1]); files.read_files(Path(sys.argv[2]))\n"
        "assert threads() == before, (before, threads())\n"
    )
    done = subprocess.run([sys.executable, "-c", program, fitted, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
