"""Runs are chosen by an expression that can only compare, and a fit of chosen runs is never one of all runs."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from helpers.programs import invoke
from helpers.results import make_results, write_results
from helpers.runs import runs_of_sizes
from tinyscale.analysis.auto_settings import tuning_laws
from tinyscale.analysis.records import read_records
from tinyscale.analysis.study import find_laws, fit_to_draw
from tinyscale.analysis.where import Where
from tinyscale.errors import FitError
from tinyscale.fitting.choose import fit
from tinyscale.reporting.write import analyse
from tinyscale.results.store import Results

RUNS = pd.DataFrame({
    "d_model": [16, 32, 64, 128],
    "lr": [1e-3, 2e-3, None, 4e-3],
    "optimizer": ["adamw", "lion", "lion", "adamw"],
    "bias": [True, False, None, True],
    "Params (M)": [1.0, 2.0, 4.0, 8.0],
})  # fmt: skip


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("d_model >= 64", [2, 3]),
        ("16 < d_model <= 64", [1, 2]),
        ("optimizer == 'lion' and d_model in (32, 128)", [1]),
        ('optimizer not in ["lion"] or d_model == 32', [0, 1, 3]),
        ("not (d_model > 32)", [0, 1]),
        ("(d_model > 16) & ~(optimizer == 'adamw')", [1, 2]),
        ("d_model * 2 - 1 > 60 and d_model % 64 == 0", [2, 3]),
        ("lr > 0", [0, 1, 3]),
        ("lr != 0.002", [0, 3]),
        ("bias", [0, 3]),
        ("not bias", [1]),
        ("`Params (M)` < 3", [0, 1]),
        ("d_model == -1", []),
    ],
)
def test_an_expression_chooses_the_rows_that_fulfil_it_and_none_with_a_blank(text: str, chosen: list[int]) -> None:
    assert list(RUNS.index[Where.read(text).chosen(RUNS)]) == chosen


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("__import__('os').system('true')", "it calls a function"),
        ("d_model.max() > 3", "it calls a function"),
        ("d_model.real > 3", "it has a dot in a name"),
        ("d_model[0] > 3", "it has brackets"),
        ("@x > 3", "not an expression"),
        ("d_model >", "not an expression"),
        ("", "not an expression"),
        ("d_model = 3", "not an expression"),
        ("9 ** 9 ** 9 > d_model", "Pow does not choose runs"),
        ("'a' * 999999999 == optimizer", "text can be compared, and not computed with"),
        ("[d_model] * 999999999 == d_model", "text can be compared"),
        ("(lambda: d_model)", "Lambda does not choose runs"),
        ("[x for x in optimizer]", "ListComp does not choose runs"),
        ("f'{d_model}' == 'a'", "JoinedStr does not choose runs"),
        ("d_model > 99999999999999999999", "more than 64 bits"),
        ("d_model == None", "None is not a value of a run"),
        ("1 > 0", "it names no column"),
        ("d_model > 1" + " or d_model > 1" * 50, "longer than 500 characters"),
    ],
)
def test_an_expression_that_does_more_than_compare_is_refused_before_any_row_is_read(text: str, says: str) -> None:
    with pytest.raises(FitError, match=says):
        Where.read(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("d_mdel > 3", r"the runs have no column 'd_mdel'; nearest: d_model\n  legal: d_model, lr, optimizer"),
        ("d_model", "it is not true or false for each run; write a comparison"),
        ("d_model + 1", "it is not true or false for each run"),
        ("optimizer > 3", r"cannot be computed .*; optimizer is adamw, lion"),
    ],
)
def test_an_expression_that_does_not_fit_the_runs_says_what_they_have(text: str, says: str) -> None:
    with pytest.raises(FitError, match=says):
        Where.read(text).chosen(RUNS)


def test_the_fit_is_that_of_the_chosen_runs_and_says_so(tmp_path: Path) -> None:
    write_results(tmp_path)
    (found,) = find_laws(str(tmp_path), where=" n_non_embedding < 5e6 ").fits
    frame = Results(str(tmp_path)).read()[0]
    rows = frame[(frame["decayed"] == True) & (frame["n_non_embedding"] < 5e6)]  # noqa: E712
    assert found.params == pytest.approx(fit(rows.reset_index(drop=True), found.record.law).params, rel=1e-6)
    assert found.record.origin.where == "n_non_embedding < 5e6"
    assert found.record.origin.title == "width where n_non_embedding < 5e6"
    assert found.record.origin.dropped["not chosen by --where"] == 2
    assert found.record.warnings[0] == "of the runs where n_non_embedding < 5e6 only"
    assert len(found.record.name.split("-where-")[1].split("-")[0]) == 6


def test_nothing_chosen_is_an_error_with_what_there_is(tmp_path: Path) -> None:
    write_results(tmp_path)
    with pytest.raises(FitError, match=r"no run that could be fitted fulfils it; seed is 0, 1"):
        find_laws(str(tmp_path), where="seed > 7")
    runs_of_sizes().to_csv(tmp_path / "runs.csv")
    with pytest.raises(FitError, match=r"no run that could be fitted fulfils it; tokens is "):
        find_laws(str(tmp_path / "runs.csv"), where="tokens < 0")


def test_a_table_is_chosen_from_by_its_own_columns(tmp_path: Path) -> None:
    runs = (
        runs_of_sizes()[["n_non_embedding", "val_loss"]]
        .rename(columns={"n_non_embedding": "Params (M)"})
        .assign(note="a")
    )
    runs["Params (M)"] /= 1e6
    runs.loc[0, "note"] = "b"
    path = tmp_path / "runs.csv"
    runs.to_csv(path, index=False)
    (found,) = find_laws(str(path), where="note == 'a' and `Params (M)` > 0").fits
    assert found.record.points == len(runs) - 1
    assert found.record.origin.dropped == {"not chosen by --where": 1}


def test_the_fits_of_all_runs_and_of_other_expressions_stay(tmp_path: Path) -> None:
    write_results(tmp_path, arms=("base", "lion"))
    location = str(tmp_path)
    whole = analyse(location, location, draws=100)
    contrasts = (tmp_path / "fits" / "contrasts.json").read_bytes()
    for where in ("n_non_embedding < 5e6", "n_non_embedding > 3e5"):
        part = analyse(location, location, draws=100, where=where)
        assert (part.replaced, part.contrasts) == ((), ())
        assert all((tmp_path / "fits" / f"{each.record.name}.draws.parquet").exists() for each in part.fits)
    records = read_records(location)[1]
    assert [each.origin.where for each in records] == [
        "",
        "",
        *["n_non_embedding < 5e6"] * 2,
        *["n_non_embedding > 3e5"] * 2,
    ]
    assert [each.as_json() for each in records[:2]] == [each.record.as_json() for each in whole.fits]
    assert len({each.name for each in records}) == 6
    assert (tmp_path / "fits" / "contrasts.json").read_bytes() == contrasts
    analyse(location, location, draws=100)
    assert len(read_records(location)[1]) == 6


def test_a_plot_takes_a_fit_of_chosen_runs_by_its_name_only(tmp_path: Path) -> None:
    write_results(tmp_path)
    location = str(tmp_path)
    analyse(location, location, draws=100)
    (part,) = analyse(location, location, draws=100, where="seed == 0").fits
    assert fit_to_draw(location)[0].record.origin.where == ""
    drawn, origin = fit_to_draw(location, name=part.record.name)
    assert (drawn.record.origin.where, origin) == ("seed == 0", f"read from {location}/fits/fits.json")


def test_the_command_records_the_expression_and_planning_follows_no_law_of_chosen_runs(tmp_path: Path) -> None:
    results = make_results(str(tmp_path))
    done = invoke("fit", str(tmp_path), "--where", "sweep == 'grid' and d_model >= 16", "--bootstrap", "100", "--json")
    assert done.exit_code == 0
    entries = json.loads((tmp_path / "fits" / "fits.json").read_text())
    assert {(each["sweep"], each["where"]) for each in entries} == {("grid", "sweep == 'grid' and d_model >= 16")}
    assert tuning_laws(results) == []
