"""Pixels of a photo as they are stored: no colours converted, no bits thrown away.

Files with more than 8 bits a channel are decoded by imagecodecs alone: Pillow gives 8 bits of them
without a word. Pillow decodes JPEG files, because it notices where one is cut off, and the rare
kinds that imagecodecs does not give as they are stored.
"""

import io
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from dkpn.packages import require
from dkpn.photos.header import DAMAGED, Header

_PILLOW_CLASSES = {
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
}
# Pillow's own limit on pixels is a global variable; sizes are checked before a decoder is called.
_PILLOW_LIMIT = threading.Lock()
# TIFF tags and their values.
_COMPRESSION, _PHOTOMETRIC, _PLANAR, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 259, 262, 284, 338, 339
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_SEPARATE_PLANES, _UNSIGNED, _STRAIGHT_ALPHA = 2, 1, 2
_JPEG_COMPRESSIONS = (6, 7)


@dataclass(frozen=True)
class Stored:
    """Pixels as they are stored, not yet turned upright unless the decoder did.

    Args:
        colour: (H, W, C), uint8 or uint16 over the type's whole range; C is 1 (grey), 3 (RGB) or 4
            (CMYK, 0 = no ink).
        alpha: (H, W) of the same type, opacity of colours that are not multiplied with it; or None.
        upright: whether the orientation is applied already.
    """

    colour: np.ndarray
    alpha: np.ndarray | None = None
    upright: bool = False


def check_supported(header: Header, max_pixels: int) -> None:
    """Refuse, before anything is decoded, what would not be decoded well.

    Raises:
        ValueError: no pixels, more than ``max_pixels``, or a kind of photo that is not supported;
            the text says the cure and does not name the file.
    """
    height, width = header.height, header.width
    if height * width == 0:
        raise ValueError(f"a {header.format} file, {DAMAGED} ({width} x {height} pixels)")
    if height * width > max_pixels:
        raise ValueError(
            f"{width} x {height} pixels are more than the {max_pixels} allowed; make it smaller, "
            "or raise --max-pixels"
        )
    if header.format == "TIFF":
        _check_tiff(header)
    supported = {"JPEG": (8,), "TIFF": (1, 2, 4, 8, 16), "HEIC": (8, 10, 12), "AVIF": (8, 10, 12)}
    if header.bit_depth not in supported.get(header.format, (8, 16)):
        raise ValueError(
            f"a {header.format} file with {header.bit_depth} bits a channel; export it with 8 or "
            "16 bits (TIFF or PNG)"
        )


def _check_tiff(header: Header) -> None:
    tags, depth = header.tags, header.bit_depth
    photometric = _first(tags, _PHOTOMETRIC, _BLACK_IS_ZERO)
    if _first(tags, _SAMPLE_FORMAT, _UNSIGNED) != _UNSIGNED:
        raise ValueError(
            "a TIFF file of floating-point or signed numbers; export it with 8 or 16 bits a channel"
        )
    known = (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR)
    if photometric not in known or (photometric in (_PALETTE, _CMYK, _YCBCR) and depth > 8):
        raise ValueError(
            f"a TIFF file with {depth} bits in the colour model {photometric} (of tag 262); "
            "export it as RGB"
        )


