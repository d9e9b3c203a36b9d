"""Cuts the backward of the fused head into patches whose filters fit into the workspace.

Pure functions of sizes.
"""

from dataclasses import dataclass

from .call import Call

__all__ = ["WORKSPACE_BYTES", "Patch", "patches"]

# What the filters of a patch may take, with those around it.
WORKSPACE_BYTES = 48 * 2**20


@dataclass(frozen=True)
class Patch:
    """Some images and a rectangle of their pixels, and the rectangle of all pixels whose filters
    read a pixel of it.

    Under circular padding that one goes beyond the image, to its other side.
    """

    images: slice
    rows: slice
    columns: slice
    readers: tuple[slice, slice]

    @property
    def image_count(self) -> int:
        """Number of images."""
        return self.images.stop - self.images.start

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def readers_size(self) -> tuple[int, int]:
        """Rows and columns of the rectangle of readers."""
        rows, columns = self.readers
        return rows.stop - rows.start, columns.stop - columns.start

    @property
    def pixels(self) -> int:
        """Pixels whose filters stand in the workspace."""
        return self.image_count * self.readers_size[0] * self.readers_size[1]


def patches(call: Call, workspace: int = WORKSPACE_BYTES) -> list[Patch] | None:
    """The patches in their order; None where not even one pixel's readers fit."""
    B, (H, W) = call.input.shape[0], call.size
    most = workspace // (call.weight.shape[0] * call.sum_dtype.itemsize)  # pixels
    reach = [sum(_around(call, axis)) for axis in (0, 1)]
    rows, columns = (
        part.stop - part.start
        for part in (_readers(call, 0, slice(0, H)), _readers(call, 1, slice(0, W)))
    )
    images, height, width = 1, H, W
    if rows * columns <= most:
        images = min(B, most // (rows * columns))
    else:
        # the widest strip, unless it were so low that most of it are readers around it
        height, side = most // columns - reach[0], int(most**0.5)
        if height < max(1, 2 * reach[0]) and side - reach[1] < W:
            height, width = side - reach[0], side - reach[1]
        if width < 1 or height < 1:
            return None
        height = min(H, height)
    return [
        Patch(
            slice(image, min(image + images, B)),
            part_rows := slice(y, min(y + height, H)),
            part_columns := slice(x, min(x + width, W)),
            (_readers(call, 0, part_rows), _readers(call, 1, part_columns)),
        )
        for image in range(0, B, images)
        for y in range(0, H, height)
        for x in range(0, W, width)
    ]


def _readers(call: Call, axis: int, part: slice) -> slice:
    """Rows or columns whose filters read one of ``part``."""
    before, after = _around(call, axis)
    first, last, size = part.start - before, part.stop + after, call.size[axis]
    if call.window.padding_mode == "circular":
        return slice(first, last)
    return slice(max(first, 0), min(last, size))


def _around(call: Call, axis: int) -> tuple[int, int]:
    """How many pixels before and after a part its readers reach."""
    window = call.window
    if window.padding_mode == "reflect":  # a mirrored pixel is read by taps of the other side
        return window.reach(axis), window.reach(axis)
    before = window.before[axis]
    return (window.kernel_size[axis] - 1) * window.dilation[axis] - before, before
