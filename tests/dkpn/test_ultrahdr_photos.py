"""UltraHDR files: what becomes of the photo and of what its file says."""

import io

import numpy as np
import pytest
from PIL import Image

from dkpn.outputs import write_result
from dkpn.outputs.jpeg_container import APP1, JpegParts, Segment, parse_jpeg
from dkpn.outputs.ultrahdr import encode_ultrahdr
from dkpn.photos import read_photo
from tests.ultrahdr_files import (
    ISO,
    MAP_CODES,
    XMP,
    APhoto,
    blocks,
    bound,
    decoded,
    imagecodecs,
    jpeg_of,
    payloads,
    photo_of,
    stops_apart,
    two_pictures,
)


def user_packet(properties: str, end: str = '<?xpacket end="w"?>', blanks: int = 200) -> bytes:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f"{properties}</rdf:RDF></x:xmpmeta>{' ' * blanks}{end}"
    ).encode()


CAPTION = (
    '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" '
    'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="5"><dc:title><rdf:Alt>'
    '<rdf:li xml:lang="x-default">Sonne &amp; Meer ☀</rdf:li></rdf:Alt></dc:title>'
    "</rdf:Description>"
)


def rich_jpeg(hdr: np.ndarray, packet: bytes, **options) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    pixels = photo_of(hdr).pixels
    plain = jpeg_of(
        pixels, exif=exif, icc_profile=SRGB, comment=b"a comment", xmp=packet, **options
    )
    parts = parse_jpeg(plain)
    return JpegParts((*parts.header, Segment(0xED, b"Photoshop 3.0\0")), parts.scans).to_bytes()


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"subsampling": 2, "optimize": True}],
    ids=str,
)
def test_photo_is_kept_byte_by_byte(options):
    hdr = blocks(-6, 5)
    packet = user_packet(CAPTION)
    jpeg = rich_jpeg(hdr, packet, **options)
    data = encode_ultrahdr(hdr, APhoto(photo_of(hdr).pixels, jpeg))
    before, after = parse_jpeg(jpeg), parse_jpeg(data)
    assert after.scans == before.scans

    def others(parts: JpegParts) -> list[Segment]:
        added = (XMP, ISO, b"MPF\0")
        return [segment for segment in parts.header if not segment.payload.startswith(added)]

    assert others(after) == others(before)
    assert len(after.header) == len(before.header) + 2
    markers = [(segment.marker, segment.payload[:5]) for segment in after.header[:3]]
    assert markers == [(0xE0, b"JFIF\0"), (0xE1, b"Exif\0"), (0xE1, XMP[:5])]
    # The packet: the user's own, with one description more.
    (merged,) = payloads(after, APP1, XMP)
    start = merged.index(b'<rdf:Description rdf:about="" xmlns:Container=')
    end = merged.index(b"</rdf:Description>", start) + len(b"</rdf:Description>")
    assert merged[:start] + merged[end:] == packet
    assert decoded(data).shape == hdr.shape


def test_photo_from_a_file_is_the_base(tmp_path):
    hdr = blocks(-6, 5)
    (tmp_path / "photo.jpg").write_bytes(photo_of(hdr).jpeg)
    write_result(tmp_path / "result.jpg", hdr, photo=read_photo(tmp_path / "photo.jpg"))
    assert (tmp_path / "result.jpg").read_bytes() == encode_ultrahdr(hdr, photo_of(hdr))


def test_large_photos_are_no_attack(monkeypatch):
    hdr = blocks(-6, 5)
    photo = photo_of(hdr)
    expected = encode_ultrahdr(hdr, photo)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's limit, which it sets at 89 MP
    assert encode_ultrahdr(hdr, photo) == expected


def test_result_as_photo_gives_the_same_file():
    # Its gain map, index and XMP are an older file's then, and are replaced.
    hdr = blocks(-6, 5)
    data = encode_ultrahdr(hdr, photo_of(hdr))
    assert encode_ultrahdr(hdr, APhoto(photo_of(hdr).pixels, data)) == data


def test_packet_of_lost_pictures_is_cleaned():
    film = (
        '<rdf:Description rdf:about="" xmlns:G="http://ns.google.com/photos/1.0/camera/" '
        'xmlns:C="http://ns.google.com/photos/1.0/container/" '
        'xmlns:I="http://ns.google.com/photos/1.0/container/item/" G:MotionPhoto="1" '
        'G:Mode="night">'
        '<C:Directory><rdf:Seq><rdf:li rdf:parseType="Resource"><C:Item I:Length="9999"/></rdf:li>'
        "</rdf:Seq></C:Directory></rdf:Description>"
    )
    hdr = blocks(-6, 5)
    jpeg = rich_jpeg(hdr, user_packet(film + CAPTION)) + b"\0\0\0\x18ftypmp42 a film"
    data = encode_ultrahdr(hdr, APhoto(photo_of(hdr).pixels, jpeg))
    assert b"a film" not in data
    (packet,) = payloads(parse_jpeg(data), APP1, XMP)
    assert packet.count(b"/container/item/") == 1  # of the directory of this file
    assert b"9999" not in packet
    assert b"MotionPhoto" not in packet
    assert b'G:Mode="night"' in packet
    assert "Sonne &amp; Meer ☀" in packet.decode()
    assert decoded(data).shape == hdr.shape


