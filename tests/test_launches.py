"""Launches into one folder record how they went, side by side too."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tinyscale.errors import ResultsError
from tinyscale.results.launches import LaunchRecord, read_launches, write_launch
from tinyscale.storage import Folder

RECORD = LaunchRecord(
    sweep="width",
    trials=3,
    states={"finished": 2, "failed": 1},
    slots=2,
    wall_seconds=10.5,
    train_seconds=18.0,
    expected_seconds=None,
    efficiency=0.9,
    overhead_per_trial=0.1,
    stopped=False,
    provenance={"launched": "2026-01-02T03:04:05+00:00", "commit": "0123abc"},
)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_launch(Folder.at(tmp_path), RECORD)
    assert read_launches(Folder.at(tmp_path)) == [RECORD]
    (name,) = [path.name for path in tmp_path.glob("*.json")]
    assert name.startswith("width-20260102030405-")


def test_launches_of_the_same_second_lose_nothing_of_each_other(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda trials: write_launch(Folder.at(tmp_path), replace(RECORD, trials=trials)), range(20)):
            pass
    assert sorted(record.trials for record in read_launches(Folder.at(tmp_path))) == list(range(20))


def test_the_oldest_comes_first_and_none_is_no_error(tmp_path: Path) -> None:
    assert read_launches(Folder.at(tmp_path / "none")) == []
    later = replace(RECORD, sweep="a", provenance={"launched": "2026-01-02T03:04:06+00:00"})
    for record in (later, RECORD):
        write_launch(Folder.at(tmp_path), record)
    assert read_launches(Folder.at(tmp_path)) == [RECORD, later]


def test_a_file_that_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "width-1-a.json").write_text("{}")
    with pytest.raises(ResultsError, match=r"width-1-a\.json: not a launch's record .*; delete it"):
        read_launches(Folder.at(tmp_path))
