"""Check, then time, all providers of one case and pass side by side."""

import gc
import statistics
import time
import warnings
from dataclasses import dataclass, field, replace

import torch

from bench.cases import FORWARD, Case, Tensors, make_tensors, minimal_bytes
from bench.operations import Call, OperationCall
from bench.oracle import Tile, WrongResultError, check, oracle_tiles
from bench.providers import DEVICE_COPY, KPNOPS, Provider, skip_reason
from bench.results import FAILED, MEASURED, SKIPPED, Row
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


@dataclass
class Measurement:
    """What one provider did: its row, and the duration of each of its calls in seconds."""

    row: Row
    durations: list[float] = field(default_factory=list)


def measure_group(
    providers: list[Provider],
    case: Case,
    pass_name: str,
    device: torch.device,
    seconds: float,
) -> dict[str, Measurement]:
    """Check every provider that can run, then time them in turns.

    Args:
        providers: who is compared.
        case: the problem.
        pass_name: one of `cases.PASSES`.
        device: where to run.
        seconds: how long to time each provider; 0 checks and times nothing.

    Returns:
        For each provider its measurement; skipped and wrong ones say why.
    """
    # Without a reset an earlier case's sizes make later code generation choose dynamic shapes.
    torch._dynamo.reset()
    gc.collect()
    if device.type != "cpu":
        torch.cuda.empty_cache()  # blocks cut for the last case's sizes
    free = free_memory(device)
    measurements, runnable = {}, []
    for provider in providers:
        reason = skip_reason(provider, case, pass_name, device, free)
        row = Row(
            case=case,
            pass_name=pass_name,
            provider=provider.name,
            yardstick=provider.yardstick,
            status=MEASURED if reason is None else SKIPPED,
            reason=reason or "",
            minimal_bytes=minimal_bytes(case, pass_name),
        )
        measurements[provider.name] = Measurement(row)
        if reason is None:
            runnable.append(provider)
    if runnable:
        _measure_runnable(runnable, measurements, case, pass_name, device, seconds, free)
    return _with_ratios(measurements)


def _measure_runnable(
    providers: list[Provider],
    measurements: dict[str, Measurement],
    case: Case,
    pass_name: str,
    device: torch.device,
    seconds: float,
    free: int,
) -> None:
    """Fill in the measurements of providers that can run."""
    first = make_tensors(case, device)
    tiles = _kept_tiles(case, first, pass_name, free)
    set_bytes = case.argument_bytes + case.result_bytes
    # Clones are right for all: the check of the first set holds for each.
    sets = [first] + [
        Tensors(*(tensor.clone() for tensor in first))
        for _ in range(rotation_length(set_bytes, cache_bytes(device), free) - 1)
    ]
    rotations = {}
    for provider in providers:
        measurement = measurements[provider.name]
        try:
            calls = provider.make_calls(case, pass_name, sets)
            measurement.row = _checked(provider, calls[0], measurement.row, tiles, first, device)
        except Exception as error:
            # One that breaks (out of memory, a code generator's failure) must not hide the others.
            reason = str(error) if isinstance(error, WrongResultError) else _first_line(error)
            measurement.row = replace(measurement.row, status=FAILED, reason=reason)
            continue
        rotations[provider.name] = calls
    del tiles
    if seconds == 0:
        return
    load = OtherLoad()
    timed = time_in_turns(rotations, clock_of(device), seconds)
    other_load = load.cores()
    for name, durations in timed.items():
        measurement = measurements[name]
        measurement.durations = durations
        lower, median, upper = statistics.quantiles(durations, n=4, method="inclusive")
        measurement.row = replace(
            measurement.row,
            rounds=len(durations),
            median=median,
            quartiles=(lower, upper),
            bytes_per_second=measurement.row.minimal_bytes / median,
            other_load=other_load,
        )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _kept_tiles(case: Case, tensors: Tensors, pass_name: str, free: int) -> list[Tile] | None:
    """Return the oracle's tiles if they fit into an eighth of the free memory, else None."""
    numbers = case.pixels * case.channels
    if pass_name != FORWARD:
        numbers += sum(argument.numel() for argument in tensors.arguments)
    if 2 * 8 * numbers > free // 8:  # float64, exact values and magnitudes
        return None
    return list(oracle_tiles(case, tensors, pass_name))


def _checked(
    provider: Provider,
    call: Call,
    row: Row,
    tiles: list[Tile] | None,
    tensors: Tensors,
    device: torch.device,
) -> Row:
    """Make the first calls: one that is checked, one that is metered."""
    with warnings.catch_warnings():
        if provider.name != KPNOPS:
            # What other people's code generators deprecate is not this benchmark's failure.
            warnings.simplefilter("ignore")
        start = time.perf_counter()
        outputs = call()
        synchronize(device)
        first_call = time.perf_counter() - start
        error = None
        if not provider.yardstick:
            source = tiles or oracle_tiles(row.case, tensors, row.pass_name)
            error = check(row.case, outputs, source, provider.working_dtype(row.case))
        saved = None
        if row.pass_name != FORWARD and isinstance(call, OperationCall):
            saved = kept_bytes(call.forward, device) - row.case.result_bytes
        del outputs
        peak = peak_bytes(call, device)
    return replace(row, first_call=first_call, error=error, saved_bytes=saved, peak_bytes=peak)


def _with_ratios(measurements: dict[str, Measurement]) -> dict[str, Measurement]:
    """Return the measurements, each median compared with kpnops's, the best other and a copy's."""
    medians = {
        name: measurement.row.median
        for name, measurement in measurements.items()
        if measurement.row.median is not None
    }
    alternatives = [
        median
        for name, median in medians.items()
        if name != KPNOPS and not measurements[name].row.yardstick
    ]
    references = {
        "time_over_kpnops": medians.get(KPNOPS),
        "time_over_best_alternative": min(alternatives, default=None),
    }
    copy = medians.get(DEVICE_COPY)
    for name, median in medians.items():
        ratios = {
            field_name: median / reference
            for field_name, reference in references.items()
            if reference is not None
        }
        if copy is not None:
            ratios["fraction_of_copy"] = copy / median
        measurements[name].row = replace(measurements[name].row, **ratios)
    return measurements
