"""Values at the ends of the number range: NaN, infinities, and radiance over eleven decades.

What is not finite follows the definition, in the output and in all gradients: it reaches exactly
the pixels whose taps read it, and infinity times a padded zero is NaN.
"""

import math

import pytest
import torch

import kpnops
from tests.helpers import COMPILED_ROUTES, INTERPRETED, Case, Operands, check

pytestmark = [
    pytest.mark.usefixtures("poisoned_allocations"),
    # The interpreter computes with NumPy, which warns of what these tests do on purpose.
    pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning"),
]

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
DTYPE = F32 if INTERPRETED else F64

NON_FINITE = {
    # where it is put: element index; what is put there
    "NaN in the image": ("input", (0, 1, 2, 2), math.nan),
    "inf in the image": ("input", (0, 2, 0, 6), math.inf),
    "-inf in the image": ("input", (0, 0, 4, 0), -math.inf),
    "NaN in a tap": ("spatial_filter", (0, 3, 2, 4), math.nan),
    "inf in a tap over the border": ("spatial_filter", (0, 0, 0, 0), math.inf),
    "inf in a tap inside": ("spatial_filter", (0, 0, 2, 3), math.inf),
    "NaN in a gain": ("channel_filter", (0, 1, 3, 6), math.nan),
    "inf in a gain at the border": ("channel_filter", (0, 1, 0, 3), math.inf),
    "inf in a gain inside": ("channel_filter", (0, 1, 2, 3), math.inf),
    "NaN in the gradient": ("cotangent", (0, 1, 4, 3), math.nan),
    "inf in the gradient at the border": ("cotangent", (0, 2, 4, 6), math.inf),
    "-inf in the gradient inside": ("cotangent", (0, 0, 2, 2), -math.inf),
}


# Two routes on a GPU and in the interpreter: circular padding folds the gradient at the border.
@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("place", NON_FINITE)
def test_not_a_number_follows_the_definition(place: str, mode: str, device: str) -> None:
    name, index, value = NON_FINITE[place]
    case = Case(padding_mode=mode, kernel_size=(2, 3)).with_dtype(DTYPE)
    operands, cotangent = case.operands(device), case.cotangent(device)
    target = cotangent if name == "cotangent" else getattr(operands, name)
    target[index] = value
    # The gradient of a per-pixel gain is the incoming one times the sum over the taps: infinity
    # times that sum, not a sum of infinities of both signs. Either is accepted there, and only
    # there.
    either = ("grad_channel_filter",) if name == "cotangent" and math.isinf(value) else ()
    actual = check(kpnops.decoupled_filter, case, operands, cotangent, infinite_or_nan=either)
    assert not all(bool(tensor.isfinite().all()) for tensor in actual.values())
    assert all(bool(tensor.isfinite().any()) for tensor in actual.values())


INFINITE_GAINS = {
    "fast": {},
    "fast, many channels": {"channels": 5},
    "fast, groups": {"channels": 6, "groups": 3},
    "one for the batch": {"batch": 2, "channel_batch": 1},
    "strided": {"stride": (2, 2), "size": (5, 7)},
    "upsampled": {"scale_factor": 2, "size": (2, 4)},
    "softmax": {"normalize": "softmax"},
    "softmax, dilated": {"normalize": "softmax", "dilation": (2, 1)},
    "add": {"combine": "add"},
    "add, many channels": {"combine": "add", "channels": 5},
}


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("name", INFINITE_GAINS)
def test_an_infinite_gain_is_in_each_term(name: str, value: float, device: str) -> None:
    # F = S Ch comes first, then the sum over the taps: infinities of both signs are NaN, and so is
    # infinity over a padded zero. Infinity times the sum would be infinity.
    options = {"size": (4, 4), "kernel_size": (2, 3)} | INFINITE_GAINS[name]
    case = Case(**options).with_dtype(DTYPE)
    operands, cotangent = case.operands(device), case.cotangent(device)
    channel = operands.channel_filter
    channel[..., 0, 0] = channel[..., 1, 2] = channel[..., 1, 1] = value
    operands.spatial_filter[..., 1, 2].abs_()
    operands.input.abs_()  # all taps inside and terms of one sign: there the sum is infinite
    actual = check(kpnops.decoupled_filter, case, operands, cotangent)
    assert bool(actual["output"].isnan().any())
    assert bool(actual["output"].isinf().any())
    assert bool(actual["output"].isfinite().any())


@pytest.mark.parametrize("options", [{}, {"dilation": (2, 2)}], ids=["fast", "general"])
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_an_infinite_tap_weight(combine: str, options: dict, device: str) -> None:
    # In grad_input a tap that no output reads through must add nothing, though its weight is inf.
    case = Case(channel_filter="image", combine=combine, **options).with_dtype(DTYPE)
    operands, cotangent = case.operands(device), case.cotangent(device)
    operands.channel_filter[0, 0, 0] = math.inf
    check(kpnops.decoupled_filter, case, operands, cotangent)


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("place", NON_FINITE)
def test_the_reference_follows_the_definition(place: str, device: str) -> None:
    name, index, value = NON_FINITE[place]
    case = Case()
    operands, cotangent = case.operands(device), case.cotangent(device)
    target = cotangent if name == "cotangent" else getattr(operands, name)
    target[index] = value
    check(kpnops.reference.decoupled_filter, case, operands, cotangent)


@pytest.mark.parametrize("options", [{}, {"stride": (2, 2)}, {"dilation": (2, 2)}], ids=str)
@pytest.mark.parametrize("channels", [3, 5] if INTERPRETED else [3, 17])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_a_number_in_every_lane(
    value: float, channels: int, options: dict, device: str
) -> None:
    # A row long enough that neighbours sit in other vectors, one bad value every 8 pixels.
    case = Case(channels=channels, channel_filter="image", size=(1, 40), **options)
    case = case.with_dtype(torch.float32)
    operands, cotangent = case.operands(device), case.cotangent(device)
    operands.input[:, 1, :, 3::8] = value
    cotangent[:, 2, :, 1::8] = value
    check(kpnops.decoupled_filter, case, operands, cotangent)


@pytest.mark.parametrize(
    "dtypes", [(F32, F32, F32), (F32, BF16, BF16), (BF16, BF16, BF16), (F16, F16, F16)], ids=str
)
@pytest.mark.parametrize("channel_filter", ["image", "pixel"])
def test_radiance_from_a_millionth_to_the_sun(
    channel_filter: str, dtypes: tuple[torch.dtype, ...], device: str
) -> None:
    case = Case(channel_filter=channel_filter, dtypes=dtypes, size=(5, 9))
    image, spatial, channel = case.operands(device)
    exponents = torch.linspace(-6, math.log10(6e4), image.numel(), dtype=F64)
    order = torch.randperm(image.numel(), generator=torch.Generator().manual_seed(3))
    image = (10 ** exponents[order]).reshape(image.shape).to(image)
    operands = Operands(image, spatial.softmax(1), channel.sigmoid())
    check(kpnops.decoupled_filter, case, operands, case.cotangent(device))
