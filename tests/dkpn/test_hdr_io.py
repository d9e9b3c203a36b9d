import sys

import numpy as np
import pytest

from dkpn import hdr_io
from dkpn.hdr_io import read_hdr, write_hdr

REC709_PRIMARIES = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)
ACES_PRIMARIES = (0.7347, 0.2653, 0.0, 1.0, 0.0001, -0.077, 0.32168, 0.33767)


@pytest.fixture
def imagecodecs():
    return pytest.importorskip("imagecodecs", reason="the codec of .hdr files")


@pytest.fixture
def open_exr():
    return pytest.importorskip("OpenEXR", reason="the codec of .exr files")


def radiance(seed: int = 0, shape: tuple[int, int] = (13, 29)) -> np.ndarray:
    """Values over the whole range of a scene: 1e-6 to 1e6, and black."""
    rng = np.random.default_rng(seed)
    image = 10.0 ** rng.uniform(-6, 6, size=(*shape, 3))
    image[0, :3] = 0
    return image.astype(np.float32)


def rgbe_file(pixels: np.ndarray, header: str = "#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n") -> bytes:
    """A picture without run lengths, byte by byte as Radiance's manual describes it."""
    height, width, _ = pixels.shape
    return f"{header}-Y {height} +X {width}\n".encode() + pixels.astype(np.uint8).tobytes()


def rgbe_values(pixels: np.ndarray) -> np.ndarray:
    mantissa, exponent = pixels[..., :3].astype(np.float64), pixels[..., 3:].astype(np.int64)
    return np.where(exponent == 0, 0.0, mantissa * 2.0 ** (exponent - 136)).astype(np.float32)


def random_rgbe(shape: tuple[int, int] = (5, 7)) -> np.ndarray:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, size=(*shape, 4))
    pixels[..., 0] |= 128  # normalised: the largest mantissa has its highest bit set
    pixels[..., 3] = rng.integers(60, 200, size=shape)
    pixels[0, 0] = 0
    return pixels


# --- Radiance -----------------------------------------------------------------------------------


def test_hdr_values_are_mantissa_times_power_of_two(imagecodecs, tmp_path):
    pixels = random_rgbe()
    (tmp_path / "picture.HDR").write_bytes(rgbe_file(pixels))
    image = read_hdr(tmp_path / "picture.HDR")
    assert image.dtype == np.float32
    assert np.array_equal(image, rgbe_values(pixels))


def test_hdr_header_lines_are_skipped(imagecodecs, tmp_path):
    pixels = random_rgbe()
    header = "#?RGBE\n# a comment\nSOFTWARE=a b c\nEXPOSURE=2.0\nFORMAT=32-bit_rle_rgbe\n\n"
    (tmp_path / "a.hdr").write_bytes(rgbe_file(pixels, header))
    assert np.array_equal(read_hdr(tmp_path / "a.hdr"), rgbe_values(pixels))


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (4, 8), (9, 300)])  # run lengths start at 8
def test_hdr_round_trip_is_exact_on_values_that_rgbe_holds(imagecodecs, tmp_path, shape):
    image = rgbe_values(random_rgbe(shape))
    write_hdr(tmp_path / "a.hdr", image)
    assert np.array_equal(read_hdr(tmp_path / "a.hdr"), image)


def test_hdr_rounds_to_the_nearest_value(imagecodecs, tmp_path):
    image = radiance()
    write_hdr(tmp_path / "a.hdr", image)
    read = read_hdr(tmp_path / "a.hdr").astype(np.float64)
    largest = image.max(axis=2, keepdims=True)
    # Half a step: the largest mantissa is at least 128. Truncation would reach twice as far.
    assert (np.abs(read - image) <= largest / 256).all()
    grey = np.linspace(0.5, 0.99, 1000, dtype=np.float32).reshape(10, 100, 1).repeat(3, axis=2)
    write_hdr(tmp_path / "grey.hdr", grey)
    steps = (read_hdr(tmp_path / "grey.hdr") * 256 - grey * 256)[..., 0]
    assert abs(steps.mean()) < 0.5 / np.sqrt(3) / np.sqrt(1000) * 4  # 4 sigma around no bias
    again = read.astype(np.float32)
    write_hdr(tmp_path / "b.hdr", again)
    assert np.array_equal(read_hdr(tmp_path / "b.hdr"), again)


def test_hdr_mantissa_that_rounds_up_to_256(imagecodecs, tmp_path):
    image = np.full((2, 9, 3), 255.9 / 256, dtype=np.float32)
    write_hdr(tmp_path / "a.hdr", image)
    assert (read_hdr(tmp_path / "a.hdr") == 1.0).all()


