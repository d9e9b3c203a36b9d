"""The oracle: output and gradients by plain loops, in the precision of the arrays it is given.

Written from the definition of the operator alone, one tap of one pixel at a time; it shares no code
with the package. Only the channels of a group, which share all indices, are a vector. The forward
gathers, the backward scatters, so that an index mistaken in one of them shows in the other.

A call is done in steps, each with its own derivative: the softmax of the spatial filter, the sum
over the taps, and the matrix that mixes the channels.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.cases import Case, Operands

__all__ = [
    "GRADIENTS",
    "oracle_backward",
    "oracle_forward",
    "oracle_magnitudes",
    "run_oracle",
    "source_index",
    "to_numpy",
]

GRADIENTS = ["grad_input", "grad_spatial_filter", "grad_channel_filter"]


def source_index(position: int, size: int, padding_mode: str) -> int | None:
    """Index of the element that a position along one axis reads; None where it is a padded zero."""
    if 0 <= position < size:
        return position
    if padding_mode == "zeros":
        return None
    if padding_mode == "replicate":
        return 0 if position < 0 else size - 1
    if padding_mode == "circular":
        return position % size
    if padding_mode == "reflect":
        mirrored = -position if position < 0 else 2 * (size - 1) - position
        if not 0 <= mirrored < size:
            raise ValueError(f"position {position} lies beyond one reflection of {size} elements")
        return mirrored
    raise ValueError(f"unknown padding_mode {padding_mode!r}")


def source(case: Case, axis: int, output: int, tap: int, size: int) -> int | None:
    """Index along an axis that a tap of an output reads; None where it is a padded zero."""
    middle = output * case.stride[axis] // case.scale_factor
    reach = (case.kernel_size[axis] - 1) // 2
    return source_index(middle + (tap - reach) * case.dilation[axis], size, case.padding_mode)


def tap_weights(case: Case, spatial: np.ndarray | None) -> np.ndarray | None:
    """S': the spatial filter, or the softmax over the taps of each group."""
    if spatial is None or case.normalize is None:
        return spatial
    weights = np.empty_like(spatial)
    for b, g, y, x in np.ndindex(len(spatial), case.groups, *spatial.shape[2:]):
        planes = slice(g * case.taps, (g + 1) * case.taps)
        powers = np.exp(spatial[b, planes, y, x] - spatial[b, planes, y, x].max())
        weights[b, planes, y, x] = powers / powers.sum()
    return weights


def softmax_gradient(case: Case, weights: np.ndarray, grad_weights: np.ndarray) -> np.ndarray:
    """dS[t] = P[t] (dP[t] - sum_k P[k] dP[k]), since dP[k]/dS[t] = P[k] ([k = t] - P[t])."""
    grad = np.empty_like(weights)
    for b, g, y, x in np.ndindex(len(weights), case.groups, *weights.shape[2:]):
        planes = slice(g * case.taps, (g + 1) * case.taps)
        P, dP = weights[b, planes, y, x], grad_weights[b, planes, y, x]
        grad[b, planes, y, x] = P * (dP - (P * dP).sum())
    return grad


