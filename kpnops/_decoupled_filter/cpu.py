"""The op as PyTorch operations: a loop over the taps on views of the input, accumulating in place.

Used for CPU tensors and on every device that has no kernels. It works through strips of rows, so
that beyond inputs and outputs it holds a padded copy of the strip and a workspace of at most 32 MB
(``cpu_split``). Sums run in a fixed order. The gradients are in ``cpu_gradients``.
"""

import torch
from torch import Tensor

from . import cpu_gradients
from .call import Call, Gradients
from .cpu_split import Split, chunks, filter_rows, padded_rows, split_call, strips

__all__ = ["backward", "forward"]


def forward(call: Call, output: Tensor) -> None:
    """Write the filtered image into ``output``, ``(B, C or Co, Ho, Wo)``."""
    split = split_call(call)
    cut = strips(split, _planes(call, split), gradient=False)
    for rows in cut.rows:
        for images in cut.images:
            strip = split.part(images, rows)
            _forward_strip(strip, rows, cut.chunk, output[images, :, rows])


def backward(call: Call, grad_output: Tensor, grads: Gradients) -> None:
    """Write the gradients that are asked for."""
    cpu_gradients.write_gradients(split_call(call), grad_output, grads)


def _planes(call: Call, split: Split) -> int:
    """Values that the forward holds for each position: the padded input (repeated under
    ``scale_factor``), the filter of a tap, sums that are not in place, and what is converted."""
    C, mix = call.input.shape[1], call.form == "mix"
    planes = C + (call.window.scale > 1) * C
    planes += (mix or call.form in ("image", "pixel")) * C + split.mixed_dtypes * C
    if mix or call.result_dtype != split.dtype:
        planes += 2 * call.output_channels if mix else C
    return planes


def _forward_strip(strip: Split, rows: slice, height: int, target: Tensor) -> None:
    """Write the strip ``rows`` of the output, by ``chunks`` of this height."""
    padded = padded_rows(strip, rows)
    for inner, chunk in chunks(strip, height, gradient=False):
        read = padded[:, :, :, inner.start * strip.window.stride[0] :]
        _forward_rows(chunk, read, target[:, :, inner])


def _forward_rows(call: Split, padded: Tensor, target: Tensor) -> None:
    """Write some rows of the output into ``target``, ``(B, C or Co, rows, Wo)``."""
    exact = target.dtype == call.dtype
    total = target if exact else torch.empty_like(target, dtype=call.dtype)
    if call.form == "mix":
        B, _, rows, Wo = target.shape
        filtered = total.new_empty(B, call.input.shape[1], rows, Wo)
        filter_rows(call, padded, call.split(filtered))
        _mix(call, filtered, total)
    else:
        filter_rows(call, padded, call.split(total))
    if not exact:
        target.copy_(total)


def _mix(call: Split, filtered: Tensor, total: Tensor) -> None:
    """``total[o] = sum over c of M[o, c] * filtered[c]`` at every pixel."""
    assert call.channel is not None
    for channel in range(filtered.shape[1]):
        value, column = filtered[:, channel, None], call.channel[:, :, channel]
        if channel == 0:
            torch.mul(value, column, out=total)
        else:
            total.addcmul_(value, column)
