"""One call of the op as a value: what the CPU path and the launchers of the kernels work on."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .._decoupled_filter.geometry import Window

__all__ = ["Call", "Gradients"]


class Gradients(NamedTuple):
    """Where to write the gradients; None for those that are not asked for."""

    features: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    input: Tensor | None
    channel_filter: Tensor | None


@dataclass(frozen=True)
class Call:
    """The tensors and options of one call, already validated."""

    features: Tensor  # (B, F, H, W)
    weight: Tensor  # (G*N*T, F)
    bias: Tensor | None  # (G*N*T,)
    input: Tensor  # (B, C, H, W) or (B, N, C, H, W)
    channel_filter: Tensor | None
    window: Window
    combine: str
    softmax: bool
    precision: str  # of the products that give the logits: "ieee", "tf32" or "tf32x3"

    @property
    def tensors(self) -> Sequence[Tensor | None]:
        """The tensors, in the order of :class:`Gradients`."""
        return self.features, self.weight, self.bias, self.input, self.channel_filter

    @property
    def burst(self) -> bool:
        """Whether the input has several frames, the multi-frame form."""
        return self.input.dim() == 5

    @property
    def frames(self) -> int:
        """Number of frames, N; 1 in the single-frame form."""
        return self.input.shape[1] if self.burst else 1

    @property
    def channels(self) -> int:
        """Channels of the output, C."""
        return self.input.shape[-3]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of all images."""
        return self.input.shape[-2], self.input.shape[-1]

    @property
    def normalized_taps(self) -> int:
        """Taps that a softmax is over: those of all frames, N * Kh * Kw."""
        return self.frames * self.window.taps

    @property
    def groups(self) -> int:
        """Number of groups of channels, G; 1 in the multi-frame form."""
        return self.weight.shape[0] // self.normalized_taps

    @property
    def form(self) -> str:
        """Kind of channel filter: "none", "image" (3-D) or "pixel" (4-D)."""
        if self.channel_filter is None:
            return "none"
        return "image" if self.channel_filter.dim() == 3 else "pixel"

    @property
    def channel_shared(self) -> bool:
        """Whether the images of a batch share one channel filter."""
        return (
            self.channel_filter is not None and self.channel_filter.shape[0] < self.input.shape[0]
        )

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """Shape of the output."""
        return (self.input.shape[0], self.channels, *self.size)

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        """Shape of the logarithms of the sums of exponentials; nothing without a softmax."""
        return (self.input.shape[0], self.groups, *self.size) if self.softmax else (0,)

    @property
    def result_dtype(self) -> torch.dtype:
        """Dtype of the output: PyTorch's promotion of all tensors."""
        there = [tensor.dtype for tensor in self.tensors if tensor is not None]
        return functools.reduce(torch.promote_types, there)

    @property
    def sum_dtype(self) -> torch.dtype:
        """Dtype of logits, products and sums: float64 for a float64 result, else float32."""
        return torch.float64 if self.result_dtype == torch.float64 else torch.float32
