"""Fast kernel for all gradients at once, for groups of at most 4 channels.

Conventions as in ``kernels_tile.py``. With few channels the spatial filter is most of the traffic,
and this kernel reads it from memory once: the tap loop is outermost, all channels stay in
registers.
"""

import triton
import triton.language as tl

from .kernels_index import source_index
from .kernels_tile_load import statistics_position, tile_load, tile_position, tile_store


@triton.jit
def _fused_bwd_body(
    x_ptr,
    grad_ptr,
    spatial_ptr,
    channel_ptr,
    statistics_ptr,
    grad_x_ptr,
    grad_spatial_ptr,
    grad_channel_ptr,
    plane,
    H,
    W,
    y0,
    x0,
    x_strides,
    grad_strides,
    spatial_strides,
    channel_strides,
    grad_x_strides,
    grad_spatial_strides,
    grad_channel_strides,
    CHANNELS: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    WITH_INPUT: tl.constexpr,
    WITH_SPATIAL: tl.constexpr,
    WITH_CHANNEL: tl.constexpr,
    MASKED: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """One tile. x, grad, channel and their gradients are tuples of pointers, one for each
    channel."""
    TOP: tl.constexpr = (KH - 1) // 2
    LEFT: tl.constexpr = (KW - 1) // 2
    offs_h = tl.arange(0, BLOCK_H)[:, None]  # [BLOCK_H, 1]
    offs_w = tl.arange(0, BLOCK_W)[None, :]  # [1, BLOCK_W]
    mask = (y0 + offs_h < H) & (x0 + offs_w < W)  # [BLOCK_H, BLOCK_W]
    grad_offs = offs_h * grad_strides[2] + offs_w * grad_strides[3]
    spatial_offs = offs_h * spatial_strides[2] + offs_w * spatial_strides[3]
    if FORM == "pixel":
        channel_offs = offs_h * channel_strides[2] + offs_w * channel_strides[3]
    if SOFTMAX:
        statistics_ptrs = statistics_ptr + (offs_h * W + offs_w)
        if WITH_SPATIAL or WITH_CHANNEL:
            highest = tile_load(statistics_ptrs, mask, MASKED, ACC)
            scale = tile_load(statistics_ptrs + plane, mask, MASKED, ACC)
        if WITH_SPATIAL:
            delta = tile_load(statistics_ptrs + 2 * plane, mask, MASKED, ACC)
    grad = ()
    scaled = ()
    grad_x = ()
    total = ()  # sum_t S x, for grad_channel
    for c in tl.static_range(CHANNELS):
        value = tile_load(grad_ptr[c] + grad_offs, mask, MASKED, ACC)
        grad = grad + (value,)
        if FORM == "pixel" and COMBINE == "mul":
            value = value * tile_load(channel_ptr[c] + channel_offs, mask, MASKED, ACC)
        scaled = scaled + (value,)
        grad_x = grad_x + (tl.zeros((BLOCK_H, BLOCK_W), ACC),)
        total = total + (tl.zeros((BLOCK_H, BLOCK_W), ACC),)
    for i in range(KH):  # not unrolled: nothing is indexed by it, and it compiles KH times faster
        for j in tl.static_range(KW):
            if WITH_SPATIAL or WITH_CHANNEL:
                if MASKED:
                    y, y_inside = source_index(y0 + offs_h + (i - TOP), H, PADDING)
                    x, x_inside = source_index(x0 + offs_w + (j - LEFT), W, PADDING)
                    inside = y_inside & x_inside
                    x_offs = (y - y0) * x_strides[2] + (x - x0) * x_strides[3]
                else:
                    inside = mask
                    x_offs = (offs_h + (i - TOP)) * x_strides[2]
                    x_offs += (offs_w + (j - LEFT)) * x_strides[3]
                if (WITH_CHANNEL and COMBINE == "mul") or (WITH_SPATIAL and SOFTMAX):
                    weight = tile_load(spatial_ptr + spatial_offs, mask, MASKED, ACC)
                    if SOFTMAX:
                        weight = tl.exp(weight - highest) * scale
                tap_sum = tl.zeros((BLOCK_H, BLOCK_W), ACC)
                new_total = ()
                for c in tl.static_range(CHANNELS):
                    value = tile_load(x_ptr[c] + x_offs, inside, MASKED, ACC)
                    if WITH_SPATIAL:
                        tap_sum += scaled[c] * value
                    if WITH_CHANNEL:
                        if COMBINE == "mul":
                            value = value * weight
                        new_total = new_total + (total[c] + value,)
                if WITH_CHANNEL:
                    total = new_total
                if WITH_SPATIAL:
                    ptr = grad_spatial_ptr + offs_h * grad_spatial_strides[2]
                    ptr += offs_w * grad_spatial_strides[3]
                    if SOFTMAX:
                        tap_sum = weight * (tap_sum - delta)
                    tile_store(ptr, tap_sum, mask, MASKED)
                    grad_spatial_ptr += grad_spatial_strides[1]
            if WITH_INPUT:  # the output p = q - o_t reads pixel q through tap t
                py = y0 + offs_h + (TOP - i)
                px = x0 + offs_w + (LEFT - j)
                reads = (py >= 0) & (py < H) & (px >= 0) & (px < W)
                shift = (TOP - i) * spatial_strides[2] + (LEFT - j) * spatial_strides[3]
                weight = tile_load(spatial_ptr + (spatial_offs + shift), reads, MASKED, ACC)
                if SOFTMAX:  # where no output reads the pixel r = 0 makes it 0
                    ptr = statistics_ptrs + ((TOP - i) * W + (LEFT - j))
                    weight = tl.exp(weight - tile_load(ptr, reads, MASKED, ACC))
                    weight *= tile_load(ptr + plane, reads, MASKED, ACC)
                shift_grad = (TOP - i) * grad_strides[2] + (LEFT - j) * grad_strides[3]
                new_grad_x = ()
                for c in tl.static_range(CHANNELS):
                    value = tile_load(grad_ptr[c] + (grad_offs + shift_grad), reads, MASKED, ACC)
                    factor = weight
                    if FORM == "pixel":
                        shift = (TOP - i) * channel_strides[2] + (LEFT - j) * channel_strides[3]
                        ptr = channel_ptr[c] + (channel_offs + shift)
                        channel = tile_load(ptr, reads, MASKED, ACC)
                        if COMBINE == "mul":
                            value = value * channel
                        else:
                            factor = weight + channel
                    new_grad_x = new_grad_x + (grad_x[c] + value * factor,)
                grad_x = new_grad_x
            spatial_ptr += spatial_strides[1]
    for c in tl.static_range(CHANNELS):
        if WITH_INPUT:
            ptr = grad_x_ptr[c] + offs_h * grad_x_strides[2] + offs_w * grad_x_strides[3]
            tile_store(ptr, grad_x[c], mask, MASKED)
        if WITH_CHANNEL:
            ptr = grad_channel_ptr[c] + offs_h * grad_channel_strides[2]
            ptr += offs_w * grad_channel_strides[3]
            tile_store(ptr, grad[c] * total[c], mask, MASKED)


@triton.jit
def _channel_pointers(ptr, b, first, y0, x0, strides, CHANNELS: tl.constexpr):
    """Pointers to the tile's first pixel in each of CHANNELS channels."""
    ptr += b * strides[0] + first * strides[1] + y0 * strides[2] + x0 * strides[3]
    pointers = ()
    for _ in tl.static_range(CHANNELS):
        pointers = pointers + (ptr,)
        ptr += strides[1]
    return pointers


@triton.jit
def _fused_bwd_kernel(
    x_ptr,
    grad_ptr,
    spatial_ptr,
    channel_ptr,
    statistics_ptr,
    grad_x_ptr,
    grad_spatial_ptr,
    grad_channel_ptr,
    GROUPS,
    H,
    W,
    x_strides,
    grad_strides,
    spatial_strides,
    channel_strides,
    grad_x_strides,
    grad_spatial_strides,
    grad_channel_strides,
    CHANNELS: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    WITH_INPUT: tl.constexpr,
    WITH_SPATIAL: tl.constexpr,
    WITH_CHANNEL: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """grad_x (zero padding), grad_spatial and grad_channel of a tile; FORM is "none" or "pixel".

    grad_x[c, q]       = sum_t grad[c, q - o_t] F[c, t, q - o_t]
    grad_spatial[t, q] = sum_c grad[c, q] x[c, q + o_t] (Ch if "mul" else 1)
    grad_channel[c, q] = grad[c, q] sum_t x[c, q + o_t] (S[t, q] if "mul" else 1)
    SOFTMAX: the gradient of the logits, S[t, q] (dS[t, q] - delta[q]) with dS as above.
    """
    TOP: tl.constexpr = (KH - 1) // 2
    LEFT: tl.constexpr = (KW - 1) // 2
    # the gradient of the input reads as far the other way round
    REACH_H: tl.constexpr = KH - 1 - TOP
    REACH_W: tl.constexpr = KW - 1 - LEFT
    b, group, y0, x0 = tile_position(tl.program_id(0), GROUPS, H, W, BLOCK_H, BLOCK_W)
    first = group * CHANNELS
    first_tap = group * (KH * KW)
    x_ptrs = _channel_pointers(x_ptr, b, first, y0, x0, x_strides, CHANNELS)
    grad_ptrs = _channel_pointers(grad_ptr, b, first, y0, x0, grad_strides, CHANNELS)
    channel_ptrs = x_ptrs
    if FORM == "pixel":
        channel_ptrs = _channel_pointers(channel_ptr, b, first, y0, x0, channel_strides, CHANNELS)
    grad_x_ptrs = x_ptrs
    if WITH_INPUT:
        grad_x_ptrs = _channel_pointers(grad_x_ptr, b, first, y0, x0, grad_x_strides, CHANNELS)
    grad_channel_ptrs = x_ptrs
    if WITH_CHANNEL:
        grad_channel_ptrs = _channel_pointers(
            grad_channel_ptr, b, first, y0, x0, grad_channel_strides, CHANNELS
        )
    spatial_ptr += b * spatial_strides[0] + first_tap * spatial_strides[1]
    spatial_ptr += y0 * spatial_strides[2] + x0 * spatial_strides[3]
    plane = 0
    if SOFTMAX:
        statistics_ptr, plane = statistics_position(statistics_ptr, b, group, y0, x0, GROUPS, H, W)
    if WITH_SPATIAL:
        grad_spatial_ptr += b * grad_spatial_strides[0] + first_tap * grad_spatial_strides[1]
        grad_spatial_ptr += y0 * grad_spatial_strides[2] + x0 * grad_spatial_strides[3]
    interior = (y0 >= REACH_H) & (y0 + (BLOCK_H + REACH_H) <= H)
    interior = interior & (x0 >= REACH_W) & (x0 + (BLOCK_W + REACH_W) <= W)
    if interior:
        _fused_bwd_body(
            x_ptrs, grad_ptrs, spatial_ptr, channel_ptrs, statistics_ptr, grad_x_ptrs,
            grad_spatial_ptr, grad_channel_ptrs, plane, H, W, y0.to(tl.int32), x0.to(tl.int32),
            x_strides, grad_strides, spatial_strides, channel_strides, grad_x_strides,
            grad_spatial_strides, grad_channel_strides, CHANNELS, KH, KW, FORM, COMBINE, PADDING,
            SOFTMAX, WITH_INPUT, WITH_SPATIAL, WITH_CHANNEL, False, ACC, BLOCK_H, BLOCK_W,
        )  # fmt: skip
    else:
        _fused_bwd_body(
            x_ptrs, grad_ptrs, spatial_ptr, channel_ptrs, statistics_ptr, grad_x_ptrs,
            grad_spatial_ptr, grad_channel_ptrs, plane, H, W, y0.to(tl.int32), x0.to(tl.int32),
            x_strides, grad_strides, spatial_strides, channel_strides, grad_x_strides,
            grad_spatial_strides, grad_channel_strides, CHANNELS, KH, KW, FORM, COMBINE, PADDING,
            SOFTMAX, WITH_INPUT, WITH_SPATIAL, WITH_CHANNEL, True, ACC, BLOCK_H, BLOCK_W,
        )  # fmt: skip
