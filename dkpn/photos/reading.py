"""Photos of any format to the sRGB pixels that the network takes.

JPEG, PNG, TIFF, WebP, AVIF, HEIC (with pillow-heif), BMP and GIF, told apart by their content. Bits
are never thrown away, and colour spaces are converted in float (`dkpn.photos.icc`).
"""

import glob
import os
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dkpn.photos.decoding import Stored, check_supported, decode
from dkpn.photos.header import (
    CAMERA_RAW,
    FORMATS,
    HDR_IMAGE,
    HEAD_BYTES,
    Header,
    UnknownFormatError,
    format_of,
    read_header,
)
from dkpn.photos.icc import ProfileError, refuse_hdr_profile, to_srgb

# fmt: off
PHOTO_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".webp", ".avif", ".heic", ".heif",
    ".hif", ".bmp", ".gif",
})
"""Suffixes that mark a photo in a folder; a file that is named is told by its content."""

RAW_SUFFIXES = frozenset({
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".kdc",
    ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2",
    ".srf", ".srw", ".x3f",
})
# fmt: on
STANDARD_INPUT = "-"
"""The name that stands for standard input."""


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Photo:
    """A photo, upright.

    Args:
        pixels: (H, W, 3), sRGB-encoded. uint8 of a file with 8 bits a channel in sRGB; uint16 of
            one with 8 bits in another colour space, or with more in sRGB; float32 in [0, 1] of one
            with more bits in another colour space.
        format: ``JPEG``, ``PNG``, ``TIFF``, ``WebP``, ``AVIF``, ``HEIC``, ``BMP`` or ``GIF``.
        bit_depth: bits of each channel in the file.
        orientation: EXIF's, 1 to 8, as it was in the file; ``pixels`` are upright already.
        icc: the file's embedded profile, which ``pixels`` are converted from.
        jpeg: the file's bytes, where it is a JPEG; not turned upright, and with everything that
            hangs on its first picture.
    """

    pixels: np.ndarray
    format: str
    bit_depth: int
    orientation: int = 1
    icc: bytes | None = None
    jpeg: bytes | None = None


def read_photo(path: str | os.PathLike[str], *, max_pixels: int = 500_000_000) -> Photo:
    """Read a photo upright, as sRGB.

    The content decides on the format, whatever the file is called. The EXIF orientation is applied.
    Colour profiles, and the other ways to declare a colour space, are converted to sRGB in float;
    colours that sRGB does not hold are clipped in linear light. A profile that is damaged, or made
    for other pixels, is left aside with a warning. CMYK without a profile is converted by the plain
    formula; that of JPEG files is taken as inverted, as all viewers do. Grey is repeated in three
    channels. Transparent pixels are composited over black, which adds no false highlights. Of a
    file with several pictures the first is read, of one with a gain map the picture without it.

    Args:
        path: the file; ``-`` reads standard input.
        max_pixels: a picture with more is refused before it is decoded.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: it may not be read.
        ValueError: a folder, an empty file, not a photo (an HDR image, a camera raw file), a kind
            of photo that is not supported, more than ``max_pixels``, truncated or damaged.
        ModuleNotFoundError: the codec is not installed.
        MemoryError: the picture is too large for this machine.
    """
    standard_input = str(path) == STANDARD_INPUT
    name = "standard input" if standard_input else str(path)
    try:
        data = _read_standard_input() if standard_input else _read_file(Path(path))
        header = read_header(data)
        check_supported(header, max_pixels)
        stored = decode(data, header)
        pixels = _upright(_srgb(stored, header, name), 1 if stored.upright else header.orientation)
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such file") from None
    except PermissionError:
        raise PermissionError(f"{name}: may not be read; change its permissions") from None
    except MemoryError:
        raise MemoryError(f"{name}: too large for this machine's memory; make it smaller") from None
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name}: {error}", name=error.name) from error
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from error
    jpeg = data if header.format == "JPEG" else None
    return Photo(pixels, header.format, header.bit_depth, header.orientation, header.icc, jpeg)


