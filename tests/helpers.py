"""What the tests share: problems, layouts, a float64 oracle made of plain loops, error budgets.

The oracle is written from the definition of the operator alone, one tap of one pixel at a
time, and shares no code with the package. Only the channels of a group, which share all indices,
are a vector.
"""

import math
import os
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

# Triton decides by this variable, when a kernel is defined, whether to interpret it.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in {"1", "true", "yes", "on", "y"}

CPU = "cpu"
ON_INTERPRETER = pytest.param("interpreted", marks=pytest.mark.interpreted)
ON_GPU = pytest.param("cuda", marks=pytest.mark.gpu)
ROUTES = [CPU, ON_INTERPRETER, ON_GPU]
COMPILED_ROUTES = [CPU, ON_GPU]  # for what would take minutes in the interpreter

PADDING_MODES = ["zeros", "replicate", "reflect", "circular"]
GRADIENTS = ["grad_input", "grad_spatial_filter", "grad_channel_filter"]


class Operands(NamedTuple):
    """The three tensors of a call, or something for each of them."""

    input: Any
    spatial_filter: Any
    channel_filter: Any


@dataclass(frozen=True)
class Case:
    """One problem: sizes, options and dtypes."""

    batch: int = 1
    channels: int = 3
    size: tuple[int, int] = (5, 7)
    kernel_size: tuple[int, int] = (3, 3)
    groups: int = 1
    channel_filter: str = "pixel"  # "none", "image": (B or 1, C, K), "pixel": (B or 1, C, Ho, Wo)
    channel_batch: int | None = None  # None: the batch of the input
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    rounding: tuple[str, str] = ("ceil", "ceil")  # of H/s and of W/s
    padding_mode: str = "zeros"
    combine: str = "mul"
    dtypes: tuple[torch.dtype, ...] = (torch.float64,) * 3

    @property
    def taps(self) -> int:
        return self.kernel_size[0] * self.kernel_size[1]

    @property
    def output_size(self) -> tuple[int, int]:
        floor = [n // s for n, s in zip(self.size, self.stride, strict=True)]
        ceil = [math.ceil(n / s) for n, s in zip(self.size, self.stride, strict=True)]
        height, width = (
            ceil[axis] if self.rounding[axis] == "ceil" else floor[axis] for axis in (0, 1)
        )
        return height, width

    @property
    def shapes(self) -> Operands:
        channel_batch = self.batch if self.channel_batch is None else self.channel_batch
        channel_shapes = {
            "none": None,
            "image": (channel_batch, self.channels, self.taps),
            "pixel": (channel_batch, self.channels, *self.output_size),
        }
        return Operands(
            (self.batch, self.channels, *self.size),
            (self.batch, self.groups * self.taps, *self.output_size),
            channel_shapes[self.channel_filter],
        )

    @property
    def options(self) -> dict[str, Any]:
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "dilation": self.dilation,
            "padding_mode": self.padding_mode,
            "combine": self.combine,
        }

    @property
    def result_dtype(self) -> torch.dtype:
        """PyTorch's promotion over the tensors that are there."""
        dtype = torch.promote_types(self.dtypes[0], self.dtypes[1])
        return (
            dtype if self.channel_filter == "none" else torch.promote_types(dtype, self.dtypes[2])
        )

    def with_dtype(self, dtype: torch.dtype) -> "Case":
        return replace(self, dtypes=(dtype,) * 3)

    def operands(self, device: str = CPU, seed: int = 0) -> Operands:
        """Random tensors of the shapes, the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        return Operands(
            *(
                None
                if shape is None
                else torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
                for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
            )
        )

    def cotangent(self, device: str = CPU, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (self.batch, self.channels, *self.output_size)
        cotangent = torch.randn(shape, generator=generator, dtype=torch.float64)
        return cotangent.to(device, self.result_dtype)


# ------------------------------------------------------------------------------------------ oracle


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


def oracle_forward(case: Case, arrays: Operands) -> np.ndarray:
    """out[b,c,y,x] = sum_t F[b,c,t,y,x] * pad(input)[b,c, y*s + (i-r)*d, x*s + (j-r)*d]."""
    image, spatial, channel = arrays
    batch, channels, height, width = image.shape
    kernel_height, kernel_width = case.kernel_size
    out = np.zeros((batch, channels, *spatial.shape[2:]), image.dtype)
    in_group = channels // case.groups
    for b, c, y, x in np.ndindex(batch, channels, *spatial.shape[2:]):
        if c % in_group:
            continue  # the whole group is done at its first channel
        group = slice(c, c + in_group)
        total = np.zeros(in_group, image.dtype)
        for i in range(kernel_height):
            row = y * case.stride[0] + (i - (kernel_height - 1) // 2) * case.dilation[0]
            row = source_index(row, height, case.padding_mode)
            for j in range(kernel_width):
                column = x * case.stride[1] + (j - (kernel_width - 1) // 2) * case.dilation[1]
                column = source_index(column, width, case.padding_mode)
                tap = i * kernel_width + j
                weight = spatial[b, (c // in_group) * case.taps + tap, y, x]
                if channel is not None:
                    b_channel = b if channel.shape[0] == batch else 0
                    where = (tap,) if channel.ndim == 3 else (y, x)
                    gain = channel[(b_channel, group, *where)]
                    weight = weight * gain if case.combine == "mul" else weight + gain
                if row is None or column is None:
                    total = total + weight * image.dtype.type(0)  # inf * 0 is NaN here too
                else:
                    total = total + weight * image[b, group, row, column]
        out[b, group, y, x] = total
    return out


def oracle_backward(case: Case, arrays: Operands, cotangent: np.ndarray) -> Operands:
    """Gradients in scatter form: each product of the forward sends its share to its factors."""
    image, spatial, channel = arrays
    batch, channels, height, width = image.shape
    grad_image, grad_spatial = np.zeros_like(image), np.zeros_like(spatial)
    grad_channel = None if channel is None else np.zeros_like(channel)
    kernel_width = case.kernel_size[1]
    reach = [(size - 1) // 2 for size in case.kernel_size]
    in_group = channels // case.groups
    for b, g, tap, y, x in np.ndindex(batch, case.groups, case.taps, *spatial.shape[2:]):
        group = slice(g * in_group, (g + 1) * in_group)
        row = y * case.stride[0] + (tap // kernel_width - reach[0]) * case.dilation[0]
        column = x * case.stride[1] + (tap % kernel_width - reach[1]) * case.dilation[1]
        row = source_index(row, height, case.padding_mode)
        column = source_index(column, width, case.padding_mode)
        inside = row is not None and column is not None
        gradient = cotangent[b, group, y, x]
        value = image[b, group, row, column] if inside else np.zeros(in_group, image.dtype)
        plane = g * case.taps + tap
        weight = spatial[b, plane, y, x]
        grad_weight = gradient * value
        if channel is not None and grad_channel is not None:
            b_channel = b if channel.shape[0] == batch else 0
            where = (tap,) if channel.ndim == 3 else (y, x)
            gain = channel[(b_channel, group, *where)]
            is_product = case.combine == "mul"
            grad_channel[(b_channel, group, *where)] += grad_weight * (weight if is_product else 1)
            grad_weight = grad_weight * (gain if is_product else 1)
            weight = weight * gain if is_product else weight + gain
        grad_spatial[b, plane, y, x] += grad_weight.sum(dtype=image.dtype)
        if inside:
            grad_image[b, group, row, column] += gradient * weight
    return Operands(grad_image, grad_spatial, grad_channel)


def to_numpy(tensor: Tensor | None, dtype: type = np.float64) -> Any:
    """A NumPy copy in another precision; every dtype of the operator fits float64 exactly."""
    return (
        None if tensor is None else tensor.detach().to("cpu", torch.float64).numpy().astype(dtype)
    )


# ----------------------------------------------------------------------------------------- budgets


class Budget(NamedTuple):
    """What an error may be, relative to the sum of the absolute values of the terms added up."""

    relative_l2: float
    maximum: float


# What the project promises for float64, against 1e-16 of the format itself: room for any order of
# summation, none for a single step in float32 (6e-8).
FLOAT64_BUDGET = Budget(1e-10, 1e-10)

# The order of summation is free. Over these sizes the worst element of one order stays within four
# times that of another; products of three factors round a few times even where nothing is added.
ORDER_SLACK = 4


@dataclass(frozen=True)
class Expected:
    """Exact value, sum of the absolute terms behind it, and the error that is allowed."""

    value: np.ndarray
    magnitude: np.ndarray
    budget: Budget


def relative_errors(
    actual: np.ndarray, value: np.ndarray, magnitude: np.ndarray, quantum: float = 0
) -> Budget:
    """Both errors over the finite elements; a quantum is what the format cannot show."""
    finite = np.isfinite(value) & np.isfinite(actual)
    error = np.maximum(np.abs(actual[finite] - value[finite]) - quantum, 0)
    scale = magnitude[finite]
    if not error.any():
        return Budget(0.0, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error == 0, 0, error / scale)
        return Budget(float(np.linalg.norm(error) / np.linalg.norm(scale)), float(ratio.max()))


def compare(actual: Tensor, expected: Expected, name: str, infinite_or_nan: bool = False) -> Budget:
    """Raise AssertionError with both errors where they exceed the budget, else return them.

    With `infinite_or_nan` any value that is not finite will do where such a value is expected.
    """
    if tuple(actual.shape) != expected.value.shape:
        raise AssertionError(f"{name}: shape {tuple(actual.shape)}, not {expected.value.shape}")
    value = to_numpy(torch.from_numpy(expected.value).to(actual.dtype))  # beyond the range: inf
    exact = np.where(np.isfinite(value), expected.value, value)
    got = to_numpy(actual)
    kinds = {"NaN": np.isnan, "+inf": np.isposinf, "-inf": np.isneginf}
    for kind, test in ({"finite": np.isfinite} if infinite_or_nan else kinds).items():
        if (wrong := np.argwhere(test(got) != test(exact))).size:
            raise AssertionError(f"{name}: {kind} or not differs at {wrong[:5].tolist()}")
    information = torch.finfo(actual.dtype)
    subnormal = float(information.smallest_normal) * float(information.eps)
    errors = relative_errors(got, exact, expected.magnitude, quantum=subnormal)
    if errors.relative_l2 > expected.budget.relative_l2 or errors.maximum > expected.budget.maximum:
        ratio = np.abs(got - exact) / np.maximum(expected.magnitude, subnormal)
        worst = np.unravel_index(np.nanargmax(ratio), ratio.shape)
        raise AssertionError(
            f"{name}: relative L2 {errors.relative_l2:.3g}, maximum {errors.maximum:.3g} at "
            f"{tuple(map(int, worst))} ({got[worst]!r}, not {exact[worst]!r}); "
            f"allowed {expected.budget.relative_l2:.3g} and {expected.budget.maximum:.3g}"
        )
    return errors


def expected_results(case: Case, operands: Operands, cotangent: Tensor) -> dict[str, Expected]:
    """Output and gradients by the oracle, each with a budget from a float32 run of the oracle."""
    arrays = Operands(*map(to_numpy, operands))
    gradient = to_numpy(cotangent)
    with np.errstate(all="ignore"):
        exact = run_oracle(case, arrays, gradient)
        absolute = Operands(*(None if array is None else np.abs(array) for array in arrays))
        magnitudes = run_oracle(case, absolute, np.abs(gradient))
        if case.result_dtype == torch.float64:
            rough = None
        else:
            single = Operands(*(to_numpy(tensor, np.float32) for tensor in operands))
            rough = run_oracle(case, single, gradient.astype(np.float32))
    dtypes = {"output": case.result_dtype} | dict(zip(GRADIENTS, case.dtypes, strict=True))
    expected = {}
    for name, value in exact.items():
        stored = torch.finfo(dtypes[name]).eps / 2  # rounding of the result itself
        if INTERPRETED and dtypes[name] == torch.bfloat16:
            stored *= 2  # Triton's interpreter cuts the last bits off where a GPU rounds
        if rough is None:
            narrow = dtypes[name] != torch.float64
            l2, maximum = (bound + stored * narrow for bound in FLOAT64_BUDGET)
        else:
            unit = torch.finfo(torch.float32).eps / 2
            measured = relative_errors(rough[name].astype(np.float64), value, magnitudes[name])
            l2, maximum = (ORDER_SLACK * (error + unit) + stored for error in measured)
        expected[name] = Expected(value, magnitudes[name], Budget(l2, maximum))
    return expected


def run_oracle(case: Case, arrays: Operands, cotangent: np.ndarray) -> dict[str, np.ndarray]:
    results = {"output": oracle_forward(case, arrays)}
    gradients = oracle_backward(case, arrays, cotangent)
    return results | {
        name: gradient
        for name, gradient in zip(GRADIENTS, gradients, strict=True)
        if gradient is not None
    }


def run_operator(operator: Any, case: Case, operands: Operands, cotangent: Tensor) -> dict:
    """Output and gradients of all operands, by autograd, under the oracle's names."""
    leaves = Operands(*(None if t is None else t.detach().requires_grad_() for t in operands))
    output = operator(*leaves, **case.options)
    there = [index for index, leaf in enumerate(leaves) if leaf is not None]
    gradients = torch.autograd.grad(output, [leaves[index] for index in there], cotangent)
    named = {GRADIENTS[index]: gradient for index, gradient in zip(there, gradients, strict=True)}
    return {"output": output.detach()} | named


def check(
    operator: Any,
    case: Case,
    operands: Operands,
    cotangent: Tensor,
    infinite_or_nan: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Compare output and gradients with the oracle's; return what the operator gave."""
    actual = run_operator(operator, case, operands, cotangent)
    expected = expected_results(case, operands, cotangent)
    assert actual.keys() == expected.keys()
    dtypes = {"output": case.result_dtype} | dict(zip(GRADIENTS, case.dtypes, strict=True))
    for name, tensor in actual.items():
        assert tensor.dtype == dtypes[name], name
        compare(tensor, expected[name], name, name in infinite_or_nan)
    return actual


# ----------------------------------------------------------------------------------------- layouts

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
