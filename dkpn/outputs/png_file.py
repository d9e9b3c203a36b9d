"""16-bit PNG files, written row by row: the codecs at hand want the whole picture in memory.

References:
    PNG, third edition: 5.2 (layout), 9.2 and 12.7 (filters and their choice).
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB = 2  # the colour type
_PIXEL_BYTES = 6
_SUB, _UP, _AVERAGE, _PAETH = 1, 2, 3, 4
_LEVEL = 6  # of zlib: its default


def save_rgb16_png(
    path: Path, size: tuple[int, int], strips: Iterable[np.ndarray], cicp: bytes
) -> None:
    """Write a 16-bit RGB picture.

    Args:
        path: file to write in place.
        size: height and width.
        strips: (h, W, 3) uint16, at least one row each, H rows together, from the top.
        cicp: the four bytes of the cICP chunk: primaries, transfer, matrix, full range.

    Raises:
        OSError: the file could not be written.
    """
    height, width = size
    compressor = zlib.compressobj(_LEVEL)
    with path.open("wb") as file:
        file.write(_SIGNATURE)
        _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, _RGB, 0, 0, 0))
        _write_chunk(file, b"cICP", cicp)
        for rows in _filtered(strips, width):
            _write_chunk(file, b"IDAT", compressor.compress(rows))
        _write_chunk(file, b"IDAT", compressor.flush())
        _write_chunk(file, b"IEND", b"")


def _write_chunk(file: BinaryIO, name: bytes, content: bytes) -> None:
    if content or name == b"IEND":
        file.write(struct.pack(">I", len(content)) + name)
        file.write(content)
        file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(name))))


def _filtered(strips: Iterable[np.ndarray], width: int) -> Iterator[bytes]:
    """Yield the rows of each strip, each with the filter of the smallest differences before it."""
    last = np.zeros((1, width * _PIXEL_BYTES), np.uint8)
    for strip in strips:
        rows = strip.astype(">u2").reshape(len(strip), -1).view(np.uint8)
        above = np.concatenate((last, rows[:-1]))
        last = rows[-1:]
        best, chosen, least = rows, np.zeros(len(rows), np.uint8), _cost(rows)
        for number, predicted in _predictions(rows, above):
            differences = rows - predicted
            cost = _cost(differences)
            better = cost < least
            best = np.where(better[:, None], differences, best)
            chosen, least = np.where(better, np.uint8(number), chosen), np.minimum(cost, least)
        yield np.concatenate((chosen[:, None], best), axis=1).tobytes()


def _cost(differences: np.ndarray) -> np.ndarray:
    """The sum of a row's differences, taken as signed: the usual guess of how well it packs."""
    # int16, for |-128| is 128.
    return np.abs(differences.view(np.int8).astype(np.int16)).sum(axis=1, dtype=np.int64)


def _predictions(rows: np.ndarray, above: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of each filter, and what it takes from every byte."""
    left, above_left = (np.roll(part, _PIXEL_BYTES, axis=1) for part in (rows, above))
    left[:, :_PIXEL_BYTES] = above_left[:, :_PIXEL_BYTES] = 0
    yield _SUB, left
    yield _UP, above
    a, b, c = (part.astype(np.int16) for part in (left, above, above_left))
    yield _AVERAGE, ((a + b) >> 1).astype(np.uint8)
    # Distances of a + b - c from a, from b and from c.
    from_a, from_b, from_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    nearest = np.where(from_b <= from_c, b, c)
    nearest = np.where((from_a <= from_b) & (from_a <= from_c), a, nearest)
    yield _PAETH, nearest.astype(np.uint8)
