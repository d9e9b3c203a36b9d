"""Training losses in a perceptual encoding, after the gain that the evaluation fits as well."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dkpn.color import WHITE_NITS, mu_law, pu21_encode
from dkpn.model import DKPNOutput

MIN_NITS = 0.005  # cd/m², the range of the evaluation's display
MAX_NITS = 4000.0
PU21_PEAK = 256.0  # the encoded value that PU21-PSNR calls its peak
DARK, BRIGHT = 0.02, 0.98  # sRGB-encoded values between which a pixel counts as well exposed
MIN_PIXELS = 16  # fewer clipped, or well-exposed, pixels than this say nothing about an image


@dataclass(frozen=True)
class LossConfig:
    """How a result is compared with the truth.

    Args:
        kind: ``"pu21"``: mean over images of log MSE in PU21 units, which is PU21-PSNR up to scale
            and sign. ``"mu-law"``: mean absolute difference after µ-law compression of [0, 4000
            cd/m²]. ``"log"``: mean absolute difference of natural logarithms.
        clipped_weight: weight of the same on clipped pixels alone.
        preliminary_weight: weight of the same for the preliminary result, on well-exposed pixels
            and without a fitted gain, so that 1.0 stays the clip level.
    """

    kind: Literal["pu21", "mu-law", "log"] = "pu21"
    clipped_weight: float = 0.5
    preliminary_weight: float = 0.25

    def __post_init__(self) -> None:
        if self.kind not in ("pu21", "mu-law", "log"):
            raise ValueError(f'kind: expected "pu21", "mu-law" or "log", got {self.kind!r}')
        for name in ("clipped_weight", "preliminary_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class LossTerms:
    """The loss of a batch and its parts, each a scalar tensor.

    Args:
        total: the weighted sum; the only one with a gradient.
        image: over all pixels.
        clipped: over clipped pixels; 0 without any.
        preliminary: of the preliminary result, over well-exposed pixels; 0 without any.
        psnr: PU21-PSNR in dB after the fitted gain, mean over images.
    """

    total: Tensor
    image: Tensor
    clipped: Tensor
    preliminary: Tensor
    psnr: Tensor


def reconstruction_loss(
    output: DKPNOutput, photo: Tensor, truth: Tensor, config: LossConfig
) -> LossTerms:
    """Compare the network's output with the truth.

    ``total = image + clipped_weight · clipped + preliminary_weight · preliminary``.

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
    everywhere = torch.ones_like(clipped)
    result = fit_gain(output.result, truth, well_exposed) * output.result

    image_term, _ = _distance(result, truth, everywhere, config.kind)
    clipped_term, has_clipped = _distance(result, truth, clipped, config.kind)
    preliminary_term, has_exposed = _distance(output.preliminary, truth, well_exposed, config.kind)
    image = image_term.mean()
    clipped_mean = _mean_where(clipped_term, has_clipped)
    preliminary = _mean_where(preliminary_term, has_exposed)
    total = image + config.clipped_weight * clipped_mean + config.preliminary_weight * preliminary
    with torch.no_grad():
        error = _pu21(result.detach()) - _pu21(truth.clamp_max(MAX_NITS / WHITE_NITS))
        psnr = 10.0 * torch.log10(PU21_PEAK**2 / error.square().mean((1, 2, 3)).clamp_min(1e-6))
    return LossTerms(
        total, image.detach(), clipped_mean.detach(), preliminary.detach(), psnr.mean()
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


def _distance(result: Tensor, truth: Tensor, mask: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Distance of each image over a mask (B, 1, H, W): values and which of them count, (B,)."""
    top = MAX_NITS / WHITE_NITS
    truth = truth.clamp(MIN_NITS / WHITE_NITS, top)
    # A result above the display's peak is as good as the peak where the truth is there too;
    # anywhere else it keeps its gradient, which a plain clamp would take away.
    result = torch.where(truth >= top, result.clamp_max(top), result)
    if kind == "pu21":
        error = (_pu21(result) - _pu21(truth)).square()
    elif kind == "mu-law":
        error = (mu_law(result / top) - mu_law(truth / top)).abs()
    else:
        error = (result.clamp_min(MIN_NITS / WHITE_NITS).log() - truth.log()).abs()
    weight = mask.to(error.dtype)
    count = weight.sum((1, 2, 3))
    mean = (weight * error).sum((1, 2, 3)) / (3.0 * count).clamp_min(1.0)
    if kind == "pu21":
        mean = torch.log(mean + 1e-2)  # 1e-2 is a PU21-PSNR of 68 dB: no reward for more
    return mean, count >= MIN_PIXELS


def _pu21(radiance: Tensor) -> Tensor:
    return pu21_encode(radiance.clamp_min(MIN_NITS / WHITE_NITS) * WHITE_NITS)


def _mean_where(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of the values (B,) that count; 0 if none does."""
    return torch.where(counts, values, 0.0).sum() / counts.sum().clamp_min(1)
