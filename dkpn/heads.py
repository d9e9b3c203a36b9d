"""The network's last part: what turns features into filters, and the space that they filter."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dkpn.config import DKPNConfig
from dkpn.fused_head import predict_and_filter


class FilterHead(nn.Module):
    """Turns features at the first scale into the spatial and the channel filter at full resolution.

    Args:
        config: the network's choices.
        delta_leak: sum of all taps but the centre one before training.
    """

    MIX_LEAK = 0.01  # weight of each other channel in a mixing matrix before training

    def __init__(self, config: DKPNConfig, delta_leak: float) -> None:
        super().__init__()
        self.config = config
        taps = config.kernel_size**2
        self.groups = 3 if config.head == "undecoupled" else 1
        per_pixel = self.groups * taps + config.channel_numbers
        self.convolution = nn.Conv2d(
            config.channels[0], per_pixel * config.unshuffle**2, 3, padding=1
        )
        # Zero weights give every pixel the same start; only this layer waits one step for it.
        for parameter in self.convolution.parameters():
            nn.init.zeros_(parameter)
        self.per_image: nn.Linear | None = None
        if config.head == "per-image":
            self.per_image = nn.Linear(config.pooled_width, 3 * taps)
            for parameter in self.per_image.parameters():
                nn.init.zeros_(parameter)
        delta = torch.full((taps,), delta_leak / max(taps - 1, 1))
        delta[taps // 2] = 1.0
        start = delta.log() if config.taps == "softmax" else self._unbounded(delta)
        start = start.repeat(self.groups)
        self.register_buffer("start", rearrange(start, "t -> t 1 1"), persistent=False)
        mixing = self._unbounded(torch.eye(3).clamp_min(self.MIX_LEAK))
        self.register_buffer("mixing", rearrange(mixing, "o c -> o c 1 1"), persistent=False)

    def forward(
        self, features: Tensor, pooled: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Predict the filters.

        Args:
            features: (B, C, h, w) at the first scale.
            pooled: (B, pooled_width) image vector.
            size: height and width to crop to.

        Returns:
            spatial_filter (B, groups·K², H, W), and channel_filter (B, C, H, W), (B, 3, 3, H, W),
            (B, 3, K²) or None.
        """
        numbers = F.pixel_shuffle(self.convolution(F.relu(features)), self.config.unshuffle)
        numbers = numbers[..., : size[0], : size[1]]
        taps = self.groups * self.config.kernel_size**2
        logits = numbers[:, :taps] + self.get_buffer("start")
        if self.config.taps == "softmax":
            spatial_filter = torch.softmax(logits, dim=1)
        else:
            spatial_filter = self._bounded(logits)
        if self.per_image is not None:
            channel_filter = self._bounded_exp(self.per_image(pooled))
            return spatial_filter, rearrange(channel_filter, "b (c t) -> b c t", c=3)
        if self.config.head == "mix":
            matrix = rearrange(numbers[:, taps:], "b (o c) h w -> b o c h w", o=3)
            return spatial_filter, self._bounded(matrix + self.get_buffer("mixing"))
        if self.config.channel_numbers:
            return spatial_filter, self._bounded_exp(numbers[:, taps:])
        return spatial_filter, None

    def filtered(self, features: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the filters and apply them without storing the spatial one.

        Args:
            features: (B, C, h, w) at the first scale.
            image: (B, 3, H, W), what is filtered.

        Returns:
            The filtered image (B, 3, H, W), float32, and channel_filter (B, 3, H, W).
        """
        config, features = self.config, F.relu(features)
        weight, bias = self.convolution.weight, self.convolution.bias
        assert bias is not None
        count = config.kernel_size**2 * config.unshuffle**2
        numbers = F.conv2d(features, weight[count:], bias[count:], padding=1)
        numbers = F.pixel_shuffle(numbers, config.unshuffle)
        gain = self._bounded_exp(numbers[..., : image.shape[2], : image.shape[3]])
        start = self.get_buffer("start").flatten().repeat_interleave(config.unshuffle**2)
        result = predict_and_filter(
            features,
            weight[:count],
            bias[:count] + start,
            image,
            config.kernel_size,
            config.unshuffle,
        )
        return gain * result, gain

    def _bounded(self, value: Tensor) -> Tensor:
        """``exp`` where it is small, with ``2^max_gain_stops`` as its upper bound."""
        return math.exp(self.config.max_log_gain) * torch.sigmoid(value)

    def _unbounded(self, value: Tensor) -> Tensor:
        """Inverse of :meth:`_bounded`."""
        return torch.logit(value / math.exp(self.config.max_log_gain))

    def _bounded_exp(self, value: Tensor) -> Tensor:
        """``exp`` bounded smoothly to ``2^±max_gain_stops``, of slope 1 at 0."""
        bound = self.config.max_log_gain
        return torch.exp(bound * torch.tanh(value / bound))


class FeatureSpace(nn.Module):
    """A space of C channels for the filter: 1x1 convolutions into it, and back to a gain for RGB.

    Args:
        config: the network's choices (``feature_channels``, ``max_gain_stops``).
    """

    def __init__(self, config: DKPNConfig) -> None:
        super().__init__()
        self.bound = config.max_log_gain
        self.into = nn.Conv2d(9, config.feature_channels, 1)
        self.back = nn.Conv2d(config.feature_channels, 3, 1)
        # Before training the result is the preliminary one.
        nn.init.zeros_(self.back.weight)
        nn.init.zeros_(self.get_parameter("back.bias"))

    def lift(self, log_light: Tensor, masks: Tensor) -> Tensor:
        """What is filtered: (B, C, H, W), float32.

        Args:
            log_light: (B, 3, H, W), natural logarithm of the preliminary result.
            masks: (B, 6, H, W) soft masks.
        """
        return self.into(torch.cat((0.25 * log_light + 0.5, masks), dim=1)).float()

    def project(self, filtered: Tensor, preliminary: Tensor) -> Tensor:
        """The result (B, 3, H, W), float32: a bounded gain, made of what was filtered, times the
        preliminary result."""
        numbers = self.back(F.relu(filtered)).float()
        return preliminary * torch.exp(self.bound * torch.tanh(numbers / self.bound))