def filtered(
    case: Case, image: np.ndarray, weights: np.ndarray | None, channel: np.ndarray | None
) -> np.ndarray:
    """sum_t F[b,c,t,y,x] * pad(input)[b,c, y*s//u + (i-r)*d, x*s//u + (j-r)*d]; ``channel`` has 3
    or 4 dimensions."""
    batch, channels, height, width = image.shape
    out = np.zeros((batch, channels, *case.output_size), image.dtype)
    in_group = channels // case.groups
    for b, c, y, x in np.ndindex(out.shape):
        if c % in_group:
            continue  # the whole group is done at its first channel
        group = slice(c, c + in_group)
        total = np.zeros(in_group, image.dtype)
        for tap in range(case.taps):
            i, j = divmod(tap, case.kernel_size[1])
            row = source(case, 0, y, i, height)
            column = source(case, 1, x, j, width)
            weight: Any = 1
            if weights is not None:
                weight = weights[b, (c // in_group) * case.taps + tap, y, x]
            if channel is not None:
                b_channel = b if channel.shape[0] == batch else 0
                where = (tap,) if channel.ndim == 3 else (y, x)
                gain = channel[(b_channel, group, *where)]
                is_product = case.combine == "mul" or weights is None
                weight = weight * gain if is_product else weight + gain
            if row is None or column is None:
                total = total + weight * image.dtype.type(0)  # inf * 0 is NaN here too
            else:
                total = total + weight * image[b, group, row, column]
        out[b, group, y, x] = total
    return out


def filtered_gradients(
    case: Case,
    image: np.ndarray,
    weights: np.ndarray | None,
    channel: np.ndarray | None,
    cotangent: np.ndarray,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Gradients of ``filtered``: each product of the sum sends its share to its factors."""
    batch, channels, height, width = image.shape
    grad_image = np.zeros_like(image)
    grad_weights = None if weights is None else np.zeros_like(weights)
    grad_channel = None if channel is None else np.zeros_like(channel)
    in_group = channels // case.groups
    for b, g, tap, y, x in np.ndindex(batch, case.groups, case.taps, *case.output_size):
        group = slice(g * in_group, (g + 1) * in_group)
        row = source(case, 0, y, tap // case.kernel_size[1], height)
        column = source(case, 1, x, tap % case.kernel_size[1], width)
        inside = row is not None and column is not None
        gradient = cotangent[b, group, y, x]
        value = image[b, group, row, column] if inside else np.zeros(in_group, image.dtype)
        plane = g * case.taps + tap
        weight: Any = 1 if weights is None else weights[b, plane, y, x]
        grad_weight = gradient * value
        if channel is not None and grad_channel is not None:
            b_channel = b if channel.shape[0] == batch else 0
            where = (tap,) if channel.ndim == 3 else (y, x)
            gain = channel[(b_channel, group, *where)]
            is_product = case.combine == "mul" or weights is None
            grad_channel[(b_channel, group, *where)] += grad_weight * (weight if is_product else 1)
            grad_weight = grad_weight * (gain if is_product else 1)
            weight = weight * gain if is_product else weight + gain
        if grad_weights is not None:
            grad_weights[b, plane, y, x] += grad_weight.sum(dtype=image.dtype)
        if inside:
            grad_image[b, group, row, column] += gradient * weight
    return grad_image, grad_weights, grad_channel


def mixed(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """out[b,o,y,x] = sum_c M[b,o,c,y,x] image[b,c,y,x]."""
    batch, channels, height, width = image.shape
    out = np.zeros((batch, matrix.shape[1], height, width), image.dtype)
    for b, o, c in np.ndindex(batch, matrix.shape[1], channels):
        b_matrix = b if matrix.shape[0] == batch else 0
        out[b, o] += matrix[b_matrix, o, c] * image[b, c]
    return out


def mixed_gradients(
    image: np.ndarray, matrix: np.ndarray, cotangent: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of ``mixed``."""
    grad_image, grad_matrix = np.zeros_like(image), np.zeros_like(matrix)
    for b, o, c in np.ndindex(len(image), matrix.shape[1], image.shape[1]):
        b_matrix = b if matrix.shape[0] == len(image) else 0
        grad_matrix[b_matrix, o, c] += cotangent[b, o] * image[b, c]
        grad_image[b, c] += cotangent[b, o] * matrix[b_matrix, o, c]
    return grad_image, grad_matrix


def oracle_forward(case: Case, arrays: Operands) -> np.ndarray:
    """The output."""
    image, spatial, channel = arrays
    weights = tap_weights(case, spatial)
    if case.channel_filter != "mix":
        return filtered(case, image, weights, channel)
    return mixed(filtered(case, image, weights, None), channel)


def oracle_backward(case: Case, arrays: Operands, cotangent: np.ndarray) -> Operands:
    """The gradients of all operands; None for those that are None."""
    image, spatial, channel = arrays
    weights = tap_weights(case, spatial)
    grad_matrix, matrix = None, channel
    if case.channel_filter == "mix":
        channel = None
        unmixed = filtered(case, image, weights, None)
        cotangent, grad_matrix = mixed_gradients(unmixed, matrix, cotangent)
    grad_image, grad_spatial, grad_channel = filtered_gradients(
        case, image, weights, channel, cotangent
    )
    if case.normalize is not None and weights is not None and grad_spatial is not None:
        grad_spatial = softmax_gradient(case, weights, grad_spatial)
    return Operands(grad_image, grad_spatial, grad_channel if grad_matrix is None else grad_matrix)


def run_oracle(case: Case, arrays: Operands, cotangent: np.ndarray) -> dict[str, np.ndarray]:
    """Output and gradients by name."""
    results = {"output": oracle_forward(case, arrays)}
    gradients = oracle_backward(case, arrays, cotangent)
    return results | {
        name: gradient
        for name, gradient in zip(GRADIENTS, gradients, strict=True)
        if gradient is not None
    }


def oracle_magnitudes(
    case: Case, arrays: Operands, cotangent: np.ndarray, smallest: float, run: Any = run_oracle
) -> dict[str, np.ndarray]:
    """Sums of the absolute values of the terms behind output and gradients.

    Errors are relative to these. Without softmax they are the results for absolute operands. Under
    softmax it is the probabilities, not the logits, that are factors; they are positive, and their
    gradient P (dP - sum P dP) adds terms of both signs: its magnitude is P (|dP| + sum P |dP|),
    where |dP| is the magnitude of dP. ``smallest`` is added to each probability: what may be
    flushed to zero, divided by a rounding step.
    """
    absolute = Operands(*(None if array is None else np.abs(array) for array in arrays))
    if case.normalize is None:
        return run(case, absolute, np.abs(cotangent))
    weights = tap_weights(case, arrays.spatial_filter)
    assert weights is not None
    weights += smallest
    plain = replace(case, normalize=None)
    results = run(plain, absolute._replace(spatial_filter=weights), np.abs(cotangent))
    terms = results["grad_spatial_filter"]
    by_group = (weights * terms).reshape(len(terms), case.groups, case.taps, *terms.shape[2:])
    sums = np.broadcast_to(by_group.sum(2, keepdims=True), by_group.shape)
    results["grad_spatial_filter"] = weights * (terms + sums.reshape(terms.shape))
    return results


def to_numpy(tensor: Tensor | None, dtype: type = np.float64) -> Any:
    """A NumPy copy in another precision; every dtype of the operator fits float64 exactly."""
    return (
        None if tensor is None else tensor.detach().to("cpu", torch.float64).numpy().astype(dtype)
    )
