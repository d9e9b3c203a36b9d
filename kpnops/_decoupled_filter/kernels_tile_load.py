"""What the fast kernels share: where a tile lies, the taps of its pixels."""

import triton
import triton.language as tl

from .kernels_tile_columns import load_columns


@triton.jit
def tile_position(
    pid, GROUPS, H, W, first_image, first_row, rows, ROWS: tl.constexpr, BLOCK_W: tl.constexpr
):
    """Image, group, first row and first column of the ``pid``-th tile, of a strip if there is one;
    64-bit for offsets, columns run fastest."""
    pid = pid.to(tl.int64)
    blocks_w = tl.cdiv(W, BLOCK_W)
    blocks_h = tl.cdiv(H, ROWS)
    if rows is not None:
        blocks_h = tl.cdiv(rows, ROWS)
    x0 = (pid % blocks_w) * BLOCK_W
    pid = pid // blocks_w
    y0 = (pid % blocks_h) * ROWS
    pid = pid // blocks_h
    b = pid // GROUPS
    if rows is not None:
        b += first_image
        y0 += first_row
    return b, pid % GROUPS, y0, x0


@triton.jit
def statistics_position(statistics_ptr, b, group, y0, x0, GROUPS, held_rows, W):
    """Pointer to the tile's first pixel in the first plane, and the distance of the planes, where
    ``statistics_ptr`` is what ``held_statistics`` gives."""
    plane = tl.cast(held_rows, tl.int64) * W
    return statistics_ptr + (b * GROUPS + group) * 3 * plane + y0 * W + x0, plane


@triton.jit
def load_taps(
    spatial_ptr,
    statistics_ptr,
    plane,
    spatial_strides,
    H,
    W,
    y,
    x,
    offs_h,
    offs_w,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SOFTMAX: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    MASKED: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    JOINED: tl.constexpr = True,
):
    """S[t, p], or transposed S[t, p - o_t], for all pixels p of a thread: ``(tap * ROWS + row) *
    PIXELS + pixel``, each [rows of threads, columns of threads].

    ``y`` and ``x``, or ``offs_h`` and ``offs_w`` from the tile's first pixel, are the position of a
    thread's first pixel. Transposed the taps are those of several pixels, and a softmax takes
    ``statistics``; else it takes none.
    """
    # 64-bit, so that columns are constants beside one address: with an address for each of them
    # all are formed before the first load, and registers hold them instead of taps
    offs = (offs_h * spatial_strides[2] + offs_w * spatial_strides[3]).to(tl.int64)
    statistics_offs = (offs_h * W + offs_w).to(tl.int64)
    FIRST: tl.constexpr = (KW - 1) // 2 - (KW - 1)  # transposed, columns of taps' pixels
    COLUMNS: tl.constexpr = PIXELS + KW - 1
    highest, scale = (), ()  # row * COLUMNS + column
    if SOFTMAX and TRANSPOSED:
        for r in tl.static_range(ROWS + KH - 1):
            shift = r + ((KH - 1) // 2 - (KH - 1))
            inside = (y + shift >= 0) & (y + shift < H)
            ptr = statistics_ptr + shift * W
            highest = highest + load_columns(
                ptr, statistics_offs, 1, x, W, inside, FIRST, COLUMNS, PIXELS, MASKED, ACC, JOINED
            )
            scale = scale + load_columns(
                ptr + plane, statistics_offs, 1, x, W, inside, FIRST, COLUMNS, PIXELS, MASKED, ACC,
                JOINED,
            )  # fmt: skip
    spatial = ()
    for i in tl.static_range(KH):
        for j in tl.static_range(KW):
            for row in tl.static_range(ROWS):
                if TRANSPOSED:
                    shift = row + ((KH - 1) // 2 - i)
                else:
                    shift = row
                inside = (y + shift >= 0) & (y + shift < H)
                values = load_columns(
                    spatial_ptr + shift * spatial_strides[2], offs, spatial_strides[3], x, W,
                    inside, (KW - 1) // 2 - j if TRANSPOSED else 0, PIXELS, PIXELS, MASKED, ACC,
                    JOINED,
                )  # fmt: skip
                if SOFTMAX and TRANSPOSED:
                    for p in tl.static_range(PIXELS):  # 0 where there is no such pixel
                        power = tl.exp(
                            values[p] - highest[(row + KH - 1 - i) * COLUMNS + KW - 1 - j + p]
                        )
                        spatial = spatial + (
                            power * scale[(row + KH - 1 - i) * COLUMNS + KW - 1 - j + p],
                        )
                else:
                    spatial = spatial + values
            spatial_ptr += spatial_strides[1]
    if SOFTMAX and not TRANSPOSED:
        spatial = softmax_of_taps(spatial, KH * KW, ROWS * PIXELS)
    return spatial


@triton.jit
def softmax_of_taps(logits, TAPS: tl.constexpr, ROWS: tl.constexpr):
    """Softmax over the taps of logits that lie as ``load_taps`` gives them, ROWS pixels."""
    highest = ()
    for row in tl.static_range(ROWS):
        value = logits[row]
        for tap in tl.static_range(1, TAPS):
            value = tl.maximum(value, logits[tap * ROWS + row])
        highest = highest + (value,)
    powers = ()
    for index in tl.static_range(TAPS * ROWS):
        powers = powers + (tl.exp(logits[index] - highest[index % ROWS]),)
    scale = ()
    for row in tl.static_range(ROWS):
        value = powers[row]
        for tap in tl.static_range(1, TAPS):
            value += powers[tap * ROWS + row]
        scale = scale + (1.0 / value,)
    weights = ()
    for index in tl.static_range(TAPS * ROWS):
        weights = weights + (powers[index] * scale[index % ROWS],)
    return weights
