"""What a run trains and validates on: the images of folders, or generated scenes."""

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from dkpn.data import (
    find_images,
    load_scene,
    make_evaluation_pair,
    split_by_scene,
    validation_pairs,
)
from dkpn.monitor import ValidationPair
from dkpn.run_config import RunConfig
from dkpn.scenes import generate_scenes
from dkpn.training_pairs import TrainingPairs
from dkpn.views import Scene

GENERATED_SCENES, GENERATED_VALIDATION = 64, 8
GENERATED_SIDE = 256  # pixels

Image = TypeVar("Image")


def training_data(
    config: RunConfig,
    data: Path | None,
    validation: Path | None,
    device: torch.device | str = "cpu",
    quiet: bool = False,
) -> tuple[TrainingPairs, list[ValidationPair]]:
    """Read, or generate, what a run trains and validates on.

    Images that cannot be read are skipped, counted and named on the terminal.

    Args:
        config: all choices.
        data: folder of HDR images; None: generated scenes.
        validation: folder of HDR images; None: a tenth of the scenes of ``data``, which are then
            not trained on, or other generated scenes.
        device: where the scenes lie and the pairs are made.
        quiet: say nothing of skipped images.

    Returns:
        The training pairs, and the validation images by the protocol of the evaluation.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a folder holds no image that can be read, too few scenes, or a photo smaller
            than ``crop_size``.
    """
    seed, most = config.train.seed, config.train.validation_images
    if data is None:
        images = generate_scenes(GENERATED_SCENES, GENERATED_SIDE, seed)
        scenes = [Scene(f"generated{i}", image) for i, image in enumerate(images)]
        unseen = generate_scenes(min(most, GENERATED_VALIDATION), GENERATED_SIDE, seed + 1)
        made = [make_evaluation_pair(scene, f"generated{i}.exr") for i, scene in enumerate(unseen)]
        held_out = [(pair.name, pair.input, pair.target) for pair in made]
    else:
        files, folder = find_images(data), validation or data
        if validation is None:
            files, judged = split_by_scene(files)
        else:
            judged = find_images(validation)
        scenes = readable(files, load_scene, quiet)
        held_out = readable(
            spread(judged, most), lambda path: validation_pairs(folder, [path])[0], quiet
        )
    pairs = TrainingPairs(scenes, config.data, camera=config.camera, seed=seed, device=device)
    return pairs, held_out


def readable(
    files: Sequence[Path], read: Callable[[Path], Image], quiet: bool = False
) -> list[Image]:
    """Read files, several at once, without those that cannot be read; say which these are.

    Args:
        files: at least one.
        read: raises OSError or ValueError, with the file's name, where one cannot be read.
        quiet: say nothing.

    Returns:
        What was read, in the order of ``files``.

    Raises:
        ValueError: none can be read.
    """

    def attempt(path: Path) -> tuple[list[Image], str]:
        try:
            return [read(path)], ""
        except (OSError, ValueError) as error:
            return [], str(error)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        attempts = list(pool.map(attempt, files))
    images = [image for found, _ in attempts for image in found]
    reasons = [reason for found, reason in attempts if not found]
    if not images:
        raise ValueError(f"none of {len(files)} images can be read; the first: {reasons[0]}")
    if reasons and not quiet:
        text = f"skipped {len(reasons)} of {len(files)} images that cannot be read:"
        print(text, *reasons, sep="\n  ", file=sys.stderr)
    return images


def spread(files: list[Path], most: int) -> list[Path]:
    """Choose at most so many files, evenly spaced over all."""
    count = min(most, len(files))
    return [files[index * len(files) // count] for index in range(count)]
