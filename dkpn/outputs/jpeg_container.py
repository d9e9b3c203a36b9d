"""JPEG files as a sequence of segments: taken apart, put together, several pictures in one file.

Only the headers are read. The compressed picture itself is carried from file to file byte by byte.

References:
    ITU-T T.81, annex B (markers and segments). CIPA DC-007, Multi-Picture Format (the index that
    names every picture of a file). Exif 2.32, 4.7 (which segments come first).
"""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

APP0, APP1, APP2 = 0xE0, 0xE1, 0xE2
EXIF_SIGNATURE = b"Exif\0"
MPF_SIGNATURE = b"MPF\0"
MAX_PAYLOAD = 65533
"""Bytes of a segment beyond its marker and its length."""

_SOI, _EOI, _SOS, _DHT, _COMMENT = 0xD8, 0xD9, 0xDA, 0xC4, 0xFE
_JPEG_EXTENSIONS, _ARITHMETIC_TABLES = 0xC8, 0xCC
# Baseline, extended sequential and progressive Huffman frames: what every viewer shows.
_COMMON_FRAMES = (0xC0, 0xC1, 0xC2)
# In compressed data a marker is 0xFF and a byte that is neither stuffing nor a restart marker.
_MARKER_IN_SCAN = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_MPF_PRIMARY = 0x030000
_MPF_ENTRY = struct.Struct(">IIIHH")


@dataclass(frozen=True)
class Segment:
    """One marker segment of a JPEG header.

    Attributes:
        marker: second byte of the marker, for example 0xE1 for APP1.
        payload: what follows marker and length, at most 65533 bytes.
    """

    marker: int
    payload: bytes

    @property
    def is_metadata(self) -> bool:
        """Whether this is an application segment or a comment, which decoding needs not."""
        return APP0 <= self.marker <= APP0 + 15 or self.marker == _COMMENT

    def to_bytes(self) -> bytes:
        """Return marker, length and payload as they stand in a file."""
        if len(self.payload) > MAX_PAYLOAD:
            raise ValueError(
                f"segment 0xFF{self.marker:02X}: at most {MAX_PAYLOAD} bytes fit, "
                f"got {len(self.payload)}"
            )
        return struct.pack(">BBH", 0xFF, self.marker, 2 + len(self.payload)) + self.payload


@dataclass(frozen=True)
class JpegParts:
    """One JPEG picture, taken apart at its first scan.

    Attributes:
        header: the segments before the first scan, in their order.
        scans: everything from the first scan to the end of the picture, both included.
    """

    header: tuple[Segment, ...]
    scans: bytes

    @property
    def is_common_rgb(self) -> bool:
        """Whether the picture is of the kind that every viewer shows: 8 bits, three channels."""
        frames = [
            segment
            for segment in self.header
            if 0xC0 <= segment.marker <= 0xCF
            and segment.marker not in (_DHT, _JPEG_EXTENSIONS, _ARITHMETIC_TABLES)
        ]
        if len(frames) != 1 or frames[0].marker not in _COMMON_FRAMES:
            return False
        frame = frames[0].payload
        return len(frame) >= 6 and frame[0] == 8 and frame[5] == 3

    def with_metadata(self, added: Sequence[Segment]) -> "JpegParts":
        """Return the same picture with segments after JFIF and Exif, which have to come first."""
        place = 0
        while place < len(self.header) and _comes_first(self.header[place]):
            place += 1
        return JpegParts((*self.header[:place], *added, *self.header[place:]), self.scans)

    def to_bytes(self) -> bytes:
        """Return the file."""
        segments = b"".join(segment.to_bytes() for segment in self.header)
        return bytes((0xFF, _SOI)) + segments + self.scans


