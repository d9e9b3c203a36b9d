"""Runs the Triton kernels: decides between banded, fast and general ones, and turns a call into
launches.

``plan_forward`` and ``plan_backward`` look at shapes, strides and dtypes only (meta tensors will
do), so that grids can be tested and kernels compiled without a GPU. ``forward`` and ``backward``
run the plans.
"""

import torch
from torch import Tensor

from . import launch
from .call import Call, Gradients
from .geometry import Window
from .launch_band import (
    band_filters,
    band_forward,
    band_grad_gain,
    holds_all_taps,
    is_banded,
    is_banded_backward,
)
from .launch_gather import (
    gather_forward,
    gather_grad_channel,
    gather_grad_gain,
    gather_grad_input,
    gather_grad_spatial,
)
from .launch_mix import mix_backward, mix_forward
from .launch_softmax import softmax_statistics
from .launch_tile import (
    tile_filters,
    tile_forward,
    tile_fused,
    tile_grad_channel,
    tile_grad_gain,
)
from .plan import Launch, Plan, run

__all__ = ["Launch", "Plan", "backward", "forward", "is_fast", "plan_backward", "plan_forward"]

_INT32_MAX = 2**31 - 1


def forward(call: Call, output: Tensor) -> None:
    """Write the filtered image into ``output``, ``(B, C, Ho, Wo)``."""
    run(plan_forward(call, output), call.input.device)


def backward(call: Call, grad_output: Tensor, grads: Gradients) -> None:
    """Write the gradients that are asked for."""
    run(plan_backward(call, grad_output, grads), call.input.device)


def is_fast(window: Window, tensors: list[Tensor | None]) -> bool:
    """Whether the fast kernels take a call: stride 1, dilation 1, few taps, tiles that span under
    2^31."""
    if window.stride != (1, 1) or window.dilation != (1, 1) or window.scale != 1:
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
        height, width = window.kernel_size[0] + 16, window.kernel_size[1] + 256
        if window.padding_mode != "zeros":
            height, width = max(height, tensor.shape[2]), max(width, tensor.shape[3])
        if height * tensor.stride(2) + width * tensor.stride(3) > _INT32_MAX:
            return False
    return True


def plan_forward(call: Call, output: Tensor) -> Plan:
    """Launches of the forward."""
    if call.form == "mix":
        return Plan([mix_forward(call, output)])
    if is_banded(call):
        return Plan([band_forward(call, call.input, output, transposed=False)])
    if is_fast(call.window, [output, call.input, call.spatial_filter, call.channel_filter]):
        return Plan([tile_forward(call, call.input, output, transposed=False)])
    return Plan([gather_forward(call, output)])


def plan_backward(call: Call, grad_output: Tensor, grads: Gradients) -> Plan:
    """Launches of the backward."""
    plan = Plan()
    if call.form == "mix":
        # what is left is the backward of the filter alone, from the gradient before mixing
        call, grad_output, grads = mix_backward(plan, call, grad_output, grads)
    tensors = [*grads, grad_output, call.input, call.spatial_filter, call.channel_filter]
    banded = is_banded_backward(call, grad_output)
    fast = is_fast(call.window, tensors)
    if (
        grads.channel_filter is not None
        and call.form == "pixel"
        and (call.channel_shared or not (fast or banded))
    ):
        # the forward's sum times grad_output; the general kernel can add images up
        plan.launches.append(gather_grad_gain(call, grad_output, grads.channel_filter))
        grads = grads._replace(channel_filter=None)
    if all(grad is None for grad in grads):
        return plan
    if banded:
        _plan_banded(plan, call, grad_output, grads)
    elif not fast:
        _plan_general(plan, call, grad_output, grads)
    elif call.form == "image" or not launch.fused_fits(
        call.channels_per_group, call.window.kernel_size, call.sum_dtype
    ):
        _plan_many_channels(plan, call, grad_output, grads)
    else:
        statistics = _statistics(plan, call, grad_output, grads.spatial_filter is not None)
        plan.launches.append(tile_fused(call, grad_output, grads, statistics))
        _plan_border(plan, call, grad_output, grads, statistics)
    return plan


