"""Results as files: the suffix of the name chooses the format.

=================  ============================================================================
``.exr``           linear Rec.709, 16-bit floats, or 32-bit ones where a value is beyond 65504
``.hdr``           linear Rec.709, Radiance RGBE
``.tif, .tiff``    linear Rec.709, 32-bit floats
``.png``           PQ and Rec.2020, 16 bits
``.avif``          PQ and Rec.2020, 10 bits
``.jpg, .jpeg``    UltraHDR: the photo, and a gain map that HDR displays add
=================  ============================================================================
"""

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from dkpn.color import WHITE_NITS
from dkpn.exr_file import HALF_MAX, save_exr
from dkpn.hdr_io import write_atomically
from dkpn.outputs.stills import encode_pq_avif, save_float_tiff, save_pq_png
from dkpn.outputs.ultrahdr import BasePhoto, encode_ultrahdr
from dkpn.rgbe_file import RGBE_MAX, save_rgbe
from dkpn.strips import memory_bytes, row_strips

OUTPUT_SUFFIXES = (".exr", ".hdr", ".tif", ".tiff", ".png", ".avif", ".jpg", ".jpeg")
"""Names that :func:`write_result` knows, in lower case; either case of letters is taken."""

_BYTES_PER_PIXEL = {".avif": 42, ".jpg": 5, ".jpeg": 5}
"""Memory that encoding takes beside image and photo, measured; other formats go out in strips."""

_SCRATCH_BYTES_PER_PIXEL = {".jpg": (3, 3), ".jpeg": (3, 3)}
"""And of each large array that lies in a file instead."""

_INSTALL = 'pip install "kpnops[dkpn]"'
_PQ_PEAK_NITS = 10000.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


def output_suffix(path: str | os.PathLike[str]) -> str:
    """Return the suffix of an output, in lower case.

    Raises:
        ValueError: there is no format of this suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in OUTPUT_SUFFIXES:
        got = f"got {suffix!r}" if suffix else "got none"
        raise ValueError(
            f"{path}: the suffix chooses the format: {', '.join(OUTPUT_SUFFIXES)}; {got}"
        )
    return suffix


def encoding_bytes(path: str | os.PathLike[str], pixels: int) -> int:
    """Return the memory that :func:`write_result` takes beside image and photo, about, in bytes.

    Args:
        path: file to write; its suffix counts.
        pixels: of the image.
    """
    suffix = output_suffix(path)
    arrays = _SCRATCH_BYTES_PER_PIXEL.get(suffix, ())
    scratch = sum(memory_bytes(each * pixels) for each in arrays)
    return _BYTES_PER_PIXEL.get(suffix, 0) * pixels + scratch


def write_result(
    path: str | os.PathLike[str],
    image: np.ndarray,
    *,
    photo: BasePhoto | None = None,
    white_nits: float = WHITE_NITS,
) -> None:
    """Write an HDR image in the format that the suffix names.

    An existing file is replaced only once the new one is whole; after an error nothing of the new
    one is left. Negative values (colours outside Rec.709) are kept in ``.exr`` and ``.tif``, kept
    in ``.png`` and ``.avif`` as far as Rec.2020 holds them, and clipped to 0 in ``.hdr`` and
    ``.jpg``. Light above 10000 cd/m² is clipped in ``.png`` and ``.avif``; above 10000/203 = 49.3
    times the white of the photo in ``.jpg``, whatever ``white_nits``.

    Args:
        path: file to write, with a suffix of ``OUTPUT_SUFFIXES``; its folder exists.
        image: (H, W, 3) floating point, finite, linear Rec.709, 1.0 = diffuse white of the photo.
        photo: what the image was made from, of the same size; the base image of ``.jpg``, unused
            by other formats. Without it that base is the image, clipped to [0, 1].
        white_nits: cd/m² of 1.0, above 0 and at most 10000: scales the absolute light of ``.png``
            and ``.avif``, is noted as ``whiteLuminance`` in ``.exr``, unused by other formats.

    Raises:
        ValueError: unknown suffix, another shape, NaN or infinity, a size that the format or the
            photo does not allow, or a value beyond the range of ``.hdr``.
        TypeError: ``image`` is not a floating-point array.
        FileNotFoundError: the folder does not exist.
        OSError: the file cannot be written: no permission, or a full disk.
        ModuleNotFoundError: the codec is not installed.

    >>> write_result("result.gif", np.ones((2, 2, 3)))
    Traceback (most recent call last):
    ValueError: result.gif: the suffix chooses the format: .exr, ..., .jpeg; got '.gif'
    """
    path = Path(path)
    suffix = output_suffix(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder of that name exists; choose another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; create it first")
    try:
        _check(image, white_nits)
        write_atomically(path, _writer(suffix, image, photo, white_nits))
    except OSError as error:
        raise _named(error, path) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: {error.name} is needed for it and is not installed: {_INSTALL}",
            name=error.name,
        ) from error


def _writer(
    suffix: str, image: np.ndarray, photo: BasePhoto | None, white_nits: float
) -> Callable[[Path], object]:
    """Return what writes the file; what is not written row by row is encoded before."""
    if suffix == ".exr":
        half = _largest(image) <= HALF_MAX
        return partial(save_exr, image=image, white_nits=white_nits, half=half)
    if suffix == ".hdr":
        largest = float(image.max())
        if largest > RGBE_MAX:
            raise ValueError(f"image: Radiance RGBE ends at {RGBE_MAX:.3g}, got {largest:.3g}")
        return partial(save_rgbe, image=image)
    if suffix in (".tif", ".tiff"):
        return partial(save_float_tiff, image=image)
    if suffix == ".png":
        return partial(save_pq_png, image=image, white_nits=white_nits)
    avif = suffix == ".avif"
    data = encode_pq_avif(image, white_nits) if avif else encode_ultrahdr(image, photo)
    return lambda temporary: temporary.write_bytes(data)


def _check(image: np.ndarray, white_nits: float) -> None:
    if not isinstance(image, np.ndarray):
        raise TypeError(f"image: expected a numpy array, got {type(image).__name__}")
    if not np.issubdtype(image.dtype, np.floating):
        raise TypeError(f"image: expected a floating-point array, got {image.dtype}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image: expected shape (H, W, 3), got {image.shape}")
    parts = [image[strip] for strip in row_strips(image)]
    if not all(np.isfinite(part).all() for part in parts):
        raise ValueError(
            f"image: expected finite values, got {sum(int(np.isnan(part).sum()) for part in parts)}"
            f" NaN and {sum(int(np.isinf(part).sum()) for part in parts)} infinite ones"
        )
    if not 0 < white_nits <= _PQ_PEAK_NITS:
        raise ValueError(f"white_nits: expected cd/m² above 0 and at most 10000, got {white_nits}")


def _largest(image: np.ndarray) -> float:
    return max(abs(float(image.max())), abs(float(image.min())))


def _named(error: OSError, path: Path) -> OSError:
    """Return the same error, saying the user's file instead of the temporary one, and the cure."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        message = f"{path}: {reason}; nothing was left behind: make room, or choose another disk"
    elif error.errno in _DENIED:
        message = f"{path}: {reason}; choose a folder that you may write to"
    else:
        message = f"{path}: cannot be written ({reason}); choose another folder or name"
    named = type(error)(message)
    named.errno = error.errno
    return named
