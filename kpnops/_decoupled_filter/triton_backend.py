"""Runs the Triton kernels: decides between fast and general ones, and turns a call into launches.

``plan_forward`` and ``plan_backward`` look at shapes, strides and dtypes only (meta tensors will
do), so that grids can be tested and kernels compiled without a GPU. ``forward`` and ``backward``
run the plans.
"""

import contextlib

import torch
from torch import Tensor

from . import launch
from .call import Call, Gradients
from .geometry import Window
from .launch_gather import (
    gather_forward,
    gather_grad_channel,
    gather_grad_gain,
    gather_grad_input,
    gather_grad_spatial,
)
from .launch_tile import (
    tile_filters,
    tile_forward,
    tile_fused,
    tile_grad_channel,
    tile_grad_gain,
)
from .plan import Launch, Plan

__all__ = ["Launch", "Plan", "backward", "forward", "is_fast", "plan_backward", "plan_forward"]

_INT32_MAX = 2**31 - 1


def forward(call: Call, output: Tensor) -> None:
    """Write the filtered image into ``output``, ``(B, C, Ho, Wo)``."""
    _run(plan_forward(call, output), call.input.device)


def backward(call: Call, grad_output: Tensor, grads: Gradients) -> None:
    """Write the gradients that are asked for."""
    _run(plan_backward(call, grad_output, grads), call.input.device)


def _run(plan: Plan, device: torch.device) -> None:
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        for item in plan.launches:
            options = item.options(nvidia=torch.version.hip is None)
            item.kernel[(item.programs,)](**item.arguments, **item.constants, **options)
        for step in plan.finish:
            step()


def is_fast(window: Window, tensors: list[Tensor | None]) -> bool:
    """Whether the fast kernels take a call: stride 1, dilation 1, few taps, tiles that span under
    2^31."""
    if window.stride != (1, 1) or window.dilation != (1, 1):
        return False
    double = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    most = launch.MAX_UNROLLED_TAPS_FLOAT64 if double else launch.MAX_UNROLLED_TAPS
    if window.taps > most or max(window.kernel_size) > launch.MAX_UNROLLED_SIDE:
        return False
    for tensor in tensors:
        if tensor is None or tensor.dim() != 4:
            continue
        # from one edge of a tile to the other, or of the image where padding reads the other side
        # of it
        height, width = window.kernel_size[0] + 8, window.kernel_size[1] + 256
        if window.padding_mode != "zeros":
            height, width = max(height, tensor.shape[2]), max(width, tensor.shape[3])
        if height * tensor.stride(2) + width * tensor.stride(3) > _INT32_MAX:
            return False
    return True


def plan_forward(call: Call, output: Tensor) -> Plan:
    """Launches of the forward."""
    if is_fast(call.window, [output, call.input, call.spatial_filter, call.channel_filter]):
        return Plan([tile_forward(call, call.input, output, transposed=False)])
    return Plan([gather_forward(call, output)])


def plan_backward(call: Call, grad_output: Tensor, grads: Gradients) -> Plan:
    """Launches of the backward."""
    plan = Plan()
    tensors = [*grads, grad_output, call.input, call.spatial_filter, call.channel_filter]
    fast = is_fast(call.window, tensors)
    if (
        grads.channel_filter is not None
        and call.form == "pixel"
        and (call.channel_shared or not fast)
    ):
        # the forward's sum times grad_output; the general kernel can add images up
        plan.launches.append(gather_grad_gain(call, grad_output, grads.channel_filter))
        grads = grads._replace(channel_filter=None)
    if not fast:
        _plan_general(plan, call, grad_output, grads)
        return plan
    if call.form == "image" or call.channels_per_group > launch.MAX_FUSED_CHANNELS:
        _plan_many_channels(plan, call, grad_output, grads)
    elif any(grad is not None for grad in grads):
        plan.launches.append(tile_fused(call, grad_output, grads))
    if grads.input is not None:  # pixels that the padding reads again: after the pass above
        plan.launches += gather_grad_input(call, grad_output, grads.input, border_only=True)
    return plan


def _plan_general(plan: Plan, call: Call, grad_output: Tensor, grads: Gradients) -> None:
    if grads.input is not None:
        plan.launches += gather_grad_input(call, grad_output, grads.input, border_only=False)
    if grads.spatial_filter is not None:
        plan.launches.append(gather_grad_spatial(call, grad_output, grads.spatial_filter))
    if grads.channel_filter is not None:
        gather_grad_channel(plan, call, grad_output, grads.channel_filter)


def _plan_many_channels(plan: Plan, call: Call, grad_output: Tensor, grads: Gradients) -> None:
    if grads.input is not None:
        plan.launches.append(tile_forward(call, grad_output, grads.input, transposed=True))
    if grads.channel_filter is not None and call.form == "image":
        tile_grad_channel(plan, call, grad_output, grads.channel_filter)
        grads = grads._replace(channel_filter=None)
    taps, padding_mode = call.window.taps, call.window.padding_mode
    if grads.spatial_filter is not None and not launch.filters_fit(taps, padding_mode):
        plan.launches.append(gather_grad_spatial(call, grad_output, grads.spatial_filter))
    elif grads.spatial_filter is not None:
        fits = launch.channel_with_filters(taps, call.sum_dtype)
        together = grads.channel_filter if fits else None
        plan.launches.append(tile_filters(call, grad_output, grads.spatial_filter, together))
        if together is not None:
            return
    if grads.channel_filter is not None:
        # S is not read under "add", which only the general kernel can leave out
        grad_gain = tile_grad_gain if call.combine == "mul" else gather_grad_gain
        plan.launches.append(grad_gain(call, grad_output, grads.channel_filter))
