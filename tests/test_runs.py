"""From results and files to groups, and the `fit` command on both."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest

from helpers.programs import invoke
from helpers.results import write_results, write_rows
from tinyscale.analysis.records import read_fit, read_records
from tinyscale.analysis.runs import Group, by_setting, read_groups, refuse_mixed
from tinyscale.analysis.study import find_laws
from tinyscale.cli.fits import fit as fit_command
from tinyscale.errors import FitError, ResultsError
from tinyscale.fitting.choose import fit
from tinyscale.fitting.conventions import CONVENTIONS
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.fit import Fit, Method
from tinyscale.fitting.holdout import HeldOut
from tinyscale.fitting.record import file_stem
from tinyscale.fitting.support import laws_for
from tinyscale.reporting.write import analyse


def test_only_the_last_points_of_finished_trials_are_kept_and_the_rest_is_counted(tmp_path: Path) -> None:
    write_results(tmp_path)
    (group,) = read_groups(str(tmp_path))
    assert len(group.frame) == 12
    assert group.dropped == {"trial diverged": 1, "before the end of its schedule": 12}


def test_each_arm_is_a_group_and_pooling_makes_them_one(tmp_path: Path) -> None:
    write_results(tmp_path, arms=("base", "lion"))
    assert [group.title for group in read_groups(str(tmp_path))] == ["width-base", "width-lion"]
    (pooled,) = read_groups(str(tmp_path), pool=True)
    assert len(pooled.frame) == 24


def with_rates(folder: Path, rates: dict[float, float]) -> None:
    """Every finished trial again at other learning rates, their losses higher by these factors."""
    results = write_results(folder, sweep=False)
    frame, _ = results.read()
    for trial, rows in frame[frame["state"] == "finished"].groupby("trial"):
        for rate, factor in rates.items():
            again = rows.assign(lr=rate, val_loss=rows["val_loss"] * factor)
            write_rows(results, f"{trial}lr{rate}", again.dropna(axis=1).to_dict("records"))


def test_a_size_run_at_two_learning_rates_is_two_fits(tmp_path: Path) -> None:
    with_rates(tmp_path, {3e-3: 1.02})
    (group,) = read_groups(str(tmp_path))
    assert [part.title for part in by_setting(group)] == ["all-lr=0.001", "all-lr=0.003"]


def test_a_swept_learning_rate_also_gives_the_law_of_the_best_one(tmp_path: Path) -> None:
    with_rates(tmp_path, {2.5e-4: 1.04, 5e-4: 1.01, 2e-3: 1.01, 4e-3: 1.04})
    records = json.loads(invoke("fit", str(tmp_path), "--json", "--bootstrap", "100").stdout)
    assert [record["law"] for record in records] == ["power-n"] * 5 + ["lr"]
    assert records[-1]["params"]["p"]["low"] < 0 < records[-1]["params"]["p"]["high"]
    assert (tmp_path / "plots/all-lr.png").exists()


def test_settings_without_a_law_are_refused_in_one_line_with_their_number(tmp_path: Path) -> None:
    runs = [(n, rate, n**-0.1 * (1 + rate)) for n in (1e6, 1e7) for rate in (1e-3, 2e-3, 4e-3)]
    pd.DataFrame(runs, columns=["n", "lr", "loss"]).to_csv(tmp_path / "runs.csv", index=False)
    (refused,) = find_laws(str(tmp_path / "runs.csv")).refused
    assert str(refused).startswith("runs-lr=0.001 and 2 settings more: not fitted: ")


def test_runs_on_different_corpora_are_refused() -> None:
    group = read_groups_of(pd.DataFrame({"corpus_hash": ["a", "b"], "val_loss": [3.0, 2.0]}))
    with pytest.raises(FitError, match="corpus_hash, so their losses do not compare"):
        refuse_mixed(group)


def read_groups_of(frame: pd.DataFrame) -> Any:
    return Group("s", "", "s", frame, {})


def test_an_empty_folder_is_a_plain_error(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no trials to fit"):
        read_groups(str(tmp_path))


@pytest.mark.parametrize(
    ("n", "d", "law"),
    [
        (np.geomspace(1e5, 1e7, 6), np.full(6, 1e7), "power-n"),
        (np.geomspace(1e5, 1e7, 6), 20 * np.geomspace(1e5, 1e7, 6), "power-n"),
        (np.full(6, 1e6), np.geomspace(1e6, 1e8, 6), "power-d"),
        (np.repeat([1e5, 1e6, 1e7], 3), np.tile([1e6, 1e7, 1e8], 3), "chinchilla"),
    ],
)
def test_the_law_follows_what_varies(n: np.ndarray, d: np.ndarray, law: str) -> None:
    assert laws_for(pd.DataFrame({"n": n, "d": d, "loss": 1.0})) == (law,)


@pytest.mark.parametrize(("fixed", "slice_"), [("c", "at fixed FLOPs C = 1T"), ("d", "at fixed tokens D = 1M")])
def test_contexts_of_equal_flops_or_tokens_give_a_law_of_the_context(fixed: str, slice_: str) -> None:
    t = np.geomspace(64, 2048, 6)
    frame = pd.DataFrame({"n": 1e6, "d": 2e6 - 100 * t, "c": 1e12 + 1e8 * t, "t": t, "loss": 2 + 30 * t**-0.5})
    frame[fixed] = {"c": 1e12, "d": 1e6}[fixed]
    found = fit(frame)
    assert isinstance(found, Fit)
    assert (found.law.name, found.slice) == ("power-t", slice_)
    assert found.params["alpha"] == pytest.approx(0.5, rel=1e-3)


def test_the_command_writes_fits_tables_and_plots_and_names_each(tmp_path: Path) -> None:
    write_results(tmp_path)
    result = invoke("fit", str(tmp_path), "--bootstrap", "100")
    assert result.exit_code == 0, result.output
    assert "at a fixed ratio D/N = 20" in result.output
    for name in (
        "fits/fits.json",
        "tables/fits.csv",
        "tables/width-power-n.csv",
        "plots/width-power-n.png",
        "plots/width-power-n.svg",
    ):
        assert (tmp_path / name).stat().st_size > 0
        assert name in result.output
    (record,) = json.loads((tmp_path / "fits/fits.json").read_text())
    assert {"sweep", "arm", "law", "params", "objective", "certificate", "held_out", "slice", "warnings"} <= set(record)
    assert record["params"]["alpha"]["low"] < 0.29 < record["params"]["alpha"]["high"]


def test_json_prints_json_only_and_the_same_as_the_file(tmp_path: Path) -> None:
    write_results(tmp_path)
    result = invoke("fit", "--results", str(tmp_path), "--json", "--bootstrap", "100")
    assert json.loads(result.stdout) == json.loads((tmp_path / "fits/fits.json").read_text())


@pytest.mark.parametrize("content", [b"", b"[", b"{}x", b"[1]", b'[{"law": "power-n"}]', b"\xff"])
def test_a_damaged_list_of_fits_is_named_and_never_replaced(tmp_path: Path, content: bytes) -> None:
    write_results(tmp_path)
    (tmp_path / "fits").mkdir()
    (tmp_path / "fits/fits.json").write_bytes(content)
    with pytest.raises(ResultsError, match=r"fits\.json: not a file of fits .*; delete it and run"):
        invoke("fit", str(tmp_path), "--bootstrap", "100")
    assert (tmp_path / "fits/fits.json").read_bytes() == content


@pytest.mark.parametrize("left", [0, 1, 2])
def test_optima_that_do_not_lie_on_their_fitted_line_are_named(fitted: str, tmp_path: Path, left: int) -> None:
    entries = json.loads(Path(f"{fitted}/fits/fits.json").read_text())
    (budgets,) = (entry for entry in entries if entry["law"] == "isoflop")
    for row in budgets["optima"][left:]:
        row["refused"] = "x"
    (tmp_path / "fits").mkdir()
    (tmp_path / "fits/fits.json").write_text(json.dumps(entries))
    with pytest.raises(ResultsError, match="optima: the lines through them are not those that were fitted"):
        read_records(str(tmp_path))


def changed(fitted: str, folder: Path, change: Callable[[dict[str, Any]], None], *, sealed: bool) -> str:
    """A copy of a fitted folder's fits and tables, with a change to its first law of sizes. sealed: with its hash."""
    for name in ("fits", "tables"):
        shutil.copytree(f"{fitted}/{name}", folder / name)
    entries = json.loads((folder / "fits/fits.json").read_text())
    entry = next(entry for entry in entries if entry["law"] == "power-n")
    change(entry)
    if not sealed:
        del entry["sha256"]
    (folder / "fits/fits.json").write_text(json.dumps(entries))
    return str(folder)


