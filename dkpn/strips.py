"""Large arrays: worked through in strips of rows, or kept in a file where memory is short."""

import errno
import math
import os
import tempfile
from collections.abc import Iterator

import numpy as np
from numpy.typing import DTypeLike

_STRIP_VALUES = 1 << 20
_IN_MEMORY = 200_000_000  # bytes of an array that lies on disk where it is larger


def row_strips(image: np.ndarray) -> Iterator[slice]:
    """Cut an image (H, W, C) into strips of whole rows, about a million numbers each.

    Yields:
        The rows of each strip, from the top.
    """
    rows = max(1, _STRIP_VALUES // max(1, math.prod(image.shape[1:])))
    for first in range(0, len(image), rows):
        yield slice(first, min(first + rows, len(image)))


def memory_bytes(size: int) -> int:
    """Return the memory that a :func:`scratch_array` of so many bytes takes: none above 200 MB."""
    return size if size <= _IN_MEMORY else 0


def scratch_array(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Make an array to fill; above 200 MB it lies in a temporary file, which goes with it.

    Args:
        shape: of the array.
        dtype: of its numbers.

    Returns:
        The array, with any content.

    Raises:
        OSError: there is no room for the file.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if memory_bytes(size) == size:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="dkpn-") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                # A page that finds no room when it is written to ends the process.
                os.posix_fallocate(file.fileno(), 0, size)
            # The array keeps the file, which has no name any more, until nothing refers to it.
            return np.memmap(file, dtype, "r+", shape=shape)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            message = (
                f"the folder of temporary files, {tempfile.gettempdir()}, has no room for "
                f"{size / 1e9:.1f} GB; make room, or name another folder in the variable TMPDIR"
            )
            raise OSError(errno.ENOSPC, message) from error


def as_stored(image: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Return an image (H, W, C) contiguous and of another type, itself if it is that already."""
    if image.dtype == dtype and image.flags.c_contiguous:
        return image
    stored = scratch_array(image.shape, dtype)
    for strip in row_strips(image):
        stored[strip] = image[strip]
    return stored
