"""The operations that are timed, as calls without arguments.

Apart from kpnops every implementation here is written on its own, so that none shares a mistake
with another.
"""

import importlib
import math
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

import kpnops
from bench.cases import BACKWARD, FORWARD, SOFTMAX, Case, Tensors, Traffic, minimal_bytes

Operation = Callable[[Tensor, Tensor, Tensor], Tensor]
Call = Callable[[], tuple[Tensor, ...]]


class ArgumentsAndCotangent(Protocol):
    """The tensors of one call."""

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """All that have gradients."""
        ...

    @property
    def cotangent(self) -> Tensor:
        """Of the result."""
        ...


class OperationCall:
    """One call of an operation on one set of tensors; returns the result, then the gradients.

    The pass `BACKWARD` returns the gradients alone, of a forward that `prepare` makes before.
    """

    def __init__(
        self, operation: Callable[..., Tensor], pass_name: str, tensors: ArgumentsAndCotangent
    ):
        self.operation = operation
        self.differentiate = pass_name != FORWARD
        self.prepares = pass_name == BACKWARD
        self._prepared: Tensor | None = None
        self.cotangent = tensors.cotangent
        self.arguments = tuple(
            argument.detach().requires_grad_(self.differentiate) for argument in tensors.arguments
        )

    def forward(self) -> Tensor:
        """Return the result, with its graph if the pass has a backward."""
        with torch.set_grad_enabled(self.differentiate):
            return self.operation(*self.arguments)

    def prepare(self) -> None:
        """Make the forward whose backward the next call is; nothing for other passes."""
        if self.prepares and self._prepared is None:
            self._prepared = self.forward()

    def __call__(self) -> tuple[Tensor, ...]:
        """Return the result and, where the pass has a backward, all gradients."""
        if self.prepares:
            self.prepare()
            # Handed over, so that the graph is freed: a compiled backward can be run only once.
            result, self._prepared = self._prepared, None
            assert result is not None
            return torch.autograd.grad(result, self.arguments, self.cotangent)
        result = self.forward()
        if not self.differentiate:
            return (result,)
        return result, *torch.autograd.grad(result, self.arguments, self.cotangent)


def prepare(call: Call) -> None:
    """Do what a call needs done before it is timed."""
    if isinstance(call, OperationCall):
        call.prepare()


def normalized(case: Case, operation: Operation) -> Operation:
    """Return the operation after a softmax over the taps, where the case asks for one."""
    if case.normalize != SOFTMAX:
        return operation

    def after_softmax(input: Tensor, spatial_filter: Tensor, channel_filter: Tensor) -> Tensor:
        return operation(input, spatial_filter.softmax(dim=1), channel_filter)

    return after_softmax


def kpnops_operation(case: Case) -> Operation:
    """Return `kpnops.decoupled_filter` for the case."""
    return partial(
        kpnops.decoupled_filter,
        kernel_size=case.kernel_size,
        normalize="softmax" if case.normalize == SOFTMAX else None,
    )


def unfused_operation(case: Case) -> Operation:
    """Return `kpnops.decoupled_filter` after PyTorch's softmax, which stores the probabilities."""
    return normalized(case, partial(kpnops.decoupled_filter, kernel_size=case.kernel_size))


