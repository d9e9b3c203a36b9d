"""The banded products on tensor cores: which calls take them, and what they compute.

Their launches are compiled in ``test_band_compiled.py``.
"""

import functools
import math
from itertools import product

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: there are no kernels")

import kpnops
from kpnops._decoupled_filter import launch_band
from tests.helpers import (
    INTERPRETED,
    ON_GPU,
    ON_INTERPRETER,
    Case,
    Operands,
    arrange,
    check,
    compare,
    expected_results,
    run_operator,
)
from tests.helpers_plans import plans

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
ON_KERNELS = pytest.mark.parametrize("device", [ON_INTERPRETER, ON_GPU], indirect=True)
# The interpreter computes with NumPy, which warns of what some tests do on purpose.
NON_FINITE = pytest.mark.filterwarnings(
    "ignore:(invalid value|overflow) encountered:RuntimeWarning"
)


def names(launches):
    return [launch.kernel.__name__.strip("_") for launch in launches]


def both(shape, **options):
    forward, backward = plans(shape, **options)
    return names(forward), names(backward)


FORWARD, FILTERS = "band_fwd_kernel", "band_bwd_filters_kernel"


@pytest.mark.parametrize(
    ("options", "backward"),
    [
        ({"kernel_size": (3, 3)}, [FORWARD, FILTERS, FORWARD]),
        ({"kernel_size": (3, 3), "form": "none", "dtype": F16}, [FORWARD, FILTERS]),
        # in float16 two terms have not the range for the product of gradient and gain
        ({"kernel_size": (3, 3), "dtype": F16}, ["tile_fwd_kernel", "tile_bwd_filters_kernel"]),
        ({"kernel_size": (7, 7)}, [FORWARD, FILTERS, FORWARD]),
        ({"kernel_size": (17, 17)}, [FORWARD, FILTERS, FORWARD]),
        (
            {"kernel_size": (3, 3), "softmax": True},
            ["softmax_statistics_kernel", FORWARD, FILTERS, FORWARD],
        ),
        ({"kernel_size": (3, 3), "form": "shared"}, ["gather_fwd_kernel", FORWARD, FILTERS]),
        (
            {"kernel_size": (3, 3), "padding_mode": "reflect"},
            [FORWARD] + 8 * ["gather_bwd_input_kernel"] + [FILTERS, FORWARD],
        ),
    ],
    ids=str,
)
def test_sixteen_bits_and_many_channels_take_banded_products(options, backward):
    assert both((2, 64, 40, 300), **({"dtype": BF16} | options)) == ([FORWARD], backward)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": F32},
        {"shape": (1, 15, 40, 300)},
        {"shape": (1, 30, 40, 300), "groups": 2},
        {"kernel_size": (1, 1)},
        {"kernel_size": (3, 18)},
        {"stride": (2, 1)},
        {"dilation": (1, 2)},
        {"form": "image"},
        {"combine": "add"},
        {"dtype": F16, "softmax": True},
        {"form": "mix"},
    ],
    ids=str,
)
def test_everything_else_does_not(options):
    options = {"shape": (1, 64, 40, 300), "kernel_size": (3, 3), "dtype": BF16} | options
    forward, backward = both(options.pop("shape"), **options)
    assert not any(name == FORWARD for name in forward)
    if options.get("form") != "mix":
        assert not any(name.startswith("band") for name in backward)


def test_dtypes_decide():
    """The gains may have any dtype, but two terms of a probability are short of a float32
    result."""
    from kpnops._decoupled_filter.call import Call
    from kpnops._decoupled_filter.geometry import Window

    def call(input, spatial, gain, softmax=False, double=False):
        def meta(channels, dtype):
            return torch.empty(1, channels, 8, 8, dtype=dtype, device="meta")

        tensors = (meta(16, input), meta(9, spatial), meta(16, gain))
        return Call(*tensors, Window((3, 3)), "mul", softmax, double)

    assert launch_band.is_banded(call(BF16, BF16, F32))
    assert launch_band.is_banded(call(BF16, BF16, BF16, softmax=True))
    assert not launch_band.is_banded(call(BF16, BF16, F32, softmax=True))
    assert not launch_band.is_banded(call(BF16, F16, BF16))
    assert not launch_band.is_banded(call(F32, BF16, BF16))
    assert not launch_band.is_banded(call(BF16, BF16, torch.float64))
    assert not launch_band.is_banded(call(BF16, BF16, BF16, double=True))


