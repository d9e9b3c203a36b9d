"""Photos of every format and kind: `dkpn.photos.reading.read_photo`."""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from dkpn.hdr_io import write_png
from dkpn.photos import Photo, read_photo
from dkpn.photos.icc import to_srgb

imagecodecs = pytest.importorskip("imagecodecs", reason="decodes most photos")
Image = pytest.importorskip("PIL.Image", reason="decodes JPEG files")
ImageOps = pytest.importorskip("PIL.ImageOps")

ORIENTATION = 0x0112
P3, SRGB_CURVE = 12, 13  # code points


def photo(shape: tuple[int, int] = (6, 10)) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, size=(*shape, 3), dtype=np.uint8)


def deep(channels: int = 3, shape: tuple[int, int] = (6, 10)) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 65536, (*shape, channels), dtype=np.uint16)


def saved(picture, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def read(tmp_path: Path, data: bytes, name: str = "photo", **options) -> Photo:
    (tmp_path / name).write_bytes(data)
    return read_photo(tmp_path / name, **options)


def exif(orientation: int):
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


# --- formats and kinds --------------------------------------------------------------------------

EXACT = {
    "PNG": saved(photo(), "PNG"),
    "PNG palette": saved(Image.fromarray(photo()).quantize(256), "PNG"),
    "TIFF": saved(photo(), "TIFF"),
    "TIFF LZW": saved(photo(), "TIFF", compression="tiff_lzw"),
    "TIFF planes": imagecodecs.tiff_encode(
        np.ascontiguousarray(np.moveaxis(photo(), -1, 0)),
        planarconfig="separate",
        photometric="rgb",
    ),
    "TIFF tiles": imagecodecs.tiff_encode(photo(), tile=(16, 16)),
    "BigTIFF": imagecodecs.tiff_encode(photo(), bigtiff=True),
    "WebP": saved(photo(), "WEBP", lossless=True),
    "AVIF": imagecodecs.avif_encode(photo(), level=100, matrix=0),
    "BMP": saved(photo(), "BMP"),
    "GIF": saved(Image.fromarray(photo()).quantize(256), "GIF"),
}
QUANTIZED = np.asarray(Image.fromarray(photo()).quantize(256).convert("RGB"))


@pytest.mark.parametrize("kind", EXACT)
def test_lossless_formats_are_read_exactly_whatever_the_name_says(tmp_path, kind):
    result = read(tmp_path, EXACT[kind], "photo.jpg")
    expected = QUANTIZED if "palette" in kind or kind == "GIF" else photo()
    assert result.format == kind.split()[0].replace("Big", "")
    assert (result.bit_depth, result.orientation, result.jpeg) == (8, 1, None)
    assert result.pixels.dtype == np.uint8
    assert np.array_equal(result.pixels, expected)
    assert result.pixels.flags.writeable
    assert result.pixels.flags.c_contiguous


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_is_what_its_decoder_gives_and_keeps_its_bytes(tmp_path, options):
    data = saved(photo((33, 47)), "JPEG", **options)
    result = read(tmp_path, data, "photo.png")
    assert np.array_equal(result.pixels, np.asarray(Image.open(io.BytesIO(data))))
    assert (result.format, result.jpeg) == ("JPEG", data)


def test_bytes_behind_a_jpeg_are_passed_over(tmp_path):
    data = saved(photo((16, 16)), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(read(tmp_path, data + data + b"more").pixels, expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_opaque_modes_keep_their_colours(tmp_path, mode, kind):
    picture = Image.fromarray(photo()).convert(mode)
    result = read(tmp_path, saved(picture, kind))
    assert np.array_equal(result.pixels, np.asarray(picture.convert("RGB")))


def test_white_may_be_zero(tmp_path):
    grey = photo()[..., 0]
    data = imagecodecs.tiff_encode(grey, photometric="miniswhite")
    assert np.array_equal(read(tmp_path, data).pixels[..., 1], 255 - grey)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_are_composited_over_black(tmp_path, mode, kind):
    rgba = np.full((2, 3, 4), 200, dtype=np.uint8)
    rgba[..., 3] = [[0, 128, 255]] * 2
    picture = Image.fromarray(rgba).convert(mode)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels = read(tmp_path, saved(picture, kind, **options)).pixels
    assert np.array_equal(pixels[0, :, 0], [0, 100, 200])


def test_colours_multiplied_with_their_alpha_are_over_black_already(tmp_path):
    rgba = np.full((2, 3, 4), 100, dtype=np.uint8)
    data = imagecodecs.tiff_encode(rgba, photometric="rgb", extrasample="assocalpha")
    assert np.array_equal(read(tmp_path, data).pixels, rgba[..., :3])


def test_transparent_palette_colour_becomes_black(tmp_path):
    picture = Image.new("P", (3, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putdata([0, 1, 1])
    pixels = read(tmp_path, saved(picture, "PNG", transparency=0)).pixels
    assert pixels.tolist() == [[[0, 0, 0], [40, 50, 60], [40, 50, 60]]]


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_modes(tmp_path, mode):
    grey = Image.new("RGB", (16, 16), (90, 90, 90)).convert(mode)
    pixels = read(tmp_path, saved(grey, "JPEG", quality=100)).pixels.astype(int)
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels - 90).max() <= 2  # a flat block: rounding of the transform and of CMYK


@pytest.mark.parametrize("marker", [True, False])
def test_inks_of_jpeg_files_are_inverted_with_and_without_adobes_marker(tmp_path, marker):
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    data = saved(inks, "JPEG", quality=100)
    start = data.index(b"\xff\xee")
    if not marker:
        data = data[:start] + data[start + 16 :]
    assert (b"Adobe" in data) == marker
    pixels = read(tmp_path, data).pixels.astype(int)
    assert np.abs(pixels - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("shape", [(1, 1), (3, 20000), (20000, 3)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP"])
def test_odd_sizes_are_good_pictures(tmp_path, shape, kind):
    assert read(tmp_path, saved(photo(shape), kind)).pixels.shape == (*shape, 3)


# --- more than 8 bits ---------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_read_exactly(tmp_path, channels, kind):
    pixels = deep(channels)
    alpha = channels in (2, 4)
    if alpha:
        pixels[..., -1] = 65535
        pixels[0, 0, -1] = 0
    stored = pixels[..., 0] if channels == 1 else pixels
    if kind == "PNG":
        data = imagecodecs.png_encode(stored)
    else:
        colours = "rgb" if channels > 2 else "minisblack"
        extra = "unassalpha" if alpha else None
        data = imagecodecs.tiff_encode(stored, photometric=colours, extrasample=extra)
    result = read(tmp_path, data)
    expected = np.broadcast_to(pixels[..., : 3 if channels > 2 else 1], (6, 10, 3)).copy()
    if alpha:
        expected[0, 0] = 0
    assert (result.bit_depth, result.pixels.dtype) == (16, np.uint16)
    assert np.array_equal(result.pixels, expected)


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("compression", ["none", "deflate", "lzw"])
def test_16_bit_tiff_of_every_make(tmp_path, byte_order, compression):
    data = imagecodecs.tiff_encode(deep(), byteorder=byte_order, compression=compression)
    assert np.array_equal(read(tmp_path, data).pixels, deep())


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("profile", [None, "adobergb"])
def test_a_16_bit_ramp_keeps_its_levels(tmp_path, kind, profile):
    ramp = np.repeat(np.arange(65536, dtype=np.uint16).reshape(256, 256, 1), 3, axis=2)
    icc = imagecodecs.cms_profile(profile) if profile else None
    if kind == "TIFF":
        data = imagecodecs.tiff_encode(ramp, iccprofile=icc)
    else:
        data = imagecodecs.png_encode(ramp)
        data = with_chunks(data, iCCP=b"x\0\0" + zlib.compress(icc)) if icc else data
    result = read(tmp_path, data)
    assert result.icc == icc
    assert len(np.unique(result.pixels[..., 1])) > 60_000


@pytest.mark.parametrize("bits", [10, 12])
def test_deep_avif_fills_the_range(tmp_path, bits):
    largest = 2**bits - 1
    codes = np.repeat((np.arange(largest + 1) % largest).reshape(-1, 64, 1), 3, axis=2)
    codes = codes.astype(np.uint16)
    codes[-1, -1] = largest
    data = imagecodecs.avif_encode(codes, bitspersample=bits, level=100, matrix=0)
    result = read(tmp_path, data)
    assert (result.format, result.bit_depth) == ("AVIF", bits)
    assert np.array_equal(result.pixels, np.rint(codes * (65535 / largest)))


# --- colours ------------------------------------------------------------------------------------


def with_chunks(png: bytes, **chunks: bytes) -> bytes:
    """A PNG with further chunks behind its header."""
    added = b""
    for name, content in chunks.items():
        body = name.encode() + content
        added += struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
    return png[:33] + added + png[33:]


def test_profiles_are_applied_in_every_format(tmp_path):
    profile = imagecodecs.cms_profile("adobergb")
    files = [saved(photo(), kind, icc_profile=profile) for kind in ("PNG", "TIFF")]
    files.append(saved(photo(), "WEBP", lossless=True, icc_profile=profile))
    for data in files:
        result = read(tmp_path, data)
        assert (result.icc, result.pixels.dtype) == (profile, np.uint16)
        assert np.array_equal(result.pixels, to_srgb(photo(), profile))
    for kind in ("JPEG", "AVIF"):
        plain = read(tmp_path, saved(photo(), kind))
        result = read(tmp_path, saved(photo(), kind, icc_profile=profile))
        assert result.icc == profile
        assert np.array_equal(result.pixels, to_srgb(plain.pixels, profile))


def test_profiles_of_many_jpeg_segments_are_joined(tmp_path):
    profile = imagecodecs.cms_profile("adobergb") + bytes(200_000)
    assert read(tmp_path, saved(photo(), "JPEG", icc_profile=profile)).icc == profile


def test_display_p3_of_code_points(tmp_path):
    png = with_chunks(saved(photo(), "PNG"), cICP=bytes([P3, SRGB_CURVE, 0, 1]))
    avif = imagecodecs.avif_encode(photo(), level=100, matrix=0, primaries=P3, transfer=SRGB_CURVE)
    first, second = read(tmp_path, png).pixels, read(tmp_path, avif).pixels
    assert first.dtype == np.uint16
    assert np.array_equal(first, second)
    assert np.abs(first / 65535 - photo() / 255).max() > 0.05


@pytest.mark.parametrize(
    ("chunks", "gamma"),
    [
        ({"gAMA": struct.pack(">I", 45455)}, None),
        ({"gAMA": struct.pack(">I", 100000)}, 1.0),
        ({"gAMA": struct.pack(">I", 100000), "sRGB": b"\0"}, None),
        ({"gAMA": struct.pack(">I", 100000), "cHRM": bytes(32)}, 1.0),  # nonsense is passed over
        ({"gAMA": bytes(4)}, None),
    ],
)
def test_gamma_of_png_files(tmp_path, chunks, gamma):
    pixels = read(tmp_path, with_chunks(saved(photo(), "PNG"), **chunks)).pixels
    if gamma is None:
        assert np.array_equal(pixels, photo())
    else:
        light = photo() / 255
        expected = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
        assert np.abs(pixels / 65535 - expected).max() < 1e-4


def test_adobe_rgb_of_cameras_without_profile(tmp_path):
    # Exif 2.32: the file's directory, that of Exif, that of interoperability.
    tags = struct.pack("<2sHI", b"II", 42, 8)
    tags += struct.pack("<HHHIII", 1, 34665, 4, 1, 26, 0)
    tags += struct.pack("<HHHIII", 1, 40965, 4, 1, 44, 0)
    tags += struct.pack("<HHHI4sI", 1, 1, 2, 4, b"R03\0", 0)
    data = saved(photo(), "JPEG", quality=95)
    result = read(tmp_path, saved(photo(), "JPEG", quality=95, exif=b"Exif\0\0" + tags))
    plain = read(tmp_path, data).pixels
    expected = to_srgb(plain, imagecodecs.cms_profile("adobergb"))
    assert result.pixels.dtype == np.uint16
    assert np.abs(result.pixels / 65535 - expected / 65535).max() < 1e-3  # rounding of the profile


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        (b"not a profile" * 20, "not an ICC profile"),
        (imagecodecs.cms_profile("lab4"), "made for Lab pixels"),
        (imagecodecs.cms_profile("adobergb")[:250], "damaged"),
    ],
)
def test_profiles_that_cannot_be_used_are_left_aside_with_a_warning(tmp_path, profile, reason):
    with pytest.warns(UserWarning, match=rf"a\.png: its colour profile is not used: .*{reason}"):
        result = read(tmp_path, saved(photo(), "PNG", icc_profile=profile), "a.png")
    assert np.array_equal(result.pixels, photo())


# --- orientation --------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "TIFF YCbCr", "AVIF"])
def test_orientation_is_applied_once(tmp_path, orientation, kind):
    picture, name = Image.fromarray(photo()), kind.split()[0]
    if kind == "TIFF YCbCr":
        picture = picture.convert("YCbCr")
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(picture, name, exif=exif(orientation), **options)
    upright = read(tmp_path, saved(picture, name, **options)).pixels
    tagged = Image.fromarray(upright)
    tagged.getexif()[ORIENTATION] = orientation
    expected = np.asarray(ImageOps.exif_transpose(tagged))
    result = read(tmp_path, data)
    assert result.orientation == orientation
    assert np.array_equal(result.pixels, expected)
    assert expected.shape[:2] == ((6, 10) if orientation <= 4 else (10, 6))
    assert (result.jpeg == data) == (kind == "JPEG")


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_nonsense_orientation_means_upright(tmp_path, orientation):
    result = read(tmp_path, saved(photo(), "PNG", exif=exif(orientation)))
    assert result.orientation == 1
    assert np.array_equal(result.pixels, photo())


# --- HEIC ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 10])
def test_heic(tmp_path, bits):
    heif = pytest.importorskip("pillow_heif", reason="the decoder of HEIC files")
    codes = photo((64, 64)) if bits == 8 else deep(shape=(64, 64))
    mode = "RGB" if bits == 8 else "RGB;16"
    buffer = io.BytesIO()
    picture = heif.from_bytes(mode=mode, size=(64, 64), data=codes.tobytes())
    picture.save(buffer, quality=-1, chroma=444, matrix_coefficients=0)
    result = read(tmp_path, buffer.getvalue())
    assert (result.format, result.bit_depth) == ("HEIC", bits)
    if bits == 8:
        assert np.array_equal(result.pixels, codes)
    else:
        assert np.abs(result.pixels / 65535 - codes / 65535).max() < 1 / 1023


# --- other ways in and out ----------------------------------------------------------------------


def test_standard_input(monkeypatch):
    class Stream(io.BytesIO):
        def isatty(self):
            return False

    stream = Stream(saved(photo(), "PNG"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
    assert np.array_equal(read_photo("-").pixels, photo())


def test_write_png_round_trip(tmp_path):
    write_png(tmp_path / "a.png", photo()[:, ::-1])
    assert np.array_equal(read_photo(tmp_path / "a.png").pixels, photo()[:, ::-1])
