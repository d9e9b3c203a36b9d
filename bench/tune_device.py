"""The part of a sweep that needs a GPU: compiling, checking and timing candidates."""

import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.cases import Tensors, make_tensors
from bench.timing import (
    cache_bytes,
    device_time,
    free_memory,
    rotation_length,
    time_in_turns,
)
from bench.tune import Choice, choose, say
from bench.tune_problems import OUTPUTS, Problem, outputs_of, planned

# A candidate's result may differ from the heuristic's by the order of sums, in units of roundoff.
MOST_ROUNDINGS = 8


def launched(launch: Any) -> Any:
    """Launch and return the compiled kernel, which knows its registers and spills."""
    options = launch.options(nvidia=torch.version.hip is None)
    return launch.kernel[(launch.programs,)](**launch.arguments, **launch.constants, **options)


def results_of(launch: Any) -> dict[str, Tensor]:
    """Return what a launch writes; partial sums added up, since their number is a parameter."""
    named = {name: launch.arguments[name] for name in OUTPUTS if name in launch.arguments}
    return {
        name: tensor.double().sum(0) if name == "partial_ptr" else tensor.double()
        for name, tensor in named.items()
    }


def agree(actual: dict[str, Tensor], expected: dict[str, Tensor], unit: float) -> bool:
    """Whether results agree to a few units of roundoff of their norms."""
    for name, tensor in expected.items():
        error = torch.linalg.vector_norm(actual[name] - tensor)
        if not error <= MOST_ROUNDINGS * unit * torch.linalg.vector_norm(tensor):
            return False
    return True


def spill_of(problem: Problem, forced: Any) -> str | None:
    """Compile and launch a candidate, at the problem's width and at one that is no multiple of 16.

    Runs in a process of its own: what it compiles is on disk for the process that times.

    Args:
        problem: the kernel and its call.
        forced: launch parameters.

    Returns:
        Why the candidate cannot be used, or None.
    """
    device = torch.device("cuda")
    for width in (problem.case.width, problem.case.width - 3):
        case = replace(problem.case, width=width)
        try:
            launch, _ = planned(replace(problem, case=case), make_tensors(case, device), forced)
            spills = getattr(launched(launch), "n_spills", 0)
            torch.cuda.synchronize()
        except Exception as error:  # too many registers or too much shared memory, most often
            return f"{type(error).__name__}: {error}"[:200]
        if spills:
            return f"spills {spills} at width {width}"
    return None


class Sweeper:
    """Sweeps problems on a device, with processes that compile beside each other."""

    def __init__(self, device: torch.device, seconds: float, workers: int):
        self._device = device
        self._seconds = seconds
        self._workers = workers
        self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(max(1, self._workers), mp_context=context)

    def __enter__(self) -> "Sweeper":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def sweep(self, problem: Problem) -> Choice:
        """Return the choice for a problem."""
        device, case = self._device, problem.case
        first = make_tensors(case, device)
        size = case.argument_bytes + case.result_bytes
        count = rotation_length(2 * size, cache_bytes(device), free_memory(device))
        sets = [first] + [
            Tensors(*(tensor.clone() for tensor in first)) for _ in range(min(count, 8) - 1)
        ]
        # Each set has one memory for results, in which all candidates write.
        outputs = [outputs_of(problem, tensors) for tensors in sets]
        base, recorder = planned(problem, first, None, outputs[0])
        launched(base)
        expected = results_of(base)
        unit = torch.finfo(first.cotangent.dtype).eps

        def fitting(candidates: list[Any]) -> list[Any]:
            reasons = list(self._pool.map(partial(spill_of, problem), candidates))
            if any(reason is not None and "CUDA error" in reason for reason in reasons):
                # A process whose device's context is broken refuses what it gets from then on.
                say(f"{problem.name}: a candidate broke the device; its neighbours are left out")
                self._pool.shutdown(cancel_futures=True)
                self._pool = self._new_pool()
            found = []
            for candidate, reason in zip(candidates, reasons, strict=True):
                if reason is not None:
                    continue
                for output in outputs[0]:
                    output.fill_(float("nan"))
                launch, _ = planned(problem, first, candidate, outputs[0])
                launched(launch)
                if agree(results_of(launch), expected, unit):
                    found.append(candidate)
            return found

        def timed(candidates: list[Any]) -> list[float]:
            calls = {
                str(number): [
                    partial(_launch_once, planned(problem, tensors, candidate, memory)[0])
                    for tensors, memory in zip(sets, outputs, strict=True)
                ]
                for number, candidate in enumerate(candidates)
            }
            durations = time_in_turns(calls, device_time, self._seconds)
            return [1e3 * statistics.median(durations[name]) for name in calls]

        return choose(recorder.heuristic, problem.kernel, fitting, timed)


def _launch_once(launch: Any) -> tuple[Tensor, ...]:
    launched(launch)
    return ()
