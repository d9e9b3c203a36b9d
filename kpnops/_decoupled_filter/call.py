"""One call of the op as a value: what the CPU path and the launchers of the kernels work on."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .geometry import Window

__all__ = ["Call", "Gradients"]


class Gradients(NamedTuple):
    """Where to write the gradients; None for those that are not asked for."""

    input: Tensor | None
    spatial_filter: Tensor | None
    channel_filter: Tensor | None


@dataclass(frozen=True)
class Call:
    """The tensors and options of one call, already validated."""

    input: Tensor
    spatial_filter: Tensor
    channel_filter: Tensor | None
    window: Window
    combine: str
    softmax: bool = False
    double: bool = False  # sums in float64 whatever the dtypes of the tensors here
    held_gradient: bool = False  # the gradient of the output stands in a workspace, by strips

    @property
    def form(self) -> str:
        """Kind of channel filter: "none", "image" (3-D), "pixel" (4-D) or "mix" (5-D)."""
        if self.channel_filter is None:
            return "none"
        return {3: "image", 4: "pixel", 5: "mix"}[self.channel_filter.dim()]

    @property
    def channel_shared(self) -> bool:
        """Whether the images of a batch share one channel filter."""
        return (
            self.channel_filter is not None and self.channel_filter.shape[0] < self.input.shape[0]
        )

    @property
    def groups(self) -> int:
        """Number of groups of channels, G."""
        return self.spatial_filter.shape[1] // self.window.taps

    @property
    def channels_per_group(self) -> int:
        """Channels that share one spatial filter, C / G."""
        return self.input.shape[1] // self.groups

    @property
    def input_size(self) -> tuple[int, int]:
        """Rows and columns of the input."""
        return self.input.shape[2], self.input.shape[3]

    @property
    def output_size(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        return self.spatial_filter.shape[2], self.spatial_filter.shape[3]

    @property
    def output_channels(self) -> int:
        """Channels of the output: those of the input, or Co of a mixing matrix."""
        if self.channel_filter is not None and self.channel_filter.dim() == 5:
            return self.channel_filter.shape[1]
        return self.input.shape[1]

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """Shape of the output."""
        return (self.input.shape[0], self.output_channels, *self.output_size)

    @property
    def result_dtype(self) -> torch.dtype:
        """Dtype of the output: PyTorch's promotion of all tensors."""
        dtype = torch.promote_types(self.input.dtype, self.spatial_filter.dtype)
        if self.channel_filter is None:
            return dtype
        return torch.promote_types(dtype, self.channel_filter.dtype)

    @property
    def sum_dtype(self) -> torch.dtype:
        """Dtype of products and sums: float64 for a float64 result, else float32."""
        double = self.double or self.result_dtype == torch.float64
        return torch.float64 if double else torch.float32
