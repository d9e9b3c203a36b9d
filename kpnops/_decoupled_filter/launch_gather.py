"""Launches of the general kernels."""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from . import launch
from .call import Call
from .geometry import Band, bands, border_readers
from .kernels_gather import _gather_bwd_input_kernel, _gather_fwd_kernel
from .kernels_gather_filters import _gather_bwd_channel_kernel, _gather_bwd_spatial_kernel
from .launch_table import tuned
from .plan import Launch, Plan, channel_strides, strides, sum_type
from .strips import Strip, strip_constants

__all__ = [
    "gather_forward",
    "gather_grad_channel",
    "gather_grad_gain",
    "gather_grad_input",
    "gather_grad_spatial",
    "index_type",
    "rows_of_a_chunk",
    "sizes",
]

# Partial sums of a 3-D channel filter's gradient: enough programs for a GPU, few enough to add up.
_MAX_CHUNKS = 256
_INT32_MAX = 2**31 - 1


def gather_forward(call: Call, output: Tensor) -> Launch:
    """The forward."""
    return _gather_sum(call, output, call.channel_filter, channel_strides(call), sum_batch=False)


def gather_grad_gain(call: Call, grad_output: Tensor, grad_channel: Tensor) -> Launch:
    """Gradient of a 4-D channel filter: the forward with grad_output for a gain, added up over
    shared images."""
    return _gather_sum(
        call,
        grad_channel,
        grad_output,
        strides(grad_output),
        sum_batch=call.channel_shared,
        gain_of_gradient=True,
    )


