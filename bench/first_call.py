"""The first call of a new problem in a fresh process, with and without compiled kernels on disk.

    python -m bench.first_call CASE.json     in a process of its own: prints what its calls took

Imports, the device's context and the loading of Triton's driver are done before.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch

from bench.cases import BACKWARD, FORWARD, Case, make_tensors
from bench.environment import ROOT
from bench.matrix import Task
from bench.operations import OperationCall, kpnops_operation
from bench.providers import KPNOPS
from bench.results import (
    COLD,
    FAILED,
    MEASURED,
    OWN,
    SKIPPED,
    WARM,
    Row,
    stamped,
    with_durations,
)
from bench.timing import synchronize

LIMIT_SECONDS = 150.0


def first_call_rows(task: Task, device: torch.device) -> list[Row]:
    """Measure the first forward and the first backward, cold, then warm.

    Args:
        task: names the case.
        device: where it runs.

    Returns:
        Rows of the passes `FORWARD` and `BACKWARD`: one of kpnops for each clock, and cold one for
        each kernel, called by the kernel's name.
    """
    if device.type == "cpu":
        reason = "nothing is compiled on a CPU"
        return [stamped(Row(task.case, FORWARD, COLD, KPNOPS, OWN, SKIPPED, reason))]
    rows, case = [], task.case
    assert isinstance(case, Case)  # the matrix asks this of filters alone
    with tempfile.TemporaryDirectory() as folder:
        for clock in (COLD, WARM):
            try:
                took = _in_fresh_process(case, folder)
            except (subprocess.SubprocessError, OSError, ValueError) as error:
                reason = f"{type(error).__name__}: {error}"[:300]
                failed = Row(case, FORWARD, clock, KPNOPS, OWN, FAILED, reason)
                return [*rows, stamped(failed)]
            rows += rows_of(case, clock, took)
    return rows


def rows_of(case: Case, clock: str, took: dict[str, dict[str, float]]) -> list[Row]:
    """Return the rows of what one process printed.

    Args:
        case: the problem.
        clock: `COLD` or `WARM`.
        took: for each pass the seconds of the call, called kpnops, and of each kernel.

    Returns:
        The rows; of single kernels when cold only.
    """
    rows = []
    for pass_name, seconds in took.items():
        for provider, duration in seconds.items():
            if provider == KPNOPS or clock == COLD:
                row = Row(case, pass_name, clock, provider, OWN, MEASURED)
                rows.append(stamped(with_durations(row, [duration])))
    return rows


def _in_fresh_process(case: Case, cache: str) -> dict[str, dict[str, float]]:
    environment = os.environ | {"TRITON_CACHE_DIR": cache}
    command = [sys.executable, "-m", "bench.first_call", json.dumps(dataclasses.asdict(case))]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    if run.returncode != 0:
        last = run.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ValueError(f"the process ended with {run.returncode}: {last[0]}")
    return json.loads(run.stdout.strip().splitlines()[-1])


@contextlib.contextmanager
def _timed_launches(device: torch.device) -> Iterator[dict[str, float]]:
    """Collect the seconds of each kernel's launch, waiting for the device after every one."""
    from triton.runtime.jit import JITFunction

    original: Any = JITFunction.run
    seconds: dict[str, float] = {}

    def timed(kernel: Any, *arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        compiled = original(kernel, *arguments, **options)
        synchronize(device)
        name = kernel.fn.__name__
        seconds[name] = max(seconds.get(name, 0.0), time.perf_counter() - start)
        return compiled

    kernels: Any = JITFunction
    kernels.run = timed
    try:
        yield seconds
    finally:
        kernels.run = original


def _child(case: Case, device: torch.device) -> dict[str, dict[str, float]]:
    from bench import trivial_kernel

    tensors = make_tensors(case, device)
    kernel: Any = trivial_kernel._trivial_kernel
    kernel[(1,)](torch.empty(64, dtype=torch.int32, device=device), BLOCK=64)
    _import_kernels(device)
    call = OperationCall(kpnops_operation(case), BACKWARD, tensors)
    took = {}
    for pass_name in (FORWARD, BACKWARD):
        synchronize(device)
        with _timed_launches(device) as seconds:
            start = time.perf_counter()
            call.prepare() if pass_name == FORWARD else call()
            synchronize(device)
            elapsed = time.perf_counter() - start
        took[pass_name] = {KPNOPS: elapsed} | seconds
    return took


def _import_kernels(device: torch.device) -> None:
    """Import what a call imports late, without launching a kernel of it: an empty batch does."""
    import kpnops._decoupled_filter.triton_backend

    empty = make_tensors(Case(1, 1, 1, 1, 1), device)
    arguments = [argument[:0].requires_grad_() for argument in empty.arguments]
    kpnops.decoupled_filter(*arguments, kernel_size=1).sum().backward()


if __name__ == "__main__":
    described = Case(**json.loads(sys.argv[1]))
    print(json.dumps(_child(described, torch.device("cuda"))))
