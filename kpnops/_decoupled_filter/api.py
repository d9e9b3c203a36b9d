"""The public function: signature and documentation."""

from typing import Literal

from torch import Tensor

from . import op as _op  # registers the operators
from . import transforms
from .geometry import output_sizes
from .validation import validate

__all__ = ["Combine", "Normalize", "PaddingMode", "decoupled_filter"]

PaddingMode = Literal["zeros", "replicate", "reflect", "circular"]
Combine = Literal["mul", "add"]
Normalize = Literal["softmax"]


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
    r"""Filter an image with a different filter at every pixel, given as a spatial and a channel
    filter.

    .. math::
        out[b,c,y,x] = \sum_{i,j} F[b,c,t,y,x]\;
            pad(input)[b,\, c,\, y s_y + (i - r_y) d_y,\, x s_x + (j - r_x) d_x],
        \qquad t = i K_w + j,\quad r = \lfloor (K - 1) / 2 \rfloor

    with :math:`F = S[b,g,t,y,x] \cdot Ch` (``combine="mul"``) or :math:`S + Ch` (``"add"``), where
    :math:`g = c // (C / G)` and :math:`Ch` is ``channel_filter[b, c, t]`` (3-D) or
    ``channel_filter[b, c, y, x]`` (4-D). Without a channel filter :math:`F = S`, without a spatial
    filter :math:`F = Ch`. A 5-D channel filter mixes the channels of the filtered image at every
    pixel, :math:`out[b,o,y,x] = \sum_c M[b,o,c,y,x] \sum_t S\, pad(input)`. ``scale_factor=u``
    reads rows :math:`y // u + (i - r_y) d_y`, columns likewise.

    Args:
        input: ``(B, C, H, W)``, floating point, any strides; ``H, W >= 1``.
        spatial_filter: ``(B, G*Kh*Kw, Ho, Wo)``, one filter for each pixel and group of ``C/G``
            channels; ``G`` divides ``C``. ``Ho`` is ``H // s`` or ``ceil(H / s)``, ``Wo`` likewise
            on its own (``H*u`` and ``W*u`` with ``scale_factor=u``). ``None``: the 3-D
            ``channel_filter`` alone, whichever ``combine`` says, and ``ceil(H / s)``.
        channel_filter: ``None``; or ``(B or 1, C, Kh*Kw)``, a weight for each channel and tap; or
            ``(B or 1, C, Ho, Wo)``, a gain for each channel and pixel; or ``(B or 1, Co, C, Ho,
            Wo)``, a matrix for each pixel (``C`` and ``Co`` up to 32, ``combine="mul"``). Told
            apart by rank alone.
        kernel_size: ``Kh = Kw`` or ``(Kh, Kw)``, odd or even. ``None``: a square filter and ``G =
            1``, read off ``spatial_filter``.
        stride: Step of the output grid on the input, ``s`` or ``(y, x)``, in pixels.
        dilation: Distance between taps, ``d`` or ``(y, x)``, in pixels.
        padding_mode: What is read outside the input: ``"zeros"``, ``"replicate"``, ``"reflect"``
            (the reach must be smaller than the image) or ``"circular"`` (wraps as often as it
            must).
        combine: ``"mul"`` or ``"add"``; without effect where ``channel_filter`` is ``None``.
        normalize: ``"softmax"``: ``spatial_filter`` holds logits, and their softmax over the taps
            is used. It is taken inside the op, nothing normalised is stored. ``-inf`` is allowed;
            all taps ``-inf`` give NaN, as in ``torch.softmax``.
        scale_factor: ``u > 1`` upsamples by ``u``: the filters live on the ``(uH, uW)`` grid and
            each output reads the neighbourhood of the input pixel below it (CARAFE). Excludes a
            stride.

    Returns:
        ``(B, C, Ho, Wo)``, or ``(B, Co, Ho, Wo)`` with a mixing matrix, in the promoted dtype of
        the tensors; channels_last exactly when ``input`` is channels_last and not contiguous, else
        contiguous.

    Raises:
        TypeError: An argument is of a wrong type or dtype (floating point up to 64 bits is meant).
        ValueError: A shape, device or option does not fit; the message names the argument, what was
            expected and what came.

    Note:
        float16 and bfloat16 accumulate in float32; float32 is IEEE (never tf32); float64 is float64
        throughout. Dtypes may be mixed: each tensor is read as it is. Differentiable any number of
        times in all three tensors, in reverse and forward mode and under ``torch.func``; only
        gradients that are asked for are computed, and nothing but the inputs is saved. No atomics:
        equal inputs give equal bits on one device. Runs as Triton kernels on NVIDIA and AMD GPUs
        and as PyTorch operations, without a K*K-fold copy, on CPUs and any other device.

    Example:
        >>> import torch, kpnops
        >>> image = torch.rand(1, 3, 8, 8)
        >>> box = torch.full((1, 9, 8, 8), 1 / 9)      # a 3x3 mean at every pixel
        >>> gain = torch.full((1, 3, 8, 8), 2.0)       # a gain for every channel and pixel
        >>> out = kpnops.decoupled_filter(image, box, gain)
        >>> out.shape
        torch.Size([1, 3, 8, 8])
        >>> bool(torch.isclose(out[0, 0, 4, 4], 2 * image[0, 0, 3:6, 3:6].mean()))
        True

    References:
        Zhou et al., "Decoupled Dynamic Filter Networks", CVPR 2021 (3-D channel filters, mul and
        add). Cao et al., "A Decoupled Kernel Prediction Network Guided by Soft Mask for Single
        Image HDR Reconstruction", ACM TOMM 19(2s), 2023 (kernels decoupled along space and
        channels). Wang et al., "CARAFE: Content-Aware ReAssembly of FEatures", ICCV 2019
        (``scale_factor``).
    """
    kernel_size, stride, dilation = validate(
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
    if spatial_filter is None:
        assert channel_filter is not None  # validate refuses it
        spatial_filter, combine = _ones(input, channel_filter, stride), "mul"
    tensors = (input, spatial_filter, channel_filter)
    options = (
        kernel_size,
        stride,
        dilation,
        padding_mode,
        combine,
        normalize,
        int(scale_factor),
    )
    if transforms.active(tensors):
        return transforms.decoupled_filter(tensors, options)
    return _op.decoupled_filter(*tensors, *options)


def _ones(input: Tensor, channel_filter: Tensor, stride: tuple[int, int]) -> Tensor:
    """A spatial filter of ones that takes one element of memory."""
    H, W = input.shape[2:]
    _, Ho = output_sizes(H, stride[0])
    _, Wo = output_sizes(W, stride[1])
    return channel_filter.new_ones(()).expand(input.shape[0], channel_filter.shape[2], Ho, Wo)
