"""Colours of a photo, in whatever space its file declares, to sRGB: in float, never in 8 bits.

A file declares its colours by an ICC profile, or by a few numbers (the code points of AVIF, HEIC
and PNG, a gamma, a flag of a camera). Profiles are evaluated by Little CMS in float up to CIE XYZ:
those of tables pixel by pixel, those of curves and a matrix once for each code value. The rest,
from XYZ or from the numbers to linear Rec.709 and on to sRGB's encoding, is done here, with
matrices that are not rounded to the 16 bits of a profile.

Colours that sRGB does not hold (a saturated Display P3 green) are clipped: each channel of linear
Rec.709 to [0, 1], before it is encoded. The brightest channel of such a colour becomes 1, like a
clipped highlight, and its hue may shift.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dkpn.packages import require
from dkpn.primaries import REC709, rgb_to_rec709, xyz_d50_to_rec709

_SPACES = {b"GRAY": "gray", b"RGB ": "rgb", b"CMYK": "cmyk"}  # of profiles and of Little CMS
_CHANNELS = {"gray": 1, "rgb": 3, "cmyk": 4}
_RELATIVE_COLORIMETRIC, _BLACK_POINT_COMPENSATION = 1, 0x2000
# A quarter of a step of 8 bits: below it, a space counts as sRGB and pixels stay as they are.
_SAME = 0.25 / 255
_TINY_LIGHT = 1e-5
_PIXELS_AT_ONCE = 1 << 17

Decoder = Callable[[np.ndarray], np.ndarray]
"""From pixels, (N, C), to linear Rec.709, (N, 3) float32, not clipped."""

# ITU-T H.273, table 2: red, green, blue and white (x, y) of each code point.
_CODED_PRIMARIES = {
    1: REC709,
    2: REC709,  # unspecified
    4: (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, 0.310, 0.316),
    5: (0.64, 0.33, 0.29, 0.60, 0.15, 0.06, 0.3127, 0.3290),
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, 0.3127, 0.3290),
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, 0.3127, 0.3290),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.3127, 0.3290),
    22: (0.630, 0.340, 0.295, 0.605, 0.155, 0.077, 0.3127, 0.3290),
}
# Table 3: gamma of each code point; None is sRGB's curve, which viewers use for the camera curves
# of Rec.709, Rec.601 and Rec.2020 too.
_CODED_GAMMA = {
    1: None, 2: None, 4: 2.2, 5: 2.8, 6: None, 8: 1.0, 13: None, 14: None, 15: None, 17: 2.6,
}  # fmt: skip
_HDR_TRANSFER = {16: "PQ", 18: "HLG"}


@dataclass(frozen=True)
class Encoding:
    """A colour space given by numbers.

    Args:
        primaries: x, y of red, green, blue and white.
        gamma: exponent that decodes; None: the curve of sRGB.
    """

    primaries: tuple[float, ...] = REC709
    gamma: float | None = None


ADOBE_RGB = Encoding((0.64, 0.33, 0.21, 0.71, 0.15, 0.06, 0.3127, 0.3290), 2.19921875)
"""Adobe RGB (1998), which cameras declare by a flag in EXIF."""


class ProfileError(ValueError):
    """A profile is damaged, or made for another kind of pixels."""


def coded_encoding(primaries: int, transfer: int) -> Encoding:
    """Return the colour space of code points, as AVIF, HEIC and PNG files hold them.

    Args:
        primaries: ColourPrimaries of ITU-T H.273.
        transfer: TransferCharacteristics.

    Raises:
        ValueError: an HDR curve (PQ, HLG), or a code point without meaning for photos.
    """
    if transfer in _HDR_TRANSFER:
        raise ValueError(
            f"an HDR image already ({_HDR_TRANSFER[transfer]}); a photo has the range of sRGB"
        )
    if primaries not in _CODED_PRIMARIES or transfer not in _CODED_GAMMA:
        raise ValueError(
            f"the colour space with the code points {primaries} and {transfer} is not supported; "
            "convert it to sRGB"
        )
    return Encoding(_CODED_PRIMARIES[primaries], _CODED_GAMMA[transfer])


def refuse_hdr_profile(profile: bytes) -> None:
    """Raise ValueError where a profile's code points (tag ``cicp``) name an HDR curve."""
    for index in range(min(int.from_bytes(profile[128:132], "big"), 200)):
        entry = profile[132 + 12 * index : 144 + 12 * index]
        if entry[:4] == b"cicp":
            start = int.from_bytes(entry[4:8], "big")
            if (transfer := profile[start + 9 : start + 10]) and transfer[0] in _HDR_TRANSFER:
                coded_encoding(1, transfer[0])


