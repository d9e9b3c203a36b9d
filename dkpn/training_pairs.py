"""Training pairs made on the fly: random views of HDR scenes, photographed by random cameras.

Nothing is read while a network trains: the scenes lie on the training device, and views, cameras,
noise and JPEG are all made there (see :mod:`dkpn.views`, :mod:`dkpn.photograph`). A GPU is given
the next batch while it still works on a step; on a CPU, :meth:`TrainingPairs.batches` makes it in a
thread.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dkpn.camera import CameraConfig, CameraDraw, draw_camera
from dkpn.photograph import photograph
from dkpn.views import (
    PanoramaView,
    Scene,
    log_panorama,
    photo_tensor,
    stops_in_square,
    stops_in_view,
    thumbnail,
    view_of_panorama,
    view_of_photo,
)

# A view of too little range, or without light, is drawn again so many times, then taken if there is
# light in it.
_ATTEMPTS = 8

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class DataConfig:
    """How training views are cut from HDR scenes.

    Args:
        crop_size: side of the square views, pixels.
        panorama_share: share of the views that are of panoramas, where there are both panoramas and
            photos.
        field_of_view: smallest and largest field of view in a panorama, degrees.
        pitch: lowest and highest tilt of a view in a panorama, degrees, up is positive.
        roll: a view in a panorama is turned by up to this many degrees, either way.
        max_shrink: a photo's views are cut up to this many times larger and shrunk to ``crop_size``
            by averaging in linear light; 1 leaves the scale as it is.
        flip: mirror every other view.
        rotate: turn views by a random multiple of 90°; off, since skies and lamps are above.
        white_balance: each channel is multiplied by up to this many stops, up or down.
        min_stops: views of less range, from the 2nd to the 98th percentile, are drawn again.

    Raises:
        ValueError: a number is out of its range.
    """

    crop_size: int = 192
    panorama_share: float = 0.7
    field_of_view: tuple[float, float] = (45.0, 100.0)
    pitch: tuple[float, float] = (-15.0, 25.0)
    roll: float = 3.0
    max_shrink: float = 2.0
    flip: bool = True
    rotate: bool = False
    white_balance: float = 0.2
    min_stops: float = 2.5

    def __post_init__(self) -> None:
        low, high = self.field_of_view
        lowest, highest = self.pitch
        for name, valid, expected in (
            ("crop_size", self.crop_size >= 8, "at least 8 pixels"),
            ("panorama_share", 0 <= self.panorama_share <= 1, "a share from 0 to 1"),
            ("field_of_view", 5 <= low <= high <= 150, "5 to 150 degrees, ascending"),
            ("pitch", -90 <= lowest <= highest <= 90, "-90 to 90 degrees, ascending"),
            ("roll", 0 <= self.roll <= 180, "0 to 180 degrees"),
            ("max_shrink", 1 <= self.max_shrink <= 16, "1 to 16"),
            ("white_balance", 0 <= self.white_balance <= 4, "0 to 4 stops"),
            ("min_stops", 0 <= self.min_stops <= 20, "0 to 20 stops"),
        ):
            if not valid:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)}")


class TrainingPairs:
    """Pairs of an 8-bit photo and its HDR truth, made on the fly.

    A pair is a function of the seed and its index alone, the same in every run on one kind of
    device, which is what lets training resume bit for bit, and several processes share a batch.

    Args:
        scenes: photos, at least ``crop_size`` a side, and panoramas.
        config: views and augmentation.
        camera: the range of cameras.
        seed: at least 0.
        device: where the scenes lie and the pairs are made.

    Raises:
        ValueError: no scene, a photo smaller than the views, or a scene without light in it.

    >>> from dkpn.scenes import generate_scenes
    >>> scenes = [Scene("generated", image) for image in generate_scenes(1, 32)]
    >>> photo, truth = TrainingPairs(scenes, DataConfig(crop_size=16)).batch(range(2))
    >>> photo.shape, truth.dtype
    (torch.Size([2, 3, 16, 16]), torch.float32)
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        config: DataConfig,
        *,
        camera: CameraConfig | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if not scenes:
            raise ValueError("scenes: expected at least one, got none")
        for scene in scenes:
            _check_scene(scene, config)
        if seed < 0:
            raise ValueError(f"seed: expected an integer of at least 0, got {seed}")
        self.scenes, self.config, self.seed = list(scenes), config, seed
        self.device = torch.device(device)
        self.camera = CameraConfig() if camera is None else camera
        self._tensors = [
            (log_panorama if scene.panorama else photo_tensor)(scene.pixels, device)
            for scene in scenes
        ]
        self._thumbnails = [thumbnail(scene) for scene in scenes]
        self._panoramas = [i for i, scene in enumerate(scenes) if scene.panorama]
        self._photos = [i for i, scene in enumerate(scenes) if not scene.panorama]

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Make the pairs of some indices.

        Args:
            indices: integers of at least 0.

        Returns:
            The photos, code values / 255, and the truths, linear, 1.0 = clip level; both
            (B, 3, crop_size, crop_size) float32 on the device.
        """
        made = [self._view(index) for index in indices]
        return photograph(torch.stack([view for view, _ in made]), [draw for _, draw in made])

    def batches(self, parts: Iterable[Sequence[int]]) -> Generator[tuple[Tensor, Tensor]]:
        """Make one batch after the other, on a CPU each while the one before is in use.

        Close it where it is left before its end, so that no thread is left at work.

        Args:
            parts: the indices of each batch.

        Yields:
            What :meth:`batch` returns for each part.
        """
        if self.device.type != "cpu":
            yield from map(self.batch, parts)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
            next_one = None
            for part in parts:
                made, next_one = next_one, thread.submit(self.batch, part)
                if made is not None:
                    yield made.result()
            if next_one is not None:
                yield next_one.result()

    def _view(self, index: int) -> tuple[Tensor, CameraDraw]:
        """A view (3, crop_size, crop_size), and the camera to photograph it with."""
        if index < 0:
            raise IndexError(f"indices: expected at least 0, got {index}")
        config, rng = self.config, np.random.default_rng((self.seed, index))
        of_panorama = bool(self._panoramas) and (
            not self._photos or rng.random() < config.panorama_share
        )
        chosen = self._panoramas if of_panorama else self._photos
        number = chosen[int(rng.integers(len(chosen)))]
        cut = self._cut_panorama if of_panorama else self._cut_photo
        view = cut(number, rng)
        if config.flip and rng.random() < 0.5:
            view = view.flip(-1)
        if config.rotate:
            view = view.rot90(int(rng.integers(0, 4)), (-2, -1))
        gain = np.exp2(config.white_balance * rng.uniform(-1.0, 1.0, size=3)).astype(np.float32)
        view = view * torch.from_numpy(gain).to(view.device)[:, None, None]
        return view, draw_camera(self.camera, rng)

    def _cut_panorama(self, number: int, rng: np.random.Generator) -> Tensor:
        config, small = self.config, self._thumbnails[number]

        def draw() -> tuple[PanoramaView, float]:
            view = PanoramaView(
                yaw=float(rng.uniform(-180.0, 180.0)),
                pitch=float(rng.uniform(*config.pitch)),
                roll=float(rng.uniform(-config.roll, config.roll)),
                field_of_view=float(rng.uniform(*config.field_of_view)),
            )
            return view, stops_in_view(small, view)

        view = _of_range(draw, config.min_stops)
        assert view is not None  # black is floored: the range of a view is 0 or more
        return view_of_panorama(self._tensors[number], view, config.crop_size)

    def _cut_photo(self, number: int, rng: np.random.Generator) -> Tensor:
        config, photo, small = self.config, self._tensors[number], self._thumbnails[number]
        height, width = photo.shape[-2:]
        room = min(height, width, int(config.crop_size * config.max_shrink))

        def draw() -> tuple[tuple[int, int, int], float]:
            side = int(rng.integers(config.crop_size, room + 1))
            top = int(rng.integers(0, height - side + 1))
            left = int(rng.integers(0, width - side + 1))
            step = height / small.shape[0]
            rows = slice(int(top / step), int((top + side) / step) + 1)
            columns = slice(int(left / step), int((left + side) / step) + 1)
            part = small[rows, columns]
            stops = stops_in_square(part) if part.max() > 0 else -1.0
            return (top, left, side), stops

        square = _of_range(draw, config.min_stops) or (0, 0, min(height, width))
        return view_of_photo(photo, *square, config.crop_size)


def _of_range(draw: Callable[[], tuple[Choice, float]], min_stops: float) -> Choice | None:
    """The first choice of enough range in stops, else that of the largest; None if none has light,
    which -1 stop stands for."""
    best, most = None, -1.0
    for _ in range(_ATTEMPTS):
        choice, stops = draw()
        if stops > most:
            best, most = choice, stops
        if stops >= min_stops:
            break
    return best


def _check_scene(scene: Scene, config: DataConfig) -> None:
    height, width, *_ = scene.pixels.shape
    if scene.pixels.ndim != 3 or scene.pixels.shape[2] != 3:
        raise ValueError(f"{scene.name}: expected shape (H, W, 3), got {scene.pixels.shape}")
    if not scene.panorama and min(height, width) < config.crop_size:
        raise ValueError(
            f"{scene.name}: expected at least crop_size = {config.crop_size} pixels a side, got "
            f"{width} x {height}; lower crop_size or take it away"
        )
    if not scene.pixels.max() > 0:
        raise ValueError(f"{scene.name}: expected light in it, got a black image")
