"""Transforms of ``torch.func`` and forward-mode differentiation.

``vmap`` alone folds the mapped dimension into the batch (rules registered with the operators). The
others take the same operators inside ``autograd.Function``, the only form that they can transform;
there a softmax over the taps is PyTorch's own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._results import where_needed
from . import derivatives, op
from .derivatives import Operators, Options, Tensors, softmax_taps

__all__ = ["active", "decoupled_filter"]


def active(tensors: Tensors) -> bool:
    """Whether a transform other than ``vmap`` alone, or forward mode, is at work."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active():
        from torch._functorch import pyfunctorch

        levels = pyfunctorch.retrieve_all_functorch_interpreters()
        return any(level.key().name != "Vmap" for level in levels)
    if getattr(forward_ad, "_current_level", -1) < 0:
        return False
    return any(
        tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None
        for tensor in tensors
    )


def decoupled_filter(tensors: Tensors, options: Options) -> Tensor:
    """The op in a form that ``torch.func`` and forward mode can transform."""
    if options[5] is None:
        return OPERATORS.forward(tensors, options)
    x, logits, channel = tensors
    assert x is not None
    assert logits is not None
    dtype = torch.promote_types(x.dtype, logits.dtype)
    if channel is not None:
        dtype = torch.promote_types(dtype, channel.dtype)
    taps = options[0][0] * options[0][1]
    plain = (*options[:5], None, options[6])
    probabilities = softmax_taps(logits, taps, dtype)
    return OPERATORS.forward((x, probabilities, channel), plain).to(dtype)


@dataclass(frozen=True)
class _Settings:
    """What is not a tensor, as one value: a tuple would be taken apart by the transforms."""

    options: Options
    needs_grad: tuple[bool, ...] = ()


class _Forward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input, spatial_filter, channel_filter, settings):
        return op.decoupled_filter(input, spatial_filter, channel_filter, *settings.options)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.settings = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.dtype = output.dtype

    @staticmethod
    def backward(ctx, grad_output):
        needs = ctx.needs_input_grad[:3]
        options = ctx.settings.options
        grads = OPERATORS.backward(grad_output, ctx.saved_tensors, options, needs)
        return *where_needed(grads, needs), None

    @staticmethod
    def jvp(ctx, *directions):
        options = ctx.settings.options
        tangent = derivatives.jvp(OPERATORS, ctx.saved_tensors, directions[:3], options)
        return None if tangent is None else tangent.to(ctx.dtype)


class _Backward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad_output, input, spatial_filter, channel_filter, settings):
        tensors = (input, spatial_filter, channel_filter)
        needs = list(settings.needs_grad)
        return op.decoupled_filter_backward(grad_output, *tensors, *settings.options, needs)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.settings = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, *grads_of_grads):
        grad_output, *tensors = ctx.saved_tensors
        directions = where_needed(grads_of_grads, ctx.settings.needs_grad)
        options, needs = ctx.settings.options, ctx.needs_input_grad[:4]
        grads = derivatives.second(OPERATORS, grad_output, tensors, directions, options, needs)
        return *grads, None

    @staticmethod
    def jvp(ctx, along_grad, *directions):
        grad_output, *tensors = ctx.saved_tensors
        options, needs = ctx.settings.options, ctx.settings.needs_grad
        totals = derivatives.gradients_along(
            OPERATORS, grad_output, tensors, directions[:3], options, needs
        )
        if along_grad is not None:
            grads = OPERATORS.backward(along_grad, tensors, options, needs)
            totals = [
                grad if total is None else total + grad
                for total, grad in zip(totals, grads, strict=True)
            ]
        return tuple(totals)


OPERATORS = Operators(
    forward=lambda tensors, options: _Forward.apply(*tensors, _Settings(options)),
    backward=lambda grad_output, tensors, options, needs: _Backward.apply(
        grad_output, *tensors, _Settings(options, tuple(needs))
    ),
)
