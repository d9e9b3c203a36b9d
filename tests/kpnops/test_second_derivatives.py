"""Derivatives of the gradients: none is dropped in silence, as several peers do."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import kpnops
from tests.helpers import COMPILED_ROUTES, INTERPRETED, PADDING_MODES, Case

SUBSETS = [subset for subset in product([False, True], repeat=3) if any(subset)]


def tiny(**options) -> Case:
    return Case(**({"channels": 2, "size": (2, 2), "kernel_size": (1, 2)} | options))


# Every form with and without softmax; upsampling, stride, groups and one filter for the batch.
CASES = {
    "no channel filter": tiny(channel_filter="none"),
    "no channel filter, softmax": tiny(channel_filter="none", normalize="softmax"),
    "gains": tiny(batch=2, channel_batch=1),
    "gains, softmax": tiny(normalize="softmax"),
    "gains, softmax, five channels in groups": tiny(
        channels=6, groups=2, size=(1, 2), normalize="softmax"
    ),
    "per image": tiny(channel_filter="image", stride=(1, 2), size=(2, 3)),
    "per image, softmax": tiny(channel_filter="image", normalize="softmax", batch=2),
    "add": tiny(combine="add", groups=2),
    "add, softmax": tiny(combine="add", normalize="softmax", stride=(2, 1)),
    "add, per image": tiny(combine="add", channel_filter="image", batch=2, channel_batch=1),
    "add, per image, softmax": tiny(combine="add", channel_filter="image", normalize="softmax"),
    "mixing": tiny(channel_filter="mix", output_channels=3),
    "mixing, softmax": tiny(channel_filter="mix", output_channels=1, normalize="softmax"),
    "upsampled": tiny(scale_factor=2, size=(1, 2)),
    "upsampled, softmax, groups": tiny(
        scale_factor=2, size=(1, 2), normalize="softmax", groups=2, channel_filter="none"
    ),
    "upsampled, mixing, softmax": tiny(
        scale_factor=2, size=(1, 1), channel_filter="mix", normalize="softmax"
    ),
    "channel filter alone": tiny(channel_filter="image", spatial=False),
    "channel filter alone, add": tiny(channel_filter="image", spatial=False, combine="add"),
}

# The interpreter is slow: one case for each set of kernels, and one alone with finite differences.
SHORT = ["gains, softmax", "add, per image", "mixing"]


def leaves_of(case: Case, device: str, subset: tuple[bool, ...] = (True,) * 3) -> list[Any]:
    return [
        None if tensor is None else tensor.requires_grad_(flag)
        for tensor, flag in zip(case.operands(device), subset, strict=True)
    ]


def gradgradcheck(case: Case, leaves: list[Any], fast_mode: bool = False) -> bool:
    device = next(leaf for leaf in leaves if leaf is not None).device.type
    return torch.autograd.gradgradcheck(
        lambda *operands: kpnops.decoupled_filter(*operands, **case.options),
        leaves,
        case.cotangent(device).requires_grad_(),
        fast_mode=fast_mode,
        check_undefined_grad=not INTERPRETED,  # about autograd, not about kernels, and slow
    )


@pytest.mark.parametrize("name", SHORT[:1] if INTERPRETED else CASES)
def test_gradgradcheck(name: str, device: str) -> None:
    assert gradgradcheck(CASES[name], leaves_of(CASES[name], device), fast_mode=INTERPRETED)


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("mode", PADDING_MODES[1:])
def test_gradgradcheck_of_paddings(mode: str, device: str) -> None:
    case = tiny(padding_mode=mode, normalize="softmax", kernel_size=(1, 3), size=(1, 3))
    assert gradgradcheck(case, leaves_of(case, device))


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("subset", SUBSETS, ids=str)
@pytest.mark.parametrize("name", ["gains, softmax", "add, per image", "mixing"])
def test_gradgradcheck_of_some(name: str, subset: tuple[bool, ...], device: str) -> None:
    assert gradgradcheck(CASES[name], leaves_of(CASES[name], device, subset), fast_mode=True)


def penalties(case: Case, operator: Any, leaves: list[Any]) -> list[Tensor]:
    """Gradients of a loss that still has one where that of its penalty is dropped in silence."""
    there = [leaf for leaf in leaves if leaf is not None]
    output = operator(*leaves, **case.options)
    gradients = torch.autograd.grad(output.square().sum(), there, create_graph=True)
    penalty = sum((gradient.square().sum() for gradient in gradients), output.sum())
    return list(torch.autograd.grad(penalty, there, create_graph=True))


@pytest.mark.parametrize("name", SHORT if INTERPRETED else CASES)
def test_gradient_penalty(name: str, device: str) -> None:
    case = replace(CASES[name], size=(2, 3))
    leaves = leaves_of(case, device)
    actual = penalties(case, kpnops.decoupled_filter, leaves)
    expected = penalties(case, kpnops.reference.decoupled_filter, leaves)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)  # the defaults for float64: 1e-7


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("name", ["gains, softmax", "add", "mixing, softmax"])
def test_third_derivative(name: str, device: str) -> None:
    case = replace(CASES[name], size=(1, 2), stride=(1, 1))
    leaves = leaves_of(case, device)
    assert torch.autograd.gradcheck(
        lambda *operands: penalties(case, kpnops.decoupled_filter, list(operands)),
        leaves,
        fast_mode=True,
    )


def test_second_derivative_in_single_precision(device: str) -> None:
    case = tiny(channels=5, normalize="softmax", size=(2, 3)).with_dtype(torch.float32)
    actual = penalties(case, kpnops.decoupled_filter, leaves_of(case, device))
    double = case.with_dtype(torch.float64)
    expected = penalties(double, kpnops.reference.decoupled_filter, leaves_of(double, device))
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == torch.float32
        scale = float(other.detach().abs().max())
        # some hundred roundings, of operands and results
        rounding = 256 * torch.finfo(torch.float32).eps * scale
        torch.testing.assert_close(one.double(), other, rtol=0, atol=rounding)


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
def test_reference_has_a_second_derivative(device: str) -> None:
    case = tiny(normalize="softmax", channel_filter="mix")
    assert torch.autograd.gradgradcheck(
        lambda *operands: kpnops.reference.decoupled_filter(*operands, **case.options),
        leaves_of(case, device),
    )
