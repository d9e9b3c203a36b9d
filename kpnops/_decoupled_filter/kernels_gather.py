"""General kernels: any stride, dilation, scale factor, kernel size and padding, 64-bit offsets,
run-time loops over the taps.

A program owns BLOCK_P pixels, flattened over rows and columns, of one image and BLOCK_C channels of
one group. One compiled kernel serves every kernel size. FORM is "none", "image" (3-D channel
filter) or "pixel" (4-D). INDEX is the type of rows and columns, 32-bit where that holds them all.
"""

import triton
import triton.language as tl

from .kernels_index import (
    SIZES,
    as_stored,
    centre_position,
    held_gradient,
    pixel_offset,
    pixel_tile,
    reader,
    source_index,
    split_program,
    tap_offset,
    unwrapped_row,
)
from .kernels_softmax import held_statistics, softmax_terms, statistics_pointer


@triton.jit
def _channel_tile(pid, C, GROUPS, BLOCK_C: tl.constexpr):
    """Group, channels and mask of the ``pid``-th block of channels; no block crosses a group."""
    per_group = C // GROUPS
    blocks = tl.cdiv(per_group, BLOCK_C)
    group = pid // blocks
    offs = (pid % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    return group, group * per_group + offs, offs < per_group


@triton.jit(do_not_specialize=SIZES)
def _gather_fwd_kernel(
    x_ptr,
    spatial_ptr,
    channel_ptr,
    out_ptr,
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
    x_strides,
    spatial_strides,
    channel_strides,
    out_strides,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    USE_SPATIAL: tl.constexpr,
    SOFTMAX: tl.constexpr,
    SUM_BATCH: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[b, c, p] = sum_t F[c, t, p] x[c, source(p, t)].

    With the gradient of the output for ``channel`` this is the gradient of a 4-D channel filter;
    then USE_SPATIAL is False for "add" (S = 1), and SUM_BATCH adds the images up.
    """
    pixels = HO.to(tl.int64) * WO
    taps = kernel_h * kernel_w
    blocks_c = GROUPS * tl.cdiv(C // GROUPS, BLOCK_C)
    pid_p, pid_c, pid_b = split_program(pixels, blocks_c, BLOCK_P)
    group, offs_c, mask_c = _channel_tile(pid_c, C, GROUPS, BLOCK_C)
    offs_y, offs_x, mask_p = pixel_tile(pid_p, pixels, WO, INDEX, BLOCK_P)  # [BLOCK_P]
    top = centre_position(offs_y, stride_h, scale, INDEX)
    left = centre_position(offs_x, stride_w, scale, INDEX)
    mask = mask_c[:, None] & mask_p[None, :]  # [BLOCK_C, BLOCK_P]
    # pointers advance from image to image: no product of a loop's 32-bit counter and a stride
    x_base = x_ptr + pid_b * x_strides[0] + offs_c[:, None] * x_strides[1]
    spatial_base = spatial_ptr + pid_b * spatial_strides[0] + group * taps * spatial_strides[1]
    spatial_base += pixel_offset(offs_y, offs_x, spatial_strides)  # [BLOCK_P]
    channel_base = channel_ptr + pid_b * channel_strides[0] + offs_c[:, None] * channel_strides[1]
    if FORM == "pixel":
        channel_base += pixel_offset(offs_y, offs_x, channel_strides)[None, :]
    total = tl.zeros((BLOCK_C, BLOCK_P), ACC)
    images = B if SUM_BATCH else 1
    for _ in range(images):
        if FORM == "pixel":
            channel = tl.load(channel_base, mask=mask, other=0.0).to(ACC)  # [BLOCK_C, BLOCK_P]
        if SOFTMAX:
            maximum, inverse_sum = softmax_terms(
                spatial_base, spatial_strides[1], taps, mask_p, BLOCK_P, ACC
            )
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
                weight = tl.full((BLOCK_C, BLOCK_P), 1.0, ACC)
                if USE_SPATIAL:
                    spatial = tl.load(
                        spatial_base + tap * spatial_strides[1], mask=mask_p, other=0.0
                    ).to(ACC)
                    if SOFTMAX:
                        spatial = tl.exp(spatial - maximum) * inverse_sum
                    weight = weight * spatial[None, :]
                if FORM == "image":
                    channel = tl.load(
                        channel_base + tap * channel_strides[2], mask=mask_c[:, None], other=0.0
                    ).to(ACC)  # [BLOCK_C, 1]
                # a gain stays inside the sum: taken out, an infinite one would hide what is NaN
                if FORM != "none":
                    weight = weight * channel if COMBINE == "mul" else weight + channel
                acc += weight * x
        total += acc
        x_base += x_strides[0]
        spatial_base += spatial_strides[0]
        channel_base += channel_strides[0]
    out_offs = pixel_offset(offs_y, offs_x, out_strides)
    out_base = out_ptr + pid_b * out_strides[0] + offs_c[:, None] * out_strides[1]
    tl.store(out_base + out_offs[None, :], as_stored(total, out_ptr), mask=mask)


@triton.jit(do_not_specialize=[*SIZES, "top", "left", "height", "width", "readers_h", "readers_w"])
def _gather_bwd_input_kernel(
    grad_ptr,
    spatial_ptr,
    channel_ptr,
    statistics_ptr,
    grad_x_ptr,
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
    top,
    left,
    height,
    width,
    readers_h,
    readers_w,
    first_image,
    first_row,
    rows,
    held_row,
    held_rows,
    grad_strides,
    spatial_strides,
    channel_strides,
    grad_x_strides,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    HELD_GRAD: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """grad_x[c, q] = sum over taps t and outputs p with source(p, t) = q of grad[c, p] F[c, t, p].

    For the pixels q of one rectangle. readers_h and readers_w say how many outputs at most read one
    of them through one tap, along each axis: ``scale``, times more near a border.
    """
    pixels = height.to(tl.int64) * width
    taps = kernel_h * kernel_w
    blocks_c = GROUPS * tl.cdiv(C // GROUPS, BLOCK_C)
    pid_p, pid_c, pid_b = split_program(pixels, blocks_c, BLOCK_P)
    group, offs_c, mask_c = _channel_tile(pid_c, C, GROUPS, BLOCK_C)
    offs_y, offs_x, mask_p = pixel_tile(pid_p, pixels, width, INDEX, BLOCK_P)  # [BLOCK_P]
    offs_y += top.to(INDEX)
    offs_x += left.to(INDEX)
    mask = mask_c[:, None] & mask_p[None, :]  # [BLOCK_C, BLOCK_P]
    if first_image is not None:
        pid_b += first_image
    if HELD_GRAD:
        grad_ptr = held_gradient(grad_ptr, first_image, held_row, grad_strides)
    grad_base = grad_ptr + pid_b * grad_strides[0] + offs_c[:, None] * grad_strides[1]
    channel_base = channel_ptr + pid_b * channel_strides[0] + offs_c[:, None] * channel_strides[1]
    spatial_base = spatial_ptr + pid_b * spatial_strides[0] + group * taps * spatial_strides[1]
    if SOFTMAX:
        held_pixels = held_rows.to(tl.int64) * WO
        statistics_ptr = held_statistics(
            statistics_ptr, first_image, held_row, held_rows, GROUPS, WO
        )
        statistics = statistics_pointer(statistics_ptr, pid_b * GROUPS + group, held_pixels, 0)
    acc = tl.zeros((BLOCK_C, BLOCK_P), ACC)
    for i in range(kernel_h):
        offset_h = tap_offset(i, dilation_h, before_h, INDEX)
        for number_h in range(readers_h):
            y, y_reads = reader(offs_y, number_h, offset_h, H, stride_h, scale, HO, PADDING)
            held_y = y
            if SOFTMAX or HELD_GRAD:
                held_y = unwrapped_row(y, held_row, HO, PADDING)
            for j in range(kernel_w):
                offset_w = tap_offset(j, dilation_w, before_w, INDEX)
                tap = (i * kernel_w + j).to(tl.int64)
                if FORM == "image":
                    channel = tl.load(
                        channel_base + tap * channel_strides[2], mask=mask_c[:, None], other=0.0
                    ).to(ACC)  # [BLOCK_C, 1]
                for number_w in range(readers_w):
                    x, x_reads = reader(offs_x, number_w, offset_w, W, stride_w, scale, WO, PADDING)
                    reads = mask_p & y_reads & x_reads
                    both = mask & reads[None, :]
                    grad_offs = pixel_offset(held_y if HELD_GRAD else y, x, grad_strides)
                    grad = tl.load(grad_base + grad_offs[None, :], mask=both, other=0.0).to(ACC)
                    spatial_offs = tap * spatial_strides[1] + pixel_offset(y, x, spatial_strides)
                    spatial = tl.load(spatial_base + spatial_offs, mask=reads, other=0.0).to(ACC)
                    if SOFTMAX:
                        offs = held_y.to(tl.int64) * WO + x
                        maximum = tl.load(statistics + offs, mask=reads, other=0.0)
                        inverse_sum = tl.load(
                            statistics + held_pixels + offs, mask=reads, other=0.0
                        )
                        spatial = tl.exp(spatial - maximum) * inverse_sum
                    weight = tl.zeros((BLOCK_C, BLOCK_P), ACC) + spatial[None, :]
                    if FORM == "pixel":
                        offs = pixel_offset(y, x, channel_strides)
                        channel = tl.load(channel_base + offs[None, :], mask=both, other=0.0).to(
                            ACC
                        )
                    if FORM != "none":
                        weight = weight * channel if COMBINE == "mul" else weight + channel
                    # an absent reader adds nothing, whatever a weight it does not have would be
                    acc += tl.where(both, grad * weight, 0.0)
    grad_x_offs = pixel_offset(offs_y, offs_x, grad_x_strides)
    grad_x_base = grad_x_ptr + pid_b * grad_x_strides[0] + offs_c[:, None] * grad_x_strides[1]
    tl.store(grad_x_base + grad_x_offs[None, :], as_stored(acc, grad_x_ptr), mask=mask)
