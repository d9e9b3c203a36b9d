"""Derivatives of the op and of its backward, made of the op and its backward.

The op is linear in each of its tensors, or a sum of two such parts under "add". So its derivative
along directions (v_x, v_S, v_Ch) is a sum of calls in which a direction takes a tensor's place:

    "mul", and mixing:  f(v_x, S, Ch) + f(x, v_S, Ch) + f(x, S, v_Ch)
    "add":              f(v_x, S, Ch) + sum_t v_S x   + sum_t v_Ch x

and the derivative of the gradients is the sum of these calls' own gradients. All of them run as the
op does, so that any number of derivatives exists. The op and its backward are passed in: inside
registered operators they are those, under ``torch.func`` they are functions it can transform.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Operators", "Options", "Tensors", "gradients_along", "jvp", "second", "softmax_taps"]

Tensors = Sequence[Tensor | None]  # input, spatial_filter, channel_filter
# kernel_size, stride, dilation, padding_mode, combine, normalize, scale_factor
Options = Sequence


class Operators(NamedTuple):
    """The op and its backward, both differentiable."""

    forward: Callable[[Tensors, Options], Tensor]
    backward: Callable[[Tensor, Tensors, Options, list[bool]], Sequence[Tensor]]


class _Term(NamedTuple):
    """One call of the derivative, and which of its tensors are the op's own."""

    tensors: Tensors
    options: Options
    own: tuple[bool, bool, bool]


def _terms(tensors: Tensors, directions: Tensors, options: Options) -> list[_Term]:
    x, spatial, channel = tensors
    along_x, along_spatial, along_channel = directions
    added = channel is not None and options[4] == "add"
    terms = []
    if along_x is not None:
        terms.append(_Term((along_x, spatial, channel), options, (False, True, True)))
    if along_spatial is not None:
        kept = None if added else channel
        terms.append(_Term((x, along_spatial, kept), options, (True, False, not added)))
    if along_channel is not None and added:
        assert spatial is not None
        ones = along_channel.new_ones(()).expand(spatial.shape)
        product = (*options[:4], "mul", *options[5:])
        terms.append(_Term((x, ones, along_channel), product, (True, False, False)))
    elif along_channel is not None:
        terms.append(_Term((x, spatial, along_channel), options, (True, True, False)))
    return terms


def jvp(
    operators: Operators, tensors: Tensors, directions: Tensors, options: Options
) -> Tensor | None:
    """Derivative of the output along ``directions`` (None: zero); for ``normalize=None``."""
    total = None
    for term in _terms(tensors, directions, options):
        total = _plus(total, operators.forward(term.tensors, term.options))
    return total


def gradients_along(
    operators: Operators,
    grad_output: Tensor,
    tensors: Tensors,
    directions: Tensors,
    options: Options,
    needs_grad: Sequence[bool],
) -> list[Tensor | None]:
    """Derivative of the three gradients along ``directions``; for ``normalize=None``.

    It is also the gradient of ``<grad_output, jvp>`` in the three tensors.
    """
    totals: list[Tensor | None] = [None, None, None]
    for term in _terms(tensors, directions, options):
        needs = [
            own and need and tensor is not None
            for own, need, tensor in zip(term.own, needs_grad, tensors, strict=True)
        ]
        if not any(needs):
            continue
        grads = operators.backward(grad_output, term.tensors, term.options, needs)
        for index, need in enumerate(needs):
            if need:
                totals[index] = _plus(totals[index], grads[index])
    return totals


def second(
    operators: Operators,
    grad_output: Tensor,
    tensors: Tensors,
    directions: Tensors,
    options: Options,
    needs_grad: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of the backward in ``grad_output`` and the three tensors.

    ``directions`` are the gradients that arrive for the backward's results. Under "softmax" the
    probabilities P are formed here; with w = v - <P, v>, the direction of P is P w, and its
    gradient dV sends dV w - v <P, dV> to P.
    """
    plain = (*options[:5], None, options[6])
    if options[5] is None:
        grads = gradients_along(operators, grad_output, tensors, directions, plain, needs_grad[1:])
        return [
            _grad_of_grad(operators, grad_output, tensors, directions, plain, needs_grad),
            *grads,
        ]
    x, logits, channel = tensors
    along_x, v, along_channel = directions
    assert logits is not None
    taps = options[0][0] * options[0][1]
    P = softmax_taps(logits, taps, grad_output.dtype)
    needs = list(needs_grad[1:])
    w = None if v is None else v - _over_taps(P, v, taps)
    along = (along_x, None if w is None else P * w, along_channel)
    grads = gradients_along(operators, grad_output, (x, P, channel), along, plain, needs)
    if needs[1]:
        grad = grads[1]
        if v is not None and w is not None:
            own = [False, True, False]
            grad_w = operators.backward(grad_output, (x, P, channel), plain, own)[1]
            grad = _plus(grad, grad_w * w - v * _over_taps(P, grad_w, taps))
        if grad is not None:
            grads[1] = (P * (grad - _over_taps(P, grad, taps))).to(logits.dtype)
    first = _grad_of_grad(operators, grad_output, (x, P, channel), along, plain, needs_grad)
    return [first, *grads]


def _grad_of_grad(
    operators: Operators,
    grad_output: Tensor,
    tensors: Tensors,
    directions: Tensors,
    options: Options,
    needs_grad: Sequence[bool],
) -> Tensor | None:
    if not needs_grad[0]:
        return None
    result = jvp(operators, tensors, directions, options)
    return None if result is None else result.to(grad_output.dtype)


def softmax_taps(logits: Tensor, taps: int, dtype: torch.dtype) -> Tensor:
    """Softmax over the taps of ``(B, G*T, Ho, Wo)``, at least in float32."""
    dtype = torch.float64 if torch.float64 in (dtype, logits.dtype) else torch.float32
    return logits.unflatten(1, (-1, taps)).softmax(2, dtype=dtype).flatten(1, 2)


def _over_taps(P: Tensor, v: Tensor, taps: int) -> Tensor:
    """``<P, v>`` over the taps, repeated for each of them."""
    product = (P * v).unflatten(1, (-1, taps))
    return product.sum(2, keepdim=True).expand(product.shape).flatten(1, 2)


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total + more
