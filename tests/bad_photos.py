"""Files that are no photos, or bad ones, made from a few bytes: the table that the tests share."""

import io
import struct
import zlib

import numpy as np
import pytest

imagecodecs = pytest.importorskip("imagecodecs", reason="decodes most photos")
Image = pytest.importorskip("PIL.Image", reason="decodes JPEG files")

PHOTO = np.random.default_rng(3).integers(0, 256, size=(64, 64, 3), dtype=np.uint8)


def saved(kind: str, picture: np.ndarray = PHOTO, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(tags: dict[int, tuple[int, ...]], **pointers: dict[int, tuple[int, ...]]) -> bytes:
    """A TIFF of SHORT tags only; ``child``: the tags of a directory that tag 330 points to."""
    tags = {256: (8,), 257: (8,), 258: (8,), **tags}
    child = pointers.get("child")
    size = 2 + 12 * (len(tags) + (child is not None)) + 4
    data = struct.pack("<2sHIH", b"II", 42, 8, (size - 6) // 12)
    for tag, values in sorted(tags.items()):
        data += struct.pack("<HHIHH", tag, 3, len(values), *(*values, 0)[:2])
    if child is not None:
        data += struct.pack("<HHII", 330, 4, 1, 8 + size)
    data += bytes(4)
    if child is not None:
        data += struct.pack("<H", len(child))
        for tag, values in sorted(child.items()):
            data += struct.pack("<HHIHH", tag, 3, 1, values[0], 0)
    return data + bytes(200)


def sized(kind: str, width: int, height: int) -> bytes:
    """A small file whose header tells another size than its pixels have."""
    data = bytearray(
        saved(kind) if kind != "BIGTIFF" else imagecodecs.tiff_encode(PHOTO, bigtiff=True)
    )
    if kind == "JPEG":
        struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    elif kind == "PNG":
        struct.pack_into(">II", data, 16, width, height)
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    elif kind == "WEBP":
        struct.pack_into("<HH", data, 26, width, height)
    elif kind == "AVIF":
        struct.pack_into(">II", data, data.index(b"ispe") + 8, width, height)
    elif kind == "GIF":
        struct.pack_into("<HH", data, 6, width, height)
    elif kind == "BMP":
        struct.pack_into("<ii", data, 18, width, -height)
    else:
        return bytes(data)
    return bytes(data)


def heic(width: int, height: int, *, transfer: int = 13) -> bytes:
    """The boxes of an HEIC file, without its coded picture."""

    def box(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(content), name) + content

    hvcc = bytes(17) + bytes([0xF8]) + bytes(5)
    properties = box(b"hvcC", hvcc) + box(b"ispe", struct.pack(">III", 0, width, height))
    properties += box(b"colr", b"nclx" + struct.pack(">HHHB", 9, transfer, 9, 128))
    links = struct.pack(">IIHB3B", 0, 1, 1, 3, 1, 2, 3)
    iprp = box(b"iprp", box(b"ipco", properties) + box(b"ipma", links))
    meta = box(b"meta", bytes(4) + box(b"pitm", struct.pack(">IH", 0, 1)) + iprp)
    return box(b"ftyp", b"heic\0\0\0\0mif1heic") + meta


HDR, RAW = "an HDR image already", "a camera raw file; develop it first"
DAMAGED, UNKNOWN = "truncated or damaged; copy or export it again", "not a photo that can be read"
DEEP = imagecodecs.png_encode(PHOTO.astype(np.uint16) * 251)
CFA, LINEAR_RAW = 32803, 34892

# name: (content, what the error says)
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty.jpg": (b"", r"is empty \(0 bytes\); copy or export it again"),
    "text.jpg": (b"This is no picture at all.\n", UNKNOWN + ".*export it as a JPEG, PNG"),
    "zeros.png": (bytes(1000), UNKNOWN),
    "page.html": (b"<!DOCTYPE html><html></html>", UNKNOWN),
    "scene.exr": (b"\x76\x2f\x31\x01" + bytes(100), HDR),
    "scene.hdr": (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n", HDR),
    "renamed.jpg": (b"#?RGBE\n\n-Y 1 +X 1\n", HDR),
    "broken.exr": (b"nothing of an EXR", HDR),
    "pq.png": (saved("PNG")[:33] + bytes.fromhex("0000000463494350 09100001") + bytes(4)
               + saved("PNG")[33:], r"HDR image already \(PQ\)"),
    "pq.avif": (imagecodecs.avif_encode(PHOTO, primaries=9, transfer=16), r"already \(PQ\)"),
    "hlg.heic": (heic(8, 8, transfer=18), r"already \(HLG\)"),
    "odd.avif": (imagecodecs.avif_encode(PHOTO, primaries=1, transfer=10), "convert it to sRGB"),
    "fuji.raf": (b"FUJIFILMCCD-RAW 0201" + bytes(100), RAW),
    "fuji.jpg": (b"FUJIFILMCCD-RAW 0201" + bytes(100), RAW),
    "canon.cr2": (b"II*\0\x10\0\0\0CR\x02\0" + bytes(100), RAW),
    "canon.cr3": (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(100), RAW),
    "canon.crw": (b"II\x1a\0\0\0HEAPCCDR" + bytes(100), RAW),
    "olympus.orf": (b"IIRO\x08\0\0\0" + bytes(100), RAW),
    "panasonic.rw2": (b"IIU\0\x18\0\0\0" + bytes(100), RAW),
    "sigma.x3f": (b"FOVb" + bytes(100), RAW),
    "minolta.mrw": (b"\0MRM" + bytes(100), RAW),
    "adobe.dng": (tiff({50706: (1, 4)}), RAW),
    "adobe.tif": (tiff({50706: (1, 4)}), RAW),
    "mosaic.tif": (tiff({262: (CFA,)}), RAW),
    "linear.tif": (tiff({262: (LINEAR_RAW,)}), RAW),
    "nikon.tif": (tiff({262: (2,)}, child={262: (CFA,)}), RAW),
    "nikon.nef": (saved("TIFF"), RAW),
    "unknown.arw": (b"who knows what", RAW),
    "photo.jxl": (b"\xff\x0a" + bytes(100), "a JPEG XL file; export it as PNG or TIFF"),
    "photo.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), "a JPEG 2000 file; export it"),
    "layers.psd": (b"8BPS\0\1" + bytes(50), "a Photoshop file; export it as TIFF or PNG"),
    "page.pdf": (b"%PDF-1.7" + bytes(50), "a PDF file; export the picture"),
    "film.mp4": (b"\0\0\0\x18ftypisom\0\0\2\0isommp42" + bytes(99), "a video .*export a frame"),
    "float.tif": (imagecodecs.tiff_encode(PHOTO.astype(np.float32)), "floating-point.*export it"),
    "half.tif": (imagecodecs.tiff_encode(PHOTO.astype(np.float16)), "floating-point.*export it"),
    "long.tif": (imagecodecs.tiff_encode(PHOTO.astype(np.uint32)), "32 bits a channel; export it"),
    "signed.tif": (imagecodecs.tiff_encode(PHOTO.astype(np.int16)), "signed numbers; export it"),
    "lab.tif": (tiff({262: (8,)}), "colour model 8 .*as RGB"),
    "inks.tif": (tiff({262: (5,), 258: (16,)}), "16 bits in the colour model 5 .*export it as RGB"),
    "twelve.jpg": (imagecodecs.jpeg8_encode(PHOTO.astype(np.uint16), bitspersample=12),
                   "12 bits a channel; export it with 8 or 16"),
    "nothing.png": (sized("PNG", 0, 64), DAMAGED + r" \(0 x 64 pixels\)"),
    "nothing.bmp": (sized("BMP", 64, 0), DAMAGED),
    "head.jpg": (saved("JPEG")[:20], "a JPEG file, " + DAMAGED),
    "head.png": (saved("PNG")[:20], "a PNG file, " + DAMAGED),
    "head.webp": (saved("WEBP")[:20], "a WebP file, " + DAMAGED),
    "head.tif": (saved("TIFF")[:30], "a TIFF file, " + DAMAGED),
    "head.avif": (saved("AVIF")[:100], "an? AVIF file, " + DAMAGED),
    "head.heic": (heic(8, 8)[:60], "an? HEIC file, " + DAMAGED),
    "head.gif": (b"GIF89a", "a GIF file, " + DAMAGED),
    "head.bmp": (b"BM", "a BMP file, " + DAMAGED),
    "profile.png": (saved("PNG")[:33] + struct.pack(">I", 20) + b"iCCPx\0\0" + bytes(21)
                    + saved("PNG")[33:], "a PNG file, " + DAMAGED),
    "larger.png": (sized("PNG", 3000, 3000), "a PNG file, " + DAMAGED),
    "behind.tif": (tiff({262: (2,), 273: (60000,), 279: (192,)}), "a TIFF file, " + DAMAGED),
}  # fmt: skip
