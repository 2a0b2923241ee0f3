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

from tinyscale.results import leases
from tinyscale.results.leases import Lease, alive, clear_void
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
    held = {"token": "other", "host": platform.node(), "pid": ended.pid, "time": time.time()}
    for name, claim in (("gone", held), ("elsewhere", held | {"host": "another"})):
        (tmp_path / f"{name}.json").write_text(json.dumps(claim))
    clear_void(Folder.at(tmp_path))
    assert Folder.at(tmp_path).names(".json") == ["elsewhere.json", "trial.json"]


def test_the_lease_of_another_machine_is_void_after_two_silent_minutes():
    held = {"host": "elsewhere", "pid": 1, "time": time.time()}
    assert alive(held)
    assert not alive({**held, "time": time.time() - 121})


def test_a_process_whose_lease_was_taken_over_is_told_when_it_renews(tmp_path, monkeypatch):
    first, second = lease(tmp_path), lease(tmp_path)
    assert first.claim()
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.0)
    assert first.keep()
    held = json.loads((tmp_path / "trial.json").read_text())
    (tmp_path / "trial.json").write_text(json.dumps({**held, "host": "elsewhere", "time": 0}))
    assert second.claim()
    assert not first.keep()


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
