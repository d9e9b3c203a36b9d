"""One call of the CPU path in parts that fit into the workspace: groups of channels, images, rows
and taps as views, rows of probabilities, and padded rows of the input.

With ``scale_factor`` u the rows that a strip reads are repeated u times along both axes. The rest
is then an ordinary call on the grid of the output, whose taps lie u times as far apart.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .call import Call
from .geometry import Window, source_index

__all__ = [
    "Split",
    "Strips",
    "certainly_finite",
    "chunks",
    "filter_rows",
    "padded_rows",
    "reach",
    "split_call",
    "strips",
    "tap_views",
    "tap_windows",
]

WORKSPACE_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Split:
    """One call or a part of it, its channels split into G groups of ``C/G``."""

    input: Tensor  # (B, C, H, W)
    spatial: Tensor  # (B, G, T, Ho, Wo)
    # (B or 1, G, C/G, T), (B or 1, G, C/G, Ho, Wo) or (B or 1, Co, C, Ho, Wo)
    channel: Tensor | None
    window: Window
    form: str  # of the channel filter, as in Call
    combine: str
    softmax: bool  # whether spatial holds logits
    dtype: torch.dtype  # of sums and products
    scratch: Tensor | None = None  # for gradients of probabilities, as large as these

    @property
    def per_pixel(self) -> bool:
        """A channel filter with a value of its own for each output pixel."""
        return self.form in ("pixel", "mix")

    @property
    def gain(self) -> bool:
        """A factor that leaves the sum over the taps: the 4-D channel filter under "mul"."""
        return self.form == "pixel" and self.combine == "mul"

    @property
    def shared(self) -> bool:
        """A channel filter that all images of a batch share."""
        return self.channel is not None and self.channel.shape[0] < self.input.shape[0]

    @property
    def rows(self) -> int:
        """Rows of the output."""
        return self.spatial.shape[3]

    @property
    def mixed_dtypes(self) -> bool:
        """Whether an operand has another dtype than the sums, so that PyTorch converts it first."""
        tensors = (self.input, self.spatial, self.channel)
        return any(tensor is not None and tensor.dtype != self.dtype for tensor in tensors)

    def split(self, tensor: Tensor) -> Tensor:
        """View ``(B, C, ...)`` as ``(B, G, C/G, ...)``."""
        return tensor.unflatten(1, (self.spatial.shape[1], -1))

    def part(self, images: slice, rows: slice) -> "Split":
        """The same restricted to some images and rows of the output."""
        channel = self.channel
        if channel is not None:
            channel = channel if self.shared else channel[images]
            channel = channel[..., rows, :] if self.per_pixel else channel
        spatial = self.spatial[images, :, :, rows]
        return replace(self, input=self.input[images], spatial=spatial, channel=channel)

    def spatial_taps(self) -> Sequence[Tensor]:
        """S of each tap, ``(B, G, 1, rows, Wo)``."""
        return self.spatial.split(1, 2)

    def channel_at(self, tap: int) -> Tensor:
        """Channel filter of one tap, broadcastable to ``(B, G, C/G, rows, Wo)``."""
        assert self.channel is not None
        return self.channel if self.per_pixel else self.channel[..., tap, None, None]

    def filter_at(self, tap: int, spatial: Tensor, *, with_gain: bool = False) -> Tensor:
        """What the input is multiplied with in the sum, broadcastable to ``(B, G, C/G, rows,
        Wo)``: F of one tap, whose S is given, without a gain unless ``with_gain``, and without a
        matrix."""
        if self.form in ("none", "mix") or (self.gain and not with_gain):
            return spatial
        spatial = spatial.to(self.dtype)
        channel = self.channel_at(tap)
        return spatial * channel if self.combine == "mul" else spatial + channel


def split_call(call: Call) -> Split:
    """The whole call."""
    spatial = call.spatial_filter.unflatten(1, (call.groups, call.window.taps))
    channel = call.channel_filter
    if channel is not None and call.form != "mix":
        channel = channel.unflatten(1, (call.groups, call.channels_per_group))
    return Split(
        input=call.input,
        spatial=spatial,
        channel=channel,
        window=call.window,
        form=call.form,
        combine=call.combine,
        softmax=call.softmax,
        dtype=call.sum_dtype,
    )


@dataclass(frozen=True)
class Strips:
    """How a call is cut: strips of the output's rows, slices of the images, and under softmax how
    many rows of a strip are normalised at a time."""

    rows: list[slice]
    images: list[slice]
    chunk: int


def strips(call: Split, planes: int, *, gradient: bool) -> Strips:
    """Cut ``call`` so that ``planes`` values for each position, and under softmax the probabilities
    and what ``chunks`` holds besides, fit into the workspace.

    With ``scale_factor`` u strips begin at multiples of u.
    """
    B, _, _, W = call.input.shape
    _, groups, taps, rows, Wo = call.spatial.shape
    window, scale, itemsize = call.window, call.window.scale, call.dtype.itemsize
    row_bytes = planes * (max(W, Wo * window.stride[1]) + reach(window, 1)) * itemsize
    row_bytes *= window.stride[0]
    halo = reach(window, 0) // window.stride[0]
    tap_bytes = groups * taps * Wo * itemsize if call.softmax else 0
    arrays = 1 + (gradient or not _softmax_takes(call.spatial, call.dtype))
    height, chunk, images = rows, rows, B
    if B * ((rows + halo) * row_bytes + rows * arrays * tap_bytes) > WORKSPACE_BYTES:
        share = WORKSPACE_BYTES // 2 if call.softmax else WORKSPACE_BYTES
        height = share // (B * row_bytes) - halo
        if height < rows or 2 * B * tap_bytes > share:
            images = 1
            height = share // row_bytes - halo
        height = max(height, halo, 1)  # a strip lower than its halo would mostly copy the halo
        height = -(-height // scale) * scale
        chunk = max(1, share // max(2 * images * tap_bytes, 1))
    return Strips(
        [slice(start, min(start + height, rows)) for start in range(0, rows, height)],
        [slice(start, start + images) for start in range(0, B, images)],
        chunk,
    )


def chunks(strip: Split, height: int, *, gradient: bool) -> Iterator[tuple[slice, Split]]:
    """``strip`` and its rows; under softmax in pieces of ``height`` rows, each with probabilities
    in place of its logits, and for gradients with as much memory again."""
    if not strip.softmax:
        yield slice(0, strip.rows), strip
        return
    height = min(height, strip.rows)
    spare = gradient or height < strip.rows or not _softmax_takes(strip.spatial, strip.dtype)
    elements = strip.spatial[:, :, :, :height].numel()
    buffers = strip.spatial.new_empty(1 + spare, elements, dtype=strip.dtype)
    for start in range(0, strip.rows, height):
        rows = slice(start, min(start + height, strip.rows))
        chunk = strip.part(slice(None), rows)
        logits, scratch = chunk.spatial, None
        probabilities = buffers[0, : logits.numel()].view(logits.shape)
        if spare:
            scratch = buffers[1, : logits.numel()].view(logits.shape)
            if not _softmax_takes(logits, strip.dtype):
                logits = scratch.copy_(logits)
        torch.softmax(logits, 2, out=probabilities)
        yield rows, replace(chunk, spatial=probabilities, softmax=False, scratch=scratch)


def _softmax_takes(logits: Tensor, dtype: torch.dtype) -> bool:
    """Whether PyTorch's softmax reads ``logits`` without a copy."""
    return logits.is_contiguous() and logits.dtype == dtype


