"""What a user brings to the evaluation: pairs of a photo and its truth, and results as files.

Files match by equal stem: ``clip_95/001.png`` is a photo of ``reference/001.exr``, as the SI-HDR
benchmark is laid out, and ``reconstructions/expandnet/clip_95/001.exr`` another method's result.

References:
    Hanji, Mantiuk, Eilertsen, Hajisharif and Unger, SI-HDR data set, 2022,
    https://www.cl.cam.ac.uk/research/rainbow/projects/sihdr_benchmark/
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dkpn.color import srgb_to_linear
from dkpn.data import scene_name
from dkpn.hdr_io import HDR_SUFFIXES, read_hdr
from dkpn.metrics import fit_gain
from dkpn.photos import read_photo

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")
RESULT_SUFFIXES = (*HDR_SUFFIXES, ".npy")

_MAX_STEPS = 100
_SETTLED = 1e-6  # relative change of the scale that ends the search for it


@dataclass(frozen=True)
class OwnPair:
    """A photo and the HDR image of the same view that a user has.

    Args:
        name: the stem that both files share.
        scene: the scene it shows: the stem before ``"__"``.
        input: (H, W, 3) uint8, sRGB.
        target: (H, W, 3) float32, the truth: linear Rec.709, 1.0 = clip level = 203 cd/m².
        scale: what the file's values were multiplied by to bring them there.
    """

    name: str
    scene: str
    input: np.ndarray
    target: np.ndarray
    scale: float


def match_pairs(
    inputs: str | os.PathLike[str], data: str | os.PathLike[str]
) -> list[tuple[Path, Path]]:
    """Find the photo and the HDR image of each pair.

    Args:
        inputs: folder of photos (.jpg, .jpeg, .png), searched with the folders in it.
        data: folder of HDR images (.hdr, .exr), likewise.

    Returns:
        (photo, HDR image), sorted by stem.

    Raises:
        FileNotFoundError: there is no such folder, or a file has no partner; the message names it.
        ValueError: no such files in a folder, or two of equal stem.
    """
    photos = _files_by_stem(inputs, PHOTO_SUFFIXES, "photos")
    truths = _files_by_stem(data, HDR_SUFFIXES, "HDR images")
    for files, others, folder in ((photos, truths, data), (truths, photos, inputs)):
        alone = [path for stem, path in files.items() if stem not in others]
        if alone:
            more = f" (and {len(alone) - 1} more such files)" if len(alone) > 1 else ""
            raise FileNotFoundError(
                f"{alone[0]}: no partner named {alone[0].stem}.* in {folder}{more}; pairs match by "
                "equal stem: add the partner, rename it, or take this file away"
            )
    return [(path, truths[stem]) for stem, path in photos.items()]


def own_pairs(inputs: str | os.PathLike[str], data: str | os.PathLike[str]) -> Iterator[OwnPair]:
    """Read a user's own pairs, one after the other.

    Args:
        inputs: folder of photos; see :func:`match_pairs`.
        data: folder of HDR images of any scale.

    Returns:
        An iterator over the pairs, each read when it is asked for.

    Raises:
        FileNotFoundError: there is no such folder, or a file has no partner.
        ValueError: no files, two of equal stem, one that cannot be read, or a pair of two sizes or
            whose scale cannot be found; the message names the file.
    """
    return (read_pair(photo, truth) for photo, truth in match_pairs(inputs, data))


def read_pair(photo: Path, truth: Path) -> OwnPair:
    """Read one pair and bring its truth to the scale of the evaluation.

    Args:
        photo: JPEG or PNG file of 8 bits a channel, in sRGB.
        truth: .hdr or .exr file of the same size.

    Returns:
        The pair.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be read, the photo has more bits or another colour space, the
            sizes differ, or the scale cannot be found; the message names the file.
    """
    opened = read_photo(photo)
    codes = opened.pixels
    if codes.dtype != np.uint8:
        raise ValueError(
            f"{photo}: expected 8 bits a channel in sRGB, got {opened.bit_depth} bits in "
            f"{'sRGB' if opened.icc is None else 'a colour space of its own'}; convert it"
        )
    light = _read_truth(truth)
    if codes.shape != light.shape:
        raise ValueError(
            f"{photo}: is {_size(codes)} pixels, {truth} is {_size(light)}; "
            "a pair shows the same pixels: crop or resize one of them"
        )
    try:
        scale = fit_truth_scale(codes, light)
    except ValueError as error:
        raise ValueError(f"{truth} and {photo}: {error}") from error
    target = light * np.float32(scale)
    return OwnPair(photo.stem, scene_name(photo), codes, target, scale)


def fit_truth_scale(photo: np.ndarray, truth: np.ndarray) -> float:
    """Return what brings a truth of arbitrary scale to 1.0 = clip level of its photo.

    It is the scale at which the gain of the LDR row, the photo decoded as sRGB, is 1:
    ``fit_gain(srgb(photo), scale * truth, photo) = 1``, with the judge's own well-exposed pixels,
    whose truth is below 1. Found by repeated division, from the median ratio of the well-exposed
    values on; the two agree on the clip level because nothing below it clips. On pairs whose clip
    level is known (127 crops, random response curves, JPEG 85-98) it is right to 0.12 stops (root
    of the mean square; the largest error is 0.5), and all methods share it.

    Args:
        photo: (H, W, 3) uint8.
        truth: (H, W, 3), linear, any unit.

    Returns:
        The scale, above 0.

    Raises:
        ValueError: fewer than 100 well-exposed pixels, no light in them, or no scale that settles.
    """
    light = srgb_to_linear(torch.from_numpy(photo.astype(np.float64) / 255)).numpy()
    seen = (photo > 0) & (photo < 255) & (truth > 0)
    if not seen.any():
        raise ValueError("expected pixels that are neither black nor clipped, got none")
    truth = truth.astype(np.float64)
    scale = float(np.median(light[seen] / truth[seen]))
    for _ in range(_MAX_STEPS):
        gain = fit_gain(light, scale * truth, photo)
        scale /= gain
        if abs(gain - 1) < _SETTLED:
            return scale
    raise ValueError(
        "the scale of the truth does not settle; the two files do not seem to show the same light"
    )


class SavedResults:
    """Another method's results, as files.

    Args:
        folder: folder of .hdr, .exr or .npy files, linear Rec.709 of any scale, each with the stem
            of its picture; searched with the folders in it. Other stems are left unread.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no such files in it, or two of equal stem.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.files = _files_by_stem(folder, RESULT_SUFFIXES, "results")

    def require(self, names: Iterable[str]) -> None:
        """Raise FileNotFoundError where there is no file for one of these names."""
        missing = [name for name in names if name not in self.files]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            suffixes = ", ".join(RESULT_SUFFIXES)
            raise FileNotFoundError(
                f"{self.folder / missing[0]}.exr: no such file{more}; every picture needs a result "
                f"of its stem ({suffixes})"
            )

    def read(self, name: str) -> np.ndarray:
        """Return the result for one picture.

        Args:
            name: stem of the picture.

        Returns:
            (H, W, 3) floating point, linear, as it is in the file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be read.
        """
        self.require([name])
        path = self.files[name]
        return _read_array(path) if path.suffix.lower() == ".npy" else read_hdr(path)


def _read_truth(path: Path) -> np.ndarray:
    image = read_hdr(path)
    broken = int((~np.isfinite(image)).sum())
    if broken:
        raise ValueError(
            f"{path}: expected finite values, got {broken} of NaN or infinity; repair the file, or "
            "take the pair away"
        )
    # Colours outside Rec.709 have negative values, which no display shows.
    return np.maximum(image, 0.0)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def _read_array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path}: not an array that can be read, or damaged ({error}); save it again"
        ) from error
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"{path}: expected one floating-point array (H, W, 3) of linear light, got "
            f"{getattr(array, 'dtype', 'an archive')}"
        )
    return array


def _files_by_stem(
    folder: str | os.PathLike[str], suffixes: Sequence[str], what: str
) -> dict[str, Path]:
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    by_stem: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.suffix.lower() not in suffixes or not path.is_file():
            continue
        other = by_stem.setdefault(path.stem, path)
        if other is not path:
            raise ValueError(
                f"{path}: has the same stem as {other}; files match by stem, so name one folder "
                "that holds each stem once, or rename one of them"
            )
    if not by_stem:
        raise ValueError(f"{folder}: expected {what} ({', '.join(suffixes)}), found none")
    return dict(sorted(by_stem.items()))
