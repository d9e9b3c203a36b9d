"""Registration with PyTorch: one opaque operator for the forward, one for the backward.

Imports torch only. The kernels are imported at the first call that runs them (see ``route.py``).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import route
from .call import Call, Gradients
from .geometry import Window

__all__ = ["decoupled_filter", "decoupled_filter_backward"]


@torch.library.custom_op("kpnops::decoupled_filter", mutates_args=())
def decoupled_filter(
    input: Tensor,
    spatial_filter: Tensor,
    channel_filter: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding_mode: str,
    combine: str,
) -> Tensor:
    """``kpnops.decoupled_filter`` with arguments that are already validated."""
    window = Window(_pair(kernel_size), _pair(stride), _pair(dilation), padding_mode)
    call = Call(input, spatial_filter, channel_filter, window, combine)
    output = _empty_output(call)
    if output.numel():
        route.backend(input).forward(call, output)
    return output


@decoupled_filter.register_fake
def _(
    input, spatial_filter, channel_filter, kernel_size, stride, dilation, padding_mode, combine
) -> Tensor:
    # A trace through torch.func.jvp: the operator has no forward-mode rule, and without this the
    # traced graph would have a zero tangent. Eager calls are refused in api.py, by tensor.
    if getattr(forward_ad, "_current_level", -1) >= 0:
        raise NotImplementedError(
            "forward-mode differentiation of decoupled_filter is not available; use reverse mode "
            "(torch.autograd.grad, torch.func.vjp)"
        )
    window = Window(_pair(kernel_size), _pair(stride), _pair(dilation), padding_mode)
    return _empty_output(Call(input, spatial_filter, channel_filter, window, combine))


@torch.library.custom_op("kpnops::decoupled_filter_backward", mutates_args=())
def decoupled_filter_backward(
    grad_output: Tensor,
    input: Tensor,
    spatial_filter: Tensor,
    channel_filter: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding_mode: str,
    combine: str,
    needs_grad: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for ``input``, ``spatial_filter`` and ``channel_filter``; empty where not asked
    for."""
    grads = _empty_grads(input, spatial_filter, channel_filter, needs_grad)
    if grad_output.numel():
        window = Window(_pair(kernel_size), _pair(stride), _pair(dilation), padding_mode)
        call = Call(input, spatial_filter, channel_filter, window, combine)
        wanted = (grad if need else None for grad, need in zip(grads, needs_grad, strict=True))
        route.backend(input).backward(call, grad_output, Gradients(*wanted))
    else:  # a batch of none: sums over nothing
        for grad in grads:
            grad.zero_()
    return grads


@decoupled_filter_backward.register_fake
def _(
    grad_output,
    input,
    spatial_filter,
    channel_filter,
    kernel_size,
    stride,
    dilation,
    padding_mode,
    combine,
    needs_grad,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_grads(input, spatial_filter, channel_filter, needs_grad)


def _setup_context(ctx, inputs, output) -> None:
    input, spatial_filter, channel_filter, *options = inputs
    ctx.save_for_backward(input, spatial_filter, channel_filter)
    ctx.options = options


def _backward(ctx, grad_output: Tensor):
    needs_grad = list(ctx.needs_input_grad[:3])
    grads = decoupled_filter_backward(grad_output, *ctx.saved_tensors, *ctx.options, needs_grad)
    wanted = [grad if need else None for grad, need in zip(grads, needs_grad, strict=True)]
    return *wanted, *(None for _ in ctx.options)


decoupled_filter.register_autograd(_backward, setup_context=_setup_context)


def _no_second_derivative(ctx, *grads):
    raise NotImplementedError(
        "the second derivative of kpnops.decoupled_filter (double backward) is not available in "
        "this version; kpnops.reference.decoupled_filter has it"
    )


decoupled_filter_backward.register_autograd(_no_second_derivative)


def _no_vmap(info, in_dims, *args):
    raise NotImplementedError(
        "torch.vmap over kpnops.decoupled_filter is not available in this version: it takes a "
        "batch as its first dimension; fold the mapped dimension into that"
    )


decoupled_filter.register_vmap(_no_vmap)
decoupled_filter_backward.register_vmap(_no_vmap)


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    return numbers[0], numbers[1]


def _empty_output(call: Call) -> Tensor:
    return _empty_as(call.input, call.output_shape, call.result_dtype)


def _empty_grads(
    input: Tensor,
    spatial_filter: Tensor,
    channel_filter: Tensor | None,
    needs_grad: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    def empty(tensor: Tensor | None, need: bool) -> Tensor:
        if tensor is None or not need:
            return input.new_empty(0)
        return _empty_as(tensor, tensor.shape, tensor.dtype)

    needs = tuple(needs_grad)
    return (
        empty(input, needs[0]),
        empty(spatial_filter, needs[1]),
        empty(channel_filter, needs[2]),
    )


def _empty_as(tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor, channels_last exactly when ``tensor`` is that and not contiguous
    too."""
    channels_last = (
        tensor.dim() == 4
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=tensor.device, memory_format=memory_format)
