"""Launches of the banded products, with their parameters: pure functions."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from .call import Call
from .kernels_band import BLOCK_W
from .kernels_band_filters import _band_bwd_filters_kernel
from .kernels_band_fwd import _band_fwd_kernel
from .launch import MAX_REGISTERS, MAX_REGISTERS_OF_SIX, MAX_REGISTERS_OF_THREE
from .launch_table import architecture_of, tuned
from .plan import Launch, channel_strides, strides
from .route import interpreted
from .strips import Strip, strip_constants

__all__ = [
    "BandLaunch",
    "architecture",
    "band_filters",
    "band_forward",
    "band_grad_gain",
    "filters_launch",
    "forward_launch",
    "holds_all_taps",
    "holds_tiles",
    "is_banded",
    "is_banded_backward",
]

# What the window of the kernels serves.
MAX_SIDE = 17
# A tile of the tensor cores has 16 rows: with fewer channels it would be empty in part.
MIN_CHANNELS = 16
# More would compile for seconds, to more than 6,000 instructions.
MAX_UNROLLED_PRODUCTS = 48
# A single warp holds as many taps as four do: 24 products spill (64 bytes, sm_100).
MAX_PRODUCTS_OF_A_WARP = 20
# Where NVIDIA's assembler spills in other unrolled programs (before sm_90).
MAX_UNROLLED_ROWS_OF_OLDER = 11
# Rows of taps whose gradients a program holds.
MAX_ROWS_OF_TAPS = 7
MAX_ROWS_OF_TAPS_SOFTMAX = 3
MAX_ROWS_OF_PADDED_TAPS = 5  # 7 spill with the index arithmetic of other paddings (sm_80)
MAX_ROWS_OF_WIDE_TAPS = 4  # with 6 rows of 11 or 17 columns odd widths spill (32 bytes, sm_90)
_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True)
class BandLaunch:
    """``rows`` rows of pixels times ``block_c`` channels, run by ``num_warps`` warps."""

    rows: int
    block_c: int
    num_warps: int
    ahead: int = 0  # rows of the window that taps are loaded before their use; 0: not unrolled


def is_banded(call: Call) -> bool:
    """Whether the banded products take a forward: 16-bit image and spatial filter of one dtype, 16
    channels or more to a group, up to 17 taps along a side."""
    window = call.window
    if window.stride != (1, 1) or window.dilation != (1, 1) or window.scale != 1:
        return False
    if call.form not in ("none", "pixel") or (call.form == "pixel" and call.combine != "mul"):
        return False
    dtype = call.input.dtype
    if dtype not in _TYPES or call.spatial_filter.dtype != dtype:
        return False
    if call.sum_dtype != torch.float32 or call.channels_per_group < MIN_CHANNELS:
        return False
    if call.softmax and not (_splits(dtype) and call.result_dtype == dtype):
        return False  # two terms of a probability are short of a float32 result
    if window.taps == 1 or max(window.kernel_size) > MAX_SIDE:
        return False
    return holds_tiles(architecture(call.input.device))


@functools.cache
def architecture(device: torch.device) -> str:
    """Architecture of a GPU, such as "sm_90" or "gfx942"; empty for all other devices."""
    if device.type != "cuda":
        return ""
    return architecture_of(torch.cuda.get_device_properties(device))


def holds_tiles(architecture: str) -> bool:
    """Whether tiles of tensor cores stay in registers: on RDNA (gfx10 and later) they spill, on
    gfx1100 1084 bytes in the forward of 64 channels with 3 x 3 taps, and 5032 in the head of 288
    features."""
    return not architecture.startswith("gfx1")


def _spills_unrolled(call: Call, split: bool) -> bool:
    """Whether a forward has to walk the rows of taps in a loop, whatever their number.

    Before sm_90 NVIDIA's assembler spills in unrolled programs (8 to 24 bytes, sm_80) where a
    factor takes two terms, where there are few channels, and at 17 rows of taps.
    """
    few = _channels(call.channels_per_group)[1] < 4
    high = call.window.kernel_size[0] > MAX_UNROLLED_ROWS_OF_OLDER
    return _is_older(call) and (split or few or high)


def _is_high(call: Call, config: BandLaunch) -> bool:
    """Whether two warps unroll more rows of taps than one may."""
    products = config.rows * call.window.kernel_size[0]
    return config.num_warps == 2 and config.ahead > 0 and products > MAX_PRODUCTS_OF_A_WARP


def _is_older(call: Call) -> bool:
    """Whether a call is on an NVIDIA GPU before sm_90."""
    return architecture(call.input.device).startswith("sm_8")


def is_banded_backward(call: Call, grad_output: Tensor) -> bool:
    """Whether they take the backward too."""
    if not is_banded(call):
        return False
    return _splits(call.input.dtype) or not _needs_terms(call, grad_output)


def _splits(dtype: torch.dtype) -> bool:
    """Whether two terms of a dtype stand for any float32 value: float16 has not the range."""
    return dtype == torch.bfloat16


def _needs_terms(call: Call, grad_output: Tensor) -> bool:
    """Whether the product of gradient and gain is not a value of the operands' dtype."""
    return call.form == "pixel" or grad_output.dtype != call.input.dtype


