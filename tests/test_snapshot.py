"""The snapshot of many trials' rows: only a cache."""

from __future__ import annotations

import pandas as pd
import pytest

from helpers.trials import known_trial
from tinyscale.results import snapshot
from tinyscale.results.store import Results

POINT = {"step": 1, "tokens": 512, "val_loss": 2.0, "decayed": True}


@pytest.fixture
def results(tmp_path, monkeypatch) -> Results:
    """Four trials, one of them running, in a folder that is worth a snapshot."""
    monkeypatch.setattr(snapshot, "FEWEST", 4)
    made = Results(str(tmp_path / "results"))
    for seed in range(4):
        made.write_trial(known_trial(seed=seed), [POINT, POINT], "running" if seed == 3 else "finished", None, {})
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
