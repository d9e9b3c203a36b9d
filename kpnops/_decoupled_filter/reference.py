"""The specification: naive unfold, differentiable by autograd, one line for each line of the
definition."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .api import Combine, PaddingMode, validate
from .geometry import Window, source_index

__all__ = ["decoupled_filter"]


def decoupled_filter(
    input: Tensor,
    spatial_filter: Tensor,
    channel_filter: Tensor | None = None,
    *,
    kernel_size: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    padding_mode: PaddingMode = "zeros",
    combine: Combine = "mul",
    normalize: str | None = None,
    scale_factor: int = 1,
) -> Tensor:
    """Compute what :func:`kpnops.decoupled_filter` computes, by unfolding the input.

    Stores ``Kh * Kw`` copies of the input and as many of the combined filter, and computes in the
    promoted dtype (float16 and bfloat16 accumulate in themselves). Arguments, shapes, result and
    errors are those of :func:`kpnops.decoupled_filter`; any number of derivatives exists.

    Example:
        >>> import torch, kpnops
        >>> image, taps = torch.rand(1, 2, 5, 5), torch.rand(1, 9, 5, 5)
        >>> expected = kpnops.reference.decoupled_filter(image, taps)
        >>> torch.allclose(kpnops.decoupled_filter(image, taps), expected)
        True
    """
    pairs = validate(
        input,
        spatial_filter,
        channel_filter,
        kernel_size,
        stride,
        dilation,
        padding_mode,
        combine,
        normalize,
        scale_factor,
    )
    window = Window(*pairs, padding_mode)
    C = input.shape[1]
    Ho, Wo = spatial_filter.shape[2:]
    spatial = rearrange(spatial_filter, "b (g t) h w -> b g 1 t h w", t=window.taps)
    groups = spatial.shape[1]
    if channel_filter is None:
        taps = spatial
    else:
        if channel_filter.dim() == 3:
            channel = rearrange(channel_filter, "b (g c) t -> b g c t 1 1", g=groups)
        else:
            channel = rearrange(channel_filter, "b (g c) h w -> b g c 1 h w", g=groups)
        taps = spatial * channel if combine == "mul" else spatial + channel
    padded = _pad(input, window, (Ho, Wo)).to(torch.promote_types(input.dtype, taps.dtype))
    columns = F.unfold(padded, window.kernel_size, dilation=window.dilation, stride=window.stride)
    columns = rearrange(
        columns, "b (g c t) (h w) -> b g c t h w", g=groups, c=C // groups, h=Ho, w=Wo
    )
    return rearrange((taps * columns).sum(dim=3), "b g c h w -> b (g c) h w")


def _pad(input: Tensor, window: Window, output_size: tuple[int, int]) -> Tensor:
    """The padded input, cut to exactly what ``output_size`` outputs read."""
    for axis in (0, 1):
        size = input.shape[2 + axis]
        extent = (output_size[axis] - 1) * window.stride[axis]
        extent += (window.kernel_size[axis] - 1) * window.dilation[axis] + 1
        start = -window.before[axis]
        if window.padding_mode == "zeros":
            pad = [-start, start + extent - size]
            input = F.pad(input, (0, 0, *pad) if axis == 0 else (*pad, 0, 0))
        else:
            index = [
                source_index(position, size, window.padding_mode)
                for position in range(start, start + extent)
            ]
            input = input.index_select(2 + axis, torch.tensor(index, device=input.device))
    return input
