"""A figure for a paper: drawn from what a fit left behind, from the one fit that is meant, in the formats there are."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from matplotlib.axes import Axes

from helpers.runs import runs_of_sizes
from tinyscale.analysis.study import find_laws, fit_to_draw
from tinyscale.cli import cli
from tinyscale.errors import FitError, ResultsError
from tinyscale.fitting.fit import Fit
from tinyscale.reporting.figures import write_figure
from tinyscale.storage import Folder


def plot(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["plot", *map(str, arguments)])


def test_a_fit_that_is_read_is_the_fit_that_was_written(fitted: str) -> None:
    for written in [each for each in find_laws(fitted, draws=100).fits if isinstance(each, Fit)]:
        found, origin = fit_to_draw(fitted, written.law.name, written.record.name)
        assert isinstance(found, Fit)
        assert origin.startswith("read from")
        assert json.dumps(found.record.as_json()) == json.dumps(written.record.as_json())
        sizes = {name: np.array([1e4, 1e6]) for name in written.law.variables}
        np.testing.assert_allclose(found.predict(**sizes), written.predict(**sizes), rtol=1e-12)


@pytest.mark.parametrize(("suffix", "begins"), [("pdf", b"%PDF"), ("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_suffix_says_what_is_written(fitted: str, tmp_path: Path, suffix: str, begins: bytes) -> None:
    out = tmp_path / f"figure.{suffix}"
    done = plot(fitted, "--fit", "width-power-n", "--out", out)
    assert done.output == f"wrote {out}: width-power-n, read from {fitted}/fits/fits.json\n"
    first = out.read_bytes()
    assert first.startswith(begins)
    plot(fitted, "--fit", "width-power-n", "--out", out)
    assert out.read_bytes() == first, "the same fit gives the same file"


def test_a_size_a_font_and_no_title_are_as_asked(fitted: str, tmp_path: Path) -> None:
    out, plain = tmp_path / "column.svg", tmp_path / "plain.svg"
    assert plot(fitted, "--fit", "width-power-n", "--out", plain).exit_code == 0
    asked = ("--size", "column", "--font", "serif", "--style", "ggplot", "--no-title")
    assert plot(fitted, "--fit", "width-power-n", *asked, "--out", out).exit_code == 0
    small, large = out.read_text(), plain.read_text()
    assert 'width="234pt"' in small, "3.25 inches of 72 points"
    assert "serif" in small
    assert plot(fitted, "--fit", "width-power-n", "--out", plain).exit_code == 0
    assert plain.read_text() == large, "a style is for one figure"


def test_a_size_or_a_style_that_is_none_is_refused_with_what_there_is(fitted: str, tmp_path: Path) -> None:
    out = tmp_path / "figure.pdf"
    done = plot(fitted, "--fit", "width-power-n", "--size", "3x", "--out", out)
    assert (done.exit_code, "is not column, text, or WIDTHxHEIGHT" in done.output) == (2, True)
    done = plot(fitted, "--fit", "width-power-n", "--style", "nope", "--out", out)
    assert isinstance(done.exception, ResultsError)
    assert re.search("--style nope: no file, and none of .*ggplot", str(done.exception))
    assert not out.exists()


def test_numbers_in_the_words_of_a_drawing_keep_their_digits(tmp_path: Path) -> None:
    def draw(ax: Axes) -> None:
        ax.plot([0, 1 / 3], [0, 1 / 7])
        ax.set_xlabel("at 0.0078125, N = 1.58K")

    write_figure(Folder.at(tmp_path), "law", draw)
    text = (tmp_path / "plots" / "law.svg").read_text()
    assert ">at 0.0078125, N = 1.58K<" in text
    assert not re.search(r'd="M \d+\.\d\d', text), "coordinates do not"


def test_every_figure_of_the_report_is_there_by_its_name(fitted: str, tmp_path: Path) -> None:
    out = tmp_path / "figure.pdf"
    before = sorted(Path(fitted).rglob("*"))
    assert plot(fitted, "--figure", "width-loss-tokens", "--out", out).output == f"wrote {out}: width-loss-tokens\n"
    assert out.read_bytes().startswith(b"%PDF")
    assert sorted(Path(fitted).rglob("*")) == before, "nothing else is written"
    done = plot(fitted, "--figure", "width-loss-token", "--out", out)
    assert isinstance(done.exception, FitError)
    assert "no figure 'width-loss-token'; nearest: width-loss-tokens; its page lists" in str(done.exception)


def test_another_suffix_is_refused_with_the_legal_ones(fitted: str, tmp_path: Path) -> None:
    done = plot(fitted, "--out", tmp_path / "figure.jpg")
    assert done.exit_code == 2
    assert "has none of the endings .pdf, .svg, .png" in done.output


def test_budgets_and_a_law_that_is_not_there_yet_are_fitted(fitted: str, tmp_path: Path) -> None:
    out = tmp_path / "figure.svg"
    assert "budgets-isoflop, fitted now" in plot(fitted, "--law", "isoflop", "--figure", "curves", "--out", out).output
    assert "grid-tied, fitted now" in plot(fitted, "--law", "tied", "--fit", "grid-tied", "--out", out).output
    assert "fitted now" not in (Path(fitted) / "fits" / "fits.json").read_text()


def test_a_table_of_ones_own_runs_is_fitted_and_drawn(tmp_path: Path) -> None:
    runs_of_sizes().to_csv(tmp_path / "runs.csv")
    done = plot(tmp_path / "runs.csv", "--out", tmp_path / "figure.pdf")
    assert "runs-power-n, fitted now" in done.output
    assert (tmp_path / "figure.pdf").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.pdf", "runs.csv"]


@pytest.mark.parametrize(
    ("law", "name", "says"),
    [
        ("power-n", None, "3 fits to draw; name one with --fit: optimizer-base-power-n, optimizer-lion-power-n, width"),
        (None, "wdth-power-n", "no fit wdth-power-n to draw; there are .*width-power-n"),
        ("power-m", None, "no fit power-m to draw; there are .*width-power-n"),
    ],
)
def test_which_fit_is_meant_must_be_clear(fitted: str, law: str | None, name: str | None, says: str) -> None:
    with pytest.raises(FitError, match=says):
        fit_to_draw(fitted, law, name)


def test_the_only_law_of_the_loss_is_meant_where_none_is_named(fitted: str, tmp_path: Path) -> None:
    shutil.copytree(fitted, tmp_path / "r", ignore=shutil.ignore_patterns("plots"))
    path = tmp_path / "r" / "fits" / "fits.json"
    kept = [entry for entry in json.loads(path.read_text()) if entry["name"] in ("width-power-n", "budgets-isoflop")]
    assert len(kept) == 2
    path.write_text(json.dumps(kept))
    found, _ = fit_to_draw(str(tmp_path / "r"))
    assert found.record.name == "width-power-n"


def test_a_figure_that_a_fit_has_not_and_a_path_that_cannot_be_written_are_refused(fitted: str, tmp_path: Path) -> None:
    done = plot(fitted, "--fit", "width-power-n", "--figure", "curves", "--out", tmp_path / "figure.pdf")
    assert isinstance(done.exception, FitError)
    assert "has no figure 'curves'; it has law, residuals" in str(done.exception)
    done = plot(fitted, "--fit", "width-power-n", "--out", tmp_path / "none" / "figure.pdf")
    assert isinstance(done.exception, ResultsError)
    assert "give another --out" in str(done.exception)
