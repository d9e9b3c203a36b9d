"""What DDF's call and modules compute, in plain PyTorch: written from the formulas of the paper and
from what its modules do, sharing nothing with the package.

State dicts go in, so that the names of the parameters are part of what is compared.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ddf", "normalise", "pack", "up_pack"]

State = Mapping[str, Tensor]


def ddf(
    features: Tensor,
    channel_filter: Tensor,  # (B, C, K, K)
    spatial_filter: Tensor,  # (B, K*K, Ho, Wo)
    kernel_size: int = 3,
    dilation: int = 1,
    stride: int = 1,
    kernel_combine: str = "mul",
) -> Tensor:
    """One shifted, strided copy of the features for each tap."""
    height, width = spatial_filter.shape[2:]
    before = (kernel_size - 1) // 2 * dilation
    beyond = kernel_size * dilation + stride  # more than any tap reads
    padded = F.pad(features, (before, beyond, before, beyond))
    out = features.new_zeros(())
    for i in range(kernel_size):
        for j in range(kernel_size):
            rows = slice(i * dilation, i * dilation + (height - 1) * stride + 1, stride)
            columns = slice(j * dilation, j * dilation + (width - 1) * stride + 1, stride)
            channel = channel_filter[:, :, i, j, None, None]
            spatial = spatial_filter[:, None, i * kernel_size + j]
            weight = channel * spatial if kernel_combine == "mul" else channel + spatial
            out = out + weight * padded[:, :, rows, columns]
    return out


def normalise(
    x: Tensor, filters: int, std: float | Tensor = 1.0, mean: float | Tensor = 0.0
) -> Tensor:
    """Each filter, ``x[:, f*T:(f+1)*T]``, to mean 0 and standard deviation 1, then both changed."""
    taps = []
    for taps_of_one in x.chunk(filters, dim=1):
        count = taps_of_one.shape[1]
        centred = taps_of_one - taps_of_one.sum(dim=1, keepdim=True) / count
        variance = (centred**2).sum(dim=1, keepdim=True) / (count - 1)
        taps.append(centred / (variance.sqrt() + 1e-10))
    result = torch.cat(taps, dim=1)
    shape = (1, -1, *[1] * (x.dim() - 2))
    std = std.reshape(shape) if isinstance(std, Tensor) else std
    mean = mean.reshape(shape) if isinstance(mean, Tensor) else mean
    return result * std + mean


def _convolve(x: Tensor, state: State, name: str, **options: int) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)


def _channel_branch(x: Tensor, state: State, name: str) -> Tensor:
    x = x.mean(dim=(2, 3), keepdim=True)
    x = _convolve(x, state, f"{name}.1").clamp(min=0)
    x = _convolve(x, state, f"{name}.3")[:, :, 0, 0]
    return normalise(x, state[f"{name}.1.weight"].shape[1], state[f"{name}.4.std"])


def _apply(x: Tensor, channel: Tensor, spatial: Tensor, head: int, size: int, **options) -> Tensor:
    """Heads are images of their own."""
    batch, channels = x.shape[:2]
    out = ddf(
        x.reshape(batch * head, channels // head, *x.shape[2:]),
        channel.reshape(batch * head, channels // head, size, size),
        spatial.reshape(batch * head, size * size, *spatial.shape[2:]),
        size,
        **options,
    )
    return out.reshape(batch, channels, *out.shape[2:])


def pack(
    x: Tensor,
    state: State,
    kernel_size: int = 3,
    stride: int = 1,
    dilation: int = 1,
    head: int = 1,
    kernel_combine: str = "mul",
    gain: float = math.sqrt(2),  # of "relu"
) -> Tensor:
    spatial = _convolve(x, state, "spatial_branch.0", stride=stride)
    return _apply(
        x,
        _channel_branch(x, state, "channel_branch"),
        normalise(spatial, head, gain / kernel_size),
        head,
        kernel_size,
        dilation=dilation,
        stride=stride,
        kernel_combine=kernel_combine,
    )


def up_pack(
    x: Tensor,
    state: State,
    joint_x: Tensor | None = None,
    kernel_size: int = 3,
    scale_factor: int = 2,
    dilation: int = 1,
    head: int = 1,
    dw_kernel_size: int = 3,
    joint_channels: int = -1,
    kernel_combine: str = "mul",
    gain: float = 1.0,  # of "linear"
) -> Tensor:
    guide = x if joint_x is None else joint_x
    batch, channels, height, width = x.shape
    out = x.new_zeros(batch, channels, height * scale_factor, width * scale_factor)
    for n in range(scale_factor**2):
        name = f"spatial_branch.{n}.0"
        spatial = guide
        if joint_channels < 1:
            spatial = _convolve(guide, state, name, padding=dw_kernel_size // 2, groups=channels)
            name = f"spatial_branch.{n}.1.0"
        spatial = normalise(_convolve(spatial, state, name), head, gain / kernel_size)
        channel = _channel_branch(x, state, f"channel_branch.{n}")
        cell = _apply(
            x, channel, spatial, head, kernel_size, dilation=dilation, kernel_combine=kernel_combine
        )
        out[:, :, n // scale_factor :: scale_factor, n % scale_factor :: scale_factor] = cell
    return out
