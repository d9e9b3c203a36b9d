"""OpenEXR files that are known to be whole."""

import errno
import os
from pathlib import Path

import numpy as np

from dkpn.packages import require
from dkpn.primaries import REC709

HALF_MAX = 65504.0
"""The largest 16-bit float."""


def save_exr(path: Path, image: np.ndarray, white_nits: float, *, half: bool) -> None:
    """Write an OpenEXR file with ZIP compression, and read it back.

    The library drops the error where the disk gets full with the last few kilobytes, and a small
    file is nothing but those; so the file is compared with the image.

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
    pixels = np.ascontiguousarray(image, dtype=np.float16 if half else np.float32)
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
    try:
        with require("OpenEXR").File(str(path)) as file:
            return np.array_equal(file.channels()["RGB"].pixels, pixels)
    except (RuntimeError, ValueError, TypeError, KeyError):
        return False


def _system_error(message: str) -> OSError:
    """Return the error of the system that the library passes on as text."""
    for code in errno.errorcode:
        if os.strerror(code) in message:
            return OSError(code, os.strerror(code))
    return OSError(errno.EIO, message)
