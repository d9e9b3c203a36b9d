"""The op as PyTorch operations: logits, softmax and filter of some rows at a time.

Used for CPU tensors and on every device that has no kernels. Strips of rows are padded as in the
decoupled filter; inside a strip go chunks of rows, whose logits are a matrix product, and whose
taps are applied by the decoupled filter's own loop. Beyond inputs and outputs that holds a padded
copy of a strip and a workspace of at most 32 MB, or one row's logits where these are more; 8 MB at
most are kept for the gradients. Sums run in a fixed order. The gradients are in ``cpu_gradients``.
"""

import torch
from torch import Tensor

from .._decoupled_filter import route
from .._decoupled_filter.cpu_split import Split, filter_rows, padded_rows
from .._results import without_autocast
from . import cpu_gradients
from .call import Call, Gradients
from .cpu_head import Head, cut, feature_planes, frames_of, pieces, with_filters

__all__ = ["backward", "forward"]


def forward(call: Call, output: Tensor, saved: Tensor) -> None:
    """Write the filtered image into ``output``, ``(B, C, H, W)``, and into ``saved`` the filters of
    a small call (``cpu_head``)."""
    with without_autocast(output.device):
        _write(call, output, _kept(saved))


def _kept(saved: Tensor) -> Tensor | None:
    """The filters that a forward of this module has kept, or is to keep."""
    return saved if saved.dim() > 1 and not route.may_have_kernels(saved.device) else None


def _write(call: Call, output: Tensor, kept: Tensor | None) -> None:
    frames = frames_of(call)
    C = call.channels
    # The padded frames, two sums, a product with a filter, and what is converted.
    planes = (call.frames + 3) * C + frames[0].mixed_dtypes * C + feature_planes(call)
    parts = cut(call, frames[0], planes, gradient=False)
    head = Head(call, parts, gradient=False, kept=kept)
    if kept is not None:
        head.keep()
    for rows in parts.rows:
        for images in parts.images:
            strips = [frame.part(images, rows) for frame in frames]
            padded = [padded_rows(strip, rows) for strip in strips]
            for inner, outer in pieces(rows, parts.chunk):
                filters = head.filters(images, outer)
                chunks = [strip.part(slice(None), inner) for strip in strips]
                read = [frame[:, :, :, inner.start :] for frame in padded]
                _write_sum(chunks, filters, read, output[images, :, outer])


def _write_sum(frames: list[Split], filters: Tensor, padded: list[Tensor], target: Tensor) -> None:
    """Write the sum of the filtered frames into ``target (B, C, rows, W)``."""
    first, *others = with_filters(frames, filters)
    exact = target.dtype == first.dtype
    total = target if exact else torch.empty_like(target, dtype=first.dtype)
    filter_rows(first, padded[0], first.split(total))
    for frame, read in zip(others, padded[1:], strict=True):
        more = torch.empty_like(total)
        filter_rows(frame, read, frame.split(more))
        total.add_(more)
    if not exact:
        target.copy_(total)


def backward(call: Call, grad_output: Tensor, saved: Tensor, grads: Gradients) -> None:
    """Write the gradients that are asked for.

    The probabilities are kept or come from a softmax anew: ``exp(logit - log_sum_exp)`` would be
    off by the rounding of two large numbers.
    """
    with without_autocast(grad_output.device):
        cpu_gradients.write_gradients(call, grad_output, grads, _kept(saved))
