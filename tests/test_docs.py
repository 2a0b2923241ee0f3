"""The generated references are those of the code, links lead somewhere, and what `extending.md` shows works."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from helpers import ROOT
from helpers.programs import tinyscale
from helpers.results import make_results
from helpers.servers import running_hub
from helpers.trials import model_config, train_config, trial_config
from tinyscale.analysis.records import read_records
from tinyscale.data import content_hash, corpora, documents, hub, prepare
from tinyscale.results.schema import COLUMNS, MEASUREMENT_COLUMNS
from tinyscale.spec.code import Code, read_code
from tinyscale.spec.config import TrialConfig
from tinyscale.spec.costs import parameters
from tinyscale.spec.data_config import SOURCES, DataConfig
from tinyscale.spec.measurement import KINDS
from tinyscale.spec.sweep import load_sweep
from tinyscale.training.own_checks import ModelCheck, OptimizerCheck

DOCS = sorted((ROOT / "docs").glob("*.md"))


def test_generated_pages_are_current() -> None:
    for path, text in runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]().items():
        assert path.read_text() == text, f"{path.name}: run python docs/generate.py"


def test_every_field_and_column_is_in_the_reference() -> None:
    sweep, schema = (ROOT / "docs" / name for name in ("sweep-file.md", "results-schema.md"))
    for model in [info.annotation for info in TrialConfig.model_fields.values()]:
        for name in getattr(model, "model_fields", {}):
            assert f"`{name}`" in sweep.read_text() or f".{name}`" in sweep.read_text(), name
    assert all(f"| `{name}` |" in schema.read_text() for name, _, _ in (*COLUMNS, *MEASUREMENT_COLUMNS))
    assert all(f"| `{name}` |" in sweep.read_text() for kind in KINDS.values() for name in kind.model_fields)


@pytest.mark.parametrize("page", [*DOCS, ROOT / "CHANGELOG.md", ROOT / "README.md"], ids=lambda path: path.name)
def test_links_between_pages_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_law_that_the_guide_adds_in_one_file_and_the_catalogue_is_fitted(tmp_path: Path) -> None:
    """A copy of the code with the guide's file and its line, and a table of runs that follow the law."""
    shutil.copytree(ROOT / "tinyscale", tmp_path / "tinyscale", ignore=shutil.ignore_patterns("__pycache__"))
    laws = tmp_path / "tinyscale" / "fitting" / "laws"
    (laws / "slow.py").write_text(python_block("Law("))
    catalogue = laws / "__init__.py"
    line = f"from tinyscale.fitting.laws import slow\n\n{python_block('FAMILIES')}\nLAWS: dict"
    catalogue.write_text(catalogue.read_text().replace("LAWS: dict", line))
    n = np.geomspace(1e4, 1e7, 8)
    runs = pd.DataFrame({"n": n, "loss": 3 * np.log(n) ** -0.2 * (1 + 1e-3 * np.sin(np.arange(8)))})
    runs.to_csv(tmp_path / "runs.csv", index=False)
    command = [sys.executable, "-m", "tinyscale", "fit", "runs.csv", "--law", "log-power-n", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert [found["params"][name]["value"] for name in ("A", "alpha")] == pytest.approx([3, 0.2], rel=0.05)
    assert "log-power-n" in {row["law"] for row in found["rivals"]}


@pytest.mark.parametrize("page", [*DOCS, ROOT / "README.md"], ids=lambda path: path.name)
def test_commands_stand_in_blocks_that_tests_read_or_need_an_account(page: Path) -> None:
    """`sh` is held against the command line by test_readme.py, `python` is run here; other commands are marked."""
    parts = re.split(r"^```(.*)$", page.read_text(), flags=re.M)
    for before, kind, text in zip(parts[::4], parts[1::4], parts[2::4], strict=False):
        assert kind in ("sh", "python", "yaml", ""), kind
        if kind == "" and re.search(r"^(ray|tinyscale|pip|python3?) ", text, flags=re.M):
            assert "account" in before.split("\n\n")[-2], text


def test_the_readmes_exponents_are_those_of_the_results(tmp_path: Path, fitted: str) -> None:
    study = shutil.copytree(fitted, tmp_path / "study")
    text = runpy.run_path(str(ROOT / "docs" / "generate.py"))["readme"](tmp_path)
    (width,) = [record for record in read_records(str(study))[1] if record.name == "width-power-n"]
    alpha = "alpha {value:.3g} ({low:.3g} to {high:.3g})".format(**vars(width.estimates["alpha"]))
    assert width.held_out is not None
    error = f"{width.held_out.error_percent:+.2f} %"
    assert f"| study | width | `L(N) = E + A N^-alpha` | {alpha} | {error} | `0123abc` |" in text
    assert "No study is committed" not in text


def test_the_results_are_read_as_the_schema_page_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_results(str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "results-schema.md").read_text(), re.M | re.S)
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert set(scope["frame"].columns) == {name for name, _, _ in COLUMNS}


def python_block(of: str) -> str:
    """The one piece of Python in extending.md that holds this."""
    guide = (ROOT / "docs" / "extending.md").read_text()
    (code,) = [block for block in re.findall(r"^```python\n(.*?)^```", guide, re.M | re.S) if of in block]
    return code


