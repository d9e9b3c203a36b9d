"""Training losses in a perceptual encoding, after the gain that the evaluation fits as well.

Every term is a plain mean over the images of a batch, in which an image of too few pixels counts as
0: so the mean of the losses of equal parts of a batch, on several devices or one after the other,
is the loss of the batch.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dkpn.color import WHITE_NITS, mu_law, pq_encode, pu21_encode
from dkpn.model import DKPNOutput

MIN_NITS = 0.005  # cd/m², the range of the evaluation's display
MAX_NITS = 4000.0
PU21_PEAK = 256.0  # the encoded value that PU21-PSNR calls its peak
DARK, BRIGHT = 0.02, 0.98  # sRGB-encoded values between which a pixel counts as well exposed
MIN_PIXELS = 16  # fewer clipped, or well-exposed, pixels than this say nothing about an image
SCALES = (2, 4, 8)  # sides of the squares that the multi-scale term averages
KINDS = ("pu21", "mu-law", "pq", "log")


@dataclass(frozen=True)
class LossConfig:
    """How a result is compared with the truth.

    Args:
        kind: ``"pu21"``: mean over images of log MSE in PU21 units, which is PU21-PSNR up to scale
            and sign. ``"mu-law"``: mean absolute difference after µ-law compression of [0, 4000
            cd/m²]. ``"pq"``: mean absolute difference of PQ values. ``"log"``: mean absolute
            difference of natural logarithms.
        clipped_weight: weight of the same on clipped pixels alone.
        preliminary_weight: weight of the same for the preliminary result, on well-exposed pixels
            and without a fitted gain, so that 1.0 stays the clip level.
        multi_scale_weight: weight of the same on pictures shrunk 2, 4 and 8 times by averaging in
            linear light, mean of the three. 0: not computed.
        gradient_weight: weight of the same between the steps from pixel to pixel, down and to the
            right, of the encoded pictures. 0: not computed.
    """

    kind: Literal["pu21", "mu-law", "pq", "log"] = "pu21"
    clipped_weight: float = 0.5
    preliminary_weight: float = 0.25
    multi_scale_weight: float = 0.0
    gradient_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            expected = " or ".join(f'"{kind}"' for kind in KINDS)
            raise ValueError(f"kind: expected {expected}, got {self.kind!r}")
        for name in ("clipped", "preliminary", "multi_scale", "gradient"):
            weight = getattr(self, f"{name}_weight")
            if not weight >= 0:
                raise ValueError(f"{name}_weight: expected 0 or more, got {weight!r}")


@dataclass(frozen=True)
class LossTerms:
    """The loss of a batch and its parts, each a scalar tensor, a mean over the images.

    Args:
        total: the weighted sum; the only one with a gradient.
        image: over all pixels.
        clipped: over clipped pixels; 0 for an image without any.
        preliminary: of the preliminary result, over well-exposed pixels; 0 for an image without.
        multi_scale: over all pixels of the shrunk pictures; 0 where it has no weight.
        gradient: over all steps between neighbours; 0 where it has no weight.
        psnr: PU21-PSNR in dB after the fitted gain.
    """

    total: Tensor
    image: Tensor
    clipped: Tensor
    preliminary: Tensor
    multi_scale: Tensor
    gradient: Tensor
    psnr: Tensor


def reconstruction_loss(
    output: DKPNOutput, photo: Tensor, truth: Tensor, config: LossConfig
) -> LossTerms:
    """Compare the network's output with the truth.

    ``total`` is ``image`` plus ``clipped``, ``preliminary``, ``multi_scale`` and ``gradient``, each
    times its weight.

    Args:
        output: of the network for ``photo``.
        photo: (B, 3, H, W), sRGB-encoded in [0, 1]: the network's input.
        truth: (B, 3, H, W), float32, linear, 1.0 = clip level.
        config: kind and weights.

    Returns:
        The terms.
    """
    photo_min, photo_max = photo.amin(1, keepdim=True), photo.amax(1, keepdim=True)
    well_exposed = (photo_min > DARK) & (photo_max < BRIGHT) & (truth.amax(1, keepdim=True) < 1.0)
    clipped = photo_max >= BRIGHT
    result = fit_gain(output.result, truth, well_exposed) * output.result
    kind = config.kind

    error = torch.sub(*_encoded(result, truth, kind))
    image = _mean(error, None, kind).mean()
    clipped_term = _mean(error, clipped, kind).mean()
    preliminary_error = torch.sub(*_encoded(output.preliminary, truth, kind))
    preliminary = _mean(preliminary_error, well_exposed, kind).mean()
    multi_scale = gradient = image.new_zeros(())
    if config.multi_scale_weight > 0:
        multi_scale = _multi_scale(result, truth, kind).mean()
    if config.gradient_weight > 0:
        gradient = _gradient(error, kind).mean()
    total = (
        image
        + config.clipped_weight * clipped_term
        + config.preliminary_weight * preliminary
        + config.multi_scale_weight * multi_scale
        + config.gradient_weight * gradient
    )
    with torch.no_grad():
        judged = pu21_units(result.detach()) - pu21_units(truth.clamp_max(MAX_NITS / WHITE_NITS))
        psnr = 10.0 * torch.log10(PU21_PEAK**2 / judged.square().mean((1, 2, 3)).clamp_min(1e-6))
    return LossTerms(
        total=total,
        image=image.detach(),
        clipped=clipped_term.detach(),
        preliminary=preliminary.detach(),
        multi_scale=multi_scale.detach(),
        gradient=gradient.detach(),
        psnr=psnr.mean(),
    )


def fit_gain(result: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Least-squares gain for each image, ``Σ r·t / Σ r²`` over the mask, differentiable.

    Args:
        result: (B, 3, H, W), linear.
        truth: (B, 3, H, W), linear.
        mask: (B, 1, H, W), bool.

    Returns:
        (B, 1, 1, 1), more than 0; 1 where the mask holds too few pixels to tell.
    """
    weight = mask.to(result.dtype)
    product = (weight * result * truth).sum((1, 2, 3), keepdim=True)
    square = (weight * result.square()).sum((1, 2, 3), keepdim=True)
    enough = (weight.sum((1, 2, 3), keepdim=True) >= MIN_PIXELS) & (product > 0) & (square > 0)
    # The division sees a harmless 1 where it does not count: NaN gradients pass through where().
    gain = torch.where(enough, product, 1.0) / torch.where(enough, square, 1.0)
    return torch.where(enough, gain, 1.0)


