"""Forward of the fused head: logits, softmax and filter of a tile of pixels in one kernel.

A program owns TILE_H x TILE_W pixels (PIXELS in all) of one image and up to CHANNELS channels of
one group, and walks the taps in blocks: ROWS rows of KW taps, or COLUMNS of a row where KW is
larger. The logits of a block are one vector of pixels for each tap; the softmax is kept up from
block to block as in FlashAttention. They never reach memory. One launch does the tiles whose
windows lie inside the image, without masks, another the rest (MASKED).

The logits come from a matrix product (MATRIX), or feature after feature (``kernels_logits.py``).
"""

import triton
import triton.language as tl

from .._decoupled_filter.kernels_index import as_stored, pixel_offset, source_index
from .kernels_columns import columns_of
from .kernels_logits import block_product, block_sums, load_features, tap_position

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def tile_of_pixels(pid, H, W, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Rows and columns of the ``pid``-th tile's pixels, [TILE_H * TILE_W], row after row; columns
    of tiles run fastest. Also its first row and column."""
    tiles_w = tl.cdiv(W, TILE_W)
    y0 = (pid // tiles_w) * TILE_H
    x0 = (pid % tiles_w) * TILE_W
    offs = tl.arange(0, TILE_H * TILE_W)
    return y0 + offs // TILE_W, x0 + offs % TILE_W, y0, x0


@triton.jit
def tap_values(
    ptrs,
    y,
    x,
    row,
    column,
    H,
    W,
    dilation_h,
    dilation_w,
    x_strides,
    mask,
    exists,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PADDING: tl.constexpr,
    MASKED: tl.constexpr,
    CHECKED: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    """What the pixels read through one tap, a tuple of CHANNELS vectors.

    Without masks ``ptrs`` point to the pixels themselves, else to the channels' first pixel.
    """
    dy = (row - (KH - 1) // 2) * dilation_h
    dx = (column - (KW - 1) // 2) * dilation_w
    values = ()
    if MASKED:
        source_y, inside_y = source_index(y + dy, H, PADDING)
        source_x, inside_x = source_index(x + dx, W, PADDING)
        inside = inside_y & inside_x & mask
        if CHECKED:
            inside = inside & exists
        offset = source_y.to(tl.int64) * x_strides[2] + source_x.to(tl.int64) * x_strides[3]
        for c in tl.static_range(CHANNELS):
            values = values + (tl.load(ptrs[c] + offset, mask=inside, other=0.0).to(ACC),)
    else:
        offset = dy.to(tl.int64) * x_strides[2] + dx.to(tl.int64) * x_strides[3]
        for c in tl.static_range(CHANNELS):
            if CHECKED:
                values = values + (tl.load(ptrs[c] + offset, mask=exists, other=0.0).to(ACC),)
            else:
                values = values + (tl.load(ptrs[c] + offset).to(ACC),)
    return values


@triton.jit
def _head_fwd_body(
    features,
    weight_ptr,
    bias_ptr,
    x_ptrs,
    channel_ptrs,
    first_tap,
    y,
    x,
    mask,
    FRAMES,
    FEATURES,
    H,
    W,
    dilation_h,
    dilation_w,
    frame_stride,
    features_strides,
    weight_strides,
    x_strides,
    channel_strides,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    MATRIX: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
    OPERAND: tl.constexpr,
    MASKED: tl.constexpr,
    ACC: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TAPS: tl.constexpr,
    FEATURE_BLOCK: tl.constexpr,
):
    """Sums over all taps of all frames: weighted by the logits or, not yet divided by their sum,
    the exponentials; and for "add" the sum that the channel filter is added to. Then the
    logarithm of the sum of the exponentials, and that sum divided by the largest.

    ``features`` is a tile where they are RESIDENT, else points to the pixels' first feature."""
    BLOCKS: tl.constexpr = (KH + ROWS - 1) // ROWS * ((KW + COLUMNS - 1) // COLUMNS)
    CHECKED: tl.constexpr = KH % ROWS != 0 or KW % COLUMNS != 0
    highest = tl.full((PIXELS,), float("-inf"), ACC)
    # Its multiple by log2(e), rounded once: weights are exp2(logit log2(e) - base).
    base = tl.zeros((PIXELS,), ACC)
    total = tl.zeros((PIXELS,), ACC)
    acc = ()
    added = ()
    for _c in tl.static_range(CHANNELS):
        acc = acc + (tl.zeros((PIXELS,), ACC),)
        added = added + (tl.zeros((PIXELS,), ACC),)
    for number in range(FRAMES * BLOCKS):
        frame = number // BLOCKS
        block = number % BLOCKS
        if MATRIX:
            logits = block_product(
                features, weight_ptr, bias_ptr, first_tap + frame * (KH * KW), block,
                features_strides, weight_strides, mask, FEATURES, KH, KW, ROWS, COLUMNS, TAPS,
                FEATURE_BLOCK, HAS_BIAS, RESIDENT, PRECISION, OPERAND, ACC, PIXELS,
            )  # fmt: skip
            columns = columns_of(logits, PIXELS, TAPS)
        else:
            columns = block_sums(
                features, weight_ptr, bias_ptr, first_tap + frame * (KH * KW), block,
                features_strides, weight_strides, mask, FEATURES, KH, KW, ROWS, COLUMNS, HAS_BIAS,
                ACC, PIXELS,
            )  # fmt: skip
        if SOFTMAX:
            largest = highest
            for j in tl.static_range(ROWS * COLUMNS):
                largest = tl.maximum(largest, columns[j])
            # of minus infinity alone: 0, so that it stays a weight of 0 instead of NaN
            new_base = tl.where(largest == float("-inf"), 0.0, largest) * LOG2_E
            factor = tl.where(highest == float("-inf"), 0.0, tl.exp2(base - new_base))
            highest = largest
            base = new_base
            total = total * factor
            scaled = ()
            for c in tl.static_range(CHANNELS):
                scaled = scaled + (acc[c] * factor,)
            acc = scaled
        frame_ptrs = ()
        for c in tl.static_range(CHANNELS):
            frame_ptrs = frame_ptrs + (x_ptrs[c] + frame.to(tl.int64) * frame_stride,)
        for j in tl.static_range(ROWS * COLUMNS):
            row, column = tap_position(block, j, KW, ROWS, COLUMNS)
            exists = (row < KH) & (column < KW)
            values = tap_values(
                frame_ptrs, y, x, row, column, H, W, dilation_h, dilation_w, x_strides, mask,
                exists, KH, KW, PADDING, MASKED, CHECKED, CHANNELS, ACC,
            )  # fmt: skip
            weight = columns[j]
            if SOFTMAX:
                weight = tl.exp2(weight * LOG2_E - base)
                total += weight
            elif CHECKED:
                weight = tl.where(exists, weight, 0.0)
            new_acc = ()
            new_added = ()
            for c in tl.static_range(CHANNELS):
                product = values[c] * weight
                more = added[c]
                if FORM == "image":
                    ptr = channel_ptrs[c] + (row * KW + column) * channel_strides[2]
                    if CHECKED:
                        share = tl.load(ptr, mask=exists, other=0.0).to(ACC)
                    else:
                        share = tl.load(ptr).to(ACC)
                    if COMBINE == "mul":
                        product = values[c] * (weight * share)
                    else:
                        more += values[c] * share
                if FORM == "pixel" and COMBINE == "add":
                    more += values[c]
                new_acc = new_acc + (acc[c] + product,)
                new_added = new_added + (more,)
            acc = new_acc
            added = new_added
    log_sum_exp = base
    if SOFTMAX:
        log_sum_exp = base / LOG2_E + tl.log(total)
    return acc, added, log_sum_exp, total


@triton.jit
def _head_fwd_kernel(
    features_ptr,
    weight_ptr,
    bias_ptr,
    x_ptr,
    channel_ptr,
    out_ptr,
    log_sum_exp_ptr,
    C,
    GROUPS,
    FRAMES,
    FEATURES,
    H,
    W,
    dilation_h,
    dilation_w,
    frame_stride,
    features_strides,
    weight_strides,
    x_strides,
    channel_strides,
    out_strides,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    STATISTICS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    MATRIX: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
    OPERAND: tl.constexpr,
    MASKED: tl.constexpr,
    ACC: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TAPS: tl.constexpr,
    FEATURE_BLOCK: tl.constexpr,
):
    """out[c, p] = sum_{n,t} F[c, n, t, p] x[n, c, p + o_t], F of the logits weight . features[p] +
    bias, which SOFTMAX normalises over all taps of all frames.

    log_sum_exp[b, g, p] = log sum_{n,t} exp(logit), contiguous (B, GROUPS, H, W), with STATISTICS.
    A 4-D channel filter leaves the sums: out = Ch sum P x, or sum P x + Ch sum x.
    """
    PIXELS: tl.constexpr = TILE_H * TILE_W
    TOP: tl.constexpr = (KH - 1) // 2
    LEFT: tl.constexpr = (KW - 1) // 2
    pid = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(H, TILE_H) * tl.cdiv(W, TILE_W)
    y, x, y0, x0 = tile_of_pixels((pid % tiles).to(tl.int32), H, W, TILE_H, TILE_W)
    pid = pid // tiles
    per_group = C // GROUPS
    blocks = tl.cdiv(per_group, CHANNELS)
    channel_block = pid % blocks
    group = pid // blocks % GROUPS
    b = pid // blocks // GROUPS
    interior = (y0 >= TOP * dilation_h) & (y0 + TILE_H + (KH - 1 - TOP) * dilation_h <= H)
    interior = interior & (x0 >= LEFT * dilation_w)
    interior = interior & (x0 + TILE_W + (KW - 1 - LEFT) * dilation_w <= W)
    if interior != MASKED:
        mask = (y < H) & (x < W)
        features = features_ptr + b * features_strides[0] + pixel_offset(y, x, features_strides)
        if MATRIX and RESIDENT:
            features = load_features(
                features, 0, mask, features_strides, FEATURES, FEATURE_BLOCK, OPERAND
            )
        x_ptrs = ()
        channel_ptrs = ()
        for c in tl.static_range(CHANNELS):
            # channels beyond the last are the last once more, and are not stored
            offset = group * per_group + tl.minimum(channel_block * CHANNELS + c, per_group - 1)
            ptr = x_ptr + b * x_strides[0] + offset * x_strides[1]
            x_ptrs = x_ptrs + (ptr if MASKED else ptr + pixel_offset(y, x, x_strides),)
            ptr = channel_ptr + b * channel_strides[0] + offset * channel_strides[1]
            channel_ptrs = channel_ptrs + (ptr,)
        acc, added, log_sum_exp, total = _head_fwd_body(
            features, weight_ptr, bias_ptr, x_ptrs, channel_ptrs, (group * KH * KW).to(tl.int32),
            y, x, mask, FRAMES, FEATURES, H, W, dilation_h, dilation_w, frame_stride,
            features_strides, weight_strides, x_strides, channel_strides, KH, KW, FORM, COMBINE,
            PADDING, SOFTMAX, HAS_BIAS, MATRIX, RESIDENT, PRECISION, OPERAND, MASKED, ACC, PIXELS,
            CHANNELS, ROWS, COLUMNS, TAPS, FEATURE_BLOCK,
        )  # fmt: skip
        if STATISTICS and channel_block == 0:
            sums_ptr = log_sum_exp_ptr + (b * GROUPS + group) * H * W + y.to(tl.int64) * W + x
            tl.store(sums_ptr, log_sum_exp, mask=mask)
        for c in tl.static_range(CHANNELS):
            result = acc[c]
            if SOFTMAX:
                result = result / total
            if FORM == "pixel":
                share_ptr = channel_ptrs[c] + pixel_offset(y, x, channel_strides)
                share = tl.load(share_ptr, mask=mask, other=0.0).to(ACC)
                if COMBINE == "mul":
                    result = result * share
                else:
                    result = result + share * added[c]
            elif FORM == "image" and COMBINE == "add":
                result = result + added[c]
            offset = channel_block * CHANNELS + c
            target = out_ptr + b * out_strides[0] + (group * per_group + offset) * out_strides[1]
            target += pixel_offset(y, x, out_strides)
            tl.store(target, as_stored(result, target), mask=mask & (offset < per_group))