@pytest.mark.parametrize("channels", [16, 17, 33, 64, 200])
@pytest.mark.parametrize("kernel_size", [(2, 1), (3, 3), (7, 7), (11, 11), (17, 17)], ids=str)
def test_a_program_unrolls_no_more_than_compiles_in_seconds(kernel_size, channels):
    for terms in (1, 2, 4):
        config = launch_band.forward_launch(kernel_size, channels, terms)
        unrolled = config.rows * kernel_size[0] * terms
        assert config.ahead == 0 or unrolled <= launch_band.MAX_UNROLLED_PRODUCTS
        assert config.num_warps * 16 == config.block_c
        assert config.block_c < 2 * channels
    for softmax, padding_mode in product((False, True), ("zeros", "reflect")):
        config = launch_band.filters_launch(kernel_size, channels, softmax, padding_mode)
        assert 1 <= config.rows <= kernel_size[0]


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True)]
)
@pytest.mark.parametrize("kernel_size", [(3, 3), (17, 3)], ids=str)
def test_only_what_is_asked_for_is_computed(needs, kernel_size):
    _, backward = plans((1, 64, 16, 16), dtype=BF16, kernel_size=kernel_size, needs=needs)
    assert names(backward) == [FILTERS if needs[1] else FORWARD]
    assert backward[0].constants.get("TRANSPOSED", False) == needs[0]


def test_statistics_hold_the_sum_over_taps_where_programs_do_not():
    for size, with_delta in (3, False), (9, True):
        options = {"dtype": BF16, "softmax": True, "kernel_size": (size, size)}
        _, backward = plans((1, 64, 40, 40), **options)
        assert backward[0].constants["WITH_DELTA"] == with_delta


