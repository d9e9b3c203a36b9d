"""Gain maps: how much brighter an HDR image is than a photo, in 8 bits a channel, with metadata.

``gain = log2((hdr + k) / (base + k))`` of linear light with the primaries of the photo, k = 1/64,
stored as ``255 (gain - minimum) / (maximum - minimum)``. A viewer adds the share of the gain that
its display has room for.

The map has three channels, because light that is recovered where one channel of a photo is clipped
has another colour than the clipped photo, and one gain for all channels cannot say that. Minimum
and maximum are shared by the channels, because readers of the XMP form know one pair only. It has
the full size of the photo: a reduced map spreads the gain of a lamp over its dark surroundings, and
readers place the samples of one differently.

References:
    ISO 21496-1:2025, Gain map metadata for image conversion; Ultra HDR Image Format v1.1 (Android),
    for XMP; Adobe, Gain Map Specification 1.0. Layout as libultrahdr 1.4 writes and reads it.
"""

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from dkpn.color import WHITE_NITS
from dkpn.outputs.xmp import HDRGM_URI, make_packet
from dkpn.strips import row_strips, scratch_array

PEAK = 10000.0 / WHITE_NITS
"""The brightest light that a gain map keeps, relative to diffuse white: where libultrahdr ends."""

OFFSET = 1.0 / 64.0
"""k, added to both images: keeps the gain of black finite. The default of the XMP form."""

ISO_SIGNATURE = b"urn:iso:std:iso:ts:21496:-1\0"
ISO_VERSION = struct.pack(">HH", 0, 0)  # minimum and writer's

_QUALITY = 95
_STEP = 1.0 / 65536.0  # minimum, maximum and headroom are multiples, so that both forms agree
_LEAST_RANGE = 1.0 / 16.0
_LEAST_HEADROOM = 1.0 / 8.0
_HEADROOM_QUANTILE = 0.9999
_HEADROOM_SAMPLES = 1 << 20
_MULTICHANNEL, _BASE_COLOURS = 0x80, 0x40


@dataclass(frozen=True)
class GainMapMetadata:
    """How the code values of a gain map are read; everything is in stops (log2).

    Attributes:
        minimum: gain of the code value 0.
        maximum: gain of the code value 255, above ``minimum``.
        headroom: stops above diffuse white that a display needs for the whole gain, above 0.
    """

    minimum: float
    maximum: float
    headroom: float

    def to_iso(self) -> bytes:
        """Return the binary form of ISO 21496-1: three channels, colours of the base image."""
        data = ISO_VERSION + bytes((_MULTICHANNEL | _BASE_COLOURS,))
        data += _fraction(0.0, "I") + _fraction(self.headroom, "I")
        channel = _fraction(self.minimum, "i") + _fraction(self.maximum, "i")
        channel += _fraction(1.0, "I") + _fraction(OFFSET, "i") + _fraction(OFFSET, "i")
        return data + 3 * channel

    def to_xmp(self) -> str:
        """Return the XMP packet that goes into the file of the gain map."""
        values = {
            "Version": "1.0",
            "GainMapMin": _decimal(self.minimum),
            "GainMapMax": _decimal(self.maximum),
            "Gamma": "1.0",
            "OffsetSDR": _decimal(OFFSET),
            "OffsetHDR": _decimal(OFFSET),
            "HDRCapacityMin": "0.0",
            "HDRCapacityMax": _decimal(self.headroom),
            "BaseRenditionIsHDR": "False",
        }
        attributes = "".join(f' hdrgm:{name}="{value}"' for name, value in values.items())
        return make_packet(f'<rdf:Description rdf:about="" xmlns:hdrgm="{HDRGM_URI}"{attributes}/>')


def make_gain_map(
    hdr: np.ndarray,
    base: np.ndarray,
    decode: Callable[[np.ndarray], np.ndarray],
    matrix: np.ndarray,
) -> tuple[np.ndarray, GainMapMetadata]:
    """Compute the gain map between a photo and an HDR image.

    Light is clipped to [0, 10000/203] after the conversion to the photo's primaries. The headroom
    is that of the brightest but 1/10000 of the pixels, so that one hot pixel does not darken the
    picture on every display.

    Args:
        hdr: (H, W, 3) floating point, finite, linear Rec.709, 1.0 = diffuse white = white of base.
        base: (H, W, 3) uint8, the photo as it is stored.
        decode: makes (h, W, 3) float32 linear light, 1.0 = white, of rows of ``base``.
        matrix: (3, 3), from linear Rec.709 to the primaries of ``base``.

    Returns:
        The map, (H, W, 3) uint8, and how it is read.
    """

    def gains() -> Iterator[tuple[slice, np.ndarray]]:
        for rows in row_strips(hdr):
            light = _in_primaries(hdr[rows], matrix)
            yield rows, np.log2((light + OFFSET) / (decode(base[rows]) + np.float32(OFFSET)))

    lowest, highest = np.inf, -np.inf
    for _, gain in gains():
        lowest, highest = min(lowest, float(gain.min())), max(highest, float(gain.max()))
    minimum = float(np.floor(lowest / _STEP) * _STEP)
    maximum = float(np.ceil(max(highest, minimum + _LEAST_RANGE) / _STEP) * _STEP)
    codes = scratch_array(hdr.shape, np.uint8)
    for rows, gain in gains():
        codes[rows] = np.rint((gain - minimum) * (255.0 / (maximum - minimum))).clip(0, 255)
    return codes, GainMapMetadata(minimum, maximum, _headroom(hdr, matrix))


def encode_gain_map(codes: np.ndarray) -> bytes:
    """Compress a gain map as JPEG with full-size chroma.

    Args:
        codes: (H, W, 3) uint8.

    Returns:
        Bytes of the file, without metadata.
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(codes).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()


def _in_primaries(hdr: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    light = hdr.astype(np.float32)
    if not np.array_equal(matrix, np.eye(3)):
        light = light @ matrix.T.astype(np.float32)
    return light.clip(0.0, np.float32(PEAK))


def _headroom(hdr: np.ndarray, matrix: np.ndarray) -> float:
    height, width = hdr.shape[:2]
    stride = int(np.ceil(np.sqrt(height * width / _HEADROOM_SAMPLES)))
    brightest = _in_primaries(hdr[::stride, ::stride], matrix).max(axis=2)
    peak = float(np.quantile(brightest, _HEADROOM_QUANTILE, method="higher"))
    stops = max(_LEAST_HEADROOM, float(np.log2(max(peak, 1.0))))
    return float(np.ceil(stops / _STEP) * _STEP)


def _fraction(value: float, numerator: str) -> bytes:
    exact = Fraction(value)
    return struct.pack(f">{numerator}I", exact.numerator, exact.denominator)


def _decimal(value: float) -> str:
    """An exact decimal without an exponent, which some readers do not know."""
    return f"{value:.17f}".rstrip("0") + ("0" if float(value).is_integer() else "")