def photo_paths(arguments: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Expand what a user names into photo files.

    A folder stands for the photos in it, told by their suffix, in order of their names; folders in
    it, hidden files, camera raw files and previews that lie beside their photos are passed over. A
    name with ``*``, ``?`` or ``[`` that is no file itself stands for the files that it matches,
    ``**`` for folders at any depth: not every shell expands them. Everything else is kept as it is,
    also where there is no such file: reading it says so. Files that come up twice are kept once.

    Args:
        arguments: files, folders, patterns, or ``-`` for standard input.

    Returns:
        The files in the order of the arguments; standard input as ``Path("-")``.

    Raises:
        FileNotFoundError: a pattern matches no file.
        ValueError: a folder holds no photo.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            paths = _photos_in(path)
        elif any(letter in str(path) for letter in "*?[") and not path.exists():
            matches = sorted(glob.glob(str(path), recursive=True), key=str.casefold)
            paths = [Path(match) for match in matches if not os.path.isdir(match)]
            if not paths:
                raise FileNotFoundError(f"{path}: matches no file; check the pattern")
        else:
            paths = [path]
        for entry in paths:
            found.setdefault(os.path.realpath(entry), entry)
    return list(found.values())


def _photos_in(folder: Path) -> list[Path]:
    files = [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file()]
    photos = [path for path in files if path.suffix.lower() in PHOTO_SUFFIXES]
    if photos:
        stems = {path.stem for path in photos} | {path.name.replace(".", "_") for path in photos}
        previews = {f"{stem}_preview.png" for stem in stems}
        photos = [path for path in photos if path.name not in previews]
        return sorted(photos, key=lambda path: path.name.casefold())
    raw = sum(path.suffix.lower() in RAW_SUFFIXES for path in files)
    cure = f"develop its {raw} camera raw files first" if raw else "name the folder that holds them"
    raise ValueError(f"{folder}: a folder without a photo ({FORMATS} file); {cure}")


def _read_standard_input() -> bytes:
    if sys.stdin.isatty():
        raise ValueError("nothing is piped in; give it a photo with: < photo.jpg")
    return _read_stream(sys.stdin.buffer, "")


def _read_file(path: Path) -> bytes:
    if path.is_dir():
        raise ValueError("is a folder, expected a photo")
    with path.open("rb") as file:
        return _read_stream(file, path.suffix.lower())


def _read_stream(file: BinaryIO, suffix: str) -> bytes:
    head = file.read(HEAD_BYTES)
    if not head:
        raise ValueError("is empty (0 bytes); copy or export it again")
    try:
        # Asked before the rest is read: a film may not fit into memory.
        kind = format_of(head)
    except UnknownFormatError:
        # Only now the name helps.
        if suffix in RAW_SUFFIXES:
            raise ValueError(CAMERA_RAW) from None
        if suffix in (".hdr", ".exr"):
            raise ValueError(HDR_IMAGE) from None
        raise
    if kind == "TIFF" and suffix in RAW_SUFFIXES:
        raise ValueError(CAMERA_RAW)
    return head + file.read()


def _srgb(stored: Stored, header: Header, name: str) -> np.ndarray:
    """Convert decoded pixels to sRGB over black, (H, W, 3)."""
    try:
        if header.icc:
            refuse_hdr_profile(header.icc)
        pixels = to_srgb(stored.colour, header.icc or header.encoding)
    except ProfileError as error:
        warnings.warn(f"{name}: its colour profile is not used: {error}", stacklevel=3)
        pixels = to_srgb(stored.colour, None)
    if stored.alpha is None:
        return pixels
    opaque = np.iinfo(stored.alpha.dtype).max
    if stored.alpha.min() == opaque:
        return pixels
    opacity = stored.alpha[..., None] / np.float32(opaque)
    composited = pixels * opacity
    whole = np.issubdtype(pixels.dtype, np.integer)
    return (np.rint(composited) if whole else composited).astype(pixels.dtype)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation, 1 to 8; returns a contiguous array that can be written."""
    transposed = np.swapaxes(pixels, 0, 1)
    views = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: transposed,
        6: transposed[:, ::-1],
        7: transposed[::-1, ::-1],
        8: transposed[::-1],
    }
    # Pillow's memory is read-only: that is copied too.
    return np.require(views[orientation], requirements=["C", "W"])
