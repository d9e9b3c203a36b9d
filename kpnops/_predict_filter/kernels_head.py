"""Gradients of features, weight and a 3-D channel filter from what a patch's workspace holds.

Conventions as in ``kernels_patch.py``. Sums over pixels are split into chunks; each program adds to
a place of its own in ``partial``, patch after patch, and the chunks are added up at the end in
their order.
"""

import triton
import triton.language as tl

from .._decoupled_filter.kernels_index import as_stored, pixel_offset
from .kernels_forward import tap_values
from .kernels_logits import tap_position
from .kernels_patch import patch_pixels


@triton.jit
def _patch_bwd_features_kernel(
    logits_ptr,
    weight_ptr,
    grad_features_ptr,
    TAPS_IN_ALL,
    FEATURES,
    first_image,
    first_row,
    first_column,
    rows,
    columns,
    filters_row,
    filters_column,
    filters_rows,
    filters_columns,
    weight_strides,
    grad_features_strides,
    MATRIX: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """grad_features[f, p] = sum_t weight[t, f] logits[t, p], ``logits`` the gradient of the logits.

    A program owns PIXELS pixels of the patch and BLOCK_F features.
    """
    pid = tl.program_id(0).to(tl.int64)
    blocks_p = tl.cdiv(rows * columns, PIXELS)
    row, column, mask = patch_pixels((pid % blocks_p).to(tl.int32), rows, columns, PIXELS)
    blocks_f = tl.cdiv(FEATURES, BLOCK_F)
    first_feature = (pid // blocks_p % blocks_f).to(tl.int32) * BLOCK_F
    image = pid // blocks_p // blocks_f
    y = first_row + row
    x = first_column + column
    size = tl.cast(filters_rows, tl.int64) * filters_columns
    logits_ptr += image * TAPS_IN_ALL * size
    pixel_ptrs = (
        logits_ptr + (y - filters_row).to(tl.int64) * filters_columns + (x - filters_column)
    )
    target = grad_features_ptr + (first_image + image) * grad_features_strides[0]
    target += pixel_offset(y, x, grad_features_strides)
    if MATRIX:
        t = tl.arange(0, BLOCK_T)
        f = first_feature + tl.arange(0, BLOCK_F)
        acc = tl.zeros((PIXELS, BLOCK_F), ACC)
        for first_tap in range(0, TAPS_IN_ALL, BLOCK_T):
            tap = first_tap + t
            ptrs = pixel_ptrs[None, :] + tap.to(tl.int64)[:, None] * size
            inside = (tap < TAPS_IN_ALL)[:, None] & mask[None, :]
            grad = tl.trans(tl.load(ptrs, mask=inside, other=0.0))  # [PIXELS, BLOCK_T]
            offsets = tap[:, None] * weight_strides[0] + f[None, :] * weight_strides[1]
            inside = (tap < TAPS_IN_ALL)[:, None] & (f < FEATURES)[None, :]
            weight = tl.load(weight_ptr + offsets, mask=inside, other=0.0).to(ACC)
            acc = tl.dot(grad, weight, acc, input_precision=PRECISION, out_dtype=ACC)
        ptrs = target[:, None] + f.to(tl.int64)[None, :] * grad_features_strides[1]
        tl.store(ptrs, as_stored(acc, ptrs), mask=mask[:, None] & (f < FEATURES)[None, :])
    else:
        sums = ()
        for _j in tl.static_range(BLOCK_F):
            sums = sums + (tl.zeros((PIXELS,), ACC),)
        for tap in range(TAPS_IN_ALL):
            grad = tl.load(pixel_ptrs + tap * size, mask=mask, other=0.0)
            new_sums = ()
            for j in tl.static_range(BLOCK_F):
                ptr = weight_ptr + tap * weight_strides[0] + (first_feature + j) * weight_strides[1]
                weight = tl.load(ptr, mask=first_feature + j < FEATURES, other=0.0).to(ACC)
                new_sums = new_sums + (sums[j] + grad * weight,)
            sums = new_sums
        for j in tl.static_range(BLOCK_F):
            ptrs = target + tl.cast(first_feature + j, tl.int64) * grad_features_strides[1]
            inside = mask & (first_feature + j < FEATURES)
            tl.store(ptrs, as_stored(sums[j], ptrs), mask=inside)


@triton.jit
def _patch_bwd_weight_kernel(
    logits_ptr,
    features_ptr,
    partial_ptr,
    TAPS_IN_ALL,
    FEATURES,
    CHUNKS,
    images,
    first_image,
    first_row,
    first_column,
    rows,
    columns,
    filters_row,
    filters_column,
    filters_rows,
    filters_columns,
    features_strides,
    MATRIX: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """partial[chunk, t, f] += sum over the chunk's pixels of logits[t, p] features[f, p].

    A chunk is every CHUNKS-th block of PIXELS pixels of every image.
    """
    pid = tl.program_id(0).to(tl.int64)
    chunk = (pid % CHUNKS).to(tl.int32)
    blocks_f = tl.cdiv(FEATURES, BLOCK_F)
    first_feature = (pid // CHUNKS % blocks_f).to(tl.int32) * BLOCK_F
    first_tap = (pid // CHUNKS // blocks_f).to(tl.int32) * BLOCK_T
    size = tl.cast(filters_rows, tl.int64) * filters_columns
    blocks_p = tl.cdiv(rows * columns, PIXELS)
    t = first_tap + tl.arange(0, BLOCK_T)
    f = first_feature + tl.arange(0, BLOCK_F)
    acc = tl.zeros((BLOCK_T, BLOCK_F), ACC)
    sums = ()
    for _j in tl.static_range(1 if MATRIX else BLOCK_T * BLOCK_F):
        sums = sums + (tl.zeros((PIXELS,), ACC),)
    for number in range(chunk, images * blocks_p, CHUNKS):
        image = (number // blocks_p).to(tl.int64)
        row, column, mask = patch_pixels(number % blocks_p, rows, columns, PIXELS)
        y = first_row + row
        x = first_column + column
        grad_ptrs = logits_ptr + image * TAPS_IN_ALL * size
        grad_ptrs += (y - filters_row).to(tl.int64) * filters_columns + (x - filters_column)
        value_ptrs = features_ptr + (first_image + image) * features_strides[0]
        value_ptrs += pixel_offset(y, x, features_strides)
        if MATRIX:
            ptrs = grad_ptrs[None, :] + t.to(tl.int64)[:, None] * size
            inside = (t < TAPS_IN_ALL)[:, None] & mask[None, :]
            grad = tl.load(ptrs, mask=inside, other=0.0)  # [BLOCK_T, PIXELS]
            ptrs = value_ptrs[None, :] + f.to(tl.int64)[:, None] * features_strides[1]
            inside = (f < FEATURES)[:, None] & mask[None, :]
            value = tl.load(ptrs, mask=inside, other=0.0).to(ACC)  # [BLOCK_F, PIXELS]
            acc = tl.dot(grad, tl.trans(value), acc, input_precision=PRECISION, out_dtype=ACC)
        else:
            values = ()
            for k in tl.static_range(BLOCK_F):
                ptr = value_ptrs + tl.cast(first_feature + k, tl.int64) * features_strides[1]
                inside = mask & (first_feature + k < FEATURES)
                values = values + (tl.load(ptr, mask=inside, other=0.0).to(ACC),)
            new_sums = ()
            for j in tl.static_range(BLOCK_T):
                inside = mask & (first_tap + j < TAPS_IN_ALL)
                grad = tl.load(grad_ptrs + (first_tap + j) * size, mask=inside, other=0.0)
                for k in tl.static_range(BLOCK_F):
                    new_sums = new_sums + (sums[j * BLOCK_F + k] + grad * values[k],)
            sums = new_sums
    partial_ptr += chunk.to(tl.int64) * TAPS_IN_ALL * FEATURES
    if MATRIX:
        ptrs = partial_ptr + t[:, None] * FEATURES + f[None, :]
        inside = (t < TAPS_IN_ALL)[:, None] & (f < FEATURES)[None, :]
        tl.store(ptrs, tl.load(ptrs, mask=inside, other=0.0) + acc, mask=inside)
    else:
        for j in tl.static_range(BLOCK_T):
            for k in tl.static_range(BLOCK_F):
                ptr = partial_ptr + (first_tap + j) * FEATURES + first_feature + k
                inside = (first_tap + j < TAPS_IN_ALL) & (first_feature + k < FEATURES)
                total = tl.load(ptr, mask=inside, other=0.0) + tl.sum(sums[j * BLOCK_F + k], 0)
                tl.store(ptr, total, mask=inside)


@triton.jit
def _patch_bwd_channel_kernel(
    x_ptr,
    grad_ptr,
    filters_ptr,
    partial_ptr,
    B,
    C,
    GROUPS,
    CHUNKS,
    H,
    W,
    dilation_h,
    dilation_w,
    images,
    first_image,
    first_row,
    first_column,
    rows,
    columns,
    filters_row,
    filters_column,
    filters_rows,
    filters_columns,
    x_strides,
    grad_strides,
    KH: tl.constexpr,
    KW: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    ACC: tl.constexpr,
    PIXELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """partial[chunk, b, c, t] += sum over the chunk's p of grad[c, p] x[c, p + o_t] (S[t, p] if
    "mul"), the gradient of a 3-D channel filter.

    A program owns one block of taps of one channel and image.
    """
    BLOCKS: tl.constexpr = (KH + ROWS - 1) // ROWS * ((KW + COLUMNS - 1) // COLUMNS)
    pid = tl.program_id(0).to(tl.int64)
    chunk = (pid % CHUNKS).to(tl.int32)
    block = (pid // CHUNKS % BLOCKS).to(tl.int32)
    c = pid // CHUNKS // BLOCKS % C
    image = pid // CHUNKS // BLOCKS // C
    b = first_image + image
    group = c // (C // GROUPS)
    size = tl.cast(filters_rows, tl.int64) * filters_columns
    x_ptr += b * x_strides[0] + c * x_strides[1]
    grad_ptr += b * grad_strides[0] + c * grad_strides[1]
    filters_ptr += (image * GROUPS + group) * (KH * KW) * size
    sums = ()
    for _j in tl.static_range(ROWS * COLUMNS):
        sums = sums + (tl.zeros((PIXELS,), ACC),)
    for number in range(chunk, tl.cdiv(rows * columns, PIXELS), CHUNKS):
        patch_row, patch_column, mask = patch_pixels(number, rows, columns, PIXELS)
        y = first_row + patch_row
        x = first_column + patch_column
        offset = (y - filters_row).to(tl.int64) * filters_columns + (x - filters_column)
        grad = tl.load(grad_ptr + pixel_offset(y, x, grad_strides), mask=mask, other=0.0).to(ACC)
        new_sums = ()
        for j in tl.static_range(ROWS * COLUMNS):
            row, column = tap_position(block, j, KW, ROWS, COLUMNS)
            exists = (row < KH) & (column < KW)
            (value,) = tap_values(
                (x_ptr,), y, x, row, column, H, W, dilation_h, dilation_w, x_strides, mask, exists,
                KH, KW, PADDING, True, True, 1, ACC,
            )  # fmt: skip
            product = grad * value
            if COMBINE == "mul":
                ptr = filters_ptr + (row * KW + column) * size + offset
                product *= tl.load(ptr, mask=mask & exists, other=0.0)
            new_sums = new_sums + (sums[j] + product,)
        sums = new_sums
    partial_ptr += ((chunk.to(tl.int64) * B + b) * C + c) * (KH * KW)
    for j in tl.static_range(ROWS * COLUMNS):
        row, column = tap_position(block, j, KW, ROWS, COLUMNS)
        exists = (row < KH) & (column < KW)
        ptr = partial_ptr + row * KW + column
        total = tl.load(ptr, mask=exists, other=0.0) + tl.sum(sums[j], 0)
        tl.store(ptr, total, mask=exists)
