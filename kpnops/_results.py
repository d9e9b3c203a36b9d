"""What all operators promise of their results: their memory format, that no derivative is lost in
silence, and that autocast casts nothing."""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["empty_as", "empty_grads", "refuse_forward_mode", "where_needed", "without_autocast"]


def empty_as(tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor, channels_last exactly when ``tensor`` is that and not contiguous
    too."""
    channels_last = (
        tensor.dim() == 4
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=tensor.device, memory_format=memory_format)


def empty_grads(tensors: Sequence[Tensor | None], needs_grad: Sequence[bool]) -> list[Tensor]:
    """Uninitialised gradients of ``tensors``, of which the first is there; without elements where
    none is needed."""
    first = tensors[0]
    assert first is not None
    return [
        empty_as(tensor, tensor.shape, tensor.dtype)
        if tensor is not None and need
        else first.new_empty(0)
        for tensor, need in zip(tensors, needs_grad, strict=True)
    ]


def where_needed(values: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
    """``values`` where they are needed, else None."""
    return [value if need else None for value, need in zip(values, needs, strict=True)]


def refuse_forward_mode(name: str) -> None:
    """Raise where the operator ``name`` is traced through torch.func.jvp: it has no forward-mode
    rule there, and the traced graph would have a zero tangent. Eager calls have one."""
    if getattr(forward_ad, "_current_level", -1) >= 0:
        raise NotImplementedError(
            f"forward-mode differentiation of {name} inside torch.compile is not available; "
            "differentiate outside of it, or in reverse mode"
        )


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """A context in which PyTorch's own operations on ``device`` keep their dtypes."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
