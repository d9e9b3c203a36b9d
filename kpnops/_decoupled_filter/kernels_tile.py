"""Fast kernels: stride 1, dilation 1, taps unrolled (at most 49).

A program owns BLOCK_H rows of BLOCK_W pixels of one image and a chunk of ``channels`` of a group. A
thread owns ROWS rows of PIXELS adjacent pixels (or several such pieces; JOINED: two of them are
loaded at once), keeps their spatial taps in registers and walks the
channels. One loaded row segment of the input serves every output row that reads it. Programs whose
whole window lies inside the image run a variant without masks; which one a program needs is tested
once. SAME_STRIDES: all tensors that the walk over the channels reads and writes lie alike, and
share their offsets; what a thread does not keep lets another program run beside it. EVEN_STRIDES:
see ``even_strides``. Pointers advance by strides, so that no product of an index and a stride
passes 32 bits; the launcher sends tensors on which a tile spans more than that to the general
kernels. FORM is "none", "image" (3-D channel filter) or "pixel" (4-D).

SOFTMAX: ``spatial`` holds logits s, and S = exp(s - m) * r with the pixel's largest logit m and
r = 1 / sum_t exp(s - m). Where a program does not hold all taps of a pixel it reads m, r and, for
the gradient, delta = sum_t S dS as three planes of ``statistics``, contiguous (images, GROUPS, 3,
held_rows, W).
"""

import triton
import triton.language as tl

from .kernels_index import STRIP, held_gradient, pixel_offset, source_index
from .kernels_softmax import held_statistics
from .kernels_tile_columns import (
    even_strides,
    load_columns,
    load_padded_columns,
    store_pixels,
    tile_load,
    tile_store,
)
from .kernels_tile_load import load_taps, statistics_position, tile_position


