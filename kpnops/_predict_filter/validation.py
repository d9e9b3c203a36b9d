"""Refuses what the op does not take; every message names the argument, what was expected and what
came."""

from torch import Tensor

from .._decoupled_filter.geometry import COMBINE_MODES, NORMALIZE_MODES, PADDING_MODES
from .._decoupled_filter.validation import (
    check_channel_filter,
    check_option,
    check_reflect,
    check_tensor,
    pair,
)

__all__ = ["PRECISIONS", "validate"]

PRECISIONS = ("ieee", "tf32", "tf32x3")


def validate(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input: Tensor,
    channel_filter: Tensor | None,
    kernel_size: int | tuple[int, int],
    dilation: int | tuple[int, int],
    padding_mode: str,
    normalize: str | None,
    combine: str,
    precision: str,
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Refuse what the op does not take, and return ``kernel_size`` and ``dilation`` as pairs."""
    check_option("padding_mode", padding_mode, PADDING_MODES)
    check_option("combine", combine, COMBINE_MODES)
    check_option("normalize", normalize, NORMALIZE_MODES)
    check_option("precision", precision, PRECISIONS)
    kernel_yx = pair("kernel_size", kernel_size)
    dilation_yx = pair("dilation", dilation)
    check_tensor("input", input, input)
    for name, tensor in (("features", features), ("weight", weight)):
        check_tensor(name, tensor, input)
    for name, tensor in (("bias", bias), ("channel_filter", channel_filter)):
        if tensor is not None:
            check_tensor(name, tensor, input)
    _check_input(input)
    _check_features(features, input)
    taps = kernel_yx[0] * kernel_yx[1]
    _check_weight(weight, bias, features, input, taps)
    if channel_filter is not None:
        _check_channel_filter(channel_filter, input, taps, combine)
    if padding_mode == "reflect":
        size = tuple(input.shape[-2:])
        check_reflect(size, size, kernel_yx, (1, 1), dilation_yx, 1)
    return kernel_yx, dilation_yx


def _check_input(input: Tensor) -> None:
    if input.dim() not in (4, 5):
        raise ValueError(
            "input: expected 4 dimensions (B, C, H, W), or 5 (B, N, C, H, W) for N frames, got "
            f"{input.dim()} of shape {_shape(input)}"
        )
    if min(input.shape[1:]) < 1:
        sizes = "C, H and W" if input.dim() == 4 else "N, C, H and W"
        raise ValueError(f"input: expected {sizes} of at least 1, got shape {_shape(input)}")


def _check_features(features: Tensor, input: Tensor) -> None:
    B, (H, W) = input.shape[0], input.shape[-2:]
    if features.dim() != 4:
        raise ValueError(
            f"features: expected 4 dimensions (B, F, H, W), got {features.dim()} of shape "
            f"{_shape(features)}"
        )
    if tuple(features.shape[2:]) != (H, W) or features.shape[0] != B or features.shape[1] < 1:
        raise ValueError(
            f"features: expected shape ({B}, F, {H}, {W}) for an input of shape {_shape(input)}, "
            f"got {_shape(features)}"
        )


def _check_weight(
    weight: Tensor, bias: Tensor | None, features: Tensor, input: Tensor, taps: int
) -> None:
    if weight.dim() not in (2, 4):
        raise ValueError(
            "weight: expected 2 dimensions (G*Kh*Kw, F), or 4 (G*Kh*Kw, F, 1, 1), got "
            f"{weight.dim()} of shape {_shape(weight)}"
        )
    count, *rest = weight.shape
    expected = [features.shape[1]] if weight.dim() == 2 else [features.shape[1], 1, 1]
    if rest != expected:
        raise ValueError(
            f"weight: expected shape (G*Kh*Kw, {', '.join(map(str, expected))}) for features of "
            f"shape {_shape(features)}, got {_shape(weight)}"
        )
    if input.dim() == 5:
        if count != input.shape[1] * taps:
            raise ValueError(
                f"weight: expected {input.shape[1]} * {taps} rows, one for each frame and tap, got "
                f"{count} (shape {_shape(weight)})"
            )
    else:
        groups = count // taps
        if groups < 1 or count != groups * taps or input.shape[1] % groups != 0:
            raise ValueError(
                f"weight: expected G * {taps} rows for kernel_size of {taps} taps, where G divides "
                f"the {input.shape[1]} channels of input, got {count} (shape {_shape(weight)})"
            )
    if bias is not None and tuple(bias.shape) != (count,):
        raise ValueError(
            f"bias: expected shape ({count},), one number for each row of weight, got "
            f"{_shape(bias)}"
        )


def _check_channel_filter(channel_filter: Tensor, input: Tensor, taps: int, combine: str) -> None:
    burst = input.dim() == 5
    allowed = (4,) if burst else (3, 4)
    if channel_filter.dim() not in allowed:
        wanted = "4 dimensions (B or 1, C, H, W)"
        if not burst:
            wanted = "3 dimensions (B or 1, C, Kh*Kw) or 4 (B or 1, C, H, W)"
        elif channel_filter.dim() == 3:
            wanted += " where input has frames"
        cure = ""
        if channel_filter.dim() == 5:
            cure = "; mix the channels of the result with torch.einsum"
        raise ValueError(
            f"channel_filter: expected {wanted}, got {channel_filter.dim()} of shape "
            f"{_shape(channel_filter)}{cure}"
        )
    shape = (input.shape[0], *input.shape[-3:])
    check_channel_filter(channel_filter, shape, taps, combine)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
