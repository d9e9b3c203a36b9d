"""What each provider takes at the peak of one call, in bytes beyond its arguments and cotangent.

Computed before anything is run, to skip what would not fit; tests compare it with what is measured.
"""

import torch

from bench.cases import FORWARD, SOFTMAX, Case, Traffic, minimal_bytes

KPNOPS_CPU_WORKSPACE = 32 * 2**20


def _gradient_bytes(case: Case, pass_name: str) -> int:
    return 0 if pass_name == FORWARD else case.argument_bytes


def _softmax_bytes(case: Case, pass_name: str) -> int:
    """Probabilities; for the backward their gradient, and what its softmax makes on the way."""
    if case.normalize != SOFTMAX:
        return 0
    return case.spatial_filter_bytes * (1 if pass_name == FORWARD else 3)


def _padded_bytes(case: Case) -> int:
    reach = 2 * (case.kernel_size // 2)
    rows, columns = case.height + reach, case.width + reach
    return case.batch * case.channels * rows * columns * case.input_size


def kpnops_bytes(case: Case, pass_name: str, device: torch.device) -> int:
    """kpnops: results, and the CPU path's workspace."""
    workspace = KPNOPS_CPU_WORKSPACE if device.type == "cpu" else 0
    if case.normalize == SOFTMAX and pass_name != FORWARD:
        workspace += 3 * 4 * case.pixels  # three float32 numbers for each pixel, at most
    return case.result_bytes + _gradient_bytes(case, pass_name) + workspace


def unfused_bytes(case: Case, pass_name: str, device: torch.device) -> int:
    """kpnops after PyTorch's softmax."""
    return kpnops_bytes(case, pass_name, device) + _softmax_bytes(case, pass_name)


def unfold_bytes(case: Case, pass_name: str, device: torch.device) -> int:
    """eager unfold: whole copies of columns, filters and their product."""
    numbers = case.pixels * case.channels * case.taps
    columns, filters = numbers * case.input_size, numbers * case.filter_size
    product = numbers * case.result_size + _softmax_bytes(case, pass_name)
    if pass_name == FORWARD:
        return columns + filters + product + case.result_bytes
    # The product's backward holds columns, filters and the gradients of both.
    return 2 * (columns + filters) + product + case.result_bytes + case.argument_bytes


def slices_bytes(case: Case, pass_name: str, device: torch.device) -> int:
    """eager slices."""
    # The sum, and per image the filter of one tap; a gain makes a second result.
    forward = _padded_bytes(case) + 3 * case.result_bytes + _softmax_bytes(case, pass_name)
    if pass_name == FORWARD:
        return forward
    # Per image the backward keeps every tap's filter.
    tap_filter = case.pixels * case.channels * case.filter_size
    filters = case.taps * tap_filter if case.channel_filter == "image" else 0
    # One slice's gradient is padded twice, once for each axis, and added to the others'; those of
    # the taps are stacked at the end.
    slices = 3 * _padded_bytes(case) + 2 * case.result_bytes
    return forward + slices + filters + case.argument_bytes + case.spatial_filter_bytes


def compiled_bytes(case: Case, pass_name: str, device: torch.device) -> int:
    """compiled unfold or slices, whose loops are fused."""
    # A padded copy of the input, the result, and float32 sums for scattered gradients.
    forward = _padded_bytes(case) + 2 * case.result_bytes + _softmax_bytes(case, pass_name)
    if pass_name == FORWARD:
        return forward
    scattered = _padded_bytes(case) * 4 // case.input_size
    return forward + 2 * scattered + 2 * case.argument_bytes


def ddf_bytes(case: Case, pass_name: str, device: torch.device) -> int:
    """DDF's CUDA op: results alone."""
    return case.result_bytes + _gradient_bytes(case, pass_name)


def convolution_bytes(case: Case, pass_name: str, device: torch.device) -> int:
    """a depthwise convolution."""
    gradients = 0 if pass_name == FORWARD else 2 * case.input_bytes
    return case.result_bytes + gradients


def copy_bytes(case: Traffic, pass_name: str, device: torch.device) -> int:
    """a copy: its own two buffers."""
    return minimal_bytes(case, pass_name)
