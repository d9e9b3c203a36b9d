"""What is timed: shapes, data types, tensors, and the bytes that no implementation can avoid."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

FORWARD = "forward"
BACKWARD = "backward"  # all gradients, the forward not timed
FORWARD_BACKWARD = "forward+backward"
PASSES = (FORWARD, BACKWARD, FORWARD_BACKWARD)
# Most alternatives are only compared in these.
COMPARED_PASSES = (FORWARD, FORWARD_BACKWARD)

CONTIGUOUS = "contiguous"
CHANNELS_LAST = "channels_last"
SOFTMAX = "softmax"

# The float32 shapes that the authors of decoupled dynamic filters time: kernel size 3, filters per
# image (B, C, H, W).
DDF_SHAPES = [(2, 256, 200, 300)] + [(32, 256, size, size) for size in (224, 112, 56, 28, 14, 7)]
IMAGE_SIZES = [(512, 512), (1080, 1920), (2160, 3840)]
IMAGE_KERNEL_SIZES = (3, 5, 7, 11, 21)
CHANNEL_FILTERS = ("pixel", "image")
# (input, filters). The last pair is what autocast gives: a network's bfloat16 filters on a float32
# radiance image; it is called "bfloat16+float32".
CPU_DTYPES = [("float32", "float32")]
GPU_DTYPES = [("float32", "float32"), ("bfloat16", "bfloat16"), ("float32", "bfloat16")]


class Tensors(NamedTuple):
    """The arguments of one call and the cotangent of its result."""

    input: Tensor  # (B, C, H, W)
    spatial_filter: Tensor  # (B, K*K, H, W)
    channel_filter: Tensor  # (B, C, H, W) per pixel, (B, C, K*K) per image
    cotangent: Tensor  # (B, C, H, W)

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three differentiable arguments."""
        return self.input, self.spatial_filter, self.channel_filter


class Sizes:
    """What the sizes of a case tell, of whichever kind it is."""

    batch: int
    channels: int
    height: int
    width: int
    kernel_size: int

    @property
    def shape(self) -> str:
        """The input's sizes and the kernel size, as in `1x3x512x512-K5`."""
        sizes = f"{self.batch}x{self.channels}x{self.height}x{self.width}"
        return f"{sizes}-K{self.kernel_size}"

    @property
    def taps(self) -> int:
        """Number of taps of the filter, K*K."""
        return self.kernel_size**2

    @property
    def pixels(self) -> int:
        """Number of output pixels over the whole batch."""
        return self.batch * self.height * self.width


@dataclass(frozen=True)
class Case(Sizes):
    """One problem: stride 1, dilation 1, zero padding, one spatial group, `combine="mul"`.

    Raises:
        ValueError: a field has a value that no benchmark knows.
    """

    batch: int
    channels: int
    height: int
    width: int
    kernel_size: int
    channel_filter: str = "pixel"  # "pixel": (B, C, H, W); "image": (B, C, K*K)
    input_dtype: str = "float32"
    filter_dtype: str = "float32"
    layout: str = CONTIGUOUS  # of all four-dimensional tensors
    normalize: str | None = None  # None or SOFTMAX

    def __post_init__(self):
        known = {
            "channel_filter": CHANNEL_FILTERS,
            "layout": (CONTIGUOUS, CHANNELS_LAST),
            "normalize": (None, SOFTMAX),
        }
        for field_name, values in known.items():
            if getattr(self, field_name) not in values:
                value = getattr(self, field_name)
                raise ValueError(f"{field_name}: expected one of {values}, got {value!r}")
        for dtype in (self.input_dtype, self.filter_dtype):
            as_dtype(dtype)  # raises for an unknown name

    @property
    def name(self) -> str:
        """Unique name of the case."""
        parts = [self.shape, self.channel_filter, self.dtype]
        if self.layout != CONTIGUOUS:
            parts.append(self.layout)
        if self.normalize is not None:
            parts.append(self.normalize)
        return "-".join(parts)

    @property
    def dtype(self) -> str:
        """Data types in one word: `bfloat16+float32` for bfloat16 filters on a float32 image."""
        if self.input_dtype == self.filter_dtype:
            return self.input_dtype
        return f"{self.filter_dtype}+{self.input_dtype}"

    @property
    def result_dtype(self) -> torch.dtype:
        """Promoted data type of input and filters."""
        return torch.promote_types(as_dtype(self.input_dtype), as_dtype(self.filter_dtype))

    @property
    def input_size(self) -> int:
        """Bytes of one number of the input."""
        return as_dtype(self.input_dtype).itemsize

    @property
    def filter_size(self) -> int:
        """Bytes of one number of a filter."""
        return as_dtype(self.filter_dtype).itemsize

    @property
    def result_size(self) -> int:
        """Bytes of one number of the result."""
        return self.result_dtype.itemsize

    @property
    def channel_filter_bytes(self) -> int:
        """Bytes of the channel filter."""
        per_image = self.batch * self.channels * self.taps
        numbers = self.pixels * self.channels if self.channel_filter == "pixel" else per_image
        return numbers * self.filter_size

    @property
    def input_bytes(self) -> int:
        """Bytes of the input."""
        return self.pixels * self.channels * self.input_size

    @property
    def spatial_filter_bytes(self) -> int:
        """Bytes of the spatial filter."""
        return self.pixels * self.taps * self.filter_size

    @property
    def result_bytes(self) -> int:
        """Bytes of the result, and of its cotangent."""
        return self.pixels * self.channels * self.result_size

    @property
    def argument_bytes(self) -> int:
        """Bytes of the three arguments, and of their gradients."""
        return self.input_bytes + self.spatial_filter_bytes + self.channel_filter_bytes


