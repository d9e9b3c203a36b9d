"""The head of one call, for some rows at a time: logits, probabilities, and how a call is cut so
that they fit into the workspace.

Filters of a whole call that are no larger than a chunk's are kept for the gradients, which would
otherwise make them again.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .._decoupled_filter.cpu_split import Split, Strips, strips
from .call import Call

__all__ = [
    "Head",
    "apart",
    "cut",
    "feature_planes",
    "frames_of",
    "kept_shape",
    "pieces",
    "with_filters",
]

# Filters of a chunk: small enough to stay in cache between the operations on them, large enough
# for these operations to take longer than their calls.
CHUNK_BYTES = 8 * 2**20
# Filters of a call that are kept for the gradients.
KEPT_BYTES = CHUNK_BYTES

LINE_BYTES = 64  # of a cache


def frames_of(call: Call) -> list[Split]:
    """Each frame with its share of the taps; the spatial filters are placeholders of one element,
    whose place the filters of a chunk take."""
    B, taps = call.input.shape[0], call.window.taps
    nothing = call.input.new_empty((), dtype=call.sum_dtype)
    spatial = nothing.expand(B, call.groups, taps, *call.size)
    channel = call.channel_filter
    if channel is not None:
        channel = channel.unflatten(1, (call.groups, -1))
    return [
        Split(
            input=call.input[:, frame] if call.burst else call.input,
            spatial=spatial,
            channel=channel,
            window=call.window,
            form=call.form,
            combine=call.combine,
            softmax=False,
            dtype=call.sum_dtype,
        )
        for frame in range(call.frames)
    ]


def cut(call: Call, frame: Split, planes: int, *, gradient: bool) -> Strips:
    """Strips of ``call`` in which ``planes`` values for each position, beside the filters, fit into
    the workspace."""
    B, (H, W) = call.input.shape[0], call.size
    taps = frame.spatial[:, :, :1].expand(B, call.groups, call.normalized_taps, H, W)
    # As under softmax, since the filters are never given.
    parts = strips(replace(frame, spatial=taps, softmax=True), planes, gradient=gradient)
    itemsize = call.sum_dtype.itemsize
    elements = CHUNK_BYTES // (call.weight.shape[0] * itemsize)  # of a tap
    # Rather whole images than some rows of each.
    images = min(B, parts.images[0].stop, max(1, elements // apart(H * W, itemsize)))
    chunk = min(parts.chunk, parts.rows[0].stop, max(1, elements // images // W))
    while chunk > 1 and images * apart(chunk * W, itemsize) > elements:
        chunk -= 1
    slices = [slice(start, min(start + images, B)) for start in range(0, B, images)]
    return Strips(parts.rows, slices, chunk)


def apart(positions: int, itemsize: int) -> int:
    """Elements from one tap's filters to the next one's: an odd number of cache lines.

    Were it a power of two, as it often is without, all taps of a pixel would fall into the same few
    places of the cache, and a softmax over them would take twice as long.
    """
    line = LINE_BYTES // itemsize
    lines = -(-positions // line)
    return (lines + 1 - lines % 2) * line


def kept_shape(call: Call) -> tuple[int, ...]:
    """Shape of the filters of all rows, if so much is kept; else of nothing.

    They lie as those of a chunk in :class:`Head`.
    """
    (H, W), itemsize = call.size, call.sum_dtype.itemsize
    step = apart(H * W, itemsize)
    shape = (call.input.shape[0], call.groups, call.normalized_taps, step)
    return shape if math.prod(shape) * itemsize <= KEPT_BYTES else (0,)


def feature_planes(call: Call) -> int:
    """Values that are held for each position because its features are copied first."""
    features = call.features
    rows_join = features.stride(2) == features.shape[3] * features.stride(3)
    return 0 if rows_join and features.dtype == call.sum_dtype else features.shape[1]


def with_filters(frames: list[Split], filters: Tensor) -> list[Split]:
    """The frames of a chunk with their filters."""
    taps = frames[0].window.taps
    return [
        replace(split, spatial=filters.narrow(2, frame * taps, taps))
        for frame, split in enumerate(frames)
    ]


def pieces(rows: slice, height: int) -> Iterator[tuple[slice, slice]]:
    """Chunks of the strip ``rows``: rows of the strip, and the same rows of the image."""
    for start in range(rows.start, rows.stop, height):
        stop = min(start + height, rows.stop)
        yield slice(start - rows.start, stop - rows.start), slice(start, stop)


class Head:
    """Makes the filters of chunks of rows, ``(B, G, N*T, rows, W)``, in memory of its own or in
    what is kept.

    Behind the rows of each tap some elements are unused (``apart``).
    """

    def __init__(self, call: Call, parts: Strips, *, gradient: bool, kept: Tensor | None = None):
        """For chunks of ``parts``; for gradients with as much memory again. ``kept``, of
        ``kept_shape``, holds all filters, or gets them by ``keep``."""
        dtype = call.sum_dtype
        self._call = call
        self._kept = kept
        self.weight = call.weight.to(dtype)  # (G*N*T, F)
        self._bias = None if call.bias is None else call.bias.to(dtype)[:, None]
        positions = min(parts.chunk, parts.rows[0].stop) * call.size[1]
        count = parts.images[0].stop * self.weight.shape[0] * apart(positions, dtype.itemsize)
        self._memory = self.weight.new_empty((kept is None) + gradient, count)

    def features(self, image: int, rows: slice) -> Tensor:
        """Features of some rows of an image as a matrix, ``(F, rows * W)``."""
        features = self._call.features[image, :, rows]
        if features.dtype == self.weight.dtype:
            return features.flatten(1)
        matrix = torch.empty(features.shape, dtype=self.weight.dtype, device=features.device)
        return matrix.copy_(features).flatten(1)

    def keep(self) -> None:
        """Make all filters."""
        assert self._kept is not None
        H, W = self._call.size
        self._kept[..., H * W :].zero_()  # an operator's results are the same each time
        self._make(self._kept, slice(0, self._kept.shape[0]), slice(0, H))

    def filters(self, images: slice, rows: slice) -> Tensor:
        """Filters of some rows, which stay until the next call: probabilities under softmax, else
        the logits."""
        if self._kept is None:
            return self._make(self._part(0, images, rows), images, rows)
        W = self._call.size[1]
        return self._kept[images, :, :, rows.start * W : rows.stop * W].unflatten(3, (-1, W))

    def _make(self, memory: Tensor, images: slice, rows: slice) -> Tensor:
        filters = self._used(memory, rows)
        self._write_logits(filters, images, rows)
        if self._call.softmax:
            torch.softmax(memory, 2, out=memory)
        return filters

    def _write_logits(self, target: Tensor, images: slice, rows: slice) -> None:
        for index, logits in enumerate(target.flatten(1, 2).flatten(2)):
            features = self.features(images.start + index, rows)
            if self._bias is None:
                torch.mm(self.weight, features, out=logits)
            else:
                torch.addmm(self._bias, self.weight, features, out=logits)

    def scratch(self, images: slice, rows: slice) -> Tensor:
        """Memory of the same shape."""
        return self._used(self._part(-1, images, rows), rows)

    def differentiate_softmax(self, images: slice, rows: slice) -> None:
        """Turn the gradient of the probabilities, which stands in ``scratch``, into that of the
        logits; the probabilities are those that ``filters`` gave for the same rows: all of them, if
        they are kept."""
        grad = self._part(-1, images, rows)
        probabilities = self._part(0, images, rows) if self._kept is None else self._kept
        torch.ops.aten._softmax_backward_data.out(
            grad, probabilities, 2, grad.dtype, grad_input=grad
        )

    def _part(self, which: int, images: slice, rows: slice) -> Tensor:
        """Memory of a chunk, ``(B, G, N*T, rows * W and what is unused)``."""
        call = self._call
        step = apart((rows.stop - rows.start) * call.size[1], self.weight.dtype.itemsize)
        shape = (images.stop - images.start, call.groups, call.normalized_taps, step)
        return self._memory[which, : math.prod(shape)].view(shape)

    def _used(self, memory: Tensor, rows: slice) -> Tensor:
        W = self._call.size[1]
        return memory[..., : (rows.stop - rows.start) * W].unflatten(3, (-1, W))
