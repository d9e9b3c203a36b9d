"""Prepared sets: HDR pictures to train on, written by ``dkpn prepare``, read with numpy alone.

A set is a folder. ``manifest.json`` says what is in it, and each picture is one ``.npz`` file:

=============  ==========================================================================
``high``        (3, H, W) uint8: the high bytes of the half floats, red, green and blue
``low``         (3, H, W) uint8: their low bytes
``scene``       what it shows; pictures of one name show the same place
``panorama``    whether it is equirectangular
``source``      path of the file it was made from, below the folder that was prepared
=============  ==========================================================================

The values are ``(high * 256 + low).view(float16)``, linear Rec.709, divided by the picture's median
luminance. Signs and exponents are much alike in neighbours, the last bits are not: bytes of one
kind side by side compress better.
"""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from dkpn.views import Scene

FORMAT = "dkpn-prepared"
VERSION = 1
MANIFEST = "manifest.json"
SUFFIX = ".npz"
MANTISSA = 10
"""Bits of a half float's mantissa."""
HALF_MAX = 65504.0
"""The largest 16-bit float."""

# Every member of an archive is dated so: the same pictures always give the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


def is_prepared(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is a prepared set of any version, going by its ``manifest.json``."""
    try:
        manifest = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what is in a prepared set.

    Args:
        folder: the set.

    Returns:
        The manifest: ``format``, ``version``, ``settings``, ``pictures`` (a list of one dictionary
        for each, with ``file``, ``scene``, ``kind``, ``width``, ``height``, ``source``,
        ``divisor``, ``clamped_pixels``, ``stops`` and ``licence``), ``refused`` and ``left_out``.

    Raises:
        FileNotFoundError: there is no such folder, or no manifest in it.
        ValueError: it is no prepared set, or one of another version.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; make a set with dkpn prepare")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); run dkpn prepare again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: not the manifest of a set that dkpn prepare made")
    if manifest.get("version") != VERSION:
        raise ValueError(
            f"{path}: expected version {VERSION}, got {manifest.get('version')}; prepare the set "
            "again with this version"
        )
    pictures = manifest.get("pictures")
    if not isinstance(pictures, list) or not all(
        isinstance(one, dict) and isinstance(one.get("file"), str) for one in pictures
    ):
        raise ValueError(f"{path}: damaged (no list of pictures); run dkpn prepare again")
    return manifest


def prepared_files(folder: str | os.PathLike[str]) -> list[Path]:
    """List the pictures of a prepared set, as its manifest does; errors as :func:`read_manifest`.

    A file that the manifest names is listed even where it is missing, so that reading it fails.
    """
    return [Path(folder) / picture["file"] for picture in read_manifest(folder)["pictures"]]


def read_prepared(folder: str | os.PathLike[str]) -> list[Scene]:
    """Read a prepared set.

    Args:
        folder: the set, written by ``dkpn prepare``.

    Returns:
        One scene for each picture: (H, W, 3) float16, linear Rec.709, read-only; median luminance 1
        (of the pixels with light in them, before shrinking and rounding).

    Raises:
        FileNotFoundError: there is no such set, or a picture is missing.
        ValueError: another version, or a damaged picture; the message names the file.
    """
    return [read_scene(path)[0] for path in prepared_files(folder)]


def read_scene(path: str | os.PathLike[str]) -> tuple[Scene, str]:
    """Read one picture of a prepared set.

    Args:
        path: its ``.npz`` file.

    Returns:
        The scene, and the path of the source of the picture below the folder that was prepared,
        with ``/``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or none of a prepared set.
    """
    path = Path(path)
    try:
        # Opened here, since numpy.load() leaves what is no archive open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            high, low = file["high"], file["low"]
            name, source = str(file["scene"]), str(file["source"])
            panorama = bool(file["panorama"])
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such file; copy the set again, or run dkpn prepare again"
        ) from None
    except Exception as error:  # damage shows in the archive, its LZMA stream or its arrays
        raise ValueError(
            f"{path}: not a picture of a prepared set, or damaged ({error}); copy the set again, "
            "or run dkpn prepare again"
        ) from error
    valid = high.dtype == low.dtype == np.uint8 and high.ndim == 3 and len(high) == 3
    if not valid or high.shape != low.shape:
        raise ValueError(
            f"{path}: expected bytes of shape (3, H, W) twice, got {high.dtype} {high.shape} and "
            f"{low.dtype} {low.shape}; run dkpn prepare again"
        )
    halves = (high.astype(np.uint16) << 8 | low).view(np.float16)
    pixels = np.ascontiguousarray(halves.transpose(1, 2, 0))
    # A NaN or an infinity has all bits of the exponent set; a negative value the first bit.
    if halves.size == 0 or int(high.max()) >= 0x7C:
        raise ValueError(
            f"{path}: expected finite values of at least 0; the file is damaged: run dkpn prepare "
            "again"
        )
    pixels.setflags(write=False)
    return Scene(name, pixels, panorama), source


def write_scene(path: Path, scene: Scene, source: str) -> int:
    """Write one picture of a prepared set.

    Args:
        path: the ``.npz`` file.
        scene: its pixels are (H, W, 3) float16, linear Rec.709, finite, at least 0.
        source: path of the file it was made from, with ``/``.

    Returns:
        Size of the file in bytes.
    """
    bits = np.ascontiguousarray(scene.pixels.transpose(2, 0, 1)).view(np.uint16)
    arrays = {
        "high": (bits >> 8).astype(np.uint8),
        "low": (bits & 255).astype(np.uint8),
        "scene": np.array(scene.name),
        "panorama": np.array(scene.panorama),
        "source": np.array(source),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", _DATE)
            # LZMA: a tenth smaller than zip's usual method, and numpy.load() reads it as well.
            member.compress_type = zipfile.ZIP_LZMA
            with archive.open(member, "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return path.stat().st_size


def round_mantissa(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Round half floats to fewer bits, the nearest value; what is cut off compresses to nothing.

    Args:
        pixels: float16 of any shape, finite, at least 0.
        bits: of the mantissa that stay, 1 to 10: each value is wrong by at most ``2^-(bits + 1)``
            of itself (where it is above 2^-14).

    Returns:
        float16 of the same shape; no value becomes infinite.

    >>> round_mantissa(np.array([1.03, 1.4], np.float16), 2)
    array([1. , 1.5], dtype=float16)
    """
    step = 1 << (MANTISSA - bits)
    units = pixels.view(np.uint16).astype(np.int32)  # ordered as the values are
    # The bits just below those of infinity, cut to the same number, are the largest value.
    largest = 0x7C00 - step
    rounded = (units + step // 2) // step * step
    return np.minimum(rounded, largest).astype(np.uint16).view(np.float16)