def _encoded(result: Tensor, truth: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Result and truth (B, 3, H, W) in the encoding in which they are compared."""
    top = MAX_NITS / WHITE_NITS
    truth = truth.clamp(MIN_NITS / WHITE_NITS, top)
    # A result above the display's peak is as good as the peak where the truth is there too;
    # anywhere else it keeps its gradient, which a plain clamp would take away.
    result = torch.where(truth >= top, result.clamp_max(top), result)
    if kind == "pu21":
        return pu21_units(result), pu21_units(truth)
    if kind == "mu-law":
        return mu_law(result / top), mu_law(truth / top)
    result = result.clamp_min(MIN_NITS / WHITE_NITS)
    if kind == "pq":
        return pq_encode(result * WHITE_NITS), pq_encode(truth * WHITE_NITS)
    return result.log(), truth.log()


def _mean(error: Tensor, mask: Tensor | None, kind: str) -> Tensor:
    """Distance of each image: (B,), 0 where a mask (B, 1, H, W) holds too few pixels."""
    error = error.square() if kind == "pu21" else error.abs()
    if mask is None:
        return _log_of_square(error.mean((1, 2, 3)), kind)
    weight = mask.to(error.dtype)
    count = weight.sum((1, 2, 3))
    mean = (weight * error).sum((1, 2, 3)) / (3.0 * count).clamp_min(1.0)
    return torch.where(count >= MIN_PIXELS, _log_of_square(mean, kind), 0.0)


def _log_of_square(mean: Tensor, kind: str) -> Tensor:
    # 1e-2 is a PU21-PSNR of 68 dB: no reward for more.
    return torch.log(mean + 1e-2) if kind == "pu21" else mean


def _multi_scale(result: Tensor, truth: Tensor, kind: str) -> Tensor:
    """Distance of each image when shrunk, mean over the scales: (B,)."""
    distances = []
    for scale in SCALES:
        # Cells that reach over the border are the mean of what is inside.
        small = [F.avg_pool2d(image, scale, ceil_mode=True) for image in (result, truth)]
        distances.append(_mean(torch.sub(*_encoded(small[0], small[1], kind)), None, kind))
    return torch.stack(distances).mean(0)


def _gradient(error: Tensor, kind: str) -> Tensor:
    """Distance of each image's steps between neighbours, from the encoded error: (B,)."""
    down, right = (error.diff(dim=dim).flatten(1) for dim in (-2, -1))
    return _mean(torch.cat((down, right), dim=1)[:, None, None], None, kind)


def pu21_units(radiance: Tensor) -> Tensor:
    """Encode linear radiance of any shape, 1.0 = clip level, in PU21 units; from 0.005 cd/m² up."""
    return pu21_encode(radiance.clamp_min(MIN_NITS / WHITE_NITS) * WHITE_NITS)
