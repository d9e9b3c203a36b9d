"""The contract of `kpnops.decoupled_filter`: values, dtypes, layouts, not-a-number, invariances.

Output and all gradients are compared with the oracle together, under a random cotangent, in memory
filled with NaN. The same cases run on the CPU, in the interpreter and on a GPU.
"""

from itertools import product

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

# The interpreter is slow; float64 has its own test there.
DTYPES = [torch.float32] if INTERPRETED else [torch.float64, torch.float32]

CASES = {
    "no channel filter": Case(channel_filter="none"),
    "filter per image": Case(channel_filter="image", batch=2, kernel_size=(2, 3)),
    "filter per image, one for the batch": Case(channel_filter="image", batch=2, channel_batch=1),
    "gains per pixel": Case(batch=2),
    "gains per pixel, one for the batch": Case(batch=2, channel_batch=1),
    "add per image": Case(channel_filter="image", combine="add"),
    "add per image, one for the batch": Case(
        channel_filter="image", batch=2, channel_batch=1, combine="add", channels=5
    ),
    "add per pixel": Case(combine="add"),
    "add to nothing has no effect": Case(channel_filter="none", combine="add"),
    "groups of two channels": Case(channels=6, groups=3),
    "groups of three channels, per image": Case(channels=6, groups=2, channel_filter="image"),
    "a group for each channel": Case(channels=5, groups=5),
    "groups and add": Case(channels=8, groups=2, combine="add"),
    "one tap": Case(kernel_size=(1, 1)),
    "even kernel": Case(kernel_size=(2, 2), channel_filter="image"),
    "wide kernel": Case(kernel_size=(3, 5)),
    "even and odd": Case(kernel_size=(4, 3), groups=3),
    "a row of taps": Case(kernel_size=(1, 6), channel_filter="none"),
    "a column of taps": Case(kernel_size=(5, 1), channel_filter="image"),
    "five by five": Case(kernel_size=(5, 5)),
    "last size of the fast path": Case(kernel_size=(7, 7), size=(4, 5)),
    "first size beyond the fast path": Case(kernel_size=(5, 10), size=(3, 4)),
    "beyond, per image": Case(kernel_size=(3, 17), size=(3, 4), channel_filter="image"),
    "eleven rows of three": Case(kernel_size=(11, 3), size=(4, 3)),
    "stride": Case(stride=(2, 2), size=(6, 8)),
    "stride, odd sizes, rounded up": Case(stride=(2, 2), channel_filter="image"),
    "stride, odd sizes, rounded down": Case(stride=(2, 2), rounding=("floor", "floor")),
    "strides and roundings differ": Case(stride=(2, 3), rounding=("floor", "ceil"), batch=2),
    "the other way round": Case(stride=(3, 2), rounding=("ceil", "floor"), channels=4, groups=2),
    "stride beyond the kernel": Case(stride=(3, 4), kernel_size=(2, 2), size=(7, 9)),
    "dilation": Case(dilation=(2, 2), size=(6, 7)),
    "dilations differ": Case(dilation=(1, 3), kernel_size=(3, 2), channel_filter="image"),
    "dilation, stride, groups": Case(dilation=(3, 2), stride=(2, 2), channels=4, groups=2),
    "smaller than the reach": Case(size=(2, 1), kernel_size=(5, 5)),
    "one pixel": Case(size=(1, 1)),
    "one column": Case(size=(9, 1), channel_filter="image"),
    "one row": Case(size=(1, 9), channel_filter="none"),
    "replicate": Case(padding_mode="replicate", kernel_size=(3, 2)),
    "replicate, per image, even": Case(
        padding_mode="replicate", channel_filter="image", kernel_size=(4, 2)
    ),
    "replicate, far beyond": Case(padding_mode="replicate", size=(2, 2), kernel_size=(3, 7)),
    "replicate, dilated, strided": Case(
        padding_mode="replicate", dilation=(2, 3), stride=(2, 1), kernel_size=(2, 3), size=(3, 4)
    ),
    "reflect": Case(padding_mode="reflect", channels=5, kernel_size=(2, 3)),
    "reflect, as far as it goes": Case(padding_mode="reflect", size=(2, 3), kernel_size=(3, 5)),
    "reflect, dilated, add": Case(padding_mode="reflect", dilation=(4, 2), combine="add"),
    "reflect, strided, per image": Case(
        padding_mode="reflect", stride=(2, 3), channel_filter="image", kernel_size=(4, 3)
    ),
    "circular": Case(padding_mode="circular"),
    "circular, per image, even": Case(
        padding_mode="circular", channel_filter="image", kernel_size=(2, 4)
    ),
    "circular, wrapped several times": Case(
        padding_mode="circular", size=(1, 2), kernel_size=(3, 6), channel_filter="none"
    ),
    "circular, wrapped by dilation": Case(
        padding_mode="circular", size=(3, 2), dilation=(7, 9), kernel_size=(2, 3)
    ),
}

