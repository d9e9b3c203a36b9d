"""General kernels for the gradients of the filters. Conventions as in ``kernels_gather.py``."""

import triton
import triton.language as tl

from .kernels_gather import SIZES, split_program
from .kernels_index import as_stored, pixel_offset, source_index


@triton.jit(do_not_specialize=SIZES)
def _gather_bwd_spatial_kernel(
    x_ptr,
    grad_ptr,
    channel_ptr,
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
    x_strides,
    grad_strides,
    channel_strides,
    grad_spatial_strides,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """grad_spatial[g, t, p] = sum over c in g of grad[c, p] x[c, source(p, t)] (Ch if "mul" else
    1)."""
    pixels = HO.to(tl.int64) * WO
    pid_p, pid_t, pid = split_program(pixels, tl.cdiv(kernel_h * kernel_w, BLOCK_T), BLOCK_P)
    pid_b = pid // GROUPS
    group = pid % GROUPS
    offs_p = pid_p * BLOCK_P + tl.arange(0, BLOCK_P)  # [BLOCK_P]
    mask_p = offs_p < pixels
    offs_y = (offs_p // WO).to(tl.int32)
    offs_x = (offs_p % WO).to(tl.int32)
    offs_t = pid_t * BLOCK_T + tl.arange(0, BLOCK_T)  # [BLOCK_T]
    mask_t = offs_t < kernel_h * kernel_w
    i = offs_t // kernel_w
    j = offs_t % kernel_w
    row, row_inside = source_index(
        (offs_y * stride_h)[None, :] + (i * dilation_h - before_h)[:, None], H, PADDING
    )
    column, column_inside = source_index(
        (offs_x * stride_w)[None, :] + (j * dilation_w - before_w)[:, None], W, PADDING
    )
    mask = mask_t[:, None] & mask_p[None, :]  # [BLOCK_T, BLOCK_P]
    inside = mask & row_inside & column_inside
    per_group = C // GROUPS
    first_channel = group * per_group
    x_base = x_ptr + pid_b * x_strides[0] + pixel_offset(row, column, x_strides)
    grad_base = grad_ptr + pid_b * grad_strides[0]
    grad_base += pixel_offset(offs_y, offs_x, grad_strides)
    channel_base = channel_ptr + pid_b * channel_strides[0]
    acc = tl.zeros((BLOCK_T, BLOCK_P), ACC)
    for c in range(first_channel, first_channel + per_group):
        x = tl.load(x_base + c * x_strides[1], mask=inside, other=0.0).to(ACC)
        grad = tl.load(grad_base + c * grad_strides[1], mask=mask_p, other=0.0).to(ACC)
        product = x * grad[None, :]
        if COMBINE == "mul" and FORM == "image":
            offs = c * channel_strides[1] + offs_t * channel_strides[2]
            channel = tl.load(channel_base + offs, mask=mask_t, other=0.0).to(ACC)
            product = product * channel[:, None]
        elif COMBINE == "mul" and FORM == "pixel":
            offs = c * channel_strides[1]
            offs += pixel_offset(offs_y, offs_x, channel_strides)
            channel = tl.load(channel_base + offs, mask=mask_p, other=0.0).to(ACC)
            product = product * channel[None, :]
        acc += product
    first_tap = group * kernel_h * kernel_w
    out_offs = (first_tap + offs_t)[:, None] * grad_spatial_strides[1]
    out_offs += pixel_offset(offs_y, offs_x, grad_spatial_strides)[None, :]
    tl.store(
        grad_spatial_ptr + pid_b * grad_spatial_strides[0] + out_offs,
        as_stored(acc, grad_spatial_ptr),
        mask=mask,
    )


@triton.jit(do_not_specialize=[*SIZES, "pixels_per_chunk"])
def _gather_bwd_channel_kernel(
    x_ptr,
    grad_ptr,
    spatial_ptr,
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
    pixels_per_chunk,
    x_strides,
    grad_strides,
    spatial_strides,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """partial[chunk, b, c, t] = sum over the chunk's p of grad[c, p] x[c, source(p, t)] (S if "mul"
    else 1).

    The chunks are added up afterwards, in their order.
    """
    taps = kernel_h * kernel_w
    # channels run fastest: those of a chunk read the same spatial taps
    pid = tl.program_id(0).to(tl.int64)
    c = pid % C
    pid = pid // C
    pid_b = pid % B
    pid = pid // B
    blocks_t = tl.cdiv(taps, BLOCK_T)
    pid_t = pid % blocks_t
    chunk = pid // blocks_t
    group = c // (C // GROUPS)
    offs_t = pid_t * BLOCK_T + tl.arange(0, BLOCK_T)  # [BLOCK_T]
    mask_t = offs_t < taps
    i = offs_t // kernel_w
    j = offs_t % kernel_w
    x_base = x_ptr + pid_b * x_strides[0] + c * x_strides[1]
    grad_base = grad_ptr + pid_b * grad_strides[0] + c * grad_strides[1]
    spatial_base = spatial_ptr + pid_b * spatial_strides[0]
    spatial_base += (group * taps + offs_t) * spatial_strides[1]
    acc = tl.zeros((BLOCK_T, BLOCK_P), ACC)
    start = chunk * pixels_per_chunk
    stop = tl.minimum(start + pixels_per_chunk, HO.to(tl.int64) * WO)
    for first in range(start, stop, BLOCK_P):
        offs_p = first + tl.arange(0, BLOCK_P)  # [BLOCK_P]
        mask_p = offs_p < stop
        offs_y = (offs_p // WO).to(tl.int32)
        offs_x = (offs_p % WO).to(tl.int32)
        row, row_inside = source_index(
            (offs_y * stride_h)[None, :] + (i * dilation_h - before_h)[:, None], H, PADDING
        )
        column, column_inside = source_index(
            (offs_x * stride_w)[None, :] + (j * dilation_w - before_w)[:, None], W, PADDING
        )
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
            product = product * spatial
        acc += product
    partial_offs = ((chunk * B + pid_b) * C + c) * taps + offs_t
    tl.store(partial_ptr + partial_offs, tl.sum(acc, 1), mask=mask_t)
