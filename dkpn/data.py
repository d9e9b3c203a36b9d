"""Data: HDR images in folders and in memory, and the pairs of the evaluation.

A *scene* is what a file's stem names before ``"__"`` (``garden__crop3.hdr`` shows "garden"): crops
of one scene are never divided between training and validation, nor counted as independent. A set
that ``dkpn prepare`` made (see :mod:`dkpn.prepared`) stands wherever a folder of HDR images does,
and needs no codec: nothing here but the JPEG files of the evaluation needs Pillow.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dkpn.camera import (
    EVALUATION_CAMERA,
    Camera,
    develop,
    sample_camera,
    to_code_values,
)
from dkpn.hdr_io import HDR_SUFFIXES, read_hdr
from dkpn.jpeg import jpeg_decode, jpeg_encode, jpeg_loss
from dkpn.prepared import SUFFIX, is_prepared, prepared_files, read_scene
from dkpn.views import Scene, is_panorama


@dataclass(frozen=True)
class EvaluationPair:
    """One picture of the evaluation.

    Args:
        name: the stem that files of this picture share.
        scene: the scene it shows.
        input: (H, W, 3) uint8, the decoded JPEG.
        jpeg: the bytes of the JPEG file itself.
        target: (H, W, 3) float32, the truth: linear Rec.709, 1.0 = clip level = 203 cd/m².
        camera: the camera that made the input.
    """

    name: str
    scene: str
    input: np.ndarray
    jpeg: bytes
    target: np.ndarray
    camera: Camera


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """List the HDR images in a folder and the folders in it.

    Args:
        folder: folder to search; names that begin with a dot are left out. Or a prepared set.

    Returns:
        The paths of all .hdr and .exr files, sorted; of a prepared set those of its pictures.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no such image is in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    if is_prepared(folder):
        return prepared_files(folder)
    files = [
        path
        for path in folder.rglob("*")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    images = sorted(path for path in files if path.suffix.lower() in HDR_SUFFIXES)
    if not images:
        raise ValueError(
            f"{folder}: expected HDR images (.hdr or .exr), found none among {len(files)} files"
        )
    return images


def scene_name(path: str | os.PathLike[str]) -> str:
    """Return the scene that a file shows: its stem before ``"__"``.

    >>> scene_name("photos/garden__crop3.hdr")
    'garden'
    """
    return Path(path).stem.split("__")[0]


def split_by_scene(files: Sequence[Path], fraction: float = 0.1) -> tuple[list[Path], list[Path]]:
    """Divide files into training and validation, by scene.

    A scene is for validation where the SHA-256 of its name, over 2^256, is below ``fraction``:
    scenes added later move none of the others. Where that leaves one side empty, the scene of the
    smallest (or largest) hash goes there.

    Args:
        files: image files.
        fraction: share of the scenes for validation, in (0, 1).

    Returns:
        The training files and the validation files, each in the order given.

    Raises:
        ValueError: ``fraction`` is out of range, or the files show fewer than two scenes.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: expected a number between 0 and 1, got {fraction}")
    scenes = sorted({scene_name(path) for path in files}, key=_hash_fraction)
    if len(scenes) < 2:
        raise ValueError(
            f"files: expected at least 2 scenes to divide, got {len(scenes)} ({len(files)} files); "
            "name a folder of validation images instead"
        )
    count = sum(_hash_fraction(scene) < fraction for scene in scenes)
    chosen = set(scenes[: min(max(count, 1), len(scenes) - 1)])
    validation = [path for path in files if scene_name(path) in chosen]
    return [path for path in files if scene_name(path) not in chosen], validation


def load_scene(path: Path) -> Scene:
    """Read an HDR image to cut training views from.

    Args:
        path: an .hdr or .exr file; one that looks equirectangular is taken as a panorama, see
            :func:`dkpn.views.is_panorama`. Or a picture of a prepared set, which says what it is.

    Returns:
        The scene, linear Rec.709, read-only. Negative values, which colours outside Rec.709 have,
        are set to zero.

    Raises:
        ValueError: the file cannot be read, or holds NaN or infinity.
        FileNotFoundError: it is missing.
    """
    if path.suffix == SUFFIX:
        return read_scene(path)[0]
    image = _load_image(path)
    return Scene(scene_name(path), image, is_panorama(image))


def make_evaluation_pair(hdr: np.ndarray, relative_path: str, seed: int = 0) -> EvaluationPair:
    """Photograph one HDR image by the evaluation protocol.

    The camera is drawn from SHA-256 of the relative path and the seed, within
    :data:`dkpn.camera.EVALUATION_CAMERA` (3-15 % of the pixels clip, JPEG quality 85-98).

    Args:
        hdr: (H, W, 3) float32, linear Rec.709, at least 0, any unit.
        relative_path: path of the file below the folder of data, with ``/``; it decides the camera,
            its stem the name.
        seed: 0 in the protocol.

    Returns:
        The pair.

    Raises:
        ValueError: the image has another shape, or no light in it; the message names the path.
    """
    camera, scene, photo = _photograph(hdr, relative_path, seed)
    jpeg = jpeg_encode(to_code_values(photo), camera.jpeg_quality)
    return EvaluationPair(
        name=Path(relative_path).stem,
        scene=scene_name(relative_path),
        input=jpeg_decode(jpeg),
        jpeg=jpeg,
        target=_exposed(scene, camera),
        camera=camera,
    )


def make_validation_pair(
    hdr: np.ndarray, relative_path: str, seed: int = 0
) -> tuple[str, np.ndarray, np.ndarray]:
    """Photograph one HDR image as :func:`make_evaluation_pair` does, bit for bit, without Pillow.

    Args:
        hdr: (H, W, 3) floating point, linear Rec.709, at least 0, any unit.
        relative_path: path of the file below the folder of data; it decides the camera.
        seed: 0 in the protocol.

    Returns:
        ``name``, ``input`` and ``target`` of the pair.

    Raises:
        ValueError: the image has another shape, or no light in it; the message names the path.
    """
    camera, scene, photo = _photograph(hdr, relative_path, seed)
    decoded = to_code_values(jpeg_loss(photo[None], [camera.jpeg_quality])[0])
    return Path(relative_path).stem, decoded, _exposed(scene, camera)


def evaluation_pairs(
    folder: str | os.PathLike[str], files: Sequence[Path] | None = None
) -> Iterator[EvaluationPair]:
    """Photograph the HDR images of a folder by the evaluation protocol, one after the other.

    Args:
        folder: folder of data; paths relative to it decide the cameras. In a prepared set, those of
            the sources do: the photos are the same but for what preparing changed.
        files: images below the folder; by default all of them.

    Returns:
        An iterator over the pairs, each made when it is asked for.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no image in it, two of equal stem, or an unreadable one.
    """
    chosen = _chosen(folder, files)
    return (replace(make_evaluation_pair(*_read(path, folder)), name=path.stem) for path in chosen)


def validation_pairs(
    folder: str | os.PathLike[str], files: Sequence[Path] | None = None
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return (name, input, target) of :func:`evaluation_pairs`, in memory, to validate on.

    They are equal to the last bit, and made without Pillow.
    """
    made = [(path, make_validation_pair(*_read(path, folder))) for path in _chosen(folder, files)]
    return [(path.stem, photo, truth) for path, (_, photo, truth) in made]


def _chosen(folder: str | os.PathLike[str], files: Sequence[Path] | None) -> list[Path]:
    """The files, by default all of a folder; ValueError where two have the same stem."""
    files = find_images(folder) if files is None else list(files)
    by_stem: dict[str, Path] = {}
    for path in files:
        if path.stem in by_stem:
            raise ValueError(
                f"{path}: has the same stem as {by_stem[path.stem]}; pairs are matched by stem, so "
                "rename one of them"
            )
        by_stem[path.stem] = path
    return files


def _photograph(hdr: np.ndarray, relative_path: str, seed: int) -> tuple[Camera, Tensor, Tensor]:
    """The camera of a path, the scene (3, H, W) float32, and its photo before JPEG, likewise."""
    digest = hashlib.sha256(f"{relative_path},{seed}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    try:
        camera = sample_camera(hdr, EVALUATION_CAMERA, rng)
    except ValueError as error:
        raise ValueError(f"{relative_path}: {error}") from error
    # Read-only arrays cannot become tensors without a warning.
    scene = torch.from_numpy(np.array(hdr.transpose(2, 0, 1), dtype=np.float32, order="C"))
    return camera, scene, develop(scene, camera)


def _exposed(scene: Tensor, camera: Camera) -> np.ndarray:
    return (scene * camera.exposure).permute(1, 2, 0).contiguous().numpy()


def _read(path: Path, folder: str | os.PathLike[str]) -> tuple[np.ndarray, str]:
    """An image, and the path below its folder (of a prepared one: of its source's folder)."""
    if path.suffix == SUFFIX:
        scene, source = read_scene(path)
        return scene.pixels.astype(np.float32), source
    return _load_image(path), path.relative_to(folder).as_posix()


def _load_image(path: Path) -> np.ndarray:
    image = read_hdr(path)
    if not np.isfinite(image).all():
        count = int((~np.isfinite(image)).sum())
        raise ValueError(
            f"{path}: expected finite values, got {count} of NaN or infinity; "
            "repair the file or take it out of the folder"
        )
    np.maximum(image, 0.0, out=image)
    image.setflags(write=False)
    return image


def _hash_fraction(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest(), "big") / 2**256
