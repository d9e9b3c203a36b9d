"""Logits of a block of taps at a tile of pixels: weight . features + bias, accumulated in ACC.

By a matrix product of numbers of type OPERAND on tensor cores, or feature after feature where those
would round: float32 under "ieee", and float64. A block is ROWS rows of COLUMNS taps, and as
many as KW takes lie beside each other (``tap_position``).
"""

import triton
import triton.language as tl


@triton.jit
def tap_position(block, number, KW: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Row and column of the ``number``-th tap of the ``block``-th block; beyond KH or KW there is
    none."""
    CHUNKS: tl.constexpr = (KW + COLUMNS - 1) // COLUMNS
    row = block // CHUNKS * ROWS + number // COLUMNS
    column = block % CHUNKS * COLUMNS + number % COLUMNS
    return row, column


@triton.jit
def load_features(
    ptrs,
    first,
    mask,
    features_strides,
    FEATURES,
    FEATURE_BLOCK: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Features of the pixels from the ``first`` on, [PIXELS, FEATURE_BLOCK], zeros beyond FEATURES;
    ``ptrs`` point to the pixels' first feature."""
    k = first + tl.arange(0, FEATURE_BLOCK)
    tile_ptrs = ptrs[None, :] + k.to(tl.int64)[:, None] * features_strides[1]
    inside = (k < FEATURES)[:, None] & mask[None, :]
    return tl.trans(tl.load(tile_ptrs, mask=inside, other=0.0)).to(OPERAND)


@triton.jit
def block_product(
    features,
    weight_ptr,
    bias_ptr,
    first_tap,
    block,
    features_strides,
    weight_strides,
    mask,
    FEATURES,
    KH: tl.constexpr,
    KW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TAPS: tl.constexpr,
    FEATURE_BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
    OPERAND: tl.constexpr,
    ACC: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Logits of the ``block``-th block of taps of a filter that begins at row ``first_tap`` of the
    weight, by a matrix product: [PIXELS, TAPS], minus infinity where there is no such tap.

    ``features`` is the tile of all of them (RESIDENT) or points to the pixels' first feature.
    """
    t = tl.arange(0, TAPS)
    k = tl.arange(0, FEATURE_BLOCK)
    row, column = tap_position(block, t, KW, ROWS, COLUMNS)
    exists = (t < ROWS * COLUMNS) & (row < KH) & (column < KW)
    tap = first_tap + row * KW + column
    weight_ptrs = weight_ptr + k[:, None] * weight_strides[1] + tap[None, :] * weight_strides[0]
    if RESIDENT:
        inside = (k < FEATURES)[:, None] & exists[None, :]
        weight = tl.load(weight_ptrs, mask=inside, other=0.0).to(OPERAND)
        logits = tl.dot(features, weight, input_precision=PRECISION, out_dtype=ACC)
    else:
        logits = tl.zeros((PIXELS, TAPS), ACC)
        for first in range(0, FEATURES, FEATURE_BLOCK):
            part = load_features(
                features, first, mask, features_strides, FEATURES, FEATURE_BLOCK, OPERAND
            )
            inside = (first + k < FEATURES)[:, None] & exists[None, :]
            ptrs = weight_ptrs + first * weight_strides[1]
            weight = tl.load(ptrs, mask=inside, other=0.0).to(OPERAND)
            logits = tl.dot(part, weight, logits, input_precision=PRECISION, out_dtype=ACC)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + tap, mask=exists, other=0.0).to(ACC)
        logits += bias[None, :]
    return tl.where(exists[None, :], logits, float("-inf"))


@triton.jit
def block_sums(
    feature_ptrs,
    weight_ptr,
    bias_ptr,
    first_tap,
    block,
    features_strides,
    weight_strides,
    mask,
    FEATURES,
    KH: tl.constexpr,
    KW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACC: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """The same feature after feature, in full precision: a tuple of ROWS * COLUMNS vectors.

    ``feature_ptrs`` point to the pixels' first feature.
    """
    CHECKED: tl.constexpr = KH % ROWS != 0 or KW % COLUMNS != 0
    logits = ()
    for j in tl.static_range(ROWS * COLUMNS):
        row, column = tap_position(block, j, KW, ROWS, COLUMNS)
        start = tl.zeros((PIXELS,), ACC)
        if HAS_BIAS:
            exists = (row < KH) & (column < KW)
            ptr = bias_ptr + first_tap + row * KW + column
            start += tl.load(ptr, mask=exists, other=0.0).to(ACC)
        logits = logits + (start,)
    for feature in range(FEATURES):
        value = tl.load(feature_ptrs, mask=mask, other=0.0).to(ACC)
        feature_ptrs += features_strides[1]
        sums = ()
        for j in tl.static_range(ROWS * COLUMNS):
            row, column = tap_position(block, j, KW, ROWS, COLUMNS)
            tap = first_tap + row * KW + column
            ptr = weight_ptr + tap * weight_strides[0] + feature * weight_strides[1]
            if CHECKED:
                weight = tl.load(ptr, mask=(row < KH) & (column < KW), other=0.0).to(ACC)
            else:
                weight = tl.load(ptr).to(ACC)
            sums = sums + (logits[j] + value * weight,)
        logits = sums
    if CHECKED:
        checked = ()
        for j in tl.static_range(ROWS * COLUMNS):
            row, column = tap_position(block, j, KW, ROWS, COLUMNS)
            exists = (row < KH) & (column < KW)
            checked = checked + (tl.where(exists, logits[j], float("-inf")),)
        logits = checked
    return logits
