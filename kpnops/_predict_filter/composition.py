"""The op as a 1x1 convolution followed by the decoupled filter, for derivatives of any order.

Transforms of ``torch.func``, forward mode, and the derivatives of the gradients take this way. It
stores the logits, and PyTorch's setting for float32 products applies to the convolution.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._decoupled_filter.api import decoupled_filter
from .._decoupled_filter.derivatives import softmax_taps
from .._results import without_autocast

__all__ = ["Options", "Tensors", "predict_filter", "second"]

Tensors = Sequence[Tensor | None]  # features, weight, bias, input, channel_filter
# kernel_size, dilation, padding_mode, normalize, combine, precision
Options = Sequence


def predict_filter(
    tensors: Tensors, options: Options, operator: Callable[..., Tensor] = decoupled_filter
) -> Tensor:
    """What the op computes, made of differentiable operations; ``operator`` filters."""
    features, weight, bias, input, channel_filter = tensors
    assert features is not None
    assert weight is not None
    assert input is not None
    there = [tensor.dtype for tensor in tensors if tensor is not None]
    result = functools.reduce(torch.promote_types, there)
    sums = torch.float64 if result == torch.float64 else torch.float32
    with without_autocast(input.device):
        spatial_filter = _logits(features, weight, bias, sums)
        kernel_size, dilation, padding_mode, normalize, combine, _ = options
        if input.dim() == 5 and normalize is not None:
            spatial_filter = softmax_taps(spatial_filter, spatial_filter.shape[1], sums)
            normalize = None

        def filter_frame(frame: Tensor, taps: Tensor) -> Tensor:
            return operator(
                frame,
                taps,
                channel_filter,
                kernel_size=kernel_size,
                dilation=dilation,
                padding_mode=padding_mode,
                combine=combine,
                normalize=normalize,
            )

        return _sum_of_frames(filter_frame, input, spatial_filter).to(result)


def _logits(features: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The 1x1 convolution in ``dtype``: ``(B, G*N*T, H, W)``."""
    result = torch.einsum("kf,bfhw->bkhw", weight.to(dtype), features.to(dtype))
    return result if bias is None else result + bias.to(dtype)[:, None, None]


def _sum_of_frames(
    filter_frame: Callable[[Tensor, Tensor], Tensor], input: Tensor, spatial_filter: Tensor
) -> Tensor:
    """The sum of what ``filter_frame(frame, taps)`` makes of each frame; the input itself is one
    where it has 4 dimensions."""
    if input.dim() == 4:
        return filter_frame(input, spatial_filter)
    taps = spatial_filter.chunk(input.shape[1], dim=1)
    total = filter_frame(input[:, 0], taps[0])
    for frame in range(1, input.shape[1]):
        total = total + filter_frame(input[:, frame], taps[frame])
    return total


def second(
    grad_output: Tensor,
    tensors: Tensors,
    directions: Tensors,
    options: Options,
    needs_grad: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of the backward in ``grad_output`` and the five tensors.

    ``directions`` are the gradients that arrive for the backward's results, None where there is
    none. The operation is done again on views of the tensors: a tensor may have been made from
    another one, and only a view has no part in how the others came about.
    """
    again = torch.is_grad_enabled()
    asked = [index for index, along in enumerate(directions) if along is not None]
    wanted = [index for index, need in enumerate(needs_grad) if need]
    with torch.enable_grad(), without_autocast(grad_output.device):
        grad_view = _view(grad_output)
        views = [None if tensor is None else _view(tensor) for tensor in tensors]
        grads = torch.autograd.grad(
            predict_filter(views, options),
            _chosen(views, asked),
            grad_view,
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        results = torch.autograd.grad(
            grads,
            _chosen([grad_view, *views], wanted),
            _chosen(directions, asked),
            create_graph=again,
            allow_unused=True,
        )
    found = dict(zip(wanted, results, strict=True))
    return [found.get(index) for index in range(len(needs_grad))]


def _chosen(tensors: Tensors, indices: list[int]) -> list[Tensor]:
    return [tensor for index in indices if (tensor := tensors[index]) is not None]


def _view(tensor: Tensor) -> Tensor:
    view = tensor.view_as(tensor)
    return view if view.requires_grad else view.requires_grad_()
