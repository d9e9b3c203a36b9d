"""Colour spaces of photos against the same conversions worked out here by hand."""

import struct

import numpy as np
import pytest

from dkpn.photos.icc import (
    ADOBE_RGB,
    Encoding,
    ProfileError,
    coded_encoding,
    profile_space,
    refuse_hdr_profile,
    to_srgb,
)

imagecodecs = pytest.importorskip("imagecodecs", reason="evaluates ICC profiles")

# SMPTE EG 432-1 with the white of IEC 61966-2-1; IEC 61966-2-1.
DISPLAY_P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), (0.3127, 0.329))
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), (0.3127, 0.329))
# A profile holds its matrix in steps of 2^-16. Of a colour at the border of Rec.709, three of them
# weighted with up to 3.3 (the largest number of XYZ to Rec.709) pass the slope 12.92 of sRGB.
PROFILE_ROUNDING = 3 * 3.3 * 2**-17 * 12.92


def decode_srgb(encoded):
    encoded = np.asarray(encoded, np.float64)
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def encode_srgb(linear):
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def to_xyz_matrix(colours):
    """Columns: X, Y, Z of red, green and blue; the white of the four pairs has Y = 1."""
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in colours]).T
    return xyz[:, :3] * np.linalg.solve(xyz[:, :3], xyz[:, 3])


def p3_to_srgb(codes):
    """What Display P3, 0 to 1, is in sRGB; the two have one white, so nothing is adapted."""
    matrix = np.linalg.inv(to_xyz_matrix(SRGB)) @ to_xyz_matrix(DISPLAY_P3)
    return encode_srgb(decode_srgb(codes) @ matrix.T)


def profile_of(colours, decode=decode_srgb):
    numbers = [number for colour in colours for number in colour]
    curve = decode(np.linspace(0, 1, 4096)).astype(np.float32)
    return imagecodecs.cms_profile(
        "rgb", whitepoint=numbers[6:], primaries=numbers[:6], transferfunction=curve
    )


def codes(dtype=np.uint8, shape=(40, 50)):
    largest = np.iinfo(dtype).max
    return np.random.default_rng(5).integers(0, largest + 1, (*shape, 3)).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "result", "steps"), [(np.uint8, np.uint16, 65535), (np.uint16, np.float32, 1)]
)
def test_display_p3_profile_lands_within_a_thousandth(dtype, result, steps):
    pixels = codes(dtype)
    actual = to_srgb(pixels, profile_of(DISPLAY_P3))
    assert actual.dtype == result
    error = np.abs(actual / steps - p3_to_srgb(pixels / np.iinfo(dtype).max))
    assert error.max() < min(PROFILE_ROUNDING, 1e-3)
    assert error.mean() < 2e-5  # far below: only colours at the border see the rounding


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_display_p3_by_code_points_is_exact(dtype):
    pixels = codes(dtype)
    actual = to_srgb(pixels, coded_encoding(12, 13))
    expected = p3_to_srgb(pixels / np.iinfo(dtype).max)
    if dtype == np.uint8:
        actual = actual / 65535
        assert np.abs(actual - expected).max() < 0.51 / 65535 + 1e-6
    else:
        assert np.abs(actual - expected).max() < 1e-6  # of float32


def test_colours_beyond_srgb_are_clipped_in_linear_light():
    green = np.array([[[0, 255, 0], [255, 255, 255], [0, 200, 0]]], np.uint8)
    actual = to_srgb(green, coded_encoding(12, 13)) / 65535
    assert actual[0, 0].tolist() == [0, 1, 0]
    assert actual[0, 1].tolist() == [1, 1, 1]
    light = decode_srgb(200 / 255)
    matrix = np.linalg.inv(to_xyz_matrix(SRGB)) @ to_xyz_matrix(DISPLAY_P3)
    assert matrix[0, 1] < 0  # red of this green lies beyond sRGB
    expected = [0, encode_srgb(light * matrix[1, 1]), 0]
    np.testing.assert_allclose(actual[0, 2], expected, atol=1 / 65535)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("maker", ["imagecodecs", "Pillow", "by hand"])
