"""The report: what it says of each sweep, that its numbers and plots lie beside it, and how a browser shows it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from helpers.browser import browser, look
from helpers.programs import invoke
from helpers.results import add_sweep, make_results
from tinyscale.analysis.compare import Contrast
from tinyscale.cli import cli
from tinyscale.fitting.estimate import Estimate
from tinyscale.reporting.plot_contrasts import plot_contrasts
from tinyscale.reporting.plot_law import BLUE, GREY, ORANGE
from tinyscale.reporting.side_by_side import difference, write_side_by_side
from tinyscale.reporting.tables import measured_of
from tinyscale.results.store import Results
from tinyscale.results.sweep_record import SweepRecord


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder of six sweeps with its report."""
    folder = tmp_path_factory.mktemp("reported") / "results"
    make_results(str(folder))
    done = invoke("report", folder)
    assert done.exit_code == 0, done.output
    assert "report.html" in done.output
    return folder


@pytest.fixture(scope="module")
def html(reported: Path) -> str:
    return (reported / "report.html").read_text()


def section(html: str, name: str) -> str:
    return re.split(r"<section id=", html.split(f'<section id="{name}">')[1])[0]


def verdict(html: str, name: str) -> str:
    sentences = re.findall(r'<p class="verdict">(.*?)</p>', section(html, name))
    return re.sub(r"<.*?>", "", " ".join(sentences))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("width", r"L\(N\) = .* at fixed tokens D = 512K, with alpha 0\.\d+ \(95 %: .*\).* better than the"),
        ("optimizer", r"Lion is better than base by .* nats per token .* times the compute"),
        ("grid", r"L\(N, D\) = .* with alpha 0\.3"),
        ("budgets", r"N\*\(C\) = .* with a 0\.\d+"),
        ("context", r"Beyond 32 tokens of the document the loss falls by less than 1 %: by 0\.02\d nats .* 3 seeds"),
        ("single", r"No law is fitted: nothing varies"),
    ],
)
def test_each_sweep_has_its_question_and_a_verdict(html: str, name: str, says: str) -> None:
    assert re.search(says, verdict(html, name)), verdict(html, name)


def test_the_page_begins_with_every_question_and_its_answer(html: str) -> None:
    first = re.findall(r"<nav>(.*?)</nav>", html, re.S)[0]
    rows = re.findall(r"<tr>(.*?)</tr>", first, re.S)[1:]
    assert len(rows) == len(re.findall(r'<section id="(?!provenance)', html))
    (lion,) = (row for row in rows if "Is Lion better than AdamW?" in row)
    assert re.search(r'href="#optimizer".*Lion is better than base by .* nats per token.*\d+</td>', lion, re.S), lion


def test_laws_stand_before_comparisons_and_these_before_what_has_neither(html: str) -> None:
    names = re.findall(r'<section id="(.*?)">', html)
    assert names.index("width") < names.index("optimizer") < names.index("single") < names.index("provenance")


def test_the_question_is_the_sweeps_title(html: str) -> None:
    for title in ("Loss against parameters", "Is Lion better than AdamW?", "One size only"):
        assert f"<h2>{title} " in html


def test_every_table_of_the_page_is_a_csv_of_as_many_rows(reported: Path, html: str) -> None:
    tables = re.findall(r'<table data-csv="(.*?)">(.*?)</table>', html, flags=re.DOTALL)
    assert len(tables) > 15
    for name, body in tables:
        rows = len(re.findall("<tr[ >]", body.split("<tbody>")[1]))
        assert rows == len(pd.read_csv(reported / "tables" / name)), name


def test_numbers_of_the_page_are_those_of_the_csv(reported: Path, html: str) -> None:
    for row in pd.read_csv(reported / "tables" / "width-power-n-parameters.csv").itertuples():
        shown = [f"{value:.4g}" for value in (row.value, row.low, row.high)]
        cells = "".join(f'<td class="number">{number}</td>' for number in shown)
        assert f"<td>{row.parameter}</td>{cells}" in section(html, "width")


def test_every_plot_of_the_page_is_a_png_and_an_svg(reported: Path, html: str) -> None:
    stems = re.findall(r'<figure id="(.*?)">', html)
    assert {"width-power-n", "width-power-n-residuals", "width-loss-tokens", "context-positions"} <= set(stems)
    assert {"budgets-isoflop", "budgets-isoflop-curves"} <= set(stems)
    for stem in stems:
        assert (reported / "plots" / f"{stem}.png").stat().st_size > 5000
        assert (reported / "plots" / f"{stem}.svg").exists()


