"""Refuses what the op does not take; every message names the argument, what was expected and what
came."""

from numbers import Integral
from typing import TypeGuard

import torch
from torch import Tensor

from .geometry import (
    COMBINE_MODES,
    NORMALIZE_MODES,
    PADDING_MODES,
    after_padding,
    before_padding,
    output_sizes,
)

__all__ = [
    "Pairs",
    "check_channel_filter",
    "check_option",
    "check_reflect",
    "check_scale_factor",
    "check_tensor",
    "is_integer",
    "pair",
    "validate",
]

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_SQUARES = {k * k: k for k in range(1, 256)}
# A mixing matrix is held as a tile of channels; beyond this it is a matrix product of its own.
_MOST_MIXED_CHANNELS = 32

# kernel_size, stride and dilation as (y, x)
Pairs = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


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
) -> Pairs:
    """Refuse what the op does not take, and return ``kernel_size``, ``stride`` and ``dilation`` as
    pairs."""
    check_option("padding_mode", padding_mode, PADDING_MODES)
    check_option("combine", combine, COMBINE_MODES)
    check_option("normalize", normalize, NORMALIZE_MODES)
    stride_yx = pair("stride", stride)
    dilation_yx = pair("dilation", dilation)
    check_scale_factor(scale_factor, stride_yx)
    _check_tensors(input, spatial_filter, channel_filter)
    kernel_yx = _kernel_size(kernel_size, spatial_filter, channel_filter)
    taps = kernel_yx[0] * kernel_yx[1]
    if spatial_filter is None:
        _check_alone(channel_filter, normalize, scale_factor)
        output = tuple(
            output_sizes(size, step)[1]
            for size, step in zip(input.shape[2:], stride_yx, strict=True)
        )
    else:
        _check_spatial_filter(input, spatial_filter, kernel_yx, stride_yx, scale_factor)
        output = tuple(spatial_filter.shape[2:])
    if channel_filter is not None:
        check_channel_filter(channel_filter, (*input.shape[:2], *output), taps, combine)
    if padding_mode == "reflect":
        check_reflect(
            tuple(input.shape[2:]), output, kernel_yx, stride_yx, dilation_yx, scale_factor
        )
    return kernel_yx, stride_yx, dilation_yx


def check_option(name: str, value: object, allowed: tuple[str | None, ...]) -> None:
    """Refuse a value of the argument ``name`` that is not ``allowed``."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, got {_describe(value)}")
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")


def pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """The argument ``name`` as (y, x); TypeError or ValueError where its numbers are not >= 1."""
    both = (value, value) if is_integer(value) else value
    if not isinstance(both, tuple | list):
        raise TypeError(f"{name}: expected an int or a pair (y, x) of ints, got {_describe(value)}")
    if len(both) != 2:
        raise ValueError(f"{name}: expected an int or a pair (y, x), got {len(both)} numbers")
    for number in both:
        if not is_integer(number):
            raise TypeError(f"{name}: expected ints, got {_describe(number)}")
        if number < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
        if number >= 2**31:
            raise ValueError(f"{name}: expected less than 2**31, got {value}")
    return int(both[0]), int(both[1])


def is_integer(value: object) -> TypeGuard[int]:
    """Whether ``value`` is an int or one of NumPy's integers; booleans are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_scale_factor(scale_factor: int, stride: tuple[int, int]) -> None:
    """Refuse a scale factor that is no int of at least 1, or that comes with a stride."""
    if not is_integer(scale_factor):
        raise TypeError(f"scale_factor: expected an int, got {_describe(scale_factor)}")
    if scale_factor < 1:
        raise ValueError(f"scale_factor: expected an int of at least 1, got {scale_factor}")
    if scale_factor > 1 and stride != (1, 1):
        raise ValueError(
            f"scale_factor: {scale_factor} excludes a stride, expected stride=1, got {stride}"
        )


def check_tensor(name: str, tensor: object, input: Tensor) -> None:
    """Refuse what is no dense floating-point tensor on ``input``'s device."""
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


def _check_tensors(
    input: Tensor, spatial_filter: Tensor | None, channel_filter: Tensor | None
) -> None:
    named = {"input": input, "spatial_filter": spatial_filter, "channel_filter": channel_filter}
    for name, tensor in named.items():
        if tensor is None and name != "input":
            continue
        check_tensor(name, tensor, input)
    if input.dim() != 4:
        raise ValueError(
            f"input: expected 4 dimensions (B, C, H, W), got {input.dim()} of shape "
            f"{_shape(input)}; add a batch dimension with input[None]"
        )
    _, C, H, W = input.shape
    if C < 1 or H < 1 or W < 1:
        raise ValueError(f"input: expected C, H and W of at least 1, got shape {_shape(input)}")
    if spatial_filter is not None and spatial_filter.dim() != 4:
        raise ValueError(
            "spatial_filter: expected 4 dimensions (B, G*Kh*Kw, Ho, Wo), got "
            f"{spatial_filter.dim()} of shape {_shape(spatial_filter)}"
        )
    if channel_filter is not None and channel_filter.dim() not in (3, 4, 5):
        raise ValueError(
            "channel_filter: expected 3 dimensions (B or 1, C, Kh*Kw), 4 (B or 1, C, Ho, Wo) or 5 "
            f"(B or 1, Co, C, Ho, Wo), got {channel_filter.dim()} of shape {_shape(channel_filter)}"
        )


