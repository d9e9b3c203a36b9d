"""The specification: the logits as a tensor, then the specification of the decoupled filter."""

from torch import Tensor

from .._decoupled_filter import reference
from .._decoupled_filter.api import Combine, Normalize, PaddingMode
from . import composition
from .api import Precision
from .validation import validate

__all__ = ["predict_filter"]


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
    """Compute what :func:`kpnops.predict_filter` computes, with the logits and ``Kh * Kw`` copies
    of the input stored.

    The logits and what follows are computed at least in float32. Arguments, shapes, result and
    errors are those of :func:`kpnops.predict_filter`; any number of derivatives exists.

    Example:
        >>> import torch, kpnops
        >>> features, image = torch.rand(1, 8, 5, 5), torch.rand(1, 3, 5, 5)
        >>> head = torch.nn.Conv2d(8, 9, 1).requires_grad_(False)
        >>> arguments = (features, head.weight, head.bias, image)
        >>> expected = kpnops.reference.predict_filter(*arguments, kernel_size=3)
        >>> torch.allclose(kpnops.predict_filter(*arguments, kernel_size=3), expected, atol=1e-6)
        True
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
    return composition.predict_filter(tensors, options, reference.decoupled_filter)
