"""The command line as others run it, and waiting for what a program does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from helpers import ROOT
from tinyscale.cli import cli

PATIENCE = 300.0  # seconds for what takes a few on an idle machine: a test that waits in vain ends, none claims a time

HEAVY = {"torch", "ray", "pandas", "pyarrow", "matplotlib", "pydantic", "scipy", "numpy", "ruamel", "rich"}


def invoke(*arguments: str | Path) -> Result:
    """The command line in this process; an exception that is no error of usage is raised."""
    return CliRunner().invoke(cli, [*map(str, arguments)], catch_exceptions=False)


def tinyscale(*arguments: str, cwd: Path, **options: object) -> subprocess.Popen[str]:
    """The command line as a program of its own, in its own process group, so that it can be interrupted."""
    program = [sys.executable, "-m", "tinyscale", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = str(ROOT)  # so that it is this copy, installed or not
    with _obeying_ctrl_c():
        return subprocess.Popen(program, cwd=cwd, env=environment, **pipes, **options)  # type: ignore[call-overload]


@contextmanager
def _obeying_ctrl_c() -> Iterator[None]:
    """Programs started inside end by SIGINT: a process of pytest-xdist ignores it, and its children would, too."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def loaded(program: str) -> set[str]:
    """The top-level packages that a fresh process has loaded after the program."""
    report = "; import sys; print('\\n'.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program + report], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def wait_for(condition: Callable[[], bool], program: subprocess.Popen[str] | None = None) -> None:
    """Wait for something to come true, while a program that is to bring it about runs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert program is None or program.poll() is None, program.communicate()[0]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def free_port() -> int:
    """A port that nothing uses now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether something on this machine accepts connections at a port."""
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def trap(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder the working directory, with files in it that leave the file RAN where a program imports them."""
    for name in ("json", "random", "torch", "ray", "numpy"):
        (folder / f"{name}.py").write_text(f"open({str(folder / 'RAN')!r}, 'w'); raise ImportError('not ours')")
    monkeypatch.chdir(folder)
