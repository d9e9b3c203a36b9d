"""Cuts a backward into strips of rows, or of images, whose workspace stays small.

Pure functions of sizes. A strip writes the gradients of its own rows; its workspace holds what is
needed of all pixels whose filters read one of them, so that each gradient is the same sum in the
same order, however an image is cut.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .geometry import Window, readers

__all__ = ["TILE_ROWS", "Strip", "allowed_bytes", "largest", "strip_constants", "strips"]

# Of the bytes that a backward reads and writes, what its workspace may take: 2 %, less the partial
# sums of a 3-D channel filter.
SHARE = 0.018
# Calls that read and write less than this are not cut: launches would cost more than the workspace.
FREE_BYTES = 64 * 10**6
# The highest tile of the kernels that hold their taps; strips begin at multiples of it.
TILE_ROWS = 16

_NO_STRIP: dict[str, None] = dict.fromkeys(
    ("first_image", "first_row", "rows", "held_row", "held_rows")
)


class Strip(NamedTuple):
    """Some images and some of their rows.

    ``rows`` are those of the input, ``outputs`` those of the output whose filters are centred on
    them, ``held`` those of the output that stand in a workspace. Under circular padding the last go
    beyond the image, to its other side.
    """

    first_image: int
    images: int
    rows: slice
    outputs: slice
    held: slice

    @property
    def output_rows(self) -> int:
        """Number of rows of the output."""
        return self.outputs.stop - self.outputs.start

    @property
    def held_rows(self) -> int:
        """Number of rows in the workspace."""
        return self.held.stop - self.held.start

    @property
    def arguments(self) -> dict[str, int]:
        """What kernels take of the strip."""
        return {
            "first_image": self.first_image,
            "first_row": self.outputs.start,
            "rows": self.outputs.stop - self.outputs.start,
            "held_row": self.held.start,
            "held_rows": self.held.stop - self.held.start,
        }

    def tiles(self, block_h: int) -> int:
        """How many tiles of ``block_h`` rows cover the strip's rows, times its images.

        Raises:
            ValueError: the strip begins inside a tile.
        """
        if self.outputs.start % block_h:
            raise ValueError(
                f"tiles of {block_h} rows do not fit strips that begin at row "
                f"{self.outputs.start}: give the launch table a block_h that divides {TILE_ROWS}"
            )
        return self.images * -(-self.output_rows // block_h)


def strip_constants(in_strips: bool) -> dict[str, None]:
    """What stands for those arguments in launches that know of no strips."""
    return {} if in_strips else _NO_STRIP


def allowed_bytes(needed: int, tensors: Sequence[Tensor | None]) -> int | None:
    """Bytes that the workspace of a backward may take beside the ``tensors`` that it reads and
    writes; None for any, and where so few are ``needed`` that no sum of theirs is."""
    if needed <= SHARE * FREE_BYTES:
        return None
    total = sum(_bytes(tensor) for tensor in tensors if tensor is not None)
    return None if total < FREE_BYTES else int(SHARE * total)


def _bytes(tensor: Tensor) -> int:
    """Bytes in memory; an expanded dimension takes none."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * math.prod(size for size, step in sizes if step)


def largest(cut: Sequence[Strip]) -> Strip:
    """The strip that needs most workspace."""
    if len(cut) == 1:  # the usual call
        return cut[0]
    return max(cut, key=lambda strip: strip.images * strip.held_rows)


def strips(
    images: int,
    input_size: tuple[int, int],
    output_size: tuple[int, int],
    window: Window,
    row_bytes: int,
    allowed: int | None,
    with_readers: bool = True,
    tile_rows: int = 1,
    more_rows: int = 0,
) -> list[Strip]:
    """The strips in their order; one where the workspace of all images takes no more than allowed.

    Where not even ``tile_rows`` rows fit, or fewer than twice those around them, a strip is so high
    nevertheless.

    Args:
        images: number of images.
        input_size: rows and columns of the input.
        output_size: rows and columns of the output.
        window: how the filters lie.
        row_bytes: bytes of the workspace for one row of the output of one image.
        allowed: bytes of the whole workspace; None for any.
        with_readers: whether all pixels that read a row of the strip are held, or its own only.
        tile_rows: what the first row of a strip must be a multiple of.
        more_rows: rows of the output that are held after its own at least.
    """
    (H, _), (Ho, _) = input_size, output_size
    whole = Strip(0, images, slice(0, H), slice(0, Ho), slice(0, Ho))
    image_bytes = Ho * row_bytes
    if allowed is None or images * image_bytes <= allowed:
        return [whole]
    if image_bytes <= allowed:
        count = -(-images // (allowed // image_bytes))
        size = -(-images // count)
        return [
            Strip(first, min(size, images - first), slice(0, H), slice(0, Ho), slice(0, Ho))
            for first in range(0, images, size)
        ]
    reach = 2 * window.reach(0) if with_readers else 0
    fitting = allowed // row_bytes - max(more_rows, 1)
    height = fitting * window.stride[0] // window.scale - reach
    height = max(height // tile_rows * tile_rows, tile_rows, -(-reach // tile_rows) * tile_rows)
    count = -(-H // height)
    height = min(height, -(-H // (count * tile_rows)) * tile_rows)
    cut = []
    for first in range(0, H, height):
        rows = slice(first, min(first + height, H))
        outputs = window.centred(rows, H, Ho)
        held = readers(window, 0, rows, H, Ho) if with_readers else outputs
        held = slice(min(held.start, outputs.start), max(held.stop, outputs.stop))
        if more_rows:
            held = slice(held.start, max(held.stop, min(outputs.stop + more_rows, Ho)))
        if held.stop - held.start >= Ho:
            held = slice(0, Ho)
        cut.append((rows, outputs, held))
    return [Strip(image, 1, *parts) for image in range(images) for parts in cut]