def to_srgb(pixels: np.ndarray, source: bytes | Encoding | None) -> np.ndarray:
    """Convert pixels to sRGB.

    Args:
        pixels: (H, W, C), uint8 or uint16 up to the type's largest value; C is 1 (grey), 3 (RGB) or
            4 (CMYK, 0 = no ink).
        source: the pixels' ICC profile or encoding; None: sRGB, and for CMYK the plain formula
            ``(1 - ink) (1 - black)``.

    Returns:
        (H, W, 3) sRGB-encoded. The pixels' own type where nothing had to be converted, because
        ``source`` is sRGB to a quarter of an 8-bit step; else uint16 from uint8, and float32 in
        [0, 1] from uint16, so that rounding loses nothing.

    Raises:
        ProfileError: the profile is damaged, or made for another kind of pixels.
    """
    if pixels.shape[2] == 4 and source is None:
        return _plain_cmyk(pixels)
    if source is None or source == Encoding():
        return _three_channels(pixels)
    if isinstance(source, Encoding):
        linear = _encoding_decoder(source, pixels.dtype)
    else:
        space = profile_space(source)
        if space == "rgb":
            pixels = _three_channels(pixels)
        if _CHANNELS.get(space) != pixels.shape[2]:
            raise ProfileError(
                f"it is made for {space} pixels, these have {pixels.shape[2]} channels"
            )
        linear = _profile_decoder(source, space, pixels.dtype)
    if pixels.shape[2] < 4 and _is_srgb(linear, pixels.shape[2], pixels.dtype):
        return _three_channels(pixels)
    return _converted(pixels, linear)


def profile_space(profile: bytes) -> str:
    """Return ``gray``, ``rgb``, ``cmyk``, or as it is written the other space of a profile.

    Raises:
        ProfileError: it is no ICC profile.
    """
    if len(profile) < 128 or profile[36:40] != b"acsp":
        raise ProfileError("it is not an ICC profile")
    space = profile[16:20]
    return _SPACES.get(space, space.decode("latin-1").strip())


def _converted(pixels: np.ndarray, linear: Decoder) -> np.ndarray:
    height, width, channels = pixels.shape
    flat = np.ascontiguousarray(pixels).reshape(-1, channels)
    deep = pixels.dtype != np.uint8
    result = np.empty((height * width, 3), np.float32 if deep else np.uint16)

    def convert(start: int) -> None:
        part = slice(start, start + _PIXELS_AT_ONCE)
        encoded = _encode(linear(flat[part]))
        result[part] = encoded if deep else np.rint(encoded * 65535)

    # Little CMS and numpy release the lock of the interpreter.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(convert, range(0, len(flat), _PIXELS_AT_ONCE)))
    return result.reshape(height, width, 3)


def _encode(linear: np.ndarray) -> np.ndarray:
    """Clip linear Rec.709, (N, 3) float32, to [0, 1], and encode it as sRGB."""
    linear = np.clip(linear, 0.0, 1.0)
    curve = np.float32(1.055) * linear ** np.float32(1 / 2.4) - np.float32(0.055)
    return np.where(linear <= 0.0031308, linear * np.float32(12.92), curve)


def _encoding_decoder(source: Encoding, dtype: np.dtype) -> Decoder:
    encoded = _levels(dtype) / np.iinfo(dtype).max
    if source.gamma is None:
        curve = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    else:
        curve = encoded**source.gamma
    return _table_decoder(np.stack([curve] * 3), rgb_to_rec709(source.primaries))


def _profile_decoder(profile: bytes, space: str, dtype: np.dtype) -> Decoder:
    matrix = xyz_d50_to_rec709()
    if space == "gray":
        # Y alone, the same for each channel: rounding leaves it grey.
        light = _to_xyz(_levels(dtype)[:, None], profile, space)[:, 1]
        return _table_decoder(np.stack([light] * 3), np.eye(3))
    if space == "rgb" and (parts := _curves_and_primaries(profile, dtype)):
        curves, primaries = parts
        return _table_decoder(curves, matrix @ primaries)
    return lambda pixels: _mixed(list(_to_xyz(pixels, profile, space).T), matrix)


