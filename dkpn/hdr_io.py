"""Files: HDR images (.hdr, .exr) in and out without loss, photos (JPEG, PNG) in, previews out.

Arrays are numpy, (H, W, 3). The codecs beyond Pillow, imagecodecs and OpenEXR, are imported only by
the functions that touch such a file.
"""

import io
import os
import re
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dkpn.color import WHITE_NITS

HDR_SUFFIXES = (".hdr", ".exr")

_INSTALL = 'pip install "kpnops[dkpn]"'
_HALF_MAX = 65504.0
# The largest mantissa, 255, at the largest exponent byte, 255: 255 * 2^(255 - 136).
_RGBE_MAX = 255.0 * 2.0**119
_RGBE_MIN = 1e-32  # the codec stores smaller values as black
_REC709 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)
# The Bradford cone response matrix (ICC.1:2022, annex E).
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


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
    nearest: the error is at most 1/256 of a pixel's largest channel, and values read from such a
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


def read_photo(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a photo upright, as sRGB.

    The EXIF orientation is applied. Greyscale is repeated in three channels, a palette is looked
    up, CMYK and photos with a colour profile other than sRGB (Display P3 of phones, Adobe RGB) are
    converted to sRGB. Transparent pixels are composited over black, which adds no false highlights.

    Args:
        path: JPEG or PNG, or another file that Pillow reads with 8 bits a channel.

    Returns:
        (H, W, 3) sRGB-encoded: uint16 of a PNG with 16 bits a channel (its colour profile is not
        applied), uint8 of everything else.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a photo, truncated, or more than 8 bits a channel in a format but PNG.
        ModuleNotFoundError: the codec is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix.lower() in HDR_SUFFIXES:
        raise ValueError(f"{path}: an HDR image already; a photo is a JPEG or PNG file")
    pil_image = _require("PIL.Image")
    try:
        with pil_image.open(path) as photo:
            orientation = photo.getexif().get(0x0112, 1)
            deep = photo.format == "PNG" and _png_bit_depth(path) == 16
            pixels = _read_deep_png(path) if deep else _to_srgb_uint8(photo, path)
    except (OSError, SyntaxError, EOFError, pil_image.DecompressionBombError) as error:
        raise ValueError(
            f"{path}: not a photo that can be read, or damaged ({error}); "
            "export it again as JPEG or PNG"
        ) from error
    # A copy that is the caller's own: Pillow's memory is read-only.
    return np.array(_upright(pixels, orientation), order="C")


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
    picture = _require("PIL.Image").fromarray(np.ascontiguousarray(image))
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


def _require(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = "Pillow" if module.startswith("PIL") else module
        raise ModuleNotFoundError(
            f"{package} is needed for this file and is not installed: {_INSTALL}", name=module
        ) from error


def _check_image(image: Any, name: str, *, floating: bool) -> None:
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{name}: expected a numpy array, got {type(image).__name__}")
    wanted = "floating-point" if floating else "uint8"
    if not (np.issubdtype(image.dtype, np.floating) if floating else image.dtype == np.uint8):
        raise TypeError(f"{name}: expected a {wanted} array, got {image.dtype}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"{name}: expected shape (H, W, 3), got {image.shape}")


def _read_rgbe(path: Path) -> np.ndarray:
    imagecodecs = _require("imagecodecs")
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
    imagecodecs = _require("imagecodecs")
    if (image < 0).any():
        raise ValueError(
            f"image: Radiance RGBE ({path.name}) holds no negative values, got "
            f"{int((image < 0).sum())} of them; clamp them to zero or write .exr"
        )
    if image.max() > _RGBE_MAX:
        raise ValueError(
            f"image: Radiance RGBE ({path.name}) ends at {_RGBE_MAX:.3g}, got {image.max()}"
        )
    data = imagecodecs.rgbe_encode(_round_to_rgbe(image), header=True, rle=True)
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def _round_to_rgbe(image: np.ndarray) -> np.ndarray:
    """Round to the nearest values that RGBE holds; the codec alone would truncate."""
    image = image.astype(np.float64)
    largest = image.max(axis=2, keepdims=True)
    _, exponent = np.frexp(largest)
    # A mantissa that rounds up to 256 needs the next exponent.
    exponent += np.rint(np.ldexp(largest, 8 - exponent)) > 255
    rounded = np.ldexp(np.rint(np.ldexp(image, 8 - exponent)), exponent - 8)
    return np.where(largest < _RGBE_MIN, 0.0, rounded).astype(np.float32)


def _read_exr(path: Path) -> np.ndarray:
    open_exr = _require("OpenEXR")
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
    if chromaticities is None or names[0] == "Y" or np.allclose(chromaticities, _REC709, atol=1e-3):
        return image
    return (image @ _to_rec709_matrix(chromaticities).T).astype(np.float32)


def _write_exr(path: Path, image: np.ndarray, half: bool) -> None:
    open_exr = _require("OpenEXR")
    if half and (np.abs(image) > _HALF_MAX).any():
        raise ValueError(
            f"image: 16-bit floats end at {_HALF_MAX:.0f}, got {np.abs(image).max()}; "
            "write 32-bit floats (half=False)"
        )
    pixels = np.ascontiguousarray(image, dtype=np.float16 if half else np.float32)
    header = {
        "compression": open_exr.ZIP_COMPRESSION,
        "type": open_exr.scanlineimage,
        "chromaticities": _REC709,
        "whiteLuminance": WHITE_NITS,
    }
    write_atomically(
        path, lambda temporary: open_exr.File(header, {"RGB": pixels}).write(str(temporary))
    )


def _to_rec709_matrix(chromaticities: Any) -> np.ndarray:
    """Return the 3 × 3 matrix from RGB of these (x, y) primaries and white to Rec.709."""
    source, source_white = _rgb_to_xyz(chromaticities)
    target, target_white = _rgb_to_xyz(_REC709)
    gain = (_BRADFORD @ target_white) / (_BRADFORD @ source_white)
    adapt = np.linalg.inv(_BRADFORD) @ np.diag(gain) @ _BRADFORD
    return np.linalg.inv(target) @ adapt @ source


def _rgb_to_xyz(chromaticities: Any) -> tuple[np.ndarray, np.ndarray]:
    xy = np.asarray(chromaticities, dtype=np.float64).reshape(4, 2)
    columns = np.stack([xy[:, 0] / xy[:, 1], np.ones(4), (1 - xy.sum(axis=1)) / xy[:, 1]])
    primaries, white = columns[:, :3], columns[:, 3]
    return primaries * np.linalg.solve(primaries, white), white


def _png_bit_depth(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(25)[24]


def _read_deep_png(path: Path) -> np.ndarray:
    imagecodecs = _require("imagecodecs")
    try:
        pixels = imagecodecs.png_decode(path.read_bytes())
    except imagecodecs.PngError as error:
        raise ValueError(f"{path}: truncated or damaged PNG ({error})") from error
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1:] / 65535.0
        pixels = np.rint(pixels[..., :-1] * alpha).astype(np.uint16)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def _to_srgb_uint8(photo: Any, path: Path) -> np.ndarray:
    if photo.mode.startswith(("I", "F")):
        raise ValueError(
            f"{path}: {photo.format} with pixels of mode {photo.mode}; export it with 8 bits a "
            "channel, or as PNG with 16"
        )
    pil_image = _require("PIL.Image")
    if photo.has_transparency_data:
        photo = photo.convert("RGBA")
        opaque_black = pil_image.new("RGBA", photo.size, (0, 0, 0, 255))
        composited = pil_image.alpha_composite(opaque_black, photo).convert("RGB")
        composited.info["icc_profile"] = photo.info.get("icc_profile")
        photo = composited
    elif photo.mode in ("P", "1"):
        profile = photo.info.get("icc_profile")
        photo = photo.convert("RGB")
        photo.info["icc_profile"] = profile
    return np.asarray(_apply_profile(photo).convert("RGB"))


def _apply_profile(photo: Any) -> Any:
    profile = photo.info.get("icc_profile")
    if not profile:
        return photo
    cms = _require("PIL.ImageCms")
    try:
        source = cms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in cms.getProfileDescription(source).lower():
            return photo
        return cms.profileToProfile(photo, source, cms.createProfile("sRGB"), outputMode="RGB")
    except (cms.PyCMSError, OSError):
        # A damaged profile, or one for another kind of pixels: viewers show the photo without it.
        return photo


def _upright(pixels: np.ndarray, orientation: Any) -> np.ndarray:
    """Undo an EXIF orientation (1 to 8; anything else means upright)."""
    transposed = np.swapaxes(pixels, 0, 1)
    views = {
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: transposed,
        6: transposed[:, ::-1],
        7: transposed[::-1, ::-1],
        8: transposed[::-1],
    }
    return views.get(orientation, pixels)
