"""General kernels: any stride, dilation, kernel size and padding, 64-bit offsets, run-time loops
over the taps.

A program owns BLOCK_P pixels, flattened over rows and columns, of one image and BLOCK_C channels of
one group. One compiled kernel serves every kernel size. FORM is "none", "image" (3-D channel
filter) or "pixel" (4-D).
"""

import triton
import triton.language as tl

from .kernels_index import (
    as_stored,
    candidate_position,
    output_index,
    pixel_offset,
    source_index,
)

SIZES = [
    "B",
    "C",
    "H",
    "W",
    "HO",
    "WO",
    "GROUPS",
    "kernel_h",
    "kernel_w",
    "stride_h",
    "stride_w",
    "dilation_h",
    "dilation_w",
    "before_h",
    "before_w",
]


@triton.jit
def split_program(pixels, second, BLOCK_P: tl.constexpr):
    """Split the program's number into a block of pixels (fastest), one of ``second`` and the rest,
    64-bit."""
    pid = tl.program_id(0).to(tl.int64)
    blocks_p = tl.cdiv(pixels, BLOCK_P)
    pid_p = pid % blocks_p
    pid = pid // blocks_p
    return pid_p, pid % second, pid // second


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
    x_strides,
    spatial_strides,
    channel_strides,
    out_strides,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    USE_SPATIAL: tl.constexpr,
    SUM_BATCH: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[b, c, p] = sum_t F[c, t, p] x[c, source(p, t)].

    Also gives the gradient of a 4-D channel filter, which is the same sum times the gradient of the
    output: ``channel`` is then that gradient, USE_SPATIAL is False for "add" (S = 1), and SUM_BATCH
    adds the images up.
    """
    pixels = HO.to(tl.int64) * WO
    blocks_c = GROUPS * tl.cdiv(C // GROUPS, BLOCK_C)
    pid_p, pid_c, pid_b = split_program(pixels, blocks_c, BLOCK_P)
    group, offs_c, mask_c = _channel_tile(pid_c, C, GROUPS, BLOCK_C)
    offs_p = pid_p * BLOCK_P + tl.arange(0, BLOCK_P)  # [BLOCK_P]
    mask_p = offs_p < pixels
    offs_y = (offs_p // WO).to(tl.int32)
    offs_x = (offs_p % WO).to(tl.int32)
    first_tap = group * kernel_h * kernel_w
    mask = mask_c[:, None] & mask_p[None, :]  # [BLOCK_C, BLOCK_P]
    total = tl.zeros((BLOCK_C, BLOCK_P), ACC)
    first = pid_b
    stop = pid_b + 1
    if SUM_BATCH:
        stop = B.to(tl.int64)
    for b in range(first, stop):
        x_base = x_ptr + b * x_strides[0] + offs_c[:, None] * x_strides[1]
        spatial_base = spatial_ptr + b * spatial_strides[0]
        spatial_base += pixel_offset(offs_y, offs_x, spatial_strides)  # [BLOCK_P]
        channel_base = channel_ptr + b * channel_strides[0]
        if FORM == "pixel":
            factor = tl.load(
                channel_base
                + offs_c[:, None] * channel_strides[1]
                + pixel_offset(offs_y, offs_x, channel_strides)[None, :],
                mask=mask,
                other=0.0,
            ).to(ACC)  # [BLOCK_C, BLOCK_P]
        acc = tl.zeros((BLOCK_C, BLOCK_P), ACC)
        for i in range(kernel_h):
            row, row_inside = source_index(
                offs_y * stride_h + (i * dilation_h - before_h), H, PADDING
            )
            for j in range(kernel_w):
                column, column_inside = source_index(
                    offs_x * stride_w + (j * dilation_w - before_w), W, PADDING
                )
                inside = mask & (row_inside & column_inside)[None, :]
                x_offs = pixel_offset(row, column, x_strides)
                x = tl.load(x_base + x_offs[None, :], mask=inside, other=0.0).to(ACC)
                tap = i * kernel_w + j
                weight = tl.full((BLOCK_C, BLOCK_P), 1.0, ACC)
                if USE_SPATIAL:
                    spatial = tl.load(
                        spatial_base + (first_tap + tap) * spatial_strides[1],
                        mask=mask_p,
                        other=0.0,
                    ).to(ACC)
                    weight = weight * spatial[None, :]
                if FORM == "image":
                    channel = tl.load(
                        channel_base + offs_c * channel_strides[1] + tap * channel_strides[2],
                        mask=mask_c,
                        other=0.0,
                    ).to(ACC)
                    if COMBINE == "mul":
                        weight = weight * channel[:, None]
                    else:
                        weight = weight + channel[:, None]
                if FORM == "pixel" and COMBINE == "add":
                    weight = weight + factor
                acc += weight * x
        if FORM == "pixel" and COMBINE == "mul":
            acc = acc * factor
        total += acc
    out_offs = pixel_offset(offs_y, offs_x, out_strides)
    out_base = out_ptr + pid_b * out_strides[0] + offs_c[:, None] * out_strides[1]
    tl.store(out_base + out_offs[None, :], as_stored(total, out_ptr), mask=mask)


@triton.jit(
    do_not_specialize=[
        *SIZES,
        "top",
        "left",
        "height",
        "width",
        "candidates_h",
        "candidates_w",
        "turns_h",
        "turns_w",
    ]
)
def _gather_bwd_input_kernel(
    grad_ptr,
    spatial_ptr,
    channel_ptr,
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
    top,
    left,
    height,
    width,
    candidates_h,
    candidates_w,
    turns_h,
    turns_w,
    grad_strides,
    spatial_strides,
    channel_strides,
    grad_x_strides,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """grad_x[c, q] = sum over taps t and outputs p with source(p, t) = q of grad[c, p] F[c, t, p].

    For the pixels q of one rectangle. Near the border a pixel is read through several padded
    positions: candidates_h and candidates_w say how many there can be along each axis.
    """
    pixels = height.to(tl.int64) * width
    blocks_c = GROUPS * tl.cdiv(C // GROUPS, BLOCK_C)
    pid_p, pid_c, pid_b = split_program(pixels, blocks_c, BLOCK_P)
    group, offs_c, mask_c = _channel_tile(pid_c, C, GROUPS, BLOCK_C)
    offs_p = pid_p * BLOCK_P + tl.arange(0, BLOCK_P)  # [BLOCK_P]
    mask_p = offs_p < pixels
    offs_y = (offs_p // width).to(tl.int32) + top
    offs_x = (offs_p % width).to(tl.int32) + left
    mask = mask_c[:, None] & mask_p[None, :]  # [BLOCK_C, BLOCK_P]
    grad_base = grad_ptr + pid_b * grad_strides[0] + offs_c[:, None] * grad_strides[1]
    channel_base = channel_ptr + pid_b * channel_strides[0] + offs_c[:, None] * channel_strides[1]
    spatial_base = spatial_ptr + pid_b * spatial_strides[0]
    first_tap = group * kernel_h * kernel_w
    acc = tl.zeros((BLOCK_C, BLOCK_P), ACC)
    for i in range(kernel_h):
        for candidate_h in range(candidates_h):
            padded_y, y_exists = candidate_position(offs_y, candidate_h, H, turns_h, PADDING)
            y, y_reads = output_index(padded_y, i * dilation_h - before_h, stride_h, HO)
            for j in range(kernel_w):
                tap = i * kernel_w + j
                spatial_tap = spatial_base + (first_tap + tap) * spatial_strides[1]
                for candidate_w in range(candidates_w):
                    padded_x, x_exists = candidate_position(
                        offs_x, candidate_w, W, turns_w, PADDING
                    )
                    x, x_reads = output_index(padded_x, j * dilation_w - before_w, stride_w, WO)
                    reads = mask_p & y_exists & y_reads & x_exists & x_reads
                    both = mask & reads[None, :]
                    grad_offs = pixel_offset(y, x, grad_strides)
                    grad = tl.load(grad_base + grad_offs[None, :], mask=both, other=0.0).to(ACC)
                    spatial = tl.load(
                        spatial_tap + pixel_offset(y, x, spatial_strides),
                        mask=reads,
                        other=0.0,
                    ).to(ACC)
                    weight = tl.zeros((BLOCK_C, BLOCK_P), ACC) + spatial[None, :]
                    if FORM != "none":
                        if FORM == "image":
                            channel = tl.load(
                                channel_base + tap * channel_strides[2],
                                mask=mask_c[:, None],
                                other=0.0,
                            ).to(ACC)
                        else:
                            offs = pixel_offset(y, x, channel_strides)
                            channel = tl.load(
                                channel_base + offs[None, :], mask=both, other=0.0
                            ).to(ACC)
                        if COMBINE == "mul":
                            weight = weight * channel
                        else:
                            weight = weight + channel
                    # an absent reader adds nothing, whatever a weight it does not have would be
                    acc += tl.where(both, grad * weight, 0.0)
    grad_x_offs = pixel_offset(offs_y, offs_x, grad_x_strides)
    grad_x_base = grad_x_ptr + pid_b * grad_x_strides[0] + offs_c[:, None] * grad_x_strides[1]
    tl.store(grad_x_base + grad_x_offs[None, :], as_stored(acc, grad_x_ptr), mask=mask)
