"""Damaged files: whatever was done to one, its reader gives its content or an error in words."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from helpers.runs import runs_of_sizes
from helpers.sweeps import ON_CORES, write_search
from helpers.text import words
from helpers.trials import known_trial, make_trial, trial_config
from tinyscale.analysis.compare import Contrast
from tinyscale.analysis.forecasts import calibration_table, read_registrations
from tinyscale.analysis.predict import predict_all
from tinyscale.analysis.records import read_fit, read_records, write_contrasts
from tinyscale.analysis.register import register_trials
from tinyscale.analysis.runs import read_groups
from tinyscale.analysis.score import score_all
from tinyscale.cli.tables import registered_table, registration_lines
from tinyscale.data import prepare
from tinyscale.data.files import read_files
from tinyscale.errors import TinyscaleError
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.text import describe
from tinyscale.inference.trained import load_trained
from tinyscale.machine import Capacity
from tinyscale.orchestration.studies import CellStudy, StudyFile
from tinyscale.planning import forecast
from tinyscale.planning.make_plan import make_plan
from tinyscale.reporting.tables import provenance_of
from tinyscale.results import snapshot
from tinyscale.results.launches import read_launches
from tinyscale.results.leases import Lease, clear_void, held_trials
from tinyscale.results.parquet import open_parquet, to_parquet
from tinyscale.results.schema import SCHEMA
from tinyscale.results.store import Results
from tinyscale.spec.cell import Cell
from tinyscale.spec.data_config import SEPARATOR, DataConfig
from tinyscale.spec.measurement import Quantize, Question
from tinyscale.spec.sweep import load_sweep
from tinyscale.storage import Folder
from tinyscale.training.checkpoint import DamagedError, of_bytes
from tinyscale.training.loop import train

Read = Callable[[Path], object]

WRONG: tuple[Any, ...] = (None, "x", "../x", "\x1b[/x]", -1, 0, 1.5, 10**30, True, [], [[]], {}, {"x": None})


def damage(content: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes cut, repeated, zeroed or put in; of JSON also values of other types, or none."""
    where = rng.randrange(len(content) + 1)
    end = where + rng.choice((1, 8, 500))
    kind = rng.randrange(8)
    if kind < 3 and (typed := _mistyped(content, rng)) is not None:
        return typed
    if kind < 5 and where < len(content):
        return content[:where] + bytes([content[where] ^ 1 << rng.randrange(8)]) + content[where + 1 :]
    instead = (b"", content[where:end] * 2, bytes(len(content[where:end])), rng.randbytes(4))[rng.randrange(4)]
    return content[:where] + instead + (content[end:] if rng.random() < 0.8 else b"")


def _mistyped(content: bytes, rng: random.Random) -> bytes | None:
    """The JSON with one of its values replaced by another, or left out; None where it is no JSON."""
    try:
        written = json.loads(content)
    except ValueError:
        return None
    parent: Any = {"": written}
    key: Any = ""
    while isinstance(parent[key], dict | list) and parent[key] and rng.random() < 0.85:
        parent = parent[key]
        key = rng.choice([*parent] if isinstance(parent, dict) else range(len(parent)))
    if rng.random() < 0.3 and parent is not written and key != "":
        del parent[key]
        return json.dumps(written).encode()
    if key == "":
        return json.dumps(rng.choice(WRONG)).encode()
    parent[key] = rng.choice(WRONG)
    return json.dumps(written).encode()


def of_trials(path: Path) -> None:
    results = Results(str(path.parents[1]))
    results.read()
    results.states_and_unreadable()
    for read in (results.read_trial, results.load_trial, results.state):
        with suppress(TinyscaleError):
            read(path.stem)


def of_fits(path: Path) -> None:
    folder, records = read_records(str(path.parents[1]))
    for record in records:
        describe(record)
        with suppress(TinyscaleError):
            predict_all(folder, [record], {"c": 1e15})


def of_contrasts(path: Path) -> None:
    contrast = Contrast("new", "lion", "base", "", 3, Estimate(0, -1, 1), 1.0, {}, {}, "", "no difference")
    write_contrasts(Folder.at(path.parents[1]), [contrast])


def of_refits(path: Path) -> None:
    folder, records = read_records(str(path.parents[1]))
    name = path.name.partition(".")[0]
    read_fit(folder, next(record for record in records if record.name == name))


