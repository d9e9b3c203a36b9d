"""Views: square pictures of random direction and size, cut from photos and from panoramas.

A view is made on the device that holds the scenes, in the natural logarithm of radiance where
pixels are interpolated (small lamps make dark rings or flicker otherwise) and in linear light where
they are averaged.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

# Light below this share of a scene's median counts as black: 20 stops.
BLACK = 2.0**-20
# A panorama's views are sampled at up to so many times their size, then averaged.
MOST_SAMPLES = 4


@dataclass(frozen=True)
class Scene:
    """One HDR picture to cut views from.

    Args:
        name: of the scene; pictures of one name show the same place.
        pixels: (H, W, 3) float16 or float32, linear Rec.709, at least 0, any unit.
        panorama: whether it is equirectangular: all around, from straight up to straight down.
    """

    name: str
    pixels: np.ndarray
    panorama: bool = False


def is_panorama(image: np.ndarray) -> bool:
    """Whether a picture looks equirectangular: twice as wide as high, and its sides meet.

    They meet where the step from the last column to the first is no larger than three times the
    usual step between columns, both in the median of the logarithm of radiance.

    Args:
        image: (H, W, 3), linear, at least 0.
    """
    height, width = image.shape[:2]
    if width != 2 * height or height < 16:
        return False
    light = np.log(image.max(axis=2).astype(np.float32) + 1e-6 * float(image.max()) + 1e-30)
    inner = np.abs(np.diff(light, axis=1))
    seam = np.abs(light[:, 0] - light[:, -1])
    # Flat renderings have no step at all between most columns: 0.02 is half a code value at 8 bits.
    return float(np.median(seam)) <= 3.0 * float(np.median(inner)) + 0.02


@dataclass(frozen=True)
class PanoramaView:
    """Where a virtual camera inside a panorama looks; all angles in degrees.

    Args:
        yaw: to the right of the panorama's middle.
        pitch: up.
        roll: clockwise, of the camera around its axis.
        field_of_view: from left to right.
    """

    yaw: float
    pitch: float
    roll: float
    field_of_view: float

    def directions(self, size: int, device: torch.device | str = "cpu") -> Tensor:
        """The direction of each pixel of a square view: (size, size, 3), right, up, forward."""
        half = math.tan(math.radians(self.field_of_view) / 2)
        steps = (torch.arange(size, device=device) + 0.5) * (2 * half / size) - half
        down, right = torch.meshgrid(steps, steps, indexing="ij")
        rays = torch.stack((right, -down, torch.ones_like(right)), dim=-1)
        return rays @ self.rotation().to(device).T

    def rotation(self) -> Tensor:
        """From the camera's axes (right, up, forward) to the panorama's: (3, 3) float32."""
        yaw, pitch, roll = (math.radians(x) for x in (self.yaw, self.pitch, self.roll))
        about_up = [
            [math.cos(yaw), 0.0, math.sin(yaw)],
            [0.0, 1.0, 0.0],
            [-math.sin(yaw), 0.0, math.cos(yaw)],
        ]
        about_right = [
            [1.0, 0.0, 0.0],
            [0.0, math.cos(pitch), math.sin(pitch)],
            [0.0, -math.sin(pitch), math.cos(pitch)],
        ]
        about_forward = [
            [math.cos(roll), math.sin(roll), 0.0],
            [-math.sin(roll), math.cos(roll), 0.0],
            [0.0, 0.0, 1.0],
        ]
        turns = [torch.tensor(turn) for turn in (about_up, about_right, about_forward)]
        return turns[0] @ turns[1] @ turns[2]


def log_panorama(pixels: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Bring a panorama into the form that :func:`view_of_panorama` samples.

    Args:
        pixels: (H, W, 3), linear, at least 0.
        device: where it shall lie.

    Returns:
        (3, H, W + 2), the natural logarithm of radiance, its last column repeated before the first
        and its first after the last; float16 on a GPU, which holds it to 0.4 %, else float32.
    """
    light = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))
    floor = BLACK * _median_light(pixels)
    wrapped = torch.cat((light[..., -1:], light, light[..., :1]), dim=-1)
    values = wrapped.clamp_min(floor).log()
    return values.to(device, torch.float16 if torch.device(device).type == "cuda" else None)


