"""Who is timed: kpnops, what people write instead of it, and yardsticks.

Each provider knows what it cannot run, and how much memory it takes, before it is run.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench.any_case import AnyCase
from bench.cases import CHANNELS_LAST, FORWARD, SOFTMAX, Case, as_dtype
from bench.memory import (
    compiled_bytes,
    convolution_bytes,
    copy_bytes,
    ddf_bytes,
    kpnops_bytes,
    slices_bytes,
    unfold_bytes,
    unfused_bytes,
)
from bench.operations import (
    Call,
    Operation,
    calls_of,
    compiled_calls_of,
    convolution_calls,
    copy_calls,
    ddf_operation,
    kpnops_operation,
    slices_operation,
    unfold_operation,
    unfused_operation,
)
from bench.results import ALTERNATIVE, OWN, YARDSTICK

KPNOPS = "kpnops"
UNFUSED = "softmax_kpnops"  # PyTorch's softmax, then kpnops
EAGER_UNFOLD = "eager_unfold"
EAGER_SLICES = "eager_slices"
COMPILED_UNFOLD = "compiled_unfold"
COMPILED_SLICES = "compiled_slices"
DDF_CUDA = "ddf_cuda"
DEVICE_COPY = "device_copy"

# Generating code for the unrolled slices takes seconds at 25 taps and most of a minute at 121.
MOST_COMPILED_TAPS = 25
# Limits of DDF's CUDA op, which ends the process where a launch fails.
DDF_LARGEST_KERNEL = 13
DDF_MOST_PIXELS = 2_097_120
DDF_MOST_INDICES = 2**32


# With 16 channels or more, 16-bit products may be split into two 16-bit terms for the matrix units.
SPLIT_CHANNELS = 16
SPLIT_UNIT = 2.0**-16


def _is_banded(case: Case) -> bool:
    narrow = case.input_size == case.filter_size == 2
    return narrow and case.channels >= SPLIT_CHANNELS


@dataclass(frozen=True)
class Provider:
    """Something that can be timed."""

    name: str
    # The cases that it is given are all of one kind, and the tensors are theirs.
    make_calls: Callable[[Any, str, list[Any]], list[Call]]
    # Bytes at the peak of one call beyond its arguments and cotangent, results included.
    temporary_bytes: Callable[[Any, str, torch.device], int]
    # Why it cannot run this, or None.
    refusal: Callable[[Any, str, torch.device], str | None]
    # Whether products and sums over the taps are rounded to float32 only, whatever the inputs are.
    computes_in_float32: bool = False
    # OWN, ALTERNATIVE, or YARDSTICK: one that does something else, so that it is not checked.
    role: str = ALTERNATIVE

    def peak_bytes(self, case: AnyCase, pass_name: str, device: torch.device) -> int:
        """Return the bytes held at the peak of one call, arguments and cotangent included."""
        held = case.argument_bytes + case.result_bytes
        return held + self.temporary_bytes(case, pass_name, device)

    def working_dtype(self, case: Case) -> torch.dtype | float:
        """Return the coarsest data type to which an intermediate value is rounded, or the unit."""
        if self.name == KPNOPS and _is_banded(case):
            return SPLIT_UNIT
        if self.computes_in_float32:
            return torch.float32
        coarse_filter = case.filter_size < case.input_size
        return as_dtype(case.filter_dtype if coarse_filter else case.input_dtype)


def skip_reason(
    provider: Provider, case: AnyCase, pass_name: str, device: torch.device, free_bytes: int
) -> str | None:
    """Return why the provider is not run, or None if it is.

    Args:
        provider: the provider.
        case: the problem.
        pass_name: one of `cases.PASSES`.
        device: where it would run.
        free_bytes: free memory of that device in bytes.

    Returns:
        The provider's own refusal, or that its peak would exceed half of the free memory, or None.
    """
    refusal = provider.refusal(case, pass_name, device)
    if refusal is not None:
        return refusal
    peak = provider.peak_bytes(case, pass_name, device)
    if 2 * peak > free_bytes:
        return f"would take {peak / 2**30:.1f} GiB, over half of {free_bytes / 2**30:.1f} GiB free"
    return None


def _never(case: Case, pass_name: str, device: torch.device) -> str | None:
    return None


def refuses_compiled(case: Any, pass_name: str, device: torch.device) -> str | None:
    """Return why no code can be generated here, or None."""
    if device.type == "cpu" and not any(
        shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "cl")
    ):
        return "torch.compile needs a C++ compiler on the CPU and none is on the path"
    if device.type != "cpu" and importlib.util.find_spec("triton") is None:
        return "torch.compile needs Triton on a GPU and it is not installed"
    return None


def _refuses_compiled_slices(case: Case, pass_name: str, device: torch.device) -> str | None:
    if case.taps > MOST_COMPILED_TAPS:
        return f"generating code for {case.taps} unrolled taps takes too long"
    return refuses_compiled(case, pass_name, device)


def _refuses_ddf(case: Case, pass_name: str, device: torch.device) -> str | None:
    if device.type != "cuda":
        return "runs on NVIDIA GPUs only"
    if importlib.util.find_spec("ddf") is None:
        return "the package ddf is not installed"
    if case.channel_filter != "image":
        return "takes channel filters per image only"
    if case.normalize == SOFTMAX:
        return "has no softmax"
    if case.layout == CHANNELS_LAST:
        return "refuses channels_last tensors"
    if (case.input_dtype, case.filter_dtype) != ("float32", "float32"):
        return "takes float32 only"
    if case.kernel_size > DDF_LARGEST_KERNEL:
        return f"overruns shared memory above kernel size {DDF_LARGEST_KERNEL}"
    if case.height * case.width > DDF_MOST_PIXELS:
        return f"ends the process on images of more than {DDF_MOST_PIXELS:,} pixels"
    if pass_name != FORWARD and case.pixels * case.taps * 32 > DDF_MOST_INDICES:
        return "its spatial gradient overflows 32-bit indices at this size"
    return None


def _refuses_unfused(case: Case, pass_name: str, device: torch.device) -> str | None:
    return None if case.normalize == SOFTMAX else "differs from kpnops under softmax only"


def _refuses_convolution(case: Case, pass_name: str, device: torch.device) -> str | None:
    if device.type != "cuda" or not torch.backends.cudnn.is_available():
        return "needs a GPU with cuDNN"
    return None


def _operation_provider(
    name: str,
    build: Callable[[Case], Operation],
    temporary_bytes: Callable[[Case, str, torch.device], int],
    refusal: Callable[[Case, str, torch.device], str | None] = _never,
    computes_in_float32: bool = False,
    role: str = ALTERNATIVE,
) -> Provider:
    calls = partial(calls_of, build)
    return Provider(name, calls, temporary_bytes, refusal, computes_in_float32, role)


PROVIDERS = [
    _operation_provider(KPNOPS, kpnops_operation, kpnops_bytes, computes_in_float32=True, role=OWN),
    _operation_provider(UNFUSED, unfused_operation, unfused_bytes, _refuses_unfused, role=OWN),
    _operation_provider(EAGER_UNFOLD, unfold_operation, unfold_bytes),
    _operation_provider(EAGER_SLICES, slices_operation, slices_bytes),
    Provider(
        COMPILED_UNFOLD,
        partial(compiled_calls_of, unfold_operation),
        compiled_bytes,
        refuses_compiled,
    ),
    Provider(
        COMPILED_SLICES,
        partial(compiled_calls_of, slices_operation),
        compiled_bytes,
        _refuses_compiled_slices,
    ),
    _operation_provider(DDF_CUDA, ddf_operation, ddf_bytes, _refuses_ddf, computes_in_float32=True),
    Provider(
        "depthwise_conv",
        convolution_calls,
        convolution_bytes,
        _refuses_convolution,
        role=YARDSTICK,
    ),
    Provider(DEVICE_COPY, copy_calls, copy_bytes, _never, role=YARDSTICK),
]
