"""Fast kernel for all gradients at once, for groups of at most 4 channels.

Conventions as in ``kernels_tile.py``. With few channels the spatial filter is most of the traffic,
and this kernel reads it from memory once: the tap loop is outermost, all channels stay in
registers.
"""

import triton
import triton.language as tl

from .kernels_index import STRIP, held_gradient, source_index
from .kernels_softmax import held_statistics
from .kernels_tile_columns import even_strides, load_columns, load_padded_columns, store_pixels
from .kernels_tile_load import statistics_position, tile_position


@triton.jit
def _fused_bwd_body(
    x_ptr,
    grad_ptr,
    spatial_ptr,
    channel_ptr,
    statistics_ptr,
    grad_x_ptr,
    grad_spatial_ptr,
    grad_channel_ptr,
    plane,
    H,
    W,
    parts,
    y0,
    x0,
    x_strides,
    grad_strides,
    spatial_strides,
    channel_strides,
    grad_x_strides,
    grad_spatial_strides,
    grad_channel_strides,
    CHANNELS: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    UNROLLED: tl.constexpr,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    WITH_INPUT: tl.constexpr,
    WITH_SPATIAL: tl.constexpr,
    WITH_CHANNEL: tl.constexpr,
    MASKED: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PIXELS: tl.constexpr,
    SAME_STRIDES: tl.constexpr,
):
    """One tile. x, grad, channel and their gradients are tuples of pointers, one for each
    channel."""
    TOP: tl.constexpr = (KH - 1) // 2
    LEFT: tl.constexpr = (KW - 1) // 2
    COLUMNS: tl.constexpr = PIXELS + UNROLLED - 1  # that a thread reads of a row at once
    FIRST: tl.constexpr = LEFT - (UNROLLED - 1)  # of those that the gradient of the input reads
    if SAME_STRIDES:
        grad_strides = x_strides
        if FORM == "pixel":
            channel_strides = x_strides
        if WITH_INPUT:
            grad_x_strides = x_strides
        if WITH_CHANNEL:
            grad_channel_strides = x_strides
    offs_h = tl.arange(0, BLOCK_H)[:, None]  # [BLOCK_H, 1]
    offs_w = PIXELS * tl.arange(0, BLOCK_W // PIXELS)[None, :]  # [1, columns of threads]
    y, x = y0 + offs_h, x0 + offs_w
    x_offs = (offs_h * x_strides[2] + offs_w * x_strides[3]).to(tl.int64)
    grad_offs = (offs_h * grad_strides[2] + offs_w * grad_strides[3]).to(tl.int64)
    spatial_offs = (offs_h * spatial_strides[2] + offs_w * spatial_strides[3]).to(tl.int64)
    if FORM == "pixel":
        channel_offs = (offs_h * channel_strides[2] + offs_w * channel_strides[3]).to(tl.int64)
    if WITH_SPATIAL:
        grad_spatial_offs = offs_h * grad_spatial_strides[2] + offs_w * grad_spatial_strides[3]
        grad_spatial_offs = grad_spatial_offs.to(tl.int64)
    if SOFTMAX:
        statistics_offs = (offs_h * W + offs_w).to(tl.int64)
        if WITH_SPATIAL or WITH_CHANNEL:
            highest = load_columns(
                statistics_ptr, statistics_offs, 1, x, W, y < H, 0, PIXELS, PIXELS, MASKED, ACC
            )
            scale = load_columns(
                statistics_ptr + plane, statistics_offs, 1, x, W, y < H, 0, PIXELS, PIXELS, MASKED,
                ACC,
            )  # fmt: skip
        if WITH_SPATIAL:
            delta = load_columns(
                statistics_ptr + 2 * plane, statistics_offs, 1, x, W, y < H, 0, PIXELS, PIXELS,
                MASKED, ACC,
            )  # fmt: skip
    grad = ()  # channel * PIXELS + pixel, as the next three
    scaled = ()
    grad_x = ()
    totals = ()  # sum_t S x, for grad_channel
    for c in tl.static_range(CHANNELS):
        own = load_columns(
            grad_ptr[c], grad_offs, grad_strides[3], x, W, y < H, 0, PIXELS, PIXELS, MASKED, ACC
        )
        grad = grad + own
        if FORM == "pixel" and COMBINE == "mul":
            own_gains = load_columns(
                channel_ptr[c], channel_offs, channel_strides[3], x, W, y < H, 0, PIXELS, PIXELS,
                MASKED, ACC,
            )  # fmt: skip
            own = products(own, own_gains, PIXELS)
        scaled = scaled + own
        for _pixel in tl.static_range(PIXELS):
            grad_x = grad_x + (tl.zeros((BLOCK_H, BLOCK_W // PIXELS), ACC),)
            totals = totals + (tl.zeros((BLOCK_H, BLOCK_W // PIXELS), ACC),)
    tap_step = tl.cast(spatial_strides[1], tl.int64)
    grad_tap_step = tl.cast(grad_spatial_strides[1], tl.int64)
    # Only a row or part of it is unrolled: what is loaded of a row is indexed by the column alone,
    # and less compiles faster.
    count = KH * (KW // UNROLLED)
    if parts is not None:
        count = parts
    for part in range(count):
        i = part // (KW // UNROLLED)
        start = part % (KW // UNROLLED) * UNROLLED  # first column of taps
        if WITH_SPATIAL or WITH_CHANNEL:
            values = ()  # channel * COLUMNS + column
            for c in tl.static_range(CHANNELS):
                if MASKED and PADDING != "zeros":
                    source, _inside = source_index(y + (i - TOP), H, PADDING)
                    values = values + load_padded_columns(
                        x_ptr[c], (source - y0) * x_strides[2], x_strides[3], x0, x + start, W,
                        -LEFT, COLUMNS, PADDING, ACC,
                    )  # fmt: skip
                else:
                    inside = (y + (i - TOP) >= 0) & (y + (i - TOP) < H)
                    values = values + load_columns(
                        x_ptr[c] + (i - TOP) * x_strides[2], x_offs + start * x_strides[3],
                        x_strides[3], x + start, W, inside, -LEFT, COLUMNS, PIXELS, MASKED, ACC,
                    )  # fmt: skip
            for j in tl.static_range(UNROLLED):
                if (WITH_CHANNEL and COMBINE == "mul") or (WITH_SPATIAL and SOFTMAX):
                    weights = load_columns(
                        spatial_ptr + j * tap_step, spatial_offs, spatial_strides[3], x,
                        W, y < H, 0, PIXELS, PIXELS, MASKED, ACC,
                    )  # fmt: skip
                    if SOFTMAX:
                        weights = probabilities(weights, highest, scale, 0, PIXELS)
                if WITH_SPATIAL:
                    results = ()
                    for p in tl.static_range(PIXELS):
                        tap_sum = scaled[p] * values[j + p]
                        for c in tl.static_range(1, CHANNELS):
                            tap_sum += scaled[c * PIXELS + p] * values[c * COLUMNS + j + p]
                        if SOFTMAX:
                            tap_sum = weights[p] * (tap_sum - delta[p])
                        results = results + (tap_sum,)
                    store_pixels(
                        grad_spatial_ptr + j * grad_tap_step, grad_spatial_offs,
                        grad_spatial_strides[3], results, 0, x, W, y < H, PIXELS, MASKED,
                    )  # fmt: skip
                if WITH_CHANNEL:
                    new_totals = ()
                    for k in tl.static_range(CHANNELS * PIXELS):
                        value = values[k // PIXELS * COLUMNS + j + k % PIXELS]
                        if COMBINE == "mul":
                            value = value * weights[k % PIXELS]
                        new_totals = new_totals + (totals[k] + value,)
                    totals = new_totals
            if WITH_SPATIAL:
                grad_spatial_ptr += UNROLLED * grad_tap_step
        if WITH_INPUT:  # the output p = q - o_t reads pixel q through tap t
            shift = TOP - i
            reads = (y + shift >= 0) & (y + shift < H)
            if SOFTMAX:
                ptr = statistics_ptr + shift * W
                row_highest = load_columns(
                    ptr, statistics_offs - start, 1, x - start, W, reads, FIRST, COLUMNS, PIXELS,
                    MASKED, ACC,
                )  # fmt: skip
                row_scale = load_columns(
                    ptr + plane, statistics_offs - start, 1, x - start, W, reads, FIRST, COLUMNS,
                    PIXELS, MASKED, ACC,
                )  # fmt: skip
            values = ()  # channel * COLUMNS + column, as the gains
            gains = ()
            for c in tl.static_range(CHANNELS):
                row_grad = load_columns(
                    grad_ptr[c] + shift * grad_strides[2], grad_offs - start * grad_strides[3],
                    grad_strides[3], x - start, W, reads, FIRST, COLUMNS, PIXELS, MASKED, ACC,
                )  # fmt: skip
                if FORM == "pixel":
                    row_gains = load_columns(
                        channel_ptr[c] + shift * channel_strides[2],
                        channel_offs - start * channel_strides[3], channel_strides[3], x - start,
                        W, reads, FIRST, COLUMNS, PIXELS, MASKED, ACC,
                    )  # fmt: skip
                    if COMBINE == "mul":
                        row_grad = products(row_grad, row_gains, COLUMNS)
                    else:
                        gains = gains + row_gains
                values = values + row_grad
            for j in tl.static_range(UNROLLED):
                weights = load_columns(
                    spatial_ptr + j * tap_step + shift * spatial_strides[2],
                    spatial_offs - start * spatial_strides[3], spatial_strides[3], x - start, W,
                    reads, LEFT - j, PIXELS, PIXELS, MASKED, ACC,
                )  # fmt: skip
                if SOFTMAX:  # where no output reads the pixel the scale of 0 makes it 0
                    weights = probabilities(
                        weights, row_highest, row_scale, UNROLLED - 1 - j, PIXELS
                    )
                new_grad_x = ()
                for k in tl.static_range(CHANNELS * PIXELS):
                    factor = weights[k % PIXELS]
                    if FORM == "pixel" and COMBINE == "add":
                        factor += gains[k // PIXELS * COLUMNS + UNROLLED - 1 - j + k % PIXELS]
                    value = values[k // PIXELS * COLUMNS + UNROLLED - 1 - j + k % PIXELS]
                    new_grad_x = new_grad_x + (grad_x[k] + value * factor,)
                grad_x = new_grad_x
        spatial_ptr += UNROLLED * tap_step
    if WITH_CHANNEL:
        totals = products(grad, totals, CHANNELS * PIXELS)
    for c in tl.static_range(CHANNELS):
        if WITH_INPUT:
            offs = offs_h * grad_x_strides[2] + offs_w * grad_x_strides[3]
            store_pixels(
                grad_x_ptr[c], offs, grad_x_strides[3], grad_x, c * PIXELS, x, W, y < H, PIXELS,
                MASKED,
            )  # fmt: skip
        if WITH_CHANNEL:
            offs = offs_h * grad_channel_strides[2] + offs_w * grad_channel_strides[3]
            store_pixels(
                grad_channel_ptr[c], offs, grad_channel_strides[3], totals, c * PIXELS, x, W, y < H,
                PIXELS, MASKED,
            )  # fmt: skip


@triton.jit
def products(first, second, COUNT: tl.constexpr):
    """Products of the elements of two tuples."""
    results = ()
    for k in tl.static_range(COUNT):
        results = results + (first[k] * second[k],)
    return results


@triton.jit
def probabilities(logits, highest, scale, START: tl.constexpr, PIXELS: tl.constexpr):
    """Probabilities of one tap at a thread's pixels, whose statistics stand from START on."""
    results = ()
    for p in tl.static_range(PIXELS):
        results = results + (tl.exp(logits[p] - highest[START + p]) * scale[START + p],)
    return results


@triton.jit
def _channel_pointers(ptr, b, first, y0, x0, strides, CHANNELS: tl.constexpr):
    """Pointers to the tile's first pixel in each of CHANNELS channels."""
    ptr += b * strides[0] + first * strides[1] + y0 * strides[2] + x0 * strides[3]
    pointers = ()
    for _ in tl.static_range(CHANNELS):
        pointers = pointers + (ptr,)
        ptr += strides[1]
    return pointers


@triton.jit(do_not_specialize=["parts", *STRIP])
def _fused_bwd_kernel(
    x_ptr,
    grad_ptr,
    spatial_ptr,
    channel_ptr,
    statistics_ptr,
    grad_x_ptr,
    grad_spatial_ptr,
    grad_channel_ptr,
    GROUPS,
    H,
    W,
    parts,
    first_image,
    first_row,
    rows,
    held_row,
    held_rows,
    x_strides,
    grad_strides,
    spatial_strides,
    channel_strides,
    grad_x_strides,
    grad_spatial_strides,
    grad_channel_strides,
    CHANNELS: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    UNROLLED: tl.constexpr,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    WITH_INPUT: tl.constexpr,
    WITH_SPATIAL: tl.constexpr,
    WITH_CHANNEL: tl.constexpr,
    HELD_GRAD: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PIXELS: tl.constexpr,
    SAME_STRIDES: tl.constexpr,
    EVEN_STRIDES: tl.constexpr,
):
    """grad_x (zero padding), grad_spatial and grad_channel of a tile, of a strip if one is given.

    FORM is "none" or "pixel".

    grad_x[c, q]       = sum_t grad[c, q - o_t] F[c, t, q - o_t]
    grad_spatial[t, q] = sum_c grad[c, q] x[c, q + o_t] (Ch if "mul" else 1)
    grad_channel[c, q] = grad[c, q] sum_t x[c, q + o_t] (S[t, q] if "mul" else 1)
    SOFTMAX: the gradient of the logits, S[t, q] (dS[t, q] - delta[q]) with dS as above.
    HELD_GRAD: the gradient of the output stands in a workspace.
    UNROLLED divides KW: so many taps of a row are unrolled. PIXELS is 2 only if all are. ``parts``:
    how many trips through the taps that makes, told where a compiler that knew would unroll them;
    else None.
    """
    TOP: tl.constexpr = (KH - 1) // 2
    LEFT: tl.constexpr = (KW - 1) // 2
    # the gradient of the input reads as far the other way round
    REACH_H: tl.constexpr = KH - 1 - TOP
    REACH_W: tl.constexpr = KW - 1 - LEFT
    if EVEN_STRIDES:
        x_strides = even_strides(x_strides)
        grad_strides = even_strides(grad_strides)
        spatial_strides = even_strides(spatial_strides)
        if FORM == "pixel":
            channel_strides = even_strides(channel_strides)
        if WITH_INPUT:
            grad_x_strides = even_strides(grad_x_strides)
        if WITH_SPATIAL:
            grad_spatial_strides = even_strides(grad_spatial_strides)
        if WITH_CHANNEL:
            grad_channel_strides = even_strides(grad_channel_strides)
        W = W // 2 * 2
    b, group, y0, x0 = tile_position(
        tl.program_id(0), GROUPS, H, W, first_image, first_row, rows, BLOCK_H, BLOCK_W
    )
    if HELD_GRAD:
        grad_ptr = held_gradient(grad_ptr, first_image, held_row, grad_strides)
    first = group * CHANNELS
    first_tap = group * (KH * KW)
    x_ptrs = _channel_pointers(x_ptr, b, first, y0, x0, x_strides, CHANNELS)
    grad_ptrs = _channel_pointers(grad_ptr, b, first, y0, x0, grad_strides, CHANNELS)
    channel_ptrs = x_ptrs
    if FORM == "pixel":
        channel_ptrs = _channel_pointers(channel_ptr, b, first, y0, x0, channel_strides, CHANNELS)
    grad_x_ptrs = x_ptrs
    if WITH_INPUT:
        grad_x_ptrs = _channel_pointers(grad_x_ptr, b, first, y0, x0, grad_x_strides, CHANNELS)
    grad_channel_ptrs = x_ptrs
    if WITH_CHANNEL:
        grad_channel_ptrs = _channel_pointers(
            grad_channel_ptr, b, first, y0, x0, grad_channel_strides, CHANNELS
        )
    spatial_ptr += b * spatial_strides[0] + first_tap * spatial_strides[1]
    spatial_ptr += y0 * spatial_strides[2] + x0 * spatial_strides[3]
    plane = 0
    if SOFTMAX:
        statistics_ptr = held_statistics(
            statistics_ptr, first_image, held_row, held_rows, GROUPS, W
        )
        statistics_ptr, plane = statistics_position(
            statistics_ptr, b, group, y0, x0, GROUPS, held_rows, W
        )
    if WITH_SPATIAL:
        grad_spatial_ptr += b * grad_spatial_strides[0] + first_tap * grad_spatial_strides[1]
        grad_spatial_ptr += y0 * grad_spatial_strides[2] + x0 * grad_spatial_strides[3]
    interior = (y0 >= REACH_H) & (y0 + (BLOCK_H + REACH_H) <= H)
    interior = interior & (x0 >= REACH_W) & (x0 + (BLOCK_W + REACH_W) <= W)
    if interior:
        _fused_bwd_body(
            x_ptrs, grad_ptrs, spatial_ptr, channel_ptrs, statistics_ptr, grad_x_ptrs,
            grad_spatial_ptr, grad_channel_ptrs, plane, H, W, parts, y0.to(tl.int32),
            x0.to(tl.int32), x_strides, grad_strides, spatial_strides, channel_strides,
            grad_x_strides, grad_spatial_strides, grad_channel_strides, CHANNELS, KH, KW,
            UNROLLED, FORM, COMBINE, PADDING, SOFTMAX, WITH_INPUT, WITH_SPATIAL, WITH_CHANNEL,
            False, ACC, BLOCK_H, BLOCK_W, PIXELS, SAME_STRIDES,
        )  # fmt: skip
    else:
        _fused_bwd_body(
            x_ptrs, grad_ptrs, spatial_ptr, channel_ptrs, statistics_ptr, grad_x_ptrs,
            grad_spatial_ptr, grad_channel_ptrs, plane, H, W, parts, y0.to(tl.int32),
            x0.to(tl.int32), x_strides, grad_strides, spatial_strides, channel_strides,
            grad_x_strides, grad_spatial_strides, grad_channel_strides, CHANNELS, KH, KW,
            UNROLLED, FORM, COMBINE, PADDING, SOFTMAX, WITH_INPUT, WITH_SPATIAL, WITH_CHANNEL,
            True, ACC, BLOCK_H, BLOCK_W, PIXELS, SAME_STRIDES,
        )  # fmt: skip