def test_a_fit_of_which_a_number_was_changed_is_named_and_not_read(fitted: str, tmp_path: Path) -> None:
    location = changed(fitted, tmp_path, lambda entry: entry["params"]["alpha"].update(high=0.9), sealed=True)
    with pytest.raises(ResultsError, match=r"fits.json: .*, power-n: its SHA-256 is not the one that was written"):
        read_records(location)


def test_parameters_of_an_older_file_that_are_not_those_of_its_points_are_named(fitted: str, tmp_path: Path) -> None:
    location = changed(fitted, tmp_path, lambda entry: entry["params"]["alpha"].update(value=0.31), sealed=False)
    folder, records = read_records(location)
    with pytest.raises(ResultsError, match=r"the points of .*-power-n are not those of the fit; run tinyscale fit"):
        read_fit(folder, next(record for record in records if record.law == "power-n"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry["params"].pop("E"), r"params: .* has E, "),
        (lambda entry: entry["params"]["alpha"].update(value=-1.0), r"params.alpha: -1.0 is not between"),
        (lambda entry: entry["forecast"][0]["params"].pop("E"), r"forecast.0.params: .* has E, "),
        (lambda entry: entry["forecast"][0].update(law="chinchilla"), r"forecast.0: it is no law of n"),
        (lambda entry: entry["objective"].update(held={"x": 1.0}), r"objective.held: .* has no x"),
        (lambda entry: entry["held_out"].update(runs=2), r"held_out: runs, .* come together"),
        (lambda entry: entry["held_out"].update(predicted=9.0), r"held_out: error_percent is not that of predicted"),
        (lambda entry: entry["objective"].update(value=None), r"objective.value is missing"),
    ],
)
def test_numbers_that_a_fit_cannot_have_are_named(
    fitted: str, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(ResultsError, match=message):
        read_records(changed(fitted, tmp_path, change, sealed=False))


def test_every_convention_that_the_columns_allow_is_printed(tmp_path: Path) -> None:
    write_results(tmp_path)
    output = invoke("fit", str(tmp_path), "--convention", "all", "--bootstrap", "100").output
    assert "counted as tinyscale (n = n_non_embedding): E" in output
    (option,) = [each for each in fit_command.params if each.name == "convention"]
    assert list(option.type.to_info_dict()["choices"]) == [*CONVENTIONS, "all"]


def test_an_arm_without_finished_runs_is_named_and_does_not_stop_the_others(tmp_path: Path) -> None:
    results = write_results(tmp_path, arms=("base", "lion"))
    for name in [name for name in results.trials.names() if name.startswith("lion")]:
        write_rows(results, name.removesuffix(".parquet"), [{"state": "failed", "reason": "out of memory"}])
    result = invoke("fit", str(tmp_path), "--bootstrap", "100")
    assert result.exit_code == 0
    assert "width-lion: not fitted" in result.output
    assert "trial failed" in result.output


def test_fitting_leaves_the_trials_readable_as_they_were(tmp_path: Path) -> None:
    results = write_results(tmp_path)
    before, _ = results.read()
    invoke("fit", str(tmp_path), "--bootstrap", "100")
    pd.testing.assert_frame_equal(before, results.read()[0])


def ones_own(folder: Path, **change: Any) -> Path:
    """A CSV of 40 runs over 8 sizes and 5 lengths; change: columns -> values."""
    n, d = np.repeat(np.geomspace(1e6, 1e9, 8), 5), np.tile(np.geomspace(1e8, 1e11, 5), 8)
    path = folder / "runs.csv"
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(40))
    frame = pd.DataFrame({"n": n, "d": d, "loss": (1.7 + 400 * n**-0.34 + 410 * d**-0.28) * noise})
    frame.assign(**change).to_csv(path, index=False)
    return path


