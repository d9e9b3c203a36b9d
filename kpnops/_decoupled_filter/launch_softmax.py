"""Launch of the statistics of a softmax."""

from typing import Any

import torch
from torch import Tensor

from . import launch
from .call import Call
from .kernels_softmax import _softmax_statistics_kernel
from .launch_gather import index_type, sizes
from .plan import Launch, channel_strides, strides, sum_type
from .strips import Strip, largest

__all__ = ["softmax_statistics"]


def softmax_statistics(
    call: Call, grad_output: Tensor, with_delta: bool, cut: list[Strip]
) -> tuple[Launch, Tensor]:
    """What kernels need of a pixel whose logits they do not all hold, in a workspace ``(images, G,
    3, rows, Wo)`` for the largest of the strips; for smaller ones it begins likewise.

    Maximum of the logits, 1 / sum of the exponentials and, ``with_delta``, the sum over the taps of
    a probability times its gradient.
    """
    config = launch.gather_channels_launch(call.channels_per_group)
    groups, Wo = call.groups, call.output_size[1]
    most = largest(cut)
    shape = (most.images, groups, 3, most.held_rows, Wo)
    statistics = torch.empty(shape, dtype=call.sum_dtype, device=call.input.device)

    def programs(strip: Strip) -> tuple[int, dict[str, Any]]:
        return -(-(strip.held_rows * Wo) // config.block_p) * groups * strip.images, {}

    item = Launch(
        kernel=_softmax_statistics_kernel,
        programs=programs(most)[0],
        arguments={
            "x_ptr": call.input,
            "grad_ptr": grad_output,
            "spatial_ptr": call.spatial_filter,
            "channel_ptr": call.channel_filter if call.channel_filter is not None else call.input,
            "statistics_ptr": statistics,
            **sizes(call),
            "x_strides": strides(call.input),
            "grad_strides": strides(grad_output),
            "spatial_strides": strides(call.spatial_filter),
            "channel_strides": channel_strides(call),
        },
        constants={
            "FORM": call.form,
            "COMBINE": call.combine,
            "PADDING": call.window.padding_mode,
            "WITH_DELTA": with_delta,
            "HELD_GRAD": call.held_gradient,
            "ACC": sum_type(call),
            "INDEX": index_type(call),
            "BLOCK_P": config.block_p,
            "BLOCK_C": config.block_n,
        },
        num_warps=config.num_warps,
        max_registers=config.max_registers,
        cut=programs,
    )
    return item, statistics