def test_the_optimizer_that_the_guide_adds_trains(tmp_path: Path, tiny_corpus: DataConfig) -> None:
    """A copy of the code with the guide's three changes, and one trial with it."""
    with pytest.raises(ValidationError, match="optimizer"):
        trial_config(tiny_corpus, optimizer="sgd")
    shutil.copytree(ROOT / "tinyscale", tmp_path / "tinyscale", ignore=shutil.ignore_patterns("__pycache__"))
    config, optim = (tmp_path / "tinyscale" / name for name in ("spec/config.py", "training/optim.py"))
    field = python_block("optimizer: Literal[")
    changed, times = re.subn(r"^    optimizer: Literal\[.*\n", field, config.read_text(), flags=re.M)
    assert times == 1
    config.write_text(changed + "\n" + python_block('OPTIMIZERS["sgd"]'))
    optim.write_text(optim.read_text() + "\n" + python_block('BUILDERS["sgd"]'))
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, tiny_corpus.model_dump_json(exclude=set(SOURCES.values()))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    state, first, last = done.stdout.split()
    assert state == "finished"
    assert float(last) < float(first)


TRAIN = """
import json, sys
from helpers.trials import make_trial, trial_config
from tinyscale.training.loop import train

data = json.loads(sys.argv[1])
outcome = train(*make_trial(trial_config(data, optimizer="sgd", lr=1.0)), lambda _: None)
print(outcome.state, outcome.points[0].val_loss, outcome.points[-1].val_loss)
"""


def test_the_hub_corpus_that_the_guide_adds_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "read ten words and wrote one more, " * 3
    limericks = [f"There was a young model, number {number:04}, that {line}so." for number in range(180)]
    monkeypatch.setitem(hub.HUB, "limericks", None)  # removed after the test
    monkeypatch.setenv("TINYSCALE_CACHE", str(tmp_path))
    exec(python_block('HUB["limericks"]'), {"HUB": hub.HUB, "HubCorpus": hub.HubCorpus})
    added = hub.HUB["limericks"]
    with running_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        path = f"/datasets/{added.repo}/resolve/{added.revision}/{added.file}"
        server.files[path] = "\n<|endoftext|>\n".join(limericks).encode()
        assert documents("limericks") == limericks


def test_the_source_that_the_guide_adds_is_tokenized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class and the one entry of extending.md, as they stand there."""
    monkeypatch.setenv("TINYSCALE_CACHE", str(tmp_path))
    scope: dict[str, Any] = {}
    exec(python_block("class Sums"), scope)
    entry = eval(python_block("NamedCorpus("), {"NamedCorpus": corpora.NamedCorpus, **scope})
    named = corpora.named_corpora
    monkeypatch.setattr(corpora, "named_corpora", lambda *options: [*named(*options), entry])
    config = DataConfig.model_validate({"corpus": "sums", "tokenizer": {"kind": "char"}, "val_bytes": 20_000})
    corpus = prepare(config)
    assert corpora.open_source("sums").hash() == content_hash(documents("sums"))
    assert corpus.train_documents + corpus.val_documents == 200 * 200
    assert corpus.tokenizer().decode(corpus.val()[0][1:12]).count("+") == 1


def test_the_model_and_the_optimizer_that_the_guide_shows_pass_their_checks(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "your-own.md").read_text()
    assert len(page.splitlines()) < 60
    model, optimizer = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    (sweep,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "my_gpt.py").write_text(model)
    (tmp_path / "mine.yaml").write_text(sweep)
    mine = load_sweep(tmp_path / "mine.yaml").variants[-1].config.model
    assert mine.code is not None
    found = ModelCheck(read_code(Path(mine.code)), mine, 512).run()
    assert found["parameters"]["n_non_embedding"] == parameters(mine, 512).n_non_embedding + 2 * mine.d_model
    train = train_config(optimizer={"code": "my_optimizer.py", "momentum": 0.95})
    code = Code.of({"my_optimizer.py": f"import torch\n{optimizer}"})
    assert OptimizerCheck(code, train, None, model_config(), 512).run() == {}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_tutorial_leads_from_a_text_to_a_report(tmp_path: Path) -> None:
    """Its sweep file and its commands as they stand, with fewer tokens a trial."""
    page = (ROOT / "docs" / "tutorial.md").read_text()
    (sweep,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    smaller = sweep.replace("tokens_budget: 600K, batch_tokens: 512", "tokens_budget: 150K, batch_tokens: 128")
    assert smaller != sweep
    (tmp_path / "mine.yaml").write_text(smaller)
    speeches = documents("sotu")[:150]  # of made words, so few tokens show no size better than another
    (tmp_path / "my_text.txt").write_text("<|endoftext|>".join(speeches))
    named = "tinyscale (tune|plan|launch|status|fit|report|predict|plot)"
    commands = [line for line in page.splitlines() if re.match(named, line)]
    assert len(commands) == 8
    for command in commands:
        program = tinyscale(*command.split()[1:], cwd=tmp_path)
        output, _ = program.communicate(timeout=600)
        assert program.returncode == 0, output
    assert "How does loss on my text fall" in (tmp_path / "results" / "report.html").read_text()
