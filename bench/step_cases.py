"""What is timed of a training step of the network `dkpn.DKPN`: photos, kernel sizes, tensors."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.cases import CONTIGUOUS, Sizes

STEP = "training step"  # forward, loss, backward, clipping, optimizer; no pass of an operator
MODEL = "dkpn"
# Linear radiance of the brightest pixels of the truth; 1.0 is where the photo clips.
BRIGHTEST = 8.0


class StepTensors(NamedTuple):
    """A batch: what the network sees and what it should make of it."""

    photo: Tensor  # (B, 3, H, W), sRGB-encoded in [0, 1]
    truth: Tensor  # (B, 3, H, W), linear, 1.0 = clip level


@dataclass(frozen=True)
class StepCase(Sizes):
    """One training step of the default network but for the size of its filters.

    Raises:
        ValueError: a field has a value that no benchmark knows.
    """

    batch: int
    height: int
    width: int
    kernel_size: int
    dtype: str = "float32"  # "bfloat16": under autocast

    channels = 3
    channel_filter = "pixel"
    layout = CONTIGUOUS
    normalize = None

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype: expected float32 or bfloat16, got {self.dtype!r}")

    @property
    def name(self) -> str:
        """Unique name of the case."""
        return f"{self.shape}-{MODEL}-{self.dtype}"

    @property
    def title(self) -> str:
        """The case as a reader wants it."""
        sizes = f"{self.batch}×3×{self.height}×{self.width}"
        autocast = ", bfloat16 autocast" if self.dtype == "bfloat16" else ""
        return f"{sizes}, K = {self.kernel_size}{autocast}"

    @property
    def argument_bytes(self) -> int:
        """Bytes of photo and truth."""
        return 2 * 3 * 4 * self.pixels

    @property
    def result_bytes(self) -> int:
        """Bytes of what a step returns, the loss; the weights change in place."""
        return 4


def make_step_tensors(case: StepCase, device: torch.device, seed: int = 0) -> StepTensors:
    """Make a smooth radiance with highlights, and the 8-bit photo that a camera makes of it.

    Args:
        case: the problem.
        device: where the tensors live.
        seed: seed of the generator.

    Returns:
        The batch.
    """
    generator = torch.Generator(device).manual_seed(seed)
    coarse = torch.rand((case.batch, 3, 8, 8), generator=generator, device=device)
    size = (case.height, case.width)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=True)
    truth = BRIGHTEST * smooth**4
    photo = truth.clamp(0.0, 1.0) ** (1 / 2.2)
    return StepTensors((photo * 255).round() / 255, truth)


def cpu_step_cases() -> list[StepCase]:
    """Return the cases that a CPU runs: steps of a few seconds."""
    return [StepCase(1, 256, 256, kernel_size) for kernel_size in (5, 9)]


def gpu_step_cases() -> list[StepCase]:
    """Return the cases that a GPU runs, as a training under autocast has them."""
    return [
        StepCase(batch, size, size, kernel_size, "bfloat16")
        for batch, size in ((8, 256), (8, 512))
        for kernel_size in (5, 9)
    ]
