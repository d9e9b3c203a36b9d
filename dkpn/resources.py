"""What a call costs: seconds, and the memory that it needs beyond what was in use before it."""

import ctypes
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")

_STATUS = Path("/proc/self/status")
_MEMORY = Path("/proc/meminfo")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): "Reset the peak resident set size"
_KIB_OF_MIB = 1024
_BYTES_OF_MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """What one call has cost.

    Args:
        seconds: wall-clock time.
        memory: MiB by which the process's resident memory rose at most during the call; NaN where
            the platform does not tell (all but Linux with glibc).
        device_memory: MiB by which PyTorch's memory on the current CUDA device rose at most; NaN
            without such a device.
    """

    seconds: float
    memory: float
    device_memory: float


UNKNOWN = Cost(math.nan, math.nan, math.nan)
"""The cost of what did not run here."""


def measured(call: Callable[[], Result]) -> tuple[Result, Cost]:
    """Call a function and measure what it costs.

    Memory that an earlier call has freed is first given back to the system, so that it counts for
    each call that uses it anew; libraries that a first call loads count for that call.

    Args:
        call: function without arguments. Work that it starts on a device has to be done when it
            returns, which a result in host memory makes certain.

    Returns:
        What it returned, and its cost.
    """
    before = _resident_before()
    device = torch.cuda.is_available()
    allocated = torch.cuda.memory_allocated() if device else 0
    if device:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    memory = max(_resident("VmHWM") - before, 0.0) if not math.isnan(before) else math.nan
    device_memory = math.nan
    if device:
        device_memory = (torch.cuda.max_memory_allocated() - allocated) / _BYTES_OF_MIB
    return result, Cost(seconds, memory, device_memory)


def available_memory() -> float:
    """Bytes that programs can have without swapping, as Linux estimates it; NaN elsewhere."""
    try:
        lines = _MEMORY.read_text().splitlines()
    except OSError:
        return math.nan
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024.0 if found else math.nan


def _resident_before() -> float:
    """Start a new peak of resident memory; returns the MiB in use, NaN where that is not told."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text(_RESET_PEAK)
        return _resident("VmRSS")
    except (OSError, AttributeError, TypeError):  # not Linux, no glibc, or not allowed here
        return math.nan


def _resident(field: str) -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / _KIB_OF_MIB
    raise OSError(f"{_STATUS}: no {field}")
