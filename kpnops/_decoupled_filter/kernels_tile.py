"""Fast kernels: stride 1, dilation 1, taps unrolled (at most 49).

A program owns ROWS rows of BLOCK_W pixels of one image and group, keeps their spatial taps in
registers and walks the channels. One loaded row segment of the input serves every output row that
reads it. Programs whose whole window lies inside the image run a variant without masks; which one a
program needs is tested once. Pointers advance by strides, so that no product of an index and a
stride passes 32 bits; the launcher sends tensors on which a tile spans more than that to the
general kernels. FORM is "none", "image" (3-D channel filter) or "pixel" (4-D).
"""

import triton
import triton.language as tl

from .kernels_index import as_stored, source_index


@triton.jit
def tile_position(GROUPS, H, W, ROWS: tl.constexpr, BLOCK_W: tl.constexpr):
    """Image, group, first row and first column of a program, 64-bit for offsets; columns run
    fastest."""
    pid = tl.program_id(0).to(tl.int64)
    blocks_w = tl.cdiv(W, BLOCK_W)
    blocks_h = tl.cdiv(H, ROWS)
    x0 = (pid % blocks_w) * BLOCK_W
    pid = pid // blocks_w
    y0 = (pid % blocks_h) * ROWS
    pid = pid // blocks_h
    return pid // GROUPS, pid % GROUPS, y0, x0


@triton.jit
def tile_load(ptr, mask, MASKED: tl.constexpr, ACC: tl.constexpr):
    """Load as ACC, with the mask only where the tile needs one."""
    if MASKED:
        value = tl.load(ptr, mask=mask, other=0.0)
    else:
        value = tl.load(ptr)
    return value.to(ACC)


@triton.jit
def tile_store(ptr, value, mask, MASKED: tl.constexpr):
    """Store in the pointer's dtype, with the mask only where the tile needs one."""
    value = as_stored(value, ptr)
    if MASKED:
        tl.store(ptr, value, mask=mask)
    else:
        tl.store(ptr, value)


