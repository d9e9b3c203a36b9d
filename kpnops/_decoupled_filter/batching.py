"""``torch.vmap`` over the operators: the mapped dimension becomes part of the batch.

No copy is made where that is a view: of what is mapped in front of the batch, and of what is not
mapped and has a batch of one. Other tensors that are not mapped are repeated.
"""

from torch import Tensor

__all__ = ["fold", "vmap_backward", "vmap_forward"]


def vmap_forward(operator, info, in_dims, input, spatial_filter, channel_filter, *options):
    """Batching rule of the forward."""
    count, batch = info.batch_size, _batch(input, in_dims[0])
    output = operator(
        fold(input, in_dims[0], count, batch),
        fold(spatial_filter, in_dims[1], count, batch),
        fold(channel_filter, in_dims[2], count, batch, may_share=True),
        *options,
    )
    return output.unflatten(0, (count, batch)), 0


def vmap_backward(
    operator, info, in_dims, grad_output, input, spatial_filter, channel_filter, *options
):
    """Batching rule of the backward; a gradient for each element of the mapped dimension."""
    count, batch = info.batch_size, _batch(input, in_dims[1])
    needs_grad = options[-1]
    grads = operator(
        fold(grad_output, in_dims[0], count, batch),
        fold(input, in_dims[1], count, batch),
        fold(spatial_filter, in_dims[2], count, batch),
        fold(channel_filter, in_dims[3], count, batch, may_share=not needs_grad[2]),
        *options,
    )
    results = [
        grad.unflatten(0, (count, batch)) if need else grad
        for grad, need in zip(grads, needs_grad, strict=True)
    ]
    if needs_grad[2] and _batch(channel_filter, in_dims[3]) < batch:
        results[2] = results[2].sum(1, keepdim=True)
    return tuple(results), tuple(0 if need else None for need in needs_grad)


def _batch(tensor: Tensor, dim: int | None) -> int:
    """Size of the batch, the first dimension besides the mapped one."""
    return tensor.shape[1 if dim == 0 else 0]


def fold(
    tensor: Tensor | None, dim: int | None, count: int, batch: int, may_share: bool = False
) -> Tensor | None:
    """``tensor`` with a batch of ``count * batch``, or of one where all may share it."""
    if tensor is None:
        return None
    if dim is None and may_share and tensor.shape[0] == 1:
        return tensor
    mapped = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
    return mapped.expand(count, batch, *mapped.shape[2:]).flatten(0, 1)
