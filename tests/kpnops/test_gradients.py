"""Gradients: who gets one, what arrives from above, what is kept, and derivatives of their own."""

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import kpnops
from tests.helpers import (
    COMPILED_ROUTES,
    GRADIENTS,
    INTERPRETED,
    PADDING_MODES,
    Case,
    Operands,
    arrange,
    compare,
    embed,
    expected_results,
)

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

DTYPE = torch.float32 if INTERPRETED else torch.float64
SUBSETS = [subset for subset in product([False, True], repeat=3) if any(subset)]


def names_of(flags: tuple[bool, ...]) -> str:
    return "+".join(name for name, flag in zip(Operands._fields, flags, strict=True) if flag)


@pytest.mark.parametrize("subset", SUBSETS, ids=names_of)
@pytest.mark.parametrize(
    "case",
    [
        Case(channels=3, kernel_size=(2, 3)),
        Case(channels=6, groups=2, kernel_size=(2, 2)),
        Case(channels=5, channel_filter="image", combine="add", kernel_size=(2, 2)),
        Case(
            channels=4,
            channel_filter="image",
            kernel_size=(2, 3),
            batch=2,
            channel_batch=1,
            stride=(2, 1),
        ),
        Case(channels=3, kernel_size=(3, 2), padding_mode="circular", dilation=(2, 2)),
        Case(channels=3, kernel_size=(2, 2), size=(3, 4), normalize="softmax"),
        Case(channels=5, kernel_size=(2, 2), size=(3, 4), normalize="softmax", combine="add"),
        Case(
            channels=4,
            groups=2,
            kernel_size=(1, 2),
            size=(2, 3),
            normalize="softmax",
            channel_filter="image",
            scale_factor=2,
        ),
        Case(
            channels=3,
            kernel_size=(2, 2),
            size=(2, 3),
            normalize="softmax",
            channel_filter="mix",
            output_channels=2,
        ),
        Case(kernel_size=(2, 2), size=(3, 4), channel_filter="image", spatial=False),
    ],
    ids=[
        "few channels",
        "many channels",
        "per image, add",
        "strided",
        "dilated, circular",
        "softmax",
        "softmax, many channels",
        "softmax, upsampled",
        "softmax, mixing",
        "channel filter alone",
    ],
)
def test_only_the_gradients_that_are_asked_for(
    case: Case, subset: tuple[bool, ...], device: str
) -> None:
    case = case.with_dtype(DTYPE)
    operands, cotangent = case.operands(device), case.cotangent(device)
    expected = expected_results(case, operands, cotangent)
    pairs = list(zip(operands, subset, strict=True))
    leaves = [None if tensor is None else tensor.requires_grad_(flag) for tensor, flag in pairs]
    output = kpnops.decoupled_filter(*leaves, **case.options)
    if not any(leaf is not None and leaf.requires_grad for leaf in leaves):
        assert not output.requires_grad
        return
    output.backward(cotangent)
    for leaf, flag, name in zip(leaves, subset, GRADIENTS, strict=True):
        if leaf is None:
            continue
        if flag:
            compare(leaf.grad, expected[name], name)
        else:
            assert leaf.grad is None, name


def test_no_gradient_asked_for(device: str) -> None:
    case = Case().with_dtype(torch.float32)
    operands = case.operands(device)
    assert not kpnops.decoupled_filter(*operands).requires_grad
    leaf = operands.input.requires_grad_()
    with torch.no_grad():
        assert not kpnops.decoupled_filter(*operands).requires_grad
    with torch.inference_mode():
        inferred = kpnops.decoupled_filter(*operands)
    assert torch.equal(inferred, kpnops.decoupled_filter(leaf, *operands[1:]).detach())


