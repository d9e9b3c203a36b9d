"""The call and the modules that users of DDF have today.

``from ddf import ddf, DDFPack, DDFUpPack, FilterNorm`` becomes ``from kpnops.compat import ...``.
"""

from typing import Literal

from torch import Tensor

from ._decoupled_filter.api import Combine, decoupled_filter
from ._decoupled_filter.validation import pair
from .nn import DDFPack, DDFUpPack, FilterNorm

__all__ = ["DDFPack", "DDFUpPack", "FilterNorm", "ddf"]

_COMBINATIONS = ("mul", "add")
_VERSIONS = ("", "f", "o")


def ddf(
    features: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    kernel_size: int | tuple[int, int] = 3,
    dilation: int | tuple[int, int] = 1,
    stride: int | tuple[int, int] = 1,
    kernel_combine: Combine = "mul",
    version: Literal["", "f", "o"] = "",
) -> Tensor:
    r"""Apply a decoupled dynamic filter: the call of DDF, argument for argument.

    .. math::
        out[b,c,y,x] = \sum_{i,j} (Ch[b,c,i,j] \circ S[b,t,y,x])\;
            features[b,\, c,\, y s + (i - r) d,\, x s + (j - r) d],
        \qquad t = i K + j,\quad r = \lfloor (K - 1) / 2 \rfloor

    where :math:`\circ` is a product or a sum and features are zero outside the image. The channel
    filter comes **before** the spatial filter and ``dilation`` before ``stride``, as there;
    :func:`kpnops.decoupled_filter`, which computes it, has them the other way round.

    Args:
        features: ``(B, C, H, W)``, floating point, any strides.
        channel_filter: ``(B, C, K, K)``, a weight for each channel and tap. A batch of 1 is one
            filter for all images.
        spatial_filter: ``(B, K*K, H // stride, W // stride)``, a weight for each tap and output
            pixel. ``ceil(H / stride)`` rows, what a convolution with that stride gives on an odd
            size, are taken too, columns likewise.
        kernel_size: ``K``, odd or even, or ``(Kh, Kw)``.
        dilation: Distance between taps, in pixels.
        stride: Step of the output grid on the features, in pixels.
        kernel_combine: ``"mul"`` or ``"add"``.
        version: Chose between two implementations there: ``"f"`` the one for small filters, ``"o"``
            the general one, ``""`` one of them by size. Both compute the same; here it is accepted
            and has no effect.

    Returns:
        ``(B, C, Ho, Wo)``, the grid of the spatial filter, in the promoted dtype of the tensors.

    Raises:
        TypeError: An argument is of a wrong type or dtype (floating point up to 64 bits is meant).
        ValueError: A shape, device or option does not fit; the message names the argument, what was
            expected and what came.

    Note:
        What differs from DDF: any device; any kernel size (there odd and at most 13) and dilation
        (there below 8 for 3x3 taps on the fast path); ``ceil`` as well as ``floor`` output sizes;
        any strides (there contiguous tensors are meant); float16 and bfloat16 stay what they are
        and are summed in float32 (there float16 comes back as float32 and bfloat16 fails); grouped
        spatial filters, ``(B, G*K*K, Ho, Wo)``, without folding the groups into the batch; second
        derivatives; keyword arguments; an unknown ``version`` is refused.

    Example:
        >>> import torch
        >>> from kpnops.compat import ddf
        >>> features = torch.rand(2, 3, 7, 9)
        >>> channel_filter, spatial_filter = torch.rand(2, 3, 3, 3), torch.rand(2, 9, 3, 4)
        >>> ddf(features, channel_filter, spatial_filter, 3, 1, 2, "mul").shape
        torch.Size([2, 3, 3, 4])

    References:
        Zhou et al., "Decoupled Dynamic Filter Networks", CVPR 2021; the signature is that of
        https://github.com/theFoxofSky/ddfnet.
    """
    if not isinstance(kernel_combine, str) or kernel_combine not in _COMBINATIONS:
        raise ValueError(f"kernel_combine: expected 'mul' or 'add', got {kernel_combine!r}")
    if not isinstance(version, str) or version not in _VERSIONS:
        raise ValueError(f"version: expected '', 'f' or 'o', got {version!r}")
    taps = pair("kernel_size", kernel_size)
    _check_features(features)
    _check_channel_filter(channel_filter, tuple(features.shape), taps)
    if spatial_filter is None:
        raise TypeError("spatial_filter: expected a torch.Tensor, got NoneType None")
    return decoupled_filter(
        features,
        spatial_filter,
        channel_filter.flatten(2),
        kernel_size=taps,
        stride=stride,
        dilation=dilation,
        combine=kernel_combine,
    )


def _check_features(features: Tensor) -> None:
    # The op would call them "input".
    if not isinstance(features, Tensor):
        raise TypeError(f"features: expected a torch.Tensor, got {type(features).__name__}")
    if not features.is_floating_point():
        raise TypeError(
            f"features: expected float64, float32, float16 or bfloat16, got {features.dtype}"
        )
    if features.dim() != 4 or 0 in features.shape[1:]:
        raise ValueError(
            "features: expected 4 dimensions (B, C, H, W) with C, H and W of at least 1, got shape "
            f"{tuple(features.shape)}"
        )


def _check_channel_filter(
    channel_filter: Tensor, features_shape: tuple[int, ...], kernel_size: tuple[int, int]
) -> None:
    if not isinstance(channel_filter, Tensor):
        raise TypeError(
            f"channel_filter: expected a torch.Tensor, got {type(channel_filter).__name__}"
        )
    B, C = features_shape[:2]
    shape = tuple(channel_filter.shape)
    if len(shape) != 4 or shape[1:] != (C, *kernel_size) or (shape[0] != B and shape[0] != 1):
        raise ValueError(
            f"channel_filter: expected shape ({B} or 1, {C}, {kernel_size[0]}, {kernel_size[1]}), "
            f"got {shape}"
        )
