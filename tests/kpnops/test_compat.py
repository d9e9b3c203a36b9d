"""`kpnops.compat.ddf` against the formula of DDF's call, written independently."""

import inspect

import pytest
import torch

import kpnops
from kpnops.compat import ddf
from tests import ddf_formulas
from tests.helpers import COMPILED_ROUTES, FLOAT64_BUDGET, Expected, compare, to_numpy


def problem(channels=3, size=(7, 9), kernel_size=3, stride=1, rounding="floor", batch=2):
    """Features, channel filter, spatial filter and a cotangent."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    height, width = (n // stride if rounding == "floor" else -(-n // stride) for n in size)
    return (
        random(batch, channels, *size),
        random(batch, channels, kernel_size, kernel_size),
        random(batch, kernel_size**2, height, width),
        random(batch, channels, height, width),
    )


def with_gradients(function, tensors, cotangent, arguments):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = function(*leaves, *arguments)
    return [output, *torch.autograd.grad(output, leaves, cotangent)]


def check(tensors, cotangent, *arguments, device="cpu"):
    """Output and all gradients of the call, given by position, against the formula's."""
    expected = with_gradients(ddf_formulas.ddf, tensors, cotangent, arguments)
    absolute = [tensor.abs() for tensor in tensors]
    magnitudes = with_gradients(ddf_formulas.ddf, absolute, cotangent.abs(), arguments)
    moved = [tensor.to(device) for tensor in tensors]
    actual = with_gradients(ddf, moved, cotangent.to(device), arguments)
    for name, one, exact, magnitude in zip(
        ("output", "features", "channel_filter", "spatial_filter"),
        actual,
        expected,
        magnitudes,
        strict=True,
    ):
        compare(one, Expected(to_numpy(exact), to_numpy(magnitude), FLOAT64_BUDGET), name)


def test_takes_the_arguments_of_ddf_in_their_order():
    parameters = inspect.signature(ddf).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == {
        "features": inspect.Parameter.empty,
        "channel_filter": inspect.Parameter.empty,
        "spatial_filter": inspect.Parameter.empty,
        "kernel_size": 3,
        "dilation": 1,
        "stride": 1,
        "kernel_combine": "mul",
        "version": "",
    }
    assert list(parameters) == [
        *("features", "channel_filter", "spatial_filter", "kernel_size"),
        *("dilation", "stride", "kernel_combine", "version"),
    ]


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(7, 9), (8, 6), (8, 9)])
def test_equals_the_formula(size, stride, combine, device):
    *tensors, cotangent = problem(size=size, stride=stride)
    check(tensors, cotangent, 3, 1, stride, combine, device=device)


@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize("dilation", range(1, 10))  # there 8 and more end the process
def test_any_dilation(dilation, combine):
    *tensors, cotangent = problem(stride=2)
    check(tensors, cotangent, 3, dilation, 2, combine)


@pytest.mark.parametrize("channels", [1, 3, 4, 5])
@pytest.mark.parametrize("kernel_size", [1, 2, 5, 15])  # there odd and below 15
def test_any_kernel_size_and_number_of_channels(kernel_size, channels):
    *tensors, cotangent = problem(channels, kernel_size=kernel_size, size=(4, 6))
    check(tensors, cotangent, kernel_size, 1, 1, "mul")


@pytest.mark.parametrize("combine", ["mul", "add"])
def test_takes_the_size_that_a_strided_convolution_gives(combine):
    *tensors, cotangent = problem(size=(7, 9), stride=2, rounding="ceil")
    assert tensors[2].shape[2:] == (4, 5)  # there only (3, 4)
    check(tensors, cotangent, 3, 1, 2, combine)


def test_one_channel_filter_for_all_images():
    features, channel, spatial, _ = problem()
    expected = ddf(features, channel[:1].expand(2, -1, -1, -1), spatial)
    assert torch.equal(ddf(features, channel[:1], spatial), expected)


def test_no_images():
    features, channel, spatial, _ = problem(batch=0)
    assert ddf(features, channel, spatial).shape == features.shape


