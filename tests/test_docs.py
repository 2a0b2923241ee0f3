"""The generated references are those of the code, links lead somewhere, and what `extending.md` shows works."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from launching import tinyscale, write_text
from making import ROOT

from tinyscale import fitting
from tinyscale.config import TrialConfig
from tinyscale.fitting.laws import LAWS
from tinyscale.results import COLUMNS

DOCS = sorted((ROOT / "docs").glob("*.md"))


def test_generated_pages_are_current() -> None:
    for path, text in runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]().items():
        assert path.read_text() == text, f"{path.name}: run python docs/generate.py"


def test_every_field_and_column_is_in_the_reference() -> None:
    sweep, schema = (ROOT / "docs" / name for name in ("sweep-file.md", "results-schema.md"))
    for model in [info.annotation for info in TrialConfig.model_fields.values()]:
        for name in getattr(model, "model_fields", {}):
            assert f"`{name}`" in sweep.read_text() or f".{name}`" in sweep.read_text(), name
    assert all(f"| `{name}` |" in schema.read_text() for name, _, _ in COLUMNS)


@pytest.mark.parametrize("page", [*DOCS, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_links_between_pages_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_law_that_the_guide_adds_can_be_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of extending.md as it stands there: a law of one's own recovers its parameters."""
    guide = (ROOT / "docs" / "extending.md").read_text()
    (code,) = [block for block in re.findall(r"^```python\n(.*?)^```", guide, re.M | re.S) if "Law(" in block]
    monkeypatch.setattr(fitting.laws, "LAWS", dict(LAWS))
    scope: dict[str, object] = {}
    exec(code, scope)
    frame = scope["frame"]
    found = fitting.fit_law(frame, scope["law"], draws=200)  # type: ignore[arg-type]
    np.testing.assert_allclose([found.params["A"], found.params["alpha"]], [30, 0.2], rtol=0.05)


@pytest.mark.slow
def test_the_tutorial_leads_from_a_text_to_a_report(tmp_path: Path) -> None:
    """Its sweep file and its commands as they stand, with fewer tokens a trial."""
    page = (ROOT / "docs" / "tutorial.md").read_text()
    (sweep,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    smaller = sweep.replace("tokens_budget: 1M", "tokens_budget: 60K").replace("400K", "700K")  # few words: long tokens
    (tmp_path / "mine.yaml").write_text(smaller)
    write_text(tmp_path / "my_text.txt", words=600_000)
    named = "tinyscale (plan|launch|status|fit|report|predict)"
    commands = [line for line in page.splitlines() if re.match(named, line)]
    assert len(commands) == 6
    for command in commands:
        program = tinyscale(*command.split()[1:], cwd=tmp_path)
        output, _ = program.communicate(timeout=240)
        assert program.returncode == 0, output
    assert "How does loss on my text fall" in (tmp_path / "results" / "report.html").read_text()