LARGE_CASES = {
    "nine by nine": Case(kernel_size=(9, 9), channels=4, groups=2),
    "nine by nine, circular": Case(kernel_size=(9, 9), padding_mode="circular", stride=(1, 2)),
    "twenty-one by twenty-one": Case(kernel_size=(21, 21), channel_filter="image"),
    "thirty-one by thirty-one": Case(kernel_size=(31, 31), size=(9, 11), channels=2),
    "thirty-one taps in a row": Case(kernel_size=(1, 31), padding_mode="replicate"),
    "dilation of eight, seven by seven": Case(kernel_size=(7, 7), dilation=(8, 8), size=(9, 17)),
    "sixty-four channels in eight groups": Case(channels=64, groups=8, batch=2),
    "five by five over tiles": Case(kernel_size=(5, 5), size=(13, 70), channels=5),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, dtype: torch.dtype, device: str) -> None:
    case = CASES[name].with_dtype(dtype)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LARGE_CASES)
def test_large_cases(name: str, dtype: torch.dtype, device: str) -> None:
    case = LARGE_CASES[name].with_dtype(dtype)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("name", CASES)
def test_reference(name: str, device: str) -> None:
    case = CASES[name]
    check(kpnops.reference.decoupled_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("dilation", [1, 2, 8, 16])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5, 7, 11, 15, 21])
def test_kernel_sizes_and_dilations(kernel_size: int, dilation: int, device: str) -> None:
    case = Case(
        channels=2,
        size=(4, 19),  # 4 rows are less than most reaches, 19 columns are more than many
        kernel_size=(kernel_size, kernel_size),
        dilation=(dilation, dilation),
        padding_mode="zeros" if dilation % 8 else "circular",
    )
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


# Around the block sizes of channels; the gradients' route changes between 4 and 5.
CHANNEL_COUNTS = [1, 4, 5, 65] if INTERPRETED else [1, 3, 4, 5, 63, 64, 65]


@pytest.mark.parametrize("channel_filter", ["none", "image", "pixel"])
@pytest.mark.parametrize("channels", CHANNEL_COUNTS)
def test_channel_counts(channels: int, channel_filter: str, device: str) -> None:
    case = Case(channels=channels, channel_filter=channel_filter, size=(2, 3), kernel_size=(1, 2))
    case = case.with_dtype(torch.float32)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("channels", [3, 5])
@pytest.mark.parametrize("channel_filter", ["none", "image", "pixel"])
def test_several_tiles_with_an_interior(channels: int, channel_filter: str, device: str) -> None:
    # Tiles (of up to 16 x 64 pixels) that read beyond no border take a variant of their own.
    size, kernel_size = ((18, 67), (2, 2)) if INTERPRETED else ((37, 523), (3, 3))
    case = Case(
        channels=channels, size=size, kernel_size=kernel_size, channel_filter=channel_filter
    ).with_dtype(torch.float32)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16


