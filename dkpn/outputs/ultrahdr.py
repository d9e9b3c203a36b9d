"""UltraHDR: a JPEG photo that every viewer shows, with a gain map that HDR displays add.

The gain map is announced twice, by ISO 21496-1 segments and by XMP packets, since some readers know
only one of the two; the two say the same.

References:
    Ultra HDR Image Format v1.1 (Android). ISO 21496-1:2025, annex C (JPEG). Adobe XMP part 3, 1.1.3
    (XMP in JPEG).
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from dkpn.color import linear_to_srgb, srgb_to_linear
from dkpn.outputs.gain_map import (
    ISO_SIGNATURE,
    ISO_VERSION,
    encode_gain_map,
    make_gain_map,
)
from dkpn.outputs.jpeg_container import (
    APP1,
    APP2,
    MAX_PAYLOAD,
    MPF_SIGNATURE,
    JpegParts,
    Segment,
    join_pictures,
    parse_jpeg,
)
from dkpn.outputs.xmp import container_directory, make_packet, merge_packet
from dkpn.packages import require
from dkpn.strips import row_strips, scratch_array

MAX_JPEG_SIDE = 65500
"""Pixels: where libjpeg ends."""

_XMP_SIGNATURE = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
_ORIENTATION_TAG = 0x0112
_BASE_QUALITY = 95
# Where the parts of a profile agree this well, it is a matrix and three curves, as ICC.1 has it.
_PROFILE_TOLERANCE = 2e-3
_IDENTITY_TOLERANCE = 1e-3


class BasePhoto(Protocol):
    """The photo that a result was made from.

    Attributes:
        pixels: (H, W, 3) upright and sRGB-encoded: uint8, uint16 or floating point in [0, 1].
        jpeg: the bytes of the photo's file where it is a JPEG, else None.
    """

    @property
    def pixels(self) -> np.ndarray: ...  # noqa: D102
    @property
    def jpeg(self) -> bytes | None: ...  # noqa: D102


@dataclass(frozen=True)
class _Base:
    """A base image: its file, its pixels as they are stored, and what its code values mean."""

    parts: JpegParts
    pixels: np.ndarray  # (H, W, 3) uint8
    orientation: int  # of Exif: how ``pixels`` are turned for display
    curves: np.ndarray  # (3, 256) float32, linear light of each code value
    from_rec709: np.ndarray  # (3, 3)

    def decode(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([self.curves[c][rows[..., c]] for c in range(3)], axis=-1)


def encode_ultrahdr(hdr: np.ndarray, photo: BasePhoto | None) -> bytes:
    """Make an UltraHDR file with the photo as its base image.

    A JPEG photo is kept as it is: its compressed picture, tables, Exif, colour profile and XMP are
    the same bytes, and three segments are added. What a file carries behind its picture (an older
    gain map, further views, a film) is left out, with the index and the XMP packet that describe
    it. A photo of another kind, and a JPEG that is grey, CMYK, arithmetic-coded, damaged or of a
    colour profile that is not a matrix and three curves, becomes a JPEG of quality 95 in sRGB with
    full-size chroma. Without a photo, the base is the image itself, clipped to [0, 1].

    Args:
        hdr: (H, W, 3) floating point, finite, upright, linear Rec.709, 1.0 = the white of the
            photo; clipped to [0, 10000/203] in the primaries of the photo.
        photo: what ``hdr`` was made from, of the same size.

    Returns:
        Bytes of the file.

    Raises:
        ValueError: the photo has another size, or a side is beyond 65500 pixels.
    """
    if max(hdr.shape[:2]) > MAX_JPEG_SIDE:
        raise ValueError(
            f"image: a JPEG ends at {MAX_JPEG_SIDE} pixels a side, got {hdr.shape[1]} x "
            f"{hdr.shape[0]}; write .exr or .tif"
        )
    base = _choose_base(hdr, photo)
    stored = _as_stored(hdr, base.orientation)
    if base.pixels.shape != stored.shape:
        raise ValueError(
            f"photo: expected the size of the image, {stored.shape[1]} x {stored.shape[0]} as it "
            f"is stored, got {base.pixels.shape[1]} x {base.pixels.shape[0]}"
        )
    codes, metadata = make_gain_map(stored, base.pixels, base.decode, base.from_rec709)
    described = [
        _xmp_segment(metadata.to_xmp().encode()),
        Segment(APP2, ISO_SIGNATURE + metadata.to_iso()),
    ]
    gain_map = parse_jpeg(encode_gain_map(codes)).with_metadata(described).to_bytes()
    return join_pictures(_announce(base.parts, len(gain_map)), gain_map)


def _choose_base(hdr: np.ndarray, photo: BasePhoto | None) -> _Base:
    if photo is not None and photo.jpeg is not None:
        base = _base_from_jpeg(photo.jpeg)
        if base is not None:
            return base
    if photo is None:
        linear = torch.from_numpy(hdr.astype(np.float32).clip(0.0, 1.0))
        pixels = linear_to_srgb(linear).numpy()
    else:
        pixels = photo.pixels
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(_to_uint8(pixels)).save(buffer, "JPEG", quality=_BASE_QUALITY, subsampling=0)
    base = _base_from_jpeg(buffer.getvalue())
    if base is None:
        raise RuntimeError("Pillow wrote a JPEG file that cannot serve as a base image")
    return base


def _base_from_jpeg(data: bytes) -> _Base | None:
    """Return the photo as a base image, or None where viewers would not agree on its look."""
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        parts = parse_jpeg(data)
        # Not Image.open, which refuses pictures of 179 megapixels.
        with JpegImageFile(io.BytesIO(parts.to_bytes())) as photo:
            if not parts.is_common_rgb or photo.mode != "RGB":
                return None
            orientation = photo.getexif().get(_ORIENTATION_TAG, 1)
            profile = photo.info.get("icc_profile")
            pixels = scratch_array((photo.height, photo.width, 3), np.uint8)
            for rows in row_strips(pixels):  # all at once would be two more copies
                box = (0, rows.start, photo.width, rows.stop)
                pixels[rows] = np.asarray(photo.crop(box))
    except (OSError, SyntaxError, ValueError):
        return None
    meaning = _meaning_of(profile)
    if meaning is None:
        return None
    return _Base(parts, pixels, orientation if orientation in range(1, 9) else 1, *meaning)


def _meaning_of(profile: bytes | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the curves of a profile and the matrix from Rec.709 to its primaries.

    Every channel alone is converted to XYZ: a ramp of a matrix profile goes along one line, whose
    end is the primary; how far it got is the curve. None where mixtures do not add up.
    """
    codes = np.arange(256)
    if not profile:
        curve = srgb_to_linear(torch.from_numpy(codes / 255.0)).numpy().astype(np.float32)
        return np.stack([curve] * 3), np.eye(3)
    imagecodecs = require("imagecodecs")

    def to_xyz(colours: np.ndarray, source: bytes) -> np.ndarray:
        return imagecodecs.cms_transform(
            colours[None],
            source,
            imagecodecs.cms_profile("xyz"),
            colorspace="rgb",
            outcolorspace="xyz",
            outdtype=np.float64,
            intent=imagecodecs.CMS.INTENT.RELATIVE_COLORIMETRIC,
        )[0]

    ramps = np.zeros((3, 256, 3), np.uint8)
    ramps[range(3), :, range(3)] = codes
    grey = np.repeat(codes[:, None], 3, axis=1).astype(np.uint8)
    primaries_only = np.eye(3, dtype=np.uint8) * 255
    try:
        lines = np.stack([to_xyz(ramp, profile) for ramp in ramps])  # (3, 256, XYZ)
        mixed = to_xyz(grey, profile)
        rec709 = to_xyz(primaries_only, imagecodecs.cms_profile("srgb"))  # rows: R, G, B
    except (imagecodecs.CmsError, ValueError):
        return None
    ends = lines[:, 255]  # rows: the primaries
    if np.abs(np.linalg.det(ends)) < _PROFILE_TOLERANCE:
        return None
    curves = np.einsum("cix,cx->ci", lines, ends) / (ends**2).sum(axis=1, keepdims=True)
    rebuilt = curves[:, :, None] * ends[:, None]
    additive = np.abs(rebuilt.sum(axis=0) - mixed).max() < _PROFILE_TOLERANCE
    if not additive or np.abs(rebuilt - lines).max() > _PROFILE_TOLERANCE:
        return None
    matrix = np.linalg.inv(ends.T) @ rec709.T
    if np.abs(matrix - np.eye(3)).max() < _IDENTITY_TOLERANCE:
        matrix = np.eye(3)
    return curves.astype(np.float32), matrix


