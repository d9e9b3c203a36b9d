"""`kpnops.kernel_filter`: the op without a channel filter, argument for argument."""

import inspect

import pytest
import torch
import torch.nn.functional as F

import kpnops
from tests.helpers import FLOAT64_BUDGET, Expected, compare, to_numpy


def shifted_sum(image, weights, offsets):
    """The sum over the taps of weight times shifted image, zero outside."""
    reach = max(abs(offset) for pair in offsets for offset in pair)
    padded = F.pad(image, (reach,) * 4)
    height, width = image.shape[2:]
    out = torch.zeros((), dtype=image.dtype)
    for tap, (dy, dx) in enumerate(offsets):
        rows, columns = (
            slice(reach + dy, reach + dy + height),
            slice(reach + dx, reach + dx + width),
        )
        out = out + weights[:, tap, None] * padded[:, :, rows, columns]
    return out


def test_is_the_sum_over_the_taps_with_all_gradients():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 5, 6, generator=generator, dtype=torch.float64)
    logits = torch.randn(2, 6, 5, 6, generator=generator, dtype=torch.float64)
    cotangent = torch.randn(2, 3, 5, 6, generator=generator, dtype=torch.float64)
    # 2x3 taps with dilation 2 and 1: rows 0 and 2, columns -1, 0 and 1
    offsets = [(0, -1), (0, 0), (0, 1), (2, -1), (2, 0), (2, 1)]
    options = {"kernel_size": (2, 3), "dilation": (2, 1)}
    for normalize in (None, "softmax"):
        leaves = [tensor.clone().requires_grad_() for tensor in (image, logits)]
        weights = leaves[1].softmax(1) if normalize else leaves[1]
        expected = shifted_sum(leaves[0], weights, offsets)
        expected = [expected, *torch.autograd.grad(expected, leaves, cotangent)]
        others = [tensor.clone().requires_grad_() for tensor in (image, logits)]
        actual = kpnops.kernel_filter(*others, normalize=normalize, **options)
        actual = [actual, *torch.autograd.grad(actual, others, cotangent)]
        for name, one, other in zip(("output", "input", "spatial"), actual, expected, strict=True):
            value = to_numpy(other)
            # every one of these sums has terms of about 1
            compare(one, Expected(value, abs(value) + 1, FLOAT64_BUDGET), f"{name}, {normalize}")


CALLS = {
    "stride and groups": ((2, 4, 7, 6), (2, 18, 4, 3), {"kernel_size": 3, "stride": 2}),
    "padding": ((1, 3, 4, 5), (1, 25, 4, 5), {"padding_mode": "reflect"}),
    "upsampling": ((1, 3, 4, 5), (1, 9, 8, 10), {"scale_factor": 2, "normalize": "softmax"}),
}


@pytest.mark.parametrize("name", CALLS)
def test_is_decoupled_filter_without_a_channel_filter(name):
    shape, filter_shape, options = CALLS[name]
    image, taps = torch.randn(shape), torch.randn(filter_shape)
    actual = kpnops.kernel_filter(image, taps, **options)
    assert torch.equal(actual, kpnops.decoupled_filter(image, taps, None, **options))


def test_takes_what_decoupled_filter_takes():
    whole = dict(inspect.signature(kpnops.decoupled_filter).parameters)
    for name in ("channel_filter", "combine"):
        del whole[name]
    own = inspect.signature(kpnops.kernel_filter).parameters
    assert list(own) == list(whole)
    for name, parameter in own.items():
        assert parameter.default == whole[name].default
        assert parameter.kind == whole[name].kind


@pytest.mark.parametrize(
    ("error", "name", "options"),
    [
        (TypeError, "spatial_filter", {"spatial_filter": None}),
        (ValueError, "spatial_filter", {"spatial_filter": torch.rand(1, 9, 4, 4)}),
        (ValueError, "padding_mode", {"padding_mode": "same"}),
        (ValueError, "normalize", {"normalize": "sum"}),
        (ValueError, "stride", {"stride": 0}),
        (ValueError, "scale_factor", {"scale_factor": 2, "stride": 2}),
    ],
)
def test_errors_name_the_argument(error, name, options):
    arguments = {"input": torch.rand(1, 2, 5, 5), "spatial_filter": torch.rand(1, 9, 5, 5)}
    with pytest.raises(error, match=f"^{name}: "):
        kpnops.kernel_filter(**arguments | options)


def test_compiles_into_one_graph():
    torch.compiler.reset()
    image, taps = torch.randn(1, 2, 5, 6), torch.randn(1, 9, 5, 6)
    compiled = torch.compile(kpnops.kernel_filter, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(image, taps), kpnops.kernel_filter(image, taps))
    torch.compiler.reset()
