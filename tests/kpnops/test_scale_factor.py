"""Upsampling (``scale_factor``): filters on a grid that is finer than the input, as in CARAFE."""

from itertools import product

import pytest
import torch

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


def upsampled(**options) -> Case:
    small = {"size": (2, 3), "kernel_size": (2, 3), "scale_factor": 2}
    return Case(**(small | options))


CASES = {
    "CARAFE": upsampled(
        channels=4,
        kernel_size=(2, 3) if INTERPRETED else (5, 5),
        groups=2,
        normalize="softmax",
        channel_filter="none",
        batch=2,
    ),
    "no channel filter": upsampled(channel_filter="none"),
    "gains per pixel": upsampled(batch=2, channel_batch=1),
    "filter per image": upsampled(channel_filter="image"),
    "filter per image, softmax, one for the batch": upsampled(
        channel_filter="image", normalize="softmax", batch=2, channel_batch=1
    ),
    "add per pixel": upsampled(combine="add", channels=5),
    "add per image, softmax": upsampled(combine="add", normalize="softmax", channel_filter="image"),
    "mixing": upsampled(channel_filter="mix", output_channels=2, groups=3),
    "by three": upsampled(scale_factor=3, size=(2, 2), kernel_size=(3, 2)),
    "by three, softmax, groups": upsampled(
        scale_factor=3, size=(1, 2), groups=3, normalize="softmax", channel_filter="none"
    ),
    "by five, one pixel": upsampled(scale_factor=5, size=(1, 1), kernel_size=(3, 3)),
    "one tap": upsampled(kernel_size=(1, 1)),
    "many taps": upsampled(kernel_size=(5, 11), size=(1, 2), channel_filter="none"),
    "dilation": upsampled(dilation=(2, 1), padding_mode="circular"),
    "replicate, even": upsampled(padding_mode="replicate", kernel_size=(2, 4)),
    "reflect, softmax": upsampled(padding_mode="reflect", size=(2, 2), normalize="softmax"),
    "reflect, as far as it goes": upsampled(
        padding_mode="reflect", size=(2, 3), kernel_size=(3, 5), channel_filter="image"
    ),
    "circular, wrapped several times": upsampled(
        padding_mode="circular", size=(1, 2), kernel_size=(3, 7), channel_filter="none"
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
@pytest.mark.parametrize("channel_filter", ["none", "image", "pixel", "mix"])
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)])
def test_forms_and_paddings(
    dilation: tuple[int, int], mode: str, channel_filter: str, device: str
) -> None:
    case = upsampled(
        channels=6,
        groups=2,
        size=(3, 4),
        dilation=dilation,
        channel_filter=channel_filter,
        padding_mode=mode,
        scale_factor=3,
    ).with_dtype(F32)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("dtypes", [(F16,) * 3, (F32, BF16, BF16), (BF16, F32, F64)], ids=str)
def test_dtypes(dtypes: tuple[torch.dtype, ...], device: str) -> None:
    case = upsampled(channels=5, kernel_size=(1, 2), dtypes=dtypes)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_layouts(layout: str, device: str) -> None:
    # CARAFE's kernel reads a channels_last tensor as if it were contiguous.
    case = upsampled(batch=2, channels=4, groups=2, kernel_size=(1, 2)).with_dtype(DTYPE)
    operands = Operands(*(arrange(tensor, layout) for tensor in case.operands(device)))
    cotangent = arrange(case.cotangent(device), layout)
    actual = check(kpnops.decoupled_filter, case, operands, cotangent)
    assert has_promised_format(actual["output"], operands.input)
    for name, source in operands._asdict().items():
        assert has_promised_format(actual["grad_" + name], source), name


@pytest.mark.parametrize("channel_filter", ["none", "image", "pixel", "mix"])
def test_no_images(channel_filter: str, device: str) -> None:
    case = upsampled(batch=0, channel_batch=1, channel_filter=channel_filter)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
def test_over_several_tiles(device: str) -> None:
    case = upsampled(size=(7, 150), kernel_size=(3, 3), channels=5, channel_filter="image")
    case = case.with_dtype(F32)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("scale_factor", [2, 3])
@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_is_a_dilated_filter_of_the_repeated_image(
    mode: str, scale_factor: int, device: str
) -> None:
    # (y + (i - r) d u) // u = y // u + (i - r) d. Whole numbers: every order of summation is exact.
    case = upsampled(scale_factor=scale_factor, padding_mode=mode, size=(3, 4)).with_dtype(F32)
    image, spatial, channel = (tensor.round() for tensor in case.operands(device))
    repeated = image.repeat_interleave(scale_factor, 2).repeat_interleave(scale_factor, 3)
    options = case.options | {"scale_factor": 1, "dilation": scale_factor}
    expected = kpnops.decoupled_filter(repeated, spatial, channel, **options)
    actual = kpnops.decoupled_filter(image, spatial, channel, **case.options)
    assert torch.equal(actual, expected)


def test_delta_filter_repeats_the_pixels(device: str) -> None:
    case = upsampled(channels=4, kernel_size=(3, 3), scale_factor=3).with_dtype(F32)
    image = case.operands(device).input
    spatial = torch.zeros(case.shapes.spatial_filter, device=device)
    spatial[:, 4] = 1
    actual = kpnops.decoupled_filter(image, spatial, **case.options)
    for y, x in product(range(3), range(3)):
        assert torch.equal(actual[..., y::3, x::3], image)


def test_scale_factor_of_one_changes_nothing(device: str) -> None:
    case = Case(kernel_size=(2, 2), stride=(2, 1)).with_dtype(F32)
    operands = case.operands(device)
    without = {key: value for key, value in case.options.items() if key != "scale_factor"}
    expected = kpnops.decoupled_filter(*operands, **without)
    assert torch.equal(kpnops.decoupled_filter(*operands, **without, scale_factor=1), expected)


def test_two_runs_give_the_same_bits(device: str) -> None:
    case = CASES["CARAFE"].with_dtype(F32)
    operands, cotangent = case.operands(device), case.cotangent(device)
    first = run_operator(kpnops.decoupled_filter, case, operands, cotangent)
    second = run_operator(kpnops.decoupled_filter, case, operands, cotangent)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["input", "spatial_filter", "channel_filter", "cotangent"])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_infinity_follows_the_definition(name: str, device: str) -> None:
    case = upsampled(channel_filter="image").with_dtype(DTYPE)
    operands, cotangent = case.operands(device), case.cotangent(device)
    target = cotangent if name == "cotangent" else getattr(operands, name)
    target.flatten(0, -2)[0, 1] = float("inf")
    check(kpnops.decoupled_filter, case, operands, cotangent)
