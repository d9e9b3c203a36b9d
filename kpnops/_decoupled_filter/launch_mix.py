"""Launches for the mixing matrix (5-D channel filter)."""

from typing import Any

import torch
from torch import Tensor

from . import launch
from .call import Call
from .kernels_mix import _mix_bwd_filtered_kernel, _mix_bwd_matrix_kernel, _mix_fwd_kernel
from .launch_gather import index_type, sizes
from .plan import Launch, channel_strides, strides, sum_type
from .strips import Strip, largest

__all__ = ["mix_forward", "mix_grad_filtered", "mix_grad_matrix"]


def mix_forward(call: Call, output: Tensor) -> Launch:
    """The forward: the filtered channels of a pixel are mixed as they are made."""
    config = launch.mix_launch(call.output_channels, call.sum_dtype)
    return Launch(
        kernel=_mix_fwd_kernel,
        programs=_pixel_blocks(call, config) * call.input.shape[0],
        arguments={
            "x_ptr": call.input,
            "spatial_ptr": call.spatial_filter,
            "matrix_ptr": call.channel_filter,
            "out_ptr": output,
            "CO": call.output_channels,
            **sizes(call),
            "x_strides": strides(call.input),
            "spatial_strides": strides(call.spatial_filter),
            "matrix_strides": channel_strides(call),
            "out_strides": strides(output),
        },
        constants={
            "PADDING": call.window.padding_mode,
            "SOFTMAX": call.softmax,
            "ACC": sum_type(call),
            "INDEX": index_type(call),
            "BLOCK_P": config.block_p,
            "BLOCK_O": config.block_n,
        },
        num_warps=config.num_warps,
        max_registers=config.max_registers,
    )


def mix_grad_matrix(call: Call, grad_output: Tensor, grad_matrix: Tensor) -> Launch:
    """Gradient of the matrix."""
    config = launch.mix_launch(call.output_channels, call.sum_dtype)
    images = 1 if call.channel_shared else call.input.shape[0]
    return Launch(
        kernel=_mix_bwd_matrix_kernel,
        programs=_pixel_blocks(call, config) * call.input.shape[1] * images,
        arguments={
            "x_ptr": call.input,
            "grad_ptr": grad_output,
            "spatial_ptr": call.spatial_filter,
            "grad_matrix_ptr": grad_matrix,
            "B": call.input.shape[0],
            "CO": call.output_channels,
            **sizes(call),
            "x_strides": strides(call.input),
            "grad_strides": strides(grad_output),
            "spatial_strides": strides(call.spatial_filter),
            "grad_matrix_strides": strides(grad_matrix),
        },
        constants={
            "PADDING": call.window.padding_mode,
            "SOFTMAX": call.softmax,
            "SUM_BATCH": call.channel_shared,
            "ACC": sum_type(call),
            "INDEX": index_type(call),
            "BLOCK_P": config.block_p,
            "BLOCK_O": config.block_n,
        },
        num_warps=config.num_warps,
        max_registers=config.max_registers,
    )


def mix_grad_filtered(call: Call, grad_output: Tensor, cut: list[Strip]) -> tuple[Launch, Tensor]:
    """Gradient of the filtered image, in a workspace ``(images, C, rows, Wo)`` of the dtype of sums
    for the largest of the strips; smaller ones leave the last rows as they are."""
    config = launch.mix_launch(call.input.shape[1], call.sum_dtype)
    C, (Ho, Wo) = call.input.shape[1], call.output_size
    most = largest(cut)
    shape = (most.images, C, most.held_rows, Wo)
    grad_filtered = torch.empty(shape, dtype=call.sum_dtype, device=call.input.device)

    def programs(strip: Strip) -> tuple[int, dict[str, Any]]:
        return -(-(strip.held_rows * Wo) // config.block_p) * strip.images, {}

    item = Launch(
        kernel=_mix_bwd_filtered_kernel,
        programs=programs(most)[0],
        arguments={
            "grad_ptr": grad_output,
            "matrix_ptr": call.channel_filter,
            "grad_filtered_ptr": grad_filtered,
            "CO": call.output_channels,
            "C": C,
            "HO": Ho,
            "WO": Wo,
            "grad_strides": strides(grad_output),
            "matrix_strides": channel_strides(call),
            "grad_filtered_strides": strides(grad_filtered),
        },
        constants={
            "ACC": sum_type(call),
            "INDEX": index_type(call),
            "BLOCK_P": config.block_p,
            "BLOCK_C": config.block_n,
        },
        num_warps=config.num_warps,
        max_registers=config.max_registers,
        cut=programs,
    )
    return item, grad_filtered


def _pixel_blocks(call: Call, config: launch.GatherLaunch) -> int:
    Ho, Wo = call.output_size
    return -(-(Ho * Wo) // config.block_p)