def test_fits_that_other_options_replace_are_named(tmp_path: Path) -> None:
    path = str(tmp_path / "runs.csv")
    n = np.geomspace(1e6, 1e8, 8)
    pd.DataFrame({"n": n, "loss": 1.7 + 400 * n**-0.34}).to_csv(path, index=False)
    fitted = [
        analyse(path, str(tmp_path), draws=100, **options)
        for options in ({}, {}, {"holdout": 3}, {"law": "power-n-no-floor"})
    ]
    assert [done.replaced for done in fitted] == [(), (), ("runs-power-n",), ("runs-power-n",)]


def test_fits_to_a_file_leave_those_of_the_study_in_the_same_folder(tmp_path: Path) -> None:
    write_results(tmp_path / "study")
    own = ones_own(tmp_path)
    for _ in range(2):
        invoke("fit", str(tmp_path / "study"), "--bootstrap", "100")
        invoke("fit", str(own), "--results", str(tmp_path / "study"), "--bootstrap", "100")
    records = json.loads((tmp_path / "study/fits/fits.json").read_text())
    assert {record["name"]: record["source"] for record in records} == {
        "width-power-n": "trials",
        "runs-chinchilla": str(own),
    }
    assert set(pd.read_csv(tmp_path / "study/tables/fits.csv")["sweep"]) == {"width", "runs"}


