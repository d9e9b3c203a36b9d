"""What the CPU path holds beyond its inputs and outputs, and what autograd keeps."""

import pytest
import torch

import kpnops
from bench.timing import peak_bytes

MIB = 2**20
# the workspace of the CPU path, and small change for index lists and scalars
ALLOWED = 32 * MIB + MIB


def tensors(B, C, H, W, kernel, form, dtype):
    image = torch.rand(B, C, H, W, dtype=dtype)
    spatial = torch.rand(B, kernel * kernel, H, W, dtype=dtype)
    shape = {"none": None, "image": (B, C, kernel * kernel), "pixel": (B, C, H, W)}[form]
    channel = None if shape is None else torch.rand(shape, dtype=dtype)
    return image, spatial, channel


def padded_bytes(image, kernel, dtype):
    B, C, H, W = image.shape
    return B * C * (H + kernel - 1) * (W + kernel - 1) * dtype.itemsize


CASES = [
    pytest.param(1, 3, 1100, 1900, 3, "pixel", torch.float32, id="photo"),
    pytest.param(1, 64, 300, 300, 3, "image", torch.float32, id="features-per-image"),
    pytest.param(4, 16, 300, 300, 3, "none", torch.float32, id="batch"),
    pytest.param(1, 32, 400, 400, 3, "pixel", torch.bfloat16, id="half-precision"),
]


@pytest.mark.parametrize("mode", ["zeros", "replicate"])
@pytest.mark.parametrize(("B", "C", "H", "W", "kernel", "form", "dtype"), CASES)
def test_forward_holds_a_workspace_and_at_most_one_padded_copy(
    B, C, H, W, kernel, form, dtype, mode
):
    operands = tensors(B, C, H, W, kernel, form, dtype)

    def call():
        return kpnops.decoupled_filter(*operands, padding_mode=mode)

    peak = peak_bytes(call, torch.device("cpu"))
    output = operands[0].nbytes
    assert peak <= output + padded_bytes(operands[0], kernel, dtype) + ALLOWED


@pytest.mark.parametrize("mode", ["zeros", "replicate"])
@pytest.mark.parametrize(("B", "C", "H", "W", "kernel", "form", "dtype"), CASES)
def test_backward_holds_a_workspace_and_at_most_one_padded_copy(
    B, C, H, W, kernel, form, dtype, mode
):
    operands = tensors(B, C, H, W, kernel, form, dtype)
    leaves = [tensor.requires_grad_() for tensor in operands if tensor is not None]
    output = kpnops.decoupled_filter(*operands, padding_mode=mode)
    cotangent = torch.rand_like(output)

    def call():
        return torch.autograd.grad(output, leaves, cotangent, retain_graph=True)

    peak = peak_bytes(call, torch.device("cpu"))
    gradients = sum(leaf.nbytes for leaf in leaves)
    assert peak <= gradients + padded_bytes(operands[0], kernel, dtype) + ALLOWED


def test_the_measure_sees_a_copy_for_each_tap():
    """The same bound is far exceeded by unfold: the test can fail."""
    operands = tensors(1, 3, 1100, 1900, 3, "pixel", torch.float32)
    peak = peak_bytes(lambda: kpnops.reference.decoupled_filter(*operands), torch.device("cpu"))
    allowed = operands[0].nbytes + padded_bytes(operands[0], 3, torch.float32) + ALLOWED
    assert peak > 2 * allowed


def test_backward_keeps_its_inputs_and_nothing_else():
    operands = tensors(1, 4, 20, 20, 3, "pixel", torch.float32)
    leaves = [tensor.requires_grad_() for tensor in operands]
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kpnops.decoupled_filter(*operands)
    assert {tensor.data_ptr() for tensor in kept} == {leaf.data_ptr() for leaf in leaves}
