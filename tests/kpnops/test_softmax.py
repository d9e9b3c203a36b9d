"""The softmax over the taps (``normalize="softmax"``), forward and backward, on every route."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

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

pytestmark = [
    pytest.mark.usefixtures("poisoned_allocations"),
    # The interpreter computes with NumPy, which warns of what these tests do on purpose.
    pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero):RuntimeWarning"),
]

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
DTYPES = [F32] if INTERPRETED else [F64, F32]
DTYPE = DTYPES[0]


def softmax(**options) -> Case:
    small = {"size": (3, 4), "kernel_size": (2, 3)} if INTERPRETED else {}
    return Case(normalize="softmax", **(small | options))


CASES = {
    "no channel filter": softmax(channel_filter="none"),
    "gains per pixel": softmax(batch=2),
    "gains per pixel, five channels": softmax(channels=5),
    "gains per pixel, one for the batch": softmax(batch=2, channel_batch=1),
    "filter per image": softmax(channel_filter="image"),
    "filter per image, one for the batch": softmax(
        channel_filter="image", batch=2, channel_batch=1, channels=5
    ),
    "add per pixel": softmax(combine="add"),
    "add per pixel, five channels": softmax(combine="add", channels=5),
    "add per image": softmax(combine="add", channel_filter="image"),
    "mixing": softmax(channel_filter="mix", output_channels=2),
    "three groups": softmax(channels=6, groups=3),
    "a group for each channel, per image": softmax(channels=4, groups=4, channel_filter="image"),
    "two groups of five": softmax(channels=10, groups=2, size=(2, 3), channel_filter="none"),
    "one tap": softmax(kernel_size=(1, 1)),
    "last size of the fast path": softmax(kernel_size=(7, 7), size=(3, 4)),
    "first size beyond the fast path": softmax(kernel_size=(5, 10), size=(2, 3)),
    "beyond, per image, in groups": softmax(
        kernel_size=(3, 17), size=(2, 3), channel_filter="image", channels=4, groups=2
    ),
    "stride": softmax(stride=(2, 2), size=(3, 5)),
    "stride, per image, rounded down": softmax(
        stride=(2, 3), rounding=("floor", "floor"), channel_filter="image", combine="add"
    ),
    "dilation, no channel filter": softmax(dilation=(2, 3), channel_filter="none"),
    "one pixel": softmax(size=(1, 1), kernel_size=(3, 3)),
    "replicate": softmax(padding_mode="replicate", channel_filter="image"),
    "reflect, five channels": softmax(padding_mode="reflect", channels=5),
    "circular, strided": softmax(padding_mode="circular", stride=(1, 2), combine="add"),
    "circular, smaller than the reach": softmax(
        padding_mode="circular", size=(1, 2), kernel_size=(3, 5), channel_filter="none"
    ),
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


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("channel_filter", ["none", "image", "pixel", "mix"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [3, 6])
def test_forms_and_paddings(
    channels: int, stride: int, channel_filter: str, mode: str, device: str
) -> None:
    case = softmax(
        channels=channels,
        groups=3,
        channel_filter=channel_filter,
        padding_mode=mode,
        stride=(stride, stride),
        size=(5, 6),
    ).with_dtype(F32)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("channel_filter", ["pixel"] if INTERPRETED else ["image", "pixel"])
@pytest.mark.parametrize(
    "dtypes",
    [
        (F64, F64, F64),
        (F16, F16, F16),
        (BF16, BF16, BF16),
        (F32, BF16, BF16),
        (F16, BF16, F16),
        (F32, F32, F64),
    ],
    ids=lambda dtypes: "-".join(str(dtype).removeprefix("torch.") for dtype in dtypes),
)
def test_dtypes(dtypes: tuple[torch.dtype, ...], channel_filter: str, device: str) -> None:
    kernel_size = (1, 3) if INTERPRETED else (3, 3)
    case = softmax(
        channels=5, kernel_size=kernel_size, channel_filter=channel_filter, dtypes=dtypes
    )
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("channels", [3, 6])
def test_layouts(channels: int, layout: str, device: str) -> None:
    case = softmax(batch=2, channels=channels, groups=3, size=(2, 3)).with_dtype(DTYPE)
    operands = Operands(*(arrange(tensor, layout) for tensor in case.operands(device)))
    cotangent = arrange(case.cotangent(device), layout)
    actual = check(kpnops.decoupled_filter, case, operands, cotangent)
    for name, source in operands._asdict().items():
        assert has_promised_format(actual["grad_" + name], source), name


@pytest.mark.parametrize("channels", [3, 5])
def test_several_tiles_with_an_interior(channels: int, device: str) -> None:
    size, kernel_size = ((18, 67), (2, 2)) if INTERPRETED else ((37, 523), (3, 3))
    case = softmax(channels=channels, size=size, kernel_size=kernel_size, channel_filter="none")
    case = case.with_dtype(F32)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("channel_filter", ["none", "image", "mix"])
def test_no_images(channel_filter: str, device: str) -> None:
    case = softmax(batch=0, channel_batch=1, channel_filter=channel_filter)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


def test_two_runs_give_the_same_bits(device: str) -> None:
    case = softmax(channels=5, padding_mode="circular").with_dtype(F32)
    operands, cotangent = case.operands(device), case.cotangent(device)
    first = run_operator(kpnops.decoupled_filter, case, operands, cotangent)
    second = run_operator(kpnops.decoupled_filter, case, operands, cotangent)
    assert all(torch.equal(first[key], second[key]) for key in first)


# ---------------------------------------------------------------------------------- large, infinite

ROUTE_OPTIONS = {
    "fast": {},
    "fast, many channels": {"channels": 5},
    "fast, per image": {"channel_filter": "image"},
    "general": {"stride": (1, 2)},
    "general, per image": {"dilation": (2, 1), "channel_filter": "image"},
    "mixing": {"channel_filter": "mix"},
}


@pytest.mark.parametrize("scale", [20.0, 1e4])
@pytest.mark.parametrize("route", ROUTE_OPTIONS)
def test_large_logits(route: str, scale: float, device: str) -> None:
    # At a scale of 20 the taps over zeros of the border often hold all but a trace of the weight,
    # at 1e4 one tap has it all. Nothing overflows.
    case = softmax(**ROUTE_OPTIONS[route]).with_dtype(DTYPES[-1])
    operands = case.operands(device)
    operands = operands._replace(spatial_filter=operands.spatial_filter * scale)
    actual = check(kpnops.decoupled_filter, case, operands, case.cotangent(device))
    assert all(bool(tensor.isfinite().all()) for tensor in actual.values())


INFINITE = {
    # tap planes of the pixel, and what is put there
    "-inf in one tap": ([1], [-math.inf]),
    "-inf in all taps but one": ([0, 1, 2, 3, 5], [-math.inf] * 5),
    "-inf in all taps": ([0, 1, 2, 3, 4, 5], [-math.inf] * 6),
    "inf": ([2], [math.inf]),
    "inf and -inf": ([0, 3], [math.inf, -math.inf]),
    "NaN": ([4], [math.nan]),
}


@pytest.mark.parametrize("route", ROUTE_OPTIONS)
@pytest.mark.parametrize("kind", INFINITE)
def test_infinite_logits(kind: str, route: str, device: str) -> None:
    case = softmax(**ROUTE_OPTIONS[route], size=(3, 4), kernel_size=(2, 3)).with_dtype(DTYPE)
    operands = case.operands(device)
    planes, values = INFINITE[kind]
    row, column = 1, case.output_size[1] - 1
    for plane, value in zip(planes, values, strict=True):
        operands.spatial_filter[0, plane, row, column] = value
    actual = check(kpnops.decoupled_filter, case, operands, case.cotangent(device))
    wrong = actual["output"].isnan()
    bad_pixel = kind in ("-inf in all taps", "inf", "inf and -inf", "NaN")
    assert bool(wrong[..., row, column].all()) == bad_pixel
    wrong[..., row, column] = False
    assert not bool(wrong.any())  # exactly this pixel
    gradient = actual["grad_spatial_filter"]
    if not bad_pixel:  # a tap of probability zero has a gradient of zero, and adds nothing
        assert all(bool(tensor.isfinite().all()) for tensor in actual.values())
        assert not bool(gradient[0, planes, row, column].any())


@pytest.mark.parametrize("value", [math.inf] if INTERPRETED else [math.nan, math.inf])
@pytest.mark.parametrize("route", ROUTE_OPTIONS)
@pytest.mark.parametrize("where", ["input", "cotangent"])
def test_not_a_number_follows_the_definition(
    where: str, route: str, value: float, device: str
) -> None:
    case = softmax(**ROUTE_OPTIONS[route], size=(3, 4), kernel_size=(2, 3)).with_dtype(DTYPE)
    operands, cotangent = case.operands(device), case.cotangent(device)
    (operands.input if where == "input" else cotangent)[0, 1, 1, 1] = value
    # Under an infinite gradient sum P dP is infinity times the output, not a sum of infinities of
    # both signs, and likewise in the gradients of gains: either is accepted there, and only there.
    either = ("grad_spatial_filter", "grad_channel_filter") if where == "cotangent" else ()
    actual = check(kpnops.decoupled_filter, case, operands, cotangent, infinite_or_nan=either)
    assert all(bool(tensor.isfinite().any()) for tensor in actual.values())


def test_masked_pixels_do_not_reach_the_others(device: str) -> None:
    # Whole rows and columns of -inf around a part that must stay as it is.
    case = softmax(size=(4, 5), kernel_size=(2, 2), channel_filter="image").with_dtype(F32)
    operands = case.operands(device)
    expected = kpnops.decoupled_filter(*operands, **case.options)
    masked = operands.spatial_filter.clone()
    masked[..., :, 4] = masked[..., 3, :] = -math.inf
    actual = kpnops.decoupled_filter(operands.input, masked, operands[2], **case.options)
    assert torch.equal(actual[..., :3, :4], expected[..., :3, :4])
    assert bool(actual[..., 3, :].isnan().all())
    assert bool(actual[..., 4].isnan().all())


# -------------------------------------------------------------------------------------- invariances


def in_eighths(tensor: Tensor) -> Tensor:
    """Rounded to multiples of 1/8, so that sums and differences are exact."""
    return (tensor * 8).round() / 8


@pytest.mark.parametrize("route", ROUTE_OPTIONS)
def test_a_constant_on_all_taps_changes_nothing(route: str, device: str) -> None:
    case = softmax(**ROUTE_OPTIONS[route]).with_dtype(F32)
    image, logits, channel = case.operands(device)
    logits, cotangent = in_eighths(logits), case.cotangent(device)
    first = run_operator(kpnops.decoupled_filter, case, Operands(image, logits, channel), cotangent)
    moved = Operands(image, logits + 1024, channel)
    second = run_operator(kpnops.decoupled_filter, case, moved, cotangent)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_equal_logits_are_a_mean(stride: tuple[int, int], device: str) -> None:
    case = Case(kernel_size=(2, 2), stride=stride, channel_filter="none", size=(4, 4))
    case = case.with_dtype(F32)
    image, logits, _ = case.operands(device)
    mean = torch.full_like(logits, 0.25)  # exact, like 1 / (1 + 1 + 1 + 1)
    expected = kpnops.decoupled_filter(image, mean, **case.options)
    options = case.options | {"normalize": "softmax"}
    assert torch.equal(kpnops.decoupled_filter(image, mean * 28, **options), expected)


@pytest.mark.parametrize("kernel_size", [(3, 3), (4, 3), (3, 17)])
@pytest.mark.parametrize("value", [1e4, math.inf])
def test_one_tap_far_above_the_others_is_a_delta(
    value: float, kernel_size: tuple[int, int], device: str
) -> None:
    case = softmax(kernel_size=kernel_size, channels=4, groups=2, size=(3, 5)).with_dtype(F32)
    image = case.operands(device).input
    logits = torch.zeros(case.shapes.spatial_filter, device=device)
    middle = (kernel_size[0] - 1) // 2 * kernel_size[1] + (kernel_size[1] - 1) // 2
    if math.isinf(value):
        logits -= value
        logits[:, middle :: case.taps] = 0
    else:
        logits[:, middle :: case.taps] = value
    assert torch.equal(kpnops.decoupled_filter(image, logits, **case.options), image)


@pytest.mark.parametrize("mode", PADDING_MODES[1:])
def test_a_constant_image_stays(mode: str, device: str) -> None:
    case = softmax(padding_mode=mode, kernel_size=(2, 3), size=(3, 4)).with_dtype(F32)
    logits = 3 * case.operands(device).spatial_filter
    image = torch.full(case.shapes.input, 0.75, device=device)
    actual = kpnops.decoupled_filter(image, logits, **case.options)
    # Positive terms: 6 exponentials, their sum, a reciprocal, 6 products and 6 sums.
    torch.testing.assert_close(actual, image, rtol=32 * torch.finfo(F32).eps, atol=0)


def test_gradients_of_the_logits_sum_to_zero(device: str) -> None:
    # Since a constant on all taps changes nothing.
    case = softmax(channels=4, groups=2).with_dtype(DTYPE)
    operands = case.operands(device)
    actual = run_operator(kpnops.decoupled_filter, case, operands, case.cotangent(device))
    gradient = actual["grad_spatial_filter"].unflatten(1, (case.groups, case.taps))
    rounding = 8 * case.taps * torch.finfo(DTYPE).eps
    assert bool((gradient.sum(2).abs() <= rounding * gradient.abs().sum(2)).all())


@pytest.mark.parametrize("channel_filter", ["none", "pixel"])
def test_agrees_with_a_softmax_before_the_call(channel_filter: str, device: str) -> None:
    case = softmax(channel_filter=channel_filter, batch=2).with_dtype(DTYPE)
    operands, cotangent = case.operands(device), case.cotangent(device)

    def separate(image: Tensor, logits: Tensor, *rest: Tensor | None, **options) -> Tensor:
        options = options | {"normalize": None}
        return kpnops.decoupled_filter(image, logits.softmax(1), *rest, **options)

    check(separate, case, operands, cotangent)
    plain = replace(case, normalize=None)
    weights = operands._replace(spatial_filter=operands.spatial_filter.softmax(1))
    expected = run_operator(kpnops.decoupled_filter, plain, weights, cotangent)
    actual = run_operator(kpnops.decoupled_filter, case, operands, cotangent)
    torch.testing.assert_close(actual["grad_input"], expected["grad_input"])