def test_another_file_of_the_same_name_does_not_replace_a_fit(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, second = ones_own(tmp_path), ones_own(tmp_path / "other")
    invoke("fit", str(first), "--results", str(tmp_path / "out"), "--bootstrap", "100")
    with pytest.raises(ResultsError, match=r"runs-chinchilla of .*runs.csv is there already"):
        invoke("fit", str(second), "--results", str(tmp_path / "out"), "--bootstrap", "100")


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("n", "large", "column n: 1 of 40 values are not positive numbers, the first is 'large' in line 5"),
        ("n", 0, "the first is 0.0 in line 5"),
        ("d", np.nan, "column d: 1 of 40 values are not positive numbers, the first is blank in line 5"),
        ("loss", -1.0, "the first is -1.0 in line 5"),
    ],
)
def test_a_value_that_is_no_size_is_refused_and_no_law_without_it_fitted(
    tmp_path: Path, column: str, value: object, said: str
) -> None:
    frame = pd.read_csv(ones_own(tmp_path))
    values = [value if row == 3 else each for row, each in enumerate(frame[column])]
    with pytest.raises(FitError, match=said):
        analyse(str(ones_own(tmp_path, **{column: values})), str(tmp_path / "out"))


def test_intervals_and_delta_are_chosen_on_the_command_line(tmp_path: Path) -> None:
    own, out = str(ones_own(tmp_path)), ("--results", str(tmp_path / "out"), "--bootstrap", "100", "--json")
    (wild,) = json.loads(invoke("fit", own, *out, "--intervals", "wild").stdout)
    assert wild["intervals"].startswith("wild bootstrap")
    (robust,) = json.loads(invoke("fit", own, *out, "--delta", "1e-3").stdout)
    assert robust["objective"]["delta"] == 1e-3
    assert robust["intervals"].startswith("bootstrap")
    (option,) = [each for each in fit_command.params if each.name == "intervals"]
    assert tuple(option.type.to_info_dict()["choices"]) == get_args(Method)


def test_a_file_of_another_kind_is_answered_with_the_kinds_there_are(tmp_path: Path) -> None:
    (tmp_path / "runs.txt").write_text("a")
    with pytest.raises(ResultsError, match=r"ends in \.csv, \.tsv, \.parquet, \.json"):
        read_groups(str(tmp_path / "runs.txt"))


def test_a_misspelt_law_is_answered_with_the_nearest() -> None:
    with pytest.raises(FitError, match="nearest: chinchilla"):
        fit(pd.DataFrame({"n": [1.0], "loss": [2.0]}), "chinchila")


def test_an_older_record_of_budgets_names_the_held_out_one_otherwise() -> None:
    held = HeldOut.of({"c": 1e18}, 3, actual=2e6, predicted=2.2e6, carried=1e6)
    older = {name: value for name, value in held.as_json().items() if name not in ("size", "windows")}
    assert HeldOut.of_json({"c": 1e18, **older}) == held
    assert HeldOut.of_json(held.as_json()) == held
    assert (held.error_percent, held.carry_forward_percent) == pytest.approx((10, -50))


