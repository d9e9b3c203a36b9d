"""Launch of the statistics of a softmax."""

import torch
from torch import Tensor

from . import launch
from .call import Call
from .kernels_softmax import _softmax_statistics_kernel
from .launch_gather import index_type, sizes
from .plan import Launch, channel_strides, strides, sum_type

__all__ = ["softmax_statistics"]


def softmax_statistics(call: Call, grad_output: Tensor, with_delta: bool) -> tuple[Launch, Tensor]:
    """What kernels need of a pixel whose logits they do not all hold, ``(B, G, 3, Ho, Wo)``.

    Maximum of the logits, 1 / sum of the exponentials and, ``with_delta``, the sum over the taps of
    a probability times its gradient.
    """
    config = launch.gather_channels_launch(call.channels_per_group)
    B, groups, (Ho, Wo) = call.input.shape[0], call.groups, call.output_size
    statistics = torch.empty((B, groups, 3, Ho, Wo), dtype=call.sum_dtype, device=call.input.device)
    item = Launch(
        kernel=_softmax_statistics_kernel,
        programs=-(-(Ho * Wo) // config.block_p) * groups * B,
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
            "ACC": sum_type(call),
            "INDEX": index_type(call),
            "BLOCK_P": config.block_p,
            "BLOCK_C": config.block_n,
        },
        num_warps=config.num_warps,
        max_registers=config.max_registers,
    )
    return item, statistics