def test_hdr_ends_of_the_range(imagecodecs, tmp_path):
    image = np.zeros((1, 2, 3), dtype=np.float32)
    image[0, 0] = 255 * 2.0**119
    image[0, 1] = 1e-36
    write_hdr(tmp_path / "a.hdr", image)
    assert np.array_equal(read_hdr(tmp_path / "a.hdr")[0, :, 0], np.float32([255 * 2.0**119, 0]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1e-3, r"image: Radiance RGBE \(a\.hdr\) holds no negative values, got 1 of them"),
        (np.nan, "image: expected numbers, got 1 NaN"),
        (np.inf, "image: Radiance RGBE .* ends at"),
        (2e38, "image: Radiance RGBE .* ends at"),
    ],
)
def test_hdr_refuses_what_rgbe_cannot_hold(imagecodecs, tmp_path, value, message):
    image = np.ones((2, 3, 3), dtype=np.float32)
    image[1, 2, 0] = value
    with pytest.raises(ValueError, match=message):
        write_hdr(tmp_path / "a.hdr", image)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a Radiance picture"),
        (b"not a picture at all", "not a Radiance picture"),
        (rgbe_file(random_rgbe()).replace(b"-Y 5", b"+Y 5"), "rows from the top"),
        (rgbe_file(random_rgbe()).replace(b"_rgbe", b"_xyze"), "XYZE picture; convert"),
        (rgbe_file(random_rgbe()).replace(b"-Y 5", b"-Y 99999999"), "truncated: 99999999 x 7"),
        (rgbe_file(random_rgbe()).replace(b"-Y 5", b"-Y 0"), "truncated: 0 x 7"),
    ],
)
def test_hdr_refuses_other_files(imagecodecs, tmp_path, content, message):
    path = tmp_path / "a.hdr"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        read_hdr(path)


# --- OpenEXR ------------------------------------------------------------------------------------


def test_exr_float_round_trip_is_exact(open_exr, tmp_path):
    image = radiance()
    image[1, 1] = [-2.5, np.inf, 1e38]
    write_hdr(tmp_path / "a.exr", image)
    read = read_hdr(tmp_path / "a.exr")
    assert read.dtype == np.float32
    assert np.array_equal(read, image)


def test_exr_half_round_trip_rounds_to_nearest(open_exr, tmp_path):
    image = np.minimum(radiance(), 65504)
    write_hdr(tmp_path / "a.exr", image, half=True)
    assert np.array_equal(read_hdr(tmp_path / "a.exr"), image.astype(np.float16).astype(np.float32))
    with open_exr.File(str(tmp_path / "a.exr")) as file:
        assert file.channels()["RGB"].pixels.dtype == np.float16


def test_exr_half_refuses_what_would_become_infinite(open_exr, tmp_path):
    image = np.full((2, 2, 3), 7e4, dtype=np.float32)
    with pytest.raises(ValueError, match=r"16-bit floats end at 65504.*half=False"):
        write_hdr(tmp_path / "a.exr", image, half=True)
    assert list(tmp_path.iterdir()) == []


def test_exr_header_states_primaries_and_white(open_exr, tmp_path):
    write_hdr(tmp_path / "a.exr", radiance())
    with open_exr.File(str(tmp_path / "a.exr")) as file:
        white, chromaticities = (file.header()[k] for k in ("whiteLuminance", "chromaticities"))
    assert white == 203.0
    np.testing.assert_allclose(chromaticities, REC709_PRIMARIES, rtol=1e-6)  # stored as float32


def write_channels(open_exr, path, channels, **header):
    header = {"type": open_exr.scanlineimage, **header}
    open_exr.File(header, {k: np.ascontiguousarray(v) for k, v in channels.items()}).write(
        str(path)
    )


def test_exr_extra_channels_are_dropped_and_mixed_types_read(open_exr, tmp_path):
    image = np.minimum(radiance(), 6e4)
    planes = {"R": image[..., 0], "G": image[..., 1].astype(np.float16), "B": image[..., 2]}
    extra = {"A": np.zeros_like(image[..., 0]), "Z": np.ones_like(image[..., 0])}
    write_channels(open_exr, tmp_path / "a.exr", planes | extra)
    expected = image.copy()
    expected[..., 1] = planes["G"]
    assert np.array_equal(read_hdr(tmp_path / "a.exr"), expected)