def of_forecasts(path: Path) -> None:
    made = read_registrations(Folder.at(path.parents[1]))
    calibration_table(made)
    for each in made:
        registered_table(each, 80)
        registration_lines(each.registered)
    score_all(Results(str(path.parents[1])), made)


def of_leases(path: Path) -> None:
    folder = Folder.at(path.parent)
    Lease(folder, path.stem).claim()
    held_trials(folder)
    clear_void(folder)


def of_calibration(_: Path) -> None:
    forecast.learn([(known_trial(), 1.0)], 1)


def of_footer(path: Path) -> None:
    """The file is one of the texts in the footer of a trial's rows."""
    trial = path.parent / "trials" / "t0.parquet"
    table = open_parquet(trial.read_bytes()).read()
    footer = {**table.schema.metadata, f"tinyscale.{path.stem}".encode(): path.read_bytes()}
    trial.write_bytes(to_parquet(table.replace_schema_metadata(footer)))
    results = Results(str(path.parent))
    results.read()
    provenance_of(results)
    results.load_trial("t0")


def of_measurements(path: Path) -> None:
    results = Results(str(path.parents[1]))
    results.read_measurements()
    results.measurement_states()
    results.measured(path.stem)


def of_tokens(path: Path) -> None:
    corpus = prepare(data_of(path.parents[2]))
    corpus.tokenizer()
    corpus.train()
    corpus.val()


def of_weights(path: Path) -> None:
    load_trained(Results(str(path.parents[2])), path.parent.name)


def of_checkpoint(path: Path) -> None:
    with suppress(DamagedError):
        of_bytes(path.read_bytes())


def of_studies(path: Path) -> None:
    folder = path.parents[1]
    results = Results(str(folder))
    plan = make_plan(load_sweep(folder / f"{path.stem}.yaml"), results, Capacity(2, 0), measure=False)
    assert plan.sweep.search is not None
    storage = StudyFile(results, path.stem, "").storage
    study = CellStudy(plan.sweep.search, plan.trials[:4], storage, results, path.stem)
    assert study.suggest("0") is not None
    study.report("0", 2.0, 100)
    study.end("0")


# Other damages than those of every run: FUZZ_FIRST=1000 FUZZ_MORE=10 pytest -m slow tests/test_fuzz.py
FIRST, MORE = int(os.environ.get("FUZZ_FIRST", "0")), int(os.environ.get("FUZZ_MORE", "1"))

READERS: dict[str, tuple[str, Read]] = {
    "sweep file": ("s.yaml", load_sweep),
    "sweep record": ("sweeps/width.json", lambda path: Results(str(path.parents[1])).read_sweeps()),
    "launch": ("launches/l.json", lambda path: read_launches(Folder.at(path.parent))),
    "lease": ("leases/t0.json", of_leases),
    "trial": ("trials/t0.parquet", of_trials),
    "measurements": ("measurements/t0.parquet", of_measurements),
    "snapshot": (snapshot.NAME, lambda path: snapshot.load(Folder.at(path.parent), snapshot.NAME, {"a": "a"}, SCHEMA)),
    "fits": ("fits/fits.json", of_fits),
    "points of a fit": ("tables/width-power-n.parquet", of_refits),
    "forecasts": ("forecasts/width.json", of_forecasts),
    "contrasts": ("fits/contrasts.json", of_contrasts),
    "refits": ("fits/grid-chinchilla.draws.parquet", of_refits),
    "table as csv": ("r.csv", lambda path: read_groups(str(path))),
    "table as jsonl": ("r.jsonl", lambda path: read_groups(str(path))),
    "table as parquet": ("r.parquet", lambda path: read_groups(str(path))),
    "text": ("t.txt", read_files),
    "text as jsonl": ("t.jsonl", read_files),
    "text as parquet": ("t.parquet", read_files),
    "calibration": ("calibration.json", of_calibration),
    "config in a trial": ("config.json", of_footer),
    "facts in a trial": ("facts.json", of_footer),
    "provenance in a trial": ("provenance.json", of_footer),
    "numbers of tokens": ("tokens/*/meta.json", of_tokens),
    "digests of tokens": ("tokens/*/sha256.json", of_tokens),
    "tokens": ("tokens/*/val.bin", of_tokens),
    "weights": ("checkpoints/*/weights.pt", of_weights),
    "checkpoint": ("resume.pt", of_checkpoint),
    "studies": ("optuna/rates.log", of_studies),
}


