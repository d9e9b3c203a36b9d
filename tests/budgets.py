"""How far a result may be from the oracle's, and the comparison."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tests.cases import Case, Operands
from tests.oracle import GRADIENTS, oracle_magnitudes, run_oracle, to_numpy
from tests.routes import INTERPRETED

__all__ = [
    "FLOAT64_BUDGET",
    "Budget",
    "Expected",
    "check",
    "compare",
    "expected_results",
    "relative_errors",
    "run_operator",
]


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
    quantum = near_zero(actual.dtype)
    errors = relative_errors(got, exact, expected.magnitude, quantum)
    if errors.relative_l2 > expected.budget.relative_l2 or errors.maximum > expected.budget.maximum:
        ratio = np.abs(got - exact) / np.maximum(expected.magnitude, quantum)
        worst = np.unravel_index(np.nanargmax(ratio), ratio.shape)
        raise AssertionError(
            f"{name}: relative L2 {errors.relative_l2:.3g}, maximum {errors.maximum:.3g} at "
            f"{tuple(map(int, worst))} ({got[worst]!r}, not {exact[worst]!r}); "
            f"allowed {expected.budget.relative_l2:.3g} and {expected.budget.maximum:.3g}"
        )
    return errors


def near_zero(dtype: torch.dtype) -> float:
    """What a format may lose near zero: the subnormal numbers, which machines are free to flush
    (the interpreter gets those of bfloat16 wrong); of float16 one step, for they are not that
    small."""
    information = torch.finfo(dtype)
    normal = float(information.smallest_normal)
    return normal * float(information.eps) if dtype == torch.float16 else normal


def expected_results(
    case: Case, operands: Operands, cotangent: Tensor, run: Any = run_oracle
) -> dict[str, Expected]:
    """Output and gradients by the oracle, each with a budget from a float32 run of the oracle.

    ``run`` stands in for the oracle, with its signature.
    """
    arrays = Operands(*map(to_numpy, operands))
    gradient = to_numpy(cotangent)
    double = case.result_dtype == torch.float64
    sums = torch.finfo(torch.float64 if double else torch.float32)
    with np.errstate(all="ignore"):
        exact = run(case, arrays, gradient)
        smallest = sums.smallest_normal / (FLOAT64_BUDGET.maximum if double else sums.eps)
        magnitudes = oracle_magnitudes(case, arrays, gradient, smallest, run)
        if double:
            rough = None
        else:
            single = Operands(*(to_numpy(tensor, np.float32) for tensor in operands))
            rough = run(case, single, gradient.astype(np.float32))
    dtypes = {"output": case.result_dtype} | dict(zip(GRADIENTS, case.dtypes, strict=True))
    unit = sums.eps / 2 * softmax_condition(case, arrays.spatial_filter)
    expected = {}
    for name, value in exact.items():
        stored = torch.finfo(dtypes[name]).eps / 2  # rounding of the result itself
        if INTERPRETED and dtypes[name] == torch.bfloat16:
            stored *= 2  # Triton's interpreter cuts the last bits off where a GPU rounds
        if rough is None:
            narrow = dtypes[name] != torch.float64
            l2, maximum = (bound + stored * narrow for bound in FLOAT64_BUDGET)
        else:
            measured = relative_errors(rough[name].astype(np.float64), value, magnitudes[name])
            l2, maximum = (ORDER_SLACK * (error + unit) + stored for error in measured)
        expected[name] = Expected(value, magnitudes[name], Budget(l2, maximum))
    return expected


def softmax_condition(case: Case, logits: np.ndarray | None) -> float:
    """How many rounding steps of its own a probability may be off by: 1 without softmax.

    exp(s - m) turns a rounding step of its argument into an absolute one, |s - m| relative ones of
    the result, and the denominator brings in as many again. It counts where a tap far below the
    largest is all there is, the others lying over the zeros of the border. Taps that are next to
    nothing in float32 (below exp(-88)) do not count.
    """
    if case.normalize is None or logits is None:
        return 1
    by_group = logits.reshape(len(logits), case.groups, case.taps, *logits.shape[2:])
    with np.errstate(invalid="ignore"):
        below = by_group.max(2, keepdims=True, initial=-np.inf) - by_group
    counted = below[np.isfinite(below) & (below < 88)]
    return 1 + 2 * float(counted.max(initial=0))


ALL = (True, True, True)


def run_operator(
    operator: Any,
    case: Case,
    operands: Operands,
    cotangent: Tensor,
    needs_grad: tuple[bool, ...] = ALL,
) -> dict[str, Tensor]:
    """Output and gradients of all operands, by autograd, under the oracle's names."""
    needs = [need and tensor is not None for need, tensor in zip(needs_grad, operands, strict=True)]
    leaves = Operands(
        *(
            None if tensor is None else tensor.detach().requires_grad_(need)
            for tensor, need in zip(operands, needs, strict=True)
        )
    )
    output = operator(*leaves, **case.options)
    results = {"output": output.detach()}
    assert output.requires_grad == any(needs)
    if any(needs):
        wanted = [index for index, need in enumerate(needs) if need]
        gradients = torch.autograd.grad(output, [leaves[index] for index in wanted], cotangent)
        results |= {GRADIENTS[i]: grad for i, grad in zip(wanted, gradients, strict=True)}
    return results


def check(
    operator: Any,
    case: Case,
    operands: Operands,
    cotangent: Tensor,
    infinite_or_nan: tuple[str, ...] = (),
    needs_grad: tuple[bool, ...] = ALL,
    run: Any = run_oracle,
) -> dict[str, Tensor]:
    """Compare output and gradients with the oracle's; return what the operator gave."""
    actual = run_operator(operator, case, operands, cotangent, needs_grad)
    expected = expected_results(case, operands, cotangent, run)
    assert actual.keys() <= expected.keys()
    assert needs_grad != ALL or actual.keys() == expected.keys()
    dtypes = {"output": case.result_dtype} | dict(zip(GRADIENTS, case.dtypes, strict=True))
    for name, tensor in actual.items():
        assert tensor.dtype == dtypes[name], name
        compare(tensor, expected[name], name, name in infinite_or_nan)
    return actual
