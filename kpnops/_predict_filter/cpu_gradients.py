"""Gradients of the CPU path, chunk by chunk. They are also the specification of the kernels'.

With the logits ``Z = weight features + bias`` of a chunk of rows, kept or made again, and their
gradient (that of the decoupled filter's spatial filter, see its ``cpu_gradients``; under softmax
over the taps of all frames):

    grad_features[b, f, p] = sum over k of weight[k, f] grad_Z[b, k, p]
    grad_weight[k, f]      = sum over b, p of grad_Z[b, k, p] features[b, f, p]
    grad_bias[k]           = sum over b, p of grad_Z[b, k, p]

The gradients of the input and the channel filter are those of the decoupled filter.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._decoupled_filter.cpu_gradient_rows import (
    gradient_of_sums,
    write_channel_per_pixel,
    write_filters_per_image,
    write_spatial,
)
from .._decoupled_filter.cpu_input_gradient import InputGradient
from .._decoupled_filter.cpu_split import Split, Strips, padded_rows
from .call import Call, Gradients
from .cpu_head import Head, cut, feature_planes, frames_of, pieces, with_filters

__all__ = ["write_gradients"]


class _Sums:
    """Gradients that are sums over all positions, in the dtype of sums; None where not asked
    for."""

    def __init__(self, call: Call, grads: Gradients):
        dtype = call.sum_dtype

        def zeros(target: Tensor | None) -> Tensor | None:
            return (
                None
                if target is None
                else torch.zeros(target.shape, dtype=dtype, device=target.device)
            )

        self.weight = zeros(grads.weight)
        self.bias = zeros(grads.bias)
        per_image = zeros(grads.channel_filter) if call.form == "image" else None
        # (B or 1, G, C/G, T)
        self.channel = None if per_image is None else per_image.unflatten(1, (call.groups, -1))

    def write(self, grads: Gradients) -> None:
        """Write them where they go."""
        for total, target in ((self.weight, grads.weight), (self.bias, grads.bias)):
            if total is not None and target is not None:
                target.copy_(total)
        if self.channel is not None and grads.channel_filter is not None:
            grads.channel_filter.copy_(self.channel.flatten(1, 2))


class _ChannelRows:
    """Gradient of a 4-D channel filter, a sum over the frames and over images that share it.

    Sums of several terms are kept in the dtype of sums, for a strip at a time.
    """

    def __init__(self, call: Call, target: Tensor):
        self._call = call
        self._target = target.unflatten(1, (call.groups, -1))  # (B or 1, G, C/G, H, W)
        several = call.channel_shared or call.frames > 1
        self._apart = several and target.dtype != call.sum_dtype
        self._rows: Tensor | None = None
        self._add = False

    def begin(self, images: slice, rows: slice) -> None:
        """Open the strip ``rows`` of some images."""
        self._add = self._call.channel_shared and images.start > 0
        if self._add and self._apart:
            return
        part = self._part(images, rows)
        self._rows = torch.empty_like(part, dtype=self._call.sum_dtype) if self._apart else part

    def write(self, chunks: list[Split], padded: list[Tensor], grad: Tensor, inner: slice) -> None:
        """Write or add what some rows of the strip give."""
        for frame, (chunk, read) in enumerate(zip(chunks, padded, strict=True)):
            assert self._rows is not None
            target = self._rows[..., inner, :]
            write_channel_per_pixel(chunk, read, grad, target, add=self._add or frame > 0)

    def end(self, images: slice, rows: slice) -> None:
        """Round the sums of the strip when no image is left to be added."""
        last = not self._call.channel_shared or images.stop == self._call.input.shape[0]
        if self._rows is not None and self._apart and last:
            self._part(images, rows).copy_(self._rows)

    def _part(self, images: slice, rows: slice) -> Tensor:
        part = self._target[..., rows, :]
        return part if self._call.channel_shared else part[images]


def write_gradients(call: Call, grad_output: Tensor, grads: Gradients, kept: Tensor | None) -> None:
    """Write the gradients that are asked for, all of them in one pass over the strips; with the
    filters that the forward has ``kept``, if any."""
    frames = frames_of(call)
    parts = _cut(call, frames[0], grads)
    whole = len(parts.rows) == len(parts.images) == 1 and parts.chunk >= call.size[0]
    head = Head(call, parts, gradient=True, kept=kept if whole else None)
    sums = _Sums(call, grads)
    channel = None
    if grads.channel_filter is not None and call.form == "pixel":
        channel = _ChannelRows(call, grads.channel_filter)
    writer = _Writer(call, head, grads, sums, channel)
    inputs: dict[int, list[InputGradient]] = {}
    for rows, images in _order(call, parts, together=channel is not None and call.channel_shared):
        if rows.start == 0:
            inputs[images.start] = _input_gradients(call, frames, images, grads.input)
        strips = [frame.part(images, rows) for frame in frames]
        writer.strip(strips, images, rows, parts.chunk, grad_output, inputs[images.start])
        if rows.stop == call.size[0]:
            del inputs[images.start]
    sums.write(grads)


def _cut(call: Call, frame: Split, grads: Gradients) -> Strips:
    C = call.channels
    # The gradient as it is and times a gain, a product, a sum, what is converted; the padded
    # frames; what goes back to them, with the rows that are carried over.
    planes = (4 + frame.mixed_dtypes + call.frames) * C
    if grads.input is not None:
        planes += 2 * call.frames * C
    if grads.channel_filter is not None and call.form == "pixel":
        planes += C
    if grads.features is not None and grads.features.dtype != call.sum_dtype:
        planes += call.features.shape[1]
    return cut(call, frame, planes + feature_planes(call), gradient=True)


def _order(call: Call, parts: Strips, *, together: bool) -> list[tuple[slice, slice]]:
    """Rows and images of the strips: one image after the other, but strip after strip where a sum
    over the images is taken for each pixel."""
    if together:
        return [(rows, images) for rows in parts.rows for images in parts.images]
    return [(rows, images) for images in parts.images for rows in parts.rows]


def _input_gradients(
    call: Call, frames: list[Split], images: slice, target: Tensor | None
) -> list[InputGradient]:
    """Where the gradient of each frame is collected, or nothing."""
    if target is None:
        return []
    targets = target.unbind(1) if call.burst else [target]
    return [
        InputGradient(frame.part(images, slice(None)), part[images])
        for frame, part in zip(frames, targets, strict=True)
    ]


@dataclass(frozen=True)
class _Writer:
    """Writes what one strip after the other gives."""

    call: Call
    head: Head
    grads: Gradients
    sums: _Sums
    channel: _ChannelRows | None

    @property
    def _reaches_logits(self) -> bool:
        return any(grad is not None for grad in self.grads[:3])

    def strip(
        self,
        strips: list[Split],
        images: slice,
        rows: slice,
        height: int,
        grad_output: Tensor,
        inputs: list[InputGradient],
    ) -> None:
        """All gradients of the strip ``rows`` of some images, by chunks of this height."""
        reads = self._reaches_logits or self.grads.channel_filter is not None
        padded = [padded_rows(strip, rows) for strip in strips] if reads else []
        if self.channel is not None:
            self.channel.begin(images, rows)
        for gradient in inputs:
            gradient.begin(rows)
        for inner, outer in pieces(rows, height):
            filters = self.head.filters(images, outer)
            scratch = self.head.scratch(images, outer) if self._reaches_logits else None
            chunks = [strip.part(slice(None), inner) for strip in strips]
            chunks = with_filters(chunks, filters)
            grad = grad_output[images, :, outer].to(self.call.sum_dtype)
            grad_sums = gradient_of_sums(chunks[0], grad)
            read = [frame[:, :, :, inner.start :] for frame in padded]
            if self._reaches_logits or self.sums.channel is not None:
                self._filters(chunks, read, grad, grad_sums, images, scratch)
            if self.channel is not None:
                self.channel.write(chunks, read, grad, inner)
            for gradient, chunk in zip(inputs, chunks, strict=False):
                gradient.add(chunk, grad_sums, inner)
            if scratch is not None:
                if self.call.softmax:
                    self.head.differentiate_softmax(images, outer)
                self._head(scratch, images, outer)
        for gradient in inputs:
            gradient.end(rows)
        if self.channel is not None:
            self.channel.end(images, rows)

    def _filters(
        self,
        chunks: list[Split],
        padded: list[Tensor],
        grad: Tensor,
        grad_sums: Tensor,
        images: slice,
        scratch: Tensor | None,
    ) -> None:
        """Gradient of the filters of all frames into ``scratch (B, G, N*T, rows, W)``; and of a
        channel filter for each image."""
        taps = self.call.window.taps
        for frame, (chunk, read) in enumerate(zip(chunks, padded, strict=True)):
            target = None if scratch is None else scratch.narrow(2, frame * taps, taps)
            if self.sums.channel is not None:
                total = self.sums.channel if self.call.channel_shared else self.sums.channel[images]
                write_filters_per_image(chunk, read, chunk.split(grad), target, total)
            elif target is not None:
                write_spatial(chunk, read, grad_sums, target)

    def _head(self, grad_logits: Tensor, images: slice, rows: slice) -> None:
        """What some rows give to the gradients of features, weight and bias."""
        for index, grad in enumerate(grad_logits.flatten(1, 2).flatten(2)):  # (G*N*T, rows * W)
            image = images.start + index
            if self.sums.weight is not None:
                self.sums.weight.addmm_(grad, self.head.features(image, rows).t())
            if self.sums.bias is not None:
                self.sums.bias.add_(grad.sum(1))
            if self.grads.features is None:
                continue
            target = self.grads.features[image, :, rows]
            if target.dtype == grad.dtype:
                torch.mm(self.head.weight.t(), grad, out=target.flatten(1))
            else:
                target.copy_(torch.mm(self.head.weight.t(), grad).view(target.shape))
