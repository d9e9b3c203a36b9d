"""A virtual camera: from an HDR image to the 8-bit photo that a camera would have made of it.

``H = exposure * scene`` is the truth of a training pair: linear, 1.0 = the level at which the
sensor clips. The photo is ``JPEG(round(255 f(clip((H + noise - b) / (1 - b), 0, 1))))`` with the
camera's response curve ``f`` and black point ``b``. Everything but JPEG runs on the device of the
image; :mod:`dkpn.photograph` does all of it for batches.

References:
    Eilertsen, Kronander, Denes, Mantiuk and Unger, HDR image reconstruction from a single exposure
    using deep CNNs, ACM TOG 36(6), 2017: the virtual camera and the sigmoid fitted to
    the curves of Grossberg and Nayar, What is the Space of Camera Response Functions?, CVPR 2003.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dkpn.color import linear_to_srgb, srgb_to_linear

CurveFamily = Literal["sigmoid", "gamma", "srgb"]
CURVE_FAMILIES: tuple[CurveFamily, ...] = ("sigmoid", "gamma", "srgb")

# Mean, standard deviation and bounds of the sigmoid's parameters: the first two are those of the
# HDRCNN paper; the bounds (its code has wider ones) keep the curve from becoming a step or a line.
_SIGMOID_POWER = (0.9, 0.1, 0.6, 1.2)
_SIGMOID_SCALE = (0.6, 0.1, 0.2, 1.0)
_GAMMA_RANGE = (1.8, 2.6)
# Nine stops below the clip level: sensors see at least that far, and a black point above that would
# bend the whole curve rather than end it.
MAX_BLACK_POINT = 2.0**-9


@dataclass(frozen=True)
class CameraConfig:
    """The range of cameras that :func:`sample_camera` draws from; the defaults are for training.

    Args:
        clip_above: smallest and largest fraction of pixels with a channel above the clip level.
        clip_below: the same of pixels that the black point turns black.
        curve_weights: relative frequency of the curve families "sigmoid", "gamma" and "srgb".
        shot_noise: smallest and largest noise variance per unit of linear light (log-uniform).
        read_noise: smallest and largest noise standard deviation in the dark, linear (log-uniform).
        jpeg_quality: smallest and largest JPEG quality, 1 to 100.

    Raises:
        ValueError: a range is empty, or out of bounds.
    """

    clip_above: tuple[float, float] = (0.02, 0.20)
    clip_below: tuple[float, float] = (0.0, 0.05)
    curve_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shot_noise: tuple[float, float] = (1e-5, 1e-3)
    read_noise: tuple[float, float] = (1e-4, 2e-3)
    jpeg_quality: tuple[int, int] = (30, 100)

    def __post_init__(self) -> None:
        for name, lowest, highest in (
            ("clip_above", 0.0, 0.9),
            ("clip_below", 0.0, 0.9),
            ("shot_noise", 1e-12, 1.0),
            ("read_noise", 1e-12, 1.0),
            ("jpeg_quality", 1, 100),
        ):
            pair = getattr(self, name)
            if len(pair) != 2 or not lowest <= pair[0] <= pair[1] <= highest:
                raise ValueError(
                    f"{name}: expected (smallest, largest) within [{lowest}, {highest}], got {pair}"
                )
        weights = self.curve_weights
        if len(weights) != len(CURVE_FAMILIES) or min(weights) < 0 or not sum(weights) > 0:
            raise ValueError(
                f"curve_weights: expected one weight of at least 0 for each of {CURVE_FAMILIES}, "
                f"not all 0, got {weights}"
            )


EVALUATION_CAMERA = CameraConfig(clip_above=(0.03, 0.15), jpeg_quality=(85, 98))
"""The cameras of the evaluation protocol."""


@dataclass(frozen=True)
class Camera:
    """One camera setting, plain numbers only (``dataclasses.asdict`` of it is JSON).

    Args:
        exposure: factor from the scene's arbitrary unit to the truth, 1.0 = clip level; above 0.
        black_point: linear light that is recorded as black, in [0, 1).
        curve: family of the response curve.
        curve_power: n of the sigmoid, gamma of the gamma curve; unused by "srgb".
        curve_scale: sigma of the sigmoid; unused by the others.
        shot_noise: noise variance per unit of linear light.
        read_noise: noise standard deviation in the dark, linear.
        jpeg_quality: 1 to 100.
        seed: seed of the noise, 0 to 2^63 - 1.

    Raises:
        ValueError: a number is out of its range.
    """

    exposure: float
    black_point: float
    curve: CurveFamily
    curve_power: float
    curve_scale: float
    shot_noise: float
    read_noise: float
    jpeg_quality: int
    seed: int

    def __post_init__(self) -> None:
        for name, valid, expected in (
            ("exposure", 0 < self.exposure < math.inf, "a finite number above 0"),
            ("black_point", 0 <= self.black_point < 1, "a number in [0, 1)"),
            ("curve", self.curve in CURVE_FAMILIES, f"one of {CURVE_FAMILIES}"),
            ("curve_power", 0 < self.curve_power < math.inf, "a finite number above 0"),
            ("curve_scale", 0 < self.curve_scale < math.inf, "a finite number above 0"),
            ("shot_noise", 0 <= self.shot_noise < math.inf, "a finite number of at least 0"),
            ("read_noise", 0 <= self.read_noise < math.inf, "a finite number of at least 0"),
            ("jpeg_quality", 1 <= self.jpeg_quality <= 100, "1 to 100"),
            ("seed", 0 <= self.seed < 2**63, "0 to 2^63 - 1"),
        ):
            if not valid:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class CameraDraw:
    """What is drawn of a camera before it has seen the scene; see :class:`Camera` for the rest.

    Args:
        clip_above: fraction of the pixels to put above the clip level, by their largest channel.
        clip_below: fraction of the pixels to put at or below black, likewise.
        curve: family of the response curve.
        curve_power: of the curve.
        curve_scale: of the curve.
        shot_noise: noise variance per unit of linear light.
        read_noise: noise standard deviation in the dark, linear.
        jpeg_quality: 1 to 100.
        seed: of the noise.
    """

    clip_above: float
    clip_below: float
    curve: CurveFamily
    curve_power: float
    curve_scale: float
    shot_noise: float
    read_noise: float
    jpeg_quality: int
    seed: int


def draw_camera(config: CameraConfig, rng: np.random.Generator) -> CameraDraw:
    """Draw all of a camera but what its exposure to a scene decides.

    Args:
        config: the ranges to draw from.
        rng: source of the draw; it alone decides the result, of which only uniform numbers are
            asked, since their stream is the same in every version of numpy.
    """
    clip_above, clip_below = _uniform(rng, config.clip_above), _uniform(rng, config.clip_below)
    weights = np.cumsum(config.curve_weights)
    curve = CURVE_FAMILIES[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))]
    sigmoid_power = _normal(rng, *_SIGMOID_POWER)
    curve_scale = _normal(rng, *_SIGMOID_SCALE)
    gamma = _uniform(rng, _GAMMA_RANGE)
    return CameraDraw(
        clip_above=clip_above,
        clip_below=clip_below,
        curve=curve,
        curve_power=gamma if curve == "gamma" else sigmoid_power,
        curve_scale=curve_scale,
        shot_noise=_log_uniform(rng, config.shot_noise),
        read_noise=_log_uniform(rng, config.read_noise),
        jpeg_quality=round(_uniform(rng, config.jpeg_quality)),
        seed=int(rng.random() * 2**53),
    )


def sample_camera(hdr: np.ndarray, config: CameraConfig, rng: np.random.Generator) -> Camera:
    """Draw a camera and expose it for this image.

    The exposure puts a drawn fraction of the pixels above the clip level, by their largest channel.
    The black point puts a drawn fraction of them at or below black, likewise, but lies never less
    than nine stops below the clip level, so that bright scenes lose fewer.

    Args:
        hdr: (H, W, 3) floating point, linear Rec.709, at least 0, any unit.
        config: the ranges to draw from.
        rng: source of the draw, see :func:`draw_camera`.

    Returns:
        The camera.

    Raises:
        ValueError: ``hdr`` has another shape, or is black.
    """
    if hdr.ndim != 3 or hdr.shape[2] != 3 or hdr.size == 0:
        raise ValueError(f"hdr: expected shape (H, W, 3), got {hdr.shape}")
    draw = draw_camera(config, rng)
    largest = hdr.max(axis=2)
    clip_level = _quantile(largest, 1 - draw.clip_above)
    if not clip_level > 0:
        # So few pixels emit light that fewer than asked for can clip.
        clip_level = float(largest.max())
    if not 0 < clip_level < math.inf:
        raise ValueError(
            "hdr: expected an image with finite light in it to expose for, got one whose brightest "
            f"pixel is {clip_level}"
        )
    black_point = _quantile(largest, draw.clip_below) / clip_level
    return Camera(
        exposure=1 / clip_level,
        black_point=min(black_point, MAX_BLACK_POINT),
        curve=draw.curve,
        curve_power=draw.curve_power,
        curve_scale=draw.curve_scale,
        shot_noise=draw.shot_noise,
        read_noise=draw.read_noise,
        jpeg_quality=draw.jpeg_quality,
        seed=draw.seed,
    )


def response_curve(linear: Tensor, camera: Camera) -> Tensor:
    """Encode linear light with the camera's response curve, ``f(clip((x - b) / (1 - b), 0, 1))``.

    ``f(x)`` is ``(1 + sigma) x^n / (x^n + sigma)`` (sigmoid), ``x^(1/gamma)`` or sRGB: strictly
    increasing on [0, 1], with f(0) = 0 and f(1) = 1.

    Args:
        linear: floating-point tensor of any shape, linear light, 1.0 = clip level.
        camera: gives the curve and the black point b.

    Returns:
        Tensor of the same shape and dtype, in [0, 1].

    References:
        Eilertsen et al. 2017 (the sigmoid).
    """
    light = ((linear - camera.black_point) / (1 - camera.black_point)).clamp(0.0, 1.0)
    if camera.curve == "sigmoid":
        power = light**camera.curve_power
        encoded = (1 + camera.curve_scale) * power / (power + camera.curve_scale)
    elif camera.curve == "gamma":
        encoded = light ** (1 / camera.curve_power)
    else:
        encoded = linear_to_srgb(light)
    return encoded.clamp(0.0, 1.0)


def inverse_response_curve(encoded: Tensor, camera: Camera) -> Tensor:
    """Decode with the exact inverse of :func:`response_curve`, in closed form.

    Args:
        encoded: floating-point tensor of any shape, code values in [0, 1]; clamped to it.
        camera: gives the curve and the black point b.

    Returns:
        Tensor of the same shape and dtype, linear light in [b, 1], 1.0 = clip level. What was
        clipped comes back as b or 1.
    """
    encoded = encoded.clamp(0.0, 1.0)
    if camera.curve == "sigmoid":
        ratio = camera.curve_scale * encoded / (1 + camera.curve_scale - encoded)
        light = ratio ** (1 / camera.curve_power)
    elif camera.curve == "gamma":
        light = encoded**camera.curve_power
    else:
        light = srgb_to_linear(encoded)
    return camera.black_point + (1 - camera.black_point) * light


def expose(hdr: Tensor, camera: Camera) -> Tensor:
    """Return the truth of a pair, ``exposure * hdr``: linear, 1.0 = clip level."""
    return hdr * camera.exposure


def develop(hdr: Tensor, camera: Camera, noise: Tensor | None = None) -> Tensor:
    """Photograph a scene, up to but without JPEG.

    ``round(255 f(H + noise sqrt(shot_noise H + read_noise²))) / 255`` with ``H = exposure * hdr``.

    Args:
        hdr: (..., 3, H, W) floating point, linear Rec.709, at least 0, in the unit that the camera
            was sampled for; any device.
        camera: the camera.
        noise: standard normal numbers of the shape, dtype and device of ``hdr``; by default drawn
            from a generator on that device, seeded with the camera's seed: the same numbers for one
            camera and shape on one kind of device.

    Returns:
        Tensor of the same shape and dtype: 8-bit code values divided by 255.

    Raises:
        TypeError: ``hdr`` is not a floating-point tensor.
        ValueError: shapes do not match.
    """
    if not isinstance(hdr, Tensor) or not hdr.is_floating_point():
        kind = hdr.dtype if isinstance(hdr, Tensor) else type(hdr).__name__
        raise TypeError(f"hdr: expected a floating-point torch.Tensor, got {kind}")
    if hdr.dim() < 3 or hdr.shape[-3] != 3:
        raise ValueError(f"hdr: expected shape (..., 3, H, W), got {tuple(hdr.shape)}")
    if noise is not None and noise.shape != hdr.shape:
        raise ValueError(
            f"noise: expected the shape of hdr, {tuple(hdr.shape)}, got {tuple(noise.shape)}"
        )
    # Half precision would lose the product of a sun and its exposure.
    exposed = expose(hdr.to(torch.promote_types(hdr.dtype, torch.float32)), camera)
    if noise is None:
        generator = torch.Generator(device=hdr.device).manual_seed(camera.seed)
        noise = torch.randn(
            exposed.shape, generator=generator, dtype=exposed.dtype, device=exposed.device
        )
    variance = camera.shot_noise * exposed.clamp(min=0.0) + camera.read_noise**2
    encoded = response_curve(exposed + noise * variance.sqrt(), camera)
    return ((encoded * 255).round() / 255).to(hdr.dtype)


def to_code_values(developed: Tensor) -> np.ndarray:
    """Turn :func:`develop`'s result for one image, (3, H, W), into (H, W, 3) uint8 code values."""
    codes = (developed * 255).round().to(torch.uint8)
    return np.ascontiguousarray(codes.permute(1, 2, 0).cpu().numpy())


def _uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * rng.random()


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return math.exp(_uniform(rng, (math.log(bounds[0]), math.log(bounds[1]))))


def _normal(
    rng: np.random.Generator, mean: float, deviation: float, lowest: float, highest: float
) -> float:
    # inv_cdf is undefined at 0, which random() can return.
    draw = NormalDist(mean, deviation).inv_cdf(max(rng.random(), 2.0**-53))
    return min(max(draw, lowest), highest)


def _quantile(values: np.ndarray, fraction: float) -> float:
    """Return the value that ``fraction`` of the values do not exceed."""
    rank = min(int(fraction * values.size), values.size - 1)
    return float(np.partition(values, rank, axis=None)[rank])