def _by_float32(call: Call, grad_output: Tensor) -> bool:
    """Whether the terms of gradient times gain take float32 instructions, many times as many."""
    gains = call.channel_filter
    return gains is None or not gains.dtype == grad_output.dtype == call.input.dtype


def forward_launch(
    kernel_size: tuple[int, int], channels_per_group: int, terms: int, long: bool = False
) -> BandLaunch:
    """Forward, and gradient of the input: a warp for each 16 channels, the rows of a tile of the
    tensor cores, up to the 64 of a group of four warps.

    Each row of taps counts as ``terms`` products. With too many to unroll a program has fewer rows
    of pixels, or walks the rows of taps in a loop. ``long``: the gradient of the input where rows
    do not begin at multiples of 16, so that the taps of other pixels are loaded one by one.
    """
    products = kernel_size[0] * terms
    if long and kernel_size[1] > 8:
        products *= 2  # 6,817 instructions at 11x11 else (sm_90)
    block_c, num_warps = _channels(channels_per_group)
    most = MAX_UNROLLED_PRODUCTS if num_warps > 1 else MAX_PRODUCTS_OF_A_WARP
    rows = 4 if 4 * products <= most else 2
    if num_warps < 4 and kernel_size[1] > 8:
        most = 0  # 16 bytes spilled at 4x12 (32 channels, sm_90)
    ahead = 0
    # Unrolled, two terms of each tap spill from 5 rows of them on (8 to 24 bytes, sm_80).
    if rows * products <= most and (terms == 1 or products <= 8):
        ahead = 3 if kernel_size[1] <= 8 else 1
    return BandLaunch(rows, block_c, num_warps, ahead)


