"""Measures tasks in a process of its own, so that a crash costs one row and not the run.

    python -m bench.worker DEVICE SECONDS

reads one JSON request a line and answers with JSON lines: any number of {"progress": provider},
then one reply. What libraries print goes to the error stream.
"""

import dataclasses
import gc
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from bench.any_case import case_from_request, case_to_request
from bench.first_call import first_call_rows
from bench.host import host_rows
from bench.matrix import Task
from bench.measure import DeviceLostError, measure_group
from bench.operations import load_compiler, prepare
from bench.providers import skip_reason
from bench.results import COLD, GRAPH, HOST, Row, make_header, row_to_json
from bench.timing import copy_rate, free_memory, synchronize
from bench.workloads import BY_NAME, workload_of

# The exit status of a process whose device's context is broken.
LOST = 17


def task_to_json(task: Task) -> dict[str, Any]:
    """Return the task as a request holds it."""
    return dataclasses.asdict(task) | {"case": case_to_request(task.case)}


def task_from_json(data: dict[str, Any]) -> Task:
    """Return the task that `task_to_json` wrote."""
    case = case_from_request(data["case"])
    values = data | {"case": case, "providers": tuple(data["providers"])}
    return Task(**values)


def measure_task(
    task: Task, device: torch.device, seconds: float, progress: Callable[[str], object]
) -> list[Row]:
    """Measure one task.

    Args:
        task: what to measure.
        device: where.
        seconds: how long to time each provider.
        progress: is told which provider is next.

    Returns:
        A row for each provider.
    """
    if task.clock == HOST:
        return host_rows(task, device)
    if task.clock == COLD:
        return first_call_rows(task, device)
    providers = [BY_NAME[name] for name in task.providers]
    measured = measure_group(
        providers, task.case, task.pass_name, device, seconds, task.clock == GRAPH, progress
    )
    return [measurement.row for measurement in measured.values()]


def compile_task(task: Task, device: torch.device) -> float | None:
    """Make the first call of the task's only provider, so that its code is on disk.

    Args:
        task: has one provider.
        device: where.

    Returns:
        The seconds of the call, None where the provider cannot run this.
    """
    (name,) = task.providers
    provider = BY_NAME[name]
    torch._dynamo.reset()
    if skip_reason(provider, task.case, task.pass_name, device, free_memory(device) // 2):
        return None
    tensors = workload_of(task.case).make_tensors(task.case, device)
    if "compiled" in name:
        load_compiler(device)
    (call,) = provider.make_calls(task.case, task.pass_name, [tensors])
    start = time.perf_counter()
    prepare(call)
    call()
    synchronize(device)
    return time.perf_counter() - start


def _answer(request: dict[str, Any], device: torch.device, seconds: float, send) -> dict[str, Any]:
    if request["do"] == "header":
        return {"header": dataclasses.asdict(make_header(device, copy_rate(device)))}
    task = task_from_json(request["task"])
    if request["do"] == "compile":
        try:
            return {"seconds": compile_task(task, device)}
        except torch.OutOfMemoryError:
            return {"seconds": None}  # beside others; alone it may fit
        finally:
            gc.collect()
            if device.type != "cpu":
                torch.cuda.empty_cache()
    rows = measure_task(task, device, seconds, lambda provider: send({"progress": provider}))
    return {"rows": [row_to_json(row) for row in rows]}


def main() -> int:
    """Answer requests until the input ends."""
    warnings.simplefilter("ignore")  # what code generators deprecate
    device, seconds = torch.device(sys.argv[1]), float(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    for line in sys.stdin:
        try:
            reply = _answer(json.loads(line), device, seconds, send)
        except DeviceLostError as error:
            send({"lost": str(error)})
            os._exit(LOST)  # an orderly end would wait for the broken device
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
        send(reply)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
