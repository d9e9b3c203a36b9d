"""From arrays and photo files to batches, and from results to arrays and HDR files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dkpn.color import tone_map
from dkpn.hdr_io import HDR_SUFFIXES, read_photo, write_hdr, write_png

if TYPE_CHECKING:
    from dkpn.model import DKPN

Image = TypeVar("Image", np.ndarray, Tensor)

LARGEST = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}
LARGEST_OF_TENSOR = {torch.uint8: 255.0, torch.uint16: 65535.0}


def encoded_batch(image: np.ndarray | Tensor) -> Tensor:
    """Bring an image of any accepted kind into the form that the network takes.

    Args:
        image: sRGB-encoded; numpy (H, W, 3), or torch (3, H, W) or (B, 3, H, W); uint8, uint16, or
            floating point in [0, 1].

    Returns:
        (B, 3, H, W), float32, sRGB-encoded in [0, 1], on the image's device.

    Raises:
        TypeError: ``image`` is neither array nor tensor, or of another dtype.
        ValueError: another layout, no pixels, NaN, or values outside [0, 1].
    """
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(f"image: expected an array (H, W, 3), got shape {image.shape}")
        largest = LARGEST.get(image.dtype)
        floating = np.issubdtype(image.dtype, np.floating)
        # A copy, because an array may be read-only or run backwards; neither makes a tensor.
        values = torch.from_numpy(np.array(image, dtype=np.float32, order="C"))
        batch = rearrange(values, "h w c -> 1 c h w")
    elif isinstance(image, Tensor):
        if image.ndim not in (3, 4) or image.shape[-3] != 3 or image.numel() == 0:
            raise ValueError(
                "image: expected a tensor (3, H, W) or (B, 3, H, W), "
                f"got shape {tuple(image.shape)}"
            )
        largest = LARGEST_OF_TENSOR.get(image.dtype)
        floating = image.is_floating_point()
        batch = image.float().reshape(-1, *image.shape[-3:])
    else:
        raise TypeError(
            f"image: expected a numpy array or a torch tensor, got {type(image).__name__}"
        )
    if largest is not None:
        return batch / largest
    if not floating:
        raise TypeError(f"image: expected uint8, uint16 or floating point, got {image.dtype}")
    low, high = float(batch.min()), float(batch.max())
    # Written so that NaN fails as well.
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(
            f"image: expected sRGB-encoded values in [0, 1], got {low:g} to {high:g}; "
            "divide 8-bit values by 255, or pass them as uint8"
        )
    return batch


def in_layout_of(image: Image, result: Tensor) -> Image:
    """Give a result (B, 3, H, W) the kind, layout and device of the image it was made from."""
    if isinstance(image, Tensor):
        shaped = result.reshape(image.shape).to(image.device)
        return cast(Image, shaped)
    array = np.ascontiguousarray(rearrange(result, "1 c h w -> h w c").cpu().numpy())
    return cast(Image, array)


@dataclass(frozen=True)
class Reconstruction:
    """One photo and the two files that it becomes.

    Args:
        photo: the file to read.
        hdr: the ``.exr`` or ``.hdr`` file to write.
        preview: the tone-mapped PNG to write.
    """

    photo: Path
    hdr: Path
    preview: Path


def plan_reconstructions(
    photos: Sequence[str | Path], output: str | Path, overwrite: bool = False
) -> list[Reconstruction]:
    """Decide which files to write, before anything is read or written.

    Args:
        photos: files to read.
        output: with a suffix, ``.exr`` or ``.hdr``: the file for a single photo. Without one: the
            folder that receives ``<stem>.exr`` for each photo. ``<stem>_preview.png`` lies beside.
        overwrite: let outputs replace files that exist; never one of ``photos``.

    Returns:
        One entry for each photo, same order.

    Raises:
        ValueError: unknown suffix, a file for several photos, a folder where a file is or the
            reverse, photos of equal stem, or an output that is one of the photos.
        FileNotFoundError: the folder of an output file does not exist.
        FileExistsError: an output exists and ``overwrite`` is not set.
    """
    paths = [Path(photo) for photo in photos]
    output = Path(output)
    plan = [_single_file(paths, output)] if output.suffix else _files_in_folder(paths, output)
    inputs = {os.path.realpath(path) for path in paths}
    for entry in plan:
        for target in (entry.hdr, entry.preview):
            if os.path.realpath(target) in inputs:
                raise ValueError(
                    f"{target}: this output would overwrite one of the photos; "
                    "choose another output folder or name"
                )
            if target.is_dir():
                raise ValueError(f"{target}: is a folder, expected a file to write")
            if target.exists() and not overwrite:
                raise FileExistsError(f"{target}: exists already; allow that with --overwrite")
    return plan


def _single_file(photos: list[Path], output: Path) -> Reconstruction:
    if output.suffix.lower() not in HDR_SUFFIXES:
        raise ValueError(
            f"{output}: expected .exr or .hdr for a file, or a name without suffix for a folder, "
            f"got {output.suffix!r}"
        )
    if len(photos) != 1:
        raise ValueError(
            f"{output}: one file cannot hold {len(photos)} photos; "
            "give a folder, which is a name without suffix"
        )
    if not output.parent.is_dir():
        raise FileNotFoundError(
            f"{output}: the folder {output.parent} does not exist; create it first"
        )
    return Reconstruction(photos[0], output, output.with_name(f"{output.stem}_preview.png"))


def _files_in_folder(photos: list[Path], output: Path) -> list[Reconstruction]:
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: is a file, expected a folder; a file to write ends in .exr")
    stems: dict[str, Path] = {}
    for photo in photos:
        # Many file systems hold "A.exr" and "a.exr" for the same file.
        other = stems.setdefault(photo.stem.casefold(), photo)
        if other is not photo:
            raise ValueError(
                f"{other} and {photo}: both would become {photo.stem}.exr; "
                "reconstruct them into two folders"
            )
    return [
        Reconstruction(photo, output / f"{photo.stem}.exr", output / f"{photo.stem}_preview.png")
        for photo in photos
    ]


def reconstruct_file(model: "DKPN", entry: Reconstruction) -> None:
    """Read one photo, reconstruct it, and write the HDR image and its preview.

    Args:
        model: the network.
        entry: what to read and write; folders exist.

    Raises:
        FileNotFoundError: there is no such photo.
        ValueError: the photo cannot be read, or the network's result is not finite.
    """
    result = model.infer(read_photo(entry.photo))
    if not np.isfinite(result).all():
        raise ValueError(
            f"{entry.photo}: the result holds NaN or infinity; these weights are not usable"
        )
    write_hdr(entry.hdr, result)
    write_png(entry.preview, preview(result))


def preview(image: np.ndarray) -> np.ndarray:
    """Tone-map an HDR image, (H, W, 3) float32 linear, to uint8 sRGB for an ordinary screen."""
    encoded = tone_map(rearrange(torch.from_numpy(image), "h w c -> c h w"))
    return rearrange((encoded * 255.0).round().byte(), "c h w -> h w c").contiguous().numpy()