def as_dtype(name: str) -> torch.dtype:
    """Return the torch data type called `name`."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is not the name of a torch data type, as 'float32' is one")
    return dtype


class Traffic(Protocol):
    """What must be read and written at least."""

    @property
    def argument_bytes(self) -> int:
        """Bytes of the arguments, and of their gradients."""
        ...

    @property
    def result_bytes(self) -> int:
        """Bytes of the result, and of its cotangent."""
        ...


def minimal_bytes(case: Traffic, pass_name: str) -> int:
    """Return the memory traffic that the pass cannot go below.

    Forward: the arguments are read once and the result is written once. Backward: the
    arguments and the cotangent are read once and their gradients are written once.
    """
    forward = case.argument_bytes + case.result_bytes
    backward = backward_bytes(case)
    return {FORWARD: forward, BACKWARD: backward, FORWARD_BACKWARD: forward + backward}[pass_name]


def backward_bytes(case: Traffic) -> int:
    """Return the least memory traffic of the backward pass alone."""
    return 2 * case.argument_bytes + case.result_bytes


def make_tensors(case: Case, device: torch.device, seed: int = 0) -> Tensors:
    """Make normally distributed arguments and cotangent; filters scaled so that results are near 1.

    Args:
        case: the problem.
        device: where the tensors live.
        seed: seed of the generator.

    Returns:
        The tensors; none of them requires a gradient.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        values = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        if case.layout == CHANNELS_LAST and len(shape) == 4:
            return values.contiguous(memory_format=torch.channels_last)
        return values

    image = (case.batch, case.channels, case.height, case.width)
    per_image = (case.batch, case.channels, case.taps)
    filter_dtype = as_dtype(case.filter_dtype)
    spatial_filter = normal((case.batch, case.taps, case.height, case.width), filter_dtype)
    if case.normalize is None:  # logits are as they come
        spatial_filter.div_(case.kernel_size)
    return Tensors(
        input=normal(image, as_dtype(case.input_dtype)),
        spatial_filter=spatial_filter,
        channel_filter=normal(image if case.channel_filter == "pixel" else per_image, filter_dtype),
        cotangent=normal(image, case.result_dtype),
    )


def default_cpu_cases() -> list[Case]:
    """Return the four cases that a CPU runs unless more is asked for."""
    return [
        Case(1, 3, 512, 512, 3),
        Case(1, 3, 512, 512, 5),
        Case(1, 32, 256, 256, 3),
        Case(1, 64, 128, 128, 5),
    ]


def all_cases(dtypes: list[tuple[str, str]]) -> list[Case]:
    """Return every case: the image shapes in the given data types, DDF's shapes in float32.

    Args:
        dtypes: pairs (input, filters) of data type names.

    Returns:
        The cases; filters per pixel and per image of every shape.
    """
    images = [
        (batch, 3, height, width, kernel_size)
        for height, width in IMAGE_SIZES
        for batch in (1, 4)
        for kernel_size in IMAGE_KERNEL_SIZES
    ]
    images.append((1, 64, 512, 512, 5))
    cases = [
        Case(*shape, channel_filter, input_dtype, filter_dtype)
        for shape in images
        for channel_filter in CHANNEL_FILTERS
        for input_dtype, filter_dtype in dtypes
    ]
    cases += [
        Case(*shape, 3, channel_filter)
        for shape in DDF_SHAPES
        for channel_filter in CHANNEL_FILTERS
    ]
    return cases
