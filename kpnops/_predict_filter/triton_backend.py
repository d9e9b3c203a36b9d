"""Runs the Triton kernels of the fused head.

Calls whose patches of the backward would not fit into the workspace, for taps that lie very far
apart, take the PyTorch operations of ``cpu.py`` there.
"""

from dataclasses import replace

import torch
from torch import Tensor

from .._decoupled_filter import op as decoupled
from .._decoupled_filter.plan import Launch, Plan, run
from . import cpu
from .call import Call, Gradients
from .launch_common import weight_of
from .launch_head import head_forward
from .launch_patch import (
    chunks_of,
    grad_channel,
    grad_features,
    grad_input,
    grad_logits,
    grad_weight,
    patch_filters,
)
from .patches import Patch, patches

__all__ = ["backward", "forward"]


def forward(call: Call, output: Tensor, log_sum_exp: Tensor) -> None:
    """Write the filtered image into ``output``, ``(B, C, H, W)``, and under softmax the logarithms
    of the sums of exponentials into ``log_sum_exp``, ``(B, G, H, W)``."""
    statistics = log_sum_exp if call.softmax else None
    run(Plan(head_forward(call, output, statistics)), call.input.device)


def backward(call: Call, grad_output: Tensor, log_sum_exp: Tensor, grads: Gradients) -> None:
    """Write the gradients that are asked for."""
    cut = patches(call)
    if cut is None:
        cpu.backward(call, grad_output, log_sum_exp, grads)
        return
    if grads.channel_filter is not None and call.form == "pixel":
        _write_grad_gain(call, grad_output, grads.channel_filter)
        grads = grads._replace(channel_filter=None)
    if all(grad is None for grad in grads):
        return
    sums = _Sums(call, grads, chunks_of(cut))
    filters = call.input.new_empty(
        max(patch.pixels for patch in cut) * call.weight.shape[0], dtype=call.sum_dtype
    )
    head = replace(call, weight=weight_of(call))  # what it copies it copies once
    for patch in cut:
        launches = _patch_launches(call, patch, grad_output, filters, grads, sums)
        plan = Plan([patch_filters(head, patch, log_sum_exp, filters), *launches])
        run(plan, call.input.device)
        sums.add_bias(patch, filters)
    sums.finish(grads)


class _Sums:
    """Sums over all pixels, which the patches add to."""

    def __init__(self, call: Call, grads: Gradients, chunks: int):
        self._call = call
        taps, features = call.weight.shape
        B, C = call.input.shape[0], call.channels
        self.weight = self.channel = self.bias = None
        if grads.weight is not None:
            self.weight = self._zeros(chunks, taps, features)
        if grads.bias is not None:
            self.bias = self._zeros(taps)
        if grads.channel_filter is not None:
            self.channel = self._zeros(chunks, B, C, call.window.taps)

    def _zeros(self, *shape: int) -> Tensor:
        return self._call.input.new_zeros(shape, dtype=self._call.sum_dtype)

    def add_bias(self, patch: Patch, filters: Tensor) -> None:
        """Add what the gradient of the logits of a patch, in the workspace, sends to the bias."""
        if self.bias is None:
            return
        shape = (patch.image_count, self._call.weight.shape[0], *patch.readers_size)
        y, x = (
            slice(part.start - readers.start, part.stop - readers.start)
            for part, readers in zip((patch.rows, patch.columns), patch.readers, strict=True)
        )
        logits = filters[: patch.pixels * shape[1]].view(shape)
        self.bias += logits[:, :, y, x].sum((0, 2, 3))

    def finish(self, grads: Gradients) -> None:
        """Write the gradients."""
        if grads.weight is not None and self.weight is not None:
            grads.weight.copy_(self.weight.sum(0))
        if grads.bias is not None and self.bias is not None:
            grads.bias.copy_(self.bias)
        if grads.channel_filter is not None and self.channel is not None:
            total = self.channel.sum(0)
            if self._call.channel_shared:
                total = total.sum(0, keepdim=True)
            grads.channel_filter.copy_(total)


def _patch_launches(
    call: Call,
    patch: Patch,
    grad_output: Tensor,
    filters: Tensor,
    grads: Gradients,
    sums: _Sums,
) -> list[Launch]:
    """What reads the filters of a patch, then what the gradient of the logits gives."""
    launches = []
    if grads.input is not None:
        launches.append(grad_input(call, patch, grad_output, filters, grads.input))
    if sums.channel is not None:
        launches.append(grad_channel(call, patch, grad_output, filters, sums.channel))
    if grads.features is None and sums.weight is None and sums.bias is None:
        return launches
    launches.append(grad_logits(call, patch, grad_output, filters))
    if grads.features is not None:
        launches.append(grad_features(call, patch, filters, grads.features))
    if sums.weight is not None:
        launches.append(grad_weight(call, patch, filters, sums.weight))
    return launches


def _write_grad_gain(call: Call, grad_output: Tensor, grad_gain: Tensor) -> None:
    """Gradient of a 4-D channel filter: grad_output times the forward's sum, which for "add" is the
    sum of the taps alone; added up over the images that share it."""
    if call.channel_shared:
        total = torch.zeros_like(grad_gain, dtype=call.sum_dtype)
        for image in range(call.input.shape[0]):
            one = slice(image, image + 1)
            part = torch.empty_like(total)
            alone = replace(call, features=call.features[one], input=call.input[one])
            _write_product(alone, grad_output[one], part)
            total += part
        grad_gain.copy_(total)
    else:
        _write_product(call, grad_output, grad_gain)


def _write_product(call: Call, grad_output: Tensor, target: Tensor) -> None:
    if call.combine == "mul":
        product = replace(call, channel_filter=grad_output)
        run(Plan(head_forward(product, target, None)), call.input.device)
        return
    window, ones = call.window, grad_output.new_ones(())
    B, (H, W) = call.input.shape[0], call.size
    spatial = ones.expand(B, call.groups * window.taps, H, W)
    options = ((1, 1), window.dilation, window.padding_mode, "mul", None, 1)
    total = torch.zeros_like(target, dtype=call.sum_dtype)
    for frame in call.input.unbind(1) if call.burst else (call.input,):
        total += decoupled.decoupled_filter(
            frame, spatial, grad_output, window.kernel_size, *options
        )
    target.copy_(total)