def _announce(base: JpegParts, gain_map_size: int) -> JpegParts:
    """Return the base image with the XMP and ISO segments of a photo that has a gain map."""
    kept, packets = [], []
    for segment in base.header:
        payload = segment.payload
        if segment.marker == APP1 and payload.startswith(_XMP_SIGNATURE):
            packets.append(payload[len(_XMP_SIGNATURE) :])
        elif not (segment.marker == APP2 and payload.startswith((MPF_SIGNATURE, ISO_SIGNATURE))):
            kept.append(segment)
    directory = container_directory(gain_map_size)
    room = MAX_PAYLOAD - len(_XMP_SIGNATURE)
    packet = merge_packet(packets[0], directory, room) if packets else None
    if packet is None:
        # An extension without the packet that names it means nothing.
        kept = [segment for segment in kept if not segment.payload.startswith(_XMP_EXTENSION)]
        packet = make_packet(directory).encode()
    added = [_xmp_segment(packet), Segment(APP2, ISO_SIGNATURE + ISO_VERSION)]
    return JpegParts(tuple(kept), base.scans).with_metadata(added)


def _xmp_segment(packet: bytes) -> Segment:
    return Segment(APP1, _XMP_SIGNATURE + packet)


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    largest = 1.0 if np.issubdtype(pixels.dtype, np.floating) else np.iinfo(pixels.dtype).max
    scaled = pixels.astype(np.float32) * np.float32(255.0 / largest)
    return np.rint(scaled.clip(0.0, 255.0)).astype(np.uint8)


_TURNS: dict[int, Callable[[Any], Any]] = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: np.swapaxes(image, 0, 1),
    6: lambda image: np.swapaxes(image[:, ::-1], 0, 1),
    7: lambda image: np.swapaxes(image[::-1, ::-1], 0, 1),
    8: lambda image: np.swapaxes(image[::-1], 0, 1),
}


def _as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an upright image back to how a file with this Exif orientation stores it (a view)."""
    turn = _TURNS.get(orientation)
    return upright if turn is None else turn(upright)
