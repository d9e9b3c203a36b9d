"""The gradients of both filters for some rows: the terms of the formulas in ``cpu_gradients``."""

import torch
from torch import Tensor

from .cpu_split import Split, certainly_finite, filter_rows, tap_view

__all__ = [
    "gradient_of_sums",
    "write_channel_per_pixel",
    "write_filters_per_image",
    "write_logits",
    "write_matrix",
    "write_spatial",
]

_ELEMENTS_AT_ONCE = 2**17  # of a sum over channels


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
    sums over the taps."""
    weighted = call.form == "image" and call.combine == "mul"
    for tap in range(call.window.taps):
        view, place = tap_view(padded, call, tap), target[:, :, tap]
        scaled = grad * call.channel_at(tap) if weighted else grad
        if target.dtype != call.dtype:
            place.copy_(_sum_channels(scaled, view, view.new_empty(place.shape)))
            continue
        _sum_channels(scaled, view, place)
        if call.scratch is not None:  # under softmax times P, as ``write_logits`` takes it
            place.mul_(call.spatial[:, :, tap])


def _sum_channels(a: Tensor, b: Tensor, total: Tensor) -> Tensor:
    """Write ``total (B, G, rows, Wo) = sum over C/G of a * b`` and return it.

    So many channels at a time as make a sum that stays in cache, and an operation long enough: at
    64 x 128 x 128 eight at a time take half the time of one, at 256 x 28 x 28 a tenth.
    """
    channels = a.shape[2]
    most = min(channels, max(1, _ELEMENTS_AT_ONCE // max(1, total.numel())))
    lanes = max(count for count in range(1, most + 1) if channels % count == 0)
    if lanes == 1:
        torch.mul(a[:, :, 0], b[:, :, 0], out=total)
        for channel in range(1, channels):
            total.addcmul_(a[:, :, channel], b[:, :, channel])
        return total
    a, b = a.unflatten(2, (-1, lanes)), b.unflatten(2, (-1, lanes))
    sums = a[:, :, 0] * b[:, :, 0]
    for block in range(1, a.shape[2]):
        sums.addcmul_(a[:, :, block], b[:, :, block])
    return torch.sum(sums, 2, out=total)


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
