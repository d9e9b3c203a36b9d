"""The fast kernels by what their tiles are made of: widths that decide how many pixels are loaded
at once, tensors that lie differently, tiles with and without a border, channels shared out."""

import pytest
import torch

import kpnops
from tests.helpers import INTERPRETED, Case, Operands, arrange, check

pytestmark = [
    pytest.mark.usefixtures("poisoned_allocations"),
    # The interpreter computes with NumPy, which warns of what the infinite gain does.
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]

# rows begin at odd offsets, at even ones, at multiples of 16
WIDTHS = [67, 66, 80]
FORMS = ["none", "image", "pixel"]
OTHERS = ["replicate", "circular"]
slow_when_interpreted = pytest.mark.slow if INTERPRETED else ()


def run(case: Case, device: str) -> None:
    case = case.with_dtype(torch.float32)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize(("width", "channels"), [(66, 5), (80, 2)])
def test_two_pixels_at_once(width: int, channels: int, device: str) -> None:
    """Tiles with an interior, whose top left one reads beyond no border: 2 x 2 taps reach down and
    right."""
    run(Case(channels=channels, size=(18, width), kernel_size=(2, 2)), device)


@pytest.mark.slow
@pytest.mark.parametrize("normalize", [None, "softmax"])
@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize("channel_filter", FORMS)
@pytest.mark.parametrize("channels", [2, 5])
@pytest.mark.parametrize("width", WIDTHS)
def test_two_pixels_at_once_in_every_form(
    width: int, channels: int, channel_filter: str, combine: str, normalize: str, device: str
) -> None:
    run(
        Case(
            channels=channels,
            size=(18, width),
            kernel_size=(2, 3),
            channel_filter=channel_filter,
            combine=combine,
            normalize=normalize,
        ),
        device,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 3), (4, 5), (2, 9)], ids=str)
@pytest.mark.parametrize("width", [131, 130, 144])
@pytest.mark.parametrize("channels", [2, 5])
def test_tiles_on_all_sides_of_one_with_no_border(
    channels: int, width: int, kernel_size: tuple[int, int], device: str
) -> None:
    run(Case(channels=channels, size=(35, width), kernel_size=kernel_size), device)


@pytest.mark.parametrize(
    "padding_mode",
    ["reflect", *(pytest.param(name, marks=slow_when_interpreted) for name in OTHERS)],
)
@pytest.mark.parametrize("channels", [2, pytest.param(5, marks=slow_when_interpreted)])
def test_other_paddings_with_two_pixels_at_once(
    channels: int, padding_mode: str, device: str
) -> None:
    case = Case(channels=channels, size=(4, 6), kernel_size=(2, 3), padding_mode=padding_mode)
    run(case, device)


@pytest.mark.parametrize(
    "channels",
    [2, pytest.param(5, marks=slow_when_interpreted)],
)
@pytest.mark.parametrize("odd_one", Operands._fields)
def test_one_tensor_that_lies_differently(odd_one: str, channels: int, device: str) -> None:
    """Offsets are shared, and pixels loaded two at a time, only if all tensors allow it."""
    case = Case(channels=channels, size=(4, 6), kernel_size=(2, 2)).with_dtype(torch.float32)
    operands = case.operands(device)
    tensor = arrange(getattr(operands, odd_one), "channels_last")
    operands = operands._replace(**{odd_one: tensor})
    check(kpnops.decoupled_filter, case, operands, case.cotangent(device))


@pytest.mark.parametrize(("channels", "groups"), [(24, 1), (26, 2)])
def test_channels_shared_out_among_programs(channels: int, groups: int, device: str) -> None:
    """One tile: chunks of 4 of 24 channels, and of 1 of 13."""
    run(Case(channels=channels, groups=groups, size=(2, 6), kernel_size=(1, 2)), device)


def test_an_infinite_gain_in_a_later_chunk_of_channels(device: str) -> None:
    """The chunk is computed once more, and no other."""
    case = Case(channels=12, size=(2, 6), kernel_size=(1, 2)).with_dtype(torch.float32)
    operands = case.operands(device)
    operands.channel_filter[0, 9, 1, 2] = torch.inf
    check(kpnops.decoupled_filter, case, operands, case.cotangent(device))