def test_failures_and_rows_left_out_are_told(html: str) -> None:
    told = section(html, "width")
    assert "diverged: width d_model=128 tokens_budget=512000 seed=0: the loss was not finite" in told
    assert "before the end of its schedule" in told
    assert "trial diverged" in told


def test_costs_are_those_of_the_rows(reported: Path) -> None:
    costs = pd.read_csv(reported / "tables" / "grid-costs.csv", index_col="what")["value"]
    points = pd.read_csv(reported / "tables" / "grid-points.csv")
    last = points.groupby("trial").last()
    assert float(costs["training seconds, all trials"]) == pytest.approx(last["wall_seconds"].sum())
    assert float(costs["training FLOPs"]) == pytest.approx(last["flops"].sum())


def test_each_launch_of_a_sweep_is_a_row(html: str, reported: Path) -> None:
    launches = pd.read_csv(reported / "tables" / "width-launches.csv")
    assert sorted(launches["trials"]) == [2, 10]
    assert launches["forecast_error_percent"].tolist() == pytest.approx([20, 20])
    assert section(html, "width").count("<td>2026-01-02 03:04:05</td>") == 2
    assert "launches.csv" not in section(html, "grid")


def test_loss_by_position_is_told_where_the_context_varies_only(html: str, reported: Path) -> None:
    assert "Loss by position in the context" in section(html, "context")
    assert html.count("Loss by position in the context") == 1
    means = pd.read_csv(reported / "tables" / "context-positions.csv")
    assert means.groupby("context_length")["seen"].count().to_dict() == {16: 4, 32: 5, 64: 6, 128: 7}
    assert (means["seeds"] == 3).all()


def test_the_commit_and_the_command_are_told_once(html: str) -> None:
    origin = section(html, "provenance")
    assert origin.count("0123abc") == 1
    assert "tinyscale launch sweeps/width.yaml" in origin


def test_a_folder_without_results_is_refused_in_words(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["report", str(tmp_path / "nothing")])
    assert "no such folder; launch a sweep into it first" in str(done.exception)


def test_a_sweep_without_rows_says_so(tmp_path: Path) -> None:
    results = Results(str(tmp_path / "results"))
    for name, width in (("width", 32), ("single", 16)):
        add_sweep(results, name, name, [("base", {"d_model": width, "tokens_budget": 25_600})])
    for trial in next(sweep for sweep in results.read_sweeps() if sweep.name == "single").trials:
        results.forget(trial)
    invoke("report", tmp_path / "results")
    assert "none of its trials has rows yet" in verdict((tmp_path / "results" / "report.html").read_text(), "single")


@pytest.mark.parametrize("sign", [1, -1])
def test_what_was_measured_has_a_table_and_figures_of_what_can_be_drawn(tmp_path: Path, sign: int) -> None:
    results = Results(str(tmp_path / "results"))
    widths = (16, 32, 64, 128)
    add_sweep(results, "width", "Loss", [("base", {"d_model": w, "tokens_budget": 51_200}) for w in widths], seeds=1)
    for trial in results.read_sweeps()[0].trials:
        rows = [
            {"measurement": f"m{bits}", "kind": "quantize", "state": "finished", "bits": bits, "of": "all",
             "method": "nearest", "loss": 3 + sign * 4.0**-bits, "delta": sign * 4.0**-bits, "delta_se": 1e-6,
             "model_bits": 1000 * bits}
            for bits in (3, 4, 5)
        ]  # fmt: skip
        failed = {"measurement": "m8", "kind": "quantize", "state": "failed", "reason": "no weights", "bits": 8}
        results.write_measurements(trial, [*rows, failed], {})
    assert invoke("report", tmp_path / "results").exit_code == 0
    html = (tmp_path / "results" / "report.html").read_text()
    assert "Measured: quantize" in html
    assert "no weights" in html
    assert len(pd.read_csv(tmp_path / "results" / "tables" / "width-quantize.csv")) == len(widths) * 3
    assert ('id="width-quantize-front"' in html, 'id="width-quantize-delta"' in html) == (True, sign > 0)


