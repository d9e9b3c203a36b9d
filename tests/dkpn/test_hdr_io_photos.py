"""Photos: what `dkpn.hdr_io.read_photo` reads, and the previews that `write_png` writes."""

import io
import struct

import numpy as np
import pytest

from dkpn.hdr_io import read_photo, write_png

Image = pytest.importorskip("PIL.Image", reason="photos are read by Pillow")
ImageCms = pytest.importorskip("PIL.ImageCms")
ImageOps = pytest.importorskip("PIL.ImageOps")


@pytest.fixture
def imagecodecs():
    return pytest.importorskip("imagecodecs", reason="the codec of 16-bit PNG files")


def photo(shape: tuple[int, int] = (6, 10)) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, size=(*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo()).save(tmp_path / f"a{suffix}", exif=exif)
    with Image.open(tmp_path / f"a{suffix}") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    assert np.array_equal(read_photo(tmp_path / f"a{suffix}"), expected)
    assert expected.shape[:2] == ((6, 10) if orientation <= 4 else (10, 6))


def test_nonsense_orientation_means_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 0
    Image.fromarray(photo()).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_photo(tmp_path / "a.png"), photo())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_opaque_modes_keep_their_colours(tmp_path, mode):
    picture = Image.fromarray(photo()).convert(mode)
    picture.save(tmp_path / "a.png")
    read = read_photo(tmp_path / "a.png")
    assert read.dtype == np.uint8
    assert read.flags.writeable
    assert np.array_equal(read, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_composited_over_black(tmp_path, mode):
    rgba = np.full((2, 3, 4), 200, dtype=np.uint8)
    rgba[..., 3] = [[0, 128, 255]] * 2
    Image.fromarray(rgba).convert(mode).save(tmp_path / "a.png")
    assert np.array_equal(read_photo(tmp_path / "a.png")[0, :, 0], [0, 100, 200])


def test_transparent_palette_colour_becomes_black(tmp_path):
    picture = Image.new("P", (3, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putdata([0, 1, 1])
    picture.save(tmp_path / "a.png", transparency=0)
    assert read_photo(tmp_path / "a.png").tolist() == [[[0, 0, 0], [40, 50, 60], [40, 50, 60]]]


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_modes(tmp_path, mode):
    grey = np.full((16, 16, 3), 90, dtype=np.uint8)
    Image.fromarray(grey).convert(mode).save(tmp_path / "a.jpg", quality=100)
    read = read_photo(tmp_path / "a.jpg").astype(int)
    assert read.shape == (16, 16, 3)
    assert np.abs(read - 90).max() <= 2  # a flat block: rounding of the transform and of CMYK


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png(imagecodecs, tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 65536, (4, 6, channels), dtype=np.uint16)
    if channels in (2, 4):
        pixels[..., -1] = 65535
        pixels[0, 0, -1] = 0
    stored = pixels[..., 0] if channels == 1 else pixels
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(stored))
    read = read_photo(tmp_path / "a.png")
    assert read.dtype == np.uint16
    expected = np.broadcast_to(pixels[..., : max(1, 3 if channels > 2 else 1)], (4, 6, 3)).copy()
    if channels in (2, 4):
        expected[0, 0] = 0
    assert np.array_equal(read, expected)


def swapped_profile() -> bytes:
    """An sRGB profile under another name whose red and blue primaries are exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    count = struct.unpack(">I", profile[128:132])[0]
    table = profile[132 : 132 + 12 * count]
    table = table.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")
    return profile[:132] + table + profile[132 + 12 * count :]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_profiles_are_converted_to_srgb(tmp_path, mode):
    red = np.zeros((4, 4, 3), dtype=np.uint8)
    red[..., 0] = 255
    picture = Image.fromarray(red).convert(mode)
    picture.save(tmp_path / "a.png", icc_profile=swapped_profile())
    read = read_photo(tmp_path / "a.png").astype(int)
    assert np.abs(read - [0, 0, 255]).max() <= 2  # the profile's fixed-point numbers


def test_srgb_profiles_change_nothing(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(photo()).save(tmp_path / "a.png", icc_profile=profile)
    assert np.array_equal(read_photo(tmp_path / "a.png"), photo())


def test_damaged_profiles_are_ignored(tmp_path):
    Image.fromarray(photo()).save(tmp_path / "a.png", icc_profile=b"not a profile")
    assert np.array_equal(read_photo(tmp_path / "a.png"), photo())


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.9])
def test_truncated_photos_are_refused_by_name(tmp_path, suffix, kept):
    buffer = io.BytesIO()
    Image.fromarray(photo((64, 64))).save(buffer, format="JPEG" if suffix == ".jpg" else "PNG")
    data = buffer.getvalue()
    path = tmp_path / f"photo{suffix}"
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=rf"photo\{suffix}: not a photo that can be read"):
        read_photo(path)


def test_truncated_16_bit_png_is_refused_by_name(imagecodecs, tmp_path):
    data = imagecodecs.png_encode(np.zeros((64, 64, 3), np.uint16))
    (tmp_path / "deep.png").write_bytes(data[:-20])
    with pytest.raises(ValueError, match=r"deep\.png: (truncated|not a photo)"):
        read_photo(tmp_path / "deep.png")


def test_float_pictures_and_hdr_images_are_not_photos(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: TIFF with pixels of mode F"):
        read_photo(tmp_path / "a.tif")
    (tmp_path / "a.exr").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.exr: an HDR image already"):
        read_photo(tmp_path / "a.exr")


def test_png_round_trip(tmp_path):
    write_png(tmp_path / "a.png", photo()[:, ::-1])
    assert np.array_equal(read_photo(tmp_path / "a.png"), photo()[:, ::-1])
    with pytest.raises(TypeError, match="image: expected a uint8 array, got float32"):
        write_png(tmp_path / "a.png", photo().astype(np.float32))
    with pytest.raises(ValueError, match=r"expected a name ending in \.png"):
        write_png(tmp_path / "a.jpg", photo())
    with pytest.raises(FileNotFoundError, match="create it first"):
        write_png(tmp_path / "no" / "a.png", photo())
