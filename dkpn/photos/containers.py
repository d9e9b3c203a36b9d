"""What photo files are made of: JPEG segments, PNG and WebP chunks, TIFF tags, HEIF boxes.

Nothing here decodes pixels, and nothing reads beyond the bytes that are there: what is cut off ends
the walk, and its caller misses what it needs. No library on its own gives all that is needed of a
header: Pillow does not tell the bit depth and the colour code points of AVIF and PNG files, refuses
headers of TIFF files whose pixels it cannot decode, and warns where this must be silent.
"""

import re
import struct
from collections.abc import Iterator

# A marker: not a stuffed zero, a restart or a fill byte.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of a JPEG's frame header, which tells its size."""

# Bytes of one value of each TIFF type, and the struct letter of those that are whole numbers.
_TIFF_TYPES = {
    1: (1, "B"), 2: (1, ""), 3: (2, "H"), 4: (4, "I"), 5: (8, ""), 6: (1, "b"), 7: (1, ""),
    8: (2, "h"), 9: (4, "i"), 10: (8, ""), 11: (4, ""), 12: (8, ""), 13: (4, "I"), 16: (8, "Q"),
    17: (8, "q"), 18: (8, "Q"),
}  # fmt: skip


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and the content of each segment of a JPEG file before its first scan."""
    position = 2
    # Fill bytes, and stray ones between segments, are passed over, as decoders do.
    while found := _MARKER.search(data, position):
        marker, position = found[0][1], found.end()
        length = int.from_bytes(data[position : position + 2], "big")
        content = data[position + 2 : position + length]
        whole = length >= 2 and len(content) == length - 2
        if marker in (_START_OF_SCAN, _END_OF_IMAGE) or not whole:
            return
        yield marker, content
        position += length


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and the content of a PNG file's whole chunks; pixel data (IDAT) is empty."""
    position = 8
    while position + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if position + 12 + length > len(data):
            return
        yield name, b"" if name == b"IDAT" else data[position + 8 : position + 8 + length]
        position += 12 + length


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and the content of a WebP file's chunks, of pixel data the first 16 bytes."""
    position = 12
    while position + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        kept = min(length, 16) if name in (b"VP8 ", b"VP8L", b"ANMF", b"ALPH") else length
        yield name, data[position + 8 : position + 8 + kept]
        position += 8 + length + length % 2


def tiff_tags(data: bytes, offset: int = 0) -> dict[int, tuple[int, ...] | bytes]:
    """Return the tags of one directory of a TIFF file or of EXIF data.

    Args:
        data: beginning with ``II`` or ``MM``; classic or BigTIFF.
        offset: of the directory; 0: the first.

    Returns:
        Whole numbers as tuples, everything else as bytes. Tags whose values lie beyond the end are
        left out, and so is everything after a directory's end that is not there.
    """
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None or len(data) < 16:
        return {}
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    letter, inline, entry_size, count_size = ("Q", 8, 20, 8) if big else ("I", 4, 12, 2)
    position: int = offset or struct.unpack_from(order + letter, data, inline)[0]
    if not 8 <= position <= len(data) - count_size:
        return {}
    entries = struct.unpack_from(order + ("Q" if big else "H"), data, position)[0]
    position += count_size
    tags = {}
    while entries and position + entry_size <= len(data):
        tag, kind = struct.unpack_from(order + "HH", data, position)
        count = struct.unpack_from(order + letter, data, position + 4)[0]
        size, number = _TIFF_TYPES.get(kind, (0, ""))
        start = position + 4 + inline
        if size * count > inline:
            start = struct.unpack_from(order + letter, data, start)[0]
        if size and start + size * count <= len(data):
            value = data[start : start + size * count]
            tags[tag] = struct.unpack(f"{order}{count}{number}", value) if number else value
        position += entry_size
        entries -= 1
    return tags


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, start and end of the content of each box of an HEIF or AVIF file."""
    end = len(data) if end is None else min(end, len(data))
    while start + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if size == 1 and start + 16 <= end:
            size = struct.unpack_from(">Q", data, content)[0]
            content = start + 16
        size = size or end - start
        if size < content - start:
            return
        yield name, content, min(start + size, end)
        start += size


def heif_properties(data: bytes) -> tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]]:
    """Return the properties of an HEIF or AVIF file's primary image, then those of all its images.

    Each is the name and the content of a box (ISO/IEC 23008-12, 9.3).
    """
    found = {name: (start, end) for name, start, end in boxes(data)}
    start, end = found.get(b"meta", (0, 0))
    meta = {name: span for name, *span in boxes(data, start + 4, end)}
    if not {b"pitm", b"iprp"} <= meta.keys():
        return [], []
    start, end = meta[b"pitm"]
    wide = data[start : start + 1] != b"\0"
    primary = int.from_bytes(data[start + 4 : start + (8 if wide else 6)], "big")
    everything: list[tuple[bytes, bytes]] = []
    indices: list[int] = []
    for name, start, end in boxes(data, *meta[b"iprp"]):
        if name == b"ipco":
            everything = [(kind, data[first:last]) for kind, first, last in boxes(data, start, end)]
        elif name == b"ipma":
            indices += _associations(data[start:end]).get(primary, [])
    own = [everything[index - 1] for index in indices if 1 <= index <= len(everything)]
    return own, everything


def _associations(content: bytes) -> dict[int, list[int]]:
    """Return which properties (from 1) belong to which item, of an ``ipma`` box."""
    if len(content) < 8:
        return {}
    version, flags, items = content[0], content[3], int.from_bytes(content[4:8], "big")
    item_size = 4 if version else 2
    index_size = 2 if flags & 1 else 1
    result: dict[int, list[int]] = {}
    position = 8
    while items and position + item_size < len(content):
        item = int.from_bytes(content[position : position + item_size], "big")
        count = content[position + item_size]
        position += item_size + 1
        indices = []
        for _ in range(count):
            value = int.from_bytes(content[position : position + index_size], "big")
            indices.append(value & (0x7FFF if index_size == 2 else 0x7F))  # the top bit: essential
            position += index_size
        result[item] = indices
        items -= 1
    return result
