"""Clocks, memory meters, and the loop that times several providers in turns."""

import gc
import math
import os
import statistics
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from bench.graphs import GraphCall
from bench.operations import Call, prepare

# A provider's time is spread over this many turns, so that a slow spell of the machine meets all.
TURNS = 7
MOST_CALLS_PER_TURN = 50
# Sets of inputs: where these many do not exceed the cache, memory is not what limits a call.
MOST_SETS = 64
# Keeps the device busy while the host prepares the call, so that an event pair encloses device work
# and no launch latency. About a millisecond on current GPUs.
BUSY_CYCLES = 2_000_000

Clock = Callable[[Call], float]


def wall_time(call: Call) -> float:
    """Return the seconds of wall clock that a call takes; the results are freed after."""
    prepare(call)
    start = time.perf_counter()
    results = call()
    elapsed = time.perf_counter() - start
    del results
    return elapsed


def device_time(call: Call) -> float:
    """Return the seconds between device events recorded just before and after a call.

    Of a graph of several calls: the seconds of one of them.
    """
    prepare(call)
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(BUSY_CYCLES)
    start.record()
    results = call()
    end.record()
    end.synchronize()
    del results
    return start.elapsed_time(end) / 1e3 / _calls_in(call)


def _calls_in(call: Call) -> int:
    """Return how many calls one call makes: those of a graph."""
    return call.calls if isinstance(call, GraphCall) else 1


def clock_of(device: torch.device) -> Clock:
    """Return the clock for a device: wall clock on a CPU, device events on a GPU."""
    return wall_time if device.type == "cpu" else device_time


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type != "cpu":
        torch.cuda.synchronize(device)


def time_in_turns(
    calls: dict[str, list[Call]], clock: Clock, seconds: float
) -> dict[str, list[float]]:
    """Time several providers in turns, each on its rotating inputs.

    Args:
        calls: for each provider its calls, one for each set of inputs; used one after the other.
        clock: measures one call.
        seconds: time for each provider in all; it makes one call in each turn even if that takes
            longer.

    Returns:
        For each provider the seconds of its calls, at least `TURNS` of them.
    """
    repeats = {}
    for name, rotation in calls.items():
        # The first call of all has been made; these fill allocators and bring the inputs in.
        estimate = min(clock(rotation[index % len(rotation)]) for index in range(2))
        per_turn = int(seconds / TURNS / max(estimate * _calls_in(rotation[0]), 1e-6))
        repeats[name] = min(max(per_turn, 1), MOST_CALLS_PER_TURN)
    # What a backward needs is made again right after each call, so that it is as far back in the
    # cache as the rest of its set when its turn comes.
    for rotation in calls.values():
        for call in rotation:
            prepare(call)
    durations: dict[str, list[float]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(TURNS):
            for name, rotation in calls.items():
                for _ in range(repeats[name]):
                    turn = len(durations[name]) % len(rotation)
                    durations[name].append(clock(rotation[turn]))
                    prepare(rotation[turn])
    finally:
        if collecting:
            gc.enable()
    return durations


def copy_rate(device: torch.device) -> float:
    """Return the GB/s of a copy of a buffer that no cache holds, reads plus writes."""
    count = 2**30 if device.type != "cpu" else max(2**26, 2 * cache_bytes(device))
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)

    def copy() -> tuple[torch.Tensor, ...]:
        return (target.copy_(source),)

    clock = clock_of(device)
    return 2 * count / statistics.median(clock(copy) for _ in range(12)) / 1e9


class OtherLoad:
    """How many cores everything but this process kept busy since it was made; Linux only."""

    def __init__(self):
        self._start = self._readings()

    @staticmethod
    def _readings() -> tuple[float, float] | None:
        """Return the wall clock and the processor seconds that others took so far."""
        statistics = Path("/proc/stat")
        if not statistics.exists():
            return None
        fields = [int(field) for field in statistics.read_text().split("\n")[0].split()[1:9]]
        # user, nice, system, idle, iowait, irq, softirq, steal: all but idle and iowait.
        busy = (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy - time.process_time()

    def cores(self) -> float | None:
        """Return the mean since the start, or None where the system does not tell."""
        end = self._readings()
        if self._start is None or end is None:
            return None
        return max(0.0, (end[1] - self._start[1]) / (end[0] - self._start[0]))


def rotation_length(set_bytes: int, cache_bytes: int, free_bytes: int) -> int:
    """Return how many sets of inputs exceed twice the cache, so that none is found there again.

    Args:
        set_bytes: bytes of one set.
        cache_bytes: size of the cache that must not help.
        free_bytes: free memory, a quarter of which the sets may take.

    Returns:
        At least 1 (a single set that fills a quarter of the memory exceeds any cache).
    """
    wanted = min(max(2, 2 * cache_bytes // set_bytes + 1), MOST_SETS)
    return max(1, min(wanted, free_bytes // 4 // set_bytes))


def cache_bytes(device: torch.device) -> int:
    """Return the size of the device's last cache before memory (a GPU's L2), 32 MiB if unknown."""
    if device.type != "cpu":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    kibibytes = [int(size.read_text().strip().removesuffix("K")) for size in sizes]
    return max(kibibytes, default=32 * 1024) * 1024


def free_memory(device: torch.device) -> int:
    """Return the bytes that can still be allocated on the device.

    On Linux the kernel's estimate of available memory; on other systems all physical memory.
    """
    if device.type != "cpu":
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reusable
    return int(min(_available_memory(), _control_group_memory()))


def _available_memory() -> int:
    information = Path("/proc/meminfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _control_group_memory() -> float:
    """Return what a container's limit leaves, infinity without one."""
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if not limit.exists() or limit.read_text().strip() == "max":
        return math.inf
    return int(limit.read_text()) - int(used.read_text())


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that tensors made during the call held at once, its result included."""
    if device.type == "cpu":
        return max(_allocated_on_cpu(function), default=0)
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    results = function()
    synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    del results
    return peak


def kept_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Return the bytes that are still held after the call, by its result and its graph."""
    if device.type == "cpu":
        allocated = _allocated_on_cpu(function)
        return allocated[-1] if allocated else 0
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    results = function()
    kept = torch.cuda.memory_allocated(device) - before
    del results
    return kept


def _allocated_on_cpu(function: Callable[[], object]) -> list[int]:
    """Return the bytes held after each allocation and each release during the call.

    The profiler hears of every allocation from PyTorch's own allocator, inside opaque operators and
    compiled code too.
    """
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        results = function()
    del results
    recorded = profile.profiler
    if recorded is None or recorded.kineto_results is None:
        raise RuntimeError("the profiler recorded nothing; this build of torch lacks Kineto")
    # Any: the type stubs lack what a memory event has.
    events: list[Any] = list(recorded.kineto_results.events())
    events = sorted(
        (event for event in events if event.name() == "[memory]"),
        key=lambda event: event.start_ns(),
    )
    return list(accumulate(event.nbytes() for event in events))
