"""The device of a trial, and the settings of a process that its trials share: threads, allocator, GPU memory."""

from __future__ import annotations

import ctypes
import math
import os
import sys

import torch

from tinyscale.errors import ConfigError
from tinyscale.machine import cache_folder
from tinyscale.spec.config import Resources
from tinyscale.spec.costs import share_bytes

MMAP_MAX, TRIM_THRESHOLD, TOP_PAD = -4, -1, -2  # from glibc's malloc.h


def prepare_process(resources: Resources) -> torch.device:
    """Set the threads and the GPU memory of this process for a trial, so that no setting of an earlier trial remains.

    ConfigError if the trial needs a GPU and there is none.
    """
    keep_freed_memory()
    torch.set_num_threads(resources.cpu)
    if resources.compile:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
        torch._dynamo.reset()  # earlier trials would count as recompilations, of which torch allows only a few
        if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:  # the default is one process per core of the machine
            torch._inductor.config.compile_threads = resources.cpu
    device = choose_device(resources)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(device_bytes(resources, device) / total, device)
    return device


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step; by default it returns large blocks to the system every time."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 64 << 20)):
            libc.mallopt(option, value)


def choose_device(resources: Resources) -> torch.device:
    """The CPU, or the trial's GPU: a CUDA device (torch presents AMD's ROCm as CUDA), else Apple's.

    Apple's GPUs are untested: they train single trials in fp32 or bf16, without a memory limit and never recorded.
    """
    if not resources.gpu:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    raise ConfigError(f"resources.gpu = {resources.gpu:g}, but torch finds no GPU here: set gpu to 0")


def device_bytes(resources: Resources, device: torch.device) -> float:
    """Bytes of the device's memory that the trial may use; infinite on a CPU."""
    if device.type == "cpu":
        return math.inf
    if device.type == "mps":
        return float(torch.mps.recommended_max_memory())
    total = torch.cuda.get_device_properties(device).total_memory
    return share_bytes(resources.gpu, total) if resources.gpu < 1 else total


def peak_memory(device: torch.device) -> int | None:
    """Peak bytes of the trial's tensors on its GPU; on Apple's GPUs the current bytes of the process.

    None on a CPU: the peak of a process includes that of the trials before, whose freed memory it also keeps.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return None
