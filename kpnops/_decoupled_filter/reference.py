"""The specification: naive unfold, differentiable by autograd, one line for each line of the
definition."""

import functools

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from torch import Tensor

from .api import Combine, Normalize, PaddingMode
from .geometry import Window, source_index
from .validation import validate

__all__ = ["decoupled_filter"]


def decoupled_filter(
    input: Tensor,
    spatial_filter: Tensor | None,
    channel_filter: Tensor | None = None,
    *,
    kernel_size: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    padding_mode: PaddingMode = "zeros",
    combine: Combine = "mul",
    normalize: Normalize | None = None,
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
    window = Window(*pairs, padding_mode, scale_factor)
    there = [tensor for tensor in (input, spatial_filter, channel_filter) if tensor is not None]
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in there))
    input = input.to(dtype)
    spatial_filter = None if spatial_filter is None else spatial_filter.to(dtype)
    channel_filter = None if channel_filter is None else channel_filter.to(dtype)
    if spatial_filter is None:
        assert channel_filter is not None  # validate refuses it
        columns = _columns(
            input, window, [-(-n // s) for n, s in zip(input.shape[2:], pairs[1], strict=True)]
        )
        return (rearrange(channel_filter, "b c t -> b c t 1 1") * columns).sum(dim=2)
    u = scale_factor
    cells = [n // u for n in spatial_filter.shape[2:]]  # the outputs, without upsampling
    columns = repeat(_columns(input, window, cells), "b c t h w -> b c t (h u) (w v)", u=u, v=u)
    spatial = rearrange(spatial_filter, "b (g t) h w -> b g 1 t h w", t=window.taps)
    if normalize == "softmax":
        spatial = spatial.softmax(dim=3)
    groups = spatial.shape[1]
    columns = rearrange(columns, "b (g c) t h w -> b g c t h w", g=groups)
    if channel_filter is None or channel_filter.dim() == 5:
        taps = spatial
    else:
        if channel_filter.dim() == 3:
            channel = rearrange(channel_filter, "b (g c) t -> b g c t 1 1", g=groups)
        else:
            channel = rearrange(channel_filter, "b (g c) h w -> b g c 1 h w", g=groups)
        taps = spatial * channel if combine == "mul" else spatial + channel
    filtered = rearrange((taps * columns).sum(dim=3), "b g c h w -> b (g c) h w")
    if channel_filter is None or channel_filter.dim() < 5:
        return filtered
    matrix = channel_filter.expand(input.shape[0], -1, -1, -1, -1)
    return einsum(matrix, filtered, "b o c h w, b c h w -> b o h w")


def _columns(input: Tensor, window: Window, size: list[int]) -> Tensor:
    """What ``size`` outputs, one for each step of the stride, read: ``(B, C, T, *size)``."""
    for axis in (0, 1):
        count = input.shape[2 + axis]
        extent = (size[axis] - 1) * window.stride[axis]
        extent += (window.kernel_size[axis] - 1) * window.dilation[axis] + 1
        start = -window.before[axis]
        if window.padding_mode == "zeros":
            pad = [-start, start + extent - count]
            input = F.pad(input, (0, 0, *pad) if axis == 0 else (*pad, 0, 0))
        else:
            index = [
                source_index(position, count, window.padding_mode)
                for position in range(start, start + extent)
            ]
            input = input.index_select(2 + axis, torch.tensor(index, device=input.device))
    columns = F.unfold(input, window.kernel_size, dilation=window.dilation, stride=window.stride)
    t, (h, w) = window.taps, size
    return rearrange(columns, "b (c t) (h w) -> b c t h w", t=t, h=h, w=w)
