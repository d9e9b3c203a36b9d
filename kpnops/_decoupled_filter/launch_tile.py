"""Launches of the fast kernels."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import launch, launch_band
from .call import Call, Gradients
from .kernels_tile import _tile_fwd_kernel
from .kernels_tile_channel import _tile_bwd_channel_kernel
from .kernels_tile_filters import _tile_bwd_filters_kernel
from .kernels_tile_fused import _fused_bwd_kernel
from .launch_gather import add_partials
from .launch_table import tuned
from .plan import Cut, Launch, Plan, channel_strides, strides, sum_type
from .strips import Strip, strip_constants

__all__ = [
    "rows_of_a_chunk",
    "tile_filters",
    "tile_forward",
    "tile_fused",
    "tile_grad_channel",
    "tile_grad_gain",
]

_NO_STRIDES = (0, 0, 0, 0)


def _tiles(call: Call, config: launch.TileLaunch) -> int:
    H, W = call.input.shape[2:]
    return -(-H // config.block_h) * -(-W // config.block_w) * call.input.shape[0] * call.groups


def _cut(call: Call, config: launch.TileLaunch, chunks: int = 1) -> Cut:
    across = -(-call.input.shape[3] // config.block_w) * call.groups * chunks

    def cut(strip: Strip) -> tuple[int, dict[str, Any]]:
        return strip.tiles(config.block_h) * across, {}

    return cut


def _alignment(width: int, tensors: list[Tensor | None]) -> int:
    """What rows of every tensor begin at multiples of: 16, 2 or 1 pixels; 0 where neighbours of a
    row are none in memory."""
    present = [tensor for tensor in tensors if tensor is not None]
    if any(tensor.stride(3) != 1 for tensor in present):
        return 0
    alignment = 16
    for tensor in present:
        *strides, _ = tensor.stride()
        if tensor.data_ptr() % 16:
            return 1
        for length in (width, *strides):
            alignment = math.gcd(alignment, length)
    return alignment if alignment in (16, 1) else 2 if alignment % 2 == 0 else 1


def _gains(call: Call) -> Tensor | None:
    return call.channel_filter if call.form == "pixel" else None


def _same_strides(tensors: list[Tensor | None]) -> bool:
    """Whether all tensors of a channel loop lie alike, so that one offset serves all: it saves
    registers."""
    return len({tensor.stride()[1:] for tensor in tensors if tensor is not None}) == 1


def _tile(config: launch.TileLaunch, tensors: list[Tensor | None]) -> dict[str, Any]:
    return {
        "BLOCK_H": config.block_h,
        "BLOCK_W": config.block_w,
        "ROWS": config.rows,
        "PIXELS": config.pixels,
        "SAME_STRIDES": _same_strides(tensors),
    }


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
    tensors = [source, target, _gains(call)]
    present = [tensor for tensor in [*tensors, call.spatial_filter] if tensor is not None]
    alignment = _alignment(call.input.shape[3], [*present])
    config = launch.forward_launch(
        call.window.kernel_size,
        call.input.shape[3],
        call.sum_dtype,
        constants["PADDING"],
        transposed,
        call.softmax,
        alignment,
        call.form == "pixel" and call.combine == "mul",
        _same_strides(tensors),
        any(tensor.dtype != call.sum_dtype for tensor in present),
    )
    config = tuned(config, "tile_input" if transposed else "tile_forward", call)
    tiles = _tiles(call, config)
    channels = launch.channels_of_a_program(call.channels_per_group, tiles)
    chunks = call.channels_per_group // channels
    in_strips = statistics is not None or (transposed and call.held_gradient)
    return Launch(
        kernel=_tile_fwd_kernel,
        programs=tiles * chunks,
        arguments={
            "x_ptr": source,
            "spatial_ptr": call.spatial_filter,
            "channel_ptr": call.channel_filter if call.channel_filter is not None else source,
            "statistics_ptr": statistics if statistics is not None else source,
            "out_ptr": target,
            **_sizes(call),
            "chunks": chunks,
            "channels": channels,
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
            "HELD_GRAD": transposed and call.held_gradient,
            **_tile(config, tensors),
            "JOINED": alignment > 1,
            "EVEN_STRIDES": config.pixels == 2 and alignment == 2,
            **strip_constants(in_strips),
        },
        num_warps=config.num_warps,
        max_registers=config.max_registers,
        cut=_cut(call, config, chunks) if in_strips else None,
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
    tensors = [call.input, grad_output, grad_channel, _gains(call)]
    alignment = _alignment(call.input.shape[3], [*tensors, call.spatial_filter, grad_spatial])
    config = launch.filters_launch(
        call.window.taps,
        call.input.shape[3],
        call.sum_dtype,
        alignment,
        call.window.padding_mode,
        with_taps=call.softmax or (grad_channel is not None and call.combine == "mul"),
        added=call.combine == "add",
    )
    config = tuned(config, "tile_filters", call)
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
            "HELD_GRAD": call.held_gradient,
            **_tile(config, tensors),
            "EVEN_STRIDES": config.pixels == 2 and alignment == 2,
            **strip_constants(call.held_gradient),
        },
        num_warps=config.num_warps,
        max_registers=config.max_registers,
        cut=_cut(call, config) if call.held_gradient else None,
    )


def _chunks(call: Call) -> launch.TileLaunch:
    B, C, H, W = call.input.shape
    softmax = call.softmax and call.combine == "mul"
    config = launch.channel_image_launch(call.window.taps, H, W, B * C, call.sum_dtype, softmax)
    return tuned(config, "tile_channel_image", call)


def rows_of_a_chunk(call: Call) -> int:
    """Rows of the chunks of pixels that the gradient of a 3-D channel filter is summed in."""
    return _chunks(call).block_h


def tile_grad_channel(
    plan: Plan, call: Call, grad_output: Tensor, grad_channel: Tensor, statistics: Tensor | None
) -> None:
    """Gradient of a 3-D channel filter: partial sums of chunks of pixels, then their sum in fixed
    order."""
    B, C, H, W = call.input.shape
    config = _chunks(call)
    across = -(-W // config.block_w) * C
    softmax = call.softmax and call.combine == "mul"
    chunks = -(-H // config.block_h) * -(-W // config.block_w)
    shape = (chunks, B, C, call.window.taps)
    partial = torch.empty(shape, dtype=call.sum_dtype, device=call.input.device)

    def cut(strip: Strip) -> tuple[int, dict[str, Any]]:
        return strip.tiles(config.block_h) * across, {"images": strip.images}

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
            "rows_per_chunk": config.block_h,
            "images": B,
            "x_strides": strides(call.input),
            "grad_strides": strides(grad_output),
            "spatial_strides": strides(call.spatial_filter),
        },
        constants={
            **_constants(call),
            "SOFTMAX": softmax,
            "BLOCK_W": config.block_w,
            **strip_constants(softmax),
        },
        num_warps=config.num_warps,
        max_registers=config.max_registers,
        cut=cut if softmax else None,
    )
    plan.launches.append(item)
    plan.finish.append(lambda: add_partials(call, partial, grad_channel))


def tile_fused(
    call: Call, grad_output: Tensor, grads: Gradients, statistics: Tensor | None
) -> Launch:
    """The gradients that are asked for, in one kernel: few channels, no 3-D channel filter."""
    x = call.input
    tensors = [x, grad_output, grads.input, grads.channel_filter, _gains(call)]
    alignment = _alignment(x.shape[3], [*tensors, call.spatial_filter, grads.spatial_filter])
    columns = call.window.kernel_size[1]
    architecture = launch_band.architecture(x.device)
    if architecture.startswith("gfx1"):
        alignment = 1  # RDNA: with two pixels a thread 5x5 taps spill 1,776 bytes
    config = launch.fused_launch(
        columns,
        call.channels_per_group,
        x.shape[3],
        call.sum_dtype,
        alignment,
        call.softmax,
        call.window.padding_mode,
    )
    config = tuned(config, "fused", call)

    def target(tensor: Tensor | None) -> tuple[Tensor, tuple[int, ...]]:
        return (x, _NO_STRIDES) if tensor is None else (tensor, strides(tensor))

    unrolled = launch.fused_unrolled(columns, call.sum_dtype)
    parts = call.window.taps // unrolled
    counted = launch.counts_parts(architecture)
    in_strips = statistics is not None or call.held_gradient
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
            **({} if counted else {"parts": parts}),
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
            "UNROLLED": unrolled,
            **({"parts": None} if counted else {}),
            "FORM": call.form,
            "SOFTMAX": call.softmax,
            "WITH_INPUT": grads.input is not None,
            "WITH_SPATIAL": grads.spatial_filter is not None,
            "WITH_CHANNEL": grads.channel_filter is not None,
            "HELD_GRAD": call.held_gradient,
            "BLOCK_H": config.block_h,
            "BLOCK_W": config.block_w,
            "PIXELS": config.pixels,
            "SAME_STRIDES": _same_strides(tensors),
            "EVEN_STRIDES": config.pixels == 2 and alignment == 2,
            **strip_constants(in_strips),
        },
        num_warps=config.num_warps,
        max_registers=config.max_registers,
        cut=_cut(call, config) if in_strips else None,
    )