def test_exr_luminance_alone_becomes_grey(open_exr, tmp_path):
    plane = radiance()[..., 0]
    write_channels(open_exr, tmp_path / "a.exr", {"Y": plane})
    assert np.array_equal(read_hdr(tmp_path / "a.exr"), np.repeat(plane[..., None], 3, axis=2))


def test_exr_of_other_primaries_is_converted(open_exr, tmp_path):
    pixels = np.eye(3, dtype=np.float32)[None]  # red, green, blue
    pixels = np.concatenate([pixels, np.full((1, 1, 3), 0.5, np.float32)], axis=1)
    write_channels(open_exr, tmp_path / "a.exr", {"RGB": pixels}, chromaticities=ACES_PRIMARIES)
    image = read_hdr(tmp_path / "a.exr")
    # White stays white; the columns are the matrix that the ACES project publishes for
    # AP0 to Rec.709 with Bradford adaptation, to the four digits that rounded primaries allow.
    np.testing.assert_allclose(image[0, 3], 0.5, rtol=1e-6)
    expected = [[2.5217, -1.1341, -0.3876], [-0.2765, 1.3727, -0.0962], [-0.0154, -0.1530, 1.1684]]
    np.testing.assert_allclose(image[0, :3].T, expected, atol=1e-3)


def test_exr_of_rec709_primaries_is_left_alone(open_exr, tmp_path):
    image = radiance()
    write_channels(open_exr, tmp_path / "a.exr", {"RGB": image}, chromaticities=REC709_PRIMARIES)
    assert np.array_equal(read_hdr(tmp_path / "a.exr"), image)


def test_exr_refuses_layers_it_does_not_know(open_exr, tmp_path):
    plane = radiance()[..., 0]
    write_channels(open_exr, tmp_path / "a.exr", {"left.R": plane, "left.G": plane})
    with pytest.raises(ValueError, match=r"a\.exr: expected the channels R, G and B.*left\.G"):
        read_hdr(tmp_path / "a.exr")


def test_exr_refuses_integers(open_exr, tmp_path):
    plane = np.ones((4, 4), dtype=np.uint32)
    write_channels(open_exr, tmp_path / "a.exr", {"R": plane, "G": plane, "B": plane})
    with pytest.raises(ValueError, match=r"a\.exr: expected half or float channels, got integers"):
        read_hdr(tmp_path / "a.exr")


# --- both ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".hdr", ".exr"])
@pytest.mark.parametrize("kept", [0.01, 0.3, 0.6, 0.99])
def test_truncated_files_are_refused_by_name(tmp_path, suffix, kept, request):
    request.getfixturevalue("imagecodecs" if suffix == ".hdr" else "open_exr")
    path = tmp_path / f"picture{suffix}"
    write_hdr(path, radiance(shape=(64, 65)))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=rf"picture\{suffix}: (not a|not an|truncated)"):
        read_hdr(path)


@pytest.mark.parametrize("suffix", [".hdr", ".exr"])
def test_missing_codec_says_what_to_install(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"#?RADIANCE\n")
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    for action in (lambda: read_hdr(path), lambda: write_hdr(path, radiance())):
        with pytest.raises(ModuleNotFoundError, match=r'pip install "kpnops\[dkpn\]"'):
            action()


def test_unknown_suffixes_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"expected a name ending in \.hdr or \.exr, got '\.tif'"):
        read_hdr(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"expected a name ending in \.hdr or \.exr, got ''"):
        write_hdr(tmp_path / "a", radiance())
    with pytest.raises(ValueError, match=r"half: a\.hdr is a \.hdr file"):
        write_hdr(tmp_path / "a.hdr", radiance(), half=True)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_hdr(tmp_path / "a.hdr")


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((4, 4), np.float32), ValueError, r"image: expected shape \(H, W, 3\)"),
        (np.zeros((0, 4, 3), np.float32), ValueError, r"image: expected shape \(H, W, 3\)"),
        (np.zeros((4, 4, 3), np.uint8), TypeError, "image: expected a floating-point array"),
        ([[[1.0, 1.0, 1.0]]], TypeError, "image: expected a numpy array, got list"),
    ],
)
def test_write_hdr_refuses_other_images(tmp_path, image, error, message):
    with pytest.raises(error, match=message):
        write_hdr(tmp_path / "a.exr", image)


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(temporary):
        temporary.write_bytes(b"half of the n")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        hdr_io.write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError, match="does not exist; create it first"):
        hdr_io.write_atomically(tmp_path / "no" / "a.bin", fail)
