"""Gradients of the CPU path, strip by strip. They are also the specification of the kernels':

    grad_spatial[g, t, p] = sum over c in g of grad[c, p] x[c, p + o_t] (Ch if "mul" else 1)
    grad_channel          = grad[c, p] x[c, p + o_t] (S if "mul" else 1),
                            summed over p (3-D) or t (4-D)
    grad_input[c, q]      = sum over t and the p with source(p, t) = q of grad[c, p] F[c, t, p]

Under softmax S is the probability P, and ``grad_logits = P (grad_spatial - sum over t of P
grad_spatial)``. A mixing matrix M gets ``grad[o, p] T[c, p]``, where T is the filtered image; the
others take ``grad[c, p] = sum over o of M[o, c, p] grad[o, p]``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .call import Gradients
from .cpu_gradient_rows import (
    gradient_of_sums,
    write_channel_per_pixel,
    write_filters_per_image,
    write_logits,
    write_matrix,
    write_spatial,
)
from .cpu_input_gradient import InputGradient
from .cpu_split import Split, chunks, padded_rows, strips

__all__ = ["write_gradients"]


@dataclass(frozen=True)
class _Targets:
    """Where the gradients of some rows go; None for those that are not asked for."""

    spatial: Tensor | None  # (B, G, T, rows, Wo)
    channel: Tensor | None  # rows of a 4-D or 5-D channel filter
    add: bool  # to channel, what the images before gave
    sums: Tensor | None  # (B or 1, G, C/G, T) of a 3-D channel filter, to be added to
    input: InputGradient | None

    @property
    def reads_input(self) -> bool:
        """Whether the gradient of a filter is asked for."""
        return any(target is not None for target in (self.spatial, self.channel, self.sums))


def write_gradients(call: Split, grad_output: Tensor, grads: Gradients) -> None:
    """Write the gradients that are asked for, all of them in one pass over the strips."""
    to_spatial, to_channel = grads.spatial_filter, grads.channel_filter
    if to_spatial is not None:
        to_spatial = to_spatial.unflatten(1, (-1, call.window.taps))
    if to_channel is not None and call.form != "mix":
        to_channel = call.split(to_channel)
    sums = rows_sum = None  # of a 3-D channel filter; of rows that images share, if not in place
    if to_channel is not None and call.form == "image":
        sums = torch.zeros_like(to_channel, dtype=call.dtype)
    inputs: dict[int, InputGradient] = {}
    order, chunk = _strips(call, grads)
    for rows, images in order:
        first, last = images.start == 0, images.stop == call.input.shape[0]
        if grads.input is not None and rows.start == 0:
            part = call.part(images, slice(None))
            inputs[images.start] = InputGradient(part, grads.input[images])
        rows_of_channel = None
        if to_channel is not None and call.per_pixel:
            rows_of_channel = to_channel[..., rows, :]
            if not call.shared:
                rows_of_channel = rows_of_channel[images]
            elif to_channel.dtype != call.dtype:
                if first:
                    rows_sum = torch.empty_like(rows_of_channel, dtype=call.dtype)
                rows_of_channel = rows_sum
        targets = _Targets(
            spatial=None if to_spatial is None else to_spatial[images, :, :, rows],
            channel=rows_of_channel,
            add=call.shared and not first,
            sums=sums if sums is None or call.shared else sums[images],
            input=inputs.get(images.start),
        )
        _write_strip(call.part(images, rows), rows, chunk, grad_output[images, :, rows], targets)
        if rows.stop == call.rows:
            inputs.pop(images.start, None)
        if rows_sum is not None and to_channel is not None and last:
            to_channel[..., rows, :] = rows_sum
    if sums is not None and to_channel is not None:
        to_channel.copy_(sums)


def _strips(call: Split, grads: Gradients) -> tuple[list[tuple[slice, slice]], int]:
    """Rows and images of the strips, and the height for ``chunks``.

    One image comes after the other; but strip after strip where a sum over the images is taken for
    each pixel.
    """
    C = call.input.shape[1]
    # Values held for each position: the gradient as it is and times a gain, a product;
    planes = 3 * C
    if grads.spatial_filter is not None or grads.channel_filter is not None:
        planes += 2 * C  # the padded input, a sum;
    if grads.input is not None:
        planes += C  # what goes back to it;
    planes += (call.mixed_dtypes + (call.window.scale > 1)) * C  # what is converted, or repeated;
    if call.form == "mix":
        assert call.channel is not None
        planes += 2 * C + 2 * call.channel.shape[1]  # the filtered image, the gradients of both.
    together = grads.channel_filter is not None and call.per_pixel and call.shared
    if together and grads.channel_filter is not None:
        # rows of the sum, those of the strip before not freed yet
        planes += 2 * grads.channel_filter[0, ..., 0, 0].numel()
    cut = strips(call, planes, gradient=grads.spatial_filter is not None)
    if together:
        order = [(rows, images) for rows in cut.rows for images in cut.images]
    else:
        order = [(rows, images) for images in cut.images for rows in cut.rows]
    return order, cut.chunk


def _write_strip(
    strip: Split, rows: slice, height: int, grad_output: Tensor, targets: _Targets
) -> None:
    """All gradients of the strip ``rows``, by ``chunks`` of this height."""
    padded = padded_rows(strip, rows) if targets.reads_input else None
    if targets.input is not None:
        targets.input.begin(rows)
    for inner, chunk in chunks(strip, height, gradient=targets.spatial is not None):
        grad = grad_output[:, :, inner].to(strip.dtype)
        grad_sums = None
        if targets.input is not None or (targets.spatial is not None and targets.sums is None):
            grad_sums = gradient_of_sums(chunk, grad)
        if padded is not None:
            read = padded[:, :, :, inner.start * strip.window.stride[0] :]
            _write_filters(chunk, read, grad, grad_sums, inner, targets)
        if targets.input is not None and grad_sums is not None:
            targets.input.add(chunk, grad_sums, inner)
    if targets.input is not None:
        targets.input.end(rows)


def _write_filters(
    chunk: Split,
    padded: Tensor,
    grad: Tensor,
    grad_sums: Tensor | None,
    rows: slice,
    targets: _Targets,
) -> None:
    """Gradients of both filters at ``rows`` of a strip, which are those of ``chunk``."""
    spatial = products = None
    if targets.spatial is not None:
        spatial = products = targets.spatial[..., rows, :]
        if chunk.scratch is not None:
            products = chunk.scratch
    if targets.sums is not None:
        write_filters_per_image(chunk, padded, chunk.split(grad), products, targets.sums)
    elif products is not None and grad_sums is not None:
        write_spatial(chunk, padded, grad_sums, products)
    if targets.channel is not None:
        write = write_matrix if chunk.form == "mix" else write_channel_per_pixel
        write(chunk, padded, grad, targets.channel[..., rows, :], add=targets.add)
    if spatial is not None and products is not None and chunk.scratch is not None:
        write_logits(chunk.spatial, products, spatial)
