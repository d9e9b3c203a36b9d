"""UltraHDR files: read by two builds of libultrahdr, and byte by byte."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from dkpn.outputs.gain_map import OFFSET, PEAK, make_gain_map
from dkpn.outputs.jpeg_container import APP1, APP2, JpegParts, join_pictures, parse_jpeg
from dkpn.outputs.ultrahdr import encode_ultrahdr
from dkpn.primaries import rgb_to_rec709
from dkpn.scenes import generate_scene
from tests.ultrahdr_files import (
    BASE_STEP,
    CURVE,
    ISO,
    MAP_CODES,
    XMP,
    APhoto,
    blocks,
    bound,
    decoded,
    gain_range,
    imagecodecs,
    iso_numbers,
    jpeg_of,
    payloads,
    photo_of,
    stops_apart,
    two_pictures,
    xmp_number,
)

DISPLAY_P3 = (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.3127, 0.3290)


# --- The result comes back ----------------------------------------------------------------------


def test_libultrahdr_decodes_the_result():
    hdr = blocks(-6, 5)
    data = encode_ultrahdr(hdr, photo_of(hdr))
    assert stops_apart(decoded(data), hdr).max() <= bound(data)
    assert stops_apart(hdr.clip(0, 1), hdr).max() > 4  # the photo alone is far from it


def test_libultrahdr_decodes_the_result_over_subsampled_chroma():
    # Grey: decoders bring chroma to full size in their own ways.
    hdr = blocks(-6, 5)[..., :1].repeat(3, axis=2)
    data = encode_ultrahdr(hdr, photo_of(hdr, subsampling=2))
    assert stops_apart(decoded(data), hdr).max() <= bound(data)


def test_a_scene_comes_back():
    scene = generate_scene(3, (96, 160)).astype(np.float64)
    hdr = (scene / np.quantile(scene, 0.9)).clip(0, PEAK)
    data = encode_ultrahdr(hdr, photo_of(hdr))
    # JPEG of quality 95 divides coefficients by 2 to 12, a third of that is lost at the most on
    # average over the many small ones: two code values, root mean square.
    apart = stops_apart(decoded(data), hdr)
    assert np.sqrt((apart**2).mean()) <= 2 / 255 * gain_range(data) + BASE_STEP / 2


def test_open_image_io_decodes_the_result(tmp_path):
    oiio = pytest.importorskip("OpenImageIO", reason="a second build of libultrahdr, not installed")
    hdr = blocks(-6, 5)
    data = encode_ultrahdr(hdr, photo_of(hdr))
    (tmp_path / "a.jpg").write_bytes(data)
    buffer = oiio.ImageBuf(str(tmp_path / "a.jpg"))
    assert (buffer.spec().width, buffer.spec().height) == (72, 48)
    assert stops_apart(buffer.get_pixels(oiio.FLOAT)[..., :3], hdr).max() <= bound(data)


@pytest.mark.parametrize("lost", ["ISO 21496-1", "XMP"])
def test_either_metadata_suffices(lost):
    hdr = blocks(-6, 5)
    whole = encode_ultrahdr(hdr, photo_of(hdr))
    marker, signature = (APP2, ISO) if lost == "ISO 21496-1" else (APP1, XMP)

    def without(parts: JpegParts) -> JpegParts:
        kept = [
            segment
            for segment in parts.header
            if not (segment.marker == marker and segment.payload.startswith(signature))
            and not segment.payload.startswith(b"MPF\0")
        ]
        assert len(kept) < len(parts.header)
        return JpegParts(tuple(kept), parts.scans)

    primary, gain_map, _ = two_pictures(whole)
    data = join_pictures(without(primary), without(gain_map).to_bytes())
    # XMP is read in single precision.
    assert np.abs(decoded(data) / decoded(whole) - 1).max() <= 2.0**-10


def test_sdr_rendition_is_the_photo():
    hdr = blocks(-6, 5)
    photo = photo_of(hdr)
    data = encode_ultrahdr(hdr, photo)
    shown = imagecodecs.ultrahdr_decode(data, dtype="uint8", transfer=imagecodecs.ULTRAHDR.CT.SRGB)
    assert np.array_equal(shown[..., :3], np.asarray(Image.open(io.BytesIO(photo.jpeg))))
    opened = Image.open(io.BytesIO(data))
    assert np.array_equal(np.asarray(opened), shown[..., :3])


def test_colours_recovered_per_channel():
    # White in the photo, orange in truth: one gain for all channels could not say so.
    hdr = np.full((16, 16, 3), (20.0, 6.0, 1.5))
    data = encode_ultrahdr(hdr, photo_of(hdr))
    assert stops_apart(decoded(data), hdr).max() <= bound(data)


def test_without_a_photo_the_base_is_the_image_clipped():
    hdr = blocks(-6, 5)
    data = encode_ultrahdr(hdr, None)
    base = np.asarray(Image.open(io.BytesIO(data)))
    # Quality 95 loses nothing of flat blocks but the rounding to YCbCr.
    assert np.abs(base.astype(int) - photo_of(hdr).pixels).max() <= np.ceil(MAP_CODES)
    assert stops_apart(decoded(data), hdr).max() <= bound(data)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_turns_the_map_with_the_photo(orientation):
    upright = blocks(-6, 5)
    turn_back = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}.get(orientation)
    methods = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,  # Pillow turns the other way round than the clock
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    photo = photo_of(upright)
    stored = Image.fromarray(photo.pixels)
    if turn_back:
        stored = stored.transpose(methods[turn_back])
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode_ultrahdr(upright, APhoto(photo.pixels, jpeg_of(np.asarray(stored), exif=exif)))
    shown = decoded(data)
    if turn_back:
        planes = [Image.fromarray(shown[..., c].astype(np.float32)) for c in range(3)]
        shown = np.stack([plane.transpose(methods[orientation]) for plane in planes], axis=2)
    assert stops_apart(shown, upright).max() <= bound(data)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == orientation


def test_profile_of_the_photo_is_used():
    # Display P3 with a plain gamma: libultrahdr would take the curve of sRGB, so this is applied
    # by hand, as ISO 21496-1 says: in linear light of the base image's own colours.
    white = (*DISPLAY_P3[6:], 1.0)
    primaries = [number for i in range(0, 6, 2) for number in (*DISPLAY_P3[i : i + 2], 1.0)]
    profile = imagecodecs.cms_profile("rgb", whitepoint=white, primaries=primaries, gamma=2.2)
    hdr = blocks(-6, 5)
    to_p3 = np.linalg.inv(rgb_to_rec709(DISPLAY_P3))
    light = (hdr @ to_p3.T).clip(0, 1)
    codes = np.rint(255 * light ** (1 / 2.2)).astype(np.uint8)
    jpeg = jpeg_of(codes, icc_profile=profile)
    data = encode_ultrahdr(hdr, APhoto(codes, jpeg))
    primary, gain_map, rest = two_pictures(data)
    assert primary.scans == parse_jpeg(jpeg).scans
    assert Image.open(io.BytesIO(data)).info["icc_profile"] == profile
    numbers = iso_numbers(payloads(gain_map, APP2, ISO)[0])
    minimum, maximum = float(numbers["minimum"][0]), float(numbers["maximum"][0])
    base = (np.asarray(Image.open(io.BytesIO(data))) / 255.0) ** 2.2
    gain = minimum + (maximum - minimum) * np.asarray(Image.open(io.BytesIO(rest))) / 255
    actual = (base + OFFSET) * np.exp2(gain) - OFFSET
    # The profile holds its primaries and its gamma with 16 bits; the photo is the very same here.
    apart = stops_apart(actual, (hdr @ to_p3.T).clip(0, PEAK))
    assert apart.max() <= MAP_CODES / 255 * (maximum - minimum) + 1e-3


# --- What the file says -------------------------------------------------------------------------


def test_metadata_agree_and_fit_the_map():
    hdr = blocks(-6, 5)
    primary, gain_map, _ = two_pictures(encode_ultrahdr(hdr, photo_of(hdr)))
    assert payloads(primary, APP2, ISO) == [b"\0\0\0\0"]  # the version alone
    numbers = iso_numbers(payloads(gain_map, APP2, ISO)[0])
    (packet,) = payloads(gain_map, APP1, XMP)
    for name, xmp_name in (
        ("minimum", "GainMapMin"),
        ("maximum", "GainMapMax"),
        ("gamma", "Gamma"),
        ("base offset", "OffsetSDR"),
        ("alternate offset", "OffsetHDR"),
        ("base headroom", "HDRCapacityMin"),
        ("headroom", "HDRCapacityMax"),
    ):
        assert set(numbers[name]) == {xmp_number(packet, xmp_name)}
    assert b'hdrgm:Version="1.0"' in packet
    assert b'hdrgm:BaseRenditionIsHDR="False"' in packet
    # The brightest channel, to the step that numbers are stored in.
    assert 0 <= float(numbers["headroom"][0]) - np.log2(hdr.max()) <= 2.0**-15


def test_index_of_the_file():
    hdr = blocks(-6, 5)
    data = encode_ultrahdr(hdr, photo_of(hdr))
    primary, gain_map, rest = two_pictures(data)
    size = len(data) - len(rest)
    (index,) = payloads(primary, APP2, b"MPF\0")
    assert index[:8] == b"MM\0*\0\0\0\x08"
    tags = [struct.unpack_from(">HHI4s", index, 10 + 12 * i) for i in range(3)]
    assert struct.unpack_from(">H", index, 8) == (len(tags),)
    version, count, entries = tags
    assert version == (0xB000, 7, 4, b"0100")
    assert count == (0xB001, 4, 1, b"\0\0\0\2")
    assert entries[:3] == (0xB002, 7, 32)
    at = int.from_bytes(entries[3], "big")
    first, second = (struct.unpack_from(">III", index, at + 16 * i) for i in range(2))
    assert first == (0x030000, size, 0)
    assert second == (0, len(rest), size - (data.index(b"MPF\0MM\0*") + 4))
    (packet,) = payloads(primary, APP1, XMP)
    assert f'Item:Semantic="GainMap" Item:Mime="image/jpeg" Item:Length="{len(rest)}"' in (
        packet.decode()
    )
    assert rest == gain_map.to_bytes()


def test_headroom_ignores_one_hot_pixel():
    hdr = np.full((128, 128, 3), 2.0)
    hdr[5, 5] = 40.0
    codes = np.full((128, 128, 3), 255, np.uint8)
    _, metadata = make_gain_map(hdr, codes, lambda rows: CURVE.astype(np.float32)[rows], np.eye(3))
    assert metadata.headroom == 1.0
    assert metadata.maximum == pytest.approx(np.log2((40 + OFFSET) / (1 + OFFSET)), abs=2.0**-15)


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_image_without_bright_light(value):
    hdr = np.full((8, 8, 3), value)
    data = encode_ultrahdr(hdr, photo_of(hdr))
    numbers = iso_numbers(payloads(two_pictures(data)[1], APP2, ISO)[0])
    assert numbers["headroom"][0] > 0  # readers take base and HDR image for exchanged otherwise
    assert numbers["maximum"][0] > numbers["minimum"][0]
    assert stops_apart(decoded(data), hdr).max() <= bound(data)


def test_light_ends_at_10000_nits():
    hdr = np.full((8, 8, 3), 1000.0)
    hdr[:, :, 2] = -0.5
    data = encode_ultrahdr(hdr, photo_of(hdr))
    assert stops_apart(decoded(data), np.array([PEAK, PEAK, 0.0])).max() <= bound(data)


def test_same_input_same_file():
    hdr = blocks(-6, 5)
    assert encode_ultrahdr(hdr, photo_of(hdr)) == encode_ultrahdr(hdr.copy(), photo_of(hdr))
