"""Banded products on tensor cores: stride 1, dilation 1, 16-bit types, many channels to a group.

For BLOCK_W pixels of a row and one row of taps the spatial filter is a matrix (window x pixels)
with KW non-zero diagonals, and the sum over those taps is its product with a tile (channels x
window) of the input, added up in float32. The window of WINDOW columns starts MARGIN to the left of
the pixels: that is aligned, and serves up to 17 columns of taps. A program owns ROWS rows of pixels
and BLOCK_C channels; one tile of the input serves every row that reads it.

Zeros beside the diagonals meet every value of the window, and 0 * inf is NaN: what is not finite
shows in a result that is not, and such a tile is computed once more by ``kernels_band_exact.py``.

A factor that is formed in float32 (a probability, the product of gradient and gain) is the sum of
two values of the operands' dtype, and each takes a product of its own: within 2^-17 of the factor
in bfloat16. OPERAND is the dtype of the products, that of the tensors but in Triton's interpreter,
whose ``tl.dot`` knows no bfloat16. FORM is "none" or "pixel" (4-D channel filter, "mul").
"""

import triton
import triton.language as tl

BLOCK_W = tl.constexpr(16)
WINDOW = tl.constexpr(32)
MARGIN = tl.constexpr(8)
# Two rows of pixels, and of the window, in the gradients of the filters.
PIXELS = tl.constexpr(32)
WINDOWS = tl.constexpr(64)


