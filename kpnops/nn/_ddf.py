"""The modules of DDF: predict decoupled filters and apply them."""

import torch
from torch import Tensor, nn

from .._decoupled_filter.api import Combine, decoupled_filter
from .._decoupled_filter.geometry import COMBINE_MODES
from .._decoupled_filter.validation import is_integer, pair
from ._checks import arguments, check_choice, check_image, count
from ._filter_norm import FilterNorm

__all__ = ["DDFPack", "DDFUpPack"]


class DDFPack(nn.Module):
    r"""Predict decoupled filters from an image and filter the image with them.

    A 1x1 convolution predicts the spatial filters, a squeeze-and-excitation branch (global mean,
    1x1 convolution, ReLU, 1x1 convolution) the channel filters; both pass a :class:`FilterNorm`.

    Args:
        in_channels: ``C``.
        kernel_size: ``K``, at least 2, odd or even.
        stride: Step of the output grid, ``s`` or ``(y, x)``, in pixels.
        dilation: Distance between taps, ``d`` or ``(y, x)``, in pixels.
        head: Number of spatial filters at a pixel, each for ``C / head`` channels.
        se_ratio: Width of the channel branch relative to ``C``; ``int(C * se_ratio)``, at least 1.
        nonlinearity: What follows; it sets the gain of the filters, see :class:`FilterNorm`.
        kernel_combine: ``"mul"`` or ``"add"``.

    Shape:
        - x: ``(B, C, H, W)``
        - output: ``(B, C, ceil(H / s), ceil(W / s))``, in the dtype and memory format of ``x``

    Parameters, with ``M = max(1, int(C * se_ratio))``:
        - ``spatial_branch.0``: ``weight (head*K*K, C, 1, 1)``, ``bias (head*K*K,)``
        - ``channel_branch.1``: ``weight (M, C, 1, 1)``, ``bias (M,)``
        - ``channel_branch.3``: ``weight (C*K*K, M, 1, 1)``, ``bias (C*K*K,)``
        - ``channel_branch.4``: ``std (C*K*K,)``

    Raises:
        TypeError: A number is no int (``se_ratio``: no number).
        ValueError: An argument is out of range or unknown, or the shape of ``x`` does not fit.

    Note:
        What differs from DDF: sizes that the stride does not divide work (there only multiples of
        it), and so do ``C < 5`` (there ``int(C * 0.2) = 0`` channels in the middle raise) and even
        kernel sizes. Under autocast the filters are in the lower precision while a float32 ``x``
        stays what it is.

    Example:
        >>> import torch, kpnops
        >>> layer = kpnops.nn.DDFPack(3, stride=2)
        >>> layer(torch.rand(1, 3, 9, 12)).shape
        torch.Size([1, 3, 5, 6])
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 3,
        stride: int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
        head: int = 1,
        se_ratio: float = 0.2,
        nonlinearity: str = "relu",
        kernel_combine: Combine = "mul",
    ) -> None:
        super().__init__()
        check_choice("kernel_combine", kernel_combine, COMBINE_MODES)
        self.in_channels: int = count("in_channels", in_channels)
        self.kernel_size: int = count("kernel_size", kernel_size)
        self.stride: tuple[int, int] = pair("stride", stride)
        self.dilation: tuple[int, int] = pair("dilation", dilation)
        self.head: int = _heads(head, in_channels)
        self.kernel_combine: Combine = kernel_combine
        self.spatial_branch: nn.Sequential = _spatial_branch(
            in_channels, kernel_size, head, nonlinearity, self.stride
        )
        self.channel_branch: nn.Sequential = _channel_branch(
            in_channels, kernel_size, nonlinearity, se_ratio
        )

    def forward(self, x: Tensor) -> Tensor:
        """Filter ``x``; shapes as in the class."""
        check_image("x", x, self.in_channels)
        return decoupled_filter(
            x,
            self.spatial_branch(x),
            self.channel_branch(x).unflatten(1, (self.in_channels, self.kernel_size**2)),
            kernel_size=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            combine=self.kernel_combine,
        )

    def extra_repr(self) -> str:
        """The arguments that the branches do not show."""
        return arguments(
            stride=self.stride,
            dilation=self.dilation,
            head=self.head,
            kernel_combine=self.kernel_combine,
        )


class DDFUpPack(nn.Module):
    r"""Upsample an image with predicted decoupled filters, a pair for each position in the cell.

    Every pixel becomes a cell of ``u x u``; each position in the cell has a spatial and a channel
    branch of its own, whose filters are applied around the same pixel:

    .. math::
        out[b,c,y u + i,x u + j] = DDF(x, Ch_{iu+j}(x), S_{iu+j}(joint))[b,c,y,x]

    Args:
        in_channels: ``C``.
        kernel_size: ``K``, at least 2, odd or even.
        scale_factor: ``u``.
        dilation: Distance between taps, ``d`` or ``(y, x)``, in pixels.
        head: Number of spatial filters at a position, each for ``C / head`` channels.
        se_ratio: Width of the channel branch relative to ``C``; ``int(C * se_ratio)``, at least 1.
        nonlinearity: What follows; it sets the gain of the filters, see :class:`FilterNorm`.
        dw_kernel_size: ``D``, odd, size of the depthwise convolution before the spatial filters; 1
            means 3, as in DDF. Without effect with ``joint_channels``.
        joint_channels: Channels of ``joint_x``, from which the spatial filters are predicted
            directly. Below 1: a depthwise convolution comes before, on ``C`` channels.
        kernel_combine: ``"mul"`` or ``"add"``.

    Shape:
        - x: ``(B, C, H, W)``
        - joint_x: ``None``, which means ``x``; or ``(B, J, H, W)`` with ``J = joint_channels``, or
          ``C`` if that is below 1
        - output: ``(B, C, H*u, W*u)``, in the memory format of ``x``

    Parameters, for each ``n`` in ``u*u`` positions (row by row), ``M = max(1, int(C * se_ratio))``:
        - ``spatial_branch.n.0``: ``weight (C, 1, D, D)``, ``bias (C,)``, the depthwise convolution
        - ``spatial_branch.n.1.0``: ``weight (head*K*K, C, 1, 1)``, ``bias (head*K*K,)``. With
          ``joint_channels`` this is ``spatial_branch.n.0``, with ``J`` for ``C``
        - ``channel_branch.n.1``, ``.3`` and ``.4``: as in :class:`DDFPack`

    Raises:
        TypeError: A number is no int (``se_ratio``: no number).
        ValueError: An argument is out of range or unknown, or a shape does not fit.

    Note:
        What differs from DDF: there every call raises, because ``head`` is passed where ``mul`` or
        ``add`` is expected. The depthwise convolution is padded by half of **its** size, so that
        ``dw_kernel_size`` and ``kernel_size`` may differ. ``joint_channels`` is the number of
        channels of ``joint_x``; there it only switches the depthwise convolution off, and
        ``joint_x`` needs ``C`` channels (``joint_channels = C`` here). ``C < 5`` and even kernel
        sizes work. The image is never unfolded: no ``K*K``-fold copy of it is made.

    Example:
        >>> import torch, kpnops
        >>> layer = kpnops.nn.DDFUpPack(3)
        >>> layer(torch.rand(1, 3, 5, 7)).shape
        torch.Size([1, 3, 10, 14])
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 3,
        scale_factor: int = 2,
        dilation: int | tuple[int, int] = 1,
        head: int = 1,
        se_ratio: float = 0.2,
        nonlinearity: str = "linear",
        dw_kernel_size: int = 3,
        joint_channels: int = -1,
        kernel_combine: Combine = "mul",
    ) -> None:
        super().__init__()
        check_choice("kernel_combine", kernel_combine, COMBINE_MODES)
        self.in_channels: int = count("in_channels", in_channels)
        self.kernel_size: int = count("kernel_size", kernel_size)
        self.scale_factor: int = count("scale_factor", scale_factor)
        self.dilation: tuple[int, int] = pair("dilation", dilation)
        self.head: int = _heads(head, in_channels)
        if not is_integer(joint_channels):
            raise TypeError(f"joint_channels: expected an int, got {joint_channels!r}")
        self.joint_channels: int = int(joint_channels)
        self.kernel_combine: Combine = kernel_combine
        self.spatial_branch: nn.ModuleList = nn.ModuleList()
        self.channel_branch: nn.ModuleList = nn.ModuleList()
        guide_channels = in_channels if joint_channels < 1 else joint_channels
        for _ in range(scale_factor**2):
            # In this order, random numbers give the parameters that they give in DDF.
            depthwise = [] if joint_channels >= 1 else [_depthwise(in_channels, dw_kernel_size)]
            branch = _spatial_branch(guide_channels, kernel_size, head, nonlinearity, (1, 1))
            self.spatial_branch.append(nn.Sequential(*depthwise, branch) if depthwise else branch)
            self.channel_branch.append(
                _channel_branch(in_channels, kernel_size, nonlinearity, se_ratio)
            )

    def forward(self, x: Tensor, joint_x: Tensor | None = None) -> Tensor:
        """Upsample ``x``, guided by ``joint_x``; shapes as in the class."""
        check_image("x", x, self.in_channels)
        guide_channels = self.in_channels if self.joint_channels < 1 else self.joint_channels
        guide = x if joint_x is None else joint_x
        if guide.shape != (x.shape[0], guide_channels, *x.shape[2:]):
            expected = (x.shape[0], guide_channels, *x.shape[2:])
            got = (
                f"None, which means x, {tuple(x.shape)}" if joint_x is None else tuple(guide.shape)
            )
            raise ValueError(f"joint_x: expected shape {tuple(expected)}, got {got}")
        cells = []
        for spatial_branch, channel_branch in zip(
            self.spatial_branch, self.channel_branch, strict=True
        ):
            channel_filter = channel_branch(x)
            cells.append(
                decoupled_filter(
                    x,
                    spatial_branch(guide),
                    channel_filter.unflatten(1, (self.in_channels, self.kernel_size**2)),
                    kernel_size=self.kernel_size,
                    dilation=self.dilation,
                    combine=self.kernel_combine,
                )
            )
        return _interleave(cells, self.scale_factor)

    def extra_repr(self) -> str:
        """The arguments that the branches do not show."""
        return arguments(
            scale_factor=self.scale_factor,
            dilation=self.dilation,
            head=self.head,
            kernel_combine=self.kernel_combine,
        )


