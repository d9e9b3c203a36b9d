"""UltraHDR files for tests: photos and HDR images made for each other, files taken apart again."""

import io
import re
import struct
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from dkpn.color import srgb_to_linear
from dkpn.outputs.gain_map import OFFSET
from dkpn.outputs.jpeg_container import APP2, JpegParts, parse_jpeg

imagecodecs = pytest.importorskip("imagecodecs", reason="libultrahdr comes with it")

XMP = b"http://ns.adobe.com/xap/1.0/\0"
ISO = b"urn:iso:std:iso:ts:21496:-1\0"
CURVE = srgb_to_linear(torch.arange(256, dtype=torch.float64) / 255).numpy()
# Stops that the gain changes by where two decoders differ by one code value of the photo.
BASE_STEP = np.log2((CURVE[1:] + OFFSET) / (CURVE[:-1] + OFFSET)).max()
# Code values of a map whose 8 x 8 blocks are flat: half for rounding, and for the conversion to
# YCbCr and back, with three roundings by a half, at most 0.5 + 1.772 * 0.5 + 0.5.
MAP_CODES = 0.5 + 0.5 + 1.772 * 0.5 + 0.5
HALF_FLOAT = np.log2(1 + 2.0**-11)


@dataclass(frozen=True)
class APhoto:
    pixels: np.ndarray
    jpeg: bytes | None = None


def jpeg_of(pixels: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **{"quality": 92, "subsampling": 0, **options})
    return buffer.getvalue()


def blocks(low: float, high: float, seed: int = 0, shape: tuple[int, int] = (6, 9)) -> np.ndarray:
    """Random values in stops, constant over blocks of 8 x 8 pixels, so that JPEG loses nothing."""
    rng = np.random.default_rng(seed)
    return np.exp2(rng.uniform(low, high, (*shape, 3))).repeat(8, axis=0).repeat(8, axis=1)


def photo_of(hdr: np.ndarray, **options) -> APhoto:
    codes = np.searchsorted((CURVE[1:] + CURVE[:-1]) / 2, hdr.clip(0, 1)).astype(np.uint8)
    return APhoto(codes, jpeg_of(codes, **options))


def two_pictures(data: bytes) -> tuple[JpegParts, JpegParts, bytes]:
    primary = parse_jpeg(data)
    rest = data[len(primary.to_bytes()) :]
    return primary, parse_jpeg(rest), rest


def payloads(parts: JpegParts, marker: int, signature: bytes) -> list[bytes]:
    return [
        segment.payload[len(signature) :]
        for segment in parts.header
        if segment.marker == marker and segment.payload.startswith(signature)
    ]


def iso_numbers(data: bytes) -> dict[str, list[Fraction]]:
    """ISO 21496-1, table by table, for three channels."""
    versions, flags = data[:4], data[4]
    assert versions == b"\0\0\0\0"
    assert flags == 0b1100_0000  # three channels, colours of the base image
    pairs = struct.unpack(">IIII" + "iIiIIIiIiI" * 3, data[5:])
    numbers = [Fraction(*pairs[i : i + 2]) for i in range(0, len(pairs), 2)]
    names = ("minimum", "maximum", "gamma", "base offset", "alternate offset")
    channels = {name: numbers[2 + i :: 5] for i, name in enumerate(names)}
    return {"base headroom": numbers[:1], "headroom": numbers[1:2], **channels}


def xmp_number(packet: bytes, name: str) -> Fraction:
    found = re.findall(rf'hdrgm:{name}="([^"]*)"'.encode(), packet)
    assert len(found) == 1
    return Fraction(found[0].decode())


def gain_range(data: bytes) -> float:
    numbers = iso_numbers(payloads(two_pictures(data)[1], APP2, ISO)[0])
    return float(numbers["maximum"][0] - numbers["minimum"][0])


def decoded(data: bytes) -> np.ndarray:
    return imagecodecs.ultrahdr_decode(data)[..., :3].astype(np.float64)


def stops_apart(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.abs(np.log2((actual + OFFSET) / (expected + OFFSET)))


def bound(data: bytes) -> float:
    return MAP_CODES / 255 * gain_range(data) + BASE_STEP + HALF_FLOAT
