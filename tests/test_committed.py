"""The results that are committed give the numbers that are committed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers import ROOT
from helpers.sweeps import ON_CORES
from tinyscale.analysis.records import read_records
from tinyscale.analysis.study import find_laws
from tinyscale.fitting.record import Record
from tinyscale.results.store import Results
from tinyscale.results.sweep_record import SweepEntry, SweepRecord
from tinyscale.spec.sweep import Sweep, load_sweep
from tinyscale.spec.trial import resolve

STUDIES = sorted(fits.parent.parent for fits in (ROOT / "results").glob("*/fits/fits.json"))
LAUNCHED = [
    pytest.param(study, path, id=f"{study.name}-{path.stem}")
    for study in STUDIES
    for path in ON_CORES
    if study.name != "tinystories" and (study / "sweeps" / f"{path.stem}.json").exists()
]
by_study = pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)


@by_study
def test_a_study_fitted_again_gives_the_committed_parameters_and_intervals(study: Path) -> None:
    committed = {record.name: record for record in read_records(str(study))[1]}
    again = {found.record.name: found.record for found in find_laws(str(study)).fits}
    assert again.keys() == committed.keys()
    for name, record in committed.items():
        for param, estimate in record.estimates.items():
            ends = [list(vars(each).values()) for each in (again[name].estimates[param], estimate)]
            np.testing.assert_allclose(*ends, rtol=1e-3, err_msg=f"{name}, {param}")


@by_study
def test_a_committed_record_is_read_and_written_again_as_it_was(study: Path) -> None:
    for entry in json.loads((study / "fits" / "fits.json").read_text()):
        again = Record.of_json(entry).as_json()
        method = entry.pop("method", entry["intervals"].split()[0])  # older records have it in words alone
        assert again.pop("method") == method
        written = entry.pop("sha256", None)  # which older ones have not
        assert again.pop("sha256") == written or written is None
        assert list(again.items()) == list(entry.items())


@by_study
def test_every_trial_of_a_study_finished_on_code_that_was_committed(study: Path) -> None:
    store = Results(str(study))
    trials = [store.read_trial(name) for name in store.states()]
    assert {rows[-1]["state"] for rows, _ in trials} == {"finished"}
    assert {metadata["provenance"]["dirty"] for _, metadata in trials} == {False}


@by_study
def test_every_trial_of_a_study_is_named_by_its_configuration_and_the_facts_of_its_text(study: Path) -> None:
    store = Results(str(study))
    trials = [store.load_trial(name) for name in store.states()]
    assert trials
    for trial in trials:
        assert resolve(trial.config, trial.facts, trial.teacher) == trial, trial.identity


@pytest.mark.parametrize(("study", "path"), LAUNCHED)
def test_the_committed_trials_are_those_that_the_sweep_file_asks_for_as_it_stands(study: Path, path: Path) -> None:
    store, sweep = Results(str(study)), load_sweep(path)
    record = store.read_sweep(sweep.name)
    assert record is not None
    searched = sweep.search.names if sweep.search else {}
    variants = {variant.cell.key: variant for variant in (*sweep.teachers.values(), *sweep.variants)}
    teachers = {name: store.load_trial(taught.trial) for name, taught in _teachers(record, sweep).items()}
    assert {entry.cell.without(searched).key for entry in record.entries} == variants.keys()
    for entry in record.entries:
        sampled = {field: entry.cell.axes[name] for name, field in searched.items()}
        variant = variants[entry.cell.without(searched).key]
        config = variant.config.with_values({**entry.auto_values, **sampled})
        teacher = teachers[variant.teacher] if variant.teacher else None
        assert resolve(config, store.load_trial(entry.trial).facts, teacher).identity == entry.trial, entry.cell.label


def _teachers(record: SweepRecord, sweep: Sweep) -> dict[str, SweepEntry]:
    """The entries of the sweep's teachers, by name."""
    entries = {entry.cell.key: entry for entry in record.entries}
    return {name: entries[teacher.cell.key] for name, teacher in sweep.teachers.items()}
