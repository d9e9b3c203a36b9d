"""``torch.vmap`` over the operators.

The forward takes the mapped dimension as part of the batch where all elements share the weights;
otherwise, and in the backward, whose gradients of the weights are sums over the batch, the elements
go one after the other.
"""

import torch

from .._decoupled_filter.batching import fold

__all__ = ["vmap_backward", "vmap_forward"]


def vmap_forward(operator, info, in_dims, features, weight, bias, input, channel_filter, *options):
    """Batching rule of the forward."""
    tensors = (features, weight, bias, input, channel_filter)
    if in_dims[1] is not None or in_dims[2] is not None:
        return _one_by_one(operator, info, in_dims, *tensors, *options)
    count = info.batch_size
    batch = input.shape[0] if in_dims[3] is None else input.movedim(in_dims[3], 0).shape[1]
    output, saved = operator(
        fold(features, in_dims[0], count, batch),
        weight,
        bias,
        fold(input, in_dims[3], count, batch),
        fold(channel_filter, in_dims[4], count, batch, may_share=True),
        *options,
    )
    output = output.unflatten(0, (count, batch))
    if saved.dim() > 1:
        return (output, saved.unflatten(0, (count, batch))), (0, 0)
    return (output, saved), (0, None)


def vmap_backward(operator, info, in_dims, *arguments):
    """Batching rule of the backward."""
    return _one_by_one(operator, info, in_dims, *arguments)


def _one_by_one(operator, info, in_dims, *arguments):
    results = []
    for element in range(info.batch_size):
        chosen = (
            argument.select(dim, element) if isinstance(dim, int) else argument
            for argument, dim in zip(arguments, in_dims, strict=True)
        )
        results.append(operator(*chosen))
    stacked = tuple(torch.stack(column) for column in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)
