"""The network's parts: soft masks, guided residual stages, and the branch pooled over the image."""

import itertools

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
    """One vector for a whole image, from how its values and their steps are distributed.

    A camera's response curve shows in the histogram of the photo, and in how large the steps
    between neighbouring pixels are at each brightness: the curve stretches noise and texture by its
    slope. Both are counted, and pass through two linear layers. Nothing else of the picture does: a
    branch that also sees what is in it learns the training scenes by heart instead.

    Args:
        width: length of the vector.

    References:
        Lin, Gu, Yamazaki and Shum, Radiometric calibration from a single image, CVPR 2004, and
        Takamatsu, Matsushita and Ikeuchi, Estimating camera response functions using probabilistic
        intensity similarity, CVPR 2008: curves from edges, and from noise.
    """

    # Code values at which a class of brightness, or of steps, begins; the first begins at 0.
    BRIGHTNESS = (2, 5, 9, 14, 20, 28, 40, 56, 72, 96, 128, 160, 192, 224, 245)
    STEPS = (1, 2, 3, 5, 9, 17, 33)
    HIDDEN = 64
    LEAST_DEVIATION = 0.02  # a class that is the same in nearly all photos stays small

    def __init__(self, width: int) -> None:
        super().__init__()
        codes = torch.arange(256)
        for name, begins in (("brightness", self.BRIGHTNESS), ("step", self.STEPS)):
            classes = torch.bucketize(codes, torch.tensor(begins), right=True)
            self.register_buffer(f"{name}_class", classes, persistent=False)
        levels = len(self.BRIGHTNESS) + 1
        numbers = levels * (len(self.STEPS) + 1) + levels
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("deviation", torch.ones(numbers))
        self.linear = nn.Sequential(
            nn.Linear(numbers, self.HIDDEN),
            nn.ReLU(),
            nn.Linear(self.HIDDEN, width),
            nn.ReLU(),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Pool an image (B, 3, H, W), sRGB-encoded in [0, 1], into (B, width)."""
        return self.from_statistics(self.statistics(image))

    def from_statistics(self, statistics: Tensor) -> Tensor:
        """Pool images of which only the :meth:`statistics` (B, numbers) are left: (B, width)."""
        mean, deviation = self.get_buffer("mean"), self.get_buffer("deviation")
        return self.linear((statistics.to(mean.dtype) - mean) / deviation)

    @torch.no_grad()
    def standardise(self, statistics: Tensor) -> None:
        """Take mean and deviation of the statistics from photos; once, before training.

        Args:
            statistics: (N, numbers), of photos as those to train on.
        """
        self.get_buffer("mean").copy_(statistics.mean(dim=0))
        deviation = statistics.std(dim=0, correction=0) + self.LEAST_DEVIATION
        self.get_buffer("deviation").copy_(deviation)

    @torch.no_grad()
    def statistics(self, image: Tensor) -> Tensor:
        """Count pairs of neighbours, of each channel, by their mean brightness and their step.

        Args:
            image: (B, 3, H, W), floating point, sRGB-encoded in [0, 1]; rounded to 8 bits.

        Returns:
            (B, 16 · 8 + 16), float32: for each class of brightness the shares of the eight classes
            of steps, of sum 1 where the image has such pairs, then the share of each class of
            brightness; all to the power 1/2, which spreads the small ones. An image of one pixel
            has no pairs, and gives zeros.
        """
        codes = (image.float() * 255.0).round().clamp(0.0, 255.0).long()
        levels, steps = len(self.BRIGHTNESS) + 1, len(self.STEPS) + 1
        counts = torch.zeros(len(codes), levels * steps, device=codes.device)
        for dim in (-1, -2):
            count = codes.shape[dim] - 1
            first, second = codes.narrow(dim, 0, count), codes.narrow(dim, 1, count)
            level = self.get_buffer("brightness_class")[(first + second) // 2]
            step = self.get_buffer("step_class")[(first - second).abs()]
            pairs = (level * steps + step).flatten(1)
            counts = counts.scatter_add(1, pairs, torch.ones_like(pairs, dtype=torch.float32))
        counts = rearrange(counts, "b (level step) -> b level step", level=levels)
        of_level = counts.sum(dim=2, keepdim=True)
        shares = counts / of_level.clamp_min(1.0)
        level_shares = of_level / of_level.sum(dim=1, keepdim=True).clamp_min(1.0)
        return torch.cat((shares.flatten(1), level_shares.flatten(1)), dim=1).sqrt()
