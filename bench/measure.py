"""Check, then time, all providers of one case and pass side by side."""

import gc
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from bench.any_case import AnyCase
from bench.cases import FORWARD, FORWARD_BACKWARD
from bench.graphs import GraphCall, calls_in_graph
from bench.operations import Call, OperationCall, prepare
from bench.oracle import WrongResultError
from bench.providers import DEVICE_COPY, Provider, skip_reason
from bench.results import (
    DEVICE,
    FAILED,
    GRAPH,
    MEASURED,
    MEBIBYTE,
    SKIPPED,
    WALL,
    YARDSTICK,
    Row,
    stamped,
    with_durations,
)
from bench.timing import (
    OtherLoad,
    cache_bytes,
    clock_of,
    free_memory,
    kept_bytes,
    peak_bytes,
    rotation_length,
    synchronize,
    time_in_turns,
)
from bench.workloads import SUBJECTS, Checker, workload_of

Progress = Callable[[str], object]


class DeviceLostError(Exception):
    """The device's context is broken: nothing more can be run in this process."""


@dataclass
class Measurement:
    """What one provider did: its row, and the duration of each of its calls in seconds."""

    row: Row
    durations: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Group:
    """What is compared: one case and pass, by one clock."""

    case: AnyCase
    pass_name: str  # one of `cases.PASSES`
    device: torch.device
    clock: str  # one of `results.CLOCKS`


def measure_group(
    providers: list[Provider],
    case: AnyCase,
    pass_name: str,
    device: torch.device,
    seconds: float,
    in_graph: bool = False,
    progress: Progress = lambda provider: None,
) -> dict[str, Measurement]:
    """Check every provider that can run, then time them in turns.

    Args:
        providers: who is compared.
        case: the problem.
        pass_name: one of `cases.PASSES`.
        device: where to run.
        seconds: how long to time each provider; 0 checks and times nothing.
        in_graph: whether to time replays of CUDA graphs instead of calls.
        progress: is told the name of a provider before its first call, "" before all are timed.

    Returns:
        For each provider its measurement; skipped and wrong ones say why.

    Raises:
        DeviceLostError: a kernel broke the device's context.
    """
    # Without a reset an earlier case's sizes make later code generation choose dynamic shapes.
    torch._dynamo.reset()
    gc.collect()
    if device.type != "cpu":
        torch.cuda.empty_cache()  # blocks cut for the last case's sizes
    free = free_memory(device)
    group = Group(
        case, pass_name, device, WALL if device.type == "cpu" else GRAPH if in_graph else DEVICE
    )
    measurements, runnable = {}, []
    for provider in providers:
        reason = skip_reason(provider, case, pass_name, device, free)
        if in_graph and device.type == "cpu":
            reason = "graphs need a GPU"
        row = Row(
            case,
            pass_name,
            group.clock,
            provider.name,
            provider.role,
            MEASURED if reason is None else SKIPPED,
            reason or "",
        )
        measurements[provider.name] = Measurement(stamped(row))
        if reason is None:
            runnable.append(provider)
    if runnable:
        _measure_runnable(runnable, measurements, group, seconds, free, progress)
    return _with_fractions(measurements)


def _measure_runnable(
    providers: list[Provider],
    measurements: dict[str, Measurement],
    group: Group,
    seconds: float,
    free: int,
    progress: Progress,
) -> None:
    """Fill in the measurements of providers that can run."""
    case, device = group.case, group.device
    workload = workload_of(case)
    first = workload.make_tensors(case, device)
    checker = workload.make_checker(case, first, group.pass_name, free)
    set_bytes = case.argument_bytes + case.result_bytes
    # Clones are right for all: the check of the first set holds for each.
    sets = [first] + [
        type(first)(*(tensor.clone() for tensor in first))
        for _ in range(rotation_length(set_bytes, cache_bytes(device), free) - 1)
    ]
    rotations = {}
    for provider in providers:
        measurement = measurements[provider.name]
        progress(provider.name)
        try:
            calls = provider.make_calls(case, group.pass_name, sets)
            measurement.row = _checked(provider, calls[0], measurement.row, checker, device)
            if group.clock == GRAPH:
                calls = _captured(calls, case, group.pass_name)
        except Exception as error:
            if _device_is_lost(error):
                raise DeviceLostError(_first_line(error)) from error
            # One that breaks (out of memory, a code generator's failure) must not hide the others.
            reason = str(error) if isinstance(error, WrongResultError) else _first_line(error)
            measurement.row = replace(measurement.row, status=FAILED, reason=reason)
            continue
        rotations[provider.name] = calls
    del checker
    if seconds == 0:
        return
    progress("")
    load = OtherLoad()
    timed = time_in_turns(rotations, clock_of(device), seconds)
    other_load = load.cores()
    for name, durations in timed.items():
        measurement = measurements[name]
        measurement.durations = durations
        row = replace(measurement.row, other_load=other_load)
        measurement.row = with_durations(row, durations)


def _captured(calls: list[Call], case: AnyCase, pass_name: str) -> list[Call]:
    results = case.result_bytes + (0 if pass_name == FORWARD else case.argument_bytes)
    return [GraphCall(calls, calls_in_graph(len(calls), results))]


def _device_is_lost(error: Exception) -> bool:
    """Whether a GPU's context is broken, which every later call in this process would report."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return "CUDA error" in str(error) or "Triton Error [CUDA]: an illegal" in str(error)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _checked(
    provider: Provider,
    call: Call,
    row: Row,
    checker: Checker,
    device: torch.device,
) -> Row:
    """Make the first calls: one that is checked, one that is metered."""
    with warnings.catch_warnings():
        if provider.name not in SUBJECTS:
            # What other people's code generators deprecate is not this benchmark's failure.
            warnings.simplefilter("ignore")
        prepare(call)
        start = time.perf_counter()
        outputs = call()
        synchronize(device)
        first_call = time.perf_counter() - start
        error = None
        if provider.role != YARDSTICK:
            error = checker(provider, outputs)
        saved = None
        if row.pass_name == FORWARD_BACKWARD and isinstance(call, OperationCall):
            saved = (kept_bytes(call.forward, device) - row.case.result_bytes) / MEBIBYTE
        del outputs
        prepare(call)
        peak = peak_bytes(call, device) / MEBIBYTE
    return replace(
        row,
        first_call_milliseconds=1e3 * first_call,
        error=error,
        saved_mebibytes=saved,
        peak_mebibytes=peak,
    )


def _with_fractions(measurements: dict[str, Measurement]) -> dict[str, Measurement]:
    """Return the measurements, each median as a share of the copy's in the same turns."""
    copy = measurements.get(DEVICE_COPY)
    if copy is None or copy.row.milliseconds is None:
        return measurements
    for measurement in measurements.values():
        milliseconds = measurement.row.milliseconds
        if milliseconds is not None:
            fraction = copy.row.milliseconds / milliseconds
            measurement.row = replace(measurement.row, fraction_of_copy=fraction)
    return measurements
