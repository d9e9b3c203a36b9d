"""Data: HDR images in memory, training pairs made on the fly, and the pairs of the evaluation.

A *scene* is what a file's stem names before ``"__"`` (``garden__crop3.hdr`` shows "garden"): crops
of one scene are never divided between training and validation, nor counted as independent.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dkpn.camera import (
    EVALUATION_CAMERA,
    Camera,
    CameraConfig,
    develop,
    jpeg_decode,
    jpeg_encode,
    jpeg_roundtrip,
    sample_camera,
    to_code_values,
)
from dkpn.hdr_io import HDR_SUFFIXES, read_hdr

# A crop without light in it is drawn again; after so many draws the image is given up.
_CROP_ATTEMPTS = 16


@dataclass(frozen=True)
class DataConfig:
    """How training pairs are cut from HDR images.

    Args:
        crop_size: side of the square crops, pixels.
        max_shrink: crops are cut up to this many times larger and shrunk to ``crop_size`` by
            averaging in linear light; 1 leaves the scale as it is.
        flip: mirror every other crop.
        rotate: turn crops by a random multiple of 90°.
        white_balance: each channel is multiplied by up to this many stops, up or down.

    Raises:
        ValueError: a number is out of its range.
    """

    crop_size: int = 192
    max_shrink: float = 1.5
    flip: bool = True
    rotate: bool = True
    white_balance: float = 0.2

    def __post_init__(self) -> None:
        if self.crop_size < 8:
            raise ValueError(f"crop_size: expected at least 8 pixels, got {self.crop_size}")
        if not 1 <= self.max_shrink <= 16:
            raise ValueError(f"max_shrink: expected 1 to 16, got {self.max_shrink}")
        if not 0 <= self.white_balance <= 4:
            raise ValueError(f"white_balance: expected 0 to 4 stops, got {self.white_balance}")


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
        folder: folder to search; names that begin with a dot are left out.

    Returns:
        The paths of all .hdr and .exr files, sorted.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no such image is in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
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


def load_images(files: Sequence[Path], threads: int | None = None) -> list[np.ndarray]:
    """Read HDR images for use as scenes, several at once.

    Args:
        files: .hdr and .exr files.
        threads: how many to decode at once; by default one for each CPU, at most 8.

    Returns:
        (H, W, 3) float32 arrays in the order of ``files``, linear Rec.709, read-only. Negative
        values, which colours outside Rec.709 have, are set to zero.

    Raises:
        ValueError: a file cannot be read, or holds NaN or infinity.
        FileNotFoundError: a file is missing.
    """
    with ThreadPoolExecutor(threads or min(os.cpu_count() or 1, 8)) as pool:
        return list(pool.map(_load_scene, files))


class TrainingPairs(Dataset[dict[str, Tensor]]):
    """Pairs of an 8-bit photo and its HDR truth, made on the fly.

    A pair is a pure function of the seed and its index: the same in every worker, order and run,
    which is what lets training resume bit for bit. Each run of ``len(images)`` indices shows every
    image once, in a new order; an index may be any integer of at least 0. Workers that are forked
    share the images.

    Args:
        images: (H, W, 3) float32, linear Rec.709, at least 0, any unit, at least ``crop_size`` a
            side; from :func:`load_images` or :func:`dkpn.scenes.generate_scenes`.
        config: crops and augmentation.
        camera: the range of cameras.
        seed: at least 0.
        length: what ``len()`` says; by default the number of images.

    Raises:
        ValueError: no image, one smaller than the crops, or one without light in it.

    >>> from dkpn.scenes import generate_scenes
    >>> pairs = TrainingPairs(generate_scenes(1, 32), DataConfig(crop_size=16))
    >>> pair = pairs[0]
    >>> pair["input"].shape, pair["target"].dtype
    (torch.Size([3, 16, 16]), torch.float32)
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        config: DataConfig,
        *,
        camera: CameraConfig | None = None,
        seed: int = 0,
        length: int | None = None,
    ) -> None:
        if not images:
            raise ValueError("images: expected at least one, got none")
        for index, image in enumerate(images):
            if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < config.crop_size:
                raise ValueError(
                    f"images[{index}]: expected shape (H, W, 3) with sides of at least crop_size = "
                    f"{config.crop_size}, got {image.shape}; lower crop_size or leave it out"
                )
            if not image.max() > 0:
                raise ValueError(f"images[{index}]: expected light in it, got a black image")
        if seed < 0:
            raise ValueError(f"seed: expected an integer of at least 0, got {seed}")
        self.images = list(images)
        self.config = config
        self.camera = CameraConfig() if camera is None else camera
        self.seed = seed
        self.length = len(self.images) if length is None else length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        # Python's own loop would go on for ever, since every index is valid.
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return ``input``, code values / 255, and ``target``, linear; (3, h, w) float32 both."""
        if index < 0:
            raise IndexError(f"index: expected at least 0, got {index}")
        epoch, position = divmod(index, len(self.images))
        order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.images))
        rng = np.random.default_rng((self.seed, 1, index))
        hdr = self._crop(self.images[order[position]], rng)
        camera = sample_camera(hdr, self.camera, rng)
        scene = torch.from_numpy(np.ascontiguousarray(hdr.transpose(2, 0, 1)))
        photo = jpeg_roundtrip(to_code_values(develop(scene, camera)), camera.jpeg_quality)
        codes = torch.from_numpy(np.ascontiguousarray(photo.transpose(2, 0, 1)))
        return {"input": codes.float() / 255, "target": scene * camera.exposure}

    def _crop(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Cut and augment a crop that has light in it: (crop_size, crop_size, 3) float32."""
        config = self.config
        for _ in range(_CROP_ATTEMPTS):
            room = min(image.shape[0], image.shape[1], int(config.crop_size * config.max_shrink))
            side = int(rng.integers(config.crop_size, room + 1))
            top = int(rng.integers(0, image.shape[0] - side + 1))
            left = int(rng.integers(0, image.shape[1] - side + 1))
            crop = image[top : top + side, left : left + side]
            if crop.max() > 0:
                break
        else:
            crop = image
        if crop.shape[:2] != (config.crop_size, config.crop_size):
            crop = shrink_area(crop, (config.crop_size, config.crop_size))
        if config.flip and rng.random() < 0.5:
            crop = crop[:, ::-1]
        if config.rotate:
            crop = np.rot90(crop, int(rng.integers(0, 4)))
        gain = np.exp2(config.white_balance * rng.uniform(-1.0, 1.0, size=3))
        return crop * gain.astype(np.float32)


