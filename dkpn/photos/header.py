"""What a photo's file says of itself before any pixel is decoded.

The content decides which format a file has; its name is never looked at. Sizes come from here, so
that a picture that is too large is refused before memory is taken for it.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from dkpn.photos.containers import (
    JPEG_FRAMES,
    heif_properties,
    jpeg_segments,
    png_chunks,
    tiff_tags,
    webp_chunks,
)
from dkpn.photos.icc import ADOBE_RGB, Encoding, coded_encoding

FORMATS = "JPEG, PNG, TIFF, WebP, AVIF, HEIC, BMP or GIF"
HEAD_BYTES = 64
"""So many bytes from the beginning are enough for `format_of`."""

CAMERA_RAW = (
    "a camera raw file; develop it first (darktable, RawTherapee, or your camera's program) and "
    "export a 16-bit TIFF or PNG, or a JPEG"
)
HDR_IMAGE = f"an HDR image already; a photo is a {FORMATS} file"
DAMAGED = "truncated or damaged; copy or export it again"

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
# How files begin that are no photos but may be handed in: what they are, and the cure.
_OTHER_STARTS = (
    ((b"\x76\x2f\x31\x01", b"#?RADIANCE", b"#?RGBE"), HDR_IMAGE),
    (
        (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM"),
        CAMERA_RAW,
    ),
    ((b"\xff\x0a", b"\0\0\0\x0cJXL "), "a JPEG XL file; export it as PNG or TIFF"),
    ((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), "a JPEG 2000 file; export it as PNG or TIFF"),
    ((b"8BPS",), "a Photoshop file; export it as TIFF or PNG"),
    ((b"%PDF",), "a PDF file; export the picture in it as PNG or JPEG"),
)
_CFA, _LINEAR_RAW, _DNG_VERSION = 32803, 34892, 50706
_LARGEST_PROFILE = 1 << 26
# EXIF orientation of (quarter turns anticlockwise, axis of the mirror that follows) in HEIF;
# axis 0 exchanges top and bottom, 1 left and right.
_HEIF_ORIENTATION = {
    (0, None): 1, (0, 1): 2, (2, None): 3, (0, 0): 4, (1, 0): 5, (3, None): 6, (3, 0): 7,
    (1, None): 8, (2, 0): 2, (2, 1): 4, (3, 1): 5, (1, 1): 7,
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What a file says of its picture.

    Args:
        format: ``JPEG``, ``PNG``, ``TIFF``, ``WebP``, ``AVIF``, ``HEIC``, ``BMP`` or ``GIF``.
        width: pixels in a row as stored, before the orientation is applied.
        height: rows as stored.
        bit_depth: bits of each channel, as stored.
        orientation: EXIF's, 1 to 8.
        icc: the embedded profile.
        encoding: a colour space declared in another way; None: sRGB.
        tags: those of a TIFF file.
    """

    format: str
    width: int
    height: int
    bit_depth: int = 8
    orientation: int = 1
    icc: bytes | None = None
    encoding: Encoding | None = None
    tags: dict[int, tuple[int, ...] | bytes] = field(default_factory=dict)


class UnknownFormatError(ValueError):
    """The content of a file says nothing of what it is."""


def format_of(head: bytes) -> str:
    """Return a photo's format, told by the first `HEAD_BYTES` bytes of its file.

    Raises:
        ValueError: it is not one of the formats; the text says what it is, and the cure.
        UnknownFormatError: nothing tells what it is.
    """
    if head[4:8] == b"ftyp":
        end = min(int.from_bytes(head[:4], "big"), len(head))
        brands = {head[start : start + 4] for start in (8, *range(16, end, 4))}
        if b"crx " in brands:
            raise ValueError(CAMERA_RAW)
        if brands & _AVIF_BRANDS:
            return "AVIF"
        if brands & _HEIC_BRANDS:
            return "HEIC"
        raise ValueError("a video or another kind of MP4 file; export a frame as PNG or JPEG")
    if head.startswith(_TIFF_STARTS):
        if head[8:10] == b"CR":  # Canon's CR2
            raise ValueError(CAMERA_RAW)
        return "TIFF"
    if head[6:14] == b"HEAPCCDR":  # Canon's CRW
        raise ValueError(CAMERA_RAW)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP"
    for start, name in (
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"GIF8", "GIF"),
        (b"BM", "BMP"),
    ):
        if head.startswith(start):
            return name
    for starts, reason in _OTHER_STARTS:
        if head.startswith(starts):
            raise ValueError(reason)
    raise UnknownFormatError(f"not a photo that can be read; export it as a {FORMATS} file")


