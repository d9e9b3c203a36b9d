"""Launches for the mixing matrix (5-D channel filter)."""

from dataclasses import replace

import torch
from torch import Tensor

from . import launch
from .call import Call, Gradients
from .kernels_mix import _mix_bwd_filtered_kernel, _mix_bwd_matrix_kernel, _mix_fwd_kernel
from .launch_gather import index_type, sizes
from .plan import Launch, Plan, channel_strides, strides, sum_type

__all__ = ["mix_backward", "mix_forward"]


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


def mix_backward(
    plan: Plan, call: Call, grad_output: Tensor, grads: Gradients
) -> tuple[Call, Tensor, Gradients]:
    """Plan the gradient of the matrix; return what is left to do: a call without it.

    That call comes with the gradient of its output, the filtered image, in a workspace of the dtype
    of sums (if one of the other gradients needs it), and with the gradients that remain.
    """
    if grads.channel_filter is not None:
        plan.launches.append(_grad_matrix(call, grad_output, grads.channel_filter))
        grads = grads._replace(channel_filter=None)
    if any(grad is not None for grad in grads):
        B, C = call.input.shape[:2]
        filtered = torch.empty(
            (B, C, *call.output_size), dtype=call.sum_dtype, device=call.input.device
        )
        plan.launches.append(_grad_filtered(call, grad_output, filtered))
        grad_output = filtered
    double = call.sum_dtype == torch.float64  # of the matrix alone, perhaps
    return replace(call, channel_filter=None, double=double), grad_output, grads


def _grad_matrix(call: Call, grad_output: Tensor, grad_matrix: Tensor) -> Launch:
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


def _grad_filtered(call: Call, grad_output: Tensor, grad_filtered: Tensor) -> Launch:
    config = launch.mix_launch(call.input.shape[1], call.sum_dtype)
    Ho, Wo = call.output_size
    return Launch(
        kernel=_mix_bwd_filtered_kernel,
        programs=_pixel_blocks(call, config) * call.input.shape[0],
        arguments={
            "grad_ptr": grad_output,
            "matrix_ptr": call.channel_filter,
            "grad_filtered_ptr": grad_filtered,
            "CO": call.output_channels,
            "C": call.input.shape[1],
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
    )


def _pixel_blocks(call: Call, config: launch.GatherLaunch) -> int:
    Ho, Wo = call.output_size
    return -(-(Ho * Wo) // config.block_p)