def parse_jpeg(data: bytes) -> JpegParts:
    """Take the first picture of a JPEG file apart; whatever follows its end is left out.

    Args:
        data: the bytes of the file.

    Returns:
        The picture. ``parse_jpeg(data).to_bytes()`` are the bytes of ``data`` up to the end of its
        first picture, but for fill bytes between segments.

    Raises:
        ValueError: not a JPEG file, or one that ends too early.
    """
    if data[:2] != bytes((0xFF, _SOI)):
        raise ValueError("not a JPEG file: it does not begin with the bytes FF D8")
    header = []
    position = 2
    while True:
        marker, position = _next_marker(data, position)
        if marker == _SOS:
            end = _end_of_picture(data, position)
            return JpegParts(tuple(header), data[position - 2 : end])
        payload = _payload(data, position)
        header.append(Segment(marker, payload))
        position += 2 + len(payload)


def join_pictures(primary: JpegParts, secondary: bytes) -> bytes:
    """Put two pictures into one file, with the Multi-Picture Format index of both.

    The index goes behind the other metadata of the primary picture. Offsets in it count from its
    own byte-order mark, as the format wants.

    Args:
        primary: the picture that every viewer shows; an index that it carries has to be gone.
        secondary: bytes of the other picture's file.

    Returns:
        The bytes of the file.
    """
    last = max(
        (place for place, segment in enumerate(primary.header) if segment.is_metadata), default=-1
    )
    before, after = primary.header[: last + 1], primary.header[last + 1 :]

    def build(size: int, offset: int) -> bytes:
        index = Segment(APP2, _mpf_index(size, len(secondary), offset))
        return JpegParts((*before, index, *after), primary.scans).to_bytes()

    # The index has the same length whatever it says.
    size = len(build(0, 0))
    mark = 2 + sum(len(segment.to_bytes()) for segment in before) + 4 + len(MPF_SIGNATURE)
    return build(size, size - mark) + secondary


def _mpf_index(primary_size: int, secondary_size: int, secondary_offset: int) -> bytes:
    """The payload of an MPF segment: a big-endian TIFF directory of three tags and two entries."""
    undefined, long = 7, 4
    entries_at = 8 + 2 + 3 * 12 + 4
    directory = struct.pack(">HHHI4s", 3, 0xB000, undefined, 4, b"0100")
    directory += struct.pack(">HHII", 0xB001, long, 1, 2)
    directory += struct.pack(">HHII", 0xB002, undefined, 2 * _MPF_ENTRY.size, entries_at)
    directory += struct.pack(">I", 0)  # no further directory
    entries = _MPF_ENTRY.pack(_MPF_PRIMARY, primary_size, 0, 0, 0)
    entries += _MPF_ENTRY.pack(0, secondary_size, secondary_offset, 0, 0)
    return MPF_SIGNATURE + b"MM\0*" + struct.pack(">I", 8) + directory + entries


def _comes_first(segment: Segment) -> bool:
    return segment.marker == APP0 or (
        segment.marker == APP1 and segment.payload.startswith(EXIF_SIGNATURE)
    )


def _next_marker(data: bytes, position: int) -> tuple[int, int]:
    """Return the marker at a position and the position behind it; fill bytes are skipped."""
    if position >= len(data) or data[position] != 0xFF:
        raise ValueError(f"a JPEG file that is damaged or ends too early, at byte {position}")
    while position < len(data) and data[position] == 0xFF:
        position += 1
    if position >= len(data) or data[position] in (0x00, _EOI):
        raise ValueError(f"a JPEG file that is damaged or ends too early, at byte {position}")
    return data[position], position + 1


def _payload(data: bytes, position: int) -> bytes:
    length = int.from_bytes(data[position : position + 2], "big")
    if length < 2 or position + length > len(data):
        raise ValueError(f"a JPEG file that is damaged or ends too early, at byte {position}")
    return data[position + 2 : position + length]


def _end_of_picture(data: bytes, position: int) -> int:
    """Return the position behind the end-of-image marker; the position given is behind a marker."""
    while True:
        position += 2 + len(_payload(data, position))
        found = _MARKER_IN_SCAN.search(data, position)
        if found is None:
            raise ValueError("a JPEG file that ends within its compressed picture")
        position = found.end()
        if found[1][0] == _EOI:
            return position