@triton.jit
def load_spatial(
    spatial_ptr,
    spatial_strides,
    H,
    W,
    y0,
    x0,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    MASKED: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """S[t, p], or transposed S[t, p - o_t], for all rows p of the tile: tap * ROWS + row, each
    [BLOCK_W]."""
    offs_w = tl.arange(0, BLOCK_W)
    spatial = ()
    for i in tl.static_range(KH):
        for j in tl.static_range(KW):
            for row in tl.static_range(ROWS):
                if TRANSPOSED:
                    y = row + (KH - 1) // 2 - i
                    x = offs_w + ((KW - 1) // 2 - j)
                else:
                    y = row
                    x = offs_w
                mask = (x0 + x >= 0) & (x0 + x < W) & (y0 + y >= 0) & (y0 + y < H)
                ptr = spatial_ptr + y * spatial_strides[2] + x * spatial_strides[3]
                spatial = spatial + (tile_load(ptr, mask, MASKED, ACC),)
            spatial_ptr += spatial_strides[1]
    return spatial


@triton.jit
def _tile_fwd_body(
    x_ptr,
    spatial_ptr,
    channel_ptr,
    out_ptr,
    channels,
    H,
    W,
    y0,
    x0,
    x_strides,
    spatial_strides,
    channel_strides,
    out_strides,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    MASKED: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """All channels of a tile. Pointers stand at the first channel of image and group, row y0,
    column x0."""
    TOP: tl.constexpr = KH - 1 - (KH - 1) // 2 if TRANSPOSED else (KH - 1) // 2
    LEFT: tl.constexpr = KW - 1 - (KW - 1) // 2 if TRANSPOSED else (KW - 1) // 2
    offs_w = tl.arange(0, BLOCK_W)  # [BLOCK_W]
    mask_w = x0 + offs_w < W
    spatial = load_spatial(
        spatial_ptr, spatial_strides, H, W, y0, x0, KH, KW, TRANSPOSED, MASKED, ACC, ROWS, BLOCK_W
    )
    for _ in range(channels):
        acc = ()
        for _row in tl.static_range(ROWS):
            acc = acc + (tl.zeros((BLOCK_W,), ACC),)
        for r in tl.static_range(ROWS + KH - 1):
            if MASKED:
                y, y_inside = source_index(y0 + (r - TOP), H, PADDING)
                x_row_ptr = x_ptr + (y - y0) * x_strides[2]
            else:
                x_row_ptr = x_ptr + (r - TOP) * x_strides[2]
            for j in tl.static_range(KW):
                if MASKED:
                    x, x_inside = source_index(x0 + (j - LEFT) + offs_w, W, PADDING)
                    inside = y_inside & x_inside
                    value = tile_load(x_row_ptr + (x - x0) * x_strides[3], inside, True, ACC)
                else:
                    inside = mask_w
                    value = tl.load(x_row_ptr + (offs_w + (j - LEFT)) * x_strides[3]).to(ACC)
                if TRANSPOSED and FORM == "pixel":
                    # the channel filter of the output that is read here: shared by all rows, as the
                    # value is
                    ptr = channel_ptr + (r - TOP) * channel_strides[2]
                    ptr += (offs_w + (j - LEFT)) * channel_strides[3]
                    shared = tile_load(ptr, inside, MASKED, ACC)
                    if COMBINE == "mul":
                        value = value * shared
                new_acc = ()
                for row in tl.static_range(ROWS):
                    if r - row >= 0 and r - row < KH:
                        if TRANSPOSED:
                            tap = (KH - 1 - (r - row)) * KW + (KW - 1 - j)
                            weight = spatial[
                                ((KH - 1 - (r - row)) * KW + (KW - 1 - j)) * ROWS + row
                            ]
                        else:
                            tap = (r - row) * KW + j
                            weight = spatial[((r - row) * KW + j) * ROWS + row]
                        if FORM == "image":
                            channel = tl.load(channel_ptr + tap * channel_strides[2]).to(ACC)
                            if COMBINE == "mul":
                                weight = weight * channel
                            else:
                                weight = weight + channel
                        if FORM == "pixel" and COMBINE == "add":
                            if TRANSPOSED:
                                weight = weight + shared
                            else:
                                ptr = channel_ptr + row * channel_strides[2]
                                ptr += offs_w * channel_strides[3]
                                mask = mask_w & (y0 + row < H)
                                weight = weight + tile_load(ptr, mask, MASKED, ACC)
                        product = value * weight
                        if TRANSPOSED and MASKED and FORM == "image":
                            # no output there reads this pixel, but the weight of a tap may be inf
                            product = tl.where(inside, product, 0.0)
                        new_acc = new_acc + (acc[row] + product,)
                    else:
                        new_acc = new_acc + (acc[row],)
                acc = new_acc
        for row in tl.static_range(ROWS):
            result = acc[row]
            mask = mask_w & (y0 + row < H)
            if FORM == "pixel" and COMBINE == "mul" and not TRANSPOSED:
                ptr = channel_ptr + row * channel_strides[2] + offs_w * channel_strides[3]
                result = result * tile_load(ptr, mask, MASKED, ACC)
            ptr = out_ptr + row * out_strides[2] + offs_w * out_strides[3]
            tile_store(ptr, result, mask, MASKED)
        x_ptr += x_strides[1]
        out_ptr += out_strides[1]
        if FORM != "none":
            channel_ptr += channel_strides[1]


@triton.jit
def _tile_fwd_kernel(
    x_ptr,
    spatial_ptr,
    channel_ptr,
    out_ptr,
    C,
    GROUPS,
    H,
    W,
    x_strides,
    spatial_strides,
    channel_strides,
    out_strides,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """out[c, p] = sum_t F[c, t, p] x[c, p + o_t].

    TRANSPOSED: the gradient of the input under zero padding, out[c, q] = sum_t F[c, t, q - o_t]
    x[c, q - o_t], where ``x`` is the gradient of the output.
    """
    TOP: tl.constexpr = KH - 1 - (KH - 1) // 2 if TRANSPOSED else (KH - 1) // 2
    LEFT: tl.constexpr = KW - 1 - (KW - 1) // 2 if TRANSPOSED else (KW - 1) // 2
    b, group, y0, x0 = tile_position(GROUPS, H, W, ROWS, BLOCK_W)
    channels = C // GROUPS
    first = group * channels
    x_ptr += b * x_strides[0] + first * x_strides[1] + y0 * x_strides[2] + x0 * x_strides[3]
    spatial_ptr += b * spatial_strides[0] + group * (KH * KW) * spatial_strides[1]
    spatial_ptr += y0 * spatial_strides[2] + x0 * spatial_strides[3]
    out_ptr += b * out_strides[0] + first * out_strides[1]
    out_ptr += y0 * out_strides[2] + x0 * out_strides[3]
    if FORM != "none":
        channel_ptr += b * channel_strides[0] + first * channel_strides[1]
    if FORM == "pixel":
        channel_ptr += y0 * channel_strides[2] + x0 * channel_strides[3]
    interior = (y0 >= TOP) & (y0 + (ROWS + KH - 1 - TOP) <= H)
    interior = interior & (x0 >= LEFT) & (x0 + (BLOCK_W + KW - 1 - LEFT) <= W)
    if interior:
        _tile_fwd_body(
            x_ptr, spatial_ptr, channel_ptr, out_ptr, channels, H, W, y0.to(tl.int32),
            x0.to(tl.int32), x_strides, spatial_strides, channel_strides, out_strides, KH, KW, FORM,
            COMBINE, PADDING, TRANSPOSED, False, ACC, ROWS, BLOCK_W,
        )  # fmt: skip
    else:
        _tile_fwd_body(
            x_ptr, spatial_ptr, channel_ptr, out_ptr, channels, H, W, y0.to(tl.int32),
            x0.to(tl.int32), x_strides, spatial_strides, channel_strides, out_strides, KH, KW, FORM,
            COMBINE, PADDING, TRANSPOSED, True, ACC, ROWS, BLOCK_W,
        )  # fmt: skip
