"""Leases: one holder at a time, void when it is gone."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinyscale.results import leases
from tinyscale.results.leases import Lease, LeaseLostError, clear_void, held_trials
from tinyscale.storage import Folder


def lease(folder: Path) -> Lease:
    return Lease(Folder.at(folder), "trial")


def test_a_lease_has_one_holder_until_it_is_released(tmp_path):
    first, second = lease(tmp_path), lease(tmp_path)
    assert first.claim()
    assert not second.claim()
    first.release()
    assert second.claim()
    first.release()  # no longer ours to give back
    assert not lease(tmp_path).claim()


def test_the_lease_of_a_process_that_died_is_void_at_once(tmp_path):
    code = (
        "from tinyscale.results.leases import Lease; from tinyscale.storage import Folder;"
        f"assert Lease(Folder.at({str(tmp_path)!r}), 'trial').claim()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "trial.json").exists()
    assert lease(tmp_path).claim()


def test_leases_of_processes_that_are_gone_can_be_cleared_away(tmp_path):
    assert lease(tmp_path).claim()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    change_holder(tmp_path, pid=ended.pid)
    (tmp_path / "trial.json").rename(tmp_path / "gone.json")
    change_holder(tmp_path, machine="another")
    (tmp_path / "trial.json").rename(tmp_path / "elsewhere.json")
    assert lease(tmp_path).claim()
    clear_void(Folder.at(tmp_path))
    assert Folder.at(tmp_path).names(".json") == ["elsewhere.json", "trial.json"]


def change_holder(folder: Path, seconds_ago: float = 0.0, **changes: object) -> None:
    """The lease of this process as another holder would have left it, and last renewed it so long ago."""
    path = folder / "trial.json"
    path.unlink(missing_ok=True)
    assert lease(folder).claim()
    path.write_text(json.dumps({**json.loads(path.read_text()), "token": "other", **changes}))
    renewed = path.stat().st_mtime - seconds_ago
    os.utime(path, (renewed, renewed))


def test_the_lease_of_another_machine_is_void_after_two_silent_minutes(tmp_path):
    change_holder(tmp_path, 110, machine="another")
    assert held_trials(Folder.at(tmp_path)) == {"trial"}
    change_holder(tmp_path, 121, machine="another")
    assert held_trials(Folder.at(tmp_path)) == set()
    assert lease(tmp_path).claim()


@pytest.mark.parametrize("changes", [{}, {"machine": "this system, another space of process numbers", "pid": 999_999}])
@pytest.mark.parametrize("ahead", [-86_400.0, 130.0, 86_400.0])
def test_a_living_lease_is_not_taken_whatever_the_clocks_of_the_two_machines_say(tmp_path, monkeypatch, changes, ahead):
    change_holder(tmp_path, **changes)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + ahead)
    assert not lease(tmp_path).claim()


def test_the_lease_of_a_process_of_this_machine_is_void_when_its_number_is_anothers_by_now(tmp_path):
    change_holder(tmp_path)
    assert not lease(tmp_path).claim()
    change_holder(tmp_path, begun="1")
    assert lease(tmp_path).claim()


def test_a_lease_from_before_holders_said_where_they_run_is_void_after_two_silent_minutes(tmp_path):
    old = {"token": "other", "host": platform.node(), "pid": os.getpid(), "time": time.time()}
    for seconds_ago, taken in ((0, False), (121, True)):
        change_holder(tmp_path)
        (tmp_path / "trial.json").write_text(json.dumps(old))
        renewed = (tmp_path / "trial.json").stat().st_mtime - seconds_ago
        os.utime(tmp_path / "trial.json", (renewed, renewed))
        assert lease(tmp_path).claim() == taken


@pytest.mark.parametrize("content", [b"", b"[1]", b"null", b'{"token": 1, "pid": "x"}', b"\xff", b'{"pid": 1e400}'])
def test_a_damaged_lease_is_nobodys(tmp_path, content):
    (tmp_path / "trial.json").write_bytes(content)
    assert lease(tmp_path).claim()


def test_a_process_whose_lease_was_taken_over_is_told_when_it_renews_and_when_it_writes(tmp_path, monkeypatch):
    first = lease(tmp_path)
    assert first.claim()
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.0)
    first.keep()
    change_holder(tmp_path)
    with pytest.raises(LeaseLostError, match="another launch took trial trial over"):
        first.keep()
    with pytest.raises(LeaseLostError), first.held():
        raise AssertionError("not reached")


def test_a_launch_takes_over_from_a_process_of_its_own_that_it_holds_for_dead(tmp_path):
    first, other = Lease(Folder.at(tmp_path), "trial", "a"), Lease(Folder.at(tmp_path), "trial", "b")
    again = Lease(Folder.at(tmp_path), "trial", "a")
    assert first.claim()
    assert not other.claim()
    assert again.claim()
    assert not first.is_ours


def test_a_claim_waits_for_a_holder_that_is_about_to_end(tmp_path):
    holder = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path, 1.0))
    holder.start()
    while not (tmp_path / "trial.json").exists():
        time.sleep(0.02)
    assert not lease(tmp_path).claim()
    assert lease(tmp_path).claim(patience=20)
    holder.join()


def _hold(folder: Path, seconds: float) -> None:
    held = lease(folder)
    assert held.claim()
    time.sleep(seconds)
    held.release()


def test_of_many_processes_that_claim_at_once_one_wins(tmp_path):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        won = pool.map(_claim_and_stay, [tmp_path] * 4)
    assert sum(won) == 1


def _claim_and_stay(folder: Path) -> bool:
    won = lease(folder).claim()
    deadline = time.monotonic() + 10  # stay alive until all have tried, else the winner's lease would be void
    (folder / f"tried-{os.getpid()}").touch()
    while len(list(folder.glob("tried-*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    return won