@pytest.mark.parametrize("size", [(4, 5), (2, 3)])
@pytest.mark.parametrize("shape", ["scalar", "row", "image", "permuted", "sliced"])
def test_gradients_that_arrive_with_odd_strides(
    shape: str, size: tuple[int, int], device: str
) -> None:
    case = Case(batch=2, channels=4, size=size, groups=2).with_dtype(DTYPE)
    cotangent = case.cotangent(device)
    arranged = {
        "scalar": cotangent[:1, :1, :1, :1].expand_as(cotangent),  # what .sum() sends
        "row": cotangent[..., :1, :].expand_as(cotangent),
        "image": cotangent[:1].expand_as(cotangent),
        "permuted": cotangent.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        "sliced": embed(cotangent)[0],
    }[shape]
    assert not arranged.is_contiguous()
    operands = case.operands(device)
    expected = expected_results(case, operands, arranged)
    leaves = [tensor.requires_grad_() for tensor in operands]
    gradients = torch.autograd.grad(
        kpnops.decoupled_filter(*leaves, **case.options), leaves, arranged
    )
    for name, gradient in zip(GRADIENTS, gradients, strict=True):
        compare(gradient, expected[name], name)


def test_sum_and_permuted_loss_backward(device: str) -> None:
    # The same through autograd itself rather than by hand.
    case = Case(channels=4).with_dtype(DTYPE)
    operands = case.operands(device)
    leaves = [tensor.requires_grad_() for tensor in operands]
    kpnops.decoupled_filter(*leaves, **case.options).sum().backward()
    expected = expected_results(case, operands, torch.ones_like(case.cotangent(device)))
    for leaf, name in zip(leaves, GRADIENTS, strict=True):
        compare(leaf.grad, expected[name], name)
        leaf.grad = None
    weights = case.cotangent(device)
    output = kpnops.decoupled_filter(*leaves, **case.options)
    (output.permute(0, 2, 3, 1) * weights.permute(0, 2, 3, 1)).sum().backward()
    expected = expected_results(case, operands, weights)
    for leaf, name in zip(leaves, GRADIENTS, strict=True):
        compare(leaf.grad, expected[name], name)


def test_gradient_of_an_expanded_filter_is_summed(device: str) -> None:
    # One filter for all pixels: autograd adds up what the operator gives for each of them.
    case = Case(channels=3, batch=2).with_dtype(DTYPE)
    operands, cotangent = case.operands(device), case.cotangent(device)
    small = operands.spatial_filter[:1, :, :1, :1].detach().clone().requires_grad_()
    spatial = small.expand(case.shapes.spatial_filter)
    output = kpnops.decoupled_filter(operands.input, spatial, operands.channel_filter)
    (dense,) = torch.autograd.grad(output, spatial, cotangent, retain_graph=True)
    (total,) = torch.autograd.grad(output, small, cotangent)
    assert torch.equal(total, dense.sum((0, 2, 3), keepdim=True))
    actual = Operands(operands.input, spatial, operands.channel_filter)
    expected = expected_results(case, actual, cotangent)["grad_spatial_filter"]
    compare(dense, expected, "grad_spatial_filter")


def test_one_tensor_in_all_places(device: str) -> None:
    # One tap, a group for each channel: out = x * x * x.
    x = torch.randn(1, 3, 4, 5, dtype=DTYPE, device=device, requires_grad=True)
    output = kpnops.decoupled_filter(x, x, x, kernel_size=1)
    (gradient,) = torch.autograd.grad(output, x, torch.ones_like(output))
    rounding = 8 * torch.finfo(DTYPE).eps  # a few products and two sums of like sign
    torch.testing.assert_close(output, x**3, rtol=rounding, atol=0)
    torch.testing.assert_close(gradient, 3 * x**2, rtol=rounding, atol=0)


def test_gradients_accumulate_and_graphs_can_be_kept(device: str) -> None:
    case = Case().with_dtype(torch.float32)
    leaves = [tensor.requires_grad_() for tensor in case.operands(device)]
    cotangent = case.cotangent(device)
    output = kpnops.decoupled_filter(*leaves)
    first = torch.autograd.grad(output, leaves, cotangent, retain_graph=True)
    output.backward(cotangent, retain_graph=True)
    output.backward(cotangent)
    for leaf, gradient in zip(leaves, first, strict=True):
        assert torch.equal(leaf.grad, 2 * gradient)