@pytest.mark.parametrize(
    "packet",
    [
        b"not XML",
        user_packet("").replace(b"</rdf:RDF>", b""),
        b'<!DOCTYPE a [<!ENTITY b "c">]>' + user_packet('<a MicroVideo="1"/>'),
        user_packet('<a MicroVideo="1">'),
        user_packet(CAPTION + "<a>" + "x" * 65000 + "</a>", blanks=0),
    ],
    ids=["text", "no end", "entities", "not well-formed", "no room"],
)
def test_packet_that_cannot_be_extended_is_replaced(packet):
    hdr = blocks(-6, 5)
    data = encode_ultrahdr(hdr, APhoto(photo_of(hdr).pixels, rich_jpeg(hdr, packet)))
    (replaced,) = payloads(parse_jpeg(data), APP1, XMP)
    assert replaced.startswith(b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF')
    assert replaced.count(b"rdf:Description ") == 1
    assert decoded(data).shape == hdr.shape


def test_blanks_of_a_full_packet_make_room():
    hdr = blocks(-6, 5)
    packet = user_packet(CAPTION, blanks=0)
    packet = user_packet(CAPTION, blanks=65533 - len(XMP) - len(packet))
    data = encode_ultrahdr(hdr, APhoto(photo_of(hdr).pixels, rich_jpeg(hdr, packet)))
    (merged,) = payloads(parse_jpeg(data), APP1, XMP)
    assert "Sonne &amp; Meer ☀" in merged.decode()
    assert merged.endswith(b'</rdf:RDF></x:xmpmeta><?xpacket end="w"?>')


def cmyk_jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(buffer, "JPEG")
    return buffer.getvalue()


def profile_without_additive_colours() -> bytes:
    """Three curves and a matrix whose blue is the sum of the others: nothing undoes it."""
    profile = bytearray(imagecodecs.cms_profile("srgb"))
    entries = range(132, 132 + 12 * int.from_bytes(profile[128:132], "big"), 12)
    tags = {bytes(profile[at : at + 4]): at + 4 for at in entries}
    profile[tags[b"bXYZ"] : tags[b"bXYZ"] + 8] = profile[tags[b"rXYZ"] : tags[b"rXYZ"] + 8]
    return bytes(profile)


SRGB = imagecodecs.cms_profile("srgb")
OTHER_PHOTOS = {
    "grey": lambda pixels: jpeg_of(pixels[..., 1]),
    "CMYK": cmyk_jpeg,
    "truncated": lambda pixels: jpeg_of(pixels)[:2000],
    "not a JPEG": lambda pixels: b"RIFF, not a JPEG",
    "profile of CMYK": lambda pixels: jpeg_of(
        pixels, icc_profile=SRGB.replace(b"RGB XYZ ", b"CMYKXYZ ")
    ),
    "profile without an inverse": lambda pixels: jpeg_of(
        pixels, icc_profile=profile_without_additive_colours()
    ),
    "damaged profile": lambda pixels: jpeg_of(pixels, icc_profile=bytes(200)),
}


@pytest.mark.parametrize("kind", OTHER_PHOTOS)
def test_other_photos_become_a_jpeg_of_their_pixels(kind):
    hdr = blocks(-6, 5)
    pixels = photo_of(hdr).pixels
    data = encode_ultrahdr(hdr, APhoto(pixels, OTHER_PHOTOS[kind](pixels)))
    base = np.asarray(Image.open(io.BytesIO(data)))
    assert "icc_profile" not in Image.open(io.BytesIO(data)).info
    assert np.abs(base.astype(int) - pixels).max() <= np.ceil(MAP_CODES)
    assert stops_apart(decoded(data), hdr).max() <= bound(data)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_pixels_of_any_depth_are_a_base(dtype):
    hdr = blocks(-6, 5)
    codes = photo_of(hdr).pixels
    scale = {np.uint8: 1, np.uint16: 257, np.float32: np.float32(1 / 255)}[dtype]
    data = encode_ultrahdr(hdr, APhoto((codes * dtype(scale)).astype(dtype)))
    assert data == encode_ultrahdr(hdr, APhoto(codes))


@pytest.mark.parametrize("shape", [(1, 1), (3, 20000), (20000, 3)])
def test_thin_pictures(shape):
    hdr = np.full((*shape, 3), (0.5, 3.0, 0.1))
    data = encode_ultrahdr(hdr, photo_of(hdr))
    primary, gain_map, _ = two_pictures(data)
    assert primary.is_common_rgb
    assert gain_map.is_common_rgb
    if max(shape) <= 8192:  # where libultrahdr, as it is built, ends
        assert stops_apart(decoded(data), hdr).max() <= bound(data)


def test_sizes_that_do_not_fit():
    hdr = np.ones((8, 16, 3))
    with pytest.raises(
        ValueError,
        match="photo: expected the size of the image, 16 x 8 as it is stored, got 8 x 16",
    ):
        encode_ultrahdr(hdr, photo_of(hdr.swapaxes(0, 1)))
    with pytest.raises(
        ValueError, match="image: a JPEG ends at 65500 pixels a side, got 65501 x 1"
    ):
        encode_ultrahdr(np.ones((1, 65501, 3)), None)


def test_profile_whose_mixtures_do_not_add_up(monkeypatch):
    # As profiles of printers, which are tables.
    hdr = blocks(-6, 5)
    pixels = photo_of(hdr).pixels
    jpeg = jpeg_of(pixels, icc_profile=SRGB)
    transform = imagecodecs.cms_transform

    def table(colours, profile, *arguments, **options):
        light = transform(colours, profile, *arguments, **options)
        return light * (0.5 if profile == SRGB and colours.min(axis=2).any() else 1.0)

    monkeypatch.setattr(imagecodecs, "cms_transform", table)
    data = encode_ultrahdr(hdr, APhoto(pixels, jpeg))
    assert data == encode_ultrahdr(hdr, APhoto(pixels))