@pytest.mark.parametrize("version", ["f", "o"])
def test_version_has_no_effect(version):
    features, channel, spatial, _ = problem()
    expected = ddf(features, channel, spatial)
    assert torch.equal(ddf(features, channel, spatial, 3, 1, 1, "mul", version), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays(dtype):  # there float16 becomes float32, and bfloat16 fails
    tensors = [tensor.to(dtype) for tensor in problem()[:3]]
    assert ddf(*tensors).dtype == dtype


def test_carafe_and_depthwise_filters_as_ddf_users_build_them():
    features, channel, spatial, _ = problem()
    plain = kpnops.kernel_filter(features, spatial)
    torch.testing.assert_close(ddf(features, torch.ones_like(channel), spatial), plain)
    no_channel = ddf(features, torch.zeros_like(channel), spatial, 3, 1, 1, "add")
    torch.testing.assert_close(no_channel, plain)
    depthwise = kpnops.decoupled_filter(features, None, channel.flatten(2))
    torch.testing.assert_close(ddf(features, channel, torch.ones_like(spatial)), depthwise)
    no_spatial = ddf(features, channel, torch.zeros_like(spatial), 3, 1, 1, "add")
    torch.testing.assert_close(no_spatial, depthwise)


def test_derivatives_of_any_order():  # there the second is dropped and nothing says so
    *tensors, _ = problem(channels=2, size=(3, 4), batch=1)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    for combine in ("mul", "add"):
        arguments = (3, 1, 1, combine)
        assert torch.autograd.gradcheck(lambda *t, a=arguments: ddf(*t, *a), leaves)
        assert torch.autograd.gradgradcheck(lambda *t, a=arguments: ddf(*t, *a), leaves)


def test_compiles_into_one_graph():
    torch.compiler.reset()
    tensors = problem(stride=2)[:3]
    compiled = torch.compile(ddf, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*tensors, 3, 1, 2, "add"), ddf(*tensors, 3, 1, 2, "add"))
    torch.compiler.reset()


def test_modules_are_where_the_call_is():
    assert kpnops.compat.DDFPack is kpnops.nn.DDFPack
    assert kpnops.compat.DDFUpPack is kpnops.nn.DDFUpPack
    assert kpnops.compat.FilterNorm is kpnops.nn.FilterNorm


@pytest.mark.parametrize(
    ("error", "name", "changes"),
    [
        (TypeError, "features", {"features": None}),
        (TypeError, "features", {"features": torch.ones(2, 3, 7, 9, dtype=torch.int32)}),
        (ValueError, "features", {"features": torch.rand(3, 7, 9)}),
        (ValueError, "features", {"features": torch.rand(2, 3, 0, 9)}),
        (TypeError, "channel_filter", {"channel_filter": None}),
        (ValueError, "channel_filter", {"channel_filter": torch.rand(2, 3, 9)}),
        (ValueError, "channel_filter", {"channel_filter": torch.rand(2, 3, 5, 5)}),
        (ValueError, "channel_filter", {"channel_filter": torch.rand(3, 3, 3, 3)}),
        (ValueError, "channel_filter", {"channel_filter": torch.rand(2, 9, 7, 9)}),  # swapped
        (TypeError, "spatial_filter", {"spatial_filter": None}),
        (ValueError, "spatial_filter", {"spatial_filter": torch.rand(2, 25, 7, 9)}),
        (ValueError, "spatial_filter", {"stride": 2}),
        (ValueError, "kernel_size", {"kernel_size": 0}),
        (ValueError, "dilation", {"dilation": 0}),
        (TypeError, "stride", {"stride": 1.0}),
        (ValueError, "kernel_combine", {"kernel_combine": "max"}),
        (ValueError, "kernel_combine", {"kernel_combine": 1}),  # what DDFUpPack passes there
        (ValueError, "version", {"version": "mul"}),
        (ValueError, "version", {"version": None}),
    ],
)
def test_errors_name_the_argument(error, name, changes):
    arguments = {
        "features": torch.rand(2, 3, 7, 9),
        "channel_filter": torch.rand(2, 3, 3, 3),
        "spatial_filter": torch.rand(2, 9, 7, 9),
    }
    with pytest.raises(error, match=f"^{name}: "):
        ddf(**arguments | changes)