def _table_decoder(curves: np.ndarray, matrix: np.ndarray) -> Decoder:
    """Decode each channel by its curve, (3, levels), then multiply with a matrix, (3, 3)."""
    tables = curves.astype(np.float32)

    def decode(pixels: np.ndarray) -> np.ndarray:
        if pixels.shape[1] == 1:  # grey: white times a number, and white stays white
            return np.repeat(tables[0][pixels], 3, axis=1)
        return _mixed([tables[channel][pixels[:, channel]] for channel in range(3)], matrix)

    return decode


def _mixed(channels: list[np.ndarray], matrix: np.ndarray) -> np.ndarray:
    """Multiply three channels, (N,) float32 each, with a matrix; returns (N, 3) float32.

    Without BLAS, whose threads and those of the pool would hinder each other: 15 times faster.
    """
    first, second, third = channels
    rows = matrix.astype(np.float32)
    return np.stack([a * first + b * second + c * third for a, b, c in rows], axis=1)


def _curves_and_primaries(profile: bytes, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray] | None:
    """Take a profile apart into curves, (3, levels), and primaries, (XYZ, 3).

    That is what most profiles are, and several times faster than Little CMS. None where it is not
    so: each channel alone must move along a line from black, and colours must be sums of channels.
    """
    levels = _levels(dtype)
    ramps = np.zeros((3, len(levels), 3), dtype)
    for channel in range(3):
        ramps[channel, :, channel] = levels
    lines = _to_xyz(ramps.reshape(-1, 3), profile, "rgb").reshape(ramps.shape).astype(np.float64)
    ends = lines[:, -1]  # rows: the primaries
    lengths = (ends**2).sum(axis=1)
    if lengths.min() < _TINY_LIGHT:
        return None
    curves = np.einsum("clx,cx->cl", lines, ends) / lengths[:, None]
    picked = _grid(3, dtype)
    mixed = np.stack([curves[c][picked[:, c]] for c in range(3)], axis=1) @ ends
    error = max(
        np.abs(curves[..., None] * ends[:, None] - lines).max(),
        np.abs(mixed - _to_xyz(picked, profile, "rgb")).max(),
    )
    return (curves, ends.T) if error < _TINY_LIGHT else None


def _to_xyz(pixels: np.ndarray, profile: bytes, space: str) -> np.ndarray:
    """Convert pixels (N, C) to CIE XYZ with white D50, (N, 3) float32."""
    imagecodecs = require("imagecodecs")
    try:
        # Float, because Little CMS's shortcuts for 16 bits are wrong by up to 0.05 in shadows.
        return imagecodecs.cms_transform(
            pixels[None, :, 0] if space == "gray" else pixels[None],
            profile,
            imagecodecs.cms_profile("xyz"),
            colorspace=space,
            outcolorspace="xyz",
            outdtype="float32",
            intent=_RELATIVE_COLORIMETRIC,
            flags=_BLACK_POINT_COMPENSATION,
        )[0]
    except imagecodecs.CmsError as error:
        raise ProfileError(f"it is damaged ({error})") from error


def _levels(dtype: np.dtype) -> np.ndarray:
    return np.arange(np.iinfo(dtype).max + 1).astype(dtype)


def _grid(channels: int, dtype: np.dtype) -> np.ndarray:
    """Return colours spread over the whole cube, (N, channels)."""
    steps = np.linspace(0, np.iinfo(dtype).max, 256 if channels == 1 else 18).round().astype(dtype)
    return np.stack(np.meshgrid(*[steps] * channels, indexing="ij"), axis=-1).reshape(-1, channels)


def _is_srgb(linear: Decoder, channels: int, dtype: np.dtype) -> bool:
    """Tell whether a decoder gives what sRGB's would."""
    grid = _grid(channels, dtype)
    expected = grid / np.iinfo(dtype).max
    return bool(np.abs(_encode(linear(grid)) - expected).max() <= _SAME)


def _plain_cmyk(pixels: np.ndarray) -> np.ndarray:
    largest = np.iinfo(pixels.dtype).max
    light = largest - pixels.astype(np.uint32)
    return ((light[..., :3] * light[..., 3:] + largest // 2) // largest).astype(pixels.dtype)


def _three_channels(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
