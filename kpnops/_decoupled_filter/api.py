"""The public function: signature, documentation and validation."""

from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import op as _op  # registers the operators
from .geometry import COMBINE_MODES, PADDING_MODES, after_padding, before_padding, output_sizes

__all__ = ["decoupled_filter"]

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_TENSORS = ("input", "spatial_filter", "channel_filter")
_SQUARES = {k * k: k for k in range(1, 256)}

PaddingMode = Literal["zeros", "replicate", "reflect", "circular"]
Combine = Literal["mul", "add"]


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
    normalize: Literal["softmax"] | None = None,
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
    ``channel_filter[b, c, y, x]`` (4-D). Without a channel filter :math:`F = S`.

    Args:
        input: ``(B, C, H, W)``, floating point, any strides; ``H, W >= 1``.
        spatial_filter: ``(B, G*Kh*Kw, Ho, Wo)``, one filter for each pixel and group of ``C/G``
            channels; ``G`` divides ``C``. ``Ho`` is ``H // s`` or ``ceil(H / s)``, ``Wo`` likewise
            on its own.
        channel_filter: ``None``; or ``(B or 1, C, Kh*Kw)``, a weight for each channel and tap; or
            ``(B or 1, C, Ho, Wo)``, a gain for each channel and pixel. Told apart by rank alone.
        kernel_size: ``Kh = Kw`` or ``(Kh, Kw)``, odd or even. ``None``: a square filter and ``G =
            1``, read off ``spatial_filter``.
        stride: Step of the output grid on the input, ``s`` or ``(y, x)``, in pixels.
        dilation: Distance between taps, ``d`` or ``(y, x)``, in pixels.
        padding_mode: What is read outside the input: ``"zeros"``, ``"replicate"``, ``"reflect"``
            (the reach must be smaller than the image) or ``"circular"`` (wraps as often as it
            must).
        combine: ``"mul"`` or ``"add"``; without effect where ``channel_filter`` is ``None``.
        normalize: Only ``None`` in this version.
        scale_factor: Only 1 in this version.

    Returns:
        ``(B, C, Ho, Wo)`` in the promoted dtype of the tensors; channels_last exactly when
        ``input`` is channels_last and not contiguous, else contiguous.

    Raises:
        TypeError: An argument is of a wrong type or dtype (floating point up to 64 bits is meant).
        ValueError: A shape, device or option does not fit; the message names the argument, what was
            expected and what came.
        NotImplementedError: 5-D channel filters, ``scale_factor``, ``normalize``,
            ``spatial_filter=None``, ``vmap``, forward-mode differentiation or a second derivative.

    Note:
        float16 and bfloat16 accumulate in float32; float32 is IEEE (never tf32); float64 is float64
        throughout. Dtypes may be mixed: each tensor is read as it is. A 4-D channel filter under
        ``"mul"`` is taken out of the sum, ``Ch * sum_t S x``: equal for finite gains; an infinite
        gain gives a non-finite result, not always the one of the sum of products. Differentiable
        once in all three tensors; only gradients that are asked for are computed, and nothing but
        the inputs is saved. No atomics: equal inputs give equal bits on one device. Runs as Triton
        kernels on NVIDIA and AMD GPUs and as PyTorch operations, without a K*K-fold copy, on CPUs
        and any other device.

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
        channels).
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
    if not torch.compiler.is_compiling():
        _refuse_forward_mode(input, spatial_filter, channel_filter)
    return _op.decoupled_filter(
        input,
        spatial_filter,  # pyright: ignore[reportArgumentType]  (validate refuses None)
        channel_filter,
        kernel_size,
        stride,
        dilation,
        padding_mode,
        combine,
    )


