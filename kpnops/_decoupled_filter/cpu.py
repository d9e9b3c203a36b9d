"""The op as PyTorch operations: a loop over the taps on views of the input, accumulating in place.

Used for CPU tensors and on every device that has no kernels. It works through strips of rows, so
that beyond inputs and outputs it holds a padded copy of the strip and a workspace of at most 32 MB.
Sums run in a fixed order. The gradients below are also the specification of the kernels':

    grad_spatial[g, t, p] = sum over c in g of grad[c, p] x[c, p + o_t] (Ch if "mul" else 1)
    grad_channel          = grad[c, p] x[c, p + o_t] (S if "mul" else 1),
                            summed over p (3-D) or t (4-D)
    grad_input[c, q]      = sum over t and the p with source(p, t) = q of grad[c, p] F[c, t, p]
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .call import Call, Gradients
from .geometry import Window, source_index

__all__ = ["backward", "forward"]

WORKSPACE_BYTES = 32 * 2**20


@dataclass(frozen=True)
class _Split:
    """One call, its channels split into groups of ``C/G``."""

    input: Tensor  # (B, C, H, W)
    spatial: Tensor  # (B, G, T, Ho, Wo)
    channel: Tensor | None  # (B or 1, G, C/G, T) or (B or 1, G, C/G, Ho, Wo)
    window: Window
    combine: str
    dtype: torch.dtype  # of sums and products

    @property
    def per_pixel(self) -> bool:
        """A 4-D channel filter."""
        return self.channel is not None and self.channel.dim() == 5

    @property
    def gain(self) -> bool:
        """A factor that leaves the sum over the taps: the 4-D channel filter under "mul"."""
        return self.per_pixel and self.combine == "mul"

    @property
    def batch_of_one(self) -> bool:
        """A channel filter that all images of a batch share."""
        return self.channel is not None and self.channel.shape[0] < self.input.shape[0]

    def split(self, tensor: Tensor) -> Tensor:
        """View ``(B, C, ...)`` as ``(B, G, C/G, ...)``."""
        return tensor.unflatten(1, (self.spatial.shape[1], -1))

    def items(self, batch: slice) -> "_Split":
        """The same restricted to some images."""
        channel = self.channel
        if channel is not None and not self.batch_of_one:
            channel = channel[batch]
        return replace(self, input=self.input[batch], spatial=self.spatial[batch], channel=channel)

    def spatial_tap(self, tap: int, rows: slice) -> Tensor:
        """S of one tap, ``(B, G, 1, rows, Wo)``."""
        return self.spatial[:, :, tap, rows].unsqueeze(2)

    def channel_at(self, tap: int, rows: slice) -> Tensor:
        """Channel filter of one tap and some rows, broadcastable to ``(B, G, C/G, rows, Wo)``."""
        assert self.channel is not None
        if self.per_pixel:
            return self.channel[..., rows, :]
        return self.channel[..., tap, None, None]

    def filter_tap(self, tap: int, rows: slice) -> Tensor:
        """F of one tap without the gain, broadcastable to ``(B, G, C/G, rows, Wo)``."""
        spatial = self.spatial_tap(tap, rows)
        if self.channel is None or self.gain:
            return spatial
        spatial = spatial.to(self.dtype)
        channel = self.channel_at(tap, rows)
        return spatial * channel if self.combine == "mul" else spatial + channel


def forward(call: Call, output: Tensor) -> None:
    """Write the filtered image into ``output``, ``(B, C, Ho, Wo)``."""
    split = _split(call)
    for rows, batch in _strips(split, split.spatial.shape[3], arrays=3):
        part = split.items(batch)
        padded = part.split(_padded_rows(part, rows))
        target = part.split(output[batch, :, rows])
        exact = output.dtype == split.dtype
        total = target if exact else torch.empty_like(target, dtype=split.dtype)
        for tap in range(split.window.taps):
            view = _tap_view(padded, split, tap, rows)
            weight = part.filter_tap(tap, rows)
            if tap == 0:
                torch.mul(view, weight, out=total)
            else:
                total.addcmul_(view, weight)
        if split.gain:
            total.mul_(part.channel_at(0, rows))
        if not exact:
            target.copy_(total)


def backward(call: Call, grad_output: Tensor, grads: Gradients) -> None:
    """Write the gradients that are asked for."""
    split = _split(call)
    if grads.spatial_filter is not None or grads.channel_filter is not None:
        _grad_filters(split, grad_output, grads.spatial_filter, grads.channel_filter)
    if grads.input is not None:
        _grad_input(split, grad_output, grads.input)


def _split(call: Call) -> _Split:
    spatial = call.spatial_filter.unflatten(1, (call.groups, call.window.taps))
    channel = call.channel_filter
    if channel is not None:
        channel = channel.unflatten(1, (call.groups, call.channels_per_group))
    return _Split(call.input, spatial, channel, call.window, call.combine, call.sum_dtype)


def _strips(call: _Split, count: int, arrays: int) -> Iterator[tuple[slice, slice]]:
    """Strips of ``count`` rows, and images within, for which ``arrays`` tensors fit into the
    workspace."""
    B, C, _, W = call.input.shape
    window = call.window
    width = max(W, call.spatial.shape[4] * window.stride[1])
    width += (window.kernel_size[1] - 1) * window.dilation[1]
    row_bytes = arrays * C * width * window.stride[0] * call.dtype.itemsize
    halo = (window.kernel_size[0] - 1) * window.dilation[0] // window.stride[0]
    images = B
    height = WORKSPACE_BYTES // (B * row_bytes) - halo
    if height < count:
        images = 1
        height = WORKSPACE_BYTES // row_bytes - halo
    height = max(height, halo, 1)  # a strip lower than its halo would mostly copy the halo
    for start in range(0, count, height):
        for first in range(0, B, images):
            yield slice(start, min(start + height, count)), slice(first, first + images)


def _extent(call: _Split, axis: int, outputs: int) -> int:
    """Padded positions that ``outputs`` neighbouring outputs read along an axis."""
    window = call.window
    return (
        (outputs - 1) * window.stride[axis]
        + (window.kernel_size[axis] - 1) * window.dilation[axis]
        + 1
    )


def _padded_rows(call: _Split, rows: slice) -> Tensor:
    """The part of the padded input that output ``rows`` read, ``(B, C, extent, extent)``, as
    call.dtype."""
    input, window = call.input, call.window
    B, C, H, W = input.shape
    top = rows.start * window.stride[0] - window.before[0]
    left = -window.before[1]
    height = _extent(call, 0, rows.stop - rows.start)
    width = _extent(call, 1, call.spatial.shape[4])
    if top >= 0 and top + height <= H and left == 0 and width <= W and input.dtype == call.dtype:
        return input[:, :, top : top + height, :width]
    first, last = max(top, 0), min(top + height, H)  # rows inside the image
    stop = min(left + width, W)
    if window.padding_mode == "zeros":
        padded = input.new_zeros(B, C, height, width, dtype=call.dtype)
        padded[:, :, first - top : last - top, -left : stop - left] = input[:, :, first:last, :stop]
        return padded
    index = [source_index(y, H, window.padding_mode) for y in range(top, top + height)]
    if index != list(range(top, top + height)):
        input = input.index_select(2, torch.tensor(index, device=input.device))
    else:
        input = input[:, :, top : top + height]
    padded = input.new_empty(B, C, height, width, dtype=call.dtype)
    padded[..., -left : stop - left] = input[..., :stop]
    for x in (*range(left, 0), *range(stop, left + width)):
        padded[..., x - left] = input[..., source_index(x, W, window.padding_mode)]
    return padded


def _tap_view(padded: Tensor, call: _Split, tap: int, rows: slice) -> Tensor:
    """What one tap reads for output ``rows``, a view ``(B, G, C/G, rows, Wo)`` of the padded
    strip."""
    window = call.window
    i, j = divmod(tap, window.kernel_size[1])
    y, x = i * window.dilation[0], j * window.dilation[1]
    (sy, sx), Wo = window.stride, call.spatial.shape[4]
    return padded[
        ..., y : y + (rows.stop - rows.start - 1) * sy + 1 : sy, x : x + (Wo - 1) * sx + 1 : sx
    ]


def _grad_filters(
    call: _Split, grad_output: Tensor, grad_spatial: Tensor | None, grad_channel: Tensor | None
) -> None:
    """Gradients of both filters, strip by strip."""
    if grad_spatial is not None:
        grad_spatial = grad_spatial.unflatten(1, (-1, call.window.taps))
    if grad_channel is not None:
        grad_channel = call.split(grad_channel)
    # Where the gradient of the channel filter is a sum over strips or images, it is collected here.
    totals = None
    if grad_channel is not None and (call.batch_of_one or not call.per_pixel):
        exact = grad_channel.dtype == call.dtype
        totals = grad_channel if exact else torch.empty_like(grad_channel, dtype=call.dtype)
        totals.zero_()
    for rows, batch in _strips(call, call.spatial.shape[3], arrays=5):
        part = call.items(batch)
        padded = part.split(_padded_rows(part, rows))
        grad = part.split(grad_output[batch, :, rows])
        target = None if grad_spatial is None else grad_spatial[batch, :, :, rows]
        shared = slice(None) if call.batch_of_one else batch
        if totals is not None and not call.per_pixel:
            _grad_filters_per_image(part, padded, grad, rows, target, totals[shared])
            continue
        if target is not None:
            _grad_spatial(part, padded, grad, rows, target)
        if totals is not None:
            product = _grad_channel_per_pixel(part, padded, grad, rows)
            totals[..., rows, :] += product.sum(0, keepdim=True)
        elif grad_channel is not None:
            grad_channel[batch, ..., rows, :] = _grad_channel_per_pixel(part, padded, grad, rows)
    if totals is not None and grad_channel is not None and totals is not grad_channel:
        grad_channel.copy_(totals)


def _grad_spatial(call: _Split, padded: Tensor, grad: Tensor, rows: slice, target: Tensor) -> None:
    """grad_spatial of a strip into ``target``, ``(B, G, T, rows, Wo)``."""
    grad = grad.to(call.dtype)
    if call.gain:
        grad = grad * call.channel_at(0, rows)
    weighted = call.channel is not None and call.combine == "mul" and not call.gain
    for tap in range(call.window.taps):
        view = _tap_view(padded, call, tap, rows)
        scaled = grad * call.channel_at(tap, rows) if weighted else grad
        _sum_channels(scaled, view, target[:, :, tap])


def _sum_channels(a: Tensor, b: Tensor, target: Tensor) -> None:
    """``target (B, G, h, w) = sum over C/G of a * b``, one channel after the other: the sum stays
    in cache."""
    total = a[:, :, 0] * b[:, :, 0]
    for channel in range(1, a.shape[2]):
        total.addcmul_(a[:, :, channel], b[:, :, channel])
    target.copy_(total)


def _grad_channel_per_pixel(call: _Split, padded: Tensor, grad: Tensor, rows: slice) -> Tensor:
    """grad_channel of a strip, one value for each image, channel and pixel."""
    total = torch.zeros(grad.shape, dtype=call.dtype, device=grad.device)
    for tap in range(call.window.taps):
        view = _tap_view(padded, call, tap, rows)
        if call.combine == "mul":
            total.addcmul_(view, call.spatial_tap(tap, rows))
        else:
            total.add_(view)
    return total.mul_(grad)


def _grad_filters_per_image(
    call: _Split, padded: Tensor, grad: Tensor, rows: slice, target: Tensor | None, sums: Tensor
) -> None:
    """Both gradients of a strip for a 3-D channel filter; ``sums (B or 1, G, C/G, T)`` is added
    to."""
    grad = grad.to(call.dtype)
    product = torch.empty_like(grad)
    weighted = torch.empty_like(grad) if call.combine == "mul" else product
    for tap in range(call.window.taps):
        torch.mul(grad, _tap_view(padded, call, tap, rows), out=product)
        if target is not None:
            if call.combine == "mul":
                torch.mul(product, call.channel_at(tap, rows), out=weighted)
            target[:, :, tap] = weighted.sum(2)
        if call.combine == "mul":
            product.mul_(call.spatial_tap(tap, rows))
        tap_sums = product.sum((3, 4))
        sums[..., tap] += tap_sums.sum(0, keepdim=True) if call.batch_of_one else tap_sums


def _grad_input(call: _Split, grad_output: Tensor, grad_input: Tensor) -> None:
    """Gradient of the input: strips of the padded input collect what the taps send back to them.

    Rows of the padding are collected first and kept, ``{row: (B, C, W)}``; the strips of the image
    then add those that stand for them.
    """
    H, W = call.input.shape[2:]
    after = call.window.after((H, W), (call.spatial.shape[3], call.spatial.shape[4]))
    outside: dict[int, Tensor] = {}
    if call.window.padding_mode != "zeros":
        for y in (*range(-call.window.before[0], 0), *range(H, H + after[0])):
            row = _collect(call, grad_output, slice(y, y + 1), after[1]).squeeze(2)
            source = source_index(y, H, call.window.padding_mode)
            outside[source] = outside[source].add_(row) if source in outside else row
    for rows, batch in _strips(call, H, arrays=4):
        strip = _collect(call.items(batch), grad_output[batch], rows, after[1])
        for source, row in outside.items():
            if rows.start <= source < rows.stop:
                strip[:, :, source - rows.start] += row[batch]
        grad_input[batch, :, rows] = strip


def _collect(call: _Split, grad_output: Tensor, rows: slice, after: int) -> Tensor:
    """What all taps send to padded input ``rows``, columns folded into the image: ``(B, C, rows,
    W)``."""
    window = call.window
    W, Ho, Wo = call.input.shape[3], call.spatial.shape[3], call.spatial.shape[4]
    left = window.before[1]
    width = max(left + W + after, _extent(call, 1, Wo))
    shape = (*call.input.shape[:2], rows.stop - rows.start, width)
    padded = grad_output.new_zeros(shape, dtype=call.dtype)
    target = call.split(padded)
    sources = [_sources(window, i, rows, Ho) for i in range(window.kernel_size[0])]
    used = [source for source in sources if source.stop > source.start]
    if used:
        first = min(source.start for source in used)
        grad = call.split(grad_output[:, :, first : max(source.stop for source in used)])
        if call.gain:
            gain = call.channel_at(0, slice(first, first + grad.shape[3]))
            grad = grad.to(call.dtype) * gain
        for tap in range(window.taps):
            i, j = divmod(tap, window.kernel_size[1])
            source = sources[i]
            if source.stop <= source.start:
                continue
            y = source.start * window.stride[0] + i * window.dilation[0]
            y -= window.before[0] + rows.start
            x = j * window.dilation[1]
            view = target[
                ...,
                y : y + (source.stop - source.start - 1) * window.stride[0] + 1 : window.stride[0],
                x : x + (Wo - 1) * window.stride[1] + 1 : window.stride[1],
            ]
            part = grad[:, :, :, source.start - first : source.stop - first]
            view.addcmul_(part, call.filter_tap(tap, source))
    image = padded[..., left : left + W]
    if window.padding_mode != "zeros":
        for x in (*range(-left, 0), *range(W, W + after)):
            image[..., source_index(x, W, window.padding_mode)] += padded[..., x + left]
    return image


def _sources(window: Window, i: int, rows: slice, outputs: int) -> slice:
    """Output rows whose tap row ``i`` reads one of the padded input ``rows``."""
    offset = i * window.dilation[0] - window.before[0]
    stride = window.stride[0]
    start = max(0, -((offset - rows.start) // stride))
    stop = min(outputs, (rows.stop - 1 - offset) // stride + 1)
    return slice(start, max(start, stop))
