"""The gradients of both filters for some rows: the terms of the formulas in ``cpu_gradients``."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .cpu_split import Split, certainly_finite, filter_rows, tap_views, tap_windows

__all__ = [
    "gradient_of_sums",
    "write_channel_per_pixel",
    "write_filters_per_image",
    "write_logits",
    "write_matrix",
    "write_spatial",
]

# Of sums over channels: elements of a block of them for each thread, which stay in cache; and,
# where there are fewer, elements of the sums of several channels at a time.
ELEMENTS_AT_ONCE = 2**18
ELEMENTS_OF_LANES = 2**16


def gradient_of_sums(call: Split, grad: Tensor) -> Tensor:
    """Gradient of the sums over the taps, before a gain or a matrix: ``(B, G, C/G, rows, Wo)``."""
    if call.form != "mix":
        grad = call.split(grad)
        return grad * call.channel_at(0) if call.gain else grad
    assert call.channel is not None
    total = grad[:, :1] * call.channel[:, 0]
    for output in range(1, grad.shape[1]):
        total.addcmul_(grad[:, output, None], call.channel[:, output])
    return call.split(total)


def write_spatial(call: Split, padded: Tensor, grad: Tensor, target: Tensor) -> None:
    """grad_spatial of some rows into ``target``, ``(B, G, T, rows, Wo)``; ``grad`` is that of the
    sums over the taps. With ``call.scratch`` times P, as ``write_logits`` takes it."""
    Kh, Kw = call.window.kernel_size
    windows, target = tap_windows(padded, call), target.unflatten(2, (Kh, Kw))
    factors, exact = None, target.dtype == call.dtype
    if call.form == "image" and call.combine == "mul":
        assert call.channel is not None
        factors = call.channel[..., None, None].unflatten(3, (Kh, Kw))
    # Blocks that need memory of their own are no larger where there are more threads.
    threads = torch.get_num_threads() if exact and factors is None else 1
    lanes = _lanes(grad.shape[2], target.numel())
    for taps, rows in _blocks(target, ELEMENTS_AT_ONCE * threads):
        total = place = target[:, :, taps, :, rows]
        if not exact:
            total = torch.empty_like(place, dtype=call.dtype)
        weights = None if factors is None else factors[:, :, :, taps]
        read = windows[:, :, :, taps, :, rows]
        _sum_channels(grad[..., None, None, rows, :], read, weights, total, lanes)
        if not exact:
            place.copy_(total)
        elif call.scratch is not None:
            place.mul_(call.spatial.unflatten(2, (Kh, Kw))[:, :, taps, :, rows])


def _blocks(target: Tensor, most: int) -> Iterator[tuple[slice, slice]]:
    """Rows of taps, and rows, of ``target (B, G, Kh, Kw, rows, Wo)``: at most so many elements at a
    time, or one row for one row of taps."""
    B, G, Kh, Kw, rows, Wo = target.shape
    row = max(1, B * G * Kw * Wo)
    height = min(rows, max(1, most // row))
    taps = min(Kh, max(1, most // (row * height)))
    for top in range(0, rows, height):
        for tap in range(0, Kh, taps):
            yield slice(tap, tap + taps), slice(top, top + height)


def _lanes(channels: int, elements: int) -> int:
    """Channels at a time in sums of so many elements over ``channels``: more than one where an
    operation would take less time than its call."""
    most = min(channels, max(1, ELEMENTS_OF_LANES // max(1, elements)))
    return max(count for count in range(1, most + 1) if channels % count == 0)


def _sum_channels(a: Tensor, b: Tensor, weights: Tensor | None, total: Tensor, lanes: int) -> None:
    """Write ``total = sum over C/G of a * b``, each product times its weight if there are any; all
    but the total ``(B, G, C/G, taps, Kw, rows, Wo)`` or broadcastable to that."""
    a, b = a.unflatten(2, (-1, lanes)), b.unflatten(2, (-1, lanes))
    factors = [None] * a.shape[2]
    if weights is not None:
        factors = weights.unflatten(2, (-1, lanes)).unbind(2)
    shape = (*total.shape[:2], lanes, *total.shape[2:])
    sums = total.unsqueeze(2) if lanes == 1 else total.new_empty(shape)
    for block, (first, second, weight) in enumerate(
        zip(a.unbind(2), b.unbind(2), factors, strict=True)
    ):
        if weight is not None:
            first, second = first * second, weight
        if block == 0:
            torch.mul(first, second, out=sums)
        else:
            sums.addcmul_(first, second)
    if lanes > 1:
        torch.sum(sums, 2, out=total)


def _put_tap(call: Split, value: Tensor, tap: int, target: Tensor) -> None:
    """Write the gradient of S at one tap into ``target (B, G, T, rows, Wo)``; times P under
    softmax, as ``write_logits`` takes it."""
    if call.scratch is not None:
        torch.mul(value, call.spatial[:, :, tap], out=target[:, :, tap])
    else:
        target[:, :, tap] = value


def write_logits(probabilities: Tensor, products: Tensor, target: Tensor) -> None:
    """Gradient of the logits from ``products``, the gradient of P times P; all ``(B, G, T, rows,
    Wo)``."""
    mean = products.sum(2, keepdim=True)
    exact = target.dtype == products.dtype
    result = target if exact else products
    torch.addcmul(products, probabilities, mean, value=-1, out=result)
    if not exact:
        target.copy_(products)


def write_channel_per_pixel(
    call: Split, padded: Tensor, grad: Tensor, target: Tensor, *, add: bool
) -> None:
    """grad_channel of some rows, one value for each image, channel and pixel.

    The gradient that arrives is taken out of the sum over the taps where that changes nothing (see
    ``filter_rows``).
    """
    grad, spatial = call.split(grad), call.spatial_taps()
    total = torch.empty_like(grad)
    if grad.device.type == "cpu":
        for tap, view in enumerate(tap_views(padded, call)):
            _add_tap(call, total, view, spatial[tap], first=tap == 0)
        if certainly_finite(total.mul_(grad)):
            _store(total, target, add)
            return
    for tap, view in enumerate(tap_views(padded, call)):
        _add_tap(call, total, grad * view, spatial[tap], first=tap == 0)
    _store(total, target, add)


def _add_tap(call: Split, total: Tensor, value: Tensor, spatial: Tensor, *, first: bool) -> None:
    """Add ``value``, times S of its tap under "mul"; the first tap is written instead."""
    if call.combine == "add" and first:
        total.copy_(value)
    elif call.combine == "add":
        total.add_(value)
    elif first:
        torch.mul(value, spatial, out=total)
    else:
        total.addcmul_(value, spatial)


def write_matrix(call: Split, padded: Tensor, grad: Tensor, target: Tensor, *, add: bool) -> None:
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


def write_filters_per_image(
    call: Split, padded: Tensor, grad: Tensor, target: Tensor | None, sums: Tensor
) -> None:
    """Both gradients of some rows for a 3-D channel filter; ``sums (B or 1, G, C/G, T)`` is added
    to."""
    product = torch.empty_like(grad)
    weighted = torch.empty_like(grad) if call.combine == "mul" else product
    taps = zip(tap_views(padded, call), call.spatial_taps(), strict=True)
    for tap, (view, spatial) in enumerate(taps):
        torch.mul(grad, view, out=product)
        if target is not None:
            if call.combine == "mul":
                torch.mul(product, call.channel_at(tap), out=weighted)
            _put_tap(call, weighted.sum(2), tap, target)
        if call.combine == "mul":
            product.mul_(spatial)
        tap_sums = product.sum((3, 4))
        sums[..., tap] += tap_sums.sum(0, keepdim=True) if call.shared else tap_sums
