"""Launches on a Ray that was started apart, with a token, from the command line and as a job."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from launching import tinyscale, wait_for, write_sweep

from tinyscale.results import Results

pytestmark = pytest.mark.slow

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def head(tmp_path, monkeypatch) -> Iterator[dict[str, str]]:
    """A head with a token, in a home of its own; it and all that it started end with it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(secrets.token_hex(32))
    port, dashboard, agent = free_port(), free_port(), free_port()
    scratch = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need a short path
    command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2"]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", f"--temp-dir={scratch}"]
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    program = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: listens(port) and listens(dashboard) and listens(agent), 120)
    yield {"address": f"127.0.0.1:{port}", "dashboard": f"http://127.0.0.1:{dashboard}"}
    program.terminate()
    program.wait(timeout=60)
    shutil.rmtree(scratch, ignore_errors=True)


def listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_launch_at_an_address_finds_the_token_and_a_job_needs_none_of_its_own(tmp_path, head):
    path = write_sweep(tmp_path, widths="[8]")
    program = tinyscale("launch", "-y", str(path), "--results", "r", "--address", head["address"], cwd=tmp_path)
    output, _ = program.communicate(timeout=120)
    assert program.returncode == 0, output
    assert "starting Ray" not in output
    write_sweep(tmp_path, widths="[8, 16]")
    launch = [sys.executable, "-m", "tinyscale", "launch", "-y", str(path), "--results", str(tmp_path / "r")]
    submit = [RAY, "job", "submit", "--address", head["dashboard"], "--", *launch]
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    job = subprocess.run(submit, env=environment, capture_output=True, text=True, timeout=180)
    assert job.returncode == 0, job.stdout + job.stderr
    assert [state for state, _ in Results(str(tmp_path / "r")).states().values()] == ["finished"] * 2
