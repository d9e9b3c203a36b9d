"""A channel filter without a spatial one (``spatial_filter=None``): a depthwise convolution whose
weights may differ from image to image."""

import math

import pytest
import torch
import torch.nn.functional as F

import kpnops
from tests.helpers import (
    COMPILED_ROUTES,
    INTERPRETED,
    LAYOUTS,
    PADDING_MODES,
    Case,
    Operands,
    arrange,
    check,
    has_promised_format,
    run_operator,
)

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
DTYPES = [F32] if INTERPRETED else [F64, F32]
DTYPE = DTYPES[0]


def alone(**options) -> Case:
    small = {"size": (3, 4), "kernel_size": (2, 3)} if INTERPRETED else {}
    return Case(spatial=False, channel_filter="image", **(small | options))


CASES = {
    "one image": alone(),
    "batch": alone(batch=2, channels=5),
    "one filter for the batch": alone(batch=2, channel_batch=1),
    "add has no effect": alone(combine="add"),
    "one tap": alone(kernel_size=(1, 1)),
    "even kernel": alone(kernel_size=(2, 2), channels=5),
    "stride, odd sizes": alone(stride=(2, 2), size=(5, 3)),
    "strides differ": alone(stride=(3, 2), size=(4, 5)),
    "dilation": alone(dilation=(2, 3)),
    "many taps": alone(kernel_size=(5, 10), size=(2, 3)),
    "one pixel": alone(size=(1, 1)),
    "replicate": alone(padding_mode="replicate"),
    "reflect, strided": alone(padding_mode="reflect", stride=(2, 1)),
    "circular": alone(padding_mode="circular", channels=5),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, dtype: torch.dtype, device: str) -> None:
    case = CASES[name].with_dtype(dtype)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("name", CASES)
def test_reference(name: str, device: str) -> None:
    case = CASES[name]
    check(kpnops.reference.decoupled_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_is_a_depthwise_convolution(mode: str, stride: int, device: str) -> None:
    # Whole numbers: every order of summation is exact.
    case = alone(channels=4, kernel_size=(3, 3), padding_mode=mode, stride=(stride, stride))
    case = case.with_dtype(F32)
    image, _, channel = (None if t is None else t.round() for t in case.operands(device))
    padded = F.pad(image, (1, 1, 1, 1), mode="constant" if mode == "zeros" else mode)
    expected = F.conv2d(padded, channel.reshape(4, 1, 3, 3), stride=stride, groups=4)
    actual = kpnops.decoupled_filter(image, None, channel, stride=stride, padding_mode=mode)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("combine", ["mul", "add"])
def test_is_the_filter_with_a_spatial_one_of_ones(combine: str, device: str) -> None:
    case = alone(channels=4, combine=combine).with_dtype(F32)
    image, _, channel = case.operands(device)
    ones = torch.ones((1, case.taps, *case.output_size), device=device)
    options = case.options | {"combine": "mul"}
    expected = kpnops.decoupled_filter(image, ones, channel, **options)
    assert torch.equal(kpnops.decoupled_filter(image, None, channel, **case.options), expected)


def test_infers_a_square_kernel(device: str) -> None:
    case = alone(kernel_size=(2, 2)).with_dtype(F32)
    image, _, channel = case.operands(device)
    expected = kpnops.decoupled_filter(image, None, channel, kernel_size=2)
    assert torch.equal(kpnops.decoupled_filter(image, None, channel), expected)


@pytest.mark.parametrize(
    "dtypes",
    [(F16, F64, F16), (BF16, F64, BF16), (F32, F64, BF16), (BF16, F64, F16)],  # no second tensor
    ids=lambda dtypes: "-".join(str(dtype).removeprefix("torch.") for dtype in dtypes[::2]),
)
def test_dtypes(dtypes: tuple[torch.dtype, ...], device: str) -> None:
    case = alone(channels=5, kernel_size=(1, 3), dtypes=dtypes)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_layouts(layout: str, device: str) -> None:
    case = alone(batch=2, channels=4, size=(2, 3), kernel_size=(1, 2)).with_dtype(DTYPE)
    operands = Operands(*(arrange(tensor, layout) for tensor in case.operands(device)))
    cotangent = arrange(case.cotangent(device), layout)
    actual = check(kpnops.decoupled_filter, case, operands, cotangent)
    assert has_promised_format(actual["output"], operands.input)
    assert has_promised_format(actual["grad_input"], operands.input)
    assert has_promised_format(actual["grad_channel_filter"], operands.channel_filter)


@pytest.mark.parametrize("channel_batch", [0, 1])
def test_no_images(channel_batch: int, device: str) -> None:
    case = alone(batch=0, channel_batch=channel_batch)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


def test_two_runs_give_the_same_bits(device: str) -> None:
    case = alone(channels=5, batch=2, channel_batch=1).with_dtype(F32)
    operands, cotangent = case.operands(device), case.cotangent(device)
    first = run_operator(kpnops.decoupled_filter, case, operands, cotangent)
    second = run_operator(kpnops.decoupled_filter, case, operands, cotangent)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["input", "channel_filter", "cotangent"])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_infinity_follows_the_definition(name: str, device: str) -> None:
    case = alone(batch=2, size=(3, 4), kernel_size=(2, 2)).with_dtype(DTYPE)
    operands, cotangent = case.operands(device), case.cotangent(device)
    target = cotangent if name == "cotangent" else getattr(operands, name)
    target.flatten(0, -2)[0, 1] = math.inf
    check(kpnops.decoupled_filter, case, operands, cotangent)