def _spatial_branch(
    in_channels: int,
    kernel_size: int,
    head: int,
    nonlinearity: str,
    stride: tuple[int, int],
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, head * kernel_size**2, 1, stride=stride),
        FilterNorm(head, kernel_size, "spatial", nonlinearity),
    )


def _channel_branch(
    in_channels: int, kernel_size: int, nonlinearity: str, se_ratio: float
) -> nn.Sequential:
    if not isinstance(se_ratio, float | int):
        raise TypeError(f"se_ratio: expected a number, got {type(se_ratio).__name__} {se_ratio!r}")
    if not se_ratio > 0:
        raise ValueError(f"se_ratio: expected more than 0, got {se_ratio}")
    width = max(1, int(in_channels * se_ratio))
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(in_channels, width, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, in_channels * kernel_size**2, 1),
        FilterNorm(in_channels, kernel_size, "channel", nonlinearity, running_std=True),
    )


def _depthwise(in_channels: int, kernel_size: int) -> nn.Conv2d:
    if count("dw_kernel_size", kernel_size) % 2 == 0:
        raise ValueError(f"dw_kernel_size: expected an odd number, got {kernel_size}")
    size = max(kernel_size, 3)
    return nn.Conv2d(in_channels, in_channels, size, padding=size // 2, groups=in_channels)


def _interleave(cells: list[Tensor], scale: int) -> Tensor:
    """One image from ``scale * scale`` images, each with one position of every cell."""
    B, C, H, W = cells[0].shape
    channels_last = cells[0].stride(1) == 1 and not cells[0].is_contiguous()
    blocks = torch.stack(cells).unflatten(0, (scale, scale))  # (i, j, B, C, H, W)
    if channels_last:
        image = blocks.permute(2, 4, 0, 5, 1, 3).reshape(B, H * scale, W * scale, C)
        return image.permute(0, 3, 1, 2)
    return blocks.permute(2, 3, 4, 0, 5, 1).reshape(B, C, H * scale, W * scale)


def _heads(head: int, in_channels: int) -> int:
    heads = count("head", head)
    if in_channels % heads != 0:
        raise ValueError(f"head: expected a divisor of in_channels, {in_channels}, got {head}")
    return heads
