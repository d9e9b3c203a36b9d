"""A problem for the tests: sizes, options and dtypes of one call, and random tensors that fit."""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Case", "Operands"]


class Operands(NamedTuple):
    """The three tensors of a call, or something for each of them."""

    input: Any
    spatial_filter: Any
    channel_filter: Any


@dataclass(frozen=True)
class Case:
    """One problem: sizes, options and dtypes."""

    batch: int = 1
    channels: int = 3
    size: tuple[int, int] = (5, 7)
    kernel_size: tuple[int, int] = (3, 3)
    groups: int = 1
    # "none", "image": (B or 1, C, K), "pixel": (B or 1, C, Ho, Wo), "mix": (B or 1, Co, C, Ho, Wo)
    channel_filter: str = "pixel"
    channel_batch: int | None = None  # None: the batch of the input
    output_channels: int | None = None  # of "mix"; None: the channels of the input
    spatial: bool = True  # False: spatial_filter=None
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    scale_factor: int = 1
    rounding: tuple[str, str] = ("ceil", "ceil")  # of H/s and of W/s
    padding_mode: str = "zeros"
    combine: str = "mul"
    normalize: str | None = None
    dtypes: tuple[torch.dtype, ...] = (torch.float64,) * 3

    @property
    def taps(self) -> int:
        return self.kernel_size[0] * self.kernel_size[1]

    @property
    def output_size(self) -> tuple[int, int]:
        floor = [n // s for n, s in zip(self.size, self.stride, strict=True)]
        ceil = [math.ceil(n / s) for n, s in zip(self.size, self.stride, strict=True)]
        height, width = (
            ceil[axis] if self.rounding[axis] == "ceil" else floor[axis] for axis in (0, 1)
        )
        return height * self.scale_factor, width * self.scale_factor

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        mixed = self.channel_filter == "mix" and self.output_channels is not None
        channels = self.output_channels if mixed else self.channels
        assert channels is not None
        return (self.batch, channels, *self.output_size)

    @property
    def shapes(self) -> Operands:
        channel_batch = self.batch if self.channel_batch is None else self.channel_batch
        output_channels = self.output_shape[1]
        channel_shapes = {
            "none": None,
            "image": (channel_batch, self.channels, self.taps),
            "pixel": (channel_batch, self.channels, *self.output_size),
            "mix": (channel_batch, output_channels, self.channels, *self.output_size),
        }
        spatial_shape = (self.batch, self.groups * self.taps, *self.output_size)
        return Operands(
            (self.batch, self.channels, *self.size),
            spatial_shape if self.spatial else None,
            channel_shapes[self.channel_filter],
        )

    @property
    def options(self) -> dict[str, Any]:
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "dilation": self.dilation,
            "padding_mode": self.padding_mode,
            "combine": self.combine,
            "normalize": self.normalize,
            "scale_factor": self.scale_factor,
        }

    @property
    def result_dtype(self) -> torch.dtype:
        """PyTorch's promotion over the tensors that are there."""
        result = self.dtypes[0]
        for dtype, shape in zip(self.dtypes[1:], self.shapes[1:], strict=True):
            if shape is not None:
                result = torch.promote_types(result, dtype)
        return result

    def with_dtype(self, dtype: torch.dtype) -> "Case":
        return replace(self, dtypes=(dtype,) * 3)

    def operands(self, device: str = "cpu", seed: int = 0) -> Operands:
        """Random tensors of the shapes, the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        return Operands(
            *(
                None
                if shape is None
                else torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
                for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
            )
        )

    def cotangent(self, device: str = "cpu", seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        cotangent = torch.randn(self.output_shape, generator=generator, dtype=torch.float64)
        return cotangent.to(device, self.result_dtype)
