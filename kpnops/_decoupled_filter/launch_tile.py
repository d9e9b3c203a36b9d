"""Launches of the fast kernels."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import launch
from .call import Call, Gradients
from .kernels_tile import _tile_fwd_kernel
from .kernels_tile_filters import _tile_bwd_channel_kernel, _tile_bwd_filters_kernel
from .kernels_tile_fused import _fused_bwd_kernel
from .launch_gather import add_partials
from .plan import Launch, Plan, channel_strides, strides, sum_type

__all__ = ["tile_filters", "tile_forward", "tile_fused", "tile_grad_channel", "tile_grad_gain"]

_NO_STRIDES = (0, 0, 0, 0)


def _tiles(call: Call, config: launch.TileLaunch) -> int:
    H, W = call.input.shape[2:]
    return -(-H // config.rows) * -(-W // config.block_w) * call.input.shape[0] * call.groups


def _constants(call: Call) -> dict[str, Any]:
    return {
        "KH": call.window.kernel_size[0],
        "KW": call.window.kernel_size[1],
        "COMBINE": call.combine,
        "PADDING": call.window.padding_mode,
        "ACC": sum_type(call),
    }


def _sizes(call: Call) -> dict[str, int]:
    return {"GROUPS": call.groups, "H": call.input.shape[2], "W": call.input.shape[3]}


def tile_forward(
    call: Call,
    source: Tensor,
    target: Tensor,
    transposed: bool,
    statistics: Tensor | None = None,
) -> Launch:
    """The forward from ``source``; transposed, the gradient of the input from that of the output.

    Only transposed it needs the ``statistics`` of a softmax: a pixel's taps are in registers here.
    """
    constants = _constants(call)
    if transposed:  # what other paddings read again is the general kernel's
        constants["PADDING"] = "zeros"
    config = launch.forward_launch(
        call.window.kernel_size,
        call.input.shape[3],
        call.sum_dtype,
        constants["PADDING"],
        transposed,
        call.softmax,
    )
    return Launch(
        kernel=_tile_fwd_kernel,
        programs=_tiles(call, config),
        arguments={
            "x_ptr": source,
            "spatial_ptr": call.spatial_filter,
            "channel_ptr": call.channel_filter if call.channel_filter is not None else source,
            "statistics_ptr": statistics if statistics is not None else source,
            "out_ptr": target,
            "C": call.input.shape[1],
            **_sizes(call),
            "x_strides": strides(source),
            "spatial_strides": strides(call.spatial_filter),
            "channel_strides": channel_strides(call),
            "out_strides": strides(target),
        },
        constants={
            **constants,
            "FORM": call.form,
            "SOFTMAX": call.softmax,
            "TRANSPOSED": transposed,
            "ROWS": config.rows,
            "BLOCK_W": config.block_w,
        },
        num_warps=config.num_warps,
        max_registers=config.max_registers,
    )


def tile_grad_gain(call: Call, grad_output: Tensor, grad_channel: Tensor) -> Launch:
    """Gradient of a 4-D channel filter under "mul": the forward with grad_output for a gain."""
    return tile_forward(
        replace(call, channel_filter=grad_output), call.input, grad_channel, transposed=False
    )


def tile_filters(
    call: Call, grad_output: Tensor, grad_spatial: Tensor, grad_channel: Tensor | None
) -> Launch:
    """Gradient of the spatial filter and, if given, of a 4-D channel filter."""
    config = launch.filters_launch(call.window.taps, call.input.shape[3], call.sum_dtype)
    return Launch(
        kernel=_tile_bwd_filters_kernel,
        programs=_tiles(call, config),
        arguments={
            "x_ptr": call.input,
            "grad_ptr": grad_output,
            "spatial_ptr": call.spatial_filter,
            "channel_ptr": call.channel_filter if call.channel_filter is not None else call.input,
            "grad_spatial_ptr": grad_spatial,
            "grad_channel_ptr": grad_channel if grad_channel is not None else grad_spatial,
            "C": call.input.shape[1],
            **_sizes(call),
            "x_strides": strides(call.input),
            "grad_strides": strides(grad_output),
            "spatial_strides": strides(call.spatial_filter),
            "channel_strides": channel_strides(call),
            "grad_spatial_strides": strides(grad_spatial),
            "grad_channel_strides": _NO_STRIDES if grad_channel is None else strides(grad_channel),
        },
        constants={
            **_constants(call),
            "FORM": call.form,
            "SOFTMAX": call.softmax,
            "WITH_CHANNEL": grad_channel is not None,
            "BLOCK_W": config.block_w,
        },
        num_warps=config.num_warps,
        max_registers=config.max_registers,
    )


def tile_grad_channel(
    plan: Plan, call: Call, grad_output: Tensor, grad_channel: Tensor, statistics: Tensor | None
) -> None:
    """Gradient of a 3-D channel filter: partial sums of chunks of pixels, then their sum in fixed
    order."""
    config = launch.channel_image_launch(call.input.shape[3])
    B, C, H, W = call.input.shape
    chunks = -(-H // config.rows) * -(-W // config.block_w)
    shape = (chunks, B, C, call.window.taps)
    partial = torch.empty(shape, dtype=call.sum_dtype, device=call.input.device)
    item = Launch(
        kernel=_tile_bwd_channel_kernel,
        programs=chunks * B * C,
        arguments={
            "x_ptr": call.input,
            "grad_ptr": grad_output,
            "spatial_ptr": call.spatial_filter,
            "statistics_ptr": statistics if statistics is not None else call.input,
            "partial_ptr": partial,
            "B": B,
            "C": C,
            **_sizes(call),
            "rows_per_chunk": config.rows,
            "x_strides": strides(call.input),
            "grad_strides": strides(grad_output),
            "spatial_strides": strides(call.spatial_filter),
        },
        constants={
            **_constants(call),
            "SOFTMAX": call.softmax and call.combine == "mul",
            "BLOCK_W": config.block_w,
        },
        num_warps=config.num_warps,
        max_registers=config.max_registers,
    )
    plan.launches.append(item)
    plan.finish.append(lambda: add_partials(call, partial, grad_channel))


def tile_fused(
    call: Call, grad_output: Tensor, grads: Gradients, statistics: Tensor | None
) -> Launch:
    """The gradients that are asked for, in one kernel: few channels, no 3-D channel filter."""
    config = launch.fused_launch(call.input.shape[3])
    x = call.input

    def target(tensor: Tensor | None) -> tuple[Tensor, tuple[int, ...]]:
        return (x, _NO_STRIDES) if tensor is None else (tensor, strides(tensor))

    channel = call.channel_filter if call.channel_filter is not None else x
    (grad_x_ptr, grad_x_strides) = target(grads.input)
    (grad_spatial_ptr, grad_spatial_strides) = target(grads.spatial_filter)
    (grad_channel_ptr, grad_channel_strides) = target(grads.channel_filter)
    return Launch(
        kernel=_fused_bwd_kernel,
        programs=_tiles(call, config),
        arguments={
            "x_ptr": x,
            "grad_ptr": grad_output,
            "spatial_ptr": call.spatial_filter,
            "channel_ptr": channel,
            "statistics_ptr": statistics if statistics is not None else x,
            "grad_x_ptr": grad_x_ptr,
            "grad_spatial_ptr": grad_spatial_ptr,
            "grad_channel_ptr": grad_channel_ptr,
            **_sizes(call),
            "x_strides": strides(x),
            "grad_strides": strides(grad_output),
            "spatial_strides": strides(call.spatial_filter),
            "channel_strides": channel_strides(call),
            "grad_x_strides": grad_x_strides,
            "grad_spatial_strides": grad_spatial_strides,
            "grad_channel_strides": grad_channel_strides,
        },
        constants={
            **_constants(call),
            "CHANNELS": call.channels_per_group,
            "FORM": call.form,
            "SOFTMAX": call.softmax,
            "WITH_INPUT": grads.input is not None,
            "WITH_SPATIAL": grads.spatial_filter is not None,
            "WITH_CHANNEL": grads.channel_filter is not None,
            "BLOCK_H": config.rows,
            "BLOCK_W": config.block_w,
        },
        num_warps=config.num_warps,
        max_registers=config.max_registers,
    )