def read_header(data: bytes) -> Header:
    """Read the header of a photo.

    Args:
        data: the file's bytes.

    Raises:
        ValueError: not a photo, an HDR image, a camera raw file, or a header that is cut off. The
            text does not name the file.
    """
    name = format_of(data[:HEAD_BYTES])
    try:
        return _READERS[name](data)
    except (struct.error, IndexError, KeyError, zlib.error) as error:
        raise ValueError(f"a {name} file, {DAMAGED}") from error


def _orientation(tags: dict[int, tuple[int, ...] | bytes]) -> int:
    value = tags.get(274, (1,))
    return value[0] if value and value[0] in range(1, 9) else 1


def _exif(blob: bytes) -> bytes:
    return blob[6:] if blob.startswith(b"Exif\0\0") else blob


def _jpeg(data: bytes) -> Header:
    profile: dict[int, bytes] = {}
    exif = b""
    for marker, payload in jpeg_segments(data):
        if marker in JPEG_FRAMES:
            depth, height, width, _ = struct.unpack_from(">BHHB", payload)
            break
        if marker == 0xE1 and payload.startswith(b"Exif\0\0") and not exif:
            exif = _exif(payload)
        elif marker == 0xE2 and payload.startswith(b"ICC_PROFILE\0") and len(payload) > 14:
            profile[payload[12]] = payload[14:]
    else:
        raise IndexError("no frame header")
    tags = tiff_tags(exif)
    icc = b"".join(profile[index] for index in sorted(profile)) or None
    encoding = ADOBE_RGB if icc is None and _says_adobe_rgb(exif, tags) else None
    return Header("JPEG", width, height, depth, _orientation(tags), icc, encoding)


def _says_adobe_rgb(exif: bytes, tags: dict[int, tuple[int, ...] | bytes]) -> bool:
    """Tell whether EXIF marks an option file of DCF 2.0: the Adobe RGB of cameras."""
    for pointer in (34665, 40965):  # Exif, then in it Interoperability
        offset = tags.get(pointer, (0,))
        tags = tiff_tags(exif, int(offset[0])) if offset else {}
    return tags.get(1) == b"R03\0"


def _png(data: bytes) -> Header:
    chunks: dict[bytes, bytes] = {}
    for name, content in png_chunks(data):
        chunks.setdefault(name, content)
    width, height, depth = struct.unpack_from(">IIB", chunks[b"IHDR"])
    icc, encoding = None, None
    # Which of several declarations counts: PNG, third edition, 4.3.
    if b"cICP" in chunks:
        encoding = coded_encoding(*chunks[b"cICP"][:2])
    elif b"iCCP" in chunks:
        compressed = chunks[b"iCCP"].partition(b"\0")[2][1:]
        icc = zlib.decompressobj().decompress(compressed, _LARGEST_PROFILE)
    elif b"sRGB" not in chunks:
        encoding = _png_numbers(chunks)
    orientation = _orientation(tiff_tags(_exif(chunks.get(b"eXIf", b""))))
    return Header("PNG", width, height, max(depth, 8), orientation, icc, encoding)


