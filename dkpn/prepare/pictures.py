"""Single pictures of a prepared set: what is refused, and how one is shrunk, scaled and written."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dkpn.data import scene_name
from dkpn.hdr_io import read_hdr
from dkpn.prepare.sources import Source
from dkpn.prepared import HALF_MAX, MANTISSA, SUFFIX, round_mantissa, write_scene
from dkpn.views import Scene, is_panorama

_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)  # Rec.709
_MOST_STOPS = 20  # a wider range, as of a picture with black in it, counts as so many


@dataclass(frozen=True)
class PrepareSettings:
    """Choices for a prepared set.

    Args:
        panorama: whether the pictures are equirectangular; "auto": those that look it, see
            :func:`dkpn.views.is_panorama`.
        max_side: larger pictures are shrunk to so many pixels on the longer side; None: none are.
        max_bytes: size of the whole set, at most; None: any.
        min_side: pictures with a shorter side are refused, and none is shrunk below it; training
            needs its ``crop_size``, 192 by default.
        min_stops: pictures of less range are refused: log2 of the 99.5th over the 1st percentile of
            luminance.
        bits: of the mantissa that are kept, 1 to 10; None: 10, or 6 where ``max_bytes`` asks for
            it.
        covered: photos whose scene has a panorama too: "keep", "drop", or "auto": drop them where
            ``max_bytes`` asks for it.

    Raises:
        ValueError: a choice is out of its range.
    """

    panorama: Literal["yes", "no", "auto"] = "auto"
    max_side: int | None = None
    max_bytes: int | None = None
    min_side: int = 192
    min_stops: float = 3.5
    bits: int | None = None
    covered: Literal["keep", "drop", "auto"] = "auto"

    def __post_init__(self) -> None:
        for name, valid, expected in (
            ("panorama", self.panorama in ("yes", "no", "auto"), "yes, no or auto"),
            ("covered", self.covered in ("keep", "drop", "auto"), "keep, drop or auto"),
            ("min_side", self.min_side >= 16, "at least 16 pixels"),
            (
                "max_side",
                self.max_side is None or self.max_side >= self.min_side,
                f"at least min_side, {self.min_side} pixels",
            ),
            ("max_bytes", self.max_bytes is None or self.max_bytes > 0, "more than 0 bytes"),
            ("min_stops", 0 <= self.min_stops <= _MOST_STOPS, f"0 to {_MOST_STOPS} stops"),
            ("bits", self.bits is None or 1 <= self.bits <= MANTISSA, f"1 to {MANTISSA}"),
        ):
            if not valid:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Refusal:
    """A source that is not in the set: its path below its folder, why, and whether it is broken."""

    source: str
    reason: str
    broken: bool


@dataclass(frozen=True)
class Picture:
    """A source that can be used, and what was found out about it; its pixels are read anew."""

    source: Source
    height: int
    width: int
    panorama: bool
    divisor: float
    stops: float
    digest: str

    def size(self, scale: float, settings: PrepareSettings) -> tuple[int, int]:
        """Height and width in the set, where all pictures are shrunk to ``scale``."""
        longer, shorter = max(self.height, self.width), min(self.height, self.width)
        if settings.max_side is not None:
            scale = min(scale, settings.max_side / longer)
        scale = min(1.0, max(scale, settings.min_side / shorter))
        height = max(1, round(self.height * scale))
        # A panorama stays exactly twice as wide as high.
        return height, 2 * height if self.panorama else max(1, round(self.width * scale))


def inspect(source: Source, settings: PrepareSettings) -> Picture | Refusal:
    """Find out what there is to know of a source, or why it cannot be used."""
    try:
        image = read_hdr(source.path)
    except (OSError, ValueError) as error:
        return Refusal(source.relative, f"cannot be read ({error})", broken=True)
    broken = int((~np.isfinite(image)).any(axis=2).sum())
    if broken:
        return Refusal(source.relative, f"{broken} pixels of NaN or infinity", broken=True)
    np.maximum(image, 0.0, out=image)  # colours outside Rec.709 have negative values
    height, width = image.shape[:2]
    luminance = image @ _LUMINANCE
    lit = luminance[luminance > 0]
    if lit.size == 0:
        return Refusal(source.relative, "black", broken=False)
    if min(height, width) < settings.min_side:
        small = f"too small: {width} x {height}, expected at least {settings.min_side} a side"
        return Refusal(source.relative, small, broken=False)
    stops = range_in_stops(luminance)
    if stops < settings.min_stops:
        flat = f"range of {stops:.1f} stops, expected at least {settings.min_stops:g}"
        return Refusal(source.relative, flat, broken=False)
    panorama = settings.panorama == "yes" or (settings.panorama == "auto" and is_panorama(image))
    if panorama and width != 2 * height:
        shape = f"no panorama: {width} x {height}, expected twice as wide as high"
        return Refusal(source.relative, shape, broken=False)
    digest = hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes())
    return Picture(
        source, height, width, panorama, float(np.median(lit)), stops, digest.hexdigest()
    )


def sort_out(found: Sequence[Picture | Refusal]) -> tuple[list[Picture], list[Refusal]]:
    """Part the usable from the refused, and refuse all but the first of equal pictures."""
    pictures: dict[str, Picture] = {}
    refused = []
    for one in found:
        if isinstance(one, Refusal):
            refused.append(one)
        elif (first := pictures.setdefault(one.digest, one)) is not one:
            copy = f"the same picture as {first.source.relative}"
            refused.append(Refusal(one.source.relative, copy, broken=False))
    return list(pictures.values()), refused


def shrink_area(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Average the area of (H, W, C) linear light that each new pixel covers: (*size, C) float32."""
    height, width = image.shape[:2]
    if not (1 <= size[0] <= height and 1 <= size[1] <= width):
        raise ValueError(f"size: expected 1 to {height} and 1 to {width}, got {size}")
    # A sum over the few old pixels in each new one is quicker than a matrix product.
    indices, weights = _area_weights(height, size[0])
    rows = np.zeros((size[0], *image.shape[1:]), np.float32)
    for index, weight in zip(indices, weights, strict=True):
        rows += image[index] * weight[:, None, None]
    indices, weights = _area_weights(width, size[1])
    shrunk = np.zeros((*size, image.shape[2]), np.float32)
    for index, weight in zip(indices, weights, strict=True):
        shrunk += rows[:, index] * weight[:, None]
    return shrunk


