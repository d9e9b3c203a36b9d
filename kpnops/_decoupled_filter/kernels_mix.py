"""Kernels of the mixing matrix (5-D channel filter). Conventions as in ``kernels_gather.py``.

With the filtered image f[c, p] = sum_t S[t, p] x[c, source(p, t)], of which a program holds one
channel at a time, so that nothing between the two is stored:

    out[o, p]  = sum_c M[o, c, p] f[c, p]
    dM[o, c, p] = grad[o, p] f[c, p]
    df[c, p]   = sum_o M[o, c, p] grad[o, p]
"""

import triton
import triton.language as tl

from .kernels_index import (
    SIZES,
    as_stored,
    centre_position,
    held_tile,
    pixel_offset,
    pixel_tile,
    source_index,
    split_program,
    tap_offset,
)
from .kernels_softmax import softmax_terms


@triton.jit
def _filtered_channel(
    x_base,
    taps_ptr,
    maximum,
    inverse_sum,
    top,
    left,
    mask,
    H,
    W,
    kernel_h,
    kernel_w,
    dilation_h,
    dilation_w,
    before_h,
    before_w,
    x_strides,
    tap_stride,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """f[p] = sum_t S[t, p] x[source(p, t)] of one channel, [BLOCK_P]; ``taps_ptr`` points to
    S[0, p]."""
    acc = tl.zeros((BLOCK_P,), ACC)
    for i in range(kernel_h):
        row, row_inside = source_index(top + tap_offset(i, dilation_h, before_h, INDEX), H, PADDING)
        for j in range(kernel_w):
            column = left + tap_offset(j, dilation_w, before_w, INDEX)
            column, column_inside = source_index(column, W, PADDING)
            inside = mask & row_inside & column_inside
            x_offs = pixel_offset(row, column, x_strides)
            x = tl.load(x_base + x_offs, mask=inside, other=0.0).to(ACC)
            spatial = tl.load(taps_ptr, mask=mask, other=0.0).to(ACC)
            if SOFTMAX:
                spatial = tl.exp(spatial - maximum) * inverse_sum
            acc += spatial * x
            taps_ptr += tap_stride
    return acc


@triton.jit
def _matrix_offset(offs_y, offs_x, strides):
    """64-bit offset of a pixel in a tensor (B, Co, C, Ho, Wo)."""
    return offs_y.to(tl.int64) * strides[3] + offs_x.to(tl.int64) * strides[4]


@triton.jit(do_not_specialize=[*SIZES, "CO"])
def _mix_fwd_kernel(
    x_ptr,
    spatial_ptr,
    matrix_ptr,
    out_ptr,
    CO,
    C,
    H,
    W,
    HO,
    WO,
    GROUPS,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    dilation_h,
    dilation_w,
    before_h,
    before_w,
    scale,
    x_strides,
    spatial_strides,
    matrix_strides,
    out_strides,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """out[o, p] = sum_c M[o, c, p] f[c, p]; a program owns BLOCK_P pixels and all channels."""
    pixels = HO.to(tl.int64) * WO
    taps = kernel_h * kernel_w
    pid_p, _, pid_b = split_program(pixels, 1, BLOCK_P)
    offs_y, offs_x, mask_p = pixel_tile(pid_p, pixels, WO, INDEX, BLOCK_P)  # [BLOCK_P]
    top = centre_position(offs_y, stride_h, scale, INDEX)
    left = centre_position(offs_x, stride_w, scale, INDEX)
    offs_o = tl.arange(0, BLOCK_O).to(tl.int64)[:, None]  # [BLOCK_O, 1]
    mask = (offs_o < CO) & mask_p[None, :]  # [BLOCK_O, BLOCK_P]
    matrix_base = matrix_ptr + pid_b * matrix_strides[0] + offs_o * matrix_strides[1]
    matrix_base += _matrix_offset(offs_y, offs_x, matrix_strides)[None, :]
    taps_base = spatial_ptr + pid_b * spatial_strides[0]
    taps_base += pixel_offset(offs_y, offs_x, spatial_strides)
    acc = tl.zeros((BLOCK_O, BLOCK_P), ACC)
    for group in range(GROUPS):
        taps_ptr = taps_base + (group * taps).to(tl.int64) * spatial_strides[1]
        maximum = 0.0
        inverse_sum = 1.0
        if SOFTMAX:
            maximum, inverse_sum = softmax_terms(
                taps_ptr, spatial_strides[1], taps, mask_p, BLOCK_P, ACC
            )
        for channel in range(C // GROUPS):
            c = (group * (C // GROUPS) + channel).to(tl.int64)
            filtered = _filtered_channel(
                x_ptr + pid_b * x_strides[0] + c * x_strides[1],
                taps_ptr,
                maximum,
                inverse_sum,
                top,
                left,
                mask_p,
                H,
                W,
                kernel_h,
                kernel_w,
                dilation_h,
                dilation_w,
                before_h,
                before_w,
                x_strides,
                spatial_strides[1],
                PADDING,
                SOFTMAX,
                ACC,
                INDEX,
                BLOCK_P,
            )
            matrix = tl.load(matrix_base + c * matrix_strides[2], mask=mask, other=0.0).to(ACC)
            acc += matrix * filtered[None, :]
    out_base = out_ptr + pid_b * out_strides[0] + offs_o * out_strides[1]
    out_base += pixel_offset(offs_y, offs_x, out_strides)[None, :]
    tl.store(out_base, as_stored(acc, out_ptr), mask=mask)


@triton.jit(do_not_specialize=[*SIZES, "CO"])
def _mix_bwd_filtered_kernel(
    grad_ptr,
    matrix_ptr,
    grad_filtered_ptr,
    CO,
    C,
    HO,
    WO,
    first_image,
    first_row,
    rows,
    held_row,
    held_rows,
    grad_strides,
    matrix_strides,
    grad_filtered_strides,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """df[c, p] = sum_o M[o, c, p] grad[o, p] for the pixels that a workspace holds; a program owns
    BLOCK_P of them and all channels."""
    pixels = held_rows.to(tl.int64) * WO
    pid_p, _, pid_b = split_program(pixels, 1, BLOCK_P)
    offs_y, offs_x, mask_p = held_tile(pid_p, pixels, WO, held_row, HO, INDEX, BLOCK_P)  # [BLOCK_P]
    offs_p = pid_p * BLOCK_P + tl.arange(0, BLOCK_P)
    out_base = grad_filtered_ptr + pid_b * grad_filtered_strides[0]
    out_base += pixel_offset(offs_p // WO, offs_x, grad_filtered_strides)
    pid_b += first_image
    offs_c = tl.arange(0, BLOCK_C).to(tl.int64)[:, None]  # [BLOCK_C, 1]
    mask = (offs_c < C) & mask_p[None, :]  # [BLOCK_C, BLOCK_P]
    grad_base = grad_ptr + pid_b * grad_strides[0] + pixel_offset(offs_y, offs_x, grad_strides)
    matrix_base = matrix_ptr + pid_b * matrix_strides[0] + offs_c * matrix_strides[2]
    matrix_base += _matrix_offset(offs_y, offs_x, matrix_strides)[None, :]
    acc = tl.zeros((BLOCK_C, BLOCK_P), ACC)
    for _ in range(CO):
        grad = tl.load(grad_base, mask=mask_p, other=0.0).to(ACC)
        matrix = tl.load(matrix_base, mask=mask, other=0.0).to(ACC)
        acc += matrix * grad[None, :]
        grad_base += grad_strides[1]
        matrix_base += matrix_strides[1]
    out_base = out_base[None, :] + offs_c * grad_filtered_strides[1]
    tl.store(out_base, as_stored(acc, grad_filtered_ptr), mask=mask)


@triton.jit(do_not_specialize=[*SIZES, "CO"])
def _mix_bwd_matrix_kernel(
    x_ptr,
    grad_ptr,
    spatial_ptr,
    grad_matrix_ptr,
    B,
    CO,
    C,
    H,
    W,
    HO,
    WO,
    GROUPS,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    dilation_h,
    dilation_w,
    before_h,
    before_w,
    scale,
    x_strides,
    grad_strides,
    spatial_strides,
    grad_matrix_strides,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    SUM_BATCH: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """dM[o, c, p] = grad[o, p] f[c, p], added up over the images with SUM_BATCH.

    A program owns BLOCK_P pixels and one input channel.
    """
    pixels = HO.to(tl.int64) * WO
    taps = kernel_h * kernel_w
    # channels run fastest: those of a pixel read the same taps and gradients
    pid = tl.program_id(0).to(tl.int64)
    c = pid % C
    pid = pid // C
    blocks_p = tl.cdiv(pixels, BLOCK_P)
    pid_p = pid % blocks_p
    pid_b = pid // blocks_p
    offs_y, offs_x, mask_p = pixel_tile(pid_p, pixels, WO, INDEX, BLOCK_P)  # [BLOCK_P]
    top = centre_position(offs_y, stride_h, scale, INDEX)
    left = centre_position(offs_x, stride_w, scale, INDEX)
    offs_o = tl.arange(0, BLOCK_O).to(tl.int64)[:, None]  # [BLOCK_O, 1]
    mask = (offs_o < CO) & mask_p[None, :]  # [BLOCK_O, BLOCK_P]
    taps_ptr = spatial_ptr + pid_b * spatial_strides[0]
    taps_ptr += c // (C // GROUPS) * taps * spatial_strides[1]
    taps_ptr += pixel_offset(offs_y, offs_x, spatial_strides)
    x_base = x_ptr + pid_b * x_strides[0] + c * x_strides[1]
    grad_base = grad_ptr + pid_b * grad_strides[0] + offs_o * grad_strides[1]
    grad_base += pixel_offset(offs_y, offs_x, grad_strides)[None, :]
    acc = tl.zeros((BLOCK_O, BLOCK_P), ACC)
    images = B if SUM_BATCH else 1
    for _ in range(images):
        maximum = 0.0
        inverse_sum = 1.0
        if SOFTMAX:
            maximum, inverse_sum = softmax_terms(
                taps_ptr, spatial_strides[1], taps, mask_p, BLOCK_P, ACC
            )
        filtered = _filtered_channel(
            x_base,
            taps_ptr,
            maximum,
            inverse_sum,
            top,
            left,
            mask_p,
            H,
            W,
            kernel_h,
            kernel_w,
            dilation_h,
            dilation_w,
            before_h,
            before_w,
            x_strides,
            spatial_strides[1],
            PADDING,
            SOFTMAX,
            ACC,
            INDEX,
            BLOCK_P,
        )
        grad = tl.load(grad_base, mask=mask, other=0.0).to(ACC)
        acc += grad * filtered[None, :]
        x_base += x_strides[0]
        taps_ptr += spatial_strides[0]
        grad_base += grad_strides[0]
    out_base = grad_matrix_ptr + pid_b * grad_matrix_strides[0] + offs_o * grad_matrix_strides[1]
    out_base += c * grad_matrix_strides[2]
    out_base += _matrix_offset(offs_y, offs_x, grad_matrix_strides)[None, :]
    tl.store(out_base, as_stored(acc, grad_matrix_ptr), mask=mask)
