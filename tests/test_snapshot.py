"""The snapshot of many trials' rows: only a cache."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from helpers.trials import known_trial
from tinyscale.results import rows, snapshot
from tinyscale.results.store import Results

POINT = {"step": 1, "tokens": 512, "val_loss": 2.0, "decayed": True}


@pytest.fixture
def results(tmp_path, monkeypatch) -> Results:
    """Four trials, one of them running, in a folder that is worth a snapshot."""
    monkeypatch.setattr(snapshot, "FEWEST", 4)
    made = Results(str(tmp_path / "results"))
    for seed in range(4):
        state = "running" if seed == 3 else "finished"
        made.write_trial(known_trial(seed=seed), [POINT, POINT], state, None, {"host": str(seed)})
    return made


def without_snapshot(results: Results) -> pd.DataFrame:
    results.cache.delete(snapshot.NAME)
    return results.read()[0]


def test_rows_are_the_same_with_and_without_it_and_only_those_of_ended_trials_are_in_it(results):
    first, again = results.read()[0], results.read()[0]
    held = pd.read_parquet(f"{results.cache.path}/{snapshot.NAME}")
    assert held["trial"].nunique() == 3
    pd.testing.assert_frame_equal(first, again)
    pd.testing.assert_frame_equal(first, without_snapshot(results))
    assert len(pd.read_parquet(results.trials.path)) == len(first)


def test_states_come_from_it_too(results):
    assert sorted(state for state, _ in results.states().values()) == ["finished"] * 3 + ["running"]
    assert results.cache.exists(snapshot.NAME)
    assert sorted(state for state, _ in results.states().values()) == ["finished"] * 3 + ["running"]


def test_a_file_whose_rows_are_in_it_is_not_opened_again_by_a_read_nor_by_a_report_of_where_rows_come_from(
    results, monkeypatch
):
    results.keep_snapshot()
    opened = []
    rows_in = rows.RowFiles._rows_in
    monkeypatch.setattr(rows.RowFiles, "_rows_in", lambda *given: opened.append(1) or rows_in(*given))
    assert len(results.read()[0]) == 8
    assert sorted(json.loads(text)["host"] for text in results.provenances()) == ["0", "1", "2", "3"]
    assert len(opened) == 2, "the trial that runs, twice"


def test_provenances_are_counted_by_trials_in_the_order_of_their_files_with_and_without_it(results):
    without, again = results.provenances(), results.provenances()
    first = results.read_trial(results.trials.names(".parquet")[0].removesuffix(".parquet"))[1]["provenance"]
    assert list(without.items()) == list(again.items())
    assert [json.loads(next(iter(without))), sum(without.values())] == [first, 4]


def test_many_files_are_read_some_at_a_time_to_the_same_rows(results, monkeypatch):
    whole = without_snapshot(results)
    monkeypatch.setattr(rows, "FILES_AT_ONCE", 3)
    pd.testing.assert_frame_equal(whole, without_snapshot(results))


def test_a_file_that_changed_or_went_is_not_taken_from_it(results):
    results.read()
    changed, gone = known_trial(seed=0), known_trial(seed=1)
    results.write_trial(changed, [{**POINT, "val_loss": 1.0}], "finished", None, {})
    results.forget(gone.identity)
    frame = results.read()[0]
    assert frame.loc[frame["trial"] == changed.identity, "val_loss"].tolist() == [1.0]
    assert gone.identity not in set(frame["trial"])
    pd.testing.assert_frame_equal(frame, without_snapshot(results))


def test_a_damaged_one_is_as_none(results):
    results.read()
    results.cache.write(snapshot.NAME, b"no parquet")
    assert len(results.read()[0]) == 8


def test_no_changed_bit_of_it_gives_other_numbers(results):
    frame = results.read()[0]
    content = results.cache.read(snapshot.NAME)
    for place in range(0, len(content), 211):
        results.cache.write(snapshot.NAME, content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        pd.testing.assert_frame_equal(results.read()[0], frame)