def validate(
    input: Tensor,
    spatial_filter: Tensor | None,
    channel_filter: Tensor | None,
    kernel_size: int | tuple[int, int] | None,
    stride: int | tuple[int, int],
    dilation: int | tuple[int, int],
    padding_mode: str,
    combine: str,
    normalize: str | None,
    scale_factor: int,
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Refuse what the op does not take, and return ``kernel_size``, ``stride`` and ``dilation`` as
    pairs."""
    _check_option("padding_mode", padding_mode, PADDING_MODES)
    _check_option("combine", combine, COMBINE_MODES)
    _check_option("normalize", normalize, (None, "softmax"))
    stride_yx = pair("stride", stride)
    dilation_yx = pair("dilation", dilation)
    if normalize is not None:
        raise NotImplementedError(
            'normalize="softmax" is not available in this version: normalise spatial_filter with '
            "torch.softmax over its taps first"
        )
    if isinstance(scale_factor, bool) or not isinstance(scale_factor, int):
        raise TypeError(f"scale_factor: expected an int, got {_describe(scale_factor)}")
    if scale_factor < 1:
        raise ValueError(f"scale_factor: expected an int of at least 1, got {scale_factor}")
    if scale_factor != 1:
        raise NotImplementedError(
            f"scale_factor={scale_factor} is not available in this version: upsample input first"
        )
    if spatial_filter is None:
        raise NotImplementedError(
            "spatial_filter=None is not available in this version: pass a spatial filter of ones"
        )
    _check_tensors(input, spatial_filter, channel_filter)
    kernel_yx = _kernel_size(kernel_size, spatial_filter)
    _check_shapes(input, spatial_filter, channel_filter, kernel_yx, stride_yx)
    if padding_mode == "reflect":
        _check_reflect(input, spatial_filter, kernel_yx, stride_yx, dilation_yx)
    return kernel_yx, stride_yx, dilation_yx


def _check_option(name: str, value: object, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")


def pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """The argument ``name`` as (y, x); TypeError or ValueError where its numbers are not >= 1."""
    both = (value, value) if isinstance(value, int) else value
    if not isinstance(both, tuple | list):
        raise TypeError(f"{name}: expected an int or a pair (y, x) of ints, got {_describe(value)}")
    if len(both) != 2:
        raise ValueError(f"{name}: expected an int or a pair (y, x), got {len(both)} numbers")
    for number in both:
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name}: expected ints, got {_describe(number)}")
        if number < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    return both[0], both[1]


def _check_tensors(input: Tensor, spatial_filter: Tensor, channel_filter: Tensor | None) -> None:
    for name, tensor in zip(_TENSORS, (input, spatial_filter, channel_filter), strict=True):
        if tensor is None and name == "channel_filter":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {_describe(tensor)}")
        if tensor.layout != torch.strided:
            raise TypeError(f"{name}: expected a dense tensor, got layout {tensor.layout}")
        if tensor.dtype not in _DTYPES:
            raise TypeError(
                f"{name}: expected float64, float32, float16 or bfloat16, got {tensor.dtype}"
            )
        if tensor.device != input.device:
            raise ValueError(
                f"{name}: expected the device of input, {input.device}, got {tensor.device}"
            )
    if input.dim() != 4:
        raise ValueError(
            f"input: expected 4 dimensions (B, C, H, W), got {input.dim()} of shape "
            f"{_shape(input)}; add a batch dimension with input[None]"
        )
    if spatial_filter.dim() != 4:
        raise ValueError(
            "spatial_filter: expected 4 dimensions (B, G*Kh*Kw, Ho, Wo), got "
            f"{spatial_filter.dim()} of shape {_shape(spatial_filter)}"
        )


def _kernel_size(
    kernel_size: int | tuple[int, int] | None, spatial_filter: Tensor
) -> tuple[int, int]:
    if kernel_size is not None:
        return pair("kernel_size", kernel_size)
    taps = int(spatial_filter.shape[1])
    if taps not in _SQUARES:
        raise ValueError(
            f"spatial_filter: {taps} taps are no square; pass kernel_size=(Kh, Kw), which also "
            "allows several groups"
        )
    return _SQUARES[taps], _SQUARES[taps]


def _check_shapes(
    input: Tensor,
    spatial_filter: Tensor,
    channel_filter: Tensor | None,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
) -> None:
    B, C, H, W = input.shape
    taps = kernel_size[0] * kernel_size[1]
    if C < 1 or H < 1 or W < 1:
        raise ValueError(f"input: expected C, H and W of at least 1, got shape {_shape(input)}")
    filter_batch, filter_channels, Ho, Wo = spatial_filter.shape
    if filter_batch != B:
        raise ValueError(
            f"spatial_filter: expected the batch of input, {B}, got {filter_batch} "
            f"(shape {_shape(spatial_filter)})"
        )
    groups = filter_channels // taps
    if groups < 1 or filter_channels != groups * taps or C % groups != 0:
        raise ValueError(
            f"spatial_filter: expected G * {taps} channels for kernel_size {kernel_size}, where G "
            f"divides the {C} channels of input, got {filter_channels} "
            f"(shape {_shape(spatial_filter)})"
        )
    for axis, size, step, got in (("rows", H, stride[0], Ho), ("columns", W, stride[1], Wo)):
        # Inequalities that hold for both roundings: floor and ceiling themselves would make a
        # compiled graph depend on the remainder of the division.
        if (got + 1) * step > size and (got - 1) * step < size and got >= 1:
            continue
        floor, ceiling = output_sizes(size, step)
        wanted = f"{ceiling}" if floor in (ceiling, 0) else f"{floor} or {ceiling}"
        raise ValueError(
            f"spatial_filter: expected {wanted} {axis} for an input of {size} with stride "
            f"{step}, got {got} (shape {_shape(spatial_filter)})"
        )
    if channel_filter is not None:
        _check_channel_filter(channel_filter, (B, C, Ho, Wo), taps)


def _check_channel_filter(
    channel_filter: Tensor, output_shape: tuple[int, int, int, int], taps: int
) -> None:
    B, C, Ho, Wo = output_shape
    rank = channel_filter.dim()
    if rank == 5:
        raise NotImplementedError(
            "channel_filter with 5 dimensions (a channel-mixing matrix) is not available in this "
            "version: filter without it and mix the channels with torch.einsum"
        )
    if rank not in (3, 4):
        raise ValueError(
            "channel_filter: expected 3 dimensions (B or 1, C, Kh*Kw) or 4 (B or 1, C, Ho, Wo), "
            f"got {rank} of shape {_shape(channel_filter)}"
        )
    expected = (C, taps) if rank == 3 else (C, Ho, Wo)
    batch, *rest = channel_filter.shape
    if tuple(rest) != expected or (batch != B and batch != 1):
        raise ValueError(
            f"channel_filter: expected shape ({B} or 1, {', '.join(map(str, expected))}), got "
            f"{_shape(channel_filter)}"
        )


def _check_reflect(
    input: Tensor,
    spatial_filter: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    for axis in (0, 1):
        size, output = input.shape[2 + axis], spatial_filter.shape[2 + axis]
        before = before_padding(kernel_size[axis], dilation[axis])
        after = after_padding(size, output, kernel_size[axis], stride[axis], dilation[axis])
        if before >= size or after >= size:
            raise ValueError(
                'padding_mode: "reflect" needs an input larger than the reach of the filter '
                f"(as torch.nn.functional.pad does), got a reach of {before} before and {after} "
                f"after {size} {('rows', 'columns')[axis]}; use 'replicate' or 'circular'"
            )


def _refuse_forward_mode(*tensors: Tensor | None) -> None:
    # A registered operator without a forward-mode rule would return a zero tangent and say nothing.
    if getattr(forward_ad, "_current_level", -1) < 0:
        return
    for name, tensor in zip(_TENSORS, tensors, strict=True):
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                f"{name}: forward-mode differentiation of decoupled_filter is not available; use "
                "reverse mode (torch.autograd.grad, torch.func.vjp)"
            )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _describe(value: object) -> str:
    return f"{type(value).__name__} {value!r}"
