"""The virtual camera for a whole batch of training pairs, on the device of the images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dkpn.camera import CURVE_FAMILIES, MAX_BLACK_POINT, CameraDraw
from dkpn.color import linear_to_srgb
from dkpn.jpeg import jpeg_loss


def photograph(scenes: Tensor, draws: Sequence[CameraDraw]) -> tuple[Tensor, Tensor]:
    """Expose and photograph a batch, each image by its own camera, without leaving its device.

    As :func:`dkpn.camera.sample_camera`, :func:`dkpn.camera.develop` and a JPEG file one after the
    other, image by image.

    Args:
        scenes: (B, 3, H, W) float32, linear Rec.709, at least 0, with light in each, any unit.
        draws: one camera for each image.

    Returns:
        The photos, (B, 3, H, W) float32, code values divided by 255, and the truth, likewise,
        linear, 1.0 = clip level.
    """
    ordered = scenes.amax(dim=1).flatten(1).sort(dim=1).values  # (B, H * W)
    clip_level = _ranked(ordered, [1 - draw.clip_above for draw in draws])
    clip_level = torch.where(clip_level > 0, clip_level, ordered[:, -1])
    black = _ranked(ordered, [draw.clip_below for draw in draws]) / clip_level
    truth = scenes * _per_image(1.0 / clip_level)
    noise = torch.stack(
        [
            torch.randn(
                scenes.shape[1:],
                generator=torch.Generator(scenes.device).manual_seed(draw.seed),
                device=scenes.device,
            )
            for draw in draws
        ]
    )

    def numbers(name: str) -> Tensor:
        values = [getattr(draw, name) for draw in draws]
        return _per_image(torch.tensor(values, dtype=torch.float32).to(scenes.device))

    variance = numbers("shot_noise") * truth + numbers("read_noise").square()
    black = _per_image(black.clamp_max(MAX_BLACK_POINT))
    light = ((truth + noise * variance.sqrt() - black) / (1.0 - black)).clamp(0.0, 1.0)
    power, scale = numbers("curve_power"), numbers("curve_scale")
    family = [CURVE_FAMILIES.index(draw.curve) for draw in draws]
    chosen = _per_image(torch.tensor(family).to(scenes.device))
    # sRGB is the third family: it has no power of its own.
    raised = light ** torch.where(chosen == 1, 1.0 / power, power)
    sigmoid = (1.0 + scale) * raised / (raised + scale)
    encoded = torch.where(chosen == 0, sigmoid, raised)
    encoded = torch.where(chosen == 2, linear_to_srgb(light), encoded).clamp(0.0, 1.0)
    codes = (encoded * 255.0).round() / 255.0
    return jpeg_loss(codes, [draw.jpeg_quality for draw in draws]), truth


def _ranked(ordered: Tensor, fractions: Sequence[float]) -> Tensor:
    """The value in each row of ascending numbers (B, N) that a fraction does not exceed: (B,)."""
    count = ordered.shape[1]
    ranks = [min(int(fraction * count), count - 1) for fraction in fractions]
    return ordered.gather(1, torch.tensor(ranks).to(ordered.device)[:, None])[:, 0]


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]
