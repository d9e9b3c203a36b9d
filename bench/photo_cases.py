"""What is timed of reconstruction: photos in memory, of as many pixels as cameras give."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.cases import CONTIGUOUS, Sizes
from bench.step_cases import MODEL, StepCase, make_step_tensors

RECONSTRUCTION = "reconstruction"  # of photos by the network, warm; no pass of an operator
PHOTO_DTYPE = "uint8"
KERNEL_SIZE = 5  # of the default network


class PhotoTensors(NamedTuple):
    """Photos as a decoder gives them."""

    photos: Tensor  # (B, 3, H, W) uint8, sRGB-encoded


@dataclass(frozen=True)
class PhotoCase(Sizes):
    """Photos of one size, reconstructed one after the other by the default network."""

    batch: int
    height: int
    width: int

    channels = 3
    kernel_size = KERNEL_SIZE
    dtype = PHOTO_DTYPE
    channel_filter = "pixel"
    layout = CONTIGUOUS
    normalize = None

    @property
    def name(self) -> str:
        """Unique name of the case."""
        return f"{self.shape}-{MODEL}-{self.dtype}"

    @property
    def title(self) -> str:
        """The case as a reader wants it."""
        count = "a photo" if self.batch == 1 else f"{self.batch} photos"
        return f"{count} of {self.width}×{self.height} ({self.megapixels / self.batch:.3g} MP)"

    @property
    def megapixels(self) -> float:
        """Million pixels of all photos."""
        return self.pixels / 1e6

    @property
    def argument_bytes(self) -> int:
        """Bytes of the photos."""
        return 3 * self.pixels

    @property
    def result_bytes(self) -> int:
        """Bytes of the results, in float32."""
        return 4 * 3 * self.pixels


def make_photo_tensors(case: PhotoCase, device: torch.device, seed: int = 0) -> PhotoTensors:
    """Make photos with smooth light and clipped highlights.

    Args:
        case: the problem.
        device: where the tensors live.
        seed: seed of the generator.

    Returns:
        The photos.
    """
    step = StepCase(case.batch, case.height, case.width, case.kernel_size)
    photo = make_step_tensors(step, device, seed).photo
    return PhotoTensors((photo * 255).round().to(torch.uint8))


def cpu_photo_cases(full: bool) -> list[PhotoCase]:
    """Return the cases that a CPU runs: calls of a second or two, with ``full`` a batch, too."""
    more = [PhotoCase(3, 1024, 1024)] if full else []
    return [PhotoCase(1, 512, 512), PhotoCase(1, 1024, 1024), *more]


def gpu_photo_cases() -> list[PhotoCase]:
    """Return the cases that a GPU runs: 1, 4, 12 and 50 megapixels, and a batch of 12."""
    sizes = [(1024, 1024), (2048, 2048), (3000, 4000), (6144, 8192)]
    return [*(PhotoCase(1, *size) for size in sizes), PhotoCase(3, 3000, 4000)]