def test_srgb_profiles_change_nothing(dtype, maker):
    if maker == "imagecodecs":
        profile = imagecodecs.cms_profile("srgb")
    elif maker == "by hand":
        profile = profile_of(SRGB)
    else:
        cms = pytest.importorskip("PIL.ImageCms")
        profile = cms.ImageCmsProfile(cms.createProfile("sRGB")).tobytes()
    pixels = codes(dtype)
    actual = to_srgb(pixels, profile)
    assert actual.dtype == dtype
    assert np.array_equal(actual, pixels)


def test_a_gamma_near_that_of_srgb_is_not_taken_for_it():
    gamma = profile_of(SRGB, lambda encoded: encoded**2.2)
    pixels = codes()
    actual = to_srgb(pixels, gamma) / 65535
    assert np.abs(actual - encode_srgb((pixels / 255) ** 2.2)).max() < PROFILE_ROUNDING
    assert np.abs(actual - pixels / 255).max() > 0.01


@pytest.mark.parametrize("space", ["Adobe RGB profile", "Adobe RGB of a camera", "grey profile"])
def test_a_deep_ramp_keeps_its_levels(space):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    gamma = 2.19921875
    if space == "grey profile":
        gamma = 1.8
        source = imagecodecs.cms_profile("gray", whitepoint=(0.3457, 0.3585), gamma=gamma)
    else:
        source = imagecodecs.cms_profile("adobergb") if "profile" in space else ADOBE_RGB
    actual = to_srgb(ramp, source)
    assert actual.shape == (256, 256, 3)
    assert len(np.unique(actual[..., 0])) > 60_000
    assert np.array_equal(actual[..., 0], actual[..., 1]) or "grey" not in space
    expected = encode_srgb((ramp[..., 0] / 65535) ** gamma)
    assert np.abs(actual[..., 1] - expected).max() < PROFILE_ROUNDING


def test_grey_pixels_pass_the_curve_of_an_rgb_profile():
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)
    actual = to_srgb(ramp, profile_of(DISPLAY_P3, lambda encoded: encoded**1.8)) / 65535
    expected = encode_srgb((ramp / 255.0) ** 1.8)
    assert np.abs(actual - expected).max() < PROFILE_ROUNDING


# --- profiles of tables -------------------------------------------------------------------------


def lab_of(linear):
    """CIE L*, a*, b* (white D50) of linear Rec.709; Bradford's matrix as ICC.1 has it."""
    bradford = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    white = to_xyz_matrix(SRGB).sum(axis=1)
    d50 = np.array([0.9642, 1.0, 0.8249])
    adapt = np.linalg.inv(bradford) @ np.diag(bradford @ d50 / (bradford @ white)) @ bradford
    xyz = linear @ (adapt @ to_xyz_matrix(SRGB)).T / d50
    root = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def table_profile(space, corners):
    """An ICC version 2 profile with 16-bit Lab at the corners of the cube of codes."""
    channels = {b"RGB ": 3, b"CMYK": 4}[space]
    scale = 65280 / np.array([100.0, 255.0, 255.0])
    lab = np.rint((corners + np.array([0, 128, 128])) * scale).astype(">u2").tobytes()
    identity = np.eye(3).ravel() * 65536
    table = b"mft2\0\0\0\0" + bytes([channels, 3, 2, 0]) + identity.astype(">i4").tobytes()
    straight = struct.pack(">2H", 0, 65535)
    table += struct.pack(">2H", 2, 2) + channels * straight + lab + 3 * straight
    start = 128 + 4 + 2 * 12
    header = bytearray(128)
    names = (b"test", 0x02400000, b"scnr", space, b"Lab ")
    struct.pack_into(">I4sI4s4s4s", header, 0, start + len(table), *names)
    header[36:40] = b"acsp"
    struct.pack_into(">3i", header, 68, 63190, 65536, 54061)  # D50
    tags = b"".join(struct.pack(">4sII", name, start, len(table)) for name in (b"A2B0", b"A2B1"))
    return bytes(header) + struct.pack(">I", 2) + tags + table


def cube(channels):
    """The corners of the cube of codes, the last channel fastest, as tables of profiles run."""
    return np.stack(np.meshgrid(*[[0.0, 1.0]] * channels, indexing="ij"), -1).reshape(-1, channels)


# At the corners nothing is interpolated. Half a step of L*, 1/1305, and of a* or b*, 1/512, becomes
# light by the slopes 3/116 and 3/500 at white; rows of XYZ to Rec.709 sum up to 5.2.
OF_LAB = 5.2 * (3 / 116 / 1305 + 3 / 500 / 512)