def padded_rows(call: Split, rows: slice) -> Tensor:
    """The part of the padded input that output ``rows`` read, ``(B, G, C/G, height, width)``, as
    call.dtype."""
    scale, Wo = call.window.scale, call.spatial.shape[4]
    if scale == 1:
        return call.split(_padded(call, rows, Wo))
    cells = slice(rows.start // scale, -(-rows.stop // scale))
    padded = _padded(call, cells, Wo // scale)
    B, C, height, width = padded.shape
    repeated = padded.new_empty(B, C, height, scale, width * scale)
    for x in range(scale):
        repeated[..., x::scale] = padded.unsqueeze(3)
    return call.split(repeated.flatten(2, 3))


def _padded(call: Split, rows: slice, columns: int) -> Tensor:
    """What ``rows`` of so many outputs, one for each step of the stride, read of the padded
    input."""
    input, window = call.input, call.window
    B, C, H, W = input.shape
    top = rows.start * window.stride[0] - window.before[0]
    left = -window.before[1]
    height = _steps(window, 0, rows.stop - rows.start)
    width = _steps(window, 1, columns)
    if top >= 0 and top + height <= H and left == 0 and width <= W and input.dtype == call.dtype:
        return input[:, :, top : top + height, :width]
    first, last = max(top, 0), min(top + height, H)  # rows inside the image
    stop = min(left + width, W)
    if window.padding_mode == "zeros":
        padded = input.new_empty(B, C, height, width, dtype=call.dtype)
        inside = padded[:, :, first - top : last - top]
        inside[..., -left : stop - left] = input[:, :, first:last, :stop]
        for border in (
            padded[:, :, : first - top],
            padded[:, :, last - top :],
            inside[..., : window.before[1]],
            inside[..., stop - left :],
        ):
            border.zero_()
        return padded
    index = [source_index(y, H, window.padding_mode) for y in range(top, top + height)]
    if index != list(range(top, top + height)):
        input = input.index_select(2, torch.tensor(index, device=input.device))
    else:
        input = input[:, :, top : top + height]
    padded = input.new_empty(B, C, height, width, dtype=call.dtype)
    padded[..., -left : stop - left] = input[..., :stop]
    for x in (*range(left, 0), *range(stop, left + width)):
        padded[..., x - left] = input[..., source_index(x, W, window.padding_mode)]
    return padded


def _steps(window: Window, axis: int, outputs: int) -> int:
    """Padded positions of the input that neighbouring outputs read, one for each step of the
    stride."""
    return (outputs - 1) * window.stride[axis] + reach(window, axis) // window.scale + 1


def reach(window: Window, axis: int) -> int:
    """Distance between the first and the last tap, in positions of the repeated input."""
    return (window.kernel_size[axis] - 1) * window.dilation[axis] * window.scale


def tap_windows(padded: Tensor, call: Split) -> Tensor:
    """What the taps read for the rows of ``call``, which ``padded`` begins with: a view ``(B, G,
    C/G, Kh, Kw, rows, Wo)``."""
    window = call.window
    for axis, outputs in ((0, call.rows), (1, call.spatial.shape[4])):
        apart, stride = window.dilation[axis] * window.scale, window.stride[axis]
        padded = padded.unfold(3 + axis, (outputs - 1) * stride + 1, apart)[..., ::stride]
        padded = padded.narrow(3 + axis, 0, window.kernel_size[axis])
    return padded


def tap_views(padded: Tensor, call: Split) -> list[Tensor]:
    """The same for each tap: views ``(B, G, C/G, rows, Wo)``.

    Made together they take the host a fraction of the time of a slice for each tap.
    """
    return [view for row in tap_windows(padded, call).unbind(3) for view in row.unbind(3)]


def filter_rows(call: Split, padded: Tensor, total: Tensor) -> None:
    """Write the filtered image, before a matrix mixes its channels, into ``total (B, G, C/G, rows,
    Wo)``, which has call.dtype.

    A gain is taken out of the sum over the taps where that changes nothing: an infinite gain times
    a sum is not the sum of infinities that the definition asks for.
    """
    if call.gain and total.device.type == "cpu":
        _sum_taps(call, padded, total, with_gain=False)
        total.mul_(call.channel_at(0))
        if certainly_finite(total):
            return
    _sum_taps(call, padded, total, with_gain=True)


def _sum_taps(call: Split, padded: Tensor, total: Tensor, *, with_gain: bool) -> None:
    taps = zip(tap_views(padded, call), call.spatial_taps(), strict=True)
    for tap, (view, spatial) in enumerate(taps):
        if tap == 0:
            torch.mul(view, call.filter_at(tap, spatial, with_gain=with_gain), out=total)
        else:
            total.addcmul_(view, call.filter_at(tap, spatial, with_gain=with_gain))


def certainly_finite(values: Tensor) -> bool:
    """Whether all ``values`` are finite, in one pass; False also where their sum overflows.

    The host waits for the answer, so this is for CPU tensors only.
    """
    return math.isfinite(values.sum().item())
