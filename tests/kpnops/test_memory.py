"""What the CPU path holds beyond its inputs and outputs, and what autograd keeps."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import kpnops
from bench.timing import peak_bytes

CPU = torch.device("cpu")
MIB = 2**20
# the workspace of the CPU path, and small change for index lists and scalars
ALLOWED = 32 * MIB + MIB


@dataclass(frozen=True)
class Problem:
    """Sizes and options of a call; its filters or its output are large beside the workspace."""

    batch: int
    channels: int
    size: tuple[int, int]
    kernel: int = 3
    form: str = "none"
    shared: bool = False
    mixed: int = 0  # output channels of a mixing matrix
    groups: int = 1
    dtype: torch.dtype = torch.float32
    filter_dtype: torch.dtype | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> list[torch.Tensor]:
        B, C, (H, W), taps = self.batch, self.channels, self.size, self.kernel**2
        scale = self.options.get("scale_factor", 1)
        output = (H * scale, W * scale)
        filter_dtype = self.filter_dtype or self.dtype
        shapes = {
            "none": (),
            "image": (C, taps),
            "pixel": (C, *output),
            "mix": (self.mixed, C, *output),
        }
        image = torch.rand(B, C, H, W, dtype=self.dtype)
        spatial = torch.rand(B, self.groups * taps, *output, dtype=filter_dtype)
        if self.form == "none":
            return [image, spatial]
        batch = 1 if self.shared else B
        return [image, spatial, torch.rand(batch, *shapes[self.form], dtype=filter_dtype)]

    def call(self, tensors: list[torch.Tensor], mode: Any) -> torch.Tensor:
        size = (self.kernel, self.kernel)
        return kpnops.decoupled_filter(
            *tensors, kernel_size=size, padding_mode=mode, **self.options
        )

    @property
    def padded_bytes(self) -> int:
        H, W = (size + self.kernel - 1 for size in self.size)
        return self.batch * self.channels * H * W * self.dtype.itemsize


F32, BF16 = torch.float32, torch.bfloat16
SOFTMAX, TWICE = {"normalize": "softmax"}, {"scale_factor": 2}
CASES = {
    "photo": Problem(1, 3, (1100, 1900), form="pixel"),
    "features-per-image": Problem(1, 64, (300, 300), form="image"),
    "batch": Problem(4, 16, (300, 300)),
    "half-precision": Problem(1, 32, (400, 400), form="pixel", dtype=BF16),
    "shared-half-precision": Problem(4, 32, (250, 250), form="pixel", shared=True, dtype=BF16),
    # 200 MB of probabilities, and as much for their gradient
    "softmax": Problem(1, 3, (1000, 2000), kernel=5, form="pixel", options=SOFTMAX),
    "softmax-per-image": Problem(1, 64, (300, 300), form="image", options=SOFTMAX),
    "softmax-groups": Problem(1, 32, (200, 200), kernel=5, groups=8, options=SOFTMAX),
    "softmax-half-filters": Problem(
        1, 3, (700, 1100), kernel=5, form="pixel", filter_dtype=BF16, options=SOFTMAX
    ),
    "softmax-half-precision": Problem(
        2, 32, (300, 300), kernel=5, form="pixel", dtype=BF16, options=SOFTMAX
    ),
    # 92 MB of upsampled image
    "upsampling": Problem(1, 64, (300, 300), form="pixel", options=TWICE),
    "upsampling-softmax": Problem(1, 64, (150, 150), kernel=5, options=TWICE | SOFTMAX),
    "upsampling-half-precision": Problem(
        1, 64, (200, 200), form="image", dtype=BF16, options=TWICE
    ),
    "mixing": Problem(1, 16, (400, 400), form="mix", mixed=16),
    "mixing-many": Problem(1, 32, (200, 200), form="mix", mixed=32),
    # a float32 sum of the matrices' gradients would take 72 MB
    "mixing-shared": Problem(2, 16, (270, 270), form="mix", mixed=16, shared=True, dtype=BF16),
    "mixing-everything": Problem(
        1, 16, (150, 150), form="mix", mixed=8, groups=4, options=TWICE | SOFTMAX
    ),
}


@pytest.mark.parametrize("mode", ["zeros", "replicate"])
@pytest.mark.parametrize("case", CASES)
def test_forward_holds_a_workspace_and_at_most_one_padded_copy(case, mode):
    problem = CASES[case]
    tensors = problem.tensors()
    sizes = []

    def call():
        sizes.append(problem.call(tensors, mode).nbytes)

    peak = peak_bytes(call, CPU)
    assert peak <= sizes[0] + problem.padded_bytes + ALLOWED


@pytest.mark.parametrize("mode", ["zeros", "replicate"])
@pytest.mark.parametrize("case", CASES)
def test_backward_holds_a_workspace_and_at_most_one_padded_copy(case, mode):
    problem = CASES[case]
    leaves = [tensor.requires_grad_() for tensor in problem.tensors()]
    output = problem.call(leaves, mode)
    cotangent = torch.rand_like(output)

    def call():
        return torch.autograd.grad(output, leaves, cotangent, retain_graph=True)

    peak = peak_bytes(call, CPU)
    gradients = sum(leaf.nbytes for leaf in leaves)
    assert peak <= gradients + problem.padded_bytes + ALLOWED


def test_an_infinite_gain_takes_no_more():
    """The sum over the taps is then taken as it is defined, with the gain in it."""
    problem = CASES["photo"]
    tensors = problem.tensors()
    tensors[2][0, 0, 0, 0] = math.inf
    peak = peak_bytes(lambda: problem.call(tensors, "zeros"), CPU)
    assert peak <= tensors[0].nbytes + problem.padded_bytes + ALLOWED


def test_the_measure_sees_a_copy_for_each_tap():
    """The same bound is far exceeded by unfold: the test can fail."""
    problem = CASES["photo"]
    operands = problem.tensors()
    peak = peak_bytes(lambda: kpnops.reference.decoupled_filter(*operands), CPU)
    assert peak > 2 * (operands[0].nbytes + problem.padded_bytes + ALLOWED)


def test_the_measure_sees_the_probabilities_and_the_upsampled_image():
    """What the cases of softmax and upsampling must not store would exceed their bounds."""
    problem = CASES["softmax"]
    image, logits, _ = problem.tensors()
    peak = peak_bytes(lambda: logits.softmax(1), CPU)
    assert peak > image.nbytes + problem.padded_bytes + ALLOWED
    problem = CASES["upsampling"]
    image = problem.tensors()[0]
    peak = peak_bytes(lambda: image.repeat_interleave(2, 2).repeat_interleave(2, 3), CPU)
    assert peak > problem.padded_bytes + ALLOWED


def test_backward_keeps_its_inputs_and_nothing_else():
    operands = Problem(1, 4, (20, 20), form="pixel").tensors()
    leaves = [tensor.requires_grad_() for tensor in operands]
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kpnops.decoupled_filter(*operands)
    assert {tensor.data_ptr() for tensor in kept} == {leaf.data_ptr() for leaf in leaves}
