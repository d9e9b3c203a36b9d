"""General kernels for the gradients of the filters. Conventions as in ``kernels_gather.py``."""

import triton
import triton.language as tl

from .kernels_index import (
    SIZES,
    as_stored,
    centre_position,
    held_gradient,
    pixel_offset,
    pixel_tile,
    source_index,
    split_program,
    tap_offset,
)
from .kernels_softmax import held_statistics, statistics_pointer


@triton.jit(do_not_specialize=SIZES)
def _gather_bwd_spatial_kernel(
    x_ptr,
    grad_ptr,
    spatial_ptr,
    channel_ptr,
    statistics_ptr,
    grad_spatial_ptr,
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
    grad_spatial_strides,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    HELD_GRAD: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """grad_spatial[g, t, p] = sum of grad[c, p] x[c, source(p, t)] (Ch if "mul" else 1), c in g.

    Under softmax that sum is dP[t], and the result P[t] (dP[t] - delta).
    """
    pixels = HO.to(tl.int64) * WO
    if rows is not None:
        pixels = rows.to(tl.int64) * WO
    taps = kernel_h * kernel_w
    pid_p, pid_t, pid = split_program(pixels, tl.cdiv(taps, BLOCK_T), BLOCK_P)
    pid_b, group = pid // GROUPS, pid % GROUPS
    offs_y, offs_x, mask_p = pixel_tile(pid_p, pixels, WO, INDEX, BLOCK_P)  # [BLOCK_P]
    if rows is not None:
        pid_b += first_image
        offs_y += first_row.to(INDEX)
    if HELD_GRAD:
        grad_ptr = held_gradient(grad_ptr, first_image, held_row, grad_strides)
    offs_t = pid_t * BLOCK_T + tl.arange(0, BLOCK_T)  # [BLOCK_T], 64-bit
    mask_t = offs_t < taps
    top = centre_position(offs_y, stride_h, scale, INDEX)
    left = centre_position(offs_x, stride_w, scale, INDEX)
    offset_h = tap_offset((offs_t // kernel_w).to(INDEX), dilation_h, before_h, INDEX)
    offset_w = tap_offset((offs_t % kernel_w).to(INDEX), dilation_w, before_w, INDEX)
    row, row_inside = source_index(top[None, :] + offset_h[:, None], H, PADDING)
    column, column_inside = source_index(left[None, :] + offset_w[:, None], W, PADDING)
    mask = mask_t[:, None] & mask_p[None, :]  # [BLOCK_T, BLOCK_P]
    inside = mask & row_inside & column_inside
    per_group = C // GROUPS
    first_channel = group * per_group
    x_base = x_ptr + pid_b * x_strides[0] + first_channel * x_strides[1]
    x_base += pixel_offset(row, column, x_strides)
    grad_base = grad_ptr + pid_b * grad_strides[0] + first_channel * grad_strides[1]
    grad_base += pixel_offset(offs_y, offs_x, grad_strides)
    channel_base = channel_ptr + pid_b * channel_strides[0] + first_channel * channel_strides[1]
    if FORM == "image":
        channel_base += offs_t * channel_strides[2]  # [BLOCK_T]
    elif FORM == "pixel":
        channel_base += pixel_offset(offs_y, offs_x, channel_strides)  # [BLOCK_P]
    acc = tl.zeros((BLOCK_T, BLOCK_P), ACC)
    # pointers advance from channel to channel: no product of a 32-bit counter and a stride
    for _ in range(per_group):
        x = tl.load(x_base, mask=inside, other=0.0).to(ACC)
        grad = tl.load(grad_base, mask=mask_p, other=0.0).to(ACC)
        product = x * grad[None, :]
        if COMBINE == "mul" and FORM == "image":
            channel = tl.load(channel_base, mask=mask_t, other=0.0).to(ACC)
            product = product * channel[:, None]
        elif COMBINE == "mul" and FORM == "pixel":
            channel = tl.load(channel_base, mask=mask_p, other=0.0).to(ACC)
            product = product * channel[None, :]
        acc += product
        x_base += x_strides[1]
        grad_base += grad_strides[1]
        channel_base += channel_strides[1]
    offs = (group * taps + offs_t)[:, None]
    if SOFTMAX:
        spatial_base = spatial_ptr + pid_b * spatial_strides[0] + offs * spatial_strides[1]
        spatial_offs = pixel_offset(offs_y, offs_x, spatial_strides)
        logit = tl.load(spatial_base + spatial_offs[None, :], mask=mask, other=0.0).to(ACC)
        held_pixels = held_rows.to(tl.int64) * WO
        statistics = held_statistics(statistics_ptr, first_image, held_row, held_rows, GROUPS, WO)
        offs_p = offs_y.to(tl.int64) * WO + offs_x
        statistics = statistics_pointer(statistics, pid_b * GROUPS + group, held_pixels, offs_p)
        maximum = tl.load(statistics, mask=mask_p, other=0.0)
        inverse_sum = tl.load(statistics + held_pixels, mask=mask_p, other=0.0)
        delta = tl.load(statistics + 2 * held_pixels, mask=mask_p, other=0.0)
        acc = tl.exp(logit - maximum[None, :]) * inverse_sum[None, :] * (acc - delta[None, :])
    out_offs = offs * grad_spatial_strides[1]
    out_offs += pixel_offset(offs_y, offs_x, grad_spatial_strides)[None, :]
    tl.store(
        grad_spatial_ptr + pid_b * grad_spatial_strides[0] + out_offs,
        as_stored(acc, grad_spatial_ptr),
        mask=mask,
    )


@triton.jit(do_not_specialize=[*SIZES, "pixels_per_chunk", "images"])
def _gather_bwd_channel_kernel(
    x_ptr,
    grad_ptr,
    spatial_ptr,
    statistics_ptr,
    partial_ptr,
    B,
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
    pixels_per_chunk,
    images,
    first_image,
    first_row,
    rows,
    held_row,
    held_rows,
    x_strides,
    grad_strides,
    spatial_strides,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """partial[chunk, b, c, t] = sum over the chunk's p of grad[c, p] x[c, source(p, t)] (S if "mul"
    else 1).

    The chunks are added up afterwards, in their order. Those of a strip begin in its rows.
    """
    taps = kernel_h * kernel_w
    # channels run fastest: those of a chunk read the same spatial taps
    pid = tl.program_id(0).to(tl.int64)
    c = pid % C
    pid = pid // C
    pid_b = pid % images
    pid = pid // images
    blocks_t = tl.cdiv(taps, BLOCK_T)
    pid_t = pid % blocks_t
    chunk = pid // blocks_t
    if first_image is not None:
        pid_b += first_image
        chunk += tl.cdiv(first_row.to(tl.int64) * WO, pixels_per_chunk)
    if SOFTMAX:
        held_pixels = held_rows.to(tl.int64) * WO
        statistics_ptr = held_statistics(
            statistics_ptr, first_image, held_row, held_rows, GROUPS, WO
        )
    group = c // (C // GROUPS)
    offs_t = pid_t * BLOCK_T + tl.arange(0, BLOCK_T)  # [BLOCK_T], 64-bit
    mask_t = offs_t < taps
    offset_h = tap_offset((offs_t // kernel_w).to(INDEX), dilation_h, before_h, INDEX)
    offset_w = tap_offset((offs_t % kernel_w).to(INDEX), dilation_w, before_w, INDEX)
    x_base = x_ptr + pid_b * x_strides[0] + c * x_strides[1]
    grad_base = grad_ptr + pid_b * grad_strides[0] + c * grad_strides[1]
    spatial_base = spatial_ptr + pid_b * spatial_strides[0]
    spatial_base += (group * taps + offs_t) * spatial_strides[1]
    acc = tl.zeros((BLOCK_T, BLOCK_P), ACC)
    pixels = HO.to(tl.int64) * WO
    start = chunk * pixels_per_chunk
    stop = tl.minimum(start + pixels_per_chunk, pixels)
    for block in range(start // BLOCK_P, tl.cdiv(stop, BLOCK_P)):
        offs_y, offs_x, mask_p = pixel_tile(block, stop, WO, INDEX, BLOCK_P)  # [BLOCK_P]
        top = centre_position(offs_y, stride_h, scale, INDEX)
        left = centre_position(offs_x, stride_w, scale, INDEX)
        row, row_inside = source_index(top[None, :] + offset_h[:, None], H, PADDING)
        column, column_inside = source_index(left[None, :] + offset_w[:, None], W, PADDING)
        mask = mask_t[:, None] & mask_p[None, :]  # [BLOCK_T, BLOCK_P]
        inside = mask & row_inside & column_inside
        x_offs = pixel_offset(row, column, x_strides)
        x = tl.load(x_base + x_offs, mask=inside, other=0.0).to(ACC)
        grad_offs = pixel_offset(offs_y, offs_x, grad_strides)
        grad = tl.load(grad_base + grad_offs, mask=mask_p, other=0.0).to(ACC)
        product = x * grad[None, :]
        if COMBINE == "mul":
            offs = pixel_offset(offs_y, offs_x, spatial_strides)
            spatial = tl.load(spatial_base[:, None] + offs[None, :], mask=mask, other=0.0).to(ACC)
            if SOFTMAX:
                offs_p = block * BLOCK_P + tl.arange(0, BLOCK_P)
                statistics = statistics_pointer(
                    statistics_ptr, pid_b * GROUPS + group, held_pixels, offs_p
                )
                maximum = tl.load(statistics, mask=mask_p, other=0.0)
                inverse_sum = tl.load(statistics + held_pixels, mask=mask_p, other=0.0)
                spatial = tl.exp(spatial - maximum[None, :]) * inverse_sum[None, :]
            product = product * spatial
        acc += product
    partial_offs = ((chunk * B + pid_b) * C + c) * taps + offs_t
    tl.store(partial_ptr + partial_offs, tl.sum(acc, 1), mask=mask_t)
