"""The fused head and what is written instead of it, as calls without arguments."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import kpnops
from bench.head_cases import TF32, HeadCase, HeadTensors
from bench.operations import Call, OperationCall, load_compiler

HeadOperation = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@contextmanager
def matrix_precision(precision: str) -> Iterator[None]:
    """Let PyTorch's convolutions and products of float32 numbers use tf32, or not.

    Args:
        precision: `TF32` or `IEEE`.
    """
    settings: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [setting.allow_tf32 for setting in settings]
    try:
        for setting in settings:
            setting.allow_tf32 = precision == TF32
        yield
    finally:
        for setting, allowed in zip(settings, before, strict=True):
            setting.allow_tf32 = allowed


class PreciseCall(OperationCall):
    """A call, all of whose passes run at a precision of PyTorch's own products."""

    def __init__(
        self, operation: HeadOperation, pass_name: str, tensors: HeadTensors, precision: str
    ):
        super().__init__(operation, pass_name, tensors)
        self.precision = precision

    def forward(self) -> Tensor:
        """Return the result, with its graph if the pass has a backward."""
        with matrix_precision(self.precision):
            return super().forward()

    def __call__(self) -> tuple[Tensor, ...]:
        """Return the result and, where the pass has a backward, all gradients."""
        with matrix_precision(self.precision):
            return super().__call__()


def predict_operation(case: HeadCase) -> HeadOperation:
    """Return `kpnops.predict_filter` for the case."""
    return partial(
        kpnops.predict_filter,
        kernel_size=case.kernel_size,
        normalize="softmax",
        precision="tf32" if case.precision == TF32 else "ieee",
    )


def _logits(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(features, weight[..., None, None], bias)


def stored_operation(case: HeadCase) -> HeadOperation:
    """Return a 1x1 convolution, then `kpnops.decoupled_filter` with its fused softmax."""

    def stored(features: Tensor, weight: Tensor, bias: Tensor, input: Tensor) -> Tensor:
        logits = _logits(features, weight, bias)
        return kpnops.decoupled_filter(
            input, logits, kernel_size=case.kernel_size, normalize="softmax"
        )

    return stored


def head_slices_operation(case: HeadCase) -> HeadOperation:
    """Return a convolution, a softmax and a sum of shifted slices of the padded input."""
    H, W, K = case.height, case.width, case.kernel_size

    def slices(features: Tensor, weight: Tensor, bias: Tensor, input: Tensor) -> Tensor:
        taps = _logits(features, weight, bias).softmax(1).unbind(1)
        padded = F.pad(input, (K // 2,) * 4)
        total = padded[:, :, :H, :W] * taps[0][:, None]
        for tap in range(1, K * K):
            y, x = divmod(tap, K)
            total.addcmul_(padded[:, :, y : y + H, x : x + W], taps[tap][:, None])
        return total

    return slices


def head_unfold_operation(case: HeadCase) -> HeadOperation:
    """Return a convolution, a softmax, and the unfolded input times its taps, summed."""
    B, C, H, W = case.batch, case.channels, case.height, case.width

    def unfold(features: Tensor, weight: Tensor, bias: Tensor, input: Tensor) -> Tensor:
        filters = _logits(features, weight, bias).softmax(1)
        columns = F.unfold(input, case.kernel_size, padding=case.kernel_size // 2)
        return (columns.view(B, C, case.taps, H, W) * filters[:, None]).sum(2)

    return unfold


def predict_calls(case: HeadCase, pass_name: str, sets: list[HeadTensors]) -> list[Call]:
    """Return calls of `kpnops.predict_filter`, which takes its precision as an option."""
    operation = predict_operation(case)
    return [OperationCall(operation, pass_name, tensors) for tensors in sets]


def precise_calls(
    build: Callable[[HeadCase], HeadOperation],
    case: HeadCase,
    pass_name: str,
    sets: list[HeadTensors],
) -> list[Call]:
    """Return calls whose products PyTorch takes at the case's precision."""
    operation = build(case)
    return [PreciseCall(operation, pass_name, tensors, case.precision) for tensors in sets]


def compiled_precise_calls(
    build: Callable[[HeadCase], HeadOperation],
    case: HeadCase,
    pass_name: str,
    sets: list[HeadTensors],
) -> list[Call]:
    """Return such calls, compiled for exactly these shapes."""
    load_compiler(sets[0].input.device)
    operation = torch.compile(build(case), fullgraph=True, dynamic=False)
    return [PreciseCall(operation, pass_name, tensors, case.precision) for tensors in sets]
