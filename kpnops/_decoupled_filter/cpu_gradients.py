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
from .cpu_split import (
    Split,
    certainly_finite,
    chunks,
    filter_rows,
    padded_rows,
    reach,
    strips,
    tap_view,
)
from .geometry import source_index

__all__ = ["write_gradients"]


@dataclass(frozen=True)
class _Targets:
    """Where the gradients of some rows go; None for those that are not asked for."""

    spatial: Tensor | None  # (B, G, T, rows, Wo)
    channel: Tensor | None  # rows of a 4-D or 5-D channel filter
    add: bool  # to channel, what the images before gave
    sums: Tensor | None  # (B or 1, G, C/G, T) of a 3-D channel filter, to be added to
    input: "_InputGradient | None"

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
    inputs: dict[int, _InputGradient] = {}
    order, chunk = _strips(call, grads)
    for rows, images in order:
        first, last = images.start == 0, images.stop == call.input.shape[0]
        if grads.input is not None and rows.start == 0:
            part = call.part(images, slice(None))
            inputs[images.start] = _InputGradient(part, grads.input[images])
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
            grad_sums = _grad_sums(chunk, grad)
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
        _grad_filters_per_image(chunk, padded, chunk.split(grad), products, targets.sums)
    elif products is not None and grad_sums is not None:
        _grad_spatial(chunk, padded, grad_sums, products)
    if targets.channel is not None:
        write = _grad_matrix if chunk.form == "mix" else _grad_channel_per_pixel
        write(chunk, padded, grad, targets.channel[..., rows, :], add=targets.add)
    if spatial is not None and products is not None and chunk.scratch is not None:
        _grad_logits(chunk.spatial, products, spatial)


def _grad_sums(call: Split, grad: Tensor) -> Tensor:
    """Gradient of the sums over the taps, before a gain or a matrix: ``(B, G, C/G, rows, Wo)``."""
    if call.form != "mix":
        grad = call.split(grad)
        return grad * call.channel_at(0) if call.gain else grad
    assert call.channel is not None
    total = grad[:, :1] * call.channel[:, 0]
    for output in range(1, grad.shape[1]):
        total.addcmul_(grad[:, output, None], call.channel[:, output])
    return call.split(total)


def _grad_spatial(call: Split, padded: Tensor, grad: Tensor, target: Tensor) -> None:
    """grad_spatial of some rows into ``target``, ``(B, G, T, rows, Wo)``; ``grad`` is that of the
    sums over the taps."""
    weighted = call.form == "image" and call.combine == "mul"
    for tap in range(call.window.taps):
        view = tap_view(padded, call, tap)
        scaled = grad * call.channel_at(tap) if weighted else grad
        _put_tap(call, _sum_channels(scaled, view), tap, target)


def _sum_channels(a: Tensor, b: Tensor) -> Tensor:
    """``(B, G, rows, Wo) = sum over C/G of a * b``, one channel after the other: the sum stays in
    cache."""
    total = a[:, :, 0] * b[:, :, 0]
    for channel in range(1, a.shape[2]):
        total.addcmul_(a[:, :, channel], b[:, :, channel])
    return total


def _put_tap(call: Split, value: Tensor, tap: int, target: Tensor) -> None:
    """Write the gradient of S at one tap into ``target (B, G, T, rows, Wo)``; times P under
    softmax, as ``_grad_logits`` takes it."""
    if call.scratch is not None:
        torch.mul(value, call.spatial[:, :, tap], out=target[:, :, tap])
    else:
        target[:, :, tap] = value


def _grad_logits(probabilities: Tensor, products: Tensor, target: Tensor) -> None:
    """Gradient of the logits from ``products``, the gradient of P times P; all ``(B, G, T, rows,
    Wo)``."""
    mean = products.sum(2, keepdim=True)
    exact = target.dtype == products.dtype
    result = target if exact else products
    torch.addcmul(products, probabilities, mean, value=-1, out=result)
    if not exact:
        target.copy_(products)