def test_parts_of_a_model_are_rows_of_their_own_and_seeds_are_averaged() -> None:
    record = SweepRecord("width", "", "", ("model.d_model",), (), {})
    heads = [("head", layer, head) for layer in (0, 1) for head in (0, 1)]
    rows = pd.DataFrame([
        {"trial": f"t{seed}", "arm": "base", "d_model": 16, "component": component, "layer": layer, "head": head,
         "prefix_score": layer + 0.1 * head + 0.01 * seed}
        for seed in (0, 1)
        for component, layer, head in [("model", seed, 1), *heads]
    ])  # fmt: skip
    shown = measured_of(record, "induction", rows).frame
    assert list(shown["component"]) == ["model", *["head"] * 4]
    assert list(shown["seeds"]) == [2] * 5
    assert shown["layer"].isna().tolist() == [True, *[False] * 4]
    assert shown["prefix_score"].iloc[1:].tolist() == pytest.approx([0.005, 0.105, 1.005, 1.105])


def test_one_answer_of_one_trial_is_a_row() -> None:
    row = {"trial": "t", "arm": "base", "d_model": 16, "kind": "memory", "weight_bytes": 1024}
    shown = measured_of(SweepRecord("one", "", "", (), (), {}), "memory", pd.DataFrame([row])).frame
    assert shown.to_dict("records") == [{"kind": "memory", "seeds": 1, "weight_bytes": 1024.0}]


@pytest.mark.slow
def test_a_browser_shows_it_whole_without_network_at_any_width(reported: Path, tmp_path: Path) -> None:
    page = reported / "report.html"
    with browser(tmp_path) as address:
        for width, dark in ((1200, False), (1200, True), (390, False)):
            seen = look(address, page, width, dark=dark)
            assert seen.width == width, "no scrolling sideways"
            assert seen.errors == []
            assert seen.requests == [page.as_uri()]
            assert "Is Lion better than AdamW?" in seen.text
            assert seen.png.startswith(b"\x89PNG")


def test_each_run_of_a_figure_links_to_its_trials_row(html: str) -> None:
    for name in ("width", "optimizer"):
        part = section(html, name)
        rows = set(re.findall(r'<tr id="(.*?)"', part))
        assert set(re.findall(r'xlink:href="#(\w+-[0-9a-f]{16})"', part)) == rows
        assert len(rows) > 5


def test_arms_are_drawn_in_the_order_of_their_worth_and_one_not_seen_to_differ_is_grey() -> None:
    def contrast(arm: str, *ends: float, **worth: Estimate) -> Contrast:
        sizes = {"1000": ends[0] - 0.01, "2000": ends[0] + 0.01}
        return Contrast("s", arm, "base", "nats per token", 4, Estimate(*ends), 0.01, sizes, worth, "", "")

    arms = [contrast("same", 0.01, -0.02, 0.04), contrast("worse", 0.2, 0.1, 0.3)]
    better = contrast("better", -0.3, -0.4, -0.2, compute=Estimate(1.5, 1.2, 1.9))
    ax = plot_contrasts([*arms, better])
    assert [text.get_text() for text in ax.get_yticklabels()] == [
        "worse",
        "same",
        "better\n1.50 x compute (1.20 to 1.90)",
    ]
    intervals = [line for line in ax.lines if line.get_linewidth() > 2]
    assert [line.get_color() for line in intervals] == [ORANGE, GREY, BLUE]
    assert [np.asarray(line.get_xdata()).tolist() for line in intervals] == [[0.1, 0.3], [-0.02, 0.04], [-0.4, -0.2]]
    assert ax.get_legend_handles_labels()[1] == ["N = 1K", "N = 2K"]
    assert "left is better" in ax.get_xlabel()


def test_the_setup_says_what_all_runs_share_and_how_far_they_differ(reported: Path) -> None:
    setup = pd.read_csv(reported / "tables" / "width-setup.csv").set_index("what")["value"]
    assert (setup["optimizer"], setup["tokens"]) == ("adamw", "512K")
    assert re.fullmatch(r"\d+ to \d+ \(\d values\)", setup["d_model"])


