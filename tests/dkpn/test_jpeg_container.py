"""JPEG files taken apart and put together."""

import io

import numpy as np
import pytest
from PIL import Image

from dkpn.outputs.jpeg_container import APP1, Segment, join_pictures, parse_jpeg
from tests.ultrahdr_files import (
    blocks,
    jpeg_of,
    photo_of,
)


def test_pillow_finds_both_pictures():
    # Of two plain pictures: where the XMP tells of a gain map, Pillow shows the photo only.
    first, second = (jpeg_of(photo_of(blocks(-6, 5, seed)).pixels) for seed in range(2))
    with Image.open(io.BytesIO(join_pictures(parse_jpeg(first), second))) as picture:
        assert picture.format == "MPO"
        assert picture.n_frames == 2
        for frame, alone in enumerate((first, second)):
            picture.seek(frame)
            assert np.array_equal(np.asarray(picture), np.asarray(Image.open(io.BytesIO(alone))))


def test_segments_round_trip():
    data = jpeg_of(photo_of(blocks(-6, 5)).pixels, progressive=True, comment=b"x")
    assert parse_jpeg(data).to_bytes() == data
    assert parse_jpeg(data + b"more").to_bytes() == data
    filled = data.replace(b"\xff\xfe", b"\xff\xff\xff\xfe", 1)
    assert parse_jpeg(filled).to_bytes() == data


def test_every_truncation_is_noticed():
    data = jpeg_of(photo_of(blocks(-6, 5, shape=(1, 1))).pixels)
    for length in range(len(data)):
        with pytest.raises(ValueError, match="JPEG file"):
            parse_jpeg(data[:length])


def test_segment_too_long():
    with pytest.raises(ValueError, match="segment 0xFFE1: at most 65533 bytes fit, got 65534"):
        Segment(APP1, b"x" * 65534).to_bytes()
