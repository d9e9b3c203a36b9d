"""How the fast kernels load and store adjacent pixels: a thread owns PIXELS of a row, what they
read of a row is loaded once, and two at a time where rows begin at even offsets (JOINED)."""

import triton
import triton.language as tl

from .kernels_index import as_stored, source_index


@triton.jit
def tile_load(ptr, mask, MASKED: tl.constexpr, ACC: tl.constexpr):
    """Load as ACC, with the mask only where the tile needs one."""
    if MASKED:
        value = tl.load(ptr, mask=mask, other=0.0)
    else:
        value = tl.load(ptr)
    return value.to(ACC)


@triton.jit
def even_strides(strides):
    """Strides that are even, but 1 in the last axis: as the compiler sees it, which must know it to
    join loads. Of multiples of 16 it knows by itself."""
    return (strides[0] // 2 * 2, strides[1] // 2 * 2, strides[2] // 2 * 2, 1)


@triton.jit
def _load_run(
    ptr,
    offs,
    stride,
    x,
    W,
    y_inside,
    COLUMN: tl.constexpr,
    SIZE: tl.constexpr,
    MASKED: tl.constexpr,
    ACC: tl.constexpr,
):
    """Columns COLUMN ... COLUMN + SIZE - 1 from each thread's first pixel, one load; SIZE is 1 or
    2."""
    if SIZE == 1:  # the test of a column in brackets: all rows share it
        mask = y_inside & ((x + COLUMN >= 0) & (x + COLUMN < W))
        values = (tile_load(ptr + (offs + COLUMN * stride), mask, MASKED, ACC),)
    else:
        part = COLUMN + tl.arange(0, SIZE)[None, None, :]
        columns = x[:, :, None] + part
        mask = y_inside[:, :, None] & ((columns >= 0) & (columns < W))
        value = tile_load(ptr + (offs[:, :, None] + part * stride), mask, MASKED, ACC)
        first, second = tl.split(value)
        values = (first, second)
    return values


@triton.jit
def load_columns(
    ptr,
    offs,
    stride,
    x,
    W,
    y_inside,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    PIXELS: tl.constexpr,
    MASKED: tl.constexpr,
    ACC: tl.constexpr,
    JOINED: tl.constexpr = True,
):
    """Columns FIRST ... FIRST + COUNT - 1 from each thread's first pixel, 0 outside the image: a
    tuple.

    The first pixel stands at column ``x``, a multiple of PIXELS, and ``offs`` from ``ptr``: 64-bit
    in loops, where columns are then constants beside one address. If PIXELS is 2 and JOINED, two
    columns of which the first is even are one load.
    """
    values = ()
    for k in tl.static_range(COUNT):
        if PIXELS == 2 and JOINED and k >= (FIRST + k) % 2 and k - (FIRST + k) % 2 + 2 <= COUNT:
            if (FIRST + k) % 2 == 0:
                values = values + _load_run(
                    ptr, offs, stride, x, W, y_inside, FIRST + k, 2, MASKED, ACC
                )
        else:
            values = values + _load_run(
                ptr, offs, stride, x, W, y_inside, FIRST + k, 1, MASKED, ACC
            )
    return values


@triton.jit
def load_padded_columns(
    ptr,
    offs_row,
    stride,
    x0,
    x,
    W,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    PADDING: tl.constexpr,
    ACC: tl.constexpr,
):
    """The same under other paddings than zeros, one load for each column; ``ptr`` stands at column
    ``x0``.

    Every index that they give lies in the image. So no load has a mask: 49 of them, which the
    compiler cannot know to hold, filled the registers beside 49 taps.
    """
    values = ()
    for k in tl.static_range(COUNT):
        column, _inside = source_index(x + (FIRST + k), W, PADDING)
        offs = offs_row + (column - x0) * stride
        values = values + (tile_load(ptr + offs, None, False, ACC),)
    return values


@triton.jit
def store_pixels(
    ptr,
    offs,
    stride,
    values,
    START: tl.constexpr,
    x,
    W,
    y_inside,
    PIXELS: tl.constexpr,
    MASKED: tl.constexpr,
    JOINED: tl.constexpr = True,
):
    """Store ``values[START]`` ... as a thread's PIXELS pixels, in the pointer's dtype."""
    if PIXELS == 2 and JOINED:
        value = tl.join(values[START], values[START + 1])
        part = tl.arange(0, PIXELS)[None, None, :]
        mask = y_inside[:, :, None] & (x[:, :, None] + part < W)
        tile_store(ptr + (offs[:, :, None] + part * stride), value, mask, MASKED)
    else:
        for p in tl.static_range(PIXELS):
            mask = y_inside & (x + p < W)
            tile_store(ptr + (offs + p * stride), values[START + p], mask, MASKED)


@triton.jit
def tile_store(ptr, value, mask, MASKED: tl.constexpr):
    """Store in the pointer's dtype, with the mask only where the tile needs one."""
    value = as_stored(value, ptr)
    if MASKED:
        tl.store(ptr, value, mask=mask)
    else:
        tl.store(ptr, value)
