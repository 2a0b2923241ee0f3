"""This machine: its cores, its GPUs and their memory, and the cache folder for downloaded text and tokens."""

from __future__ import annotations

import functools
import math
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FEWEST_OPEN_FILES = 256  # with which Ray starts; it asks for thousands


def open_files() -> float:
    """How many files a process here may open at most, once it raises its own limit as far as it may."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return math.inf if most == resource.RLIM_INFINITY else most


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Capacity:
    """What trials may use of a machine or a cluster.

    cpus: cores. gpu_bytes: memory of the smallest GPU, None if unknown. grows: nodes are added while trials wait.
    """

    cpus: float
    gpus: float
    gpu_bytes: float | None = None
    grows: bool = False


def this_machine() -> Capacity:
    """The capacity that this process may use here; neither Ray nor torch is imported."""
    return Capacity(usable_cores(), _gpus(), gpu_bytes())


def _gpus() -> int:
    """GPUs that this process may use."""
    listed = sum(line.startswith("GPU ") for line in _nvidia_smi("-L"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not listed:
        return listed
    return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])


def gpu_bytes() -> float | None:
    """Bytes of memory of the smallest GPU here; None if there is no GPU, or if it shares the machine's memory."""
    if not _gpus():
        return None
    mebibytes = _nvidia_smi("--query-gpu=memory.total", "--format=csv,noheader,nounits")
    try:
        return min((float(each) * 2**20 for each in mebibytes), default=None)
    except ValueError:  # nvidia-smi printed [N/A]
        return None


def driver_version() -> str | None:
    """Version of the NVIDIA driver; None if there is no NVIDIA GPU."""
    return next(iter(_nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader")), None)


@functools.cache
def _nvidia_smi(*arguments: str) -> tuple[str, ...]:
    """The lines that nvidia-smi prints; none if it is not installed. Cached, because it can take seconds."""
    if shutil.which("nvidia-smi") is None:
        return ()
    done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, check=False)
    return tuple(done.stdout.splitlines())


def cache_folder() -> Path:
    """The cache folder: $TINYSCALE_CACHE, else $XDG_CACHE_HOME/tinyscale, else ~/.cache/tinyscale."""
    if chosen := os.environ.get("TINYSCALE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tinyscale"


def own_python() -> tuple[list[str], dict[str, str]]:
    """The command and the variables of a Python that has our packages and runs no file of the working directory."""
    here, package = Path.cwd(), Path(__file__).parents[1]
    found = [entry for entry in sys.path if entry and Path(entry).absolute() != here]
    return [sys.executable, "-P"], {"PYTHONPATH": os.pathsep.join([*found, str(package)])}
