import struct
import zlib

import numpy as np
import pytest

from dkpn.outputs.png_file import save_rgb16_png

imagecodecs = pytest.importorskip("imagecodecs", reason="the decoder that PNG files are read with")
CICP = bytes((9, 16, 0, 1))


def write(path, image, rows):
    strips = [image[first : first + rows] for first in range(0, len(image), rows)]
    save_rgb16_png(path, image.shape[:2], strips, CICP)
    return path.read_bytes()


def idat(data):
    """The rows as they were compressed, filters and all."""
    position, packed = 8, b""
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        if data[position + 4 : position + 8] == b"IDAT":
            packed += data[position + 8 : position + 8 + length]
        position += 12 + length
    return zlib.decompress(packed)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (13, 17)], ids=str)
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_a_decoder_finds_the_same_pixels(tmp_path, shape, rows):
    image = np.random.default_rng(0).integers(0, 65536, (*shape, 3), dtype=np.uint16)
    data = write(tmp_path / "a.png", image, rows)
    assert np.array_equal(imagecodecs.png_decode(data), image)


def test_how_it_is_cut_does_not_show(tmp_path):
    image = smooth(40, 50)
    files = [write(tmp_path / "a.png", image, rows) for rows in (1, 7, 40)]
    assert len({idat(data) for data in files}) == 1


def test_every_filter_is_chosen_where_it_fits_best_and_undone(tmp_path):
    """Rows that one filter turns into zeros but for the first pixel, among rows of noise."""
    width, rng = 64, np.random.default_rng(1)

    def noise():
        return rng.integers(0, 65536, (width, 3), dtype=np.uint16)

    def continued(row, predict):
        above, made = row.astype(">u2").tobytes(), bytearray()
        for i, b in enumerate(above):
            a, c = (made[i - 6], above[i - 6]) if i >= 6 else (50, 0)
            made.append(predict(a, b, c))
        return np.frombuffer(bytes(made), ">u2").astype(np.uint16).reshape(width, 3)

    first, second, third = noise(), noise(), noise()
    rows = [np.zeros_like(first), np.full_like(first, 0x5A5A), first, first]
    rows += [second, continued(second, lambda a, b, c: (a + b) // 2), third]
    rows.append(continued(third, paeth))
    image = np.stack(rows)
    data = write(tmp_path / "a.png", image, 3)
    lines = idat(data)
    chosen = [lines[row * (1 + 6 * width)] for row in range(len(rows))]
    assert [chosen[row] for row in (0, 1, 3, 5, 7)] == [0, 1, 2, 3, 4]
    assert np.array_equal(imagecodecs.png_decode(data), image)


def paeth(a, b, c):
    """The predictor as the standard words it."""
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    if pa <= pb and pa <= pc:
        return a
    return b if pb <= pc else c


def smooth(height, width):
    """A picture of gradients and a little noise, as photos are."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    planes = [np.sin(3 * x + y), np.cos(5 * y * x), x * y]
    noise = np.random.default_rng(0).normal(0, 0.002, (height, width, 3))
    return ((np.stack(planes, -1) * 0.4 + 0.5 + noise).clip(0, 1) * 65535).astype(np.uint16)


def test_files_are_no_larger_than_those_of_a_codec(tmp_path):
    image = smooth(200, 300)
    assert len(write(tmp_path / "a.png", image, 64)) <= 1.02 * len(imagecodecs.png_encode(image))
