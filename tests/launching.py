"""What the tests of launches share: a small text, a sweep over it, launching it here or as a program of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pandas as pd
import pytest
from rich.console import Console

from tinyscale.machine import Capacity
from tinyscale.orchestration.launch import launch
from tinyscale.orchestration.session import Cluster
from tinyscale.orchestration.summary import Summary
from tinyscale.planning.plan import Plan, make_plan
from tinyscale.results.store import Results, read_results
from tinyscale.spec.sweep import load_sweep

RAY = str(Path(sys.executable).with_name("ray"))

# Ray's own modules warn of their future and leave sockets to the garbage collector; neither is ours to mend.
RAY_WARNS = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SWEEP = """\
name: {name}
base:
  data: {{corpus: text.txt, tokenizer: {{kind: char}}, val_bytes: 101K}}
  model: {{d_model: 8, n_layers: 1, n_heads: 1, context_length: 32}}
  train: {{tokens_budget: {tokens}, batch_tokens: 512, lr: 1e-2, eval_points: 2}}
axes:
  model.d_model: {widths}
seeds: {seeds}
"""


def write_text(path: Path, words: int = 160_000) -> None:
    """A text of made-up words with some order in it, about 900 KB, in 200 documents."""
    random = Random(0)
    vocabulary = ["".join(random.choices("etaoinshr", k=random.randint(2, 7))) for _ in range(50)]
    documents = [" ".join(random.choices(vocabulary, k=words // 200)) for _ in range(200)]
    path.write_text("\n<|endoftext|>\n".join(documents))


def write_sweep(
    folder: Path, name: str = "small", tokens: str = "20K", widths: str = "[8, 16]", seeds: str = "[0]"
) -> Path:
    """A sweep file and its text in a folder."""
    if not (folder / "text.txt").exists():
        write_text(folder / "text.txt")
    path = folder / f"{name}.yaml"
    path.write_text(SWEEP.format(name=name, tokens=tokens, widths=widths, seeds=seeds))
    return path


def tinyscale(*arguments: str, cwd: Path, **options: object) -> subprocess.Popen[str]:
    """The command line as a program of its own, in its own process group, so that it can be interrupted."""
    program = [sys.executable, "-m", "tinyscale", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)  # so that it is this copy, installed or not
    return subprocess.Popen(program, cwd=cwd, env=environment, **pipes, **options)  # type: ignore[call-overload]


def planned(path: Path, results: Results, *overrides: str) -> Plan:
    return make_plan(load_sweep(path, overrides=overrides), results, Capacity(2, 0), measure=False)


def run(plan: Plan, results: Results, cluster: Cluster, **options: Any) -> Summary:
    return launch(plan, results, cluster, console=Console(quiet=True), quiet=True, **options)


def final_losses(results: Path) -> pd.Series:
    frame = read_results(str(results))
    return frame[frame["decayed"].astype(bool)].set_index("trial")["val_loss"].sort_index()


def wait_for(condition: Callable[[], bool], seconds: float = 60, program: subprocess.Popen[str] | None = None) -> None:
    """Wait for something to come true, while a program that is to bring it about runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert program is None or program.poll() is None, program.communicate()[0]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def has_points(results: Results, identity: str) -> bool:
    """Whether a trial has written its first point."""
    return results.trials.exists(f"{identity}.parquet")


def kill_process_of(identity: str, results: Results) -> None:
    """SIGKILL the process that trains a trial: its lease names it."""
    lease = json.loads((results.folder / "leases").read(f"{identity}.json"))
    os.kill(lease["pid"], signal.SIGKILL)


class Head(NamedTuple):
    """Where a Ray that was started apart listens."""

    address: str
    dashboard: str


@contextmanager
def ray_head(*options: str, port: int | None = None, **environment: str) -> Iterator[Head]:
    """`ray start --head` with these options and variables; it and all that it started end with it."""
    port, dashboard, agent = port or free_port(), free_port(), free_port()
    scratch = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need a short path
    command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", *options]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", f"--temp-dir={scratch}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    program = subprocess.Popen(command, env={**os.environ, **environment}, **quiet)  # type: ignore[call-overload]
    try:
        wait_for(lambda: all(map(listens, (port, dashboard, agent))), 120)
        yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}")
    finally:
        program.terminate()
        program.wait(timeout=60)
        shutil.rmtree(scratch, ignore_errors=True)


def free_port() -> int:
    """A port that nothing uses now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether something on this machine accepts connections at a port."""
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