def _png_numbers(chunks: dict[bytes, bytes]) -> Encoding | None:
    """Return the encoding of the chunks gAMA and cHRM; gamma 1/2.2 stands for sRGB's curve.

    Numbers that cannot be meant are passed over, as libpng does.
    """
    stored = int.from_bytes(chunks.get(b"gAMA", b""), "big") / 100000
    if not 0.1 <= stored <= 10:
        return None
    gamma = None if abs(stored * 2.2 - 1) < 0.05 else 1 / stored
    primaries = Encoding().primaries
    if len(chunks.get(b"cHRM", b"")) == 32:
        white_x, white_y, *rest = (v / 100000 for v in struct.unpack(">8I", chunks[b"cHRM"]))
        red_x, red_y, green_x, green_y, blue_x, blue_y = rest
        # Twice the area of the triangle of primaries; that of Rec.709 is 0.22.
        area = (green_x - red_x) * (blue_y - red_y) - (blue_x - red_x) * (green_y - red_y)
        if abs(area) > 0.05 and min(white_y, red_y, green_y, blue_y) > 0:
            primaries = (*rest, white_x, white_y)
    return Encoding(primaries, gamma)


def _webp(data: bytes) -> Header:
    chunks: dict[bytes, bytes] = {}
    for name, content in webp_chunks(data):
        chunks.setdefault(name, content)
    if b"VP8X" in chunks:
        extended = chunks[b"VP8X"]
        width = int.from_bytes(extended[4:7], "little") + 1
        height = int.from_bytes(extended[7:10], "little") + 1
    elif b"VP8L" in chunks:
        bits = struct.unpack_from("<I", chunks[b"VP8L"], 1)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", chunks[b"VP8 "], 6))
    orientation = _orientation(tiff_tags(_exif(chunks.get(b"EXIF", b""))))
    return Header("WebP", width, height, 8, orientation, chunks.get(b"ICCP"))


def _tiff(data: bytes) -> Header:
    tags = tiff_tags(data)
    children = [tiff_tags(data, int(offset)) for offset in tags.get(330, ())]
    kinds = [int(found[262][0]) for found in (tags, *children) if found.get(262)]
    if _DNG_VERSION in tags or {_CFA, _LINEAR_RAW} & set(kinds):
        raise ValueError(CAMERA_RAW)
    depth = max(int(bits) for bits in tags.get(258, (1,)))
    icc = tags.get(34675)
    return Header(
        "TIFF",
        int(tags[256][0]),
        int(tags[257][0]),
        depth,
        _orientation(tags),
        icc if isinstance(icc, bytes) else None,
        tags=tags,
    )


def _heif(data: bytes, name: str) -> Header:
    own, everything = heif_properties(data)
    properties = dict(reversed(own))  # of several equal ones, the first
    colours = {content[:4]: content[4:] for kind, content in own if kind == b"colr"}
    icc = colours.get(b"prof", colours.get(b"rICC"))
    encoding = None
    if icc is None and b"nclx" in colours:
        encoding = coded_encoding(*struct.unpack_from(">HH", colours[b"nclx"]))
    width, height = struct.unpack_from(">II", properties[b"ispe"], 4)
    # Of a picture made of tiles, each tile has the codec's configuration, the whole has none.
    configuration = {**dict(reversed(everything)), **properties}
    if b"av1C" in configuration:
        flags = configuration[b"av1C"][2]
        depth = (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    else:
        depth = 8 + (configuration[b"hvcC"][17] & 7)
    turns = properties.get(b"irot", b"\0")[0] & 3
    mirror = properties[b"imir"][0] & 1 if b"imir" in properties else None
    orientation = _HEIF_ORIENTATION[turns, mirror]
    return Header(name, width, height, depth, orientation, icc, encoding)


def _gif(data: bytes) -> Header:
    return Header("GIF", *struct.unpack_from("<HH", data, 6))


def _bmp(data: bytes) -> Header:
    old = struct.unpack_from("<I", data, 14)[0] == 12
    width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
    return Header("BMP", width, abs(height))


_READERS: dict[str, Callable[[bytes], Header]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WebP": _webp,
    "TIFF": _tiff,
    "AVIF": lambda data: _heif(data, "AVIF"),
    "HEIC": lambda data: _heif(data, "HEIC"),
    "GIF": _gif,
    "BMP": _bmp,
}