@pytest.mark.parametrize("channel_filter", ["none", "image", "pixel"])
@pytest.mark.parametrize(
    "dtypes",
    [
        (F64, F64, F64),
        (F16, F16, F16),
        (BF16, BF16, BF16),
        (F32, BF16, BF16),  # the pair that matters: radiance in float32, filters from autocast
        (F32, F16, F32),
        (F16, BF16, F16),  # promoted to float32
        (BF16, F32, BF16),
        (F64, F32, BF16),
        (F32, F32, F64),  # promoted to float64 by the channel filter alone
    ],
    ids=lambda dtypes: "-".join(str(dtype).removeprefix("torch.") for dtype in dtypes),
)
def test_dtypes(dtypes: tuple[torch.dtype, ...], channel_filter: str, device: str) -> None:
    kernel_size = (1, 2) if INTERPRETED else (3, 3)
    case = Case(channels=5, kernel_size=kernel_size, channel_filter=channel_filter, dtypes=dtypes)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_long_sums_of_halves_are_kept_in_float32(dtype: torch.dtype, device: str) -> None:
    # A running sum in bfloat16 would lose a bit with every doubling; here one adds 192 pixels.
    channels = 6 if INTERPRETED else 40
    case = Case(channels=channels, channel_filter="image", size=(12, 16), kernel_size=(1, 2))
    case = case.with_dtype(dtype)
    operands = Operands(*(tensor.abs() for tensor in case.operands(device)))
    check(kpnops.decoupled_filter, case, operands, case.cotangent(device).abs())


@pytest.mark.parametrize("channel_filter", ["none", "image", "pixel"])
@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("channels", [3, 6])
def test_layouts(channels: int, layout: str, channel_filter: str, device: str) -> None:
    case = Case(
        batch=2,
        channels=channels,
        channel_filter=channel_filter,
        size=(3, 5),
        kernel_size=(1, 2) if INTERPRETED else (3, 3),
        groups=3,
    )
    case = case.with_dtype(DTYPES[0])
    operands = Operands(*(arrange(tensor, layout) for tensor in case.operands(device)))
    cotangent = arrange(case.cotangent(device), layout)
    actual = check(kpnops.decoupled_filter, case, operands, cotangent)
    assert has_promised_format(actual["output"], operands.input)
    for name, source in operands._asdict().items():
        if source is not None:
            assert has_promised_format(actual["grad_" + name], source), name


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("layouts", list(product(LAYOUTS[:2], LAYOUTS[:2], LAYOUTS[:2])), ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_formats_follow_each_tensor(layouts: tuple[str, ...], stride: int, device: str) -> None:
    case = Case(batch=2, channels=5, stride=(stride, stride), size=(3, 4), kernel_size=(2, 2))
    case = case.with_dtype(DTYPES[0])
    operands = Operands(*map(arrange, case.operands(device), layouts))
    actual = run_operator(kpnops.decoupled_filter, case, operands, case.cotangent(device))
    assert has_promised_format(actual["output"], operands.input)
    for name, source in operands._asdict().items():
        assert has_promised_format(actual["grad_" + name], source), name


@pytest.mark.parametrize("channel_batch", [0, 1])
@pytest.mark.parametrize("channel_filter", ["none", "image", "pixel"])
def test_no_images(channel_filter: str, channel_batch: int, device: str) -> None:
    case = Case(batch=0, channel_batch=channel_batch, channel_filter=channel_filter)
    # The gradient of a filter that no image has used is zero.
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


def delta(case: Case, device: str) -> torch.Tensor:
    spatial = torch.zeros(case.shapes.spatial_filter, device=device)
    middle = (case.kernel_size[0] - 1) // 2 * case.kernel_size[1] + (case.kernel_size[1] - 1) // 2
    spatial[:, middle :: case.taps] = 1
    return spatial


@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 3), (4, 3), (3, 17)])
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_delta_filter_is_identity(mode: str, kernel_size: tuple[int, int], device: str) -> None:
    case = Case(
        kernel_size=kernel_size, padding_mode=mode, channels=4, groups=2, size=(4, 10)
    ).with_dtype(torch.float32)
    image = case.operands(device).input
    actual = kpnops.decoupled_filter(image, delta(case, device), **case.options)
    assert torch.equal(actual, image)  # nothing rounds


@pytest.mark.parametrize("mode", PADDING_MODES[1:])
def test_normalised_filter_keeps_a_constant_image(mode: str, device: str) -> None:
    case = Case(padding_mode=mode, kernel_size=(3, 4)).with_dtype(torch.float32)
    _, spatial, _ = case.operands(device)
    image = torch.full(case.shapes.input, 0.75, device=device)
    actual = kpnops.decoupled_filter(image, spatial.softmax(1), **case.options)
    # Positive terms: 12 products and 12 sums round once each.
    torch.testing.assert_close(actual, image, rtol=24 * torch.finfo(F32).eps / 2, atol=0)


