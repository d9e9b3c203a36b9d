"""Compile-only: nothing spills where tensors lie differently, differ in dtype or are few channels.

Needs no GPU. Each case stands for a kind of launch that once spilled on one of its targets.
"""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: there is nothing to compile")

from kpnops._decoupled_filter import launch_band, route
from kpnops._decoupled_filter.call import Call, Gradients
from kpnops._decoupled_filter.geometry import Window
from kpnops._decoupled_filter.triton_backend import plan_backward
from tests.helpers_compile import compile_launch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        route.interpreted(), reason="TRITON_INTERPRET=1: kernels are interpreted, not compiled"
    ),
]

NVIDIA = ["sm_80", "sm_90", "sm_100"]
ALL, INPUT, FILTERS = (True, True, True), (True, False, False), (False, True, True)


def meta(shape, dtype=torch.float32, layout="contiguous"):
    """A tensor without memory: contiguous, channels last, or one number expanded to its shape."""
    tensor = torch.empty(shape, dtype=dtype, device="meta")
    if layout == "channels_last":
        return tensor.to(memory_format=torch.channels_last)
    if layout == "expanded":
        return torch.empty((1, 1, 1, 1), dtype=dtype, device="meta").expand(shape)
    return tensor


def backward(
    shape,
    kernel_size,
    *,
    dtypes=(torch.float32, torch.float32),
    layout="contiguous",
    grad_layout=None,
    groups=1,
    combine="mul",
    softmax=False,
    padding_mode="zeros",
    needs=ALL,
):
    """Launches of the backward with a gain for each pixel; ``dtypes`` of image and filters."""
    window = Window(kernel_size=kernel_size, padding_mode=padding_mode)
    B, _, H, W = shape
    image = meta(shape, dtypes[0], layout)
    spatial = meta((B, groups * window.taps, H, W), dtypes[1], layout)
    channel = meta(shape, dtypes[1], layout)
    call = Call(image, spatial, channel, window, combine, softmax)
    grad_output = meta(shape, call.result_dtype, grad_layout or layout)
    grads = [
        torch.empty_like(tensor) if need else None
        for tensor, need in zip((image, spatial, channel), needs, strict=True)
    ]
    return plan_backward(call, grad_output, Gradients(*grads)).launches


@pytest.fixture(autouse=True)
def _plans_for_the_target(request, monkeypatch):
    """Plans on meta tensors know no GPU; those for some differ."""
    target = request.node.callspec.params["target"]
    monkeypatch.setattr(launch_band, "architecture", lambda device: target)


def check(items, target):
    assert items
    spilled = {
        f"{item.kernel.__name__} {item.constants}": compiled
        for item in items
        if (compiled := compile_launch(item, target)).spilled_bytes
    }
    assert not spilled


@pytest.mark.parametrize("kernel_size", [(5, 5), (5, 6), (7, 7)], ids=str)
@pytest.mark.parametrize("target", NVIDIA)
def test_input_gradient_of_many_taps_in_channels_last(target, kernel_size):
    """Neighbours that do not lie side by side: an address for each, of gradients and of gains."""
    items = backward((2, 8, 64, 500), kernel_size, layout="channels_last", needs=INPUT)
    check(items, target)


@pytest.mark.parametrize("target", NVIDIA)
def test_filter_gradients_from_an_expanded_gradient(target):
    """14 sums, once brought to 72 registers."""
    items = backward((2, 7, 64, 513), (7, 2), grad_layout="expanded", needs=FILTERS)
    check(items, target)


@pytest.mark.parametrize("target", NVIDIA)
def test_filter_gradients_of_circular_tiles(target):
    items = backward(
        (1, 64, 256, 63),
        (3, 3),
        grad_layout="channels_last",
        groups=4,
        softmax=True,
        padding_mode="circular",
    )
    check(items, target)


@pytest.mark.parametrize("kernel_size", [(3, 4), (5, 4), (5, 5)], ids=str)
@pytest.mark.parametrize("target", NVIDIA)
def test_all_gradients_of_two_dtypes_under_another_padding(target, kernel_size):
    dtypes = (torch.float32, torch.float16)
    items = backward((1, 3, 256, 96), kernel_size, dtypes=dtypes, padding_mode="replicate")
    check(items, target)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("target", "kernel_size", "channels", "dtype", "needs"),
    [
        ("gfx942", (4, 4), 2, torch.float64, ALL),
        ("gfx942", (5, 5), 3, torch.float64, INPUT),
        ("gfx1100", (5, 5), 3, torch.float64, ALL),
        ("gfx1100", (4, 9), 3, torch.float32, INPUT),
    ],
)
def test_all_gradients_of_few_channels_on_amd(target, kernel_size, channels, dtype, needs, layout):
    """Where a compiler knows how many rows of taps there are, it unrolls the loop over them."""
    shape = (2, channels, 64, 63)
    items = backward(shape, kernel_size, dtypes=(dtype, dtype), layout=layout, needs=needs)
    fused = [item for item in items if "fused" in item.kernel.__name__]
    assert fused[0].arguments["parts"] > 1
    check(fused, target)