def test_cmyk_profiles_are_evaluated_with_black_at_zero():
    inks = cube(4)
    darkest = 0.02
    light = darkest + (0.9 - darkest) * (1 - inks[:, :3]) * (1 - inks[:, 3:])
    profile = table_profile(b"CMYK", lab_of(light))
    assert profile_space(profile) == "cmyk"
    actual = to_srgb((inks * 255).astype(np.uint8)[None], profile)
    assert actual.dtype == np.uint16
    # Black point compensation takes the darkest colour to 0 and leaves white light where it is.
    expected = (light - darkest) / (1 - darkest)
    assert np.abs(decode_srgb(actual[0] / 65535) - expected).max() < OF_LAB


def test_rgb_profiles_of_tables_are_evaluated():
    corners = cube(3)
    light = 0.9 * corners[:, [2, 0, 1]] * corners  # not a sum over the channels
    pixels = (corners * 65535).astype(np.uint16)[None]
    actual = to_srgb(pixels, table_profile(b"RGB ", lab_of(light)))
    assert actual.dtype == np.float32
    assert np.abs(decode_srgb(actual[0]) - light).max() < OF_LAB


def test_cmyk_without_profile_is_light_times_light():
    pixels = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [255, 0, 0, 0], [51, 0, 102, 128]]], np.uint8)
    expected = [[255, 255, 255], [0, 0, 0], [0, 255, 255], [102, 127, 76]]
    assert to_srgb(pixels, None)[0].tolist() == expected


# --- declared by numbers, and what is refused ---------------------------------------------------


@pytest.mark.parametrize(
    ("primaries", "transfer", "gamma"),
    [
        (1, 13, None),
        (2, 2, None),
        (1, 1, None),
        (6, 6, None),
        (9, 14, None),
        (1, 4, 2.2),
        (1, 8, 1),
    ],
)
def test_code_points(primaries, transfer, gamma):
    encoding = coded_encoding(primaries, transfer)
    assert encoding.gamma == gamma
    pixels = np.full((1, 1, 3), 128, np.uint8)
    expected = pixels / 255 if gamma is None else encode_srgb((pixels / 255) ** gamma)
    actual = to_srgb(pixels, encoding)
    assert np.abs(actual / np.iinfo(actual.dtype).max - expected).max() < 1e-4  # grey stays grey


@pytest.mark.parametrize(
    ("primaries", "transfer", "message"),
    [
        (9, 16, r"an HDR image already \(PQ\)"),
        (9, 18, r"an HDR image already \(HLG\)"),
        (10, 13, "code points 10 and 13 is not supported; convert it to sRGB"),
        (1, 9, "code points 1 and 9"),
    ],
)
def test_code_points_that_are_refused(primaries, transfer, message):
    with pytest.raises(ValueError, match=message):
        coded_encoding(primaries, transfer)


@pytest.mark.parametrize(("transfer", "refused"), [(16, True), (18, True), (13, False)])
def test_code_points_in_a_profile(transfer, refused):
    profile = bytearray(imagecodecs.cms_profile("srgb")[:128])
    profile += struct.pack(">I4sII", 1, b"cicp", 144, 12) + b"cicp\0\0\0\0"
    profile += bytes([9, transfer, 0, 1])
    if not refused:
        return refuse_hdr_profile(bytes(profile))
    with pytest.raises(ValueError, match="HDR image already"):
        refuse_hdr_profile(bytes(profile))
    return None


@pytest.mark.parametrize(
    ("profile", "channels", "message"),
    [
        (b"not a profile", 3, "not an ICC profile"),
        (imagecodecs.cms_profile("srgb")[:200], 3, "damaged"),
        (imagecodecs.cms_profile("adobergb"), 4, "made for rgb pixels, these have 4"),
        (imagecodecs.cms_profile("gray", whitepoint=(0.34, 0.36), gamma=2.2), 3, "for gray pixels"),
        (imagecodecs.cms_profile("lab4"), 3, "made for Lab pixels"),
    ],
)
def test_profiles_that_cannot_be_used(profile, channels, message):
    with pytest.raises(ProfileError, match=message):
        to_srgb(np.zeros((2, 2, channels), np.uint8), profile)


def test_srgb_by_numbers_changes_nothing():
    pixels = codes()
    assert to_srgb(pixels, Encoding()) is pixels
    assert to_srgb(pixels, None) is pixels
