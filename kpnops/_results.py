"""What all operators promise of their results: their memory format, that no derivative is lost in
silence, and that autocast casts nothing."""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["empty_as", "refuse_forward_mode", "without_autocast"]


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
