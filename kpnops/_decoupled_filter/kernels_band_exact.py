"""What the banded products cannot do: tiles with a value that is not finite, computed as the
definition has it.

Rarely run, so small: nothing is unrolled, all offsets are 64-bit, and every load has a mask.
"""

import triton
import triton.language as tl

from .kernels_index import as_stored, pixel_offset, source_index
from .kernels_tile_load import statistics_position


@triton.jit
def _load(ptr, mask):
    return tl.load(ptr, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def band_fwd_exact(
    b,
    group,
    c0,
    y0,
    x0,
    x_ptr,
    spatial_ptr,
    channel_ptr,
    statistics_ptr,
    out_ptr,
    channels,
    GROUPS,
    H,
    W,
    held_rows,
    x_strides,
    spatial_strides,
    channel_strides,
    out_strides,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FORM: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Each product with all its factors: sum_t (S Ch) x. Transposed, absent readers add nothing."""
    offs_c = c0 + tl.arange(0, BLOCK_C)[:, None]
    offs_w = x0 + tl.arange(0, BLOCK_W)
    mask_w = offs_w < W
    mask = (offs_c < channels) & mask_w[None, :]
    offs_c += group * channels
    x_ptr += b * x_strides[0] + offs_c * x_strides[1]  # [BLOCK_C, 1]
    out_ptr += b * out_strides[0] + offs_c * out_strides[1]
    if FORM == "pixel":
        channel_ptr += b * channel_strides[0] + offs_c * channel_strides[1]
    spatial_ptr += b * spatial_strides[0] + group * (KH * KW) * spatial_strides[1]
    zero = tl.cast(0, tl.int64)
    if SOFTMAX and TRANSPOSED:
        statistics_ptr, plane = statistics_position(
            statistics_ptr, b, group, zero, zero, GROUPS, held_rows, W
        )
    for number in range(tl.minimum(H - y0, ROWS)):
        row = y0 + number
        highest = tl.full((BLOCK_W,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_W,), tl.float32)
        if SOFTMAX and not TRANSPOSED:
            tap_ptrs = spatial_ptr + pixel_offset(row, offs_w, spatial_strides)
            for _ in range(KH * KW):
                highest = tl.maximum(highest, _load(tap_ptrs, mask_w))
                tap_ptrs += spatial_strides[1]
            tap_ptrs = spatial_ptr + pixel_offset(row, offs_w, spatial_strides)
            for _ in range(KH * KW):
                total += tl.exp(_load(tap_ptrs, mask_w) - highest)
                tap_ptrs += spatial_strides[1]
        acc = tl.zeros((BLOCK_C, BLOCK_W), tl.float32)
        for tap in range(KH * KW):
            i = tap // KW - (KH - 1) // 2
            j = tap % KW - (KW - 1) // 2
            if TRANSPOSED:
                y, x = row - i, offs_w - j
                y_inside, x_inside = (y >= 0) & (y < H), (x >= 0) & (x < W)
                taps_y, taps_x = y, x
                mask_taps = mask_w & x_inside & y_inside
            else:
                y, y_inside = source_index(row + i, H, PADDING)
                x, x_inside = source_index(offs_w + j, W, PADDING)
                taps_y, taps_x = row, offs_w
                mask_taps = mask_w
            inside = mask & (x_inside & y_inside)[None, :]
            value = _load(x_ptr + pixel_offset(y, x, x_strides)[None, :], inside)
            offs = tap * tl.cast(spatial_strides[1], tl.int64)
            offs += pixel_offset(taps_y, taps_x, spatial_strides)
            weight = _load(spatial_ptr + offs, mask_taps)
            if SOFTMAX:
                if TRANSPOSED:
                    ptrs = statistics_ptr + taps_y * W + taps_x
                    highest = _load(ptrs, mask_taps)
                    weight = tl.exp(weight - highest) * _load(ptrs + plane, mask_taps)
                else:
                    weight = tl.exp(weight - highest) * (1.0 / total)
            weight = tl.zeros((BLOCK_C, BLOCK_W), tl.float32) + weight[None, :]
            if FORM == "pixel":
                offs = pixel_offset(taps_y, taps_x, channel_strides)
                gain = _load(channel_ptr + offs[None, :], mask & mask_taps[None, :])
                weight = weight * gain
            if TRANSPOSED:
                acc += tl.where(inside, value * weight, 0.0)
            else:
                acc += value * weight
        offs = pixel_offset(row, offs_w, out_strides)
        tl.store(out_ptr + offs[None, :], as_stored(acc, out_ptr), mask=mask)


@triton.jit
def _exact_grad_of_tap(
    tap, b, group, y, x, mask, x_ptr, grad_ptr, channel_ptr, channels, H, W, x_strides,
    grad_strides, channel_strides, KH: tl.constexpr, KW: tl.constexpr, FORM: tl.constexpr,
    PADDING: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """sum_c grad Ch x for one tap of BLOCK_W pixels of a row."""
    source_y, y_inside = source_index(y + (tap // KW - (KH - 1) // 2), H, PADDING)
    source_x, x_inside = source_index(x + (tap % KW - (KW - 1) // 2), W, PADDING)
    c = group * channels
    x_ptrs = x_ptr + b * x_strides[0] + c * x_strides[1]
    x_ptrs += pixel_offset(source_y, source_x, x_strides)
    grad_ptrs = grad_ptr + b * grad_strides[0] + c * grad_strides[1]
    grad_ptrs += pixel_offset(y, x, grad_strides)
    channel_ptrs = channel_ptr
    if FORM == "pixel":
        channel_ptrs += b * channel_strides[0] + c * channel_strides[1]
        channel_ptrs += pixel_offset(y, x, channel_strides)
    acc = tl.zeros((BLOCK_W,), tl.float32)
    for _ in range(channels):
        product = _load(grad_ptrs, mask)
        if FORM == "pixel":
            product *= _load(channel_ptrs, mask)
            channel_ptrs += channel_strides[1]
        acc += product * _load(x_ptrs, mask & x_inside & y_inside)
        x_ptrs += x_strides[1]
        grad_ptrs += grad_strides[1]
    return acc


@triton.jit
def band_filters_exact(
    b,
    group,
    first,
    y0,
    x0,
    x_ptr,
    grad_ptr,
    spatial_ptr,
    channel_ptr,
    statistics_ptr,
    grad_spatial_ptr,
    channels,
    GROUPS,
    H,
    W,
    held_rows,
    x_strides,
    grad_strides,
    spatial_strides,
    channel_strides,
    grad_spatial_strides,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FORM: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Gradient of CHUNK rows of taps for two rows of pixels, each product with all its factors."""
    x = x0 + tl.arange(0, BLOCK_W)
    mask = x < W
    spatial_ptr += b * spatial_strides[0] + group * (KH * KW) * spatial_strides[1]
    grad_spatial_ptr += b * grad_spatial_strides[0] + group * (KH * KW) * grad_spatial_strides[1]
    if SOFTMAX and CHUNK < KH:
        zero = tl.cast(0, tl.int64)
        statistics_ptr, plane = statistics_position(
            statistics_ptr, b, group, zero, zero, GROUPS, held_rows, W
        )
    for number in range(tl.minimum(H - y0, 2)):
        y = y0 + number
        tap_ptrs = spatial_ptr + pixel_offset(y, x, spatial_strides)
        if SOFTMAX:
            highest = tl.full((BLOCK_W,), float("-inf"), tl.float32)
            total = tl.zeros((BLOCK_W,), tl.float32)
            delta = tl.zeros((BLOCK_W,), tl.float32)
            if CHUNK >= KH:
                ptrs = tap_ptrs
                for _ in range(KH * KW):
                    highest = tl.maximum(highest, _load(ptrs, mask))
                    ptrs += spatial_strides[1]
                ptrs = tap_ptrs
                for _ in range(KH * KW):
                    total += tl.exp(_load(ptrs, mask) - highest)
                    ptrs += spatial_strides[1]
                scale = 1.0 / total
                ptrs = tap_ptrs
                for number_of_tap in range(KH * KW):
                    acc = _exact_grad_of_tap(
                        number_of_tap, b, group, y, x, mask, x_ptr, grad_ptr, channel_ptr, channels,
                        H, W, x_strides, grad_strides, channel_strides, KH, KW, FORM, PADDING,
                        BLOCK_W,
                    )  # fmt: skip
                    delta += tl.exp(_load(ptrs, mask) - highest) * scale * acc
                    ptrs += spatial_strides[1]
            else:
                statistics_ptrs = statistics_ptr + y * W + x
                highest = _load(statistics_ptrs, mask)
                scale = _load(statistics_ptrs + plane, mask)
                delta = _load(statistics_ptrs + 2 * plane, mask)
        grad_ptrs = grad_spatial_ptr + pixel_offset(y, x, grad_spatial_strides)
        rows = tl.minimum(KH - first, CHUNK)
        for index in range(rows * KW):
            tap = first * KW + index
            acc = _exact_grad_of_tap(
                tap, b, group, y, x, mask, x_ptr, grad_ptr, channel_ptr, channels, H, W,
                x_strides, grad_strides, channel_strides, KH, KW, FORM, PADDING, BLOCK_W,
            )  # fmt: skip
            if SOFTMAX:
                logit = _load(tap_ptrs + tap * tl.cast(spatial_strides[1], tl.int64), mask)
                acc = tl.exp(logit - highest) * scale * (acc - delta)
            result_ptrs = grad_ptrs + tap * tl.cast(grad_spatial_strides[1], tl.int64)
            tl.store(result_ptrs, as_stored(acc, grad_spatial_ptr), mask=mask)