def _grad_channel_per_pixel(
    call: Split, padded: Tensor, grad: Tensor, target: Tensor, *, add: bool
) -> None:
    """grad_channel of some rows, one value for each image, channel and pixel.

    The gradient that arrives is taken out of the sum over the taps where that changes nothing (see
    ``filter_rows``).
    """
    grad = call.split(grad)
    total = torch.empty_like(grad)
    if grad.device.type == "cpu":
        for tap in range(call.window.taps):
            _add_tap(call, total, tap_view(padded, call, tap), tap)
        if certainly_finite(total.mul_(grad)):
            _store(total, target, add)
            return
    for tap in range(call.window.taps):
        _add_tap(call, total, grad * tap_view(padded, call, tap), tap)
    _store(total, target, add)


def _add_tap(call: Split, total: Tensor, value: Tensor, tap: int) -> None:
    """Add ``value``, times S of the tap under "mul"; the first tap is written instead."""
    if call.combine == "add" and tap == 0:
        total.copy_(value)
    elif call.combine == "add":
        total.add_(value)
    elif tap == 0:
        torch.mul(value, call.spatial_tap(tap), out=total)
    else:
        total.addcmul_(value, call.spatial_tap(tap))


def _grad_matrix(call: Split, padded: Tensor, grad: Tensor, target: Tensor, *, add: bool) -> None:
    """Gradient of a mixing matrix at some rows, ``(B or 1, Co, C, rows, Wo)``."""
    B, _, rows, Wo = grad.shape
    filtered = grad.new_empty(B, call.input.shape[1], rows, Wo)
    filter_rows(call, padded, call.split(filtered))
    for output in range(grad.shape[1]):
        _store(grad[:, output, None] * filtered, target[:, output], add)


def _store(product: Tensor, target: Tensor, add: bool) -> None:
    """Write or add what the images give, summed where ``target`` is of a batch of one."""
    if target.shape[0] < product.shape[0]:
        product = product.sum(0, keepdim=True)
    if add:
        target.add_(product)
    else:
        target.copy_(product)


def _grad_filters_per_image(
    call: Split, padded: Tensor, grad: Tensor, target: Tensor | None, sums: Tensor
) -> None:
    """Both gradients of some rows for a 3-D channel filter; ``sums (B or 1, G, C/G, T)`` is added
    to."""
    product = torch.empty_like(grad)
    weighted = torch.empty_like(grad) if call.combine == "mul" else product
    for tap in range(call.window.taps):
        torch.mul(grad, tap_view(padded, call, tap), out=product)
        if target is not None:
            if call.combine == "mul":
                torch.mul(product, call.channel_at(tap), out=weighted)
            _put_tap(call, weighted.sum(2), tap, target)
        if call.combine == "mul":
            product.mul_(call.spatial_tap(tap))
        tap_sums = product.sum((3, 4))
        sums[..., tap] += tap_sums.sum(0, keepdim=True) if call.shared else tap_sums


