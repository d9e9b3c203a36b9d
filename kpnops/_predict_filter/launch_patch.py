"""Launches of the backward of the fused head: those of one patch."""

from typing import Any

from torch import Tensor

from .._decoupled_filter.geometry import border_readers
from .._decoupled_filter.plan import Launch, channel_strides, strides
from . import launch
from .call import Call
from .kernels_head import (
    _patch_bwd_channel_kernel,
    _patch_bwd_features_kernel,
    _patch_bwd_weight_kernel,
)
from .kernels_patch import (
    _patch_bwd_input_kernel,
    _patch_bwd_logits_kernel,
    _patch_filters_kernel,
)
from .launch_common import (
    bias_of,
    block_constants,
    input_strides,
    launch_of,
    product_constants,
    sum_constants,
    weight_of,
    window_constants,
)
from .patches import Patch

__all__ = [
    "chunks_of",
    "grad_channel",
    "grad_features",
    "grad_input",
    "grad_logits",
    "grad_weight",
    "patch_filters",
]

# Into how many chunks sums over pixels are split at most; as many sums are added up at the end.
_MOST_CHUNKS = 32
_PIXELS = 128


def chunks_of(cut: list[Patch]) -> int:
    """Into how many chunks sums over the pixels of each of the patches are split."""
    return min(_MOST_CHUNKS, max(_blocks(patch) * patch.image_count for patch in cut))


