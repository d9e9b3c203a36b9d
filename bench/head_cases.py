"""What is timed of `kpnops.predict_filter`: shapes, precisions, tensors, unavoidable bytes."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.cases import CONTIGUOUS, SOFTMAX, Sizes, as_dtype

IEEE = "ieee"
TF32 = "tf32"
BF16 = "bf16"
# Precision of the products, by what a mode is called: data type of all tensors, and the option.
MODES = {TF32: ("float32", TF32), BF16: ("bfloat16", IEEE), IEEE: ("float32", IEEE)}
FEATURES = 64
HEAD_KERNEL_SIZES = (3, 5, 7, 11, 21)
HEAD_IMAGE_SIZES = ((512, 512), (1080, 1920), (2160, 3840))


class HeadTensors(NamedTuple):
    """The arguments of one call and the cotangent of its result."""

    features: Tensor  # (B, F, H, W)
    weight: Tensor  # (K*K, F)
    bias: Tensor  # (K*K,)
    input: Tensor  # (B, C, H, W)
    cotangent: Tensor  # (B, C, H, W)

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """The four differentiable arguments."""
        return self.features, self.weight, self.bias, self.input


@dataclass(frozen=True)
class HeadCase(Sizes):
    """One problem: one group, a softmax over the taps, zero padding, no channel filter.

    Raises:
        ValueError: a field has a value that no benchmark knows.
    """

    batch: int
    channels: int
    height: int
    width: int
    kernel_size: int
    features: int = FEATURES
    dtype: str = "float32"  # of all tensors
    precision: str = IEEE  # of products of float32 numbers

    channel_filter = "none"
    layout = CONTIGUOUS
    normalize = SOFTMAX

    def __post_init__(self):
        as_dtype(self.dtype)  # raises for an unknown name
        if (self.dtype, self.precision) not in MODES.values():
            known = ", ".join(f"{dtype} with {option}" for dtype, option in MODES.values())
            raise ValueError(
                f"precision: expected one of {known}, got {self.dtype} with {self.precision!r}"
            )

    @property
    def mode(self) -> str:
        """What the products are taken in: a key of MODES."""
        return BF16 if self.dtype == "bfloat16" else self.precision

    @property
    def name(self) -> str:
        """Unique name of the case."""
        return f"{self.shape}-head-F{self.features}-{self.mode}"

    @property
    def title(self) -> str:
        """The case as a reader wants it."""
        sizes = f"{self.batch}×{self.channels}×{self.height}×{self.width}"
        return f"{sizes}, K = {self.kernel_size}, F = {self.features}, {self.mode}"

    @property
    def size(self) -> int:
        """Bytes of one number."""
        return as_dtype(self.dtype).itemsize

    @property
    def argument_bytes(self) -> int:
        """Bytes of the four arguments, and of their gradients."""
        numbers = self.pixels * (self.features + self.channels) + self.taps * (self.features + 1)
        return numbers * self.size

    @property
    def result_bytes(self) -> int:
        """Bytes of the result, and of its cotangent."""
        return self.pixels * self.channels * self.size

    @property
    def logits_bytes(self) -> int:
        """Bytes of the logits where they are stored."""
        return self.pixels * self.taps * self.size

    @property
    def statistics_bytes(self) -> int:
        """Bytes of one float32 number for each pixel."""
        return 4 * self.pixels


def make_head_tensors(case: HeadCase, device: torch.device, seed: int = 0) -> HeadTensors:
    """Make normally distributed arguments and cotangent; the weight scaled so that the logits are
    near 1.

    Args:
        case: the problem.
        device: where the tensors live.
        seed: seed of the generator.

    Returns:
        The tensors; none of them requires a gradient.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=as_dtype(case.dtype))

    image = (case.batch, case.channels, case.height, case.width)
    return HeadTensors(
        features=normal(case.batch, case.features, case.height, case.width),
        weight=normal(case.taps, case.features) / math.sqrt(case.features),
        bias=normal(case.taps),
        input=normal(*image),
        cotangent=normal(*image),
    )


def cpu_head_cases() -> list[HeadCase]:
    """Return the cases that a CPU runs unless more is asked for."""
    return [
        HeadCase(1, channels, size, size, kernel_size)
        for channels, size in ((3, 256), (16, 128))
        for kernel_size in (5, 11)
    ]


def all_head_cases(modes: tuple[str, ...] = (TF32, BF16, IEEE)) -> list[HeadCase]:
    """Return every case: large filters of few channels first, which have the highest goals.

    Args:
        modes: keys of MODES.

    Returns:
        The cases.
    """
    return [
        HeadCase(1, channels, *size, kernel_size, FEATURES, *MODES[mode])
        for channels in (3, 64)
        for kernel_sizes in ((11, 21), (5, 3, 7))
        for size in HEAD_IMAGE_SIZES
        for kernel_size in kernel_sizes
        for mode in modes
    ]
