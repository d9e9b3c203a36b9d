"""What the backward on a GPU would hold beyond its tensors: planned, not run."""

import itertools
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: there are no kernels to plan")

from kpnops._decoupled_filter import strips
from kpnops._decoupled_filter.call import Call, Gradients
from kpnops._decoupled_filter.geometry import Window
from kpnops._decoupled_filter.triton_backend import plan_backward

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64
WORKSPACES = {"statistics_ptr", "grad_filtered_ptr", "partial_ptr"}
BOUND = 0.02  # of all tensors of a call
MEGABYTE = 10**6


def tensors(shape, form, window, groups, dtype, output_channels):
    """Image, filters and gradient of the output, on no device."""
    B, C, H, W = shape
    rows, columns = (
        -(-size // step) * window.scale for size, step in zip((H, W), window.stride, strict=True)
    )
    out = output_channels if form == "mix" else C
    channel = {
        "none": None,
        "image": (B, C, window.taps),
        "pixel": (B, C, rows, columns),
        "mix": (B, out, C, rows, columns),
    }[form]

    def meta(sizes):
        return torch.empty(sizes, dtype=dtype, device="meta")

    image, spatial = meta(shape), meta((B, groups * window.taps, rows, columns))
    return image, spatial, channel and meta(channel), meta((B, out, rows, columns))


def planned(
    shape,
    form="none",
    groups=1,
    dtype=F32,
    softmax=True,
    output_channels=8,
    combine="mul",
    **window: Any,
):
    """Bytes of the workspace and of all tensors, and the launches."""
    lying = Window(**{"kernel_size": (3, 3), **window})
    image, spatial, channel, cotangent = tensors(shape, form, lying, groups, dtype, output_channels)
    operands = (image, spatial, channel)
    call = Call(*operands, lying.within((shape[2], shape[3])), combine, softmax)
    grads = Gradients(*(None if one is None else torch.empty_like(one) for one in operands))
    launches = plan_backward(call, cotangent, grads).launches
    known = {id(tensor) for tensor in (*operands, cotangent, *grads)}
    held = {
        id(value): value.nbytes
        for item in launches
        for name, value in item.arguments.items()
        if name in WORKSPACES and id(value) not in known
    }
    everything = [
        *operands,
        cotangent,
        cotangent,
        *grads,
    ]  # the output takes what its gradient does
    return (
        sum(held.values()),
        sum(tensor.nbytes for tensor in everything if tensor is not None),
        launches,
    )


LARGE = {
    "C=3, K=3": dict(shape=(1, 3, 1080, 1920)),
    "C=3, K=3, an odd width": dict(shape=(1, 3, 1081, 1919)),
    "C=3, K=5, gains": dict(shape=(1, 3, 1080, 1920), form="pixel", kernel_size=(5, 5)),
    "C=3, K=3, per image": dict(shape=(1, 3, 1080, 1920), form="image"),
    "C=3, K=7": dict(shape=(1, 3, 1080, 1920), kernel_size=(7, 7)),
    "C=1": dict(shape=(1, 1, 2160, 3840)),
    "a group for each channel": dict(shape=(1, 32, 512, 512), groups=32),
    "C=64": dict(shape=(1, 64, 512, 512)),
    "C=64, per image": dict(shape=(1, 64, 512, 512), form="image"),
    "small images": dict(shape=(300, 3, 64, 64)),
    "the smallest that is bounded": dict(shape=(1, 3, 540, 1100)),
    "stride 2": dict(shape=(1, 3, 2160, 3840), stride=(2, 2)),
    "dilation 4, per image": dict(shape=(1, 3, 1080, 1920), form="image", dilation=(4, 4)),
    "scale factor 2": dict(shape=(1, 3, 540, 960), scale=2),
    "mixing": dict(shape=(1, 3, 1080, 1920), form="mix", softmax=False),
    "mixing, softmax": dict(shape=(1, 8, 512, 512), form="mix"),
    "mixing, C=16": dict(shape=(1, 16, 512, 512), form="mix", output_channels=16, softmax=False),
}


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_large_backwards_hold_two_percent(name, dtype, padding_mode):
    workspace, total, _ = planned(**LARGE[name], dtype=dtype, padding_mode=padding_mode)
    assert workspace <= BOUND * max(total, 64 * MEGABYTE) or total < 64 * MEGABYTE


@pytest.mark.parametrize("name", ["C=3, K=3", "mixing"])
def test_one_strip_would_not_do(name, monkeypatch):
    """The bound above is far exceeded by a workspace for the whole image: the test can fail."""
    monkeypatch.setattr(strips, "FREE_BYTES", 10**15)
    workspace, total, _ = planned(**LARGE[name])
    assert workspace > 1.5 * BOUND * total


@pytest.mark.parametrize("form", ["none", "image", "pixel", "mix"])
def test_small_backwards_take_one_strip(form):
    """As few launches as without strips: their host time would be longer than their work."""
    _, total, launches = planned((1, 3, 300, 500), form=form)
    assert total < 64 * MEGABYTE
    names = [item.kernel.__name__ for item in launches]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", LARGE)
def test_strips_are_few(name):
    """In 16-bit types, where the workspace is the largest beside the tensors."""
    _, _, launches = planned(**LARGE[name], dtype=BF16)
    kinds = itertools.groupby(
        sorted(launches, key=lambda item: item.kernel.__name__), lambda item: item.kernel.__name__
    )
    most = max(len(list(items)) for _, items in kinds)
    assert most <= 32


def test_an_expanded_tensor_takes_no_memory():
    gradient = torch.ones(()).expand(1, 3, 4000, 4000)
    assert strips.allowed_bytes(10**9, [gradient]) is None


def test_strips_that_begin_inside_a_tile_are_refused():
    strip = strips.Strip(0, 1, slice(16, 32), slice(16, 32), slice(15, 33))
    assert strip.tiles(8) == 2
    with pytest.raises(ValueError, match="launch table"):
        strip.tiles(32)
