"""Backward of the fused head, patch by patch.

A patch is a rectangle of pixels of some images. Its filters, and those of the pixels around it that
read what it reads, stand in a workspace ``filters`` (images, TAPS_IN_ALL, rows, columns), where
TAPS_IN_ALL = GROUPS * FRAMES * KH * KW: probabilities P = exp(logit - log_sum_exp), without a
softmax the logits themselves. Then the gradient of the input is gathered from it, and the gradient
of the logits takes its place; what that sends to features, weight and bias are matrix products
(``kernels_head.py``).
"""

import triton
import triton.language as tl

from .._decoupled_filter.kernels_index import as_stored, pixel_offset, reader, source_index
from .kernels_columns import columns_of
from .kernels_forward import LOG2_E, tap_values
from .kernels_logits import block_product, block_sums, load_features, tap_position


@triton.jit
def patch_pixels(pid, rows, columns, PIXELS: tl.constexpr):
    """Rows and columns of the ``pid``-th PIXELS pixels of a rectangle, and which there are."""
    offs = pid * PIXELS + tl.arange(0, PIXELS)
    return offs // columns, offs % columns, offs < rows * columns


@triton.jit
def _patch_filters_kernel(
    features_ptr,
    weight_ptr,
    bias_ptr,
    log_sum_exp_ptr,
    filters_ptr,
    GROUPS,
    FRAMES,
    FEATURES,
    H,
    W,
    first_image,
    first_row,
    first_column,
    rows,
    columns,
    features_strides,
    weight_strides,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    MATRIX: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
    OPERAND: tl.constexpr,
    ACC: tl.constexpr,
    PIXELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TAPS: tl.constexpr,
    FEATURE_BLOCK: tl.constexpr,
):
    """filters[i, t, y, x] of the pixels (first_row + y, first_column + x) of image first_image + i;
    under circular padding those beyond the image are the ones on its other side.

    A program owns PIXELS of them, one group, and all of its taps.
    """
    BLOCKS: tl.constexpr = (KH + ROWS - 1) // ROWS * ((KW + COLUMNS - 1) // COLUMNS)
    pid = tl.program_id(0).to(tl.int64)
    blocks_p = tl.cdiv(rows * columns, PIXELS)
    row, column, mask = patch_pixels((pid % blocks_p).to(tl.int32), rows, columns, PIXELS)
    group = pid // blocks_p % GROUPS
    image = pid // blocks_p // GROUPS
    b = first_image + image
    y, _ = source_index(first_row + row, H, PADDING)
    x, _ = source_index(first_column + column, W, PADDING)
    features = features_ptr + b * features_strides[0] + pixel_offset(y, x, features_strides)
    if MATRIX and RESIDENT:
        features = load_features(
            features, 0, mask, features_strides, FEATURES, FEATURE_BLOCK, OPERAND
        )
    if SOFTMAX:
        sums_ptr = log_sum_exp_ptr + (b * GROUPS + group) * H * W + y.to(tl.int64) * W + x
        log_sum_exp = tl.load(sums_ptr, mask=mask, other=0.0) * LOG2_E
    taps = FRAMES * (KH * KW)
    size = tl.cast(rows, tl.int64) * columns
    filters_ptr += (image * GROUPS + group) * taps * size + row.to(tl.int64) * columns + column
    first_tap = (group * taps).to(tl.int32)
    for number in range(FRAMES * BLOCKS):
        frame_tap = number // BLOCKS * (KH * KW)
        block = number % BLOCKS
        if MATRIX:
            logits = block_product(
                features, weight_ptr, bias_ptr, first_tap + frame_tap, block, features_strides,
                weight_strides, mask, FEATURES, KH, KW, ROWS, COLUMNS, TAPS, FEATURE_BLOCK,
                HAS_BIAS, RESIDENT, PRECISION, OPERAND, ACC, PIXELS,
            )  # fmt: skip
            vectors = columns_of(logits, PIXELS, TAPS)
        else:
            vectors = block_sums(
                features, weight_ptr, bias_ptr, first_tap + frame_tap, block, features_strides,
                weight_strides, mask, FEATURES, KH, KW, ROWS, COLUMNS, HAS_BIAS, ACC, PIXELS,
            )  # fmt: skip
        for j in tl.static_range(ROWS * COLUMNS):
            tap_row, tap_column = tap_position(block, j, KW, ROWS, COLUMNS)
            value = vectors[j]
            if SOFTMAX:
                value = tl.exp2(value * LOG2_E - log_sum_exp)
            ptr = filters_ptr + (frame_tap + tap_row * KW + tap_column) * size
            tl.store(ptr, value, mask=mask & (tap_row < KH) & (tap_column < KW))


