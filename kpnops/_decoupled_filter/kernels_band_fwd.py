"""Banded products for the forward, the gradient of the input and, apart, that of the gains;
conventions as in ``kernels_band.py``.
"""

import triton
import triton.language as tl

from .kernels_band import (
    BLOCK_W,
    MARGIN,
    WINDOW,
    band_load,
    band_matrix,
    band_place,
    band_position,
    band_softmax_terms,
    scaled_terms,
    two_terms,
)
from .kernels_band_exact import band_fwd_exact
from .kernels_index import STRIP, held_gradient, source_index
from .kernels_softmax import held_statistics
from .kernels_tile_columns import tile_store
from .kernels_tile_load import statistics_position


@triton.jit
def _band_product(
    acc,
    value,
    gain,
    taps,
    highest,
    scale,
    number,
    FORM: tl.constexpr,
    SOFTMAX: tl.constexpr,
    SPLIT: tl.constexpr,
    OPERAND: tl.constexpr,
    PERIOD: tl.constexpr,
):
    """acc + (value gain) (matrix of the taps), with two terms of each factor formed in float32."""
    if SPLIT:
        value, value_low = scaled_terms(value, gain, FORM, OPERAND)
    else:
        value = value.to(OPERAND)
    if SOFTMAX:
        powers = tl.exp(taps.to(tl.float32) - highest) * scale
        taps, taps_low = two_terms(powers, OPERAND)
        matrix_low = band_matrix(taps_low, number, PERIOD)
        acc = tl.dot(value, matrix_low, acc)
        if SPLIT:
            acc = tl.dot(value_low, matrix_low, acc)
    matrix = band_matrix(taps.to(OPERAND), number, PERIOD)
    if SPLIT:
        acc = tl.dot(value_low, matrix, acc)
    return tl.dot(value, matrix, acc)


