"""Who is timed: kpnops, what people write instead of it, and yardsticks.

Each provider knows what it cannot run, and how much memory it takes, before it is run.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from bench.cases import FORWARD, Case, Tensors, as_dtype
from bench.memory import (
    compiled_bytes,
    convolution_bytes,
    copy_bytes,
    ddf_bytes,
    kpnops_bytes,
    slices_bytes,
    unfold_bytes,
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
)

KPNOPS = "kpnops"
EAGER_UNFOLD = "eager_unfold"
DEVICE_COPY = "device_copy"

# Generating code for the unrolled slices takes seconds at 25 taps, a minute at 121, more beyond.
MOST_COMPILED_TAPS = 121
# Limits of DDF's CUDA op, which ends the process where a launch fails.
DDF_LARGEST_KERNEL = 13
DDF_MOST_PIXELS = 2_097_120
DDF_MOST_INDICES = 2**32


@dataclass(frozen=True)
class Provider:
    """Something that can be timed."""

    name: str
    make_calls: Callable[[Case, str, list[Tensors]], list[Call]]
    # Bytes at the peak of one call beyond its arguments and cotangent, results included.
    temporary_bytes: Callable[[Case, str, torch.device], int]
    # Why it cannot run this, or None.
    refusal: Callable[[Case, str, torch.device], str | None]
    # Whether products and sums over the taps are rounded to float32 only, whatever the inputs are.
    computes_in_float32: bool = False
    # A yardstick does something else than the op, so that its result is not checked.
    yardstick: bool = False

    def peak_bytes(self, case: Case, pass_name: str, device: torch.device) -> int:
        """Return the bytes held at the peak of one call, arguments and cotangent included."""
        held = case.argument_bytes + case.result_bytes
        return held + self.temporary_bytes(case, pass_name, device)

    def working_dtype(self, case: Case) -> torch.dtype:
        """Return the coarsest data type to which an intermediate value is rounded."""
        if self.computes_in_float32:
            return torch.float32
        coarse_filter = case.filter_size < case.input_size
        return as_dtype(case.filter_dtype if coarse_filter else case.input_dtype)


def skip_reason(
    provider: Provider, case: Case, pass_name: str, device: torch.device, free_bytes: int
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


def _refuses_compiled(case: Case, pass_name: str, device: torch.device) -> str | None:
    if device.type == "cpu" and not any(
        shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "cl")
    ):
        return "torch.compile needs a C++ compiler on the CPU and none is on the path"
    if device.type != "cpu" and importlib.util.find_spec("triton") is None:
        return "torch.compile needs Triton on a GPU and it is not installed"
    return None


def _refuses_compiled_slices(case: Case, pass_name: str, device: torch.device) -> str | None:
    if case.taps > MOST_COMPILED_TAPS:
        return f"generating code for {case.taps} unrolled taps takes minutes"
    return _refuses_compiled(case, pass_name, device)


def _refuses_ddf(case: Case, pass_name: str, device: torch.device) -> str | None:
    if device.type != "cuda":
        return "runs on NVIDIA GPUs only"
    if importlib.util.find_spec("ddf") is None:
        return "the package ddf is not installed"
    if case.channel_filter != "image":
        return "takes channel filters per image only"
    if (case.input_dtype, case.filter_dtype) != ("float32", "float32"):
        return "takes float32 only"
    if case.kernel_size > DDF_LARGEST_KERNEL:
        return f"overruns shared memory above kernel size {DDF_LARGEST_KERNEL}"
    if case.height * case.width > DDF_MOST_PIXELS:
        return f"ends the process on images of more than {DDF_MOST_PIXELS:,} pixels"
    if pass_name != FORWARD and case.pixels * case.taps * 32 > DDF_MOST_INDICES:
        return "its spatial gradient overflows 32-bit indices at this size"
    return None


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
) -> Provider:
    calls = partial(calls_of, build)
    return Provider(name, calls, temporary_bytes, refusal, computes_in_float32)


PROVIDERS = [
    _operation_provider(KPNOPS, kpnops_operation, kpnops_bytes, computes_in_float32=True),
    _operation_provider(EAGER_UNFOLD, unfold_operation, unfold_bytes),
    _operation_provider("eager_slices", slices_operation, slices_bytes),
    Provider(
        "compiled_unfold",
        partial(compiled_calls_of, unfold_operation),
        compiled_bytes,
        _refuses_compiled,
    ),
    Provider(
        "compiled_slices",
        partial(compiled_calls_of, slices_operation),
        compiled_bytes,
        _refuses_compiled_slices,
    ),
    _operation_provider(
        "ddf_cuda", ddf_operation, ddf_bytes, _refuses_ddf, computes_in_float32=True
    ),
    Provider(
        "depthwise_conv",
        convolution_calls,
        convolution_bytes,
        _refuses_convolution,
        yardstick=True,
    ),
    Provider(DEVICE_COPY, copy_calls, copy_bytes, _never, yardstick=True),
]