def band_case(dtypes=(BF16, BF16, BF16), **options):
    return Case(**({"channels": 16, "size": (5, 19)} | options), dtypes=dtypes)


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that calls launch."""
    from kpnops._decoupled_filter import triton_backend

    found = []

    def note(plan, *arguments):
        result = plan(*arguments)
        found.extend(names(result.launches))
        return result

    for name in ("plan_forward", "plan_backward"):
        plan = getattr(triton_backend, name)
        monkeypatch.setattr(triton_backend, name, functools.partial(note, plan))
    return found


def run_check(case, device, launched, operands=None, **options):
    operands = case.operands(device) if operands is None else operands
    results = check(kpnops.decoupled_filter, case, operands, case.cotangent(device), **options)
    assert FORWARD in launched
    return results


@ON_KERNELS
@pytest.mark.usefixtures("poisoned_allocations")
@pytest.mark.parametrize(
    "case",
    [
        band_case(),
        band_case((F16,) * 3, channels=17, kernel_size=(2, 3), channel_filter="none"),
        band_case(size=(4, 17), kernel_size=(3, 2), padding_mode="reflect"),
    ],
    ids=str,
)
def test_output_and_gradients(case, device, launched):
    run_check(case, device, launched)


@pytest.mark.slow
@ON_KERNELS
@pytest.mark.usefixtures("poisoned_allocations")
@pytest.mark.parametrize(
    "case",
    [
        band_case(channels=17, kernel_size=(4, 5), size=(9, 33)),
        band_case(channels=64, kernel_size=(5, 5), size=(10, 49)),
        band_case(channels=34, groups=2, kernel_size=(5, 4)),
        band_case(channels=128, groups=2, kernel_size=(3, 3), size=(2, 1)),
        band_case((BF16, BF16, F32), kernel_size=(3, 5)),
        band_case((F16, F16, F32), kernel_size=(3, 5)),
        band_case((F16,) * 3, channels=33),
        band_case(batch=2, channel_batch=1),
        band_case(kernel_size=(2, 1)),
        band_case(kernel_size=(1, 9)),
        band_case(kernel_size=(8, 2), size=(3, 7)),
        band_case(kernel_size=(9, 3), size=(19, 18)),
        band_case(kernel_size=(17, 17), size=(3, 35)),
        band_case(kernel_size=(17, 3), size=(18, 17), channel_filter="none"),
        band_case(kernel_size=(2, 10), size=(2, 18), padding_mode="replicate"),
        band_case(channels=18, kernel_size=(4, 5), padding_mode="circular", channel_filter="none"),
        band_case(kernel_size=(5, 17), size=(5, 18), padding_mode="circular"),
        band_case(channels=17, kernel_size=(5, 3), padding_mode="replicate"),
        band_case(channels=17, kernel_size=(4, 5), normalize="softmax"),
        band_case(kernel_size=(9, 3), normalize="softmax", channel_filter="none"),
        band_case(kernel_size=(17, 2), size=(2, 18), normalize="softmax"),
        band_case(kernel_size=(3, 3), normalize="softmax", padding_mode="reflect"),
        band_case(channels=80, kernel_size=(3, 3)),
        # gains above: this backward takes a float32 gradient, before the mixing
        band_case(channel_filter="mix", output_channels=3, kernel_size=(3, 2)),
    ],
    ids=str,
)
def test_output_and_gradients_of_more_calls(case, device, launched):
    if case.channel_filter == "mix":
        check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))
        assert FILTERS in launched
    else:
        run_check(case, device, launched)


@pytest.mark.slow
@ON_KERNELS
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced", "expanded"])
def test_strides(layout, device, launched):
    case = band_case(channels=17, kernel_size=(3, 4))
    operands = Operands(*(arrange(tensor, layout) for tensor in case.operands(device)))
    run_check(case, device, launched, operands)


@pytest.mark.slow
@ON_KERNELS
@pytest.mark.parametrize("normalize", [None, "softmax"])
@pytest.mark.parametrize(
    "needs_grad", [(True, False, False), (False, True, False), (False, False, True)], ids=str
)
def test_gradients_one_by_one(needs_grad, normalize, device, launched):
    run_check(band_case(normalize=normalize), device, launched, needs_grad=needs_grad)


@ON_KERNELS
@pytest.mark.parametrize(
    "case",
    [
        band_case(kernel_size=(2, 3), size=(3, 17)),
        pytest.param(band_case(kernel_size=(5, 5), channels=33), marks=pytest.mark.slow),
        pytest.param(band_case(kernel_size=(9, 8), normalize="softmax"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_banded_products_and_the_other_kernels_agree(monkeypatch, case, device, launched):
    """Both routes against the oracle on the same call, each within its budget."""
    from kpnops._decoupled_filter import triton_backend

    operands, cotangent = case.operands(device), case.cotangent(device)
    expected = expected_results(case, operands, cotangent)
    for banded in (True, False):
        if not banded:
            monkeypatch.setattr(triton_backend, "is_banded", lambda call: False)
            monkeypatch.setattr(triton_backend, "is_banded_backward", lambda call, grad: False)
        launched.clear()
        actual = run_operator(kpnops.decoupled_filter, case, operands, cotangent)
        assert any(name.startswith("band") for name in launched) == banded
        for name, value in expected.items():
            compare(actual[name], value, name)


def poke(case, device, where, index, value):
    operands, cotangent = case.operands(device), case.cotangent(device)
    target = cotangent if where == "cotangent" else getattr(operands, where)
    target[index] = value
    return operands, cotangent


def check_non_finite(case, where, value, operands, cotangent):
    # as in test_number_range.py: infinity times the sum over the taps, or a sum of infinities
    either = ("grad_channel_filter",) if where == "cotangent" and math.isinf(value) else ()
    actual = check(kpnops.decoupled_filter, case, operands, cotangent, infinite_or_nan=either)
    # a logit of -inf is a probability of 0
    finite = where == "spatial_filter" and case.normalize is not None and value == -math.inf
    assert all(bool(tensor.isfinite().all()) for tensor in actual.values()) == finite
    assert all(bool(tensor.isfinite().any()) for tensor in actual.values())


WHERE = ["input", "spatial_filter", "channel_filter", "cotangent"]


@NON_FINITE
@ON_KERNELS
def test_an_infinite_pixel_reaches_those_that_read_it_only(device, launched):
    case = band_case(size=(1, 17), kernel_size=(1, 3))
    operands, cotangent = poke(case, device, "input", (0, 3, 0, 9), math.inf)
    check_non_finite(case, "input", math.inf, operands, cotangent)
    assert FORWARD in launched


@NON_FINITE
@pytest.mark.slow
@ON_KERNELS
@pytest.mark.parametrize("normalize", [None, "softmax"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", WHERE)
def test_not_a_number_follows_the_definition(where, value, normalize, device, launched):
    case = band_case(normalize=normalize)
    operands, cotangent = poke(case, device, where, (0, 3, 2, 9), value)
    check_non_finite(case, where, value, operands, cotangent)
    assert FILTERS in launched


@NON_FINITE
@pytest.mark.slow
@ON_KERNELS
@pytest.mark.parametrize("padding_mode", ["zeros", "replicate"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("where", ["input", "cotangent"])
def test_not_a_number_in_every_lane(where, value, padding_mode, device, launched):
    """A tile of 16 pixels and one pixel of the next, each in an image of its own."""
    lanes = 17
    case = band_case(batch=lanes, size=(1, 18), kernel_size=(2, 3), padding_mode=padding_mode)
    if padding_mode != "zeros":
        case = band_case(batch=lanes, size=(2, 18), kernel_size=(2, 3), padding_mode=padding_mode)
    images, lane = torch.arange(lanes), torch.arange(lanes)
    operands, cotangent = poke(case, device, where, (images, lane % 16, 0, lane), value)
    check_non_finite(case, where, value, operands, cotangent)
    assert FILTERS in launched


@NON_FINITE
@pytest.mark.slow
@ON_KERNELS
@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("normalize", [None, "softmax"])
def test_an_infinite_gain_is_in_each_term(normalize, value, device, launched):
    case = band_case(size=(4, 4), kernel_size=(2, 3), normalize=normalize)
    operands, cotangent = case.operands(device), case.cotangent(device)
    channel = operands.channel_filter
    channel[..., 0, 0] = channel[..., 1, 2] = channel[..., 1, 1] = value
    operands.spatial_filter[..., 1, 2].abs_()
    operands.input.abs_()
    actual = check(kpnops.decoupled_filter, case, operands, cotangent)
    assert bool(actual["output"].isnan().any())
    assert bool(actual["output"].isinf().any())
    assert bool(actual["output"].isfinite().any())
    assert FORWARD in launched


@NON_FINITE
@pytest.mark.slow
@ON_KERNELS
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("channel_filter", ["none", "pixel"])
def test_radiance_from_a_millionth_to_the_sun(channel_filter, dtype, device, launched):
    case = band_case((dtype,) * 3, channel_filter=channel_filter, size=(5, 9))
    image, spatial, channel = case.operands(device)
    exponents = torch.linspace(-6, math.log10(6e4), image.numel(), dtype=torch.float64)
    order = torch.randperm(image.numel(), generator=torch.Generator().manual_seed(3))
    image = (10 ** exponents[order]).reshape(image.shape).to(image)
    gains = None if channel is None else channel.sigmoid()
    run_check(case, device, launched, Operands(image, spatial.softmax(1), gains))


@pytest.mark.skipif(INTERPRETED, reason="one thread: nothing there could differ from run to run")
@pytest.mark.gpu
def test_runs_are_alike_bit_for_bit():
    case = band_case(channels=64, size=(70, 130), kernel_size=(5, 5), batch=2)
    operands, cotangent = case.operands("cuda"), case.cotangent("cuda")
    first = run_operator(kpnops.decoupled_filter, case, operands, cotangent)
    again = run_operator(kpnops.decoupled_filter, case, operands, cotangent)
    assert all(torch.equal(first[name], again[name]) for name in first)
