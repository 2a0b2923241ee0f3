"""This machine: its cores, its GPUs and their memory, and where it keeps downloaded text and tokens."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def this_machine() -> tuple[int, int]:
    """CPU cores and GPUs of this machine, without starting Ray or importing torch."""
    if shutil.which("nvidia-smi") is None:
        return usable_cores(), 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return usable_cores(), listed.count("GPU ")
    return usable_cores(), len([device for device in visible.split(",") if device.strip() not in ("", "-1")])


def gpu_bytes() -> float | None:
    """Memory of the smallest GPU of this machine; None without one."""
    if not this_machine()[1]:
        return None
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return min((float(mebibytes) * 2**20 for mebibytes in listed), default=None)


def this_room() -> dict[str, Any]:
    """What trials may use of this machine, as `make_plan` takes it."""
    cpus, gpus = this_machine()
    return {"cpus": cpus, "gpus": gpus, "gpu_bytes": gpu_bytes()}


def cache_folder() -> Path:
    """$TINYSCALE_CACHE, else tinyscale in $XDG_CACHE_HOME, else ~/.cache/tinyscale."""
    if chosen := os.environ.get("TINYSCALE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tinyscale"