@pytest.fixture(scope="module")
def whole(fitted: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole file for each reader, to be copied."""
    folder = tmp_path_factory.mktemp("whole") / "r"
    shutil.copytree(fitted, folder, ignore=shutil.ignore_patterns("plots"))
    cell = (Cell("base", {"d_model": 256}, 0), known_trial(d_model=256, tokens_budget=512_000, repeats=True))
    register_trials(Results(str(folder)), "width", [cell])
    shutil.rmtree(folder / "trials")
    results = Results(fitted)
    (folder / "trials").mkdir()
    first = results.read_sweeps()[0].trials[0]
    shutil.copy(f"{fitted}/trials/{first}.parquet", folder / "trials" / "t0.parquet")
    next((folder / "launches").glob("*.json")).rename(folder / "launches" / "l.json")
    assert Lease(Folder.at(folder / "leases"), "t0").claim()
    asked = Question("quantize", Quantize(bits=4))
    row = {"measurement": asked.identity_for("t0"), "kind": "quantize", "state": "finished", "bits": 4, "delta": 0.1}
    Results(str(folder)).write_measurements("t0", [row], {})
    rows = results.read()[0].head(20)
    table = snapshot.pa.Table.from_pandas(rows, SCHEMA)
    snapshot.save(Folder.at(folder), snapshot.NAME, snapshot.labelled(table, "a", "{}"))
    (folder / "s.yaml").write_bytes(next(path for path in ON_CORES if path.stem == "quickstart").read_bytes())
    runs = runs_of_sizes()
    runs.to_csv(folder / "r.csv", index=False)
    runs.to_json(folder / "r.jsonl", orient="records", lines=True)
    runs.to_parquet(folder / "r.parquet")
    texts = pd.DataFrame({"text": ["one", "two two", "\u00e9"]})
    texts.to_json(folder / "t.jsonl", orient="records", lines=True)
    texts.to_parquet(folder / "t.parquet")
    (folder / "t.txt").write_text("one<|endoftext|>two \u00e9")
    (folder / "calibration.json").write_text(
        json.dumps({"s": {"step": 1.0, "evaluation": 1.0, "start": 0.0, "least": 1.0, "most": 1.0, "busy": 0.0}})
    )
    _add_trained(folder)
    footer = results.read_trial(first)[1]
    for part in ("config", "facts", "provenance"):
        (folder / f"{part}.json").write_text(json.dumps(footer[part]))
    write_search(folder)
    (folder / "optuna").mkdir()
    of_studies(folder / "optuna" / "rates.log")
    entries = json.loads((folder / "fits" / "fits.json").read_text())
    for entry in entries:  # as older versions wrote them: with its hash, no other number is read
        del entry["sha256"]
    (folder / "fits" / "fits.json").write_text(json.dumps(entries))
    return folder


def data_of(folder: Path) -> DataConfig:
    """Twenty documents in the folder, by bytes."""
    path = folder / "corpus.txt"
    if not path.exists():
        path.write_text(SEPARATOR.join(words(100, seed) for seed in range(20)))
    return DataConfig.model_validate({"corpus": str(path), "tokenizer": {"kind": "byte"}, "val_bytes": 1000})


def _add_trained(folder: Path) -> None:
    """A trial with its weights, its tokens, and a checkpoint without a hash."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYSCALE_CACHE", str(folder))
        trial, corpus = make_trial(trial_config(data_of(folder), tokens_budget=1024))
    results = Results(str(folder))
    train(trial, corpus, lambda _: None, checkpoints=results.checkpoints(trial.identity))
    results.write_trial(trial, [], "failed", None, {})
    torch.save({"step": 3, "model": {"w": torch.ones(4)}}, folder / "resume.pt")


def try_damage(whole: Path, folder: Path, name: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage the reader's file so many times; what comes out is nothing or an error in words."""
    monkeypatch.setenv("TINYSCALE_CACHE", str(folder / "r"))
    shutil.copytree(whole, folder / "r")
    file, read = READERS[name]
    (path,) = (folder / "r").glob(file)
    content = path.read_bytes()
    read(path)
    for seed in range(FIRST, FIRST + times * MORE):
        path.write_bytes(damage(content, random.Random(seed)))
        print(f"damage {seed} of {file}")
        with suppress(TinyscaleError):
            read(path)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_is_an_error_in_words(
    whole: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    try_damage(whole, tmp_path, name, 25, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_no_damage_of_hundreds_ends_in_anything_else(
    whole: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    try_damage(whole, tmp_path, name, 200, monkeypatch)
