"""Normalisation of predicted filters."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ._checks import arguments, check_choice, count

__all__ = ["FilterNorm"]

_FILTER_TYPES = ("spatial", "channel")
# Keeps a filter of equal taps finite; part of what DDF's models were trained with.
_EPSILON = 1e-10


class FilterNorm(nn.Module):
    r"""Normalise each predicted filter to mean 0 and a given standard deviation over its taps.

    .. math::
        y_t = \frac{x_t - mean_t(x)}{std_t(x) + 10^{-10}}\; \sigma_t + \mu_t

    with the unbiased standard deviation (divided by :math:`K^2 - 1`). :math:`\sigma` is ``gain /
    kernel_size``, with the gain of ``nonlinearity`` from :func:`torch.nn.init.calculate_gain`, or
    learned; :math:`\mu` is 0 or learned.

    Args:
        in_channels: Number of filters at a pixel (``"spatial"``) or in an image (``"channel"``).
        kernel_size: ``K``, at least 2: a single tap has no standard deviation.
        filter_type: ``"spatial"`` or ``"channel"``, see below.
        nonlinearity: A name that :func:`torch.nn.init.calculate_gain` knows.
        running_std: Learn :math:`\sigma`, one for each filter and tap, initially normal with a
            standard deviation of ``gain / kernel_size``.
        running_mean: Learn :math:`\mu`, one for each filter and tap, initially standard normal.

    Attributes:
        std: Parameter ``(in_channels * K * K,)`` with ``running_std``, else a float.
        mean: Parameter ``(in_channels * K * K,)`` with ``running_mean``, else ``None``.

    Shape:
        - ``"spatial"``: ``(B, in_channels*K*K, H, W)`` to the same
        - ``"channel"``: ``(B, in_channels*K*K)``, or any shape with that many numbers for each of B
          images, such as ``(B, in_channels*K*K, 1, 1)``, to ``(B, in_channels*K*K)``

    Raises:
        TypeError: A number is no int.
        ValueError: An argument is out of range or unknown, or the shape of ``x`` does not fit.

    Note:
        What differs from DDF: float16 and bfloat16 are normalised in float32 and rounded once, to
        the dtype of ``x`` whatever that of the parameters (there :math:`10^{-10}` is nothing in
        float16, and a filter of equal taps becomes NaN; here 0, with a derivative of about
        :math:`10^{10}`, which float16 does not hold); ``kernel_size=1``, NaN there, is refused; the
        size of ``x`` is checked.

    Example:
        >>> import torch, kpnops
        >>> norm = kpnops.nn.FilterNorm(2, 3, "spatial")
        >>> taps = norm(torch.randn(1, 18, 4, 4)).unflatten(1, (2, 9))
        >>> torch.allclose(taps.std(dim=2), torch.tensor(1 / 3))
        True
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int,
        filter_type: Literal["spatial", "channel"],
        nonlinearity: str = "linear",
        running_std: bool = False,
        running_mean: bool = False,
    ) -> None:
        super().__init__()
        check_choice("filter_type", filter_type, _FILTER_TYPES)
        self.in_channels: int = count("in_channels", in_channels)
        self.kernel_size: int = count("kernel_size", kernel_size)
        if kernel_size == 1:
            raise ValueError(
                "kernel_size: expected at least 2, got 1: one tap has no standard deviation"
            )
        self.filter_type: Literal["spatial", "channel"] = filter_type
        self.running_std: bool = running_std
        self.running_mean: bool = running_mean
        gain = _gain(nonlinearity) / kernel_size
        numbers = in_channels * kernel_size**2
        self.std: nn.Parameter | float = (
            nn.Parameter(torch.randn(numbers) * gain) if running_std else gain
        )
        self.mean: nn.Parameter | None = (
            nn.Parameter(torch.randn(numbers)) if running_mean else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``; shapes as in the class."""
        x = self._checked(x)
        # (B, filters, taps, ...), a view: the taps of a filter are neighbours. The cast comes
        # first, so that the backward rounds once too.
        dtype = torch.promote_types(x.dtype, torch.float32)
        filters = x.unflatten(1, (self.in_channels, self.kernel_size**2)).to(dtype)
        centred = filters - filters.mean(dim=2, keepdim=True)
        # As a norm: torch.std warns where there are no images, and keeps x for the backward too.
        norm = torch.linalg.vector_norm(centred, dim=2, keepdim=True)
        std = norm / math.sqrt(self.kernel_size**2 - 1)
        normalised = centred * (self._each_tap(self.std, x.dim()) / (std + _EPSILON))
        if self.mean is not None:
            normalised = normalised + self._each_tap(self.mean, x.dim())
        return normalised.flatten(1, 2).to(x.dtype)

    def _each_tap(self, value: Tensor | float, dimensions: int) -> Tensor | float:
        """A parameter in the shape of the filters, ``(filters, taps, 1...)``."""
        if not isinstance(value, Tensor):
            return value
        return value.view(self.in_channels, self.kernel_size**2, *(1,) * (dimensions - 2))

    def _checked(self, x: Tensor) -> Tensor:
        numbers = self.in_channels * self.kernel_size**2
        if self.filter_type == "spatial":
            if x.dim() != 4 or x.shape[1] != numbers:
                raise ValueError(f"x: expected shape (B, {numbers}, H, W), got {tuple(x.shape)}")
            return x
        flat = x.flatten(1) if x.dim() >= 2 else x
        if flat.dim() != 2 or flat.shape[1] != numbers:
            raise ValueError(f"x: expected {numbers} numbers for each image, got {tuple(x.shape)}")
        return flat

    def extra_repr(self) -> str:
        """The arguments, and the standard deviation where it is not learned."""
        std = {} if isinstance(self.std, nn.Parameter) else {"std": round(self.std, 6)}
        return arguments(
            in_channels=self.in_channels,
            kernel_size=self.kernel_size,
            filter_type=self.filter_type,
            running_std=self.running_std,
            running_mean=self.running_mean,
            **std,
        )


def _gain(nonlinearity: str) -> float:
    try:
        return float(nn.init.calculate_gain(nonlinearity))  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        raise ValueError(f"nonlinearity: {error}") from None