def _kernel_size(
    kernel_size: int | tuple[int, int] | None,
    spatial_filter: Tensor | None,
    channel_filter: Tensor | None,
) -> tuple[int, int]:
    if kernel_size is not None:
        return pair("kernel_size", kernel_size)
    if spatial_filter is not None:
        name, taps = "spatial_filter", int(spatial_filter.shape[1])
    elif channel_filter is not None and channel_filter.dim() == 3:
        name, taps = "channel_filter", int(channel_filter.shape[2])
    else:
        raise ValueError(_ALONE)
    if taps not in _SQUARES:
        several = ", which also allows several groups" if spatial_filter is not None else ""
        raise ValueError(f"{name}: {taps} taps are no square; pass kernel_size=(Kh, Kw){several}")
    return _SQUARES[taps], _SQUARES[taps]


_ALONE = (
    "spatial_filter: None needs a channel_filter with 3 dimensions, (B or 1, C, Kh*Kw), which is "
    "then the whole filter"
)


def _check_alone(channel_filter: Tensor | None, normalize: str | None, scale_factor: int) -> None:
    """What ``spatial_filter=None`` needs and excludes."""
    if channel_filter is None or channel_filter.dim() != 3:
        raise ValueError(_ALONE)
    if normalize is not None:
        raise ValueError(
            f"normalize: {normalize!r} is over the taps of spatial_filter, which is None"
        )
    if scale_factor > 1:
        raise ValueError(
            f"scale_factor: {scale_factor} needs a spatial_filter, which gives the size of the "
            "output; got None"
        )


def _check_spatial_filter(
    input: Tensor,
    spatial_filter: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    scale_factor: int,
) -> None:
    B, C, H, W = input.shape
    taps = kernel_size[0] * kernel_size[1]
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
        if scale_factor > 1:
            if got == size * scale_factor:
                continue
            raise ValueError(
                f"spatial_filter: expected {size * scale_factor} {axis} for an input of {size} "
                f"with scale_factor {scale_factor}, got {got} (shape {_shape(spatial_filter)})"
            )
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


def check_channel_filter(
    channel_filter: Tensor, output_shape: tuple[int, ...], taps: int, combine: str
) -> None:
    """Refuse a channel filter whose sizes do not fit an output of shape ``(B, C, Ho, Wo)``."""
    B, C, Ho, Wo = output_shape
    rank = channel_filter.dim()
    batch, *rest = channel_filter.shape
    if rank == 5:
        _check_mixing_matrix(channel_filter, C, combine)
        expected = (rest[0], C, Ho, Wo)
    else:
        expected = (C, taps) if rank == 3 else (C, Ho, Wo)
    if tuple(rest) != expected or (batch != B and batch != 1):
        wanted = ("Co" if rank == 5 else expected[0], *expected[1:])
        raise ValueError(
            f"channel_filter: expected shape ({B} or 1, {', '.join(map(str, wanted))}), got "
            f"{_shape(channel_filter)}"
        )


def _check_mixing_matrix(channel_filter: Tensor, channels: int, combine: str) -> None:
    if combine != "mul":
        raise ValueError(
            "combine: expected 'mul' with a channel_filter of 5 dimensions (a mixing matrix), got "
            f"{combine!r}"
        )
    most = max(channels, channel_filter.shape[1])
    if most > _MOST_MIXED_CHANNELS or channel_filter.shape[1] < 1:
        raise ValueError(
            f"channel_filter: a mixing matrix (B or 1, Co, C, Ho, Wo) takes 1 to "
            f"{_MOST_MIXED_CHANNELS} channels on either side, got {_shape(channel_filter)} for an "
            f"input of {channels}; filter without it and mix with torch.einsum"
        )


def check_reflect(
    input_size: tuple[int, ...],
    output_size: tuple[int, ...],
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    scale_factor: int,
) -> None:
    """Refuse a filter that reaches beyond one reflection of the input."""
    for axis in (0, 1):
        size = input_size[axis]
        before = before_padding(kernel_size[axis], dilation[axis])
        after = after_padding(
            size,
            output_size[axis],
            kernel_size[axis],
            stride[axis],
            dilation[axis],
            scale_factor,
        )
        if before >= size or after >= size:
            raise ValueError(
                'padding_mode: "reflect" needs an input larger than the reach of the filter '
                f"(as torch.nn.functional.pad does), got a reach of {before} before and {after} "
                f"after {size} {('rows', 'columns')[axis]}; use 'replicate' or 'circular'"
            )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _describe(value: object) -> str:
    name, text = type(value).__name__, repr(value)
    return f"{name} {text}" if len(text) <= 60 and "\n" not in text else name