def _gather_sum(
    call: Call,
    output: Tensor,
    channel: Tensor | None,
    strides_of_channel: tuple[int, ...],
    sum_batch: bool,
    gain_of_gradient: bool = False,
) -> Launch:
    config = launch.gather_channels_launch(call.channels_per_group)
    config = tuned(config, "gather_forward", call)
    use_spatial = not gain_of_gradient or call.combine == "mul"
    Ho, Wo = call.output_size
    channel_blocks = call.groups * -(-call.channels_per_group // config.block_n)
    images = 1 if sum_batch else call.input.shape[0]
    return Launch(
        kernel=_gather_fwd_kernel,
        programs=-(-(Ho * Wo) // config.block_p) * channel_blocks * images,
        arguments={
            "x_ptr": call.input,
            "spatial_ptr": call.spatial_filter,
            "channel_ptr": channel if channel is not None else call.input,
            "out_ptr": output,
            "B": call.input.shape[0],
            **sizes(call),
            "x_strides": strides(call.input),
            "spatial_strides": strides(call.spatial_filter),
            "channel_strides": strides_of_channel,
            "out_strides": strides(output),
        },
        constants={
            "FORM": "pixel" if gain_of_gradient else call.form,
            "COMBINE": "mul" if gain_of_gradient else call.combine,
            "PADDING": call.window.padding_mode,
            "USE_SPATIAL": use_spatial,
            "SOFTMAX": use_spatial and call.softmax,
            "SUM_BATCH": sum_batch,
            "ACC": sum_type(call),
            "INDEX": index_type(call),
            "BLOCK_P": config.block_p,
            "BLOCK_C": config.block_n,
        },
        num_warps=config.num_warps,
        max_registers=config.max_registers,
    )


def gather_grad_input(
    call: Call,
    grad_output: Tensor,
    grad_input: Tensor,
    statistics: Tensor | None,
    border_only: bool,
) -> list[Launch]:
    """Gradient of the input, one launch for each rectangle of equally many readers; or its border
    only."""
    window = call.window
    size = call.input_size
    after = window.after(size, call.output_size)
    rows, columns = (
        bands(size[axis], window.before[axis], after[axis], window.padding_mode) for axis in (0, 1)
    )
    if not border_only and window.padding_mode == "circular":  # borders have no more readers
        rows, columns = [Band(0, size[0], False)], [Band(0, size[1], False)]
    return [
        _gather_rectangle(call, grad_output, grad_input, statistics, row, column)
        for row in rows
        for column in columns
        if row.border or column.border or not border_only
    ]


def _gather_rectangle(
    call: Call,
    grad_output: Tensor,
    grad_input: Tensor,
    statistics: Tensor | None,
    row: Band,
    column: Band,
) -> Launch:
    config = launch.gather_input_launch(call.channels_per_group)
    config = tuned(config, "gather_input", call)
    height, width = row.stop - row.start, column.stop - column.start
    channel_blocks = call.groups * -(-call.channels_per_group // config.block_n)
    in_strips = statistics is not None or call.held_gradient

    def cut(strip: Strip) -> tuple[int, dict[str, Any]] | None:
        top, bottom = max(row.start, strip.rows.start), min(row.stop, strip.rows.stop)
        if bottom <= top:
            return None
        blocks = -(-((bottom - top) * width) // config.block_p)
        return blocks * channel_blocks * strip.images, {"top": top, "height": bottom - top}

    return Launch(
        kernel=_gather_bwd_input_kernel,
        programs=-(-(height * width) // config.block_p) * channel_blocks * call.input.shape[0],
        arguments={
            "grad_ptr": grad_output,
            "spatial_ptr": call.spatial_filter,
            "channel_ptr": call.channel_filter if call.channel_filter is not None else call.input,
            "statistics_ptr": statistics if statistics is not None else call.input,
            "grad_x_ptr": grad_input,
            **sizes(call),
            "top": row.start,
            "left": column.start,
            "height": height,
            "width": width,
            "readers_h": _readers(call, 0, row),
            "readers_w": _readers(call, 1, column),
            "grad_strides": strides(grad_output),
            "spatial_strides": strides(call.spatial_filter),
            "channel_strides": channel_strides(call),
            "grad_x_strides": strides(grad_input),
        },
        constants={
            "FORM": call.form,
            "COMBINE": call.combine,
            "PADDING": call.window.padding_mode,
            "SOFTMAX": call.softmax,
            "HELD_GRAD": call.held_gradient,
            "ACC": sum_type(call),
            "INDEX": index_type(call),
            "BLOCK_P": config.block_p,
            "BLOCK_C": config.block_n,
            **strip_constants(in_strips),
        },
        num_warps=config.num_warps,
        max_registers=config.max_registers,
        cut=cut if in_strips else None,
    )


def _readers(call: Call, axis: int, band: Band) -> int:
    """Most outputs along an axis that read one position of a band through one tap."""
    window = call.window
    if not band.border:
        return window.scale
    before = window.before[axis]
    reach = (window.kernel_size[axis] - 1) * window.dilation[axis] - before
    size = call.input_size[axis]
    return window.scale * border_readers(size, before, reach, window.padding_mode)


def gather_grad_spatial(
    call: Call, grad_output: Tensor, grad_spatial: Tensor, statistics: Tensor | None
) -> Launch:
    """Gradient of the spatial filter."""
    config = launch.gather_taps_launch(call.window.taps)
    config = tuned(config, "gather_spatial", call)
    Ho, Wo = call.output_size
    tap_blocks = -(-call.window.taps // config.block_n)
    in_strips = statistics is not None or call.held_gradient
    across = tap_blocks * call.groups

    def cut(strip: Strip) -> tuple[int, dict[str, Any]]:
        return -(-(strip.output_rows * Wo) // config.block_p) * across * strip.images, {}

    return Launch(
        kernel=_gather_bwd_spatial_kernel,
        programs=-(-(Ho * Wo) // config.block_p) * across * call.input.shape[0],
        arguments={
            "x_ptr": call.input,
            "grad_ptr": grad_output,
            "spatial_ptr": call.spatial_filter,
            "channel_ptr": call.channel_filter if call.channel_filter is not None else call.input,
            "statistics_ptr": statistics if statistics is not None else call.input,
            "grad_spatial_ptr": grad_spatial,
            **sizes(call),
            "x_strides": strides(call.input),
            "grad_strides": strides(grad_output),
            "spatial_strides": strides(call.spatial_filter),
            "channel_strides": channel_strides(call),
            "grad_spatial_strides": strides(grad_spatial),
        },
        constants={
            "FORM": call.form,
            "COMBINE": call.combine,
            "PADDING": call.window.padding_mode,
            "SOFTMAX": call.softmax,
            "HELD_GRAD": call.held_gradient,
            "ACC": sum_type(call),
            "INDEX": index_type(call),
            "BLOCK_P": config.block_p,
            "BLOCK_T": config.block_n,
            **strip_constants(in_strips),
        },
        num_warps=config.num_warps,
        max_registers=config.max_registers,
        cut=cut if in_strips else None,
    )


def _pixels_of_a_chunk(call: Call, config: launch.GatherLaunch) -> int:
    blocks = -(-call.output_size[0] * call.output_size[1] // config.block_p)
    return -(-blocks // min(_MAX_CHUNKS, blocks)) * config.block_p


def rows_of_a_chunk(call: Call) -> int:
    """Rows, rounded up, of the chunks of pixels that the gradient of a 3-D channel filter is summed
    in."""
    pixels = _pixels_of_a_chunk(call, launch.gather_taps_launch(call.window.taps))
    return -(-pixels // call.output_size[1])


def gather_grad_channel(
    plan: Plan,
    call: Call,
    grad_output: Tensor,
    grad_channel: Tensor,
    statistics: Tensor | None,
) -> None:
    """Gradient of a 3-D channel filter: partial sums of chunks of pixels, then their sum in fixed
    order."""
    config = launch.gather_taps_launch(call.window.taps)
    pixels = call.output_size[0] * call.output_size[1]
    pixels_per_chunk = _pixels_of_a_chunk(call, config)
    chunks = -(-pixels // pixels_per_chunk)
    B, C = call.input.shape[:2]
    taps = call.window.taps
    across = C * -(-taps // config.block_n)
    softmax = call.softmax and call.combine == "mul"
    partial = torch.empty((chunks, B, C, taps), dtype=call.sum_dtype, device=call.input.device)

    def cut(strip: Strip) -> tuple[int, dict[str, Any]]:
        first, last = (
            -(-row * call.output_size[1] // pixels_per_chunk)
            for row in (strip.outputs.start, strip.outputs.stop)
        )
        return (last - first) * across * strip.images, {"images": strip.images}

    item = Launch(
        kernel=_gather_bwd_channel_kernel,
        programs=B * across * chunks,
        arguments={
            "x_ptr": call.input,
            "grad_ptr": grad_output,
            "spatial_ptr": call.spatial_filter,
            "statistics_ptr": statistics if statistics is not None else call.input,
            "partial_ptr": partial,
            "B": B,
            **sizes(call),
            "pixels_per_chunk": pixels_per_chunk,
            "images": B,
            "x_strides": strides(call.input),
            "grad_strides": strides(grad_output),
            "spatial_strides": strides(call.spatial_filter),
        },
        constants={
            "COMBINE": call.combine,
            "PADDING": call.window.padding_mode,
            "SOFTMAX": softmax,
            "ACC": sum_type(call),
            "INDEX": index_type(call),
            "BLOCK_P": config.block_p,
            "BLOCK_T": config.block_n,
            **strip_constants(softmax),
        },
        num_warps=config.num_warps,
        max_registers=config.max_registers,
        cut=cut if softmax else None,
    )
    plan.launches.append(item)
    plan.finish.append(lambda: add_partials(call, partial, grad_channel))


def add_partials(call: Call, partial: Tensor, grad_channel: Tensor) -> None:
    """Sum of ``partial (chunks, B, C, T)`` over chunks, and over images that share the filter."""
    grad_channel.copy_(partial.sum((0, 1)) if call.channel_shared else partial.sum(0))


def sizes(call: Call) -> dict[str, Any]:
    """The sizes that all general kernels take."""
    window = call.window
    _, C, H, W = call.input.shape
    Ho, Wo = call.output_size
    return {
        "C": C,
        "H": H,
        "W": W,
        "HO": Ho,
        "WO": Wo,
        "GROUPS": call.groups,
        "kernel_h": window.kernel_size[0],
        "kernel_w": window.kernel_size[1],
        "stride_h": window.stride[0],
        "stride_w": window.stride[1],
        "dilation_h": window.dilation[0],
        "dilation_w": window.dilation[1],
        "before_h": window.before[0],
        "before_w": window.before[1],
        "scale": window.scale,
    }


def index_type(call: Call) -> Any:
    """Triton's type of rows and columns: 32-bit where that holds every position on the way to a
    source index or a reader."""
    window = call.window
    farthest = max(
        (2 * size + (kernel - 1) * dilation) * window.scale
        for size, kernel, dilation in zip(
            call.input_size, window.kernel_size, window.dilation, strict=True
        )
    )
    return tl.int32 if farthest <= _INT32_MAX else tl.int64