def view_of_panorama(panorama: Tensor, view: PanoramaView, size: int) -> Tensor:
    """Look into a panorama.

    Args:
        panorama: from :func:`log_panorama`.
        view: direction and field of view.
        size: pixels a side.

    Returns:
        (3, size, size) float32, linear.
    """
    width = panorama.shape[-1] - 2
    # As fine as the panorama where a view is coarser, in its middle.
    pixel = 2 * math.tan(math.radians(view.field_of_view) / 2) / size
    samples = min(math.ceil(pixel / (2 * math.pi / width)), MOST_SAMPLES)
    fine = size * samples
    rays = view.directions(fine, panorama.device)
    longitude = torch.atan2(rays[..., 0], rays[..., 2])  # (-pi, pi], 0 in the middle
    latitude = torch.atan2(rays[..., 1], rays[..., :1].hypot(rays[..., 2:])[..., 0])
    # grid_sample's coordinates: -1 and 1 are the outer edges, here of the two added columns.
    grid = torch.stack((longitude / math.pi * (width / (width + 2)), latitude / (-math.pi / 2)), -1)
    sampled = F.grid_sample(
        panorama[None].float(), grid[None], "bilinear", "border", align_corners=False
    )
    return F.avg_pool2d(sampled.exp(), samples)[0]


def view_of_photo(photo: Tensor, top: int, left: int, side: int, size: int) -> Tensor:
    """Cut a square and shrink it.

    Args:
        photo: (3, H, W) linear.
        top: first row.
        left: first column.
        side: of the square, pixels, at least ``size``.
        size: pixels a side of the view.

    Returns:
        (3, size, size) float32, linear: averages, with weights that fall linearly with distance.
    """
    square = photo[None, :, top : top + side, left : left + side].float()
    if side == size:
        return square[0]
    # Weights are positive, so that no value leaves the range of its neighbours.
    shape = (size, size)
    return F.interpolate(square, shape, mode="bilinear", align_corners=False, antialias=True)[0]


def photo_tensor(pixels: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Bring a photo into the form that :func:`view_of_photo` cuts: (3, H, W) float32."""
    light = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
    return torch.from_numpy(light).to(device)


def thumbnail(scene: Scene, height: int = 64) -> np.ndarray:
    """Largest channel of every n-th pixel, (h, w), to judge views by before they are made."""
    step = max(1, scene.pixels.shape[0] // height)
    return scene.pixels[::step, ::step].max(axis=2).astype(np.float32)


def stops_in_view(small: np.ndarray, view: PanoramaView, samples: int = 16) -> float:
    """Range of a view of a panorama in stops, from the 2nd to the 98th percentile.

    Args:
        small: thumbnail of the panorama.
        view: direction and field of view.
        samples: pixels a side that are looked at.
    """
    rays = rearrange(view.directions(samples).numpy(), "h w c -> (h w) c")
    longitude = np.arctan2(rays[:, 0], rays[:, 2])
    latitude = np.arctan2(rays[:, 1], np.hypot(rays[:, 0], rays[:, 2]))
    height, width = small.shape
    column = ((longitude / (2 * np.pi) + 0.5) * width).astype(int) % width
    row = np.clip(((0.5 - latitude / np.pi) * height).astype(int), 0, height - 1)
    return _stops(small[row, column])


def stops_in_square(small: np.ndarray) -> float:
    """Range of part of a thumbnail in stops, likewise."""
    return _stops(small.ravel())


def _stops(light: np.ndarray) -> float:
    low, high = np.quantile(light, (0.02, 0.98))
    return float(np.log2(max(high, 1e-30) / max(low, high * BLACK, 1e-30)))


def _median_light(pixels: np.ndarray) -> float:
    light = pixels.max(axis=2).astype(np.float32)
    lit = light[light > 0]
    return float(np.median(lit)) if lit.size else 1.0