def range_in_stops(luminance: np.ndarray) -> float:
    """Log2 of the 99.5th over the 1st percentile of luminance, at most 20."""
    low, high = np.percentile(luminance, (1.0, 99.5))
    if high <= 0:
        return 0.0
    return math.log2(high / max(low, high * 2.0**-_MOST_STOPS))


def write_picture(
    picture: Picture, size: tuple[int, int], bits: int, folder: Path
) -> dict[str, Any]:
    """Write one picture.

    Args:
        picture: what :func:`inspect` found out.
        size: height and width in the set, at most those of the source.
        bits: of the mantissa that are kept.
        folder: of the set.

    Returns:
        Its entry in the manifest.

    Raises:
        ValueError: the source cannot be read any more.
        OSError: likewise, or the file cannot be written.
    """
    light = np.maximum(read_hdr(picture.source.path), 0.0)
    if size != light.shape[:2]:
        light = shrink_area(light, size)
    with np.errstate(over="ignore"):  # what becomes infinite is clamped
        light = light / np.float32(picture.divisor)
    clamped = int((light > HALF_MAX).any(axis=2).sum())
    halves = round_mantissa(np.minimum(light, HALF_MAX).astype(np.float16), bits)
    name = f"{picture.source.name}{SUFFIX}"
    scene = Scene(scene_name(picture.source.path), halves, picture.panorama)
    written = write_scene(folder / name, scene, picture.source.relative)
    return {
        "file": name,
        "scene": scene.name,
        "kind": "panorama" if picture.panorama else "photo",
        "width": size[1],
        "height": size[0],
        "source": picture.source.relative,
        "source_width": picture.width,
        "source_height": picture.height,
        "divisor": picture.divisor,
        "clamped_pixels": clamped,
        "stops": round(picture.stops, 2),
        "licence": picture.source.licence,
        "bytes": written,
    }


def _area_weights(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each tap, the old pixel that each new one reads and its share: (taps, new) both.

    The shares of one new pixel sum to 1.
    """
    edges = np.arange(new + 1) * (old / new)
    taps = np.arange(int(np.ceil(old / new)) + 1)[:, None]
    pixels = np.floor(edges[:-1]).astype(np.int64) + taps
    covered = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    weights = np.maximum(covered, 0.0) * (new / old)
    return np.minimum(pixels, old - 1), weights.astype(np.float32)