@triton.jit
def band_position(
    pid, channels, GROUPS, H, W, first_image, first_row, rows, ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Image, group, first channel of the group's, row and column of a program's tile, of a strip if
    there is one; 64-bit for offsets, but found by 32-bit divisions."""
    blocks_w = tl.cdiv(W, BLOCK_W)
    blocks_c = tl.cdiv(channels, BLOCK_C)
    blocks_h = tl.cdiv(H, ROWS)
    if rows is not None:
        blocks_h = tl.cdiv(rows, ROWS)
    x0 = (pid % blocks_w) * BLOCK_W
    pid = pid // blocks_w
    c0 = (pid % blocks_c) * BLOCK_C
    pid = pid // blocks_c
    y0 = (pid % blocks_h) * ROWS
    pid = pid // blocks_h
    b, group = (pid // GROUPS).to(tl.int64), (pid % GROUPS).to(tl.int64)
    if rows is not None:
        b += first_image
        y0 += first_row
    return b, group, c0.to(tl.int64), y0.to(tl.int64), x0.to(tl.int64)


@triton.jit
def band_load(ptr, mask, MASKED: tl.constexpr):
    """Load as stored, with the mask only where the tile needs one."""
    if MASKED:
        value = tl.load(ptr, mask=mask, other=0.0)
    else:
        value = tl.load(ptr)
    return value


@triton.jit
def two_terms(value, OPERAND: tl.constexpr):
    """A float32 value as the sum of two of bfloat16.

    Rounded by its bits: where a conversion's result is needed in float32, machines are slow at it.
    NaN and infinity leave NaN in the second.
    """
    bits = value.to(tl.uint32, bitcast=True)
    high = ((bits + 0x8000) & 0xFFFF0000).to(tl.float32, bitcast=True)
    low = (value - high).to(tl.bfloat16)
    return high.to(OPERAND), low.to(OPERAND)


@triton.jit
def scaled_terms(value, gain, FORM: tl.constexpr, OPERAND: tl.constexpr):
    """``value gain``, or ``value`` where FORM is "none", in two terms.

    Of bfloat16 alone that is exact, and takes three instructions for two products: the second term
    is what rounding left of the first. Only float32 factors, and the interpreter, go by float32.
    """
    if FORM == "pixel" and value.dtype == OPERAND and gain.dtype == OPERAND:
        high = value * gain
        low = tl.fma(value, gain, -high)
    else:
        product = value.to(tl.float32)
        if FORM == "pixel":
            product = product * gain.to(tl.float32)
        high, low = two_terms(product, OPERAND)
    return high, low


@triton.jit
def band_softmax_terms(
    tap_ptrs, step, mask, KH: tl.constexpr, KW: tl.constexpr, PIXELS: tl.constexpr
):
    """Largest logit of each pixel, and 1 / sum_t exp(s - m), both [1, PIXELS].

    ``tap_ptrs``, [1, PIXELS], points to the first logit; ``step`` lies between two.
    """
    COLUMNS: tl.constexpr = triton.next_power_of_2(KW)
    offs_t = tl.arange(0, COLUMNS)[:, None]
    mask = (offs_t < KW) & mask
    tap_ptrs += offs_t * step
    highest = tl.full((COLUMNS, PIXELS), float("-inf"), tl.float32)
    for i in range(KH):
        logits = tl.load(tap_ptrs + i * KW * step, mask=mask, other=0.0)
        highest = tl.maximum(highest, logits.to(tl.float32))
    highest = tl.where(offs_t < KW, highest, float("-inf"))
    highest = tl.max(highest, 0, keep_dims=True)
    total = tl.zeros((COLUMNS, PIXELS), tl.float32)
    for i in range(KH):
        logits = tl.load(tap_ptrs + i * KW * step, mask=mask, other=0.0)
        total += tl.exp(logits.to(tl.float32) - highest)
    return highest, 1.0 / tl.sum(tl.where(offs_t < KW, total, 0.0), 0, keep_dims=True)


@triton.jit
def band_place(KW: tl.constexpr, TRANSPOSED: tl.constexpr, PERIOD: tl.constexpr):
    """Which tap stands where in the matrix: its column, and the column of the window, from the
    tile's first, that it joins to a pixel; the number of the block of PERIOD rows of the matrix, -1
    where there is no tap. All [PERIOD, BLOCK_W].

    No two taps of a pixel lie PERIOD apart: PERIOD rows hold them all, and a block each of them.
    """
    offs_m = tl.arange(0, PERIOD)[:, None]
    offs_w = tl.arange(0, BLOCK_W)[None, :]
    distance = offs_m - MARGIN - offs_w
    if TRANSPOSED:
        distance = -distance
    tap = (distance + (KW - 1) // 2) & (PERIOD - 1)
    present = tap < KW
    tap = tl.minimum(tap, KW - 1)  # some address that may be read
    distance = tap - (KW - 1) // 2
    if TRANSPOSED:
        distance = -distance
    column = offs_w + distance
    return tap, column, tl.where(present, (column + MARGIN) // PERIOD, -1)


@triton.jit
def band_matrix(values, number, PERIOD: tl.constexpr):
    """[WINDOW, BLOCK_W] from the taps [PERIOD, BLOCK_W] at their places, 0 elsewhere."""
    here = tl.arange(0, WINDOW // PERIOD)[:, None, None] == number[None, :, :]
    return tl.reshape(tl.where(here, values[None, :, :], 0.0), (WINDOW, BLOCK_W))


@triton.jit
def pair_offs(y0, x0, strides):
    """64-bit offsets of the pixels of a tile, [1, PIXELS]."""
    offs_n = tl.arange(0, PIXELS)[None, :]
    row_step = tl.cast(strides[2], tl.int64)
    offs = (offs_n % BLOCK_W) * tl.cast(strides[3], tl.int64)
    return y0 * row_step + x0 * strides[3] + tl.where(offs_n < BLOCK_W, 0, row_step) + offs


@triton.jit
def pair_place(KW: tl.constexpr):
    """As ``band_place``, for the first two rows of the window and two rows of pixels: row and
    column of the tap, and the number of its block, all [2 * PERIOD, PIXELS]."""
    PERIOD: tl.constexpr = 8 if KW <= 8 else 16 if KW <= 16 else 32
    offs_m = tl.arange(0, 2 * PERIOD)[:, None]
    offs_n = tl.arange(0, PIXELS)[None, :]
    column = offs_n % BLOCK_W
    tap = (offs_m % PERIOD - MARGIN - column + (KW - 1) // 2) & (PERIOD - 1)
    number = (column + tap - (KW - 1) // 2 + MARGIN) // PERIOD
    return offs_m // PERIOD - offs_n // BLOCK_W, tap, tl.where(tap < KW, number, -1)


@triton.jit
def pair_matrix(
    taps,
    highest,
    scale,
    mask_pixels,
    rows,
    KW: tl.constexpr,
    SOFTMAX: tl.constexpr,
    PAIR: tl.constexpr,
):
    """The taps that join two rows of the window to two rows of pixels, [WINDOWS, PIXELS]: as
    stored, or probabilities in float32. One load for each tap and pixel.

    ``taps``: row and number of the block, pointers for the first pair, their step from row to row.
    """
    PERIOD: tl.constexpr = 8 if KW <= 8 else 16 if KW <= 16 else 32
    row, number, ptrs, step = taps
    present = (number >= 0) & (row >= -2 * PAIR) & (row < rows - 2 * PAIR) & mask_pixels
    values = tl.load(ptrs + 2 * PAIR * step, mask=present, other=0.0)
    if SOFTMAX:
        values = tl.where(present, tl.exp(values.to(tl.float32) - highest) * scale, 0.0)
    values = tl.reshape(values, (2, 1, PERIOD, PIXELS))
    number = tl.reshape(tl.where(present, number, -1), (2, 1, PERIOD, PIXELS))
    here = tl.arange(0, WINDOW // PERIOD)[None, :, None, None] == number
    return tl.reshape(tl.where(here, values, 0.0), (WINDOWS, PIXELS))