def unfold_operation(case: Case) -> Operation:
    """Return the filter as people write it first: unfold, multiply by the whole filter, sum."""
    B, C, H, W = case.batch, case.channels, case.height, case.width

    def unfold(input: Tensor, spatial_filter: Tensor, channel_filter: Tensor) -> Tensor:
        columns = F.unfold(input, case.kernel_size, padding=case.kernel_size // 2)
        columns = columns.view(B, C, case.taps, H, W)
        if case.channel_filter == "pixel":
            filters = spatial_filter[:, None] * channel_filter[:, :, None]
        else:
            filters = spatial_filter[:, None] * channel_filter[..., None, None]
        return (columns * filters).sum(2)

    return normalized(case, unfold)


def slices_operation(case: Case) -> Operation:
    """Return the filter as a sum of shifted slices of the padded input, a gain taken out of it."""
    H, W, K = case.height, case.width, case.kernel_size

    def slices(input: Tensor, spatial_filter: Tensor, channel_filter: Tensor) -> Tensor:
        padded = F.pad(input, (K // 2,) * 4)
        # unbind, not indexing: the gradient of an index is a whole spatial filter of zeros.
        spatial = spatial_filter.unbind(1)
        weights = channel_filter.unbind(2) if case.channel_filter == "image" else None

        def tap_filter(tap: int) -> Tensor:
            shared = spatial[tap][:, None]
            return shared if weights is None else shared * weights[tap][..., None, None]

        total = padded[:, :, :H, :W] * tap_filter(0)
        for tap in range(1, K * K):
            y, x = divmod(tap, K)
            total.addcmul_(padded[:, :, y : y + H, x : x + W], tap_filter(tap))
        return total * channel_filter if case.channel_filter == "pixel" else total

    return normalized(case, slices)


def ddf_operation(case: Case) -> Operation:
    """Return the CUDA op of decoupled dynamic filters (Zhou et al., CVPR 2021)."""
    ddf = importlib.import_module("ddf").ddf
    K = case.kernel_size

    def call(input: Tensor, spatial_filter: Tensor, channel_filter: Tensor) -> Tensor:
        per_tap = channel_filter.view(case.batch, case.channels, K, K)
        return ddf(input, per_tap, spatial_filter, K, 1, 1, "mul")

    return call


def calls_of(
    build: Callable[[Case], Operation], case: Case, pass_name: str, sets: list[Tensors]
) -> list[Call]:
    """Return one call of the operation for each set of tensors."""
    operation = build(case)
    return [OperationCall(operation, pass_name, tensors) for tensors in sets]


def compiled_calls_of(
    build: Callable[[Case], Operation], case: Case, pass_name: str, sets: list[Tensors]
) -> list[Call]:
    """Return calls of the operation compiled for exactly these shapes."""
    load_compiler(sets[0].input.device)
    operation = torch.compile(build(case), fullgraph=True, dynamic=False)
    return [OperationCall(operation, pass_name, tensors) for tensors in sets]


@cache
def load_compiler(device: torch.device) -> None:
    """Compile a trifle, so that no provider's first call contains the loading of the compiler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the compiler's own imports deprecate
        torch.compile(torch.sin)(torch.ones(64, device=device))


def convolution_calls(case: Case, pass_name: str, sets: list[Tensors]) -> list[Call]:
    """Return calls of a depthwise convolution, in which all pixels share one filter."""
    shape = (case.channels, 1, case.kernel_size, case.kernel_size)

    def call(input: Tensor, weight: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(pass_name != FORWARD):
            result = F.conv2d(input, weight, padding=case.kernel_size // 2, groups=case.channels)
        if pass_name == FORWARD:
            return (result,)
        return result, *torch.autograd.grad(result, (input, weight), cotangent)

    weight = sets[0].input.new_ones(shape).requires_grad_(pass_name != FORWARD)
    return [
        partial(
            call,
            tensors.input.detach().requires_grad_(pass_name != FORWARD),
            weight,
            tensors.cotangent.to(tensors.input.dtype),
        )
        for tensors in sets
    ]


def copy_calls(case: Traffic, pass_name: str, sets: list[Any]) -> list[Call]:
    """Return copies that read and write, together, as many bytes as the pass must at least."""
    size = minimal_bytes(case, pass_name) // 2
    device = sets[0].cotangent.device
    # As many pairs as hold what the sets hold.
    pairs = math.ceil(len(sets) * (case.argument_bytes + case.result_bytes) / (2 * size))

    def call(source: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        return (target.copy_(source),)

    def buffer() -> Tensor:
        return torch.zeros(size, dtype=torch.uint8, device=device)

    return [partial(call, buffer(), buffer()) for _ in range(pairs)]