def decode(data: bytes, header: Header) -> Stored:
    """Decode a photo.

    Args:
        data: the file's bytes.
        header: of these bytes, checked by `check_supported`.

    Raises:
        ValueError: truncated or damaged; the text does not name the file.
        ModuleNotFoundError: the codec is not installed.
        MemoryError: the picture is too large for this machine.
    """
    decoder = {
        "JPEG": _decode_with_pillow,
        "PNG": _decode_png,
        "TIFF": _decode_tiff,
        "WebP": _decode_webp,
        "AVIF": _decode_avif,
        "HEIC": _decode_heic,
    }.get(header.format, _decode_with_pillow)
    try:
        return decoder(data, header)
    except (MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:
        # Codecs raise errors of any type where a file is damaged.
        raise ValueError(f"a {header.format} file, {DAMAGED} ({error})") from error


def _stored(values: np.ndarray, *, upright: bool = False) -> Stored:
    """Tell colour from alpha by the number of channels: 1 or 2 of grey, 3 or 4 of RGB."""
    values = values.reshape(*values.shape[:2], -1)
    channels = values.shape[2]
    if channels in (1, 3):
        return Stored(values, upright=upright)
    return Stored(values[..., :-1], values[..., -1], upright)


def _full_range(values: np.ndarray, bit_depth: int) -> np.ndarray:
    """Spread 10 or 12 bits over the range of uint16."""
    if values.dtype == np.uint8 or bit_depth == 16:
        return values
    largest = (1 << bit_depth) - 1
    return ((values.astype(np.uint32) * 65535 + largest // 2) // largest).astype(np.uint16)


def _decode_png(data: bytes, header: Header) -> Stored:
    return _stored(require("imagecodecs").png_decode(data))


def _decode_webp(data: bytes, header: Header) -> Stored:
    return _stored(require("imagecodecs").webp_decode(data))


def _decode_avif(data: bytes, header: Header) -> Stored:
    values = require("imagecodecs").avif_decode(data, index=0)
    return _stored(_full_range(values, header.bit_depth))


def _decode_heic(data: bytes, header: Header) -> Stored:
    heif = require("pillow_heif", "pip install pillow-heif")
    values = np.asarray(heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False))
    if values.dtype != np.uint8:
        # libheif's plugin moves them to the upper end of 16 bits.
        values = _full_range(values >> (16 - header.bit_depth), header.bit_depth)
    return _stored(values, upright=True)


def _decode_tiff(data: bytes, header: Header) -> Stored:
    tags = header.tags
    photometric = _first(tags, _PHOTOMETRIC, _BLACK_IS_ZERO)
    in_jpeg = _first(tags, _COMPRESSION, 1) in _JPEG_COMPRESSIONS
    if header.bit_depth < 8 or in_jpeg or photometric in (_PALETTE, _CMYK, _YCBCR):
        # imagecodecs gives indices of palettes, RGB of CMYK, and partly turns YCbCr and JPEG.
        return _decode_with_pillow(data, header)
    values = require("imagecodecs").tiff_decode(data)
    if _first(tags, _PLANAR, 1) == _SEPARATE_PLANES and values.ndim == 3:
        values = np.moveaxis(values, 0, -1)
    values = values.reshape(*values.shape[:2], -1)
    if photometric == _WHITE_IS_ZERO:
        values = np.invert(values)
    colours = 1 if photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) else 3
    # Colours multiplied with their alpha are composited over black already.
    straight = _STRAIGHT_ALPHA in tuple(tags.get(_EXTRA_SAMPLES, ()))[:1]
    alpha = values[..., colours] if straight and values.shape[2] > colours else None
    return Stored(values[..., :colours], alpha)


def _decode_with_pillow(data: bytes, header: Header) -> Stored:
    module, name = _PILLOW_CLASSES[header.format]
    image_class = getattr(require(module), name)
    if header.format == "JPEG":
        picture = image_class(io.BytesIO(data))
        picture.load()
    else:
        picture = _without_limit(image_class, data)
    upright = header.format == "TIFF"  # Pillow applies the orientation of these files alone
    if picture.mode == "CMYK":
        return Stored(np.asarray(picture), upright=upright)
    if picture.mode != "L":
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    return _stored(np.asarray(picture), upright=upright)


def _without_limit(image_class: Any, data: bytes) -> Any:
    """Open and load a picture without Pillow's limit on pixels."""
    pil_image = require("PIL.Image")
    with _PILLOW_LIMIT:
        limit, pil_image.MAX_IMAGE_PIXELS = pil_image.MAX_IMAGE_PIXELS, None
        try:
            picture = image_class(io.BytesIO(data))
            picture.load()
        finally:
            pil_image.MAX_IMAGE_PIXELS = limit
    return picture


def _first(tags: dict[int, tuple[int, ...] | bytes], tag: int, default: int) -> int:
    value = tags.get(tag)
    return int(value[0]) if value else default
