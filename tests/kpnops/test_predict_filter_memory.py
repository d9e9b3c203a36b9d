"""What the fused head holds beyond its inputs and outputs on the CPU path: never the filters."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import kpnops
from bench.timing import peak_bytes
from kpnops._predict_filter import cpu_head

CPU = torch.device("cpu")
MIB = 2**20
# the workspace of the CPU path, and small change for index lists, weights and scalars
ALLOWED = 32 * MIB + 2 * MIB


@dataclass(frozen=True)
class Problem:
    """Sizes and options of a call whose filters would not fit into the workspace."""

    batch: int = 1
    channels: int = 3
    size: tuple[int, int] = (200, 300)
    kernel: int = 15
    features: int = 8
    frames: int | None = None
    channel_batch: int | None = None  # of a gain for each pixel
    groups: int = 1
    dtype: torch.dtype = torch.float32
    options: dict[str, Any] = field(default_factory=lambda: {"normalize": "softmax"})

    def tensors(self) -> list[torch.Tensor | None]:
        B, C, taps = self.batch, self.channels, self.kernel**2
        frames = () if self.frames is None else (self.frames,)
        rows = self.groups * (self.frames or 1) * taps
        shapes = [
            (B, self.features, *self.size),
            (rows, self.features),
            (rows,),
            (B, *frames, C, *self.size),
        ]
        tensors: list[torch.Tensor | None] = [torch.rand(s, dtype=self.dtype) for s in shapes]
        batch = self.channel_batch
        gain = None if batch is None else torch.rand(batch, C, *self.size, dtype=self.dtype)
        return [*tensors, gain]

    def call(self, tensors: list[Any]) -> torch.Tensor:
        return kpnops.predict_filter(*tensors, kernel_size=self.kernel, **self.options)

    @property
    def padded_bytes(self) -> int:
        H, W = (size + self.kernel - 1 for size in self.size)
        return self.batch * (self.frames or 1) * self.channels * H * W * 4

    @property
    def filter_bytes(self) -> int:
        rows = self.groups * (self.frames or 1) * self.kernel**2
        return self.batch * rows * self.size[0] * self.size[1] * 4

    @property
    def statistics_bytes(self) -> int:
        return self.batch * self.groups * self.size[0] * self.size[1] * 4


CASES = {
    "photo": Problem(),
    "no softmax": Problem(options={}),
    "batch": Problem(batch=3, size=(200, 120), channel_batch=1),
    "groups": Problem(channels=8, groups=4, kernel=9, size=(200, 300)),
    "many channels": Problem(channels=32, size=(160, 200), kernel=21),
    "half precision": Problem(kernel=17, features=32, dtype=torch.bfloat16, channel_batch=1),
    "frames": Problem(frames=4, kernel=9, channel_batch=1),
    "small images": Problem(batch=64, size=(50, 50), kernel=9),
}


QUICK = ("photo", "half precision")
MOST_SLOW = [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in CASES]


@pytest.mark.parametrize("name", MOST_SLOW)
def test_forward_holds_a_workspace_and_at_most_one_padded_copy(name: str) -> None:
    problem = CASES[name]
    tensors = problem.tensors()
    sizes = []

    def call():
        sizes.append(problem.call(tensors).nbytes)

    peak = peak_bytes(call, CPU)
    limit = sizes[0] + problem.statistics_bytes + problem.padded_bytes + ALLOWED
    assert problem.filter_bytes > limit  # what is not stored would show
    assert peak <= limit


@pytest.mark.parametrize("name", MOST_SLOW)
def test_backward_holds_a_workspace_and_at_most_one_padded_copy(name: str) -> None:
    problem = CASES[name]
    tensors = problem.tensors()
    leaves = [tensor.requires_grad_() for tensor in tensors if tensor is not None]
    output = problem.call(tensors)
    cotangent = torch.rand_like(output)

    def call():
        return torch.autograd.grad(output, leaves, cotangent, retain_graph=True)

    peak = peak_bytes(call, CPU)
    gradients = sum(leaf.nbytes for leaf in leaves)
    assert peak <= gradients + problem.padded_bytes + ALLOWED


def step_bytes(kernel: int, *, fused: bool) -> int:
    """Peak of a training step beyond its gradients, filters of ``kernel`` taps along a side."""
    problem = Problem(kernel=kernel, size=(192, 192))
    features, weight, bias, image, _ = tensors = problem.tensors()
    leaves = [tensor.requires_grad_() for tensor in tensors if tensor is not None]

    def call():
        if fused:
            output = problem.call(tensors)
        else:
            logits = F.conv2d(features, weight[..., None, None], bias)
            output = kpnops.decoupled_filter(image, logits, normalize="softmax")
        return torch.autograd.grad(output.sum(), leaves)

    return peak_bytes(call, CPU) - sum(leaf.nbytes for leaf in leaves)


def test_memory_does_not_grow_with_the_filters() -> None:
    small, large = step_bytes(3, fused=True), step_bytes(15, fused=True)
    # Both fill at most the workspace; stored, 15 x 15 logits alone take 33 MB, and their gradient.
    assert large <= small + 32 * MIB
    assert step_bytes(15, fused=False) > small + 64 * MIB


def kept_for_the_backward(kernel: int, size: tuple[int, int]) -> list[tuple[int, ...]]:
    """Shapes of what a forward keeps beside its inputs, all of which it keeps."""
    problem = Problem(size=size, kernel=kernel, channel_batch=1)
    tensors = problem.tensors()
    leaves = [tensor.requires_grad_() for tensor in tensors if tensor is not None]
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        problem.call(tensors)
    own = {leaf.data_ptr() for leaf in leaves}
    assert own <= {tensor.data_ptr() for tensor in kept}
    others = [tensor for tensor in kept if tensor.data_ptr() not in own]
    return [tuple(tensor.shape) for tensor in others]


def test_backward_keeps_its_inputs_and_the_filters_of_a_small_call() -> None:
    assert kept_for_the_backward(3, (20, 20)) == [(1, 1, 9, 400)]


def test_backward_keeps_its_inputs_alone_of_a_larger_call() -> None:
    assert cpu_head.KEPT_BYTES < 121 * 132 * 132 * 4
    assert kept_for_the_backward(11, (132, 132)) == [(0,)]


@pytest.mark.interpreted
def test_kernels_keep_one_number_for_each_pixel() -> None:
    assert kept_for_the_backward(3, (20, 20)) == [(1, 1, 20, 20)]
