"""Who is timed of the fused head, what each takes at the peak of one call, what it cannot run.

Memory is computed before anything is run, to skip what would not fit; tests compare it with what is
measured.
"""

from functools import partial
from typing import Any

import torch

from bench.cases import FORWARD
from bench.head_cases import HeadCase
from bench.head_operations import (
    compiled_precise_calls,
    head_slices_operation,
    head_unfold_operation,
    precise_calls,
    predict_calls,
    stored_operation,
)
from bench.providers import (
    DEVICE_COPY,
    MOST_COMPILED_TAPS,
    PROVIDERS,
    Provider,
    refuses_compiled,
)
from bench.results import ALTERNATIVE, OWN

PREDICT = "predict_filter"
STORED = "conv_kpnops"  # a convolution, then kpnops.decoupled_filter
COMPILED_HEAD_SLICES = "compiled_conv_slices"
COMPILED_HEAD_UNFOLD = "compiled_conv_unfold"

# What the operator states of its workspace on CPUs; on GPUs 48 MiB and partial sums of the weight.
WORKSPACE = 32 * 2**20
GPU_WORKSPACE = 64 * 10**6


def _results_bytes(case: HeadCase, pass_name: str) -> int:
    return case.result_bytes + (0 if pass_name == FORWARD else case.argument_bytes)


def predict_bytes(case: HeadCase, pass_name: str, device: torch.device) -> int:
    """The fused head: results, a number for each pixel, the workspace."""
    workspace = WORKSPACE if device.type == "cpu" else GPU_WORKSPACE
    return _results_bytes(case, pass_name) + case.statistics_bytes + workspace


def stored_bytes(case: HeadCase, pass_name: str, device: torch.device) -> int:
    """A convolution and our own filter: logits, and their gradient for the backward."""
    logits = case.logits_bytes * (1 if pass_name == FORWARD else 2)
    # a softmax backward on a GPU keeps three numbers for each pixel
    workspace = WORKSPACE if device.type == "cpu" else 3 * case.statistics_bytes
    return _results_bytes(case, pass_name) + logits + workspace


def compiled_head_bytes(case: HeadCase, pass_name: str, device: torch.device) -> int:
    """Compiled code: logits and probabilities, and the gradients of both for the backward."""
    logits = case.logits_bytes * (2 if pass_name == FORWARD else 4)
    reach = 2 * (case.kernel_size // 2)
    padded = case.batch * case.channels * (case.height + reach) * (case.width + reach)
    return _results_bytes(case, pass_name) + logits + 2 * padded * case.size


def _never(case: Any, pass_name: str, device: torch.device) -> str | None:
    return None


def _refuses_slices(case: HeadCase, pass_name: str, device: torch.device) -> str | None:
    if case.taps > MOST_COMPILED_TAPS:
        return f"generating code for {case.taps} unrolled taps takes too long"
    return refuses_compiled(case, pass_name, device)


HEAD_PROVIDERS = [
    Provider(PREDICT, predict_calls, predict_bytes, _never, role=OWN),
    Provider(STORED, partial(precise_calls, stored_operation), stored_bytes, _never, role=OWN),
    Provider(
        COMPILED_HEAD_SLICES,
        partial(compiled_precise_calls, head_slices_operation),
        compiled_head_bytes,
        _refuses_slices,
        role=ALTERNATIVE,
    ),
    Provider(
        COMPILED_HEAD_UNFOLD,
        partial(compiled_precise_calls, head_unfold_operation),
        compiled_head_bytes,
        refuses_compiled,
        role=ALTERNATIVE,
    ),
    *(provider for provider in PROVIDERS if provider.name == DEVICE_COPY),
]


def alternative_for(case: HeadCase) -> str:
    """Return who stands for compiled PyTorch: slices where their code is made in time."""
    few = case.taps <= MOST_COMPILED_TAPS
    return COMPILED_HEAD_SLICES if few else COMPILED_HEAD_UNFOLD
