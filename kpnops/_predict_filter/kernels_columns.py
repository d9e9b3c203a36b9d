"""From a tile of logits, as a matrix product leaves it, to one vector of pixels for each tap.

A product on tensor cores spreads a pixel's taps over the lanes of a warp. Taken apart into columns,
each lane has all taps of its own pixels: maximum, sum and filter need no other lane, and the offset
of a tap is a constant.
"""

import triton
import triton.language as tl


@triton.jit
def columns_of(tile, PIXELS: tl.constexpr, COLUMNS: tl.constexpr):
    """The columns of ``tile`` [PIXELS, COLUMNS] as a tuple of [PIXELS]."""
    return _apart((tile,), PIXELS, COLUMNS, 1)


@triton.jit
def _apart(parts, PIXELS: tl.constexpr, COLUMNS: tl.constexpr, COUNT: tl.constexpr):
    if COLUMNS == 1:
        vectors = ()
        for part in tl.static_range(COUNT):
            vectors = vectors + (tl.reshape(parts[part], (PIXELS,)),)
        return vectors
    else:
        halves = ()
        for part in tl.static_range(COUNT):
            pairs = tl.reshape(parts[part], (PIXELS, 2, COLUMNS // 2))
            low, high = tl.split(tl.permute(pairs, (0, 2, 1)))
            halves = halves + (low, high)
        return _apart(halves, PIXELS, COLUMNS // 2, COUNT * 2)
