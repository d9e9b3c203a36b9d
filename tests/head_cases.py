"""A problem for the tests of the fused head, with an oracle and budgets of its own.

The oracle is a 1x1 convolution written as a sum, followed by the oracle of the decoupled filter for
each frame; the softmax is over the taps of all frames, as if a filter had so many times the rows.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tests.budgets import FLOAT64_BUDGET, ORDER_SLACK, Budget, Expected, compare, relative_errors
from tests.cases import Case
from tests.oracle import filtered, filtered_gradients, softmax_gradient, tap_weights, to_numpy
from tests.routes import INTERPRETED

__all__ = ["HEAD_GRADIENTS", "HeadCase", "HeadOperands", "check_head", "run_head"]

HEAD_GRADIENTS = ["grad_features", "grad_weight", "grad_bias", "grad_input", "grad_channel_filter"]


class HeadOperands(NamedTuple):
    """The five tensors of a call, or something for each of them."""

    features: Any
    weight: Any
    bias: Any
    input: Any
    channel_filter: Any


@dataclass(frozen=True)
class HeadCase:
    """One problem: sizes, options and dtypes."""

    batch: int = 1
    features: int = 5
    channels: int = 3
    size: tuple[int, int] = (5, 7)
    kernel_size: tuple[int, int] = (3, 3)
    groups: int = 1
    frames: int | None = None  # None: an input of 4 dimensions
    channel_filter: str = "none"  # or "image": (B or 1, C, K), "pixel": (B or 1, C, H, W)
    channel_batch: int | None = None  # None: the batch of the input
    bias: bool = True
    dilation: tuple[int, int] = (1, 1)
    padding_mode: str = "zeros"
    combine: str = "mul"
    normalize: str | None = None
    dtypes: tuple[torch.dtype, ...] = (torch.float64,) * 5

    @property
    def plain(self) -> Case:
        """The filter of one frame."""
        return Case(
            self.batch,
            self.channels,
            self.size,
            self.kernel_size,
            self.groups,
            self.channel_filter,
            self.channel_batch,
            dilation=self.dilation,
            padding_mode=self.padding_mode,
            combine=self.combine,
        )

    @property
    def joined(self) -> Case:
        """A filter with the taps of all frames, for the softmax over them."""
        rows = (self.frames or 1) * self.kernel_size[0]
        plain = self.plain
        return replace(plain, kernel_size=(rows, self.kernel_size[1]), normalize=self.normalize)

    @property
    def shapes(self) -> HeadOperands:
        image, _, channel = self.plain.shapes
        rows = self.groups * self.joined.taps
        return HeadOperands(
            (self.batch, self.features, *self.size),
            (rows, self.features),
            (rows,) if self.bias else None,
            image if self.frames is None else (image[0], self.frames, *image[1:]),
            channel,
        )

    @property
    def options(self) -> dict[str, Any]:
        return {
            "kernel_size": self.kernel_size,
            "dilation": self.dilation,
            "padding_mode": self.padding_mode,
            "normalize": self.normalize,
            "combine": self.combine,
        }

    @property
    def result_dtype(self) -> torch.dtype:
        there = zip(self.dtypes, self.shapes, strict=True)
        return functools.reduce(
            torch.promote_types, (dtype for dtype, shape in there if shape is not None)
        )

    def with_dtype(self, dtype: torch.dtype) -> "HeadCase":
        return replace(self, dtypes=(dtype,) * 5)

    def operands(self, device: str = "cpu", seed: int = 0) -> HeadOperands:
        generator = torch.Generator().manual_seed(seed)
        return HeadOperands(
            *(
                None
                if shape is None
                else torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
                for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
            )
        )

    def cotangent(self, device: str = "cpu", seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = self.plain.output_shape
        cotangent = torch.randn(shape, generator=generator, dtype=torch.float64)
        return cotangent.to(device, self.result_dtype)


def frames_of(case: HeadCase, image: np.ndarray, weights: np.ndarray) -> list[tuple[Any, Any]]:
    """Each frame and its share of the taps."""
    if case.frames is None:
        return [(image, weights)]
    taps = case.plain.taps
    return [
        (image[:, frame], weights[:, frame * taps : (frame + 1) * taps])
        for frame in range(case.frames)
    ]


def logits_of(arrays: HeadOperands) -> np.ndarray:
    """Z[b,k,y,x] = bias[k] + sum_f weight[k,f] features[b,f,y,x]."""
    logits = np.einsum("kf,bfyx->bkyx", arrays.weight, arrays.features)
    return logits if arrays.bias is None else logits + arrays.bias[:, None, None]


def run_filter(
    case: HeadCase, arrays: HeadOperands, weights: np.ndarray, cotangent: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """The output, and gradients of weights, input and channel filter, which all frames share."""
    output, grad_channel, grad_weights, grad_images = 0, None, [], []
    for image, taps in frames_of(case, arrays.input, weights):
        output = output + filtered(case.plain, image, taps, arrays.channel_filter)
        grad_image, grad_taps, grad_gain = filtered_gradients(
            case.plain, image, taps, arrays.channel_filter, cotangent
        )
        grad_images.append(grad_image)
        grad_weights.append(grad_taps)
        if grad_gain is not None:
            grad_channel = grad_gain if grad_channel is None else grad_channel + grad_gain
    grad_input = grad_images[0] if case.frames is None else np.stack(grad_images, 1)
    return np.asarray(output), np.concatenate(grad_weights, 1), grad_input, grad_channel


def head_gradients(arrays: HeadOperands, grad_logits: np.ndarray) -> dict[str, np.ndarray]:
    """What the gradient of the logits gives for features, weight and bias."""
    results = {
        "grad_features": np.einsum("kf,bkyx->bfyx", arrays.weight, grad_logits),
        "grad_weight": np.einsum("bkyx,bfyx->kf", grad_logits, arrays.features),
    }
    if arrays.bias is not None:
        results["grad_bias"] = grad_logits.sum((0, 2, 3))
    return results


def run_head(case: HeadCase, arrays: HeadOperands, cotangent: np.ndarray) -> dict[str, np.ndarray]:
    """Output and gradients by name."""
    weights = tap_weights(case.joined, logits_of(arrays))
    assert weights is not None
    output, grad_weights, grad_input, grad_channel = run_filter(case, arrays, weights, cotangent)
    if case.normalize is not None:
        grad_weights = softmax_gradient(case.joined, weights, grad_weights)
    results = {"output": output, "grad_input": grad_input} | head_gradients(arrays, grad_weights)
    return results if grad_channel is None else results | {"grad_channel_filter": grad_channel}


def magnitudes(
    case: HeadCase, arrays: HeadOperands, cotangent: np.ndarray, smallest: float
) -> dict[str, np.ndarray]:
    """Sums of the absolute values of the terms, as ``oracle_magnitudes`` has them."""
    absolute = HeadOperands(*(None if array is None else np.abs(array) for array in arrays))
    if case.normalize is None:
        return run_head(case, absolute, np.abs(cotangent))
    weights = tap_weights(case.joined, logits_of(arrays))
    assert weights is not None
    weights += smallest
    output, terms, grad_input, grad_channel = run_filter(case, absolute, weights, np.abs(cotangent))
    by_group = (weights * terms).reshape(len(terms), case.groups, case.joined.taps, *case.size)
    sums = np.broadcast_to(by_group.sum(2, keepdims=True), by_group.shape)
    grad_logits = weights * (terms + sums.reshape(terms.shape))
    results = {"output": output, "grad_input": grad_input} | head_gradients(absolute, grad_logits)
    return results if grad_channel is None else results | {"grad_channel_filter": grad_channel}


def condition(case: HeadCase, arrays: HeadOperands) -> float:
    """How many rounding steps of its own a filter may be off by: 1 without softmax.

    Under softmax a rounding step of any term of a logit, and of its distance from the largest, is
    a relative one of the probability (see ``softmax_condition``).
    """
    if case.normalize is None:
        return 1
    absolute = HeadOperands(*(None if array is None else np.abs(array) for array in arrays))
    terms = logits_of(absolute)
    return 1 + 4 * float(terms[np.isfinite(terms)].max(initial=0))


def expected_results(
    case: HeadCase, operands: HeadOperands, cotangent: Tensor
) -> dict[str, Expected]:
    """Output and gradients by the oracle, each with a budget from a float32 run of the oracle."""
    arrays, gradient = HeadOperands(*map(to_numpy, operands)), to_numpy(cotangent)
    double = case.result_dtype == torch.float64
    sums = torch.finfo(torch.float64 if double else torch.float32)
    with np.errstate(all="ignore"):
        exact = run_head(case, arrays, gradient)
        smallest = sums.smallest_normal / (FLOAT64_BUDGET.maximum if double else sums.eps)
        sizes = magnitudes(case, arrays, gradient, smallest)
        single = HeadOperands(*(to_numpy(tensor, np.float32) for tensor in operands))
        rough = {} if double else run_head(case, single, gradient.astype(np.float32))
    unit = sums.eps / 2 * condition(case, arrays)
    dtypes = {"output": case.result_dtype} | dict(zip(HEAD_GRADIENTS, case.dtypes, strict=True))
    expected = {}
    for name, value in exact.items():
        stored = torch.finfo(dtypes[name]).eps / 2  # rounding of the result itself
        if INTERPRETED and dtypes[name] == torch.bfloat16:
            stored *= 2  # Triton's interpreter cuts the last bits off where a GPU rounds
        if double:
            narrow = dtypes[name] != torch.float64
            budget = Budget(*(bound + stored * narrow for bound in FLOAT64_BUDGET))
        else:
            measured = relative_errors(rough[name].astype(np.float64), value, sizes[name])
            budget = Budget(*(ORDER_SLACK * (error + unit) + stored for error in measured))
        expected[name] = Expected(value, sizes[name], budget)
    return expected


ALL = (True,) * 5


def run_operator(
    operator: Any,
    case: HeadCase,
    operands: HeadOperands,
    cotangent: Tensor,
    needs_grad: tuple[bool, ...] = ALL,
) -> dict[str, Tensor]:
    """Output and gradients of all operands, by autograd, under the oracle's names."""
    needs = [need and tensor is not None for need, tensor in zip(needs_grad, operands, strict=True)]
    leaves = [
        None if tensor is None else tensor.detach().requires_grad_(need)
        for tensor, need in zip(operands, needs, strict=True)
    ]
    output = operator(*leaves, **case.options)
    assert output.requires_grad == any(needs)
    wanted = [index for index, need in enumerate(needs) if need]
    gradients = torch.autograd.grad(output, [leaves[index] for index in wanted], cotangent)
    named = {HEAD_GRADIENTS[i]: grad for i, grad in zip(wanted, gradients, strict=True)}
    return {"output": output.detach()} | named


def check_head(
    operator: Any,
    case: HeadCase,
    operands: HeadOperands,
    cotangent: Tensor,
    needs_grad: tuple[bool, ...] = ALL,
) -> dict[str, Tensor]:
    """Compare output and gradients with the oracle's; return what the operator gave."""
    actual = run_operator(operator, case, operands, cotangent, needs_grad)
    expected = expected_results(case, operands, cotangent)
    assert actual.keys() <= expected.keys()
    assert needs_grad != ALL or actual.keys() == expected.keys()
    dtypes = {"output": case.result_dtype} | dict(zip(HEAD_GRADIENTS, case.dtypes, strict=True))
    for name, tensor in actual.items():
        assert tensor.dtype == dtypes[name], name
        compare(tensor, expected[name], name)
    return actual
