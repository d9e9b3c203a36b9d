"""The public function: signature and documentation."""

from typing import Literal

from torch import Tensor

from .._decoupled_filter import transforms
from .._decoupled_filter.api import Combine, Normalize, PaddingMode
from . import composition
from . import op as _op  # registers the operators
from .validation import validate

__all__ = ["Precision", "predict_filter"]

Precision = Literal["ieee", "tf32", "tf32x3"]


def predict_filter(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input: Tensor,
    channel_filter: Tensor | None = None,
    *,
    kernel_size: int | tuple[int, int],
    dilation: int | tuple[int, int] = 1,
    padding_mode: PaddingMode = "zeros",
    normalize: Normalize | None = None,
    combine: Combine = "mul",
    precision: Precision = "ieee",
) -> Tensor:
    r"""Predict a filter for every pixel and apply it, without storing the filters: the last 1x1
    convolution of a kernel-prediction network, the softmax over the taps, and the filter.

    .. math::
        Z[b,k,y,x] = bias[k] + \sum_f weight[k,f]\, features[b,f,y,x], \qquad
        out = decoupled\_filter(input,\; Z,\; channel\_filter)

    With 5 dimensions, ``input`` is a burst of N frames, and each frame and tap has a row of
    ``weight``, :math:`k = n K_h K_w + t`; the filtered frames are summed,

    .. math::
        out[b,c,y,x] = \sum_n \sum_{i,j} F[b,c,n,t,y,x]\;
            pad(input)[b,\, n,\, c,\, y + (i - r_y) d_y,\, x + (j - r_x) d_x],

    and a softmax is over all N * Kh * Kw taps.

    Args:
        features: ``(B, F, H, W)``, floating point, any strides; ``F >= 1``.
        weight: ``(G*Kh*Kw, F)`` or ``(G*Kh*Kw, F, 1, 1)``, as ``torch.nn.Conv2d`` has it, for G
            groups of channels; G divides C. ``(N*Kh*Kw, F)``, with or without the ones, for N
            frames, which are one group.
        bias: ``None`` or ``(G*Kh*Kw,)``, ``(N*Kh*Kw,)`` for N frames.
        input: ``(B, C, H, W)``, or ``(B, N, C, H, W)`` for N frames; ``H, W >= 1``.
        channel_filter: ``None``; or ``(B or 1, C, Kh*Kw)``, a weight for each channel and tap (not
            for frames); or ``(B or 1, C, H, W)``, a gain for each channel and pixel, shared by all
            frames.
        kernel_size: ``Kh = Kw`` or ``(Kh, Kw)``, odd or even.
        dilation: Distance between taps, ``d`` or ``(y, x)``, in pixels.
        padding_mode: What is read outside the input: ``"zeros"``, ``"replicate"``, ``"reflect"``
            or ``"circular"``, as in :func:`kpnops.decoupled_filter`.
        normalize: ``"softmax"``: the softmax of Z over the taps is the filter. ``-inf`` is allowed,
            in ``bias`` for example; all taps ``-inf`` give NaN, as in ``torch.softmax``.
        combine: ``"mul"`` or ``"add"``; without effect where ``channel_filter`` is ``None``.
        precision: How float32 matrix units multiply for Z and its gradients: ``"ieee"``,
            ``"tf32"`` (10 bits of the factors) or ``"tf32x3"`` (three products of such parts).
            Validated but without effect where PyTorch operations run, on CPUs for example.

    Returns:
        ``(B, C, H, W)`` in the promoted dtype of the tensors; channels_last exactly when ``input``
        is channels_last and not contiguous, else contiguous (always, for frames).

    Raises:
        TypeError: An argument is of a wrong type or dtype (floating point up to 64 bits is meant).
        ValueError: A shape, device or option does not fit; the message names the argument, what was
            expected and what came.

    Note:
        Beyond arguments and result it takes a workspace of at most 32 MB on a CPU (more only where
        two rows of filters exceed half of it). For the gradients a GPU keeps 4 bytes for each pixel
        and group under softmax (8 in float64), a CPU the filters of a call where they take at most
        8 MiB; else they are made again, in the same workspace. float16 and bfloat16 are read as
        they are; Z is not rounded to them but stays in
        float32, which is more exact than a convolution whose result is stored. Dtypes may be mixed,
        and autocast casts nothing. Differentiable any number of times in all five tensors, in
        reverse and forward mode and under ``torch.func``; derivatives of gradients, forward mode
        and ``torch.func`` (but ``vmap`` alone) store the filters. Sums run in a fixed order: equal
        inputs give equal bits on one device.

    Example:
        >>> import torch, kpnops
        >>> features, image = torch.rand(1, 16, 32, 32), torch.rand(1, 3, 32, 32)
        >>> head = torch.nn.Conv2d(16, 11 * 11, 1)
        >>> out = kpnops.predict_filter(
        ...     features, head.weight, head.bias, image, kernel_size=11, normalize="softmax"
        ... )
        >>> out.shape
        torch.Size([1, 3, 32, 32])
        >>> stored = kpnops.decoupled_filter(image, head(features), normalize="softmax")
        >>> torch.allclose(out, stored, atol=1e-6)
        True

    References:
        Bako et al., "Kernel-predicting convolutional networks for denoising Monte Carlo
        renderings", ACM TOG 36(4), 2017 (the softmax). Mildenhall et al., "Burst Denoising with
        Kernel Prediction Networks", CVPR 2018 (frames; without a softmax there). Dao et al.,
        "FlashAttention", NeurIPS 2022 (logits that are made again instead of stored).
    """
    pairs = validate(
        features,
        weight,
        bias,
        input,
        channel_filter,
        kernel_size,
        dilation,
        padding_mode,
        normalize,
        combine,
        precision,
    )
    tensors = (features, weight.flatten(1), bias, input, channel_filter)
    options = (*pairs, padding_mode, normalize, combine, precision)
    if transforms.active(tensors):
        return composition.predict_filter(tensors, options)
    return _op.predict_filter(*tensors, *options)[0]