def _statistics(plan: Plan, call: Call, grad_output: Tensor, with_delta: bool) -> Tensor | None:
    """Under softmax, what kernels need of a pixel whose taps they do not all hold."""
    if not call.softmax:
        return None
    item, statistics = softmax_statistics(call, grad_output, with_delta)
    plan.launches.append(item)
    return statistics


def _plan_border(
    plan: Plan, call: Call, grad_output: Tensor, grads: Gradients, statistics: Tensor | None
) -> None:
    if grads.input is not None:  # pixels that the padding reads again: after the fast pass
        plan.launches += gather_grad_input(
            call, grad_output, grads.input, statistics, border_only=True
        )


def _plan_general(plan: Plan, call: Call, grad_output: Tensor, grads: Gradients) -> None:
    statistics = None
    added_channel_alone = (
        grads.input is None and grads.spatial_filter is None and call.combine == "add"
    )
    if not added_channel_alone:  # its gradient reads no spatial filter
        statistics = _statistics(plan, call, grad_output, grads.spatial_filter is not None)
    if grads.input is not None:
        plan.launches += gather_grad_input(
            call, grad_output, grads.input, statistics, border_only=False
        )
    if grads.spatial_filter is not None:
        item = gather_grad_spatial(call, grad_output, grads.spatial_filter, statistics)
        plan.launches.append(item)
    if grads.channel_filter is not None:
        gather_grad_channel(plan, call, grad_output, grads.channel_filter, statistics)


def _plan_many_channels(plan: Plan, call: Call, grad_output: Tensor, grads: Gradients) -> None:
    spatial, channel = grads.spatial_filter, grads.channel_filter
    fits = launch.filters_fit(
        call.window.taps, call.window.padding_mode, call.sum_dtype, call.softmax
    )
    statistics = None
    general_spatial = None if fits else spatial
    per_image = channel if call.form == "image" else None
    if (
        grads.input is not None
        or general_spatial is not None
        or (per_image is not None and call.combine == "mul")
    ):
        statistics = _statistics(plan, call, grad_output, general_spatial is not None)
    if grads.input is not None:
        if launch.input_fits(call.window.taps, call.sum_dtype, call.softmax):
            item = tile_forward(
                call, grad_output, grads.input, transposed=True, statistics=statistics
            )
            plan.launches.append(item)
            _plan_border(plan, call, grad_output, grads, statistics)
        else:
            plan.launches += gather_grad_input(
                call, grad_output, grads.input, statistics, border_only=False
            )
    if per_image is not None:
        tile_grad_channel(plan, call, grad_output, per_image, statistics)
        channel = None
    if general_spatial is not None:
        plan.launches.append(gather_grad_spatial(call, grad_output, general_spatial, statistics))
    elif spatial is not None:
        together = None
        if launch.channel_with_filters(call.window.taps, call.sum_dtype):
            together, channel = channel, None
        plan.launches.append(tile_filters(call, grad_output, spatial, together))
    if channel is not None:
        # S is not read under "add", which only the general kernel can leave out
        grad_gain = tile_grad_gain if call.combine == "mul" else gather_grad_gain
        plan.launches.append(grad_gain(call, grad_output, channel))


def _plan_banded(plan: Plan, call: Call, grad_output: Tensor, grads: Gradients) -> None:
    spatial, channel = grads.spatial_filter, grads.channel_filter
    statistics = None
    with_delta = spatial is not None and not holds_all_taps(call)
    if grads.input is not None or with_delta:
        statistics = _statistics(plan, call, grad_output, with_delta)
    if grads.input is not None:
        item = band_forward(call, grad_output, grads.input, transposed=True, statistics=statistics)
        plan.launches.append(item)
    _plan_border(plan, call, grad_output, grads, statistics)
    if spatial is not None:
        plan.launches.append(band_filters(call, grad_output, spatial, statistics))
    if channel is not None:
        plan.launches.append(band_grad_gain(call, grad_output, channel))