def filters_launch(
    kernel_size: tuple[int, int], channels_per_group: int, softmax: bool, padding_mode: str
) -> BandLaunch:
    """Gradients of the filters: ``rows`` rows of taps, 16 values a thread for each two rows of the
    window, and as many under softmax for the probabilities."""
    most = MAX_ROWS_OF_TAPS_SOFTMAX if softmax else MAX_ROWS_OF_TAPS
    if kernel_size[1] > 8 and not softmax:
        most = MAX_ROWS_OF_WIDE_TAPS
    elif padding_mode != "zeros" and not softmax:
        most = MAX_ROWS_OF_PADDED_TAPS
    chunks = -(-kernel_size[0] // most)
    # blocks of 64 channels take over 200 registers where the width is odd
    return BandLaunch(-(-kernel_size[0] // chunks), min(32, _channels(channels_per_group)[0]), 4)


def _channels(channels_per_group: int) -> tuple[int, int]:
    """Channels of a block, and warps."""
    block_c = 64 if channels_per_group > 32 else 32 if channels_per_group > 16 else 16
    return block_c, block_c // 16


def _filters_config(call: Call) -> BandLaunch:
    window, padding_mode = call.window, call.window.padding_mode
    config = filters_launch(window.kernel_size, call.channels_per_group, call.softmax, padding_mode)
    if call.form != "pixel" or call.softmax:
        return config
    # Where gains are read besides, more rows of taps spill: with the indices of other paddings
    # (8 bytes, 5x5, sm_80), or where image rows do not begin at multiples of 16 (40, 7x7, sm_90).
    most = config.rows
    if padding_mode != "zeros" and _is_older(call):
        most = 3
    elif any(t.stride(2) % 16 for t in (call.input, call.spatial_filter)):
        most = min(most, MAX_ROWS_OF_PADDED_TAPS)
    chunks = -(-window.kernel_size[0] // most)
    return replace(config, rows=-(-window.kernel_size[0] // chunks))


def holds_all_taps(call: Call) -> bool:
    """Whether a program of the filters' gradients holds all rows of taps."""
    config = _filters_config(call)
    return config.rows >= call.window.kernel_size[0]


def _registers(call: Call) -> int | None:
    """Without the bound NVIDIA's assembler spills under softmax, at as little as 96 registers."""
    return MAX_REGISTERS if call.softmax else None


def _forward_registers(
    call: Call, config: BandLaunch, in_loop: bool, padding_mode: str
) -> int | None:
    """Without the bound it spills in loops over the rows of taps too, at 168 registers, but for 64
    channels from sm_90 on; and unrolled with the indices of other paddings (3x3: 16 bytes,
    sm_100), where more rows of taps spill with it (7x7: 16 bytes)."""
    if in_loop or (config.ahead == 0 and config.num_warps < 4):
        return MAX_REGISTERS
    few = call.window.kernel_size[0] <= 3 and config.num_warps < 4
    if padding_mode != "zeros" and few:
        return MAX_REGISTERS
    return _registers(call)


def _filters_registers(call: Call, grad_output: Tensor) -> int | None:
    """The same of the filters' gradients: 8 bytes at 17x17 with gains in float32, and at 3x3 where
    the gradient takes two terms (sm_80); on sm_100 24 at 4x17 with gains, and 8 to reach 72
    registers at 3x3 without."""
    split, kernel_size = _needs_terms(call, grad_output), call.window.kernel_size
    if split and _by_float32(call, grad_output) and _is_older(call):
        return MAX_REGISTERS
    newer = architecture(call.input.device).startswith("sm_10")
    if split and newer and kernel_size[0] <= MAX_ROWS_OF_WIDE_TAPS and kernel_size[1] > 8:
        return MAX_REGISTERS_OF_THREE
    if newer and not split and call.window.taps <= 9 and not call.softmax:
        return MAX_REGISTERS_OF_SIX
    return _registers(call)


def _constants(call: Call) -> dict[str, Any]:
    # Triton's interpreter has no product in bfloat16
    dtype = tl.float32 if interpreted() else _TYPES[call.input.dtype]
    return {
        "KH": call.window.kernel_size[0],
        "KW": call.window.kernel_size[1],
        "FORM": call.form,
        "PADDING": call.window.padding_mode,
        "SOFTMAX": call.softmax,
        "OPERAND": dtype,
    }


def band_forward(
    call: Call,
    source: Tensor,
    target: Tensor,
    transposed: bool,
    statistics: Tensor | None = None,
) -> Launch:
    """The forward from ``source``; transposed, the gradient of the input from that of the output.

    Only transposed it needs the ``statistics`` of a softmax.
    """
    constants = _constants(call)
    if transposed:  # what other paddings read again is the general kernel's
        constants["PADDING"] = "zeros"
    B, C, H, W = call.input.shape
    split = transposed and _needs_terms(call, source)
    long_terms = split and _by_float32(call, source)
    terms = (2 if call.softmax else 1) * (2 if long_terms else 1)
    long = transposed and any(t.stride(2) % 16 for t in (source, call.spatial_filter))
    config = forward_launch(call.window.kernel_size, call.channels_per_group, terms, long)
    in_loop = _spills_unrolled(call, split)
    newer = architecture(call.input.device).startswith("sm_10")
    if in_loop:  # 24 bytes spilled with 4 rows of terms by float32 (sm_80)
        config = replace(config, rows=min(config.rows, 2) if long_terms else config.rows, ahead=0)
    elif split and call.softmax and newer:
        config = replace(config, rows=2)  # 8 bytes spilled at 3x3 with 4
    elif split and newer and min(call.window.kernel_size) > MAX_UNROLLED_ROWS_OF_OLDER:
        config = replace(config, ahead=0)  # 8 bytes spilled at 17x17 unrolled
    elif not transposed and call.form == "none" and _is_high(call, config):
        config = replace(config, rows=2)  # 24 bytes spilled at 7x7 with 4 (32 channels, sm_90)
    config = tuned(config, "band_input" if transposed else "band_forward", call)
    across = -(-W // BLOCK_W.value) * -(-call.channels_per_group // config.block_c) * call.groups
    in_strips = statistics is not None or (transposed and call.held_gradient)

    def cut(strip: Strip) -> tuple[int, dict[str, Any]]:
        return strip.tiles(config.rows) * across, {}

    return Launch(
        kernel=_band_fwd_kernel,
        programs=across * -(-H // config.rows) * B,
        arguments={
            "x_ptr": source,
            "spatial_ptr": call.spatial_filter,
            "channel_ptr": call.channel_filter if call.channel_filter is not None else source,
            "statistics_ptr": statistics if statistics is not None else source,
            "out_ptr": target,
            "C": C,
            "GROUPS": call.groups,
            "H": H,
            "W": W,
            "x_strides": strides(source),
            "spatial_strides": strides(call.spatial_filter),
            "channel_strides": channel_strides(call),
            "out_strides": strides(target),
        },
        constants={
            **constants,
            "TRANSPOSED": transposed,
            "HELD_GRAD": transposed and call.held_gradient,
            "SPLIT": split,
            "ROWS": config.rows,
            "BLOCK_C": config.block_c,
            "AHEAD": config.ahead,
            **strip_constants(in_strips),
        },
        num_warps=config.num_warps,
        max_registers=_forward_registers(call, config, in_loop, constants["PADDING"]),
        cut=cut if in_strips else None,
    )


def band_grad_gain(call: Call, grad_output: Tensor, grad_channel: Tensor) -> Launch:
    """Gradient of a 4-D channel filter: the forward with grad_output for a gain."""
    return band_forward(
        replace(call, channel_filter=grad_output), call.input, grad_channel, transposed=False
    )


def band_filters(
    call: Call,
    grad_output: Tensor,
    grad_spatial: Tensor,
    statistics: Tensor | None,
) -> Launch:
    """Gradient of the spatial filter."""
    B, C, H, W = call.input.shape
    config = _filters_config(call)
    config = tuned(config, "band_filters", call)
    chunks = -(-call.window.kernel_size[0] // config.rows)
    across = -(-W // BLOCK_W.value) * chunks * call.groups
    in_strips = (statistics is not None and chunks > 1) or call.held_gradient
    x = call.input

    def cut(strip: Strip) -> tuple[int, dict[str, Any]]:
        return strip.tiles(2) * across, {}

    return Launch(
        kernel=_band_bwd_filters_kernel,
        programs=across * -(-H // 2) * B,
        arguments={
            "x_ptr": x,
            "grad_ptr": grad_output,
            "spatial_ptr": call.spatial_filter,
            "channel_ptr": call.channel_filter if call.channel_filter is not None else x,
            "statistics_ptr": statistics if statistics is not None else x,
            "grad_spatial_ptr": grad_spatial,
            "C": C,
            "GROUPS": call.groups,
            "H": H,
            "W": W,
            "x_strides": strides(x),
            "grad_strides": strides(grad_output),
            "spatial_strides": strides(call.spatial_filter),
            "channel_strides": channel_strides(call),
            "grad_spatial_strides": strides(grad_spatial),
        },
        constants={
            **_constants(call),
            "SPLIT": _needs_terms(call, grad_output),
            "HELD_GRAD": call.held_gradient,
            "CHUNK": config.rows,
            "BLOCK_C": config.block_c,
            **strip_constants(in_strips),
        },
        num_warps=config.num_warps,
        max_registers=_filters_registers(call, grad_output),
        cut=cut if in_strips else None,
    )
