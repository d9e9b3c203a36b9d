"""Banded products for the gradient of the spatial filter; conventions as in ``kernels_band.py``.

A program owns two rows of BLOCK_W pixels and CHUNK rows of taps, and walks the channels. Two rows
of the window at a time, [WINDOWS, channels], meet the gradients of the pixels, [channels, PIXELS]:
of the product the diagonals are kept.
"""

import triton
import triton.language as tl

from .kernels_band import (
    BLOCK_W,
    MARGIN,
    PIXELS,
    WINDOW,
    WINDOWS,
    band_load,
    band_position,
    band_softmax_terms,
    pair_matrix,
    pair_offs,
    pair_place,
    scaled_terms,
)
from .kernels_band_exact import band_filters_exact
from .kernels_index import STRIP, held_gradient, source_index
from .kernels_softmax import held_statistics
from .kernels_tile_columns import tile_store
from .kernels_tile_load import statistics_position


@triton.jit
def _band_filters_sums(
    x_ptrs,
    grad_ptrs,
    channel_ptrs,
    first,
    channels,
    mask_pixels,
    mask_columns,
    H,
    y0,
    x_row_step,
    steps,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FORM: tl.constexpr,
    PADDING: tl.constexpr,
    SPLIT: tl.constexpr,
    OPERAND: tl.constexpr,
    MASKED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Walks the channels: [WINDOWS, PIXELS] for each two rows of the window, whose diagonals are
    the gradient of the taps."""
    PAIRS: tl.constexpr = CHUNK // 2 + 1
    TOP: tl.constexpr = (KH - 1) // 2
    offs_c = tl.arange(0, BLOCK_C)
    rows = first - TOP + tl.arange(0, WINDOWS) // WINDOW  # from y0
    if not MASKED:
        x_ptrs += (first - TOP) * x_row_step
        x_ptrs += tl.where(tl.arange(0, WINDOWS) < WINDOW, 0, x_row_step)[:, None]
    acc = ()
    for _pair in tl.static_range(PAIRS):
        acc = acc + (tl.zeros((WINDOWS, PIXELS), tl.float32),)
    for c0 in tl.range(0, channels, BLOCK_C, num_stages=1):
        mask_c = c0 + offs_c < channels
        mask = mask_c[:, None] & mask_pixels
        grad = band_load(grad_ptrs, mask, MASKED)
        if SPLIT:
            gain = grad
            if FORM == "pixel":
                gain = band_load(channel_ptrs, mask, MASKED)
            high, low = scaled_terms(grad, gain, FORM, OPERAND)
        else:
            high = grad.to(OPERAND)
        new_acc = ()
        for pair in tl.static_range(PAIRS):
            if MASKED:
                y, y_inside = source_index(y0 + rows + 2 * pair, H, PADDING)
                y = y - y0
                inside = (y_inside & mask_columns)[:, None] & mask_c[None, :]
                x = tl.load(x_ptrs + (y * x_row_step)[:, None], mask=inside, other=0.0).to(OPERAND)
            else:
                x = tl.load(x_ptrs + 2 * pair * x_row_step).to(OPERAND)
            result = tl.dot(x, high, acc[pair])
            if SPLIT:
                result = tl.dot(x, low, result)
            new_acc = new_acc + (result,)
        acc = new_acc
        x_ptrs += BLOCK_C * steps[0]
        grad_ptrs += BLOCK_C * steps[1]
        if FORM == "pixel":
            channel_ptrs += BLOCK_C * steps[2]
    return acc


@triton.jit
def _band_filters_store(
    acc,
    grad_tap_ptrs,
    grad_tap_step,
    taps,
    highest,
    scale,
    delta,
    first,
    mask_pixels,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SOFTMAX: tl.constexpr,
    WHOLE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Store the gradient of the taps, or under SOFTMAX of the logits, S (dS - sum_t S dS), where
    the sum is ``delta`` unless the tile is WHOLE. ``grad_tap_ptrs`` point to the first tap of row
    ``first``.

    Returns [WINDOWS, PIXELS], NaN where a gradient of a tap is NaN or infinite.
    """
    PAIRS: tl.constexpr = CHUNK // 2 + 1
    offs_m = tl.arange(0, WINDOWS)[:, None]
    offs_n = tl.arange(0, PIXELS)[None, :]
    row = offs_m // WINDOW - offs_n // BLOCK_W  # of taps, for the first two rows of the window
    column = offs_m % WINDOW - MARGIN - offs_n % BLOCK_W + (KW - 1) // 2
    ptrs = grad_tap_ptrs + (row * KW + column) * grad_tap_step
    mask = (column >= 0) & (column < KW) & mask_pixels
    rows = tl.minimum(KH - first, CHUNK)
    probe = tl.zeros((WINDOWS, PIXELS), tl.float32)
    weights = ()
    if SOFTMAX:
        for pair in tl.static_range(PAIRS):
            matrix = pair_matrix(taps, highest, scale, mask_pixels, rows, KW, SOFTMAX, pair)
            weights = weights + (matrix,)
            if WHOLE:
                here = mask & (row >= -2 * pair) & (row < rows - 2 * pair)
                # beside the diagonals stand products that are no gradients
                terms = tl.where(here, matrix * acc[pair], 0.0)
                delta += tl.sum(terms, 0, keep_dims=True)
    for pair in tl.static_range(PAIRS):
        result = acc[pair]
        probe += result * 0.0
        if SOFTMAX:
            result = weights[pair] * (result - delta)
        here = mask & (row >= -2 * pair) & (row < rows - 2 * pair)
        tile_store(ptrs, result, here, True)
        ptrs += 2 * KW * grad_tap_step
    return probe


@triton.jit
def _band_filters_body(
    x_ptr,
    grad_ptr,
    spatial_ptr,
    channel_ptr,
    statistics_ptr,
    grad_spatial_ptr,
    b,
    group,
    first,
    y0,
    x0,
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
    SPLIT: tl.constexpr,
    OPERAND: tl.constexpr,
    MASKED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One tile. Returns [WINDOWS, PIXELS], NaN where a gradient of a tap is NaN or infinite."""
    WHOLE: tl.constexpr = CHUNK >= KH
    offs_c = tl.arange(0, BLOCK_C)
    offs_n = tl.arange(0, PIXELS)[None, :]
    row, column = offs_n // BLOCK_W, offs_n % BLOCK_W
    mask_pixels = (y0 + row < H) & (x0 + column < W)
    columns, mask_columns = tl.arange(0, WINDOWS) % WINDOW - MARGIN, tl.arange(0, WINDOWS) >= 0
    if MASKED:
        columns, mask_columns = source_index(
            x0.to(tl.int32) + tl.arange(0, WINDOWS) % WINDOW - MARGIN, W, PADDING
        )
        columns = columns - x0.to(tl.int32)
    c_first = group * channels
    x_ptr += b * x_strides[0] + c_first * x_strides[1] + y0 * x_strides[2] + x0 * x_strides[3]
    x_ptrs = x_ptr + offs_c[None, :] * tl.cast(x_strides[1], tl.int64)
    x_ptrs += (columns * tl.cast(x_strides[3], tl.int64))[:, None]
    grad_ptr += b * grad_strides[0] + c_first * grad_strides[1]
    grad_ptrs = grad_ptr + pair_offs(y0, x0, grad_strides)
    grad_ptrs += offs_c[:, None] * tl.cast(grad_strides[1], tl.int64)
    channel_ptrs = grad_ptrs
    if FORM == "pixel":
        channel_ptr += b * channel_strides[0] + c_first * channel_strides[1]
        channel_ptrs = channel_ptr + pair_offs(y0, x0, channel_strides)
        channel_ptrs += offs_c[:, None] * tl.cast(channel_strides[1], tl.int64)
    spatial_ptr += b * spatial_strides[0] + group * (KH * KW) * spatial_strides[1]
    pixel_offs = pair_offs(y0, x0, spatial_strides)
    tap_step = tl.cast(spatial_strides[1], tl.int64)
    tap_row, tap, number = pair_place(KW)
    tap_ptrs = spatial_ptr + ((first + tap_row) * KW + tap) * tap_step + pixel_offs
    taps = (tap_row, number, tap_ptrs, KW * tap_step)
    highest, scale, delta = 0.0, 0.0, tl.zeros((1, PIXELS), tl.float32)
    if SOFTMAX:
        if WHOLE:
            highest, scale = band_softmax_terms(
                spatial_ptr + pixel_offs, tap_step, mask_pixels, KH, KW, PIXELS
            )
        else:
            statistics_ptr, plane = statistics_position(
                statistics_ptr, b, group, y0, x0, GROUPS, held_rows, W
            )
            ptrs = statistics_ptr + row * W + column
            highest = tl.load(ptrs, mask=mask_pixels, other=0.0)
            scale = tl.load(ptrs + plane, mask=mask_pixels, other=0.0)
            delta = tl.load(ptrs + 2 * plane, mask=mask_pixels, other=0.0)
    steps = (
        tl.cast(x_strides[1], tl.int64),
        tl.cast(grad_strides[1], tl.int64),
        tl.cast(channel_strides[1], tl.int64),
    )
    acc = _band_filters_sums(
        x_ptrs, grad_ptrs, channel_ptrs, first.to(tl.int32), channels, mask_pixels, mask_columns, H,
        y0.to(tl.int32), tl.cast(x_strides[2], tl.int64), steps, KH, KW, FORM, PADDING, SPLIT,
        OPERAND, MASKED, CHUNK, BLOCK_C,
    )  # fmt: skip
    grad_tap_step = tl.cast(grad_spatial_strides[1], tl.int64)
    grad_tap_ptrs = grad_spatial_ptr + b * grad_spatial_strides[0]
    grad_tap_ptrs += (group * KH + first) * KW * grad_tap_step
    grad_tap_ptrs += pair_offs(y0, x0, grad_spatial_strides)
    return _band_filters_store(
        acc, grad_tap_ptrs, grad_tap_step, taps, highest, scale, delta, first.to(tl.int32),
        mask_pixels, KH, KW, SOFTMAX, WHOLE, CHUNK,
    )  # fmt: skip


@triton.jit(do_not_specialize=STRIP)
def _band_bwd_filters_kernel(
    x_ptr,
    grad_ptr,
    spatial_ptr,
    channel_ptr,
    statistics_ptr,
    grad_spatial_ptr,
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
    KH: tl.constexpr,
    KW: tl.constexpr,
    FORM: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    HELD_GRAD: tl.constexpr,
    SPLIT: tl.constexpr,
    OPERAND: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """grad_spatial[t, p] = sum_c grad[c, p] Ch[c, p] x[c, p + o_t], for CHUNK rows of taps.

    SOFTMAX: the gradient of the logits; from the ``statistics`` of the pixels where a program does
    not hold all rows of taps. Of a strip if one is given; HELD_GRAD: the gradient of the output
    stands in a workspace.
    """
    channels = C // GROUPS
    b, group, first, y0, x0 = band_position(
        tl.program_id(0), KH, GROUPS, H, W, first_image, first_row, rows, 2, CHUNK
    )
    if HELD_GRAD:
        grad_ptr = held_gradient(grad_ptr, first_image, held_row, grad_strides)
    if SOFTMAX and CHUNK < KH:
        statistics_ptr = held_statistics(
            statistics_ptr, first_image, held_row, held_rows, GROUPS, W
        )
    interior = (y0 + first >= (KH - 1) // 2) & (y0 + 2 <= H) & (channels % BLOCK_C == 0)
    interior = interior & (y0 + first - (KH - 1) // 2 + 2 * (CHUNK // 2 + 1) <= H)
    interior = interior & (x0 >= MARGIN) & (x0 + (WINDOW - MARGIN) <= W)
    if interior:
        probe = _band_filters_body(
            x_ptr, grad_ptr, spatial_ptr, channel_ptr, statistics_ptr, grad_spatial_ptr, b, group,
            first, y0, x0, channels, GROUPS, H, W, held_rows, x_strides, grad_strides,
            spatial_strides, channel_strides, grad_spatial_strides, KH, KW, FORM, PADDING, SOFTMAX,
            SPLIT, OPERAND, False, CHUNK, BLOCK_C,
        )  # fmt: skip
    else:
        probe = _band_filters_body(
            x_ptr, grad_ptr, spatial_ptr, channel_ptr, statistics_ptr, grad_spatial_ptr, b, group,
            first, y0, x0, channels, GROUPS, H, W, held_rows, x_strides, grad_strides,
            spatial_strides, channel_strides, grad_spatial_strides, KH, KW, FORM, PADDING, SOFTMAX,
            SPLIT, OPERAND, True, CHUNK, BLOCK_C,
        )  # fmt: skip
    again = tl.cast(0, tl.int32)
    if SPLIT:  # else each product is one of gradient and input
        again = tl.max(tl.max((probe != probe).to(tl.int32), 1), 0)
    if again > 0:
        tl.debug_barrier()  # these stores come after those of other threads above
        # A compiler cannot know that ``again`` is 1: it works out the tile's position anew.
        b, group, first, y0, x0 = band_position(
            tl.program_id(0) * again, KH, GROUPS, H, W, first_image, first_row, rows, 2, CHUNK
        )
        band_filters_exact(
            b, group, first, y0, x0, x_ptr, grad_ptr, spatial_ptr, channel_ptr, statistics_ptr,
            grad_spatial_ptr, channels, GROUPS, H, W, held_rows, x_strides, grad_strides,
            spatial_strides, channel_strides, grad_spatial_strides, KH, KW, FORM, PADDING, SOFTMAX,
            CHUNK, BLOCK_W,
        )  # fmt: skip
