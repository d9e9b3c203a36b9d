"""Files: HDR images (.hdr, .exr) in and out without loss, previews out.

Arrays are numpy, (H, W, 3). The codecs beyond Pillow, imagecodecs and OpenEXR, are imported only by
the functions that touch such a file.
"""

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dkpn.color import WHITE_NITS
from dkpn.exr_file import HALF_MAX, save_exr
from dkpn.packages import require
from dkpn.primaries import REC709, rgb_to_rec709
from dkpn.rgbe_file import RGBE_MAX, save_rgbe

HDR_SUFFIXES = (".hdr", ".exr")


def read_hdr(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an HDR image.

    Radiance ``.hdr`` gives exactly ``mantissa * 2^(exponent - 136)``; an EXPOSURE line in its
    header is ignored, since the scale of such files is arbitrary anyway. OpenEXR ``.exr`` gives
    exactly the stored half or float values of R, G and B (or Y three times); alpha and other
    channels are dropped. Primaries other than Rec.709, where an EXR header declares them, are
    converted, with Bradford adaptation of the white point. Values are returned as they are:
    negative, infinite or undefined ones are the caller's to judge.

    Args:
        path: file named ``.hdr`` or ``.exr``, in either case of letters.

    Returns:
        (H, W, 3) float32, linear Rec.709, in the unit of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: unknown suffix, or a file that is truncated, damaged or of an unsupported kind.
        ModuleNotFoundError: the codec is not installed.
    """
    path = Path(path)
    suffix = _hdr_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return _read_rgbe(path) if suffix == ".hdr" else _read_exr(path)


def write_hdr(path: str | os.PathLike[str], image: np.ndarray, *, half: bool = False) -> None:
    """Write an HDR image; an existing file is replaced only once the new one is whole.

    ``.exr`` holds float32 exactly (or half, rounded to nearest) with ZIP compression, Rec.709
    primaries and ``whiteLuminance`` 203 cd/m² in its header. ``.hdr`` is Radiance RGBE, rounded to
    nearest: the error is at most 1/255.5 of a pixel's largest channel, and values read from such a
    file are written back exactly.

    Args:
        path: file to write, ``.exr`` or ``.hdr``; its folder exists.
        image: (H, W, 3) floating point, linear Rec.709, 1.0 = 203 cd/m².
        half: store 16-bit floats (``.exr`` only): half the size, values up to 65504.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: unknown suffix, another shape, NaN, or a value that the format cannot hold
            (negative or infinite in ``.hdr``; beyond 65504 with ``half``).
        TypeError: ``image`` is not a floating-point array.
        ModuleNotFoundError: the codec is not installed.
    """
    path = Path(path)
    suffix = _hdr_suffix(path)
    _check_image(image, "image", floating=True)
    if np.isnan(image).any():
        raise ValueError(f"image: expected numbers, got {int(np.isnan(image).sum())} NaN values")
    if suffix == ".hdr":
        if half:
            raise ValueError(f"half: {path.name} is a .hdr file; 16-bit floats need .exr")
        _write_rgbe(path, image)
    else:
        _write_exr(path, image, half)


def write_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Write an 8-bit PNG; an existing file is replaced only once the new one is whole.

    Args:
        path: file to write; its folder exists.
        image: (H, W, 3) uint8, sRGB-encoded.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: another shape, or a suffix other than ``.png``.
        TypeError: ``image`` is not uint8.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: expected a name ending in .png, got {path.suffix!r}")
    _check_image(image, "image", floating=False)
    picture = require("PIL.Image").fromarray(np.ascontiguousarray(image))
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file under a temporary name, then rename it to ``path``.

    Args:
        path: the file's final name; its folder exists.
        write: called with the temporary name, which has the same folder and the same suffix.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; create it first")
    # Not tempfile's: its files are readable by their owner alone, and the mode would stay.
    unique = f".{path.stem[:40]}-{os.getpid()}-{threading.get_ident()}"
    temporary = path.with_name(unique + path.suffix)
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _hdr_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in HDR_SUFFIXES:
        raise ValueError(f"{path}: expected a name ending in .hdr or .exr, got {path.suffix!r}")
    return suffix


def _check_image(image: Any, name: str, *, floating: bool) -> None:
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{name}: expected a numpy array, got {type(image).__name__}")
    wanted = "floating-point" if floating else "uint8"
    if not (np.issubdtype(image.dtype, np.floating) if floating else image.dtype == np.uint8):
        raise TypeError(f"{name}: expected a {wanted} array, got {image.dtype}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"{name}: expected shape (H, W, 3), got {image.shape}")


def _read_rgbe(path: Path) -> np.ndarray:
    imagecodecs = require("imagecodecs")
    data = path.read_bytes()
    size = re.search(rb"\n\n-Y (\d+) \+X (\d+)\n", data[:65536])
    if not data.startswith(b"#?") or size is None:
        raise ValueError(
            f"{path}: not a Radiance picture with rows from the top (no '#?' at the start, or "
            "no '-Y height +X width' after the header); write it again with another program"
        )
    header = data[: size.start()]
    if b"32-bit_rle_xyze" in header:
        raise ValueError(f"{path}: an XYZE picture; convert it to RGBE (ra_xyze -r)")
    height, width = (int(number) for number in size.groups())
    # A run holds at most 127 pixels in two bytes, for each of four planes.
    if height * width == 0 or len(data) - size.end() < height * width * 8 // 127:
        raise ValueError(
            f"{path}: truncated: {height} x {width} pixels are announced and {len(data)} bytes are "
            "there; copy or download the file again"
        )
    try:
        return imagecodecs.rgbe_decode(data)
    except imagecodecs.RgbeError as error:
        raise ValueError(
            f"{path}: truncated or damaged ({error}); copy or download the file again"
        ) from error


def _write_rgbe(path: Path, image: np.ndarray) -> None:
    require("imagecodecs")
    if (image < 0).any():
        raise ValueError(
            f"image: Radiance RGBE ({path.name}) holds no negative values, got "
            f"{int((image < 0).sum())} of them; clamp them to zero or write .exr"
        )
    if float(image.max()) > RGBE_MAX:
        raise ValueError(
            f"image: Radiance RGBE ({path.name}) ends at {RGBE_MAX:.3g}, got {image.max()}"
        )
    write_atomically(path, lambda temporary: save_rgbe(temporary, image))


def _read_exr(path: Path) -> np.ndarray:
    open_exr = require("OpenEXR")
    try:
        with open_exr.File(str(path), separate_channels=True) as file:
            # Both are taken here: the header is emptied when the file is closed.
            chromaticities = file.header().get("chromaticities")
            channels = {name: channel.pixels for name, channel in file.channels().items()}
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: not an OpenEXR image, or truncated or damaged ({error}); "
            "copy or download the file again"
        ) from error
    names = ["R", "G", "B"] if {"R", "G", "B"} <= channels.keys() else ["Y"] * 3
    if "RY" in channels or not channels.keys() >= set(names):
        raise ValueError(
            f"{path}: expected the channels R, G and B, or Y alone, got {', '.join(channels)}; "
            "export the layer wanted as a plain RGB file"
        )
    planes = [channels[name] for name in names]
    if any(plane.ndim != 2 or plane.shape != planes[0].shape for plane in planes):
        raise ValueError(f"{path}: expected channels of one size, got subsampled or deep ones")
    if any(not np.issubdtype(plane.dtype, np.floating) for plane in planes):
        raise ValueError(f"{path}: expected half or float channels, got integers")
    image = np.stack(planes, axis=2).astype(np.float32)
    if chromaticities is None or names[0] == "Y" or np.allclose(chromaticities, REC709, atol=1e-3):
        return image
    return (image @ rgb_to_rec709(chromaticities).T).astype(np.float32)


def _write_exr(path: Path, image: np.ndarray, half: bool) -> None:
    if half and (np.abs(image) > HALF_MAX).any():
        raise ValueError(
            f"image: 16-bit floats end at {HALF_MAX:.0f}, got {np.abs(image).max()}; "
            "write 32-bit floats (half=False)"
        )
    write_atomically(path, lambda temporary: save_exr(temporary, image, WHITE_NITS, half=half))