def test_own_words_stand_on_the_page_and_with_their_sweep(tmp_path: Path) -> None:
    cells = [("base", {"d_model": 16, "tokens_budget": 25_600})]
    add_sweep(Results(str(tmp_path / "results")), "grid", "Loss against parameters and tokens", cells)
    words = "Made in *May*.\n## Not a sweep\nstays\n## grid\n<b>as text</b>\n"
    (tmp_path / "results" / "notes.md").write_text(words)
    assert invoke("report", tmp_path / "results").exit_code == 0
    html = (tmp_path / "results" / "report.html").read_text()
    before = html.split("<nav>")[0]
    assert "Made in <em>May</em>." in before
    assert "<h2>Not a sweep</h2>" in before
    assert "&lt;b&gt;as text&lt;/b&gt;" in section(html, "grid")


FILTER = """(() => {
  const trials = document.querySelector("#optimizer details.trials"), input = trials.querySelector("input");
  trials.open = true;
  trials.querySelector("th:nth-child(2) button").click();
  trials.querySelector("th:nth-child(2) button").click();
  const order = [...trials.querySelectorAll("tbody tr")].map(row => row.cells[1].innerText);
  input.value = "seed=0"; input.oninput();
  const shown = [...trials.querySelectorAll("tbody tr:not([hidden])")].length;
  const faded = document.querySelectorAll("#optimizer figure a.faded").length;
  const point = document.querySelector("#optimizer figure a:not(.faded)");
  point.dispatchEvent(new PointerEvent("pointermove"));
  const all = trials.querySelectorAll("tbody tr").length;
  const svg = document.querySelector("#optimizer figure > svg"), box = svg.getBoundingClientRect();
  const mouse = (kind, x, y) => svg.dispatchEvent(
    new MouseEvent(kind, {clientX: box.left + x * box.width, clientY: box.top + y * box.height}));
  const width = () => svg.viewBox.baseVal.width / whole, whole = svg.viewBox.baseVal.width;
  mouse("mousedown", 0.25, 0.5); mouse("mouseup", 0.75, 0.6);
  const enlarged = width();
  mouse("dblclick", 0.5, 0.5);
  return {order, all, shown, faded, enlarged, again: width(), tip: document.getElementById("tip").innerText};
})()"""


@pytest.mark.slow
def test_trials_sort_filter_name_themselves_and_figures_enlarge_in_a_browser_and_without_scripts_all_is_there(
    reported: Path, tmp_path: Path
) -> None:
    page = reported / "report.html"
    with browser(tmp_path) as address:
        found = look(address, page, 1200, ask=FILTER)
        assert found.errors == []
        assert found.value["order"] == sorted(found.value["order"], reverse=True)
        assert 0 < found.value["shown"] < found.value["all"]
        assert found.value["faded"] > 0
        assert re.search(r"^trial: \w{16}$", found.value["tip"], re.M)
        assert "seed: 0" in found.value["tip"]
        assert found.value["enlarged"] == pytest.approx(0.5, rel=0.01), "half of the figure was drawn over"
        assert found.value["again"] == 1
        still = look(address, page, 1200, scripts=False)
        assert "Is Lion better than AdamW?" in still.text
        assert "filter" not in still.text


def test_two_folders_are_compared_law_by_law(tmp_path: Path) -> None:
    make_results(str(tmp_path / "ours"))
    shutil.copytree(tmp_path / "ours", tmp_path / "theirs")
    sorted((tmp_path / "theirs" / "trials").iterdir())[0].unlink()  # so that the laws are not quite the same
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "both"
    *_, page = write_side_by_side((str(tmp_path / "ours"), str(tmp_path / "theirs")), str(out))
    html = Path(page).read_text()
    assert 'id="width-power-n-drawing"' in html, "of one variable: against it"
    assert 'id="grid-chinchilla-drawing"' in html, "of N and D: against compute"
    table = pd.read_csv(out / "tables" / "width-power-n-side-by-side.csv").set_index("parameter")
    assert table.loc["alpha", "difference"] == pytest.approx(table.loc["alpha", "a"] - table.loc["alpha", "b"])
    assert not table["apart"].any(), "both are drawn from one truth"
    assert "No parameter differs by more than chance." in html
    assert sorted(path for path in tmp_path.rglob("*") if out not in (path, *path.parents)) == before


def test_a_difference_has_the_widths_of_both_combined_in_squares() -> None:
    low, high = difference(Estimate(5.0, 4.7, 5.4), Estimate(3.0, 2.7, 3.4))
    assert (low, high) == pytest.approx((2 - 0.5, 2 + 0.5))
    assert difference(Estimate(5.0, 4.0, np.inf), Estimate(3.0, 2.0, 4.0))[1] == np.inf
