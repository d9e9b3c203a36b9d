"""The network's parts: soft masks, guided residual stages, and the branch pooled over the image."""

import itertools
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def soft_masks(image: Tensor, tau: float = 0.05, squared: bool = False) -> Tensor:
    """Say how over-exposed and how under-exposed each channel of each pixel is.

    ``over = clip((I - (1 - τ)) / τ, 0, 1)`` and ``under = clip((τ - I) / τ, 0, 1)``.

    Args:
        image: (B, 3, H, W), floating point, sRGB-encoded in [0, 1].
        tau: width τ of the ramp, in the unit of ``image``.
        squared: square both masks.

    Returns:
        (B, 6, H, W) in [0, 1]: over-exposure of R, G, B, then under-exposure of R, G, B.

    References:
        Over-exposure as in KPN-MFI (Cao et al. 2022); under-exposure is its mirror image, our own.
    """
    over = (image - (1.0 - tau)) / tau
    under = (tau - image) / tau
    masks = torch.cat((over, under), dim=1).clamp(0.0, 1.0)
    return masks.square() if squared else masks


class ResidualBlock(nn.Module):
    """``x + conv(relu(conv(relu(x))))`` with 3×3 convolutions and no normalisation layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.kaiming_normal_(self.first.weight, nonlinearity="relu")
        # A small last convolution keeps the variance level through depth without normalisation.
        nn.init.kaiming_normal_(self.second.weight, nonlinearity="relu")
        with torch.no_grad():
            self.second.weight.mul_(0.1)

    def forward(self, features: Tensor) -> Tensor:
        """Refine features (B, C, H, W), same shape out."""
        return features + self.second(F.relu(self.first(F.relu(features))))


class MaskGuidance(nn.Module):
    """Scale and shift by the soft masks: ``f · (1 + A m) + B m`` with 1×1 convolutions A and B."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale_and_shift = nn.Conv2d(6, 2 * channels, 1, bias=False)

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Guide features (B, C, H, W) by masks (B, 6, H, W)."""
        scale, shift = self.scale_and_shift(masks).chunk(2, dim=1)
        return features * (1.0 + scale) + shift


class GuidedStage(nn.Module):
    """The residual blocks of one scale, after the guidance by the soft masks of that scale."""

    def __init__(self, channels: int, blocks: int, guidance: bool) -> None:
        super().__init__()
        self.guidance = MaskGuidance(channels) if guidance else None
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Refine features (B, C, H, W) under masks (B, 6, H, W), same shape out."""
        if self.guidance is not None:
            features = self.guidance(features, masks)
        return self.blocks(features)


def _upsampling(coarse: int, fine: int) -> nn.Sequential:
    """1×1 convolution and pixel shuffle to twice the size, ``coarse`` channels to ``fine``.

    The four pixels of a cell start with the same weights, or they would start as a checkerboard
    (Aitken et al., "Checkerboard artifact free sub-pixel convolution", arXiv 1707.02937).
    """
    convolution = nn.Conv2d(coarse, 4 * fine, 1)
    with torch.no_grad():
        for parameter in convolution.parameters():
            parameter.copy_(parameter[::4].repeat_interleave(4, dim=0))
    return nn.Sequential(convolution, nn.PixelShuffle(2))


