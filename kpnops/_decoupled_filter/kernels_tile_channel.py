"""Fast kernel for the gradient of a 3-D channel filter.

Conventions as in ``kernels_tile.py``.
"""

import triton
import triton.language as tl

from .kernels_index import STRIP, source_index
from .kernels_softmax import held_statistics
from .kernels_tile_columns import tile_load
from .kernels_tile_load import statistics_position


@triton.jit
def _tile_bwd_channel_body(
    x_ptr,
    grad_ptr,
    spatial_ptr,
    statistics_ptr,
    partial_ptr,
    plane,
    rows,
    H,
    W,
    y0,
    x0,
    x_strides,
    grad_strides,
    spatial_strides,
    KH: tl.constexpr,
    KW: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    MASKED: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Rows y0 ... y0 + rows - 1 of one channel. Pointers stand at row y0, column x0."""
    offs_w = tl.arange(0, BLOCK_W)  # [BLOCK_W]
    mask_w = x0 + offs_w < W
    acc = ()  # one [BLOCK_W] for each tap
    for _tap in tl.static_range(KH * KW):
        acc = acc + (tl.zeros((BLOCK_W,), ACC),)
    for row in range(rows):
        grad = tile_load(grad_ptr + offs_w * grad_strides[3], mask_w, MASKED, ACC)
        if SOFTMAX:
            highest = tile_load(statistics_ptr + offs_w, mask_w, MASKED, ACC)
            scale = tile_load(statistics_ptr + plane + offs_w, mask_w, MASKED, ACC)
            statistics_ptr += W
        tap_ptr = spatial_ptr
        new_acc = ()
        for i in tl.static_range(KH):
            if MASKED:
                y, y_inside = source_index(y0 + row + (i - (KH - 1) // 2), H, PADDING)
                x_row_ptr = x_ptr + (y - y0 - row) * x_strides[2]
            else:
                x_row_ptr = x_ptr + (i - (KH - 1) // 2) * x_strides[2]
            for j in tl.static_range(KW):
                if MASKED:
                    x, x_inside = source_index(x0 + (j - (KW - 1) // 2) + offs_w, W, PADDING)
                    ptr = x_row_ptr + (x - x0) * x_strides[3]
                    value = tile_load(ptr, y_inside & x_inside, True, ACC)
                else:
                    ptr = x_row_ptr + (offs_w + (j - (KW - 1) // 2)) * x_strides[3]
                    value = tl.load(ptr).to(ACC)
                product = grad * value
                if COMBINE == "mul":
                    ptr = tap_ptr + offs_w * spatial_strides[3]
                    weight = tile_load(ptr, mask_w, MASKED, ACC)
                    if SOFTMAX:
                        weight = tl.exp(weight - highest) * scale
                    product *= weight
                    tap_ptr += spatial_strides[1]
                # beyond the image's width the gradient is 0, but what a tap reads there may be inf
                if MASKED:
                    product = tl.where(mask_w, product, 0.0)
                new_acc = new_acc + (acc[i * KW + j] + product,)
        acc = new_acc
        x_ptr += x_strides[2]
        grad_ptr += grad_strides[2]
        if COMBINE == "mul":
            spatial_ptr += spatial_strides[2]
    for tap in tl.static_range(KH * KW):
        tl.store(partial_ptr + tap, tl.sum(acc[tap], 0))


@triton.jit(do_not_specialize=[*STRIP, "images"])
def _tile_bwd_channel_kernel(
    x_ptr,
    grad_ptr,
    spatial_ptr,
    statistics_ptr,
    partial_ptr,
    B,
    C,
    GROUPS,
    H,
    W,
    rows_per_chunk,
    images,
    first_image,
    first_row,
    rows,
    held_row,
    held_rows,
    x_strides,
    grad_strides,
    spatial_strides,
    KH: tl.constexpr,
    KW: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """partial[chunk, b, c, t] = sum over the chunk's p of grad[c, p] x[c, p + o_t] (S[t, p] if
    "mul" else 1).

    A chunk is rows_per_chunk rows of BLOCK_W columns; channels run fastest, so that those of a
    chunk find its spatial taps in the cache. The chunks are added up afterwards, in their order.
    """
    TOP: tl.constexpr = (KH - 1) // 2
    LEFT: tl.constexpr = (KW - 1) // 2
    pid = tl.program_id(0).to(tl.int64)
    c = pid % C
    pid = pid // C
    b = pid % images
    chunk = pid // images
    blocks_w = tl.cdiv(W, BLOCK_W)
    if first_image is not None:
        b += first_image
        chunk += first_row // rows_per_chunk * blocks_w
    x0 = (chunk % blocks_w) * BLOCK_W
    y0 = (chunk // blocks_w) * rows_per_chunk
    rows = tl.minimum(rows_per_chunk, H - y0).to(tl.int32)
    group = c // (C // GROUPS)
    x_ptr += b * x_strides[0] + c * x_strides[1] + y0 * x_strides[2] + x0 * x_strides[3]
    grad_ptr += b * grad_strides[0] + c * grad_strides[1]
    grad_ptr += y0 * grad_strides[2] + x0 * grad_strides[3]
    if COMBINE == "mul":
        spatial_ptr += b * spatial_strides[0] + group * (KH * KW) * spatial_strides[1]
        spatial_ptr += y0 * spatial_strides[2] + x0 * spatial_strides[3]
    plane = 0
    if SOFTMAX:
        statistics_ptr = held_statistics(
            statistics_ptr, first_image, held_row, held_rows, GROUPS, W
        )
        statistics_ptr, plane = statistics_position(
            statistics_ptr, b, group, y0, x0, GROUPS, held_rows, W
        )
    partial_ptr += ((chunk * B + b) * C + c) * (KH * KW)
    interior = (y0 >= TOP) & (y0 + rows + (KH - 1 - TOP) <= H)
    interior = interior & (x0 >= LEFT) & (x0 + (BLOCK_W + KW - 1 - LEFT) <= W)
    if interior:
        _tile_bwd_channel_body(
            x_ptr, grad_ptr, spatial_ptr, statistics_ptr, partial_ptr, plane, rows, H, W,
            y0.to(tl.int32), x0.to(tl.int32), x_strides, grad_strides, spatial_strides,
            KH, KW, COMBINE, PADDING, SOFTMAX, False, ACC, BLOCK_W,
        )  # fmt: skip
    else:
        _tile_bwd_channel_body(
            x_ptr, grad_ptr, spatial_ptr, statistics_ptr, partial_ptr, plane, rows, H, W,
            y0.to(tl.int32), x0.to(tl.int32), x_strides, grad_strides, spatial_strides,
            KH, KW, COMBINE, PADDING, SOFTMAX, True, ACC, BLOCK_W,
        )  # fmt: skip
