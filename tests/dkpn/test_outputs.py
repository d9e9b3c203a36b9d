"""Results in every format: values, what the files say of themselves, errors, full disks."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageCms

from dkpn.color import pq_decode
from dkpn.hdr_io import read_hdr
from dkpn.outputs import OUTPUT_SUFFIXES, write_result
from dkpn.outputs.stills import pq_codes

imagecodecs = pytest.importorskip("imagecodecs", reason="the codec of most formats")
open_exr = pytest.importorskip("OpenEXR", reason="the codec of .exr files")

# ITU-R BT.2087-0, with its four digits.
TO_REC2020 = np.array(
    [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
)
MATRIX_DIGITS = 3 * 0.5e-4
REC709 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)
WHITE_NITS = 203.0
FULL_DEVICE = Path("/dev/full")


def radiance(shape: tuple[int, int] = (24, 40), low: float = -10, high: float = 5) -> np.ndarray:
    rng = np.random.default_rng(0)
    stops = rng.uniform(low, high, (*shape, 3)) * np.linspace(0, 1, shape[1])[None, :, None]
    return np.exp2(stops).astype(np.float32)


def nits(codes: np.ndarray, bits: int) -> np.ndarray:
    return pq_decode(torch.from_numpy(codes.astype(np.float64)) / (2**bits - 1)).numpy()


def chunks_of(png: bytes) -> list[tuple[bytes, bytes]]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, position = [], 8
    while position < len(png):
        (length,) = struct.unpack_from(">I", png, position)
        kind, content = png[position + 4 : position + 8], png[position + 8 :][:length]
        (checksum,) = struct.unpack_from(">I", png, position + 8 + length)
        assert checksum == zlib.crc32(kind + content)
        chunks.append((kind, content))
        position += 12 + length
    return chunks


def tags_of(tiff: bytes) -> dict[int, bytes]:
    """Content of the tags of a little-endian TIFF's first directory."""
    assert tiff[:4] == b"II*\0"
    (at,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, at)
    tags = {}
    for i in range(count):
        tag, kind, number = struct.unpack_from("<HHI", tiff, at + 2 + 12 * i)
        size = number * {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1}[kind]
        place = at + 10 + 12 * i
        start = place if size <= 4 else struct.unpack_from("<I", tiff, place)[0]
        tags[tag] = tiff[start : start + size]
    return tags


# --- Values and what files say ------------------------------------------------------------------


def test_exr_is_half_where_values_fit(tmp_path):
    image = radiance()
    image[0, 0] = (-0.25, 65504.0, 0.0)
    write_result(tmp_path / "a.exr", image, white_nits=100.0)
    with open_exr.File(str(tmp_path / "a.exr"), separate_channels=True) as file:
        header = dict(file.header())
        kinds = {channel.pixels.dtype for channel in file.channels().values()}
        assert sorted(file.channels()) == ["B", "G", "R"]
    assert kinds == {np.dtype(np.float16)}
    assert header["compression"] == open_exr.ZIP_COMPRESSION
    assert header["whiteLuminance"] == 100.0
    assert np.allclose(header["chromaticities"], REC709)
    assert np.array_equal(read_hdr(tmp_path / "a.exr"), image.astype(np.float16))


def test_exr_is_float_where_a_value_is_beyond_half(tmp_path):
    image = radiance()
    image[3, 3, 1] = 65505.0
    write_result(tmp_path / "a.exr", image)
    assert np.array_equal(read_hdr(tmp_path / "a.exr"), image)


def test_hdr_rounds_to_nearest_and_clips_negatives(tmp_path):
    image = radiance()
    image[0, 0] = (-0.25, 2.0, 1.0)
    write_result(tmp_path / "a.hdr", image)
    clipped = np.maximum(image, 0)
    off = np.abs(read_hdr(tmp_path / "a.hdr") - clipped)
    # Half a step; the largest mantissa is at least 128, or rounds up to that from 127.75.
    assert (off <= clipped.max(axis=2, keepdims=True) / 255.5).all()


def test_tif_is_exact_and_says_that_it_is_linear(tmp_path):
    image = radiance()
    image[0, 0] = (-0.25, 1e6, 0.0)
    write_result(tmp_path / "a.tif", image)
    data = (tmp_path / "a.tif").read_bytes()
    assert np.array_equal(imagecodecs.tiff_decode(data), image)
    tags = tags_of(data)
    assert tags[339] == struct.pack("<3H", 3, 3, 3)  # SampleFormat: floating point
    assert tags[258] == struct.pack("<3H", 32, 32, 32)
    profile = ImageCms.ImageCmsProfile(io.BytesIO(tags[34675])).profile
    srgb = ImageCms.createProfile("sRGB")
    for name in ("red_colorant", "green_colorant", "blue_colorant"):
        # Tags hold 16 bits after the point.
        expected = getattr(srgb, name)[0]
        assert getattr(profile, name)[0] == pytest.approx(expected, abs=2.0**-15)
    grey = np.full((1, 1, 3), 128, np.uint8)
    light = imagecodecs.cms_transform(
        grey,
        tags[34675],
        imagecodecs.cms_profile("xyz"),
        colorspace="rgb",
        outcolorspace="xyz",
        outdtype=np.float64,
    )
    assert light[0, 0, 1] == pytest.approx(128 / 255, abs=2.0**-15)


def test_tiff_and_jpeg_are_the_long_forms(tmp_path):
    for short, long in ((".tif", ".tiff"), (".jpg", ".jpeg")):
        write_result(tmp_path / f"a{short}", radiance())
        write_result(tmp_path / f"b{long}", radiance())
        same = (tmp_path / f"a{short}").read_bytes() == (tmp_path / f"b{long}").read_bytes()
        assert same


