"""What a call costs the host, on tensors so small that the device waits."""

import time

import torch
from torch import Tensor

from bench.cases import Case, make_tensors
from bench.matrix import EMPTY_OP, Task
from bench.operations import Call, OperationCall
from bench.results import FAILED, HOST, MEASURED, YARDSTICK, Row, stamped, with_durations
from bench.timing import synchronize
from bench.workloads import BY_NAME

BATCHES = 40
CALLS_PER_BATCH = 25
WARM_UPS = 50


@torch.library.custom_op("kpnops_bench::empty", mutates_args=())
def _empty(input: Tensor, spatial_filter: Tensor, channel_filter: Tensor) -> Tensor:
    return torch.empty_like(input)


@torch.library.custom_op("kpnops_bench::empty_backward", mutates_args=())
def _empty_backward(
    grad: Tensor, input: Tensor, spatial_filter: Tensor, channel_filter: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = (torch.empty_like(tensor) for tensor in (input, spatial_filter, channel_filter))
    first, second, third = gradients
    return first, second, third


def _save(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


_empty.register_autograd(
    lambda ctx, grad: _empty_backward(grad, *ctx.saved_tensors), setup_context=_save
)


def host_rows(task: Task, device: torch.device) -> list[Row]:
    """Measure the host time of a call.

    Args:
        task: names the case, the pass and the providers.
        device: where the tensors live.

    Returns:
        One row for each provider; the empty operator shows what PyTorch's own part is.
    """
    rows, case = [], task.case
    assert isinstance(case, Case)  # the matrix asks this of filters alone
    for name in task.providers:
        role = YARDSTICK if name == EMPTY_OP else BY_NAME[name].role
        row = Row(case, task.pass_name, HOST, name, role, MEASURED)
        try:
            call = _call(name, case, task.pass_name, device)
            row = with_durations(row, host_durations(call, device))
        except Exception as error:
            row = Row(case, task.pass_name, HOST, name, role, FAILED, repr(error)[:300])
        rows.append(stamped(row))
    return rows


def _call(name: str, case: Case, pass_name: str, device: torch.device) -> Call:
    tensors = make_tensors(case, device)
    if name == EMPTY_OP:
        return OperationCall(_empty, pass_name, tensors)
    return BY_NAME[name].make_calls(case, pass_name, [tensors])[0]


def host_durations(
    call: Call, device: torch.device, batches: int = BATCHES, calls: int = CALLS_PER_BATCH
) -> list[float]:
    """Return the seconds that a call takes the host, the mean of each batch.

    The device is idle when a batch begins, and a batch is short enough not to fill its queue.

    Args:
        call: what is timed.
        device: where it runs.
        batches: how many means to take.
        calls: calls in each.

    Returns:
        One number for each batch.
    """
    for _ in range(WARM_UPS):
        call()
    durations = []
    for _ in range(batches):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        durations.append((time.perf_counter() - start) / calls)
    synchronize(device)
    return durations
