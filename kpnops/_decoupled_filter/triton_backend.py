"""Runs the Triton kernels: decides between fast and general ones, and turns a call into launches.

``plan_forward`` and ``plan_backward`` look at shapes, strides and dtypes only (meta tensors will
do), so that grids can be tested and kernels compiled without a GPU. ``forward`` and ``backward``
run the plans.
"""

import contextlib

import torch
from torch import Tensor

from . import launch
from .geometry import Window
from .launch_gather import (
    gather_forward,
    gather_grad_channel,
    gather_grad_gain,
    gather_grad_input,
    gather_grad_spatial,
)
from .launch_tile import tile_filters, tile_forward, tile_fused, tile_grad_channel
from .plan import Call, Launch, Plan

__all__ = ["Launch", "Plan", "backward", "forward", "is_fast", "plan_backward", "plan_forward"]

_INT32_MAX = 2**31 - 1


def forward(
    output: Tensor,
    input: Tensor,
    spatial_filter: Tensor,
    channel_filter: Tensor | None,
    window: Window,
    combine: str,
) -> None:
    """Write the filtered image into ``output``, ``(B, C, Ho, Wo)``."""
    _run(plan_forward(output, input, spatial_filter, channel_filter, window, combine), input.device)


def backward(
    grads: list[Tensor | None],
    grad_output: Tensor,
    input: Tensor,
    spatial_filter: Tensor,
    channel_filter: Tensor | None,
    window: Window,
    combine: str,
) -> None:
    """Write the gradients of ``input``, ``spatial_filter`` and ``channel_filter`` where not
    None."""
    plan = plan_backward(grads, grad_output, input, spatial_filter, channel_filter, window, combine)
    _run(plan, input.device)


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
    if window.taps > launch.MAX_UNROLLED_TAPS or max(window.kernel_size) > launch.MAX_UNROLLED_SIDE:
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


def plan_forward(
    output: Tensor,
    input: Tensor,
    spatial_filter: Tensor,
    channel_filter: Tensor | None,
    window: Window,
    combine: str,
) -> Plan:
    """Launches of the forward."""
    call = Call.of(input, spatial_filter, channel_filter, window, combine, output.dtype)
    if is_fast(window, [output, input, spatial_filter, channel_filter]):
        return Plan([tile_forward(call, input, output, transposed=False)])
    return Plan([gather_forward(call, output)])


def plan_backward(
    grads: list[Tensor | None],
    grad_output: Tensor,
    input: Tensor,
    spatial_filter: Tensor,
    channel_filter: Tensor | None,
    window: Window,
    combine: str,
) -> Plan:
    """Launches of the backward, for the gradients that are not None."""
    call = Call.of(input, spatial_filter, channel_filter, window, combine, grad_output.dtype)
    plan = Plan()
    fast = is_fast(window, [*grads, grad_output, input, spatial_filter, channel_filter])
    grad_input, grad_spatial, grad_channel = grads
    if grad_channel is not None and call.form == "pixel" and (call.channel_shared or not fast):
        # the forward's sum times grad_output; the general kernel can add images up
        plan.launches.append(gather_grad_gain(call, grad_output, grad_channel))
        grad_channel = None
    if not fast:
        _plan_general(plan, call, grad_output, grad_input, grad_spatial, grad_channel)
        return plan
    fused = launch.fits_fused(call.channels_per_group, window.taps, call.dtype)
    if call.form == "image" or not fused:
        _plan_many_channels(plan, call, grad_output, grad_input, grad_spatial, grad_channel)
    elif any(grad is not None for grad in (grad_input, grad_spatial, grad_channel)):
        plan.launches.append(tile_fused(call, grad_output, grad_input, grad_spatial, grad_channel))
    if grad_input is not None:  # pixels that the padding reads again: after the pass above
        plan.launches += gather_grad_input(call, grad_output, grad_input, border_only=True)
    return plan


def _plan_general(
    plan: Plan,
    call: Call,
    grad_output: Tensor,
    grad_input: Tensor | None,
    grad_spatial: Tensor | None,
    grad_channel: Tensor | None,
) -> None:
    if grad_input is not None:
        plan.launches += gather_grad_input(call, grad_output, grad_input, border_only=False)
    if grad_spatial is not None:
        plan.launches.append(gather_grad_spatial(call, grad_output, grad_spatial))
    if grad_channel is not None:
        gather_grad_channel(plan, call, grad_output, grad_channel)


def _plan_many_channels(
    plan: Plan,
    call: Call,
    grad_output: Tensor,
    grad_input: Tensor | None,
    grad_spatial: Tensor | None,
    grad_channel: Tensor | None,
) -> None:
    if grad_input is not None:
        plan.launches.append(tile_forward(call, grad_output, grad_input, transposed=True))
    if grad_channel is not None and call.form == "image":
        tile_grad_channel(plan, call, grad_output, grad_channel)
        grad_channel = None
    together = grad_channel
    if not launch.channel_with_filters(call.window.taps, call.dtype):
        together = None
    if grad_spatial is not None:
        plan.launches.append(tile_filters(call, grad_output, grad_spatial, together))
    elif together is not None:
        together = None
    if grad_channel is not None and together is None:
        plan.launches.append(gather_grad_gain(call, grad_output, grad_channel))