def test_pq_codes_are_the_nearest():
    image = radiance()
    for bits in (10, 16):
        codes = pq_codes(image, WHITE_NITS, bits).astype(np.float64)
        light = WHITE_NITS * image.astype(np.float64) @ TO_REC2020.T
        slack = MATRIX_DIGITS * light.max()
        below = pq_decode(torch.from_numpy((codes - 0.5) / (2**bits - 1))).numpy()
        above = pq_decode(torch.from_numpy((codes + 0.5) / (2**bits - 1))).numpy()
        assert (below - slack <= light).all()
        assert (light <= above + slack).all()


@pytest.mark.parametrize(("white_nits", "expected"), [(203.0, 0.58069), (100.0, 0.50808)])
def test_white_gets_its_luminance(white_nits, expected):
    # PQ of 203 and 100 cd/m², ITU-R BT.2408 table 1 and ST 2084.
    codes = pq_codes(np.ones((1, 1, 3)), white_nits, 16)
    assert np.ptp(codes) == 0  # white stays white
    assert abs(codes[0, 0, 0] / 65535 - expected) <= 0.5e-5 + 0.5 / 65535


def test_png_is_16_bit_pq(tmp_path):
    image = radiance()
    write_result(tmp_path / "a.png", image)
    data = (tmp_path / "a.png").read_bytes()
    chunks = chunks_of(data)
    kinds = [kind for kind, _ in chunks]
    assert kinds[:2] == [b"IHDR", b"cICP"]
    assert dict(chunks)[b"cICP"] == bytes((9, 16, 0, 1))  # Rec.2020, PQ, RGB, full range
    assert dict(chunks)[b"IHDR"] == struct.pack(">IIBBBBB", 40, 24, 16, 2, 0, 0, 0)
    assert not {b"iCCP", b"sRGB", b"gAMA", b"cHRM"} & set(kinds)
    assert np.array_equal(imagecodecs.png_decode(data), pq_codes(image, WHITE_NITS, 16))


def test_avif_is_10_bit_pq(tmp_path):
    flat = radiance((6, 9)).repeat(16, axis=0).repeat(16, axis=1)
    write_result(tmp_path / "a.avif", flat)
    data = (tmp_path / "a.avif").read_bytes()
    assert data[4:12] == b"ftypavif"
    colours = data.index(b"nclx")
    assert struct.unpack_from(">HHHB", data, colours + 4) == (9, 16, 9, 0x80)  # full range
    depth = data[data.index(b"av1C") + 4 + 2]
    assert depth >> 6 & 1 == 1  # high bit depth ...
    assert depth >> 5 & 1 == 0  # ... of 10 bits
    assert depth >> 2 & 0b111 == 0  # colour, chroma of full size
    decoded = imagecodecs.avif_decode(data)
    off = decoded.astype(int) - pq_codes(flat, WHITE_NITS, 10)
    assert np.abs(off).mean() <= 1
    # The mean of a block, each of three planes to a code value; the coarsest way from them to RGB
    # is blue = luma + 1.88 chroma.
    means = off.reshape(6, 16, 9, 16, 3).mean(axis=(1, 3))
    assert np.abs(means).max() <= 1 + 1.88


@pytest.mark.parametrize("suffix", [".png", ".avif"])
def test_absolute_light_ends_at_10000_nits(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_result(path, np.full((16, 16, 3), 1e6))
    decode = imagecodecs.png_decode if suffix == ".png" else imagecodecs.avif_decode
    codes = decode(path.read_bytes())
    assert (codes == (65535 if suffix == ".png" else 1023)).all()


def test_colours_outside_rec709_stay_within_rec2020(tmp_path):
    green = np.array([[[0.0, 1.0, 0.0]]])  # of Rec.2020
    image = (green @ np.linalg.inv(TO_REC2020).T).repeat(16, axis=0).repeat(16, axis=1)
    assert image.min() < -0.1
    write_result(tmp_path / "a.png", image)
    light = nits(imagecodecs.png_decode((tmp_path / "a.png").read_bytes()), 16)
    slack = 2 * MATRIX_DIGITS * WHITE_NITS
    assert np.abs(light - green * WHITE_NITS).max() <= slack + np.diff(
        nits(pq_codes(np.ones((1, 1, 3)), WHITE_NITS, 16)[..., 0] + np.array([[0, 1]]), 16)
    )


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 20000), (20000, 3)], ids=str)
def test_thin_pictures(tmp_path, suffix, shape):
    path = tmp_path / f"a{suffix}"
    image = np.full((*shape, 3), (0.5, 2.0, 0.25), np.float32)
    write_result(path, image)
    if suffix in (".exr", ".hdr"):
        assert np.array_equal(read_hdr(path), image)  # powers of two
        return
    data = path.read_bytes()
    if suffix in (".jpg", ".jpeg"):
        decoded = imagecodecs.jpeg8_decode(data)
    else:
        kind = {".tiff": "tiff", ".tif": "tiff"}.get(suffix, suffix[1:])
        decoded = getattr(imagecodecs, f"{kind}_decode")(data)
    assert decoded.reshape(-1, 3).shape == (shape[0] * shape[1], 3)
    assert decoded.shape[:2] == shape


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
def test_the_same_image_gives_the_same_file(tmp_path, suffix):
    for name in ("a", "b"):
        write_result(tmp_path / f"{name}{suffix}", radiance())
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_any_floating_point_image_is_taken_and_left_alone(tmp_path, suffix, dtype):
    image = radiance().astype(dtype)[::-1, ::2]  # not contiguous
    before = image.copy()
    write_result(tmp_path / f"a{suffix.upper()}", image)
    assert np.array_equal(image, before)
    assert (tmp_path / f"a{suffix.upper()}").stat().st_size > 0