def patch_filters(call: Call, patch: Patch, log_sum_exp: Tensor, filters: Tensor) -> Launch:
    """Filters of the patch's readers into ``filters``, ``(images, G*N*T, rows, columns)``."""
    config, weight = launch_of(call, 1), weight_of(call)
    (rows, columns), pixels = patch.readers_size, config.tile[0] * config.tile[1]
    window = window_constants(call)
    del window["COMBINE"]
    return Launch(
        kernel=_patch_filters_kernel,
        programs=-(-rows * columns // pixels) * call.groups * patch.image_count,
        arguments={
            "features_ptr": call.features,
            "weight_ptr": weight,
            "bias_ptr": bias_of(call),
            "log_sum_exp_ptr": log_sum_exp if call.softmax else filters,
            "filters_ptr": filters,
            "GROUPS": call.groups,
            "FRAMES": call.frames,
            "FEATURES": call.features.shape[1],
            "H": call.size[0],
            "W": call.size[1],
            "first_image": patch.images.start,
            "first_row": patch.readers[0].start,
            "first_column": patch.readers[1].start,
            "rows": rows,
            "columns": columns,
            "features_strides": strides(call.features),
            "weight_strides": strides(weight),
        },
        constants={
            **window,
            **product_constants(call),
            "PIXELS": pixels,
            **block_constants(config),
        },
        num_warps=config.num_warps,
    )


def grad_input(
    call: Call, patch: Patch, grad_output: Tensor, filters: Tensor, target: Tensor
) -> Launch:
    """Gradient of the input's pixels in the patch."""
    per_group = call.channels // call.groups
    channels = min(per_group, 4)
    blocks = _blocks(patch) * -(-per_group // channels)
    of_input = input_strides(call, target)
    return Launch(
        kernel=_patch_bwd_input_kernel,
        programs=blocks * call.groups * call.frames * patch.image_count,
        arguments={
            "grad_ptr": grad_output,
            "filters_ptr": filters,
            "channel_ptr": grad_output if call.channel_filter is None else call.channel_filter,
            "grad_x_ptr": target,
            "C": call.channels,
            "GROUPS": call.groups,
            "FRAMES": call.frames,
            **_sizes(call),
            "readers_h": _readers(call, 0, patch.rows),
            "readers_w": _readers(call, 1, patch.columns),
            **_rectangles(patch),
            "frame_stride": of_input["frame_stride"],
            "grad_strides": strides(grad_output),
            "channel_strides": channel_strides(call),
            "grad_x_strides": of_input["x_strides"],
        },
        constants={
            **_window(call),
            "FORM": call.form,
            "PIXELS": _PIXELS,
            "CHANNELS": channels,
        },
        num_warps=4,
    )


def _readers(call: Call, axis: int, part: slice) -> int:
    """Most pixels that read one row or column of ``part`` through one tap: one, away from the
    border."""
    window, size = call.window, call.size[axis]
    before = window.before[axis]
    reach = (window.kernel_size[axis] - 1) * window.dilation[axis]
    if 2 * reach < part.start and part.stop < size - 2 * reach:
        return 1
    return border_readers(size, before, reach - before, window.padding_mode)


def grad_logits(call: Call, patch: Patch, grad_output: Tensor, filters: Tensor) -> Launch:
    """Gradient of the logits, in place of the filters of the patch's own pixels."""
    rows, columns = launch.whole_rows(call.window.kernel_size, 16)
    return Launch(
        kernel=_patch_bwd_logits_kernel,
        programs=_blocks(patch) * call.groups * patch.image_count,
        arguments={
            "x_ptr": call.input,
            "grad_ptr": grad_output,
            "channel_ptr": call.input if call.channel_filter is None else call.channel_filter,
            "filters_ptr": filters,
            "C": call.channels,
            "GROUPS": call.groups,
            "FRAMES": call.frames,
            **_sizes(call),
            **_rectangles(patch),
            **input_strides(call, call.input),
            "grad_strides": strides(grad_output),
            "channel_strides": channel_strides(call),
        },
        constants={
            **_window(call),
            "FORM": call.form,
            "SOFTMAX": call.softmax,
            "PIXELS": _PIXELS,
            "ROWS": rows,
            "COLUMNS": columns,
        },
        num_warps=4,
    )


def grad_features(call: Call, patch: Patch, logits: Tensor, target: Tensor) -> Launch:
    """What the gradient of the logits sends to the features of the patch."""
    constants, features = sum_constants(call), call.features.shape[1]
    block_f, pixels = (64, 64) if constants["MATRIX"] else (16, _PIXELS)
    rows, columns = patch.size
    return Launch(
        kernel=_patch_bwd_features_kernel,
        programs=-(-rows * columns // pixels) * -(-features // block_f) * patch.image_count,
        arguments={
            "logits_ptr": logits,
            "weight_ptr": call.weight,
            "grad_features_ptr": target,
            "TAPS_IN_ALL": call.weight.shape[0],
            "FEATURES": features,
            **_rectangles(patch),
            "weight_strides": strides(call.weight),
            "grad_features_strides": strides(target),
        },
        constants={
            **constants,
            "PIXELS": pixels,
            "BLOCK_T": 32,
            "BLOCK_F": block_f,
        },
        num_warps=4,
    )


def grad_weight(call: Call, patch: Patch, logits: Tensor, partial: Tensor) -> Launch:
    """What the patch adds to ``partial``, ``(chunks, G*N*T, F)``."""
    constants, (taps, features) = sum_constants(call), call.weight.shape
    matrix = constants["MATRIX"]
    # three passes hold two terms of each factor: 64 taps spill 16 bytes on sm_80
    few = constants["PRECISION"] == "tf32x3"
    block_t, block_f = (32 if few else 64, 64) if matrix else (4, 8)
    return Launch(
        kernel=_patch_bwd_weight_kernel,
        programs=partial.shape[0] * -(-taps // block_t) * -(-features // block_f),
        arguments={
            "logits_ptr": logits,
            "features_ptr": call.features,
            "partial_ptr": partial,
            "TAPS_IN_ALL": taps,
            "FEATURES": features,
            "CHUNKS": partial.shape[0],
            "images": patch.image_count,
            **_rectangles(patch),
            "features_strides": strides(call.features),
        },
        constants={
            **constants,
            "PIXELS": 32 if matrix else _PIXELS,
            "BLOCK_T": block_t,
            "BLOCK_F": block_f,
        },
        num_warps=4,
    )


def grad_channel(
    call: Call, patch: Patch, grad_output: Tensor, filters: Tensor, partial: Tensor
) -> Launch:
    """What the patch adds to ``partial``, ``(chunks, B, C, T)``, of a 3-D channel filter."""
    rows, columns = launch.whole_rows(call.window.kernel_size, 16)
    height, width = call.window.kernel_size
    blocks = -(-height // rows) * -(-width // columns)
    of_input = input_strides(call, call.input)
    return Launch(
        kernel=_patch_bwd_channel_kernel,
        programs=partial.shape[0] * blocks * call.channels * patch.image_count,
        arguments={
            "x_ptr": call.input,
            "grad_ptr": grad_output,
            "filters_ptr": filters,
            "partial_ptr": partial,
            "B": call.input.shape[0],
            "C": call.channels,
            "GROUPS": call.groups,
            "CHUNKS": partial.shape[0],
            **_sizes(call),
            "images": patch.image_count,
            **_rectangles(patch),
            "x_strides": of_input["x_strides"],
            "grad_strides": strides(grad_output),
        },
        constants={**_window(call), "PIXELS": _PIXELS, "ROWS": rows, "COLUMNS": columns},
        num_warps=4,
    )


def _blocks(patch: Patch) -> int:
    rows, columns = patch.size
    return -(-rows * columns // _PIXELS)


def _sizes(call: Call) -> dict[str, int]:
    return {
        "H": call.size[0],
        "W": call.size[1],
        "dilation_h": call.window.dilation[0],
        "dilation_w": call.window.dilation[1],
    }


def _rectangles(patch: Patch) -> dict[str, int]:
    (rows, columns), (filters_rows, filters_columns) = patch.size, patch.readers_size
    return {
        "first_image": patch.images.start,
        "first_row": patch.rows.start,
        "first_column": patch.columns.start,
        "rows": rows,
        "columns": columns,
        "filters_row": patch.readers[0].start,
        "filters_column": patch.readers[1].start,
        "filters_rows": filters_rows,
        "filters_columns": filters_columns,
    }


def _window(call: Call) -> dict[str, Any]:
    return {**window_constants(call), "ACC": sum_constants(call)["ACC"]}
