"""The op as a module."""

from torch import Tensor, nn

from .._decoupled_filter.api import Combine, Normalize, PaddingMode, decoupled_filter
from .._decoupled_filter.geometry import COMBINE_MODES, NORMALIZE_MODES, PADDING_MODES
from .._decoupled_filter.validation import check_scale_factor, pair
from ._checks import arguments, check_choice

__all__ = ["DecoupledFilter2d"]


class DecoupledFilter2d(nn.Module):
    r"""Filter an image with given filters: :func:`kpnops.decoupled_filter` as a module.

    It has no parameters; the filters are inputs, predicted by the network around it.

    Args:
        kernel_size: ``Kh = Kw`` or ``(Kh, Kw)``, odd or even.
        stride: Step of the output grid on the input, ``s`` or ``(y, x)``, in pixels.
        dilation: Distance between taps, ``d`` or ``(y, x)``, in pixels.
        padding_mode: What is read outside the input: ``"zeros"``, ``"replicate"``, ``"reflect"`` or
            ``"circular"``.
        combine: How spatial and channel filter are combined, ``"mul"`` or ``"add"``.
        normalize: ``"softmax"``: the spatial filter holds logits, and their softmax over the taps
            is used. ``None``: it is used as it is.
        scale_factor: ``u``: the result has ``u`` times the size of the input, by filters of the
            pixels of the result; ``stride`` is 1 then.

    Shape:
        - input: ``(B, C, H, W)``
        - spatial_filter: ``(B, G*Kh*Kw, Ho, Wo)``, or ``None``
        - channel_filter: ``None``, ``(B or 1, C, Kh*Kw)``, ``(B or 1, C, Ho, Wo)`` or ``(B or 1,
          Co, C, Ho, Wo)``
        - output: ``(B, C, Ho, Wo)``, or ``(B, Co, Ho, Wo)`` with a channel filter of 5 dimensions

    Raises:
        TypeError: A number is no int or pair of ints.
        ValueError: A number is below 1, an option is unknown, or a scale factor comes with a
            stride. The call raises what :func:`kpnops.decoupled_filter` raises.

    Example:
        >>> import torch, kpnops
        >>> layer = kpnops.nn.DecoupledFilter2d(3, padding_mode="replicate", normalize="softmax")
        >>> layer
        DecoupledFilter2d(kernel_size=(3, 3), padding_mode='replicate', normalize='softmax')
        >>> layer(torch.rand(1, 4, 6, 6), torch.rand(1, 9, 6, 6)).shape
        torch.Size([1, 4, 6, 6])
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
        padding_mode: PaddingMode = "zeros",
        combine: Combine = "mul",
        normalize: Normalize | None = None,
        scale_factor: int = 1,
    ) -> None:
        super().__init__()
        check_choice("padding_mode", padding_mode, PADDING_MODES)
        check_choice("combine", combine, COMBINE_MODES)
        check_choice("normalize", normalize, NORMALIZE_MODES)
        self.kernel_size: tuple[int, int] = pair("kernel_size", kernel_size)
        self.stride: tuple[int, int] = pair("stride", stride)
        self.dilation: tuple[int, int] = pair("dilation", dilation)
        self.padding_mode: PaddingMode = padding_mode
        self.combine: Combine = combine
        self.normalize: Normalize | None = normalize
        check_scale_factor(scale_factor, self.stride)
        self.scale_factor: int = int(scale_factor)

    def forward(
        self,
        input: Tensor,
        spatial_filter: Tensor | None,
        channel_filter: Tensor | None = None,
    ) -> Tensor:
        """Filter ``input``; shapes as in the class."""
        return decoupled_filter(
            input,
            spatial_filter,
            channel_filter,
            kernel_size=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            padding_mode=self.padding_mode,
            combine=self.combine,
            normalize=self.normalize,
            scale_factor=self.scale_factor,
        )

    def extra_repr(self) -> str:
        """Kernel size, and what differs from the defaults."""
        defaults = {
            "stride": (1, 1),
            "dilation": (1, 1),
            "padding_mode": "zeros",
            "combine": "mul",
            "normalize": None,
            "scale_factor": 1,
        }
        changed = {name: getattr(self, name) for name in defaults}
        changed = {name: value for name, value in changed.items() if value != defaults[name]}
        return arguments(kernel_size=self.kernel_size, **changed)