@triton.jit
def _patch_bwd_input_kernel(
    grad_ptr,
    filters_ptr,
    channel_ptr,
    grad_x_ptr,
    C,
    GROUPS,
    FRAMES,
    H,
    W,
    dilation_h,
    dilation_w,
    readers_h,
    readers_w,
    first_image,
    first_row,
    first_column,
    rows,
    columns,
    filters_row,
    filters_column,
    filters_rows,
    filters_columns,
    frame_stride,
    grad_strides,
    channel_strides,
    grad_x_strides,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    ACC: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """grad_x[n, c, q] = sum over t, and p with source(p + o_t) = q, of grad[c, p] F[n, c, t, p].

    A program owns PIXELS pixels q of the patch, one frame and up to CHANNELS channels of one group;
    ``filters`` are those of a rectangle (filters_row, ...) that holds all p.
    """
    pid = tl.program_id(0).to(tl.int64)
    blocks_p = tl.cdiv(rows * columns, PIXELS)
    row, column, mask = patch_pixels((pid % blocks_p).to(tl.int32), rows, columns, PIXELS)
    pid = pid // blocks_p
    per_group = C // GROUPS
    blocks_c = tl.cdiv(per_group, CHANNELS)
    channel_block = pid % blocks_c
    group = pid // blocks_c % GROUPS
    frame = pid // blocks_c // GROUPS % FRAMES
    image = pid // blocks_c // GROUPS // FRAMES
    b = first_image + image
    y = first_row + row
    x = first_column + column
    size = tl.cast(filters_rows, tl.int64) * filters_columns
    filters_ptr += ((image * GROUPS + group) * FRAMES + frame) * (KH * KW) * size
    grad_ptrs = ()
    channel_ptrs = ()
    acc = ()
    for c in tl.static_range(CHANNELS):
        offset = group * per_group + tl.minimum(channel_block * CHANNELS + c, per_group - 1)
        grad_ptrs = grad_ptrs + (grad_ptr + b * grad_strides[0] + offset * grad_strides[1],)
        ptr = channel_ptr + b * channel_strides[0] + offset * channel_strides[1]
        channel_ptrs = channel_ptrs + (ptr,)
        acc = acc + (tl.zeros((PIXELS,), ACC),)
    for number in range(KH * KW * readers_h * readers_w):
        tap = number // (readers_h * readers_w)
        offset_h = (tap // KW - (KH - 1) // 2) * dilation_h
        offset_w = (tap % KW - (KW - 1) // 2) * dilation_w
        reader_h = number // readers_w % readers_h
        reader_w = number % readers_w
        p_y, reads_y = reader(y, reader_h, offset_h, H, 1, 1, H, PADDING)
        p_x, reads_x = reader(x, reader_w, offset_w, W, 1, 1, W, PADDING)
        reads = mask & reads_y & reads_x
        local_y = p_y - filters_row
        local_x = p_x - filters_column
        if PADDING == "circular":  # the rectangle may go beyond the image
            local_y = tl.where(local_y < 0, local_y + H, local_y)
            local_y = tl.where(local_y >= filters_rows, local_y - H, local_y)
            local_x = tl.where(local_x < 0, local_x + W, local_x)
            local_x = tl.where(local_x >= filters_columns, local_x - W, local_x)
        place = local_y.to(tl.int64) * filters_columns + local_x
        spatial = tl.load(filters_ptr + tap * size + place, mask=reads, other=0.0).to(ACC)
        at_p = pixel_offset(p_y, p_x, grad_strides)
        new_acc = ()
        for c in tl.static_range(CHANNELS):
            weight = spatial
            if FORM == "pixel":
                share_ptr = channel_ptrs[c] + pixel_offset(p_y, p_x, channel_strides)
                share = tl.load(share_ptr, mask=reads, other=0.0).to(ACC)
            if FORM == "image":
                share = tl.load(channel_ptrs[c] + tap * channel_strides[2]).to(ACC)
            if FORM != "none":
                weight = weight * share if COMBINE == "mul" else weight + share
            grad = tl.load(grad_ptrs[c] + at_p, mask=reads, other=0.0).to(ACC)
            new_acc = new_acc + (acc[c] + tl.where(reads, grad * weight, 0.0),)
        acc = new_acc
    for c in tl.static_range(CHANNELS):
        offset = channel_block * CHANNELS + c
        target = grad_x_ptr + b * grad_x_strides[0] + frame * frame_stride
        target += (group * per_group + offset) * grad_x_strides[1]
        target += pixel_offset(y, x, grad_x_strides)
        tl.store(target, as_stored(acc[c], target), mask=mask & (offset < per_group))


@triton.jit
def _grads_of_block(
    x_ptr,
    grad_ptr,
    channel_ptr,
    y,
    x,
    block,
    channels,
    H,
    W,
    dilation_h,
    dilation_w,
    x_strides,
    grad_strides,
    channel_strides,
    mask,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    ACC: tl.constexpr,
    PIXELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dS[t, p] = sum_c grad[c, p] x[c, p + o_t] (Ch if "mul" else 1) for a block of taps, a tuple
    of vectors. Pointers stand at the first pixel of the group's first channel."""
    sums = ()
    for _j in tl.static_range(ROWS * COLUMNS):
        sums = sums + (tl.zeros((PIXELS,), ACC),)
    for _channel in range(channels):
        at_p = pixel_offset(y, x, grad_strides)
        grad = tl.load(grad_ptr + at_p, mask=mask, other=0.0).to(ACC)
        if FORM == "pixel" and COMBINE == "mul":
            share_ptr = channel_ptr + pixel_offset(y, x, channel_strides)
            grad *= tl.load(share_ptr, mask=mask, other=0.0).to(ACC)
        new_sums = ()
        for j in tl.static_range(ROWS * COLUMNS):
            row, column = tap_position(block, j, KW, ROWS, COLUMNS)
            exists = (row < KH) & (column < KW)
            (value,) = tap_values(
                (x_ptr,), y, x, row, column, H, W, dilation_h, dilation_w, x_strides, mask, exists,
                KH, KW, PADDING, True, True, 1, ACC,
            )  # fmt: skip
            product = grad * value
            if FORM == "image" and COMBINE == "mul":
                ptr = channel_ptr + (row * KW + column) * channel_strides[2]
                product *= tl.load(ptr, mask=exists, other=0.0).to(ACC)
            new_sums = new_sums + (sums[j] + product,)
        sums = new_sums
        x_ptr += x_strides[1]
        grad_ptr += grad_strides[1]
        channel_ptr += channel_strides[1]
    return sums


@triton.jit
def _patch_bwd_logits_kernel(
    x_ptr,
    grad_ptr,
    channel_ptr,
    filters_ptr,
    C,
    GROUPS,
    FRAMES,
    H,
    W,
    dilation_h,
    dilation_w,
    first_image,
    first_row,
    first_column,
    rows,
    columns,
    filters_row,
    filters_column,
    filters_rows,
    filters_columns,
    frame_stride,
    x_strides,
    grad_strides,
    channel_strides,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    ACC: tl.constexpr,
    PIXELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Replace the filters of the patch's own pixels by the gradient of their logits: dS, or under
    SOFTMAX P (dS - sum_t P dS), with dS as in ``_grads_of_block``.

    A program owns PIXELS pixels and one group. The sum takes a pass over the taps of its own.
    """
    BLOCKS: tl.constexpr = (KH + ROWS - 1) // ROWS * ((KW + COLUMNS - 1) // COLUMNS)
    pid = tl.program_id(0).to(tl.int64)
    blocks_p = tl.cdiv(rows * columns, PIXELS)
    patch_row, patch_column, mask = patch_pixels(
        (pid % blocks_p).to(tl.int32), rows, columns, PIXELS
    )
    group = pid // blocks_p % GROUPS
    image = pid // blocks_p // GROUPS
    b = first_image + image
    y = first_row + patch_row
    x = first_column + patch_column
    per_group = C // GROUPS
    first = group * per_group
    x_ptr += b * x_strides[0] + first * x_strides[1]
    grad_ptr += b * grad_strides[0] + first * grad_strides[1]
    channel_ptr += b * channel_strides[0] + first * channel_strides[1]
    size = tl.cast(filters_rows, tl.int64) * filters_columns
    filters_ptr += (image * GROUPS + group) * FRAMES * (KH * KW) * size
    filters_ptr += (y - filters_row).to(tl.int64) * filters_columns + (x - filters_column)
    delta = tl.zeros((PIXELS,), ACC)
    for turn in range(2 * FRAMES * BLOCKS if SOFTMAX else FRAMES * BLOCKS):
        number = turn % (FRAMES * BLOCKS)
        frame = number // BLOCKS
        block = number % BLOCKS
        sums = _grads_of_block(
            x_ptr + frame.to(tl.int64) * frame_stride, grad_ptr, channel_ptr, y, x, block,
            per_group, H, W, dilation_h, dilation_w, x_strides, grad_strides, channel_strides,
            mask, KH, KW, FORM, COMBINE, PADDING, ACC, PIXELS, ROWS, COLUMNS,
        )  # fmt: skip
        for j in tl.static_range(ROWS * COLUMNS):
            row, column = tap_position(block, j, KW, ROWS, COLUMNS)
            inside = mask & (row < KH) & (column < KW)
            ptr = filters_ptr + (frame * (KH * KW) + row * KW + column) * size
            if SOFTMAX:
                spatial = tl.load(ptr, mask=inside, other=0.0)
                if turn >= FRAMES * BLOCKS:
                    tl.store(ptr, spatial * (sums[j] - delta), mask=inside)
                else:
                    delta += spatial * sums[j]
            else:
                tl.store(ptr, sums[j], mask=inside)