@triton.jit
def _band_unrolled(
    x_ptrs,
    gain_ptrs,
    tap_ptrs,
    statistics_ptrs,
    plane,
    number,
    highest,
    scale,
    W,
    x_step,
    gain_step,
    tap_step,
    row_step,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FORM: tl.constexpr,
    SOFTMAX: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    SPLIT: tl.constexpr,
    OPERAND: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PERIOD: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """The sums of a tile that needs no masks, a tuple of ROWS; unrolled over the window's rows.

    Taps are loaded AHEAD rows, the input one row before they are used: a product waits for both.
    """
    TOP: tl.constexpr = KH - 1 - (KH - 1) // 2 if TRANSPOSED else (KH - 1) // 2
    STEPS: tl.constexpr = ROWS + KH - 1
    acc, values, gains, taps = (), (), (), ()
    row_highest, row_scale = (), ()
    for _row in tl.static_range(ROWS):
        acc = acc + (tl.zeros((BLOCK_C, BLOCK_W), tl.float32),)
    for now in tl.static_range(-AHEAD, STEPS):
        if now + AHEAD < STEPS:  # an expression: a variable would not be constant here
            for row in tl.static_range(ROWS):
                if now + AHEAD - row >= 0 and now + AHEAD - row < KH:
                    if TRANSPOSED:
                        ptrs = tap_ptrs + (KH - 1 - (now + AHEAD - row)) * KW * tap_step
                        ptrs += (now + AHEAD - TOP) * row_step
                    else:
                        ptrs = tap_ptrs + (now + AHEAD - row) * KW * tap_step + row * row_step
                    taps = taps + (tl.load(ptrs),)
                else:
                    taps = taps + (0.0,)
            if SOFTMAX and TRANSPOSED:
                ptrs = statistics_ptrs + (now + AHEAD - TOP) * W
                row_highest = row_highest + (tl.load(ptrs),)
                row_scale = row_scale + (tl.load(ptrs + plane),)
        if now >= -1 and now + 1 < STEPS:
            values = values + (tl.load(x_ptrs + (now + 1 - TOP) * x_step),)
            if SPLIT and FORM == "pixel":
                gains = gains + (tl.load(gain_ptrs + (now + 1 - TOP) * gain_step),)
            else:
                gains = gains + (0.0,)
        if now >= 0:
            new_acc = ()
            for row in tl.static_range(ROWS):
                result = acc[row]
                if now - row >= 0 and now - row < KH:
                    if SOFTMAX and TRANSPOSED:
                        tap_highest, tap_scale = row_highest[now], row_scale[now]
                    else:
                        tap_highest, tap_scale = highest[row], scale[row]
                    result = _band_product(
                        result, values[now], gains[now], taps[now * ROWS + row], tap_highest,
                        tap_scale, number, FORM, SOFTMAX, SPLIT, OPERAND, PERIOD,
                    )  # fmt: skip
                new_acc = new_acc + (result,)
            acc = new_acc
    return acc


@triton.jit
def _band_rolled(
    x_ptrs,
    gain_ptrs,
    tap_ptrs,
    statistics_ptrs,
    plane,
    number,
    highest,
    scale,
    mask_x,
    mask_taps,
    H,
    W,
    y0,
    x_step,
    gain_step,
    tap_step,
    row_step,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FORM: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    SPLIT: tl.constexpr,
    OPERAND: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PERIOD: tl.constexpr,
):
    """The sums of any tile, with masks: a loop over the rows of taps, small but slower."""
    TOP: tl.constexpr = KH - 1 - (KH - 1) // 2 if TRANSPOSED else (KH - 1) // 2
    acc = ()
    for _row in tl.static_range(ROWS):
        acc = acc + (tl.zeros((BLOCK_C, BLOCK_W), tl.float32),)
    for i in tl.range(KH, num_stages=1):
        new_acc = ()
        for row in tl.static_range(ROWS):
            step = row + i - TOP
            tap_row, pixel_row = i, row
            y, y_inside = source_index(y0 + step, H, PADDING)
            row_inside = y0 + row < H
            if TRANSPOSED:
                tap_row, pixel_row = KH - 1 - i, step
                row_inside = y_inside
            mask = mask_x & y_inside
            value = tl.load(x_ptrs + (y - y0) * x_step, mask=mask, other=0.0)
            gain = value
            if SPLIT and FORM == "pixel":
                gain = tl.load(gain_ptrs + step * gain_step, mask=mask, other=0.0)
            mask = mask_taps & row_inside
            ptrs = tap_ptrs + tap_row * KW * tap_step + pixel_row * row_step
            taps = tl.load(ptrs, mask=mask, other=0.0)
            tap_highest, tap_scale = highest[row], scale[row]
            if SOFTMAX and TRANSPOSED:
                ptrs = statistics_ptrs + step * W
                tap_highest = tl.load(ptrs, mask=mask, other=0.0)
                tap_scale = tl.load(ptrs + plane, mask=mask, other=0.0)
            result = _band_product(
                acc[row], value, gain, taps, tap_highest, tap_scale,
                tl.where(mask, number, -1), FORM, SOFTMAX, SPLIT, OPERAND, PERIOD,
            )  # fmt: skip
            new_acc = new_acc + (result,)
        acc = new_acc
    return acc


@triton.jit
def _band_fwd_body(
    x_ptr,
    spatial_ptr,
    channel_ptr,
    statistics_ptr,
    out_ptr,
    plane,
    channels,
    H,
    W,
    y0,
    x0,
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
    MASKED: tl.constexpr,
    SPLIT: tl.constexpr,
    OPERAND: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """One tile. Pointers stand at its first channel (``channels`` are left), row and column.

    Returns [BLOCK_C, BLOCK_W]: NaN where a result is not finite, else 0.
    """
    PERIOD: tl.constexpr = 8 if KW <= 8 else 16 if KW <= 16 else 32
    offs_c = tl.arange(0, BLOCK_C)[:, None]
    offs_w = tl.arange(0, BLOCK_W)[None, :]
    offs_q = tl.arange(0, WINDOW) - MARGIN  # columns of the window, from x0
    columns, inside = offs_q, offs_q < W
    if MASKED:
        columns, inside = source_index(x0 + offs_q, W, PADDING)
        columns = columns - x0
    x_ptrs = x_ptr + offs_c * tl.cast(x_strides[1], tl.int64)
    x_ptrs += (columns * tl.cast(x_strides[3], tl.int64))[None, :]  # [BLOCK_C, WINDOW]
    gain_ptrs = x_ptrs
    if FORM == "pixel":
        gain_ptrs = channel_ptr + offs_c * tl.cast(channel_strides[1], tl.int64)
        gain_step = tl.cast(channel_strides[3], tl.int64)
        gain_ptrs += (offs_q[None, :] if TRANSPOSED else offs_w) * gain_step
    gain_step = tl.cast(channel_strides[2], tl.int64)
    tap, pixel, number = band_place(KW, TRANSPOSED, PERIOD)
    if not TRANSPOSED:
        pixel = offs_w  # the taps are those of the pixel that reads: in the window, if transposed
    tap_step = tl.cast(spatial_strides[1], tl.int64)
    row_step = tl.cast(spatial_strides[2], tl.int64)
    tap_ptrs = spatial_ptr + tap * tap_step + pixel * tl.cast(spatial_strides[3], tl.int64)
    highest, scale = (), ()
    for row in tl.static_range(ROWS):
        if SOFTMAX and not TRANSPOSED:
            ptrs = spatial_ptr + row * row_step + offs_w * tl.cast(spatial_strides[3], tl.int64)
            mask = (x0 + offs_w < W) & (y0 + row < H)
            terms = band_softmax_terms(ptrs, tap_step, mask, KH, KW, BLOCK_W)
            highest = highest + (terms[0],)
            scale = scale + (terms[1],)
        else:
            highest = highest + (0.0,)
            scale = scale + (0.0,)
    mask = (offs_c < channels) & (x0 + offs_w < W)
    gains = ()
    for row in tl.static_range(ROWS):  # at once and early: what loads them waits for nothing
        if FORM == "pixel" and not TRANSPOSED:
            ptrs = gain_ptrs + row * gain_step
            gains = gains + (band_load(ptrs, mask & (y0 + row < H), MASKED),)
    if MASKED or AHEAD == 0:
        mask_taps = (number >= 0) & (x0 + pixel >= 0) & (x0 + pixel < W)
        acc = _band_rolled(
            x_ptrs, gain_ptrs, tap_ptrs, statistics_ptr + pixel, plane, number, highest, scale,
            (offs_c < channels) & inside[None, :], mask_taps, H, W, y0,
            tl.cast(x_strides[2], tl.int64), gain_step, tap_step, row_step, KH, KW, FORM, PADDING,
            SOFTMAX, TRANSPOSED, SPLIT, OPERAND, ROWS, BLOCK_C, PERIOD,
        )  # fmt: skip
    else:
        acc = _band_unrolled(
            x_ptrs, gain_ptrs, tap_ptrs, statistics_ptr + pixel, plane, number, highest, scale, W,
            tl.cast(x_strides[2], tl.int64), gain_step, tap_step, row_step, KH, KW, FORM, SOFTMAX,
            TRANSPOSED, SPLIT, OPERAND, ROWS, BLOCK_C, PERIOD, AHEAD,
        )  # fmt: skip
    probe = tl.zeros((BLOCK_C, BLOCK_W), tl.float32)
    out_ptrs = out_ptr + offs_c * tl.cast(out_strides[1], tl.int64)
    out_ptrs += offs_w * tl.cast(out_strides[3], tl.int64)
    for row in tl.static_range(ROWS):
        result = acc[row]
        if FORM == "pixel" and not TRANSPOSED:
            result = result * gains[row].to(tl.float32)
        probe += result * 0.0
        ptrs = out_ptrs + row * tl.cast(out_strides[2], tl.int64)
        tile_store(ptrs, result, mask & (y0 + row < H), MASKED)
    return probe


@triton.jit(do_not_specialize=STRIP)
def _band_fwd_kernel(
    x_ptr,
    spatial_ptr,
    channel_ptr,
    statistics_ptr,
    out_ptr,
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
    spatial_strides,
    channel_strides,
    out_strides,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FORM: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    HELD_GRAD: tl.constexpr,
    SPLIT: tl.constexpr,
    OPERAND: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """out[c, p] = sum_t S[t, p] Ch[c, p] x[c, p + o_t].

    TRANSPOSED: the gradient of the input under zero padding, out[c, q] = sum_t S[t, q - o_t]
    (Ch x)[c, q - o_t], where ``x`` is the gradient of the output; SPLIT: what stands in brackets
    takes two terms. Of a strip if one is given; HELD_GRAD: that gradient stands in a workspace.
    """
    TOP: tl.constexpr = KH - 1 - (KH - 1) // 2 if TRANSPOSED else (KH - 1) // 2
    channels = C // GROUPS
    b, group, c0, y0, x0 = band_position(
        tl.program_id(0), channels, GROUPS, H, W, first_image, first_row, rows, ROWS, BLOCK_C
    )
    if HELD_GRAD:
        x_ptr = held_gradient(x_ptr, first_image, held_row, x_strides)
    if SOFTMAX and TRANSPOSED:
        statistics_ptr = held_statistics(
            statistics_ptr, first_image, held_row, held_rows, GROUPS, W
        )
    x_base, spatial_base, channel_base, out_base = x_ptr, spatial_ptr, channel_ptr, out_ptr
    statistics_base = statistics_ptr
    first = group * channels + c0
    x_ptr += b * x_strides[0] + first * x_strides[1] + y0 * x_strides[2] + x0 * x_strides[3]
    spatial_ptr += b * spatial_strides[0] + group * (KH * KW) * spatial_strides[1]
    spatial_ptr += y0 * spatial_strides[2] + x0 * spatial_strides[3]
    plane = 0
    if SOFTMAX and TRANSPOSED:
        statistics_ptr, plane = statistics_position(
            statistics_ptr, b, group, y0, x0, GROUPS, held_rows, W
        )
    out_ptr += b * out_strides[0] + first * out_strides[1]
    out_ptr += y0 * out_strides[2] + x0 * out_strides[3]
    if FORM != "none":
        channel_ptr += b * channel_strides[0] + first * channel_strides[1]
        channel_ptr += y0 * channel_strides[2] + x0 * channel_strides[3]
    interior = (y0 >= TOP) & (y0 + (ROWS + KH - 1 - TOP) <= H) & (c0 + BLOCK_C <= channels)
    interior = interior & (x0 >= MARGIN) & (x0 + (WINDOW - MARGIN) <= W)
    left = (channels - c0).to(tl.int32)
    if interior:
        probe = _band_fwd_body(
            x_ptr, spatial_ptr, channel_ptr, statistics_ptr, out_ptr, plane, left, H, W,
            y0.to(tl.int32), x0.to(tl.int32), x_strides, spatial_strides, channel_strides,
            out_strides, KH, KW, FORM, PADDING, SOFTMAX, TRANSPOSED, False, SPLIT, OPERAND, ROWS,
            BLOCK_C, AHEAD,
        )  # fmt: skip
    else:
        probe = _band_fwd_body(
            x_ptr, spatial_ptr, channel_ptr, statistics_ptr, out_ptr, plane, left, H, W,
            y0.to(tl.int32), x0.to(tl.int32), x_strides, spatial_strides, channel_strides,
            out_strides, KH, KW, FORM, PADDING, SOFTMAX, TRANSPOSED, True, SPLIT, OPERAND, ROWS,
            BLOCK_C, AHEAD,
        )  # fmt: skip
    again = tl.max(tl.max((probe != probe).to(tl.int32), 1), 0)
    if again > 0:
        tl.debug_barrier()  # these stores come after those of other threads above
        # A compiler cannot know that ``again`` is 1: it works out the tile's position anew.
        b, group, c0, y0, x0 = band_position(
            tl.program_id(0) * again, channels, GROUPS, H, W, first_image, first_row, rows, ROWS,
            BLOCK_C,
        )  # fmt: skip
        band_fwd_exact(
            b, group, c0, y0, x0, x_base, spatial_base, channel_base, statistics_base, out_base,
            channels, GROUPS, H, W, held_rows, x_strides, spatial_strides, channel_strides,
            out_strides, KH, KW, FORM, PADDING, SOFTMAX, TRANSPOSED, ROWS, BLOCK_C, BLOCK_W,
        )  # fmt: skip