class _InputGradient:
    """Gradient of the input of some images, from strips of the output's rows in their order.

    What the taps send back is added up in a window of rows of the padded input. Those that no later
    strip reaches are written, the others are carried over to the window of the next strip.
    """

    def __init__(self, call: Split, target: Tensor):
        self._call = call
        self._target = target  # (B, C, H, W)
        H, W = call.input.shape[2:]
        self._after = call.window.after((H, W), (call.rows, call.spatial.shape[4]))
        self._window: Tensor | None = None  # (B, C, rows, width), of the repeated input
        self._carried: Tensor | None = None
        # Rows of the padding, by the row of the input that they stand for: (B, C, W)
        self._outside: dict[int, Tensor] = {}
        # Rows of the input that rows of the padding below it stand for, kept in full precision
        self._waiting: dict[int, Tensor] = {}
        self._stood_for = {self._source(y) for y in range(H, H + self._after[0])}
        self._stood_for.discard(-1)  # padding of zeros

    def _source(self, y: int) -> int:
        return source_index(y, self._call.input.shape[2], self._call.window.padding_mode)

    def begin(self, rows: slice) -> None:
        """Open the window of the strip ``rows``."""
        call, window = self._call, self._call.window
        B, C, _, W = call.input.shape
        height = max(
            (rows.stop - rows.start - 1) * window.stride[0] + reach(window, 0) + 1,
            self._finished(rows),
        )
        columns = (window.before[1] + W + self._after[1]) * window.scale
        read = (call.spatial.shape[4] - 1) * window.stride[1] + reach(window, 1) + 1
        self._window = self._target.new_zeros(B, C, height, max(columns, read), dtype=call.dtype)
        if self._carried is not None:
            self._window[:, :, : self._carried.shape[2]] = self._carried

    def add(self, chunk: Split, grad_sums: Tensor, rows: slice) -> None:
        """Add what ``rows`` of the strip, which are those of ``chunk``, send back."""
        assert self._window is not None
        target = chunk.split(self._window[:, :, rows.start * chunk.window.stride[0] :])
        for tap in range(chunk.window.taps):
            tap_view(target, chunk, tap).addcmul_(grad_sums, chunk.filter_tap(tap))

    def end(self, rows: slice) -> None:
        """Write the rows that are finished and carry over the others."""
        assert self._window is not None
        window, H = self._call.window, self._call.input.shape[2]
        finished = self._finished(rows)
        image = self._fold_columns(_sum_of_repeats(self._window[:, :, :finished], window.scale))
        top = rows.start * window.stride[0] // window.scale - window.before[0]
        self._carried = self._window[:, :, finished:].clone()
        self._window = None
        if window.padding_mode != "zeros":
            bottom = min(top + image.shape[2], H + self._after[0])
            for y in (*range(top, min(bottom, 0)), *range(max(top, H), bottom)):
                self._add_outside(self._source(y), image[:, :, y - top])
        start, stop = max(top, 0), min(top + image.shape[2], H)
        for y in [y for y in self._outside if start <= y < stop]:
            image[:, :, y - top] += self._outside.pop(y)
        for y in self._stood_for:
            if start <= y < stop:
                self._waiting[y] = image[:, :, y - top].clone()
        self._target[:, :, start:stop] = image[:, :, start - top : stop - top]
        if rows.stop == self._call.rows:
            for y, row in self._outside.items():
                self._target[:, :, y] = self._waiting[y].add_(row)

    def _finished(self, rows: slice) -> int:
        """Rows of the window of a strip that no later one adds to."""
        window, H = self._call.window, self._call.input.shape[2]
        finished = (rows.stop - rows.start) * window.stride[0]
        if rows.stop < self._call.rows:
            return finished
        top = rows.start * window.stride[0] - window.before[0] * window.scale
        return (H + self._after[0]) * window.scale - top

    def _add_outside(self, source: int, row: Tensor) -> None:
        if source in self._outside:
            self._outside[source] += row
        else:
            self._outside[source] = row.clone()

    def _fold_columns(self, padded: Tensor) -> Tensor:
        """Add the columns of the padding to those that they stand for: ``(B, C, rows, W)``."""
        W, window = self._call.input.shape[3], self._call.window
        left = window.before[1]
        image = padded[..., left : left + W]
        if window.padding_mode != "zeros":
            for x in (*range(-left, 0), *range(W, W + self._after[1])):
                image[..., source_index(x, W, window.padding_mode)] += padded[..., x + left]
        return image


def _sum_of_repeats(padded: Tensor, scale: int) -> Tensor:
    """Add up what was sent to the ``scale * scale`` repetitions of each position."""
    if scale == 1:
        return padded
    parts = [padded[:, :, y::scale, x::scale] for y in range(scale) for x in range(scale)]
    total = parts[0].clone()
    for part in parts[1:]:
        total.add_(part)
    return total