SAVED_CASES = {
    "gains": Case(channels=4),
    "softmax": Case(channels=4, normalize="softmax"),
    "softmax, per image, upsampled": Case(
        normalize="softmax", channel_filter="image", scale_factor=2, size=(2, 3)
    ),
    "mixing": Case(channel_filter="mix", output_channels=2, normalize="softmax", size=(3, 4)),
}


@pytest.mark.parametrize("subset", SUBSETS, ids=names_of)
@pytest.mark.parametrize("name", SAVED_CASES)
def test_saves_its_inputs_and_nothing_else(
    name: str, subset: tuple[bool, ...], device: str
) -> None:
    case = replace(SAVED_CASES[name], kernel_size=(2, 2)).with_dtype(torch.float32)
    operands = [
        arrange(tensor, "transposed").requires_grad_(flag)
        for tensor, flag in zip(case.operands(device), subset, strict=True)
    ]
    saved = saved_by(lambda: kpnops.decoupled_filter(*operands, **case.options))
    inputs = {tensor.data_ptr() for tensor in operands}
    assert {tensor.data_ptr() for tensor in saved} <= inputs
    assert len(saved) <= len(inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_saves_halves_as_they_are(dtype: torch.dtype, device: str) -> None:
    # DDF casts float16 to float32 and keeps the casts; it has no bfloat16.
    case = Case(size=(3, 4), kernel_size=(1, 2), normalize="softmax").with_dtype(dtype)
    operands = [tensor.requires_grad_() for tensor in case.operands(device)]
    saved = saved_by(lambda: kpnops.decoupled_filter(*operands, **case.options))
    assert all(tensor.dtype == dtype for tensor in saved)
    assert {tensor.data_ptr() for tensor in saved} == {tensor.data_ptr() for tensor in operands}


def test_a_channel_filter_alone_saves_no_ones(device: str) -> None:
    # What stands for the spatial filter is one number, whatever the size of the image.
    case = Case(spatial=False, channel_filter="image", kernel_size=(2, 2), size=(3, 4))
    image, _, channel = case.with_dtype(torch.float32).operands(device)
    leaves = [image.requires_grad_(), channel.requires_grad_()]
    saved = saved_by(lambda: kpnops.decoupled_filter(leaves[0], None, leaves[1]))
    inputs = {tensor.data_ptr() for tensor in leaves}
    others = [tensor for tensor in saved if tensor.data_ptr() not in inputs]
    assert sum(tensor.untyped_storage().nbytes() for tensor in others) <= channel.element_size()


def saved_by(function: Callable[[], Tensor]) -> list[Tensor]:
    """The tensors that autograd keeps for the backward."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    assert saved
    return saved


def peak_and_kept_bytes(function: Callable[[], Any]) -> tuple[int, int]:
    """Most memory that a call on the CPU held at a time, and what it has left behind."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = function()
    events = profiler.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    running = list(accumulate(change for _, change in sorted(changes)))
    del kept
    return max(running), running[-1]


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("channel_filter", ["none", "image", "pixel"])
@pytest.mark.parametrize(("channels", "side", "kernel_size"), [(3, 512, 5), (64, 128, 5)])
def test_memory_beyond_the_results(
    channels: int, side: int, kernel_size: int, channel_filter: str, mode: str, device: str
) -> None:
    case = Case(
        channels=channels,
        size=(side, side),
        kernel_size=(kernel_size, kernel_size),
        channel_filter=channel_filter,
        padding_mode=mode,
        dtypes=(torch.float32,) * 3,
    )
    torch.utils.deterministic.fill_uninitialized_memory = False  # it takes memory of its own
    leaves = [torch.rand(shape).requires_grad_() for shape in case.shapes if shape is not None]
    padded = 4 * channels * (side + kernel_size - 1) ** 2
    # One padded copy of the input and the workspace; patches for every tap would take 75 MiB.
    allowed = padded + 32 * 2**20
    output = kpnops.decoupled_filter(*leaves, **case.options)
    cotangent = torch.rand_like(output)
    for function in (
        lambda: kpnops.decoupled_filter(*leaves, **case.options),
        lambda: torch.autograd.grad(output, leaves, cotangent),
    ):
        peak, kept = peak_and_kept_bytes(function)
        assert kept >= output.nbytes  # the results themselves: the profiler has seen them
        assert peak - kept <= allowed


def test_an_input_changed_before_backward_is_noticed(device: str) -> None:
    case = Case().with_dtype(torch.float32)
    image, spatial, channel = case.operands(device)
    output = kpnops.decoupled_filter(image, spatial.requires_grad_(), channel)
    image.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_operands_are_left_alone(device: str) -> None:
    case = Case(padding_mode="replicate", combine="add", kernel_size=(2, 2))
    case = case.with_dtype(torch.float32)
    leaves = [tensor.requires_grad_() for tensor in case.operands(device)]
    before = [tensor.detach().clone() for tensor in leaves]
    cotangent = case.cotangent(device)
    kept = cotangent.clone()
    output = kpnops.decoupled_filter(*leaves, **case.options)
    result = output.detach().clone()
    output.backward(cotangent)
    assert torch.equal(cotangent, kept)
    assert torch.equal(output, result)
    assert all(torch.equal(leaf, old) for leaf, old in zip(leaves, before, strict=True))


GRADCHECK_CASES = {
    "fast path": Case(channels=2, size=(3, 4)),
    "fast path, five channels": Case(channels=5, size=(2, 3), kernel_size=(2, 3)),
    "per image": Case(channels=2, size=(3, 4), channel_filter="image", batch=2, channel_batch=1),
    "add": Case(channels=4, groups=2, size=(3, 3), combine="add", kernel_size=(2, 2)),
    "stride and dilation": Case(channels=2, size=(4, 5), stride=(2, 3), dilation=(2, 1)),
    "one channel filter": Case(channels=2, size=(3, 3), channel_filter="none", batch=2),
    "softmax": Case(channels=2, size=(2, 3), normalize="softmax", kernel_size=(2, 2)),
    "softmax, per image, add, groups": Case(
        channels=4,
        groups=2,
        size=(2, 2),
        kernel_size=(1, 2),
        normalize="softmax",
        channel_filter="image",
        combine="add",
    ),
    "upsampled, softmax": Case(
        channels=2, size=(2, 2), scale_factor=2, normalize="softmax", kernel_size=(2, 2)
    ),
    "mixing": Case(
        channels=2, size=(2, 3), channel_filter="mix", output_channels=3, kernel_size=(2, 2)
    ),
    "channel filter alone": Case(channels=2, size=(3, 3), channel_filter="image", spatial=False),
}


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("name", GRADCHECK_CASES)
def test_gradcheck(name: str, mode: str, device: str) -> None:
    case = replace(GRADCHECK_CASES[name], padding_mode=mode)
    leaves = [None if t is None else t.requires_grad_() for t in case.operands(device)]
    assert torch.autograd.gradcheck(
        lambda *operands: kpnops.decoupled_filter(*operands, **case.options), leaves
    )


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("name", GRADCHECK_CASES)
def test_gradients_agree_with_autograd_of_the_reference(name: str, device: str) -> None:
    case = GRADCHECK_CASES[name]
    leaves = [None if t is None else t.requires_grad_() for t in case.operands(device)]
    there = [leaf for leaf in leaves if leaf is not None]
    cotangent = case.cotangent(device)
    gradients = [
        torch.autograd.grad(operator(*leaves, **case.options), there, cotangent)
        for operator in (kpnops.decoupled_filter, kpnops.reference.decoupled_filter)
    ]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)  # the defaults for float64: 1e-7