@triton.jit
def _tile_fwd_body(
    x_ptr,
    spatial,
    channel_ptr,
    out_ptr,
    channels,
    H,
    W,
    y0,
    x0,
    x_strides,
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
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    SAME_STRIDES: tl.constexpr,
    JOINED: tl.constexpr,
):
    """All channels of a tile whose taps are ``spatial``. Pointers stand at the first channel of
    image and group, row y0, column x0.

    Returns one value for each thread: not finite where a gain that left its sum over the taps was
    not, or products of two were too large.
    """
    TOP: tl.constexpr = KH - 1 - (KH - 1) // 2 if TRANSPOSED else (KH - 1) // 2
    LEFT: tl.constexpr = KW - 1 - (KW - 1) // 2 if TRANSPOSED else (KW - 1) // 2
    COLUMNS: tl.constexpr = PIXELS + KW - 1  # that a thread reads of a row
    GAIN: tl.constexpr = FORM == "pixel" and not TRANSPOSED
    if SAME_STRIDES:
        out_strides = x_strides
        if FORM == "pixel":
            channel_strides = x_strides
    offs_h = ROWS * tl.arange(0, BLOCK_H // ROWS)[:, None]  # [rows of threads, 1]
    offs_w = PIXELS * tl.arange(0, BLOCK_W // PIXELS)[None, :]  # [1, columns of threads]
    y, x = y0 + offs_h, x0 + offs_w
    x_offs = (offs_h * x_strides[2] + offs_w * x_strides[3]).to(tl.int64)
    out_offs = (offs_h * out_strides[2] + offs_w * out_strides[3]).to(tl.int64)
    if FORM == "pixel":
        channel_offs = (offs_h * channel_strides[2] + offs_w * channel_strides[3]).to(tl.int64)
    probe = tl.zeros((BLOCK_H // ROWS, BLOCK_W // PIXELS), ACC)
    for _ in range(channels):
        gains = ()  # row * PIXELS + pixel, as acc
        acc = ()
        for row in tl.static_range(ROWS):
            if GAIN:
                gains = gains + load_columns(
                    channel_ptr + row * channel_strides[2], channel_offs, channel_strides[3], x, W,
                    y + row < H, 0, PIXELS, PIXELS, MASKED, ACC, JOINED,
                )  # fmt: skip
            for _pixel in tl.static_range(PIXELS):
                acc = acc + (tl.zeros((BLOCK_H // ROWS, BLOCK_W // PIXELS), ACC),)
        for r in tl.static_range(ROWS + KH - 1):
            inside = (y + (r - TOP) >= 0) & (y + (r - TOP) < H)
            if MASKED and PADDING != "zeros":
                source, _inside = source_index(y + (r - TOP), H, PADDING)
                values = load_padded_columns(
                    x_ptr, (source - y0) * x_strides[2], x_strides[3], x0, x, W, -LEFT,
                    COLUMNS, PADDING, ACC,
                )  # fmt: skip
            else:
                values = load_columns(
                    x_ptr + (r - TOP) * x_strides[2], x_offs, x_strides[3], x, W, inside, -LEFT,
                    COLUMNS, PIXELS, MASKED, ACC, JOINED,
                )  # fmt: skip
            if TRANSPOSED and FORM == "pixel":
                # the channel filter of the output that is read here: shared by all rows, as the
                # value is
                shared = load_columns(
                    channel_ptr + (r - TOP) * channel_strides[2], channel_offs, channel_strides[3],
                    x, W, inside, -LEFT, COLUMNS, PIXELS, MASKED, ACC, JOINED,
                )  # fmt: skip
                if COMBINE == "mul":
                    products = ()
                    for k in tl.static_range(COLUMNS):
                        products = products + (values[k] * shared[k],)
                    values = products
            new_acc = ()
            for row in tl.static_range(ROWS):
                for p in tl.static_range(PIXELS):
                    total = acc[row * PIXELS + p]
                    for j in tl.static_range(KW if r - row >= 0 and r - row < KH else 0):
                        if TRANSPOSED:
                            tap = (KH - 1 - (r - row)) * KW + (KW - 1 - j)
                            weight = spatial[
                                (((KH - 1 - (r - row)) * KW + KW - 1 - j) * ROWS + row) * PIXELS + p
                            ]
                        else:
                            tap = (r - row) * KW + j
                            weight = spatial[(((r - row) * KW + j) * ROWS + row) * PIXELS + p]
                        if FORM == "image":
                            channel = tl.load(channel_ptr + tap * channel_strides[2]).to(ACC)
                            if COMBINE == "mul":
                                weight = weight * channel
                            else:
                                weight = weight + channel
                        if FORM == "pixel" and COMBINE == "add":
                            if TRANSPOSED:
                                weight = weight + shared[j + p]
                            else:
                                weight = weight + gains[row * PIXELS + p]
                        if TRANSPOSED and MASKED and FORM == "image":
                            # no output there reads this pixel, but the weight of a tap may be inf
                            column = x + (j + p - LEFT)
                            reads = inside & (column >= 0) & (column < W)
                            total += tl.where(reads, values[j + p] * weight, 0.0)
                        else:
                            total = tl.fma(values[j + p], weight, total)
                    new_acc = new_acc + (total,)
            acc = new_acc
        if GAIN and COMBINE == "mul":
            results = ()
            for k in tl.static_range(ROWS * PIXELS):
                results = results + (acc[k] * gains[k],)
            for k in tl.static_range(0, ROWS * PIXELS, 2):  # two gains in one instruction
                other = gains[k + 1] if k + 1 < ROWS * PIXELS else 1.0
                probe = tl.fma(gains[k], other, probe)
            acc = results
        for row in tl.static_range(ROWS):
            store_pixels(
                out_ptr + row * out_strides[2], out_offs, out_strides[3], acc, row * PIXELS, x, W,
                y + row < H, PIXELS, MASKED, JOINED,
            )  # fmt: skip
        x_ptr += x_strides[1]
        out_ptr += out_strides[1]
        if FORM != "none":
            channel_ptr += channel_strides[1]
    return probe


@triton.jit
def _tile_fwd_exact(
    pid,
    x_ptr,
    spatial_ptr,
    channel_ptr,
    out_ptr,
    GROUPS,
    chunks,
    channels,
    H,
    W,
    x_strides,
    spatial_strides,
    channel_strides,
    out_strides,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """The ``pid``-th tile with every product as the definition has it: sum_t (S Ch) x.

    Rarely run, so small: nothing is unrolled, all offsets are 64-bit, and every load has a mask.
    """
    b, group, y0, x0 = tile_position(
        pid // chunks, GROUPS, H, W, None, None, None, BLOCK_H, BLOCK_W
    )
    first = (group * chunks + pid % chunks) * channels
    offs_w = x0 + tl.arange(0, BLOCK_W)  # [BLOCK_W]
    mask = offs_w < W
    spatial_ptr += b * spatial_strides[0] + group * (KH * KW) * spatial_strides[1]
    for number in range(tl.minimum(H - y0, BLOCK_H)):
        row = y0 + number
        taps_ptr = spatial_ptr + pixel_offset(row, offs_w, spatial_strides)
        highest = tl.full((BLOCK_W,), float("-inf"), ACC)
        total = tl.zeros((BLOCK_W,), ACC)
        if SOFTMAX:
            ptr = taps_ptr
            for _ in range(KH * KW):
                highest = tl.maximum(highest, tile_load(ptr, mask, True, ACC))
                ptr += spatial_strides[1]
            ptr = taps_ptr
            for _ in range(KH * KW):
                total += tl.exp(tile_load(ptr, mask, True, ACC) - highest)
                ptr += spatial_strides[1]
        for channel in range(channels):
            c = first + channel
            gain_ptr = channel_ptr + b * channel_strides[0] + c * channel_strides[1]
            gain_ptr += pixel_offset(row, offs_w, channel_strides)
            gain = tile_load(gain_ptr, mask, True, ACC)
            acc = tl.zeros((BLOCK_W,), ACC)
            tap_ptr = taps_ptr
            for tap in range(KH * KW):
                y, y_inside = source_index(row + (tap // KW - (KH - 1) // 2), H, PADDING)
                x, x_inside = source_index(offs_w + (tap % KW - (KW - 1) // 2), W, PADDING)
                value_ptr = x_ptr + b * x_strides[0] + c * x_strides[1]
                value_ptr += pixel_offset(y, x, x_strides)
                value = tile_load(value_ptr, mask & y_inside & x_inside, True, ACC)
                weight = tile_load(tap_ptr, mask, True, ACC)
                if SOFTMAX:
                    weight = tl.exp(weight - highest) * (1.0 / total)
                acc += weight * gain * value
                tap_ptr += spatial_strides[1]
            result_ptr = out_ptr + b * out_strides[0] + c * out_strides[1]
            result_ptr += pixel_offset(row, offs_w, out_strides)
            tile_store(result_ptr, acc, mask, True)


@triton.jit(do_not_specialize=STRIP)
def _tile_fwd_kernel(
    x_ptr,
    spatial_ptr,
    channel_ptr,
    statistics_ptr,
    out_ptr,
    GROUPS,
    chunks,
    channels,
    H,
    W,
    first_image,
    first_row,
    rows,
    held_row,
    held_rows,
    x_strides,
    spatial_strides,
    channel_strides,
    out_strides,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FORM: tl.constexpr,
    COMBINE: tl.constexpr,
    PADDING: tl.constexpr,
    SOFTMAX: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    HELD_GRAD: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    SAME_STRIDES: tl.constexpr,
    JOINED: tl.constexpr,
    EVEN_STRIDES: tl.constexpr,
):
    """out[c, p] = sum_t F[c, t, p] x[c, p + o_t].

    TRANSPOSED: the gradient of the input under zero padding, out[c, q] = sum_t F[c, t, q - o_t]
    x[c, q - o_t], where ``x`` is the gradient of the output; of a strip if one is given. HELD_GRAD:
    that gradient stands in a workspace.

    A 4-D channel filter under "mul" leaves the sum over the taps: Ch sum_t S x. If a gain is
    infinite that is not the sum of the products, and the tile is computed once more; so it is,
    needlessly, where two gains have an infinite product.
    """
    TOP: tl.constexpr = KH - 1 - (KH - 1) // 2 if TRANSPOSED else (KH - 1) // 2
    LEFT: tl.constexpr = KW - 1 - (KW - 1) // 2 if TRANSPOSED else (KW - 1) // 2
    pid = tl.program_id(0)
    if KH * KW <= 9:  # told so, it keeps 3x3 taps in 128 registers (sm_80); 5x5 then spill (sm_90)
        tl.assume(channels > 0)
    # the chunks of a tile run side by side, so that they find its taps in the cache
    b, group, y0, x0 = tile_position(
        pid // chunks, GROUPS, H, W, first_image, first_row, rows, BLOCK_H, BLOCK_W
    )
    first = (group * chunks + pid % chunks) * channels
    if EVEN_STRIDES:
        x_strides = even_strides(x_strides)
        spatial_strides = even_strides(spatial_strides)
        if FORM == "pixel":
            channel_strides = even_strides(channel_strides)
        out_strides = even_strides(out_strides)
        W = W // 2 * 2
    if HELD_GRAD:
        x_ptr = held_gradient(x_ptr, first_image, held_row, x_strides)
    x_base, spatial_base, channel_base, out_base = x_ptr, spatial_ptr, channel_ptr, out_ptr
    x_ptr += b * x_strides[0] + first * x_strides[1] + y0 * x_strides[2] + x0 * x_strides[3]
    spatial_ptr += b * spatial_strides[0] + group * (KH * KW) * spatial_strides[1]
    spatial_ptr += y0 * spatial_strides[2] + x0 * spatial_strides[3]
    plane = 0
    if SOFTMAX and TRANSPOSED:
        statistics_ptr = held_statistics(
            statistics_ptr, first_image, held_row, held_rows, GROUPS, W
        )
        statistics_ptr, plane = statistics_position(
            statistics_ptr, b, group, y0, x0, GROUPS, held_rows, W
        )
    out_ptr += b * out_strides[0] + first * out_strides[1]
    out_ptr += y0 * out_strides[2] + x0 * out_strides[3]
    if FORM != "none":
        channel_ptr += b * channel_strides[0] + first * channel_strides[1]
    if FORM == "pixel":
        channel_ptr += y0 * channel_strides[2] + x0 * channel_strides[3]
    interior = (y0 >= TOP) & (y0 + (BLOCK_H + KH - 1 - TOP) <= H)
    interior = interior & (x0 >= LEFT) & (x0 + (BLOCK_W + KW - 1 - LEFT) <= W)
    # taps under a mask, once for both variants: a load of each in either doubles what is compiled
    offs_h = ROWS * tl.arange(0, BLOCK_H // ROWS)[:, None]  # [rows of threads, 1]
    offs_w = PIXELS * tl.arange(0, BLOCK_W // PIXELS)[None, :]  # [1, columns of threads]
    spatial = load_taps(
        spatial_ptr, statistics_ptr, plane, spatial_strides, H, W, y0.to(tl.int32) + offs_h,
        x0.to(tl.int32) + offs_w, offs_h, offs_w, KH, KW, SOFTMAX, TRANSPOSED, True, ACC, ROWS,
        PIXELS, JOINED,
    )  # fmt: skip
    if interior:
        probe = _tile_fwd_body(
            x_ptr, spatial, channel_ptr, out_ptr, channels, H, W,
            y0.to(tl.int32), x0.to(tl.int32), x_strides, channel_strides,
            out_strides, KH, KW, FORM, COMBINE, PADDING, TRANSPOSED, False, ACC, BLOCK_H,
            BLOCK_W, ROWS, PIXELS, SAME_STRIDES, JOINED,
        )  # fmt: skip
    else:
        probe = _tile_fwd_body(
            x_ptr, spatial, channel_ptr, out_ptr, channels, H, W,
            y0.to(tl.int32), x0.to(tl.int32), x_strides, channel_strides,
            out_strides, KH, KW, FORM, COMBINE, PADDING, TRANSPOSED, True, ACC, BLOCK_H,
            BLOCK_W, ROWS, PIXELS, SAME_STRIDES, JOINED,
        )  # fmt: skip
    if FORM == "pixel" and COMBINE == "mul" and not TRANSPOSED:
        again = tl.max(tl.max((probe * 0.0 != 0.0).to(tl.int32), 1), 0)
        if again > 0:
            tl.debug_barrier()  # these stores come after those of other threads above
            # A compiler cannot know that ``again`` is 1: it works out the tile's position anew
            # rather than keep pointers in registers through the loop over the channels.
            _tile_fwd_exact(
                pid * again, x_base, spatial_base, channel_base, out_base, GROUPS,
                chunks, channels, H, W, x_strides, spatial_strides, channel_strides, out_strides,
                KH, KW, PADDING, SOFTMAX, ACC, BLOCK_H, BLOCK_W,
            )  # fmt: skip
