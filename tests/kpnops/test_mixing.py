"""Mixing matrices: a 5-D channel filter ``(B or 1, Co, C, Ho, Wo)``, one matrix for each pixel."""

import math

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


def mixing(**options) -> Case:
    small = {"size": (2, 3), "kernel_size": (2, 2)} if INTERPRETED else {"size": (3, 5)}
    return Case(channel_filter="mix", **(small | options))


CASES = {
    "square": mixing(),
    "fewer channels": mixing(channels=5, output_channels=2),
    "more channels": mixing(channels=2, output_channels=5),
    "batch": mixing(batch=2, output_channels=2),
    "one matrix for the batch": mixing(batch=2, channel_batch=1, output_channels=4),
    "groups": mixing(channels=6, groups=3, output_channels=3),
    "a group for each channel": mixing(channels=5, groups=5, output_channels=1),
    "softmax": mixing(normalize="softmax", channels=4, groups=2, output_channels=3),
    "softmax, one matrix for the batch": mixing(normalize="softmax", batch=2, channel_batch=1),
    "scale factor": mixing(scale_factor=2, size=(2, 2), output_channels=2),
    "everything": mixing(
        scale_factor=2,
        size=(2, 2),
        normalize="softmax",
        channels=4,
        groups=2,
        output_channels=3,
        batch=2,
        channel_batch=1,
        padding_mode="circular",
    ),
    "stride": mixing(stride=(2, 3), size=(5, 4)),
    "stride, rounded down": mixing(stride=(2, 2), rounding=("floor", "floor"), size=(5, 3)),
    "dilation": mixing(dilation=(2, 3), kernel_size=(2, 3)),
    "one pixel": mixing(size=(1, 1), output_channels=2),
    "one tap": mixing(kernel_size=(1, 1), channels=4, output_channels=2),
    "even kernel": mixing(kernel_size=(2, 4)),
    "replicate": mixing(padding_mode="replicate", kernel_size=(3, 2)),
    "reflect": mixing(padding_mode="reflect", size=(2, 3), output_channels=4),
    "circular, softmax": mixing(padding_mode="circular", normalize="softmax"),
    "beyond the fast path": mixing(kernel_size=(5, 11), size=(2, 2)),
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


COUNTS = [1, 3, 5, 32]


@pytest.mark.parametrize("output_channels", [1, 5, 32] if INTERPRETED else COUNTS)
@pytest.mark.parametrize("channels", [1, 5, 32] if INTERPRETED else COUNTS)
def test_channel_counts(channels: int, output_channels: int, device: str) -> None:
    case = mixing(
        channels=channels, output_channels=output_channels, size=(2, 3), kernel_size=(1, 2)
    ).with_dtype(F32)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("channel_batch", [None, 1])
@pytest.mark.parametrize("normalize", [None, "softmax"])
def test_paddings(normalize: str | None, channel_batch: int | None, mode: str, device: str) -> None:
    case = mixing(
        channels=4,
        output_channels=3,
        groups=2,
        batch=2,
        channel_batch=channel_batch,
        padding_mode=mode,
        normalize=normalize,
        size=(4, 5),
    ).with_dtype(F32)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
def test_over_several_tiles(device: str) -> None:
    case = mixing(size=(9, 300), kernel_size=(3, 3), channels=4, output_channels=6).with_dtype(F32)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


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
def test_dtypes(dtypes: tuple[torch.dtype, ...], device: str) -> None:
    case = mixing(channels=5, output_channels=2, kernel_size=(1, 3), dtypes=dtypes)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_layouts(layout: str, device: str) -> None:
    case = mixing(batch=2, channels=4, output_channels=3, size=(2, 3)).with_dtype(DTYPE)
    operands = Operands(*(arrange(tensor, layout) for tensor in case.operands(device)))
    cotangent = arrange(case.cotangent(device), layout)
    actual = check(kpnops.decoupled_filter, case, operands, cotangent)
    assert has_promised_format(actual["output"], operands.input)
    for name, source in operands._asdict().items():
        assert has_promised_format(actual["grad_" + name], source), name


@pytest.mark.parametrize("channel_batch", [0, 1])
def test_no_images(channel_batch: int, device: str) -> None:
    case = mixing(batch=0, channel_batch=channel_batch, output_channels=2)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
def test_identity_matrix_changes_nothing(stride: tuple[int, int], device: str) -> None:
    # Whole numbers: every order of summation is exact.
    case = mixing(channels=4, groups=2, stride=stride).with_dtype(F32)
    image, spatial, matrix = (tensor.round() for tensor in case.operands(device))
    identity = torch.eye(4, device=device).reshape(1, 4, 4, 1, 1).expand_as(matrix)
    expected = kpnops.decoupled_filter(image, spatial, **case.options)
    assert torch.equal(kpnops.decoupled_filter(image, spatial, identity, **case.options), expected)


def test_diagonal_matrix_is_a_gain(device: str) -> None:
    case = mixing(channels=3, batch=2).with_dtype(F32)
    image, spatial, _ = (tensor.round() for tensor in case.operands(device))
    gain = torch.randint(-4, 5, (2, 3, *case.output_size), device=device).float()
    matrix = torch.diag_embed(gain.movedim(1, -1)).movedim((-2, -1), (1, 2))
    expected = kpnops.decoupled_filter(image, spatial, gain, **case.options)
    assert torch.equal(kpnops.decoupled_filter(image, spatial, matrix, **case.options), expected)


def test_rank_tells_it_from_a_gain_where_all_sizes_are_equal(device: str) -> None:
    case = mixing(batch=2, channels=2, size=(2, 2), kernel_size=(1, 1)).with_dtype(F32)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


def test_two_runs_give_the_same_bits(device: str) -> None:
    case = CASES["everything"].with_dtype(F32)
    operands, cotangent = case.operands(device), case.cotangent(device)
    first = run_operator(kpnops.decoupled_filter, case, operands, cotangent)
    second = run_operator(kpnops.decoupled_filter, case, operands, cotangent)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["input", "spatial_filter", "channel_filter", "cotangent"])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_not_a_number_follows_the_definition(name: str, value: float, device: str) -> None:
    # The matrix is applied to the sum over the taps: infinity there is infinity times that sum.
    case = mixing(channels=5, output_channels=3, size=(3, 4), kernel_size=(2, 2)).with_dtype(DTYPE)
    operands, cotangent = case.operands(device), case.cotangent(device)
    target = cotangent if name == "cotangent" else getattr(operands, name)
    target.flatten(0, -3)[1, 1, 2] = value
    actual = check(kpnops.decoupled_filter, case, operands, cotangent)
    assert not all(bool(tensor.isfinite().all()) for tensor in actual.values())
    assert all(bool(tensor.isfinite().any()) for tensor in actual.values())
