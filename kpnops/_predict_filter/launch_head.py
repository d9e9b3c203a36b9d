"""Launches of the fused head's forward."""

from dataclasses import replace

import torch
from torch import Tensor

from .._decoupled_filter.launch import MAX_REGISTERS
from .._decoupled_filter.plan import Launch, channel_strides, strides
from .call import Call
from .kernels_forward import _head_fwd_kernel
from .launch_common import (
    bias_of,
    block_constants,
    input_strides,
    launch_of,
    product_constants,
    weight_of,
    window_constants,
)

__all__ = ["head_forward"]


def head_forward(call: Call, output: Tensor, log_sum_exp: Tensor | None) -> list[Launch]:
    """Tiles whose windows lie inside the image, then the rest; ``log_sum_exp`` only if given."""
    per_group = call.channels // call.groups
    config = launch_of(call, per_group)
    B, F, H, W = call.features.shape
    tiles = -(-H // config.tile[0]) * -(-W // config.tile[1])
    weight = weight_of(call)
    interior = Launch(
        kernel=_head_fwd_kernel,
        programs=tiles * -(-per_group // config.channels) * call.groups * B,
        arguments={
            "features_ptr": call.features,
            "weight_ptr": weight,
            "bias_ptr": bias_of(call),
            "x_ptr": call.input,
            "channel_ptr": call.input if call.channel_filter is None else call.channel_filter,
            "out_ptr": output,
            "log_sum_exp_ptr": output if log_sum_exp is None else log_sum_exp,
            "C": call.channels,
            "GROUPS": call.groups,
            "FRAMES": call.frames,
            "FEATURES": F,
            "H": H,
            "W": W,
            "dilation_h": call.window.dilation[0],
            "dilation_w": call.window.dilation[1],
            **input_strides(call, call.input),
            "features_strides": strides(call.features),
            "weight_strides": strides(weight),
            "channel_strides": channel_strides(call),
            "out_strides": strides(output),
        },
        constants={
            **window_constants(call),
            "FORM": call.form,
            **product_constants(call),
            "STATISTICS": call.softmax and log_sum_exp is not None,
            "MASKED": False,
            "TILE_H": config.tile[0],
            "TILE_W": config.tile[1],
            "CHANNELS": config.channels,
            **block_constants(config),
        },
        num_warps=config.num_warps,
        # NVIDIA's assembler spills 8 to 24 bytes of float64 with no bound, at 96 registers
        max_registers=MAX_REGISTERS if call.sum_dtype == torch.float64 else None,
    )
    border = replace(interior, constants={**interior.constants, "MASKED": True})
    return [interior, border] if _has_interior(call, config.tile) else [border]


def _has_interior(call: Call, tile: tuple[int, int]) -> bool:
    """Whether any tile reads no padding."""
    window = call.window
    for axis in (0, 1):
        before = window.before[axis]
        after = (window.kernel_size[axis] - 1) * window.dilation[axis] - before
        first = -(-before // tile[axis]) * tile[axis]  # of the tiles beyond the padding
        if first + tile[axis] + after > call.size[axis]:
            return False
    return True
