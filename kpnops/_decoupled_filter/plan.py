"""What a call is to the launchers, and what they make of it: launches as data."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from .geometry import Window

__all__ = ["Call", "Launch", "Plan", "strides"]


@dataclass(frozen=True)
class Launch:
    """One kernel launch on a one-dimensional grid: arguments by name, constants apart."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int
    max_registers: int | None = None  # of a thread; a hint for NVIDIA's assembler only

    def options(self, nvidia: bool) -> dict[str, int]:
        """Compile options of the launch on an NVIDIA or another GPU."""
        options = {"num_warps": self.num_warps}
        if nvidia and self.max_registers is not None:
            options["maxnreg"] = self.max_registers
        return options


@dataclass
class Plan:
    """Launches in their order, and what is done with their workspace afterwards."""

    launches: list[Launch] = field(default_factory=list)
    finish: list[Callable[[], object]] = field(default_factory=list)


@dataclass(frozen=True)
class Call:
    """The tensors and options of one call."""

    input: Tensor
    spatial: Tensor
    channel: Tensor | None
    window: Window
    combine: str
    dtype: torch.dtype  # of sums

    @classmethod
    def of(
        cls,
        input: Tensor,
        spatial: Tensor,
        channel: Tensor | None,
        window: Window,
        combine: str,
        result_dtype: torch.dtype,
    ) -> "Call":
        """The call whose result has ``result_dtype``: float64 sums in float64, all else in
        float32."""
        dtype = torch.float64 if result_dtype == torch.float64 else torch.float32
        return cls(input, spatial, channel, window, combine, dtype)

    @property
    def form(self) -> str:
        """Kind of channel filter: "none", "image" (3-D) or "pixel" (4-D)."""
        if self.channel is None:
            return "none"
        return "image" if self.channel.dim() == 3 else "pixel"

    @property
    def channel_shared(self) -> bool:
        """Whether the images of a batch share one channel filter."""
        return self.channel is not None and self.channel.shape[0] < self.input.shape[0]

    @property
    def groups(self) -> int:
        """Number of groups of channels, G."""
        return self.spatial.shape[1] // self.window.taps

    @property
    def channels_per_group(self) -> int:
        """Channels that share one spatial filter, C / G."""
        return self.input.shape[1] // self.groups

    @property
    def output_size(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        return self.spatial.shape[2], self.spatial.shape[3]

    @property
    def acc(self) -> Any:
        """Triton's name of the dtype of sums."""
        return tl.float64 if self.dtype == torch.float64 else tl.float32

    def channel_strides(self) -> tuple[int, ...]:
        """Strides of the channel filter; 0 along a batch of one that all images share."""
        if self.channel is None:
            return (0, 0, 0, 0)
        first, *rest = self.channel.stride()
        return (0 if self.channel_shared else first, *rest)


def strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides of a tensor as the kernels take them."""
    return tuple(tensor.stride())