def test_linear_in_the_image_and_in_the_filter(device: str) -> None:
    case = Case(channels=4).with_dtype(F32)
    image, spatial, channel = case.operands(device)
    expected = kpnops.decoupled_filter(image, spatial, channel)
    # A power of two scales without rounding.
    assert torch.equal(kpnops.decoupled_filter(8 * image, spatial, channel), 8 * expected)
    assert torch.equal(kpnops.decoupled_filter(image, spatial / 4, channel), expected / 4)
    assert torch.equal(kpnops.decoupled_filter(image, spatial, -2 * channel), -2 * expected)


def test_circular_filter_moves_with_its_operands(device: str) -> None:
    case = Case(padding_mode="circular", size=(5, 8)).with_dtype(F32)
    operands = case.operands(device)
    moved = Operands(*(tensor.roll((2, 3), (-2, -1)) for tensor in operands))
    expected = kpnops.decoupled_filter(*operands, **case.options)
    actual = kpnops.decoupled_filter(*moved, **case.options)
    assert torch.equal(actual, expected.roll((2, 3), (-2, -1)))


@pytest.mark.parametrize("name", ["gains per pixel", "add per image", "stride"])
def test_two_runs_give_the_same_bits(name: str, device: str) -> None:
    case = CASES[name].with_dtype(F32)
    operands, cotangent = case.operands(device), case.cotangent(device)
    first = run_operator(kpnops.decoupled_filter, case, operands, cotangent)
    second = run_operator(kpnops.decoupled_filter, case, operands, cotangent)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_options_have_short_forms(device: str) -> None:
    case = Case(stride=(2, 2), dilation=(2, 2)).with_dtype(F32)
    image, spatial, channel = case.operands(device)
    expected = kpnops.decoupled_filter(image, spatial, channel, **case.options)
    actual = kpnops.decoupled_filter(image, spatial, channel, stride=2, dilation=2)
    assert torch.equal(actual, expected)
    actual = kpnops.decoupled_filter(
        image, spatial, channel, kernel_size=3, stride=2, dilation=[2, 2]
    )
    assert torch.equal(actual, expected)


def test_inferred_kernel_size_means_one_group(device: str) -> None:
    # 36 planes could be four groups of 3 x 3, but without kernel_size they are one of 6 x 6.
    case = Case(channels=4, kernel_size=(6, 6), size=(3, 4)).with_dtype(F32)
    image, spatial, channel = case.operands(device)
    expected = kpnops.decoupled_filter(image, spatial, channel, kernel_size=6)
    assert torch.equal(kpnops.decoupled_filter(image, spatial, channel), expected)


def test_rank_tells_channel_filters_apart_where_all_sizes_are_equal(device: str) -> None:
    image, spatial = torch.randn(1, 4, 4, 4, device=device), torch.randn(1, 4, 4, 4, device=device)
    for channel_filter in ("image", "pixel"):
        case = Case(channels=4, size=(4, 4), kernel_size=(2, 2), channel_filter=channel_filter)
        case = case.with_dtype(F32)
        check(
            kpnops.decoupled_filter,
            case,
            Operands(image, spatial, case.operands(device).channel_filter),
            case.cotangent(device),
        )


def test_autocast_casts_nothing(device: str) -> None:
    case = Case(dtypes=(F32, BF16, BF16))
    operands = case.operands(device)
    expected = kpnops.decoupled_filter(*operands)
    with torch.autocast(device, torch.bfloat16):
        actual = kpnops.decoupled_filter(*operands)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_image_of_two_million_pixels(kernel_size: int, device: str) -> None:
    # Strips of a bounded workspace; an expanded filter is a depthwise convolution.
    image = torch.rand(1, 1, 1500, 1401, device=device)
    kernel = torch.rand(1, 1, kernel_size, kernel_size, device=device)
    spatial = kernel.reshape(1, -1, 1, 1).expand(-1, -1, *image.shape[2:])
    actual = kpnops.decoupled_filter(image, spatial)
    expected = F.conv2d(image.double(), kernel.double(), padding=kernel_size // 2)
    # All terms are positive: at most one rounding for each product and each sum.
    rounding = 2 * kernel_size**2 * torch.finfo(F32).eps / 2
    torch.testing.assert_close(actual.double(), expected, rtol=rounding, atol=0)
