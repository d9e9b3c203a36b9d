"""Registration with PyTorch: one opaque operator for the forward, one for the backward.

Imports torch only. The kernels are imported at the first call that runs them (see ``route.py`` of
the decoupled filter, which decides for both operators).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .._decoupled_filter import route
from .._decoupled_filter.geometry import Window
from .._registration import register
from .._results import empty_as, empty_grads, refuse_forward_mode, where_needed
from . import batching, composition
from .call import Call, Gradients
from .cpu_head import kept_shape

__all__ = ["predict_filter", "predict_filter_backward"]


def _predict_filter(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input: Tensor,
    channel_filter: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding_mode: str,
    normalize: str | None,
    combine: str,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """``kpnops.predict_filter`` with arguments that are already validated, and what the gradients
    need: of the kernels under softmax the logarithm of each pixel's and group's sum of
    exponentials, ``(B, G, H, W)``; of the CPU path the filters of a small call."""
    call = _call(
        (features, weight, bias, input, channel_filter),
        (kernel_size, dilation, padding_mode, normalize, combine, precision),
    )
    output, saved = _empty_results(call)
    if output.numel():
        route.backend(input, __package__).forward(_short(call), output, saved)
    return output, saved


def _fake(features, weight, bias, input, channel_filter, *options) -> tuple[Tensor, Tensor]:
    refuse_forward_mode("predict_filter")
    return _empty_results(_call((features, weight, bias, input, channel_filter), options))


def _predict_filter_backward(
    grad_output: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input: Tensor,
    channel_filter: Tensor | None,
    saved: Tensor,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding_mode: str,
    normalize: str | None,
    combine: str,
    precision: str,
    needs_grad: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients for ``features``, ``weight``, ``bias``, ``input`` and ``channel_filter``; empty
    where not asked for."""
    tensors = (features, weight, bias, input, channel_filter)
    options = (kernel_size, dilation, padding_mode, normalize, combine, precision)
    grads = empty_grads(tensors, needs_grad)
    if grad_output.numel():
        backend = route.backend(input, __package__)
        backend.backward(
            _short(_call(tensors, options)),
            grad_output,
            saved,
            Gradients(*where_needed(grads, needs_grad)),
        )
    else:  # a batch of none: sums over nothing
        for grad in grads:
            grad.zero_()
    features, weight, bias, input, channel_filter = grads
    return features, weight, bias, input, channel_filter


def _fake_backward(
    grad_output, features, weight, bias, input, channel_filter, saved, *options_and_needs
):
    return tuple(
        empty_grads((features, weight, bias, input, channel_filter), options_and_needs[-1])
    )


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:5], output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.options = inputs[5:]


def _backward(ctx, grad_output: Tensor, _):
    needs_grad = list(ctx.needs_input_grad[:5])
    grads = predict_filter_backward(grad_output, *ctx.saved_tensors, *ctx.options, needs_grad)
    return *where_needed(grads, needs_grad), *(None for _ in ctx.options)


def _setup_second(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options, ctx.needs_grad = inputs[7:-1], inputs[-1]


def _second(ctx, *grads_of_grads: Tensor):
    directions = where_needed(grads_of_grads, ctx.needs_grad)
    grad_output, *tensors = ctx.saved_tensors
    grads = composition.second(
        grad_output, tensors, directions, ctx.options, ctx.needs_input_grad[:6]
    )
    return *grads, None, *(None for _ in ctx.options), None


predict_filter = register(
    "predict_filter",
    _predict_filter,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    vmap=batching.vmap_forward,
)
predict_filter_backward = register(
    "predict_filter_backward",
    _predict_filter_backward,
    fake=_fake_backward,
    setup_context=_setup_second,
    backward=_second,
    vmap=batching.vmap_backward,
)


def _call(tensors, options) -> Call:
    kernel_size, dilation, padding_mode, normalize, combine, precision = options
    window = Window(
        (kernel_size[0], kernel_size[1]), (1, 1), (dilation[0], dilation[1]), padding_mode
    )
    features, weight, bias, input, channel_filter = tensors
    softmax = normalize == "softmax"
    return Call(features, weight, bias, input, channel_filter, window, combine, softmax, precision)


def _short(call: Call) -> Call:
    """The same call without a dilation far beyond the image, which would be padded for nothing."""
    return replace(call, window=call.window.within(call.size))


def _empty_results(call: Call) -> tuple[Tensor, Tensor]:
    source = call.input[:, 0] if call.burst else call.input
    output = empty_as(source, call.output_shape, call.result_dtype)
    with_kernels = route.may_have_kernels(call.input.device)
    shape = call.statistics_shape if with_kernels else kept_shape(call)
    return output, torch.empty(shape, dtype=call.sum_dtype, device=call.input.device)
