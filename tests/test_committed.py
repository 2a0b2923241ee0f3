"""The results that are committed give the numbers that are committed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers import ROOT
from tinyscale.analysis.records import read_records
from tinyscale.analysis.study import find_laws
from tinyscale.fitting.record import Record
from tinyscale.results.store import Results
from tinyscale.spec.trial import resolve

STUDIES = sorted(fits.parent.parent for fits in (ROOT / "results").glob("*/fits/fits.json"))
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
        assert resolve(trial.config, trial.facts) == trial, trial.identity