class EncoderDecoder(nn.Module):
    """Residual U-Net with additive skips, guided by the soft masks at every scale.

    Args:
        in_channels: channels of the input.
        channels: channels at each scale, first scale first.
        encoder_blocks: residual blocks at each scale, down.
        decoder_blocks: residual blocks at each scale but the last, up.
        guidance: whether the soft masks guide the features.
        pooled_channels: length of the image vector that is added at the last scale.
    """

    def __init__(
        self,
        in_channels: int,
        channels: tuple[int, ...],
        encoder_blocks: tuple[int, ...],
        decoder_blocks: tuple[int, ...],
        guidance: bool,
        pooled_channels: int,
    ) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(channels))
        self.stem = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.encoders = nn.ModuleList(
            GuidedStage(width, blocks, guidance)
            for width, blocks in zip(channels, encoder_blocks, strict=True)
        )
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.pooled = nn.Linear(pooled_channels, channels[-1])
        self.ups = nn.ModuleList(_upsampling(coarse, fine) for fine, coarse in pairs)
        self.decoders = nn.ModuleList(
            GuidedStage(width, blocks, guidance)
            for width, blocks in zip(channels[:-1], decoder_blocks, strict=True)
        )

    def forward(self, features: Tensor, masks: Tensor, pooled: Tensor) -> Tensor:
        """Map features (B, in_channels, H, W) to (B, channels[0], H, W).

        Args:
            features: (B, in_channels, H, W); H and W multiples of 2 to the number of downs.
            masks: (B, 6, H, W) soft masks.
            pooled: (B, pooled_channels) image vector.
        """
        pyramid = [masks]
        for _ in self.downs:
            pyramid.append(F.avg_pool2d(pyramid[-1], 2))
        features = self.encoders[0](self.stem(features), pyramid[0])
        skips = []
        for scale, down in enumerate(self.downs, start=1):
            skips.append(features)
            features = self.encoders[scale](down(features), pyramid[scale])
        features = features + rearrange(self.pooled(pooled), "b c -> b c 1 1")
        for scale in reversed(range(len(self.ups))):
            features = self.ups[scale](features) + skips[scale]
            features = self.decoders[scale](features, pyramid[scale])
        return features


class PooledBranch(nn.Module):
    """One vector for a whole image: pooled convolution features and statistics of its values.

    A camera's response curve shows in the histogram of the photo, and in how large the differences
    of neighbouring pixels are at each brightness. Both are measured in ``BINS`` bins of the encoded
    value for each channel, and pass through two linear layers together with pooled features.
    """

    BINS = 16
    SAMPLES = 512  # at most SAMPLES² pixels are read for the statistics

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, width // 2 or 1, 4, stride=4),
            nn.ReLU(),
            nn.Conv2d(width // 2 or 1, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        statistics = 3 * 2 * self.BINS
        self.linear = nn.Sequential(
            nn.Linear(width + statistics, 2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, width),
            nn.ReLU(),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Pool an image (B, 3, H, W), sRGB-encoded in [0, 1], into (B, width)."""
        # Four pixels are the least that the first convolution takes.
        padding = (0, max(0, 4 - image.shape[-1]), 0, max(0, 4 - image.shape[-2]))
        padded = F.pad(image, padding, mode="replicate")
        pooled = self.convolutions(padded * 2.0 - 1.0).mean(dim=(-2, -1))
        statistics = self.statistics(image).to(pooled.dtype)
        return self.linear(torch.cat((pooled, statistics), dim=1))

    @torch.no_grad()
    def statistics(self, image: Tensor) -> Tensor:
        """Histogram, and mean difference of neighbours in each bin, both to the power 1/2.

        Args:
            image: (B, 3, H, W), floating point, sRGB-encoded in [0, 1].

        Returns:
            (B, 6 · BINS), float32.
        """
        image = image.float()
        # Differences of true neighbours first, the choice of pixels after: it must not change them.
        right = F.pad(image, (0, 1, 0, 0), mode="replicate").diff(dim=-1).abs()
        below = F.pad(image, (0, 0, 0, 1), mode="replicate").diff(dim=-2).abs()
        step = max(1, math.ceil(math.sqrt(image.shape[-2] * image.shape[-1]) / self.SAMPLES))
        values = image[..., ::step, ::step]
        differences = (right + below)[..., ::step, ::step]
        bins = (values * self.BINS).long().clamp(0, self.BINS - 1)
        counts, means = [], []
        for index in range(self.BINS):
            inside = (bins == index).float()
            share = inside.mean(dim=(-2, -1))  # (B, 3)
            counts.append(share)
            means.append((inside * differences).mean(dim=(-2, -1)) / share.clamp_min(1e-6))
        # The square root spreads small shares and small differences, which carry the most.
        return torch.cat(counts + means, dim=1).sqrt()
