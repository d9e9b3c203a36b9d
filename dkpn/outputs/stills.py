"""HDR stills: 16-bit PNG and 10-bit AVIF in PQ with Rec.2020 primaries, and float TIFF.

References:
    SMPTE ST 2084 and ITU-R BT.2100 (PQ); ITU-T H.273 (the code points of both files); PNG, third
    edition, 11.3.2.6 (cICP); ISO 23000-22 and AV1 Image File Format.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dkpn.color import pq_encode
from dkpn.outputs.png_file import save_rgb16_png
from dkpn.packages import require
from dkpn.primaries import REC709, rgb_to_rec709
from dkpn.strips import as_stored, row_strips, scratch_array

REC2020, PQ, REC2020_NCL, IDENTITY = 9, 16, 9, 0
"""Code points of ITU-T H.273: primaries, transfer, matrix; PNG holds RGB, the identity matrix."""

MAX_AVIF_SIDE = 65536

_REC2020_PRIMARIES = (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290)
_REC709_TO_REC2020 = np.linalg.inv(rgb_to_rec709(_REC2020_PRIMARIES))
_AVIF_BITS = 10
_AVIF_QUALITY = 95
_AVIF_SPEED = 8
_CLASSIC_TIFF_BYTES = 2**32 - 2**25  # with room for strips that do not get smaller
_ICC_DATE = slice(24, 36)
_SOME_DATE = struct.pack(">6H", 2026, 1, 1, 0, 0, 0)


def pq_codes(image: np.ndarray, white_nits: float, bits: int) -> np.ndarray:
    """Encode an image as PQ code values with Rec.2020 primaries, full range.

    Colours outside Rec.709 that lie within Rec.2020 are kept; what is negative then is clipped to
    0, and light above 10000 cd/m² to 10000.

    Args:
        image: (H, W, 3) floating point, finite, linear Rec.709, 1.0 = ``white_nits``.
        white_nits: cd/m² of 1.0.
        bits: 10 or 16.

    Returns:
        (H, W, 3) uint16, in [0, 2^bits - 1], rounded to nearest.
    """
    codes = scratch_array(image.shape, np.uint16)
    for strip in row_strips(image):
        # Single precision would round the power of 79 in PQ by about one step of 16 bits.
        light = image[strip].astype(np.float64) @ (white_nits * _REC709_TO_REC2020.T)
        encoded = pq_encode(torch.from_numpy(light)).numpy()
        codes[strip] = np.rint(encoded * (2**bits - 1))
    return codes


def save_pq_png(path: Path, image: np.ndarray, white_nits: float) -> None:
    """Write a 16-bit PNG in PQ and Rec.2020 strip by strip; its cICP chunk says which these are.

    Args:
        path: file to write in place.
        image: (H, W, 3) floating point, finite, linear Rec.709, 1.0 = ``white_nits``.
        white_nits: cd/m² of 1.0.

    Raises:
        OSError: the file could not be written.
    """
    strips = (pq_codes(image[strip], white_nits, 16) for strip in row_strips(image))
    save_rgb16_png(path, image.shape[:2], strips, bytes((REC2020, PQ, IDENTITY, 1)))


def encode_pq_avif(image: np.ndarray, white_nits: float) -> bytes:
    """Make a 10-bit AVIF in PQ and Rec.2020, full range, without subsampling of chroma.

    Args:
        image: (H, W, 3) floating point, finite, linear Rec.709, 1.0 = ``white_nits``.
        white_nits: cd/m² of 1.0.

    Returns:
        Bytes of the file.

    Raises:
        ValueError: a side is beyond 65536 pixels.
    """
    imagecodecs = require("imagecodecs")

    if max(image.shape[:2]) > MAX_AVIF_SIDE:
        raise ValueError(
            f"image: an AVIF ends at {MAX_AVIF_SIDE} pixels a side, got {image.shape[1]} x "
            f"{image.shape[0]}; write .exr or .tif"
        )
    data = imagecodecs.avif_encode(
        pq_codes(image, white_nits, _AVIF_BITS),
        level=_AVIF_QUALITY,
        speed=_AVIF_SPEED,
        bitspersample=_AVIF_BITS,
        pixelformat=imagecodecs.AVIF.PIXEL_FORMAT.YUV444,
        primaries=REC2020,
        transfer=PQ,
        matrix=REC2020_NCL,
        numthreads=torch.get_num_threads(),
    )
    return bytes(data)


def save_float_tiff(path: Path, image: np.ndarray) -> None:
    """Write a TIFF of 32-bit floats strip by strip, with a linear Rec.709 profile.

    It holds exactly the values given, deflated, and is a BigTIFF where 4 GB may not suffice.

    Args:
        path: file to write in place.
        image: (H, W, 3) floating point, linear Rec.709.

    Raises:
        OSError: the file could not be written.
        ModuleNotFoundError: a codec is not installed.
    """
    require("tifffile").imwrite(
        path,
        as_stored(image, np.float32),
        photometric="rgb",
        compression="adobe_deflate",
        predictor="floatingpoint",
        rowsperstrip=next(row_strips(image)).stop,
        iccprofile=_linear_rec709_profile(require("imagecodecs")),
        bigtiff=4 * image.size > _CLASSIC_TIFF_BYTES,
        metadata=None,  # a description of the array in JSON
        software=False,
        maxworkers=1,
    )


def _linear_rec709_profile(imagecodecs: Any) -> bytes:
    # x, y and Y of red, green, blue, then of white.
    with_luminance = [(*REC709[i : i + 2], 1.0) for i in range(0, 8, 2)]
    profile = imagecodecs.cms_profile(
        "rgb",
        primaries=[number for colour in with_luminance[:3] for number in colour],
        whitepoint=with_luminance[3],
        gamma=1.0,
    )
    # The date of today would make two files of one image differ.
    return profile[: _ICC_DATE.start] + _SOME_DATE + profile[_ICC_DATE.stop :]
