"""Runs the Triton kernels: decides between banded, fast and general ones, and turns a call into
launches.

``plan_forward`` and ``plan_backward`` look at shapes, strides and dtypes only (meta tensors will
do), so that grids can be tested and kernels compiled without a GPU. ``forward`` and ``backward``
run the plans.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from . import launch, launch_gather, launch_tile
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
from .launch_mix import mix_forward, mix_grad_filtered, mix_grad_matrix
from .launch_softmax import softmax_statistics
from .launch_tile import (
    tile_filters,
    tile_forward,
    tile_fused,
    tile_grad_channel,
    tile_grad_gain,
)
from .plan import Launch, Plan, in_strips, run
from .strips import TILE_ROWS, Strip, allowed_bytes, strips

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
    tensors = [output, call.input, call.spatial_filter, call.channel_filter]
    if _forward_fits(call, tensors) and is_fast(call.window, tensors):
        return Plan([tile_forward(call, call.input, output, transposed=False)])
    return Plan([gather_forward(call, output)])


def _forward_fits(call: Call, tensors: Sequence[Tensor | None]) -> bool:
    """Whether the forward, or the gradient of a gain, on such tensors fits into registers."""
    return launch.forward_fits(
        call.window.taps,
        call.window.padding_mode,
        call.sum_dtype,
        call.softmax,
        _adjacent(tensors),
    )


def _input_fits(call: Call, grad_output: Tensor, grad_input: Tensor) -> bool:
    """Whether the gradient of the input fits into registers."""
    gains = call.channel_filter if call.form == "pixel" else None
    adjacent = _adjacent([grad_output, grad_input, call.spatial_filter, gains])
    return launch.input_fits(
        call.window.taps, call.sum_dtype, call.softmax, adjacent, gains is not None
    )


def _adjacent(tensors: Sequence[Tensor | None]) -> bool:
    """Whether neighbours in a row of every image among the tensors are neighbours in memory."""
    return all(
        tensor.stride(3) == 1 for tensor in tensors if tensor is not None and tensor.dim() == 4
    )


def plan_backward(call: Call, grad_output: Tensor, grads: Gradients) -> Plan:
    """Launches of the backward."""
    plan = Plan()
    tensors = [*grads, grad_output, call.input, call.spatial_filter, call.channel_filter]
    whole, mixed = call, call.form == "mix"
    if mixed:
        if grads.channel_filter is not None:
            plan.launches.append(mix_grad_matrix(call, grad_output, grads.channel_filter))
            grads = grads._replace(channel_filter=None)
        # What is left is the backward of the filter alone, from the gradient before mixing.
        double = call.sum_dtype == torch.float64  # of the matrix alone, perhaps
        call = replace(call, channel_filter=None, double=double, held_gradient=True)
    route = _route(call, grad_output, grads)
    if (
        grads.channel_filter is not None
        and call.form == "pixel"
        and (call.channel_shared or route is _plan_general)
    ):
        # the forward's sum times grad_output; the general kernel can add images up
        plan.launches.append(gather_grad_gain(call, grad_output, grads.channel_filter))
        grads = grads._replace(channel_filter=None)
    if all(grad is None for grad in grads):
        return plan
    cut = _strips(call, grads, route, tensors) if call.softmax or mixed else []
    rest = Plan(finish=plan.finish)
    if mixed:
        item, grad_output = mix_grad_filtered(whole, grad_output, cut)
        rest.launches.append(item)
    route(rest, call, grad_output, grads, cut)
    plan.launches += in_strips([item for item in rest.launches if item.cut is not None], cut)
    plan.launches += [item for item in rest.launches if item.cut is None]
    return plan


_Route = Callable[[Plan, Call, Tensor, Gradients, list[Strip]], None]


def _route(call: Call, grad_output: Tensor, grads: Gradients) -> _Route:
    """What plans the kernels that take a backward."""
    if call.held_gradient:  # only the strides of its rows matter, which do not depend on the strips
        shape = (1, call.input.shape[1], *call.output_size)
        grad_output = torch.empty(shape, dtype=call.sum_dtype, device="meta")
    if is_banded_backward(call, grad_output):
        return _plan_banded
    tensors = [*grads, grad_output, call.input, call.spatial_filter, call.channel_filter]
    if not is_fast(call.window, tensors):
        return _plan_general
    if call.form == "image" or not launch.fused_fits(
        call.channels_per_group, call.window.kernel_size, call.sum_dtype
    ):
        return _plan_many_channels
    return _plan_few_channels


def _strips(
    call: Call, grads: Gradients, route: _Route, tensors: list[Tensor | None]
) -> list[Strip]:
    """The strips of a backward that has a workspace; one unless that takes too much memory."""
    numbers = call.input.shape[1] if call.held_gradient else 0
    if call.softmax:
        numbers += 3 * call.groups
    images, (Ho, Wo) = call.input.shape[0], call.output_size
    row_bytes = numbers * Wo * call.sum_dtype.itemsize
    allowed = allowed_bytes(images * Ho * row_bytes, tensors)
    tile_rows, more_rows = 1, 0
    if route is not _plan_general:
        tile_rows = TILE_ROWS
    if call.form == "image" and grads.channel_filter is not None and call.combine == "mul":
        if route is _plan_general:
            more_rows = launch_gather.rows_of_a_chunk(call)
        else:
            tile_rows = math.lcm(tile_rows, launch_tile.rows_of_a_chunk(call))
    return strips(
        images,
        call.input_size,
        call.output_size,
        call.window,
        row_bytes,
        allowed,
        with_readers=grads.input is not None,
        tile_rows=tile_rows,
        more_rows=more_rows,
    )


def _statistics(
    plan: Plan, call: Call, grad_output: Tensor, with_delta: bool, cut: list[Strip]
) -> Tensor | None:
    """Under softmax, what kernels need of a pixel whose taps they do not all hold."""
    if not call.softmax:
        return None
    item, statistics = softmax_statistics(call, grad_output, with_delta, cut)
    plan.launches.append(item)
    return statistics


def _plan_few_channels(
    plan: Plan, call: Call, grad_output: Tensor, grads: Gradients, cut: list[Strip]
) -> None:
    statistics = _statistics(plan, call, grad_output, grads.spatial_filter is not None, cut)
    plan.launches.append(tile_fused(call, grad_output, grads, statistics))
    _plan_border(plan, call, grad_output, grads, statistics)


def _plan_border(
    plan: Plan, call: Call, grad_output: Tensor, grads: Gradients, statistics: Tensor | None
) -> None:
    if grads.input is not None:  # pixels that the padding reads again: after the fast pass
        plan.launches += gather_grad_input(
            call, grad_output, grads.input, statistics, border_only=True
        )


def _plan_general(
    plan: Plan, call: Call, grad_output: Tensor, grads: Gradients, cut: list[Strip]
) -> None:
    statistics = None
    added_channel_alone = (
        grads.input is None and grads.spatial_filter is None and call.combine == "add"
    )
    if not added_channel_alone:  # its gradient reads no spatial filter
        statistics = _statistics(plan, call, grad_output, grads.spatial_filter is not None, cut)
    if grads.input is not None:
        plan.launches += gather_grad_input(
            call, grad_output, grads.input, statistics, border_only=False
        )
    if grads.spatial_filter is not None:
        item = gather_grad_spatial(call, grad_output, grads.spatial_filter, statistics)
        plan.launches.append(item)
    if grads.channel_filter is not None:
        gather_grad_channel(plan, call, grad_output, grads.channel_filter, statistics)


def _plan_many_channels(
    plan: Plan, call: Call, grad_output: Tensor, grads: Gradients, cut: list[Strip]
) -> None:
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
        statistics = _statistics(plan, call, grad_output, general_spatial is not None, cut)
    if grads.input is not None:
        if _input_fits(call, grad_output, grads.input):
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
        if launch.channel_with_filters(call.window.taps, call.window.padding_mode, call.sum_dtype):
            together, channel = channel, None
        plan.launches.append(tile_filters(call, grad_output, spatial, together))
    if channel is not None:
        # S is not read under "add", which only the general kernel can leave out
        tensors = [channel, call.input, call.spatial_filter, grad_output]
        fast = call.combine == "mul" and _forward_fits(call, tensors)
        grad_gain = tile_grad_gain if fast else gather_grad_gain
        plan.launches.append(grad_gain(call, grad_output, channel))


def _plan_banded(
    plan: Plan, call: Call, grad_output: Tensor, grads: Gradients, cut: list[Strip]
) -> None:
    spatial, channel = grads.spatial_filter, grads.channel_filter
    statistics = None
    with_delta = spatial is not None and not holds_all_taps(call)
    if grads.input is not None or with_delta:
        statistics = _statistics(plan, call, grad_output, with_delta, cut)
    if grads.input is not None:
        item = band_forward(call, grad_output, grads.input, transposed=True, statistics=statistics)
        plan.launches.append(item)
    _plan_border(plan, call, grad_output, grads, statistics)
    if spatial is not None:
        plan.launches.append(band_filters(call, grad_output, spatial, statistics))
    if channel is not None:
        plan.launches.append(band_grad_gain(call, grad_output, channel))
