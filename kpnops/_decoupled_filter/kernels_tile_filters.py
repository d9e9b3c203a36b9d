"""Fast kernel for the gradients of the filters where a group has many channels.

Conventions as in ``kernels_tile.py``.
"""

import triton
import triton.language as tl

from .kernels_index import STRIP, held_gradient, source_index
from .kernels_tile_columns import (
    even_strides,
    load_columns,
    load_padded_columns,
    store_pixels,
)
from .kernels_tile_load import load_taps, tile_position


@triton.jit
def _tile_bwd_filters_body(
    x_ptr,
    grad_ptr,
    spatial_ptr,
    channel_ptr,
    grad_spatial_ptr,
    grad_channel_ptr,
    channels,
    H,
    W,
    y0,
    x0,
    x_strides,
    grad_strides,
    spatial_strides,
    channel_strides,
    grad_spatial_strides,
    grad_channel_strides,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    WITH_CHANNEL: tl.constexpr,
    MASKED: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    SAME_STRIDES: tl.constexpr,
):
    """One tile. Pointers stand at the first channel of image and group, row y0, column x0."""
    TOP: tl.constexpr = (KH - 1) // 2
    LEFT: tl.constexpr = (KW - 1) // 2
    COLUMNS: tl.constexpr = PIXELS + KW - 1  # that a thread reads of a row
    if SAME_STRIDES:
        grad_strides = x_strides
        if WITH_CHANNEL:
            grad_channel_strides = x_strides
        if FORM == "pixel":
            channel_strides = x_strides
    offs_h = ROWS * tl.arange(0, BLOCK_H // ROWS)[:, None]  # [rows of threads, 1]
    offs_w = PIXELS * tl.arange(0, BLOCK_W // PIXELS)[None, :]  # [1, columns of threads]
    y, x = y0 + offs_h, x0 + offs_w
    x_offs = (offs_h * x_strides[2] + offs_w * x_strides[3]).to(tl.int64)
    grad_offs = (offs_h * grad_strides[2] + offs_w * grad_strides[3]).to(tl.int64)
    if FORM == "pixel":
        channel_offs = (offs_h * channel_strides[2] + offs_w * channel_strides[3]).to(tl.int64)
    if WITH_CHANNEL:
        grad_channel_offs = offs_h * grad_channel_strides[2] + offs_w * grad_channel_strides[3]
        grad_channel_offs = grad_channel_offs.to(tl.int64)
    acc = ()  # grad_spatial: (tap * ROWS + row) * PIXELS + pixel
    for _ in tl.static_range(KH * KW * ROWS * PIXELS):
        acc = acc + (tl.zeros((BLOCK_H // ROWS, BLOCK_W // PIXELS), ACC),)
    if WITH_CHANNEL and COMBINE == "mul":
        spatial = load_taps(
            spatial_ptr, spatial_ptr, 0, spatial_strides, H, W, y, x, offs_h, offs_w, KH, KW,
            SOFTMAX, False, MASKED, ACC, ROWS, PIXELS,
        )  # fmt: skip
    for _ in range(channels):
        grad = ()  # row * PIXELS + pixel
        scaled = ()
        for row in tl.static_range(ROWS):
            grad = grad + load_columns(
                grad_ptr + row * grad_strides[2], grad_offs, grad_strides[3], x, W, y + row < H, 0,
                PIXELS, PIXELS, MASKED, ACC,
            )  # fmt: skip
        if FORM == "pixel" and COMBINE == "mul":
            for row in tl.static_range(ROWS):
                gains = load_columns(
                    channel_ptr + row * channel_strides[2], channel_offs, channel_strides[3], x, W,
                    y + row < H, 0, PIXELS, PIXELS, MASKED, ACC,
                )  # fmt: skip
                for p in tl.static_range(PIXELS):
                    scaled = scaled + (grad[row * PIXELS + p] * gains[p],)
        else:
            scaled = grad
        totals = ()  # sum_t S x, for grad_channel
        for _pixel in tl.static_range(ROWS * PIXELS):
            totals = totals + (tl.zeros((BLOCK_H // ROWS, BLOCK_W // PIXELS), ACC),)
        values = ()  # row * COLUMNS + column, of all rows that are read
        new_acc = ()
        for r in tl.static_range(ROWS + KH - 1):
            if MASKED and PADDING != "zeros":
                source, _inside = source_index(y + (r - TOP), H, PADDING)
                values = values + load_padded_columns(
                    x_ptr, (source - y0) * x_strides[2], x_strides[3], x0, x, W, -LEFT,
                    COLUMNS, PADDING, ACC,
                )  # fmt: skip
            else:
                inside = (y + (r - TOP) >= 0) & (y + (r - TOP) < H)
                values = values + load_columns(
                    x_ptr + (r - TOP) * x_strides[2], x_offs, x_strides[3], x, W, inside, -LEFT,
                    COLUMNS, PIXELS, MASKED, ACC,
                )  # fmt: skip
            for j in tl.static_range(KW if r >= ROWS - 1 else 0):  # tap row r - (ROWS - 1)
                new_totals = ()
                for k in tl.static_range(ROWS * PIXELS):
                    value = values[(r - (ROWS - 1) + k // PIXELS) * COLUMNS + j + k % PIXELS]
                    product = scaled[k] * value
                    if FORM == "image" and COMBINE == "mul":
                        tap = (r - (ROWS - 1)) * KW + j
                        product *= tl.load(channel_ptr + tap * channel_strides[2]).to(ACC)
                    new_acc = new_acc + (
                        acc[((r - (ROWS - 1)) * KW + j) * ROWS * PIXELS + k] + product,
                    )
                    if WITH_CHANNEL and COMBINE == "mul":
                        value *= spatial[((r - (ROWS - 1)) * KW + j) * ROWS * PIXELS + k]
                    new_totals = new_totals + (totals[k] + value,)
                totals = new_totals
        acc = new_acc
        if WITH_CHANNEL:
            results = ()
            for k in tl.static_range(ROWS * PIXELS):
                results = results + (grad[k] * totals[k],)
            for row in tl.static_range(ROWS):
                store_pixels(
                    grad_channel_ptr + row * grad_channel_strides[2], grad_channel_offs,
                    grad_channel_strides[3], results, row * PIXELS, x, W, y + row < H, PIXELS,
                    MASKED,
                )  # fmt: skip
            grad_channel_ptr += grad_channel_strides[1]
        x_ptr += x_strides[1]
        grad_ptr += grad_strides[1]
        if FORM != "none":
            channel_ptr += channel_strides[1]
    if SOFTMAX:
        if not WITH_CHANNEL or COMBINE != "mul":  # no use before: they would only fill registers
            spatial = load_taps(
                spatial_ptr, spatial_ptr, 0, spatial_strides, H, W, y, x, offs_h, offs_w, KH, KW,
                SOFTMAX, False, MASKED, ACC, ROWS, PIXELS,
            )  # fmt: skip
        delta = ()  # sum_t S dS
        for k in tl.static_range(ROWS * PIXELS):
            value = spatial[k] * acc[k]
            for tap in tl.static_range(1, KH * KW):
                value += spatial[tap * ROWS * PIXELS + k] * acc[tap * ROWS * PIXELS + k]
            delta = delta + (value,)
        results = ()
        for k in tl.static_range(KH * KW * ROWS * PIXELS):
            results = results + (spatial[k] * (acc[k] - delta[k % (ROWS * PIXELS)]),)
        acc = results
    offs = (offs_h * grad_spatial_strides[2] + offs_w * grad_spatial_strides[3]).to(tl.int64)
    for tap in tl.static_range(KH * KW):
        for row in tl.static_range(ROWS):
            store_pixels(
                grad_spatial_ptr + row * grad_spatial_strides[2], offs, grad_spatial_strides[3],
                acc, (tap * ROWS + row) * PIXELS, x, W, y + row < H, PIXELS, MASKED,
            )  # fmt: skip
        grad_spatial_ptr += grad_spatial_strides[1]


@triton.jit(do_not_specialize=STRIP)
def _tile_bwd_filters_kernel(
    x_ptr,
    grad_ptr,
    spatial_ptr,
    channel_ptr,
    grad_spatial_ptr,
    grad_channel_ptr,
    C,
    GROUPS,
    H,
    W,
    first_image,
    first_row,
    rows,
    held_row,
    held_rows,
    x_strides,
    grad_strides,
    spatial_strides,
    channel_strides,
    grad_spatial_strides,
    grad_channel_strides,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    WITH_CHANNEL: tl.constexpr,
    HELD_GRAD: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    SAME_STRIDES: tl.constexpr,
    EVEN_STRIDES: tl.constexpr,
):
    """Gradients of the spatial and (WITH_CHANNEL) of a 4-D channel filter, in one walk over the
    channels.

    grad_spatial[t, p] = sum_c grad[c, p] x[c, p + o_t] (Ch if "mul" else 1);
    grad_channel[c, p] = grad[c, p] sum_t x[c, p + o_t] (S[t, p] if "mul" else 1).
    SOFTMAX: the gradient of the logits, S[t, p] (dS[t, p] - sum_t S dS) with dS as above.
    """
    TOP: tl.constexpr = (KH - 1) // 2
    LEFT: tl.constexpr = (KW - 1) // 2
    if EVEN_STRIDES:
        x_strides = even_strides(x_strides)
        grad_strides = even_strides(grad_strides)
        spatial_strides = even_strides(spatial_strides)
        if FORM == "pixel":
            channel_strides = even_strides(channel_strides)
        grad_spatial_strides = even_strides(grad_spatial_strides)
        if WITH_CHANNEL:
            grad_channel_strides = even_strides(grad_channel_strides)
        W = W // 2 * 2
    b, group, y0, x0 = tile_position(
        tl.program_id(0), GROUPS, H, W, first_image, first_row, rows, BLOCK_H, BLOCK_W
    )
    if HELD_GRAD:
        grad_ptr = held_gradient(grad_ptr, first_image, held_row, grad_strides)
    channels = C // GROUPS
    first = group * channels
    first_tap = group * (KH * KW)
    x_ptr += b * x_strides[0] + first * x_strides[1] + y0 * x_strides[2] + x0 * x_strides[3]
    grad_ptr += b * grad_strides[0] + first * grad_strides[1]
    grad_ptr += y0 * grad_strides[2] + x0 * grad_strides[3]
    grad_spatial_ptr += b * grad_spatial_strides[0] + first_tap * grad_spatial_strides[1]
    grad_spatial_ptr += y0 * grad_spatial_strides[2] + x0 * grad_spatial_strides[3]
    if FORM != "none":
        channel_ptr += b * channel_strides[0] + first * channel_strides[1]
    if FORM == "pixel":
        channel_ptr += y0 * channel_strides[2] + x0 * channel_strides[3]
    if WITH_CHANNEL or SOFTMAX:
        spatial_ptr += b * spatial_strides[0] + first_tap * spatial_strides[1]
        spatial_ptr += y0 * spatial_strides[2] + x0 * spatial_strides[3]
    if WITH_CHANNEL:
        grad_channel_ptr += b * grad_channel_strides[0] + first * grad_channel_strides[1]
        grad_channel_ptr += y0 * grad_channel_strides[2] + x0 * grad_channel_strides[3]
    interior = (y0 >= TOP) & (y0 + (BLOCK_H + KH - 1 - TOP) <= H)
    interior = interior & (x0 >= LEFT) & (x0 + (BLOCK_W + KW - 1 - LEFT) <= W)
    if interior:
        _tile_bwd_filters_body(
            x_ptr, grad_ptr, spatial_ptr, channel_ptr, grad_spatial_ptr, grad_channel_ptr,
            channels, H, W, y0.to(tl.int32), x0.to(tl.int32), x_strides, grad_strides,
            spatial_strides, channel_strides, grad_spatial_strides, grad_channel_strides, KH,
            KW, FORM, COMBINE, PADDING, SOFTMAX, WITH_CHANNEL, False, ACC, BLOCK_H, BLOCK_W,
            ROWS, PIXELS, SAME_STRIDES,
        )  # fmt: skip
    else:
        _tile_bwd_filters_body(
            x_ptr, grad_ptr, spatial_ptr, channel_ptr, grad_spatial_ptr, grad_channel_ptr,
            channels, H, W, y0.to(tl.int32), x0.to(tl.int32), x_strides, grad_strides,
            spatial_strides, channel_strides, grad_spatial_strides, grad_channel_strides, KH,
            KW, FORM, COMBINE, PADDING, SOFTMAX, WITH_CHANNEL, True, ACC, BLOCK_H, BLOCK_W,
            ROWS, PIXELS, SAME_STRIDES,
        )  # fmt: skip
