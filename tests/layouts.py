"""Tensors with the same values and other strides."""

import math
from typing import Any

import torch
from torch import Tensor

LAYOUTS = ["contiguous", "channels_last", "transposed", "sliced", "expanded"]


def embed(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Copy into every second element of a NaN-filled buffer with a margin: (view, buffer)."""
    shape = [2 * size + 3 for size in tensor.shape]
    buffer = torch.full(shape, math.nan, dtype=tensor.dtype, device=tensor.device)
    view = buffer[tuple(slice(2, 2 + 2 * size, 2) for size in tensor.shape)]
    view.copy_(tensor)
    return view, buffer


def arrange(tensor: Tensor | None, layout: str) -> Any:
    """The same values with other strides; "expanded" repeats the first column and image instead."""
    if tensor is None or layout == "contiguous":
        return tensor
    if layout == "channels_last":
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "transposed":
        return tensor.mT.contiguous().mT
    if layout == "sliced":
        return embed(tensor)[0]
    if layout == "expanded":
        return tensor[:1, ..., :1].expand(tensor.shape)
    raise ValueError(f"unknown layout {layout!r}")


def has_promised_format(result: Tensor, source: Tensor) -> bool:
    """Whether a result is channels_last exactly when its source is that and not contiguous."""
    last = torch.channels_last
    if (
        source.dim() == 4
        and not source.is_contiguous()
        and source.is_contiguous(memory_format=last)
    ):
        return result.is_contiguous(memory_format=last)
    return result.is_contiguous()
