"""Registration with PyTorch: one opaque operator for the forward, one for the backward.

Imports torch only. The kernels are imported at the first call that runs them (see ``route.py``).
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from .._registration import register
from .._results import empty_as, empty_grads, refuse_forward_mode, where_needed
from . import batching, derivatives, route
from .call import Call, Gradients
from .geometry import Window

__all__ = ["decoupled_filter", "decoupled_filter_backward"]


def _decoupled_filter(
    input: Tensor,
    spatial_filter: Tensor,
    channel_filter: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding_mode: str,
    combine: str,
    normalize: str | None,
    scale_factor: int,
) -> Tensor:
    """``kpnops.decoupled_filter`` with arguments that are already validated."""
    call = _call(
        (input, spatial_filter, channel_filter),
        (kernel_size, stride, dilation, padding_mode, combine, normalize, scale_factor),
    )
    output = _empty_output(call)
    if output.numel():
        route.backend(input).forward(_short(call), output)
    return output


def _fake(input, spatial_filter, channel_filter, *options) -> Tensor:
    refuse_forward_mode("decoupled_filter")  # which transforms.py has a rule for
    return _empty_output(_call((input, spatial_filter, channel_filter), options))


def _decoupled_filter_backward(
    grad_output: Tensor,
    input: Tensor,
    spatial_filter: Tensor,
    channel_filter: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding_mode: str,
    combine: str,
    normalize: str | None,
    scale_factor: int,
    needs_grad: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for ``input``, ``spatial_filter`` and ``channel_filter``; empty where not asked
    for."""
    tensors = (input, spatial_filter, channel_filter)
    options = (kernel_size, stride, dilation, padding_mode, combine, normalize, scale_factor)
    grads = empty_grads(tensors, needs_grad)
    if grad_output.numel():
        call = _short(_call(tensors, options))
        route.backend(input).backward(
            call, grad_output, Gradients(*where_needed(grads, needs_grad))
        )
    else:  # a batch of none: sums over nothing
        for grad in grads:
            grad.zero_()
    input, spatial_filter, channel_filter = grads
    return input, spatial_filter, channel_filter


def _fake_backward(grad_output, input, spatial_filter, channel_filter, *options_and_needs):
    return tuple(empty_grads((input, spatial_filter, channel_filter), options_and_needs[-1]))


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.options = inputs[3:]


def _backward(ctx, grad_output: Tensor):
    needs_grad = list(ctx.needs_input_grad[:3])
    grads = decoupled_filter_backward(grad_output, *ctx.saved_tensors, *ctx.options, needs_grad)
    return *where_needed(grads, needs_grad), *(None for _ in ctx.options)


def _setup_second(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options, ctx.needs_grad = inputs[4:-1], inputs[-1]


def _second(ctx, *grads_of_grads: Tensor):
    directions = where_needed(grads_of_grads, ctx.needs_grad)
    grad_output, *tensors = ctx.saved_tensors
    grads = derivatives.second(
        _OPERATORS, grad_output, tensors, directions, ctx.options, ctx.needs_input_grad[:4]
    )
    return *grads, *(None for _ in ctx.options), None


decoupled_filter = register(
    "decoupled_filter",
    _decoupled_filter,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    vmap=batching.vmap_forward,
)
decoupled_filter_backward = register(
    "decoupled_filter_backward",
    _decoupled_filter_backward,
    fake=_fake_backward,
    setup_context=_setup_second,
    backward=_second,
    vmap=batching.vmap_backward,
)
_OPERATORS = derivatives.Operators(
    forward=lambda tensors, options: decoupled_filter(*tensors, *options),
    backward=lambda grad_output, tensors, options, needs: decoupled_filter_backward(
        grad_output, *tensors, *options, needs
    ),
)


def _call(tensors, options) -> Call:
    kernel_size, stride, dilation, padding_mode, combine, normalize, scale_factor = options
    window = Window(_pair(kernel_size), _pair(stride), _pair(dilation), padding_mode, scale_factor)
    input, spatial_filter, channel_filter = tensors
    softmax = normalize == "softmax"
    return Call(input, spatial_filter, channel_filter, window, combine, softmax)


def _short(call: Call) -> Call:
    """The same call without a dilation far beyond the image, which would be padded for nothing."""
    window = call.window.within(call.input_size)
    return call if window is call.window else replace(call, window=window)


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    return numbers[0], numbers[1]


def _empty_output(call: Call) -> Tensor:
    return empty_as(call.input, call.output_shape, call.result_dtype)