@pytest.mark.parametrize(
    "estimate", [Estimate(1.5, 1.0, 2.0), Estimate(1.5, -np.inf, 2.0), Estimate(0.5, 0.0, np.inf)], ids=str
)
def test_an_estimate_is_read_as_it_was_written_its_open_ends_as_null(estimate: Estimate) -> None:
    written = json.loads(json.dumps(estimate.as_json(), allow_nan=False))
    assert Estimate.of_json(written) == estimate
    assert [written["low"] is None, written["high"] is None] == list(np.isinf(estimate.ends))


@pytest.mark.parametrize("title", ["x" * 300, "\u4e2d\u6587" * 90, f"{'s' * 110}-lr=0.1/../\x1b[31m"])
def test_a_long_title_gives_files_a_short_safe_name_of_its_own(title: str) -> None:
    stem = file_stem(title, "-power-n")
    assert re.fullmatch(r"[\w.=-]+-power-n", stem)
    assert len(f"{stem}-parameters.draws.parquet".encode()) < 180
    assert stem != file_stem(f"{title}!", "-power-n")
    assert file_stem("width-lion/a", "-power-n") == "width-lion_a-power-n"


def test_a_law_of_many_settings_is_written(tmp_path: Path) -> None:
    n = np.geomspace(1e5, 1e8, 8)
    for name in ("a" * 200, "b"):
        arms = ["c" * 230, "d"] if name == "b" else ["only"]
        frame = pd.concat([pd.DataFrame({"n": n, "loss": 1.7 + 40 * n**-0.25, "arm": arm}) for arm in arms])
        frame.to_csv(tmp_path / f"{name}.csv")
        records = json.loads(invoke("fit", tmp_path / f"{name}.csv", "--results", tmp_path / "out", "--json").stdout)
        assert [record["title"] for record in records] == [f"{name}-{arm}" for arm in arms]
    assert len(json.loads(invoke("predict", tmp_path / "out", "--n", "1e9", "--json").stdout)) == 3


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_a_table_of_ones_own_is_fitted_with_named_columns(tmp_path: Path, kind: str) -> None:
    n = np.geomspace(1e5, 1e8, 8)
    frame = pd.DataFrame({"params": n, "final": 1.7 + 40 * n**-0.25, "note": "x"})
    frame.loc[8] = [1e9, np.nan, "died"]
    path = tmp_path / f"runs.{kind}"
    writers = {
        "csv": frame.to_csv,
        "parquet": frame.to_parquet,
        "jsonl": lambda p: frame.to_json(p, orient="records", lines=True),
    }
    writers[kind](path)
    result = invoke("fit", str(path), "--columns", "n=params,loss=final", "--results", str(tmp_path / "out"), "--json")
    (record,) = json.loads(result.stdout)
    assert record["params"]["alpha"]["value"] == pytest.approx(0.25, rel=1e-5)
    assert record["columns"] == {"n": "params", "loss": "final"}
    assert record["rows"] == {"kept": 8, "dropped": {"no loss": 1}}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"n": "param"}, "no column param for 'n'; the columns are params"),
        ({"m": "params"}, "no law has 'm'; legal: n, d,"),
    ],
)
def test_a_misnamed_column_is_refused_and_no_other_law_fitted(
    tmp_path: Path, columns: dict[str, str], said: str
) -> None:
    runs = pd.DataFrame({"params": [10**9, 2 * 10**9, 4 * 10**9] * 4, "tokens": np.repeat([10**10, 10**11], 6)})
    runs.assign(loss=2 + 400 * runs["params"] ** -0.34).to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(FitError, match=said):
        find_laws(str(tmp_path / "runs.csv"), columns={"loss": "loss", **columns})


def test_integers_whose_product_overflows_are_fitted_as_numbers(tmp_path: Path) -> None:
    n, d = (10 ** np.linspace(8, 10, 6)).astype(int), (10 ** np.linspace(9, 12, 5)).astype(int)
    runs = pd.DataFrame(
        [(a, b, 1.7 + 400 * a**-0.34 + 410 * b**-0.28) for a in n for b in d], columns=["n", "d", "loss"]
    )
    runs.to_csv(tmp_path / "runs.csv", index=False)
    found = analyse(str(tmp_path / "runs.csv"), str(tmp_path / "out"))
    residuals = pd.read_csv(tmp_path / "out" / "tables" / "runs-chinchilla-residuals.csv")
    assert found.fits
    assert residuals.notna().all(axis=None)
