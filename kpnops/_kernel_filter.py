"""The plain kernel-prediction filter: the op without a channel filter."""

from torch import Tensor

from ._decoupled_filter.api import Normalize, PaddingMode, decoupled_filter

__all__ = ["kernel_filter"]


def kernel_filter(
    input: Tensor,
    spatial_filter: Tensor,
    *,
    kernel_size: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    padding_mode: PaddingMode = "zeros",
    normalize: Normalize | None = None,
    scale_factor: int = 1,
) -> Tensor:
    r"""Filter an image with a different, predicted filter at every pixel.

    .. math::
        out[b,c,y,x] = \sum_{i,j} S[b,g,t,y,x]\;
            pad(input)[b,\, c,\, y s_y + (i - r_y) d_y,\, x s_x + (j - r_x) d_x],
        \qquad t = i K_w + j,\quad r = \lfloor (K - 1) / 2 \rfloor,\quad g = c // (C / G)

    This is :func:`kpnops.decoupled_filter` without a channel filter: the same kernels, the same
    numbers. All channels of a group share a filter. ``scale_factor=u`` reads rows :math:`y // u +
    (i - r_y) d_y`, columns likewise.

    Args:
        input: ``(B, C, H, W)``, floating point, any strides; ``H, W >= 1``.
        spatial_filter: ``(B, G*Kh*Kw, Ho, Wo)``, floating point, any strides: one filter for each
            pixel and group of ``C/G`` channels; ``G`` divides ``C``. ``Ho`` is ``H // s`` or
            ``ceil(H / s)``, ``Wo`` likewise on its own (``H*u`` and ``W*u`` with
            ``scale_factor=u``).
        kernel_size: ``Kh = Kw`` or ``(Kh, Kw)``, odd or even. ``None``: a square filter and ``G =
            1``, read off ``spatial_filter``.
        stride: Step of the output grid on the input, ``s`` or ``(y, x)``, in pixels.
        dilation: Distance between taps, ``d`` or ``(y, x)``, in pixels.
        padding_mode: What is read outside the input: ``"zeros"``, ``"replicate"``, ``"reflect"``
            (the reach must be smaller than the image) or ``"circular"`` (wraps as often as it
            must).
        normalize: ``"softmax"``: ``spatial_filter`` holds logits, and their softmax over the taps
            is used. It is taken inside the op, nothing normalised is stored.
        scale_factor: ``u > 1`` upsamples by ``u``: the filters live on the ``(uH, uW)`` grid and
            each output reads the neighbourhood of the input pixel below it. Excludes a stride.

    Returns:
        ``(B, C, Ho, Wo)`` in the promoted dtype of the two tensors; channels_last exactly when
        ``input`` is channels_last and not contiguous, else contiguous.

    Raises:
        TypeError: An argument is of a wrong type or dtype (floating point up to 64 bits is meant).
        ValueError: A shape, device or option does not fit; the message names the argument, what was
            expected and what came.

    Note:
        Accumulation, derivatives, determinism and devices are those of
        :func:`kpnops.decoupled_filter`.

    Example:
        >>> import torch, kpnops
        >>> image = torch.rand(1, 3, 8, 8)
        >>> logits = torch.zeros(1, 25, 8, 8)  # equal weights: a 5x5 mean at every pixel
        >>> out = kpnops.kernel_filter(image, logits, normalize="softmax")
        >>> out.shape
        torch.Size([1, 3, 8, 8])
        >>> bool(torch.isclose(out[0, 0, 4, 4], image[0, 0, 2:7, 2:7].mean()))
        True
        >>> taps = torch.rand(1, 9, 16, 16)  # on the grid of the output: upsampling by 2
        >>> kpnops.kernel_filter(image, taps, scale_factor=2).shape
        torch.Size([1, 3, 16, 16])

    References:
        Bako et al., "Kernel-Predicting Convolutional Networks for Denoising Monte Carlo
        Renderings", SIGGRAPH 2017 (``normalize="softmax"``, one group). Mildenhall et al., "Burst
        Denoising with Kernel Prediction Networks", CVPR 2018 (the weights as predicted). Wang et
        al., "CARAFE: Content-Aware ReAssembly of FEatures", ICCV 2019 (``scale_factor``; there the
        masks are normalised before the call). Li et al., "Involution: Inverting the Inherence of
        Convolution for Visual Recognition", CVPR 2021 (``G`` groups).
    """
    if spatial_filter is None:
        raise TypeError("spatial_filter: expected a torch.Tensor, got NoneType None")
    return decoupled_filter(
        input,
        spatial_filter,
        kernel_size=kernel_size,
        stride=stride,
        dilation=dilation,
        padding_mode=padding_mode,
        normalize=normalize,
        scale_factor=scale_factor,
    )
