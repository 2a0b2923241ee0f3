"""`tinyscale doctor`: whether this machine can launch. Each check is one line: ok, warn or fail, with a remedy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from tinyscale.errors import ResultsError
from tinyscale.machine import FEWEST_OPEN_FILES, open_files, own_python, usable_cores
from tinyscale.storage import Folder

LEAST_FREE_BYTES = 2e9  # for the tokens of a corpus, checkpoints and Ray's session
RAY_SECONDS = 120
START_RAY = (
    "from tinyscale.orchestration.session import ray_session\n"
    "with ray_session(None) as cluster: print(f'{cluster.capacity.cpus:g} cores, {cluster.capacity.gpus:g} GPUs')"
)
COUNT_GPUS = (
    "import torch\n"
    "print(f'torch {torch.__version__} for ' + (f'CUDA {torch.version.cuda}' if torch.version.cuda else\n"
    "      f'ROCm {torch.version.hip}' if torch.version.hip else 'the CPU'))\n"
    "for i in range(torch.cuda.device_count()):\n"
    "    it = torch.cuda.get_device_properties(i); print(f'{it.name}, {it.total_memory / 2**30:.0f} GiB')"
)


@dataclass(frozen=True)
class Check:
    """Result of one check. found: what the machine has. remedy: what to do; empty if the level is ok."""

    level: Literal["ok", "warn", "fail"]
    name: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level:4}  {self.name}: {self.found}" + (f"; {self.remedy}" if self.remedy else "")


def examine(results: str, *, with_ray: bool = True) -> Iterator[Check]:
    """All checks, each as soon as it is done. results: the folder that a launch would write to."""
    yield _python()
    yield from _packages()
    yield _threads()
    yield _open_files()
    yield from _gpus()
    yield _writable(results)
    yield _disk(results)
    if with_ray:
        yield _ray()


def examine_node(results: str, probe: str) -> list[Check]:
    """Checks of one node of a cluster. probe: name of a file in the results folder, written by the launcher."""
    checks = [_threads(), _writable(results), _disk(results)]
    if checks[1].level == "ok" and not Folder.at(results).exists(probe):
        found = f"{results} is another folder here than where the launch runs"
        checks[1] = Check("fail", "results", found, "choose a --results that all nodes mount, or s3://, gs://")
    return checks


def _python() -> Check:
    version, legal = platform.python_version(), sys.version_info >= (3, 11)
    return Check("ok", "Python", version) if legal else Check("fail", "Python", version, "install Python 3.11 or newer")


def _packages() -> Iterator[Check]:
    """Compare the version of each required package with its tested range."""
    try:
        needed = [Requirement(line) for line in importlib.metadata.requires("tinyscale") or []]
    except importlib.metadata.PackageNotFoundError:
        yield Check(
            "warn", "packages", "tinyscale is run from a copy, not installed", "pip install -e . to check versions"
        )
        return
    wrong = [check for each in needed if each.marker is None and (check := _package(each))]
    yield from wrong or [Check("ok", "packages", f"{sum(each.marker is None for each in needed)} in the tested ranges")]


def _package(needed: Requirement) -> Check | None:
    remedy = f"pip install '{needed}'"
    try:
        version = importlib.metadata.version(needed.name)
    except importlib.metadata.PackageNotFoundError:
        return Check("fail", needed.name, "not installed", remedy)
    if needed.specifier.contains(version, prereleases=True):
        return None
    return Check("fail", needed.name, f"{version}, tested with {needed.specifier}", remedy)


def _threads() -> Check:
    return Check("ok", "threads", f"{usable_cores()} cores for trials; each trial takes resources.cpu of them")


def _open_files() -> Check:
    found = f"a process may open {open_files():g}"
    if open_files() < FEWEST_OPEN_FILES:
        return Check("fail", "open files", found, f"Ray needs {FEWEST_OPEN_FILES}: ulimit -n 65536, or limits.conf")
    return Check("ok", "open files", found)


def _gpus() -> Iterator[Check]:
    """The GPUs that torch finds, in a subprocess: torch would keep memory on each device in this process."""
    done = _run_python(COUNT_GPUS)
    if done.returncode:
        yield Check("fail", "torch", _last_line(done.stderr), "install torch again for this machine")
        return
    build, *found = done.stdout.strip().splitlines()
    if found:
        yield Check("ok", "GPUs", f"{', '.join(found)}, {build}; shares: resources.gpu 1, 0.5, 0.25, ...")
        yield _compiler()
    elif shutil.which("nvidia-smi"):
        yield Check("warn", "GPUs", f"the driver is installed but {build} finds none", "install torch's CUDA build")
    else:
        yield Check("ok", "GPUs", f"none, {build}; trials run on cores")


def _compiler() -> Check:
    """What `resources.compile` needs on a GPU: Triton for the kernels, a C compiler for their launchers."""
    triton = importlib.util.find_spec("triton")
    c = next((name for name in (os.environ.get("CC"), "gcc", "clang") if name and shutil.which(name)), None)
    if triton and c:
        return Check("ok", "compile", f"Triton and {c}")
    lacking = " and ".join(name for name, found in (("Triton", triton), ("a C compiler", c)) if not found)
    return Check("warn", "compile", f"{lacking} not found", "install it, or launch with --set resources.compile=false")


def _writable(results: str) -> Check:
    name = f"{uuid.uuid4().hex}.txt"
    try:
        folder = Folder.at(results)
        folder.write(name, b"tinyscale doctor")
        whole = folder.read(name) == b"tinyscale doctor"
        folder.delete(name)
    except (ResultsError, OSError) as error:
        return Check("fail", "results", f"{results} cannot be written ({error})", "choose another --results")
    if not whole:
        return Check("fail", "results", f"{results} returns other bytes than were written", "choose another --results")
    return Check("ok", "results", f"{results} can be written")


def _disk(results: str) -> Check:
    """Free bytes on the disk of the results folder; for an object store, of the current folder."""
    folder = Path.cwd() if "://" in results else Path(results).expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free at {folder}"
    if free < LEAST_FREE_BYTES:
        return Check("warn", "disk", found, f"free some: a launch needs about {LEAST_FREE_BYTES / 1e9:.0f} GB")
    return Check("ok", "disk", found)


def _ray() -> Check:
    """Whether Ray starts and stops here, in a subprocess."""
    try:
        done = _run_python(START_RAY)
    except subprocess.TimeoutExpired:
        return Check("fail", "Ray", f"did not start in {RAY_SECONDS} s", "see /tmp/ray/session_latest/logs")
    if done.returncode:
        return Check("fail", "Ray", _last_line(done.stderr), "see /tmp/ray/session_latest/logs")
    return Check("ok", "Ray", f"starts with {_last_line(done.stdout)}")


def _run_python(program: str) -> subprocess.CompletedProcess[str]:
    python, path = own_python()
    command, environment = [*python, "-c", program], os.environ | path
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=RAY_SECONDS, check=False)


def _last_line(text: str) -> str:
    return next(reversed(text.strip().splitlines()), "no message")
