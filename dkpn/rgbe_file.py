"""Radiance RGBE files, written row by row.

References:
    Greg Ward: "Real Pixels", Graphics Gems II, 1991; "Radiance File Formats", the picture file.
"""

import re
from pathlib import Path

import numpy as np

from dkpn.packages import require
from dkpn.strips import row_strips

# The largest mantissa, 255, at the largest exponent byte, 255: 255 * 2^(255 - 136).
RGBE_MAX = 255.0 * 2.0**119
"""The largest value of a pixel."""

_RGBE_MIN = 1e-32  # the codec stores smaller values as black
_SIZE_LINE = re.compile(rb"\n\n-Y \d+ \+X \d+\n")


def save_rgbe(path: Path, image: np.ndarray) -> None:
    """Write a Radiance picture, each value rounded to nearest; no copy of the image is made.

    Args:
        path: file to write in place.
        image: (H, W, 3) floating point, finite, at most `RGBE_MAX`; values below 0 become 0.

    Raises:
        OSError: the file could not be written.
        ModuleNotFoundError: imagecodecs is not installed.
    """
    imagecodecs = require("imagecodecs")
    height, width = image.shape[:2]
    with path.open("wb") as file:
        for strip in row_strips(image):
            rows = _nearest(np.maximum(image[strip], 0).astype(np.float64))
            # The codec's own guess of the size is too small for noise in short rows.
            room = 128 + len(rows) * (16 + 8 * width)
            data = imagecodecs.rgbe_encode(rows, header=True, rle=True, out=room)
            size = _SIZE_LINE.search(data)
            assert size is not None
            if strip.start == 0:
                file.write(data[: size.start()] + b"\n\n-Y %d +X %d\n" % (height, width))
            file.write(data[size.end() :])


def _nearest(image: np.ndarray) -> np.ndarray:
    """Round to the nearest values that RGBE holds; the codec alone would truncate."""
    mantissa, exponent = shared_exponent(image)
    rounded = np.ldexp(mantissa, exponent - 8)
    dark = image.max(axis=2, keepdims=True) < _RGBE_MIN
    return np.where(dark, 0.0, rounded).astype(np.float32)


def shared_exponent(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round to three mantissas, of 0 to 255, and one exponent a pixel.

    Args:
        image: (H, W, 3) float64, at least 0.

    Returns:
        Mantissas (H, W, 3), whole numbers in float64, and exponents (H, W, 1), integers: the value
        is ``mantissa * 2^(exponent - 8)``.
    """
    largest = image.max(axis=2, keepdims=True)
    _, exponent = np.frexp(largest)
    # A mantissa that rounds up to 256 needs the next exponent.
    exponent += np.rint(np.ldexp(largest, 8 - exponent)) > 255
    return np.rint(np.ldexp(image, 8 - exponent)), exponent