def shrink_area(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Average the area of (H, W, C) linear light that each new pixel covers: (*size, C) float32."""
    height, width = image.shape[:2]
    if not (1 <= size[0] <= height and 1 <= size[1] <= width):
        raise ValueError(f"size: expected 1 to {height} and 1 to {width}, got {size}")
    # A sum over the few old pixels in each new one is quicker than a matrix product, and starts no
    # threads in a loader's worker.
    indices, weights = _area_weights(height, size[0])
    rows = np.zeros((size[0], *image.shape[1:]), np.float32)
    for index, weight in zip(indices, weights, strict=True):
        rows += image[index] * weight[:, None, None]
    indices, weights = _area_weights(width, size[1])
    shrunk = np.zeros((*size, image.shape[2]), np.float32)
    for index, weight in zip(indices, weights, strict=True):
        shrunk += rows[:, index] * weight[:, None]
    return shrunk


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
    digest = hashlib.sha256(f"{relative_path},{seed}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    try:
        camera = sample_camera(hdr, EVALUATION_CAMERA, rng)
    except ValueError as error:
        raise ValueError(f"{relative_path}: {error}") from error
    # Read-only arrays cannot become tensors without a warning.
    scene = torch.from_numpy(np.array(hdr.transpose(2, 0, 1), dtype=np.float32, order="C"))
    jpeg = jpeg_encode(to_code_values(develop(scene, camera)), camera.jpeg_quality)
    target = (scene * camera.exposure).permute(1, 2, 0).contiguous().numpy()
    return EvaluationPair(
        name=Path(relative_path).stem,
        scene=scene_name(relative_path),
        input=jpeg_decode(jpeg),
        jpeg=jpeg,
        target=target,
        camera=camera,
    )


def evaluation_pairs(
    folder: str | os.PathLike[str], files: Sequence[Path] | None = None
) -> Iterator[EvaluationPair]:
    """Photograph the HDR images of a folder by the evaluation protocol, one after the other.

    Args:
        folder: folder of data; paths relative to it decide the cameras.
        files: images below the folder; by default all of them.

    Returns:
        An iterator over the pairs, each made when it is asked for.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no image in it, two of equal stem, or an unreadable one.
    """
    folder = Path(folder)
    files = find_images(folder) if files is None else list(files)
    by_stem: dict[str, Path] = {}
    for path in files:
        if path.stem in by_stem:
            raise ValueError(
                f"{path}: has the same stem as {by_stem[path.stem]}; pairs are matched by stem, so "
                "rename one of them"
            )
        by_stem[path.stem] = path
    return (
        make_evaluation_pair(_load_scene(path), path.relative_to(folder).as_posix())
        for path in files
    )


def validation_pairs(
    folder: str | os.PathLike[str], files: Sequence[Path] | None = None
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return (name, input, target) of :func:`evaluation_pairs`, in memory, to validate on."""
    return [(pair.name, pair.input, pair.target) for pair in evaluation_pairs(folder, files)]


def _load_scene(path: Path) -> np.ndarray:
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
