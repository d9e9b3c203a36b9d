"""OpenEXR files that are known to be whole."""

import errno
import os
from pathlib import Path

import numpy as np

from dkpn.packages import require
from dkpn.primaries import REC709
from dkpn.strips import as_stored, row_strips

HALF_MAX = 65504.0
"""The largest 16-bit float."""


def save_exr(path: Path, image: np.ndarray, white_nits: float, *, half: bool) -> None:
    """Write an OpenEXR file with ZIP compression, and read it back.

    The library drops the error where the disk gets full with the last few kilobytes, and a small
    file is nothing but those; so the file is compared with the image. What is written lies in a
    temporary file where it is large.

    Args:
        path: file to write in place.
        image: (H, W, 3) floating point, linear Rec.709, without NaN; beyond +-65504 only without
            ``half``.
        white_nits: cd/m² of 1.0, for the attribute ``whiteLuminance``.
        half: store 16-bit floats instead of 32-bit ones.

    Raises:
        OSError: the file could not be written, or not whole.
        ModuleNotFoundError: OpenEXR is not installed.
    """
    open_exr = require("OpenEXR")
    pixels = as_stored(image, np.float16 if half else np.float32)
    header = {
        "compression": open_exr.ZIP_COMPRESSION,
        "type": open_exr.scanlineimage,
        "chromaticities": REC709,
        "whiteLuminance": white_nits,
    }
    try:
        open_exr.File(header, {"RGB": pixels}).write(str(path))
    except RuntimeError as error:
        raise _system_error(str(error)) from error
    if not _holds(path, pixels):
        raise OSError(errno.ENOSPC, "the file came out incomplete, as on a full disk")


def _holds(path: Path, pixels: np.ndarray) -> bool:
    # The library's newer interface reads whole pictures only.
    numbers = require("Imath").PixelType
    kind = numbers(numbers.HALF if pixels.dtype == np.float16 else numbers.FLOAT)
    try:
        file = require("OpenEXR").InputFile(str(path))
    except OSError:
        return False
    try:
        for strip in row_strips(pixels):
            rows = pixels[strip]
            planes = file.channels("RGB", kind, strip.start, strip.stop - 1)
            for channel, plane in enumerate(planes):
                stored = np.frombuffer(plane, pixels.dtype).reshape(rows.shape[:2])
                if not np.array_equal(stored, rows[..., channel]):
                    return False
    except OSError:
        return False
    finally:
        file.close()
    return True


def _system_error(message: str) -> OSError:
    """Return the error of the system that the library passes on as text."""
    for code in errno.errorcode:
        if os.strerror(code) in message:
            return OSError(code, os.strerror(code))
    return OSError(errno.EIO, message)
