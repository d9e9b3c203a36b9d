"""Softmax over the taps of a pixel: what all general kernels compute of it, and the statistics of a
pixel for kernels that do not hold all its taps.

A probability is P[t] = exp(S[t] - maximum) * inverse_sum, in the forward and in the backward alike.
A logarithm of the sum instead of the two would cost accuracy where logits are large. With minus
infinity for all logits, or any that is NaN or infinite, P is NaN.
"""

import triton
import triton.language as tl

from .kernels_index import (
    SIZES,
    centre_position,
    held_tile,
    pixel_offset,
    source_index,
    split_program,
    tap_offset,
)


@triton.jit
def softmax_terms(taps_ptr, tap_stride, taps, mask, BLOCK_P: tl.constexpr, ACC: tl.constexpr):
    """Maximum of the logits of each pixel and 1 / sum of exp(S[t] - maximum), both [BLOCK_P].

    ``taps_ptr``, [BLOCK_P], points to the first logit.
    """
    maximum = tl.full((BLOCK_P,), float("-inf"), ACC)
    logits_ptr = taps_ptr
    for _ in range(taps):
        logit = tl.load(logits_ptr, mask=mask, other=0.0).to(ACC)
        maximum = tl.maximum(maximum, logit)
        logits_ptr += tap_stride
    total = tl.zeros((BLOCK_P,), ACC)
    logits_ptr = taps_ptr
    for _ in range(taps):
        logit = tl.load(logits_ptr, mask=mask, other=0.0).to(ACC)
        total += tl.exp(logit - maximum)
        logits_ptr += tap_stride
    return maximum, 1.0 / total


@triton.jit
def statistics_pointer(statistics_ptr, image_and_group, pixels, offs_p):
    """Where the statistics of pixels ``offs_p`` begin in (B, G, 3, rows, Wo); planes follow every
    ``pixels``."""
    return statistics_ptr + image_and_group * 3 * pixels + offs_p


@triton.jit
def held_statistics(statistics_ptr, first_image, held_row, held_rows, GROUPS, width):
    """Where the statistics would begin of which a workspace, (images, G, 3, held_rows, Wo), holds
    images from first_image and rows from held_row."""
    row = tl.cast(width, tl.int64)
    images = first_image.to(tl.int64) * GROUPS * 3 * held_rows
    return statistics_ptr - (images + held_row) * row


@triton.jit(do_not_specialize=SIZES)
def _softmax_statistics_kernel(
    x_ptr,
    grad_ptr,
    spatial_ptr,
    channel_ptr,
    statistics_ptr,
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
    first_image,
    first_row,
    rows,
    held_row,
    held_rows,
    x_strides,
    grad_strides,
    spatial_strides,
    channel_strides,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    WITH_DELTA: tl.constexpr,
    HELD_GRAD: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """statistics[b, g, :, p] = (max_t S, 1 / sum_t exp(S - max), delta), delta = sum_t P[t] dP[t].

    dP[t, p] = sum over c in g of grad[c, p] x[c, source(p, t)] (Ch if "mul" else 1). A program owns
    BLOCK_P of the pixels that a workspace holds, of one group. The third plane is left as it is
    without WITH_DELTA.
    """
    pixels = held_rows.to(tl.int64) * WO
    taps = kernel_h * kernel_w
    pid_p, group, pid_b = split_program(pixels, GROUPS, BLOCK_P)
    offs_y, offs_x, mask_p = held_tile(pid_p, pixels, WO, held_row, HO, INDEX, BLOCK_P)  # [BLOCK_P]
    offs_p = pid_p * BLOCK_P + tl.arange(0, BLOCK_P)
    out_ptr = statistics_pointer(statistics_ptr, pid_b * GROUPS + group, pixels, offs_p)
    held_b = pid_b
    pid_b += first_image
    spatial_base = spatial_ptr + pid_b * spatial_strides[0] + group * taps * spatial_strides[1]
    spatial_base += pixel_offset(offs_y, offs_x, spatial_strides)
    maximum, inverse_sum = softmax_terms(
        spatial_base, spatial_strides[1], taps, mask_p, BLOCK_P, ACC
    )
    tl.store(out_ptr, maximum, mask=mask_p)
    tl.store(out_ptr + pixels, inverse_sum, mask=mask_p)
    if WITH_DELTA:
        if HELD_GRAD:
            grad_ptr += held_b * grad_strides[0]
            grad_ptr += pixel_offset(offs_p // WO, offs_x, grad_strides)  # [BLOCK_P]
        else:
            grad_ptr += pid_b * grad_strides[0] + pixel_offset(offs_y, offs_x, grad_strides)
        top = centre_position(offs_y, stride_h, scale, INDEX)
        left = centre_position(offs_x, stride_w, scale, INDEX)
        per_group = C // GROUPS
        delta = tl.zeros((BLOCK_P,), ACC)
        for first in range(0, per_group, BLOCK_C):
            offs = first + tl.arange(0, BLOCK_C)
            offs_c = group * per_group + offs[:, None]  # [BLOCK_C, 1], 64-bit as the group is
            mask_c = (offs < per_group)[:, None]
            mask = mask_c & mask_p[None, :]  # [BLOCK_C, BLOCK_P]
            x_base = x_ptr + pid_b * x_strides[0] + offs_c * x_strides[1]
            grad_base = grad_ptr[None, :] + offs_c * grad_strides[1]
            channel_base = channel_ptr + pid_b * channel_strides[0] + offs_c * channel_strides[1]
            grad = tl.load(grad_base, mask=mask, other=0.0).to(ACC)
            if FORM == "pixel" and COMBINE == "mul":
                channel_base += pixel_offset(offs_y, offs_x, channel_strides)[None, :]
                grad = grad * tl.load(channel_base, mask=mask, other=0.0).to(ACC)
            acc = tl.zeros((BLOCK_C, BLOCK_P), ACC)
            for i in range(kernel_h):
                row = top + tap_offset(i, dilation_h, before_h, INDEX)
                row, row_inside = source_index(row, H, PADDING)
                for j in range(kernel_w):
                    column = left + tap_offset(j, dilation_w, before_w, INDEX)
                    column, column_inside = source_index(column, W, PADDING)
                    inside = mask & (row_inside & column_inside)[None, :]
                    x_offs = pixel_offset(row, column, x_strides)
                    x = tl.load(x_base + x_offs[None, :], mask=inside, other=0.0).to(ACC)
                    tap = (i * kernel_w + j).to(tl.int64)
                    logit = tl.load(spatial_base + tap * spatial_strides[1], mask=mask_p, other=0.0)
                    product = grad * x
                    if FORM == "image" and COMBINE == "mul":
                        channel_ptrs = channel_base + tap * channel_strides[2]
                        product *= tl.load(channel_ptrs, mask=mask_c, other=0.0).to(ACC)
                    # each product whole, so that what is infinite or NaN is so in delta too
                    acc += product * (tl.exp(logit.to(ACC) - maximum) * inverse_sum)[None, :]
            delta += tl.sum(acc, 0)
        tl.store(out_ptr + 2 * pixels, delta, mask=mask_p)
