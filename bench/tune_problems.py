"""What is swept: kernels, the calls they are swept on, and the parameters that are tried."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.cases import BACKWARD, FORWARD, Case, Tensors
from kpnops._decoupled_filter.call import Call, Gradients
from kpnops._decoupled_filter.geometry import Window
from kpnops._decoupled_filter.launch_table import class_of

HD = (1080, 1920)
SQUARE = (512, 512)
FLOAT32 = ("float32", "float32")
BFLOAT16 = ("bfloat16", "bfloat16")
MIXED = ("float32", "bfloat16")
FLOAT64 = ("float64", "float64")

# No tile may be wider or higher: offsets stay within 32 bits (`is_fast`).
WIDEST, HIGHEST = 256, 16
WARPS = (1, 2, 4, 8)
REGISTERS = (None, 96, 128, 168, 255)
# Values that are tried beside the heuristic's; what is not named stays as it is.
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "tile_forward": {"rows": (1, 2, 4, 8), "block_w": (32, 64, 128, 256)},
    "tile_input": {"rows": (1, 2, 4), "block_w": (32, 64, 128, 256)},
    "tile_filters": {"rows": (1, 2, 4), "block_w": (32, 64, 128, 256)},
    "tile_channel_image": {"block_h": (16, 32, 64, 128), "block_w": (64, 128, 256)},
    "fused": {"block_h": (1, 2, 4, 8), "block_w": (32, 64, 128)},
    "band_forward": {"rows": (2, 4, 8), "block_c": (32, 64), "ahead": (1, 3)},
    "band_input": {"rows": (1, 2, 4), "block_c": (32, 64), "ahead": (1, 3)},
    "band_filters": {"block_c": (16, 32, 64)},
    "gather_forward": {"block_p": (64, 128, 256), "block_n": (1, 2, 4, 8, 16)},
    "gather_input": {"block_p": (64, 128, 256), "block_n": (1, 2, 4, 8)},
    "gather_spatial": {"block_p": (32, 64, 128), "block_n": (8, 16, 32)},
}
# Kernels whose threads hold `rows` rows of `pixels` pixels, which fill a tile.
HELD = ("tile_forward", "tile_input", "tile_filters")
# The kernel that each of them launches, and what tells two uses of one kernel apart.
KERNELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tile_forward": ("_tile_fwd_kernel", {"TRANSPOSED": False}),
    "tile_input": ("_tile_fwd_kernel", {"TRANSPOSED": True}),
    "tile_filters": ("_tile_bwd_filters_kernel", {}),
    "tile_channel_image": ("_tile_bwd_channel_kernel", {}),
    "fused": ("_fused_bwd_kernel", {}),
    "band_forward": ("_band_fwd_kernel", {"TRANSPOSED": False}),
    "band_input": ("_band_fwd_kernel", {"TRANSPOSED": True}),
    "band_filters": ("_band_bwd_filters_kernel", {}),
    "gather_forward": ("_gather_fwd_kernel", {}),
    "gather_input": ("_gather_bwd_input_kernel", {}),
    "gather_spatial": ("_gather_bwd_spatial_kernel", {}),
}
OUTPUTS = ("out_ptr", "grad_x_ptr", "grad_spatial_ptr", "grad_channel_ptr", "partial_ptr")
# Elements that a thread of a tile holds, at most and at least.
LEAST_PER_THREAD, MOST_PER_THREAD = 1, 8


@dataclass(frozen=True)
class Problem:
    """A kernel and a call that launches it."""

    kernel: str  # one of KERNELS
    case: Case

    @property
    def name(self) -> str:
        """Unique name."""
        return f"{self.kernel} {self.case.name}"

    @property
    def pass_name(self) -> str:
        """The pass that launches the kernel."""
        return FORWARD if self.kernel.endswith("forward") else BACKWARD


def problems() -> list[Problem]:
    """Return what is swept, the kernels of the goals first.

    Returns:
        Problems of different kernels or classes.
    """
    return list(dict.fromkeys(_problems()))


def _problems() -> Iterator[Problem]:
    few = [Case(1, 3, *HD, size, "pixel", *dtypes) for size in (3, 5) for dtypes in _FEW_DTYPES]
    many = [Case(1, 64, *SQUARE, size, form) for size in (3, 5) for form in ("pixel", "image")]
    narrow = [Case(1, 64, *SQUARE, size, "pixel", *BFLOAT16) for size in (3, 5, 11)]
    last = [replace(case, layout="channels_last") for case in (*few[:1], *many[:1])]
    for case in few:
        yield Problem("tile_forward", case)
        yield Problem("fused", case)
    for case in many:
        yield Problem("tile_forward", case)
        yield Problem("tile_input", case)
        yield Problem("tile_filters", case)
        if case.channel_filter == "image":
            yield Problem("tile_channel_image", case)
    for case in narrow:
        yield Problem("band_forward", case)
        yield Problem("band_input", case)
        yield Problem("band_filters", case)
    for dtypes in _FEW_DTYPES:
        yield Problem("tile_forward", Case(1, 3, *HD, 3, "image", *dtypes))
        yield Problem("tile_forward", Case(1, 3, *HD, 5, "image", *dtypes))
    for size in (11, 21):
        for dtypes in (FLOAT32, BFLOAT16):
            case = Case(1, 3, *HD, size, "pixel", *dtypes)
            yield Problem("gather_forward", case)
            yield Problem("gather_input", case)
            yield Problem("gather_spatial", case)
    yield Problem("tile_forward", Case(1, 3, *HD, 7))
    yield Problem("fused", Case(1, 3, *HD, 7))
    for case in last:
        yield Problem("tile_forward", case)
    for case in (Case(1, 3, *HD, 3, "pixel", *FLOAT64), Case(1, 3, *HD, 5, "pixel", *FLOAT64)):
        yield Problem("tile_forward", case)
        yield Problem("fused", case)


_FEW_DTYPES = (FLOAT32, MIXED, BFLOAT16)


def shapes(heuristic: Any, kernel: str) -> list[Any]:
    """Return launch parameters with other tiles and warps than the heuristic's.

    Args:
        heuristic: a dataclass of `launch.py` or `launch_band.py`.
        kernel: whose values are tried.

    Returns:
        Every combination in which a thread has a sensible part of the tile; not the heuristic.
    """
    found = [heuristic]
    for name, values in SHAPES[kernel].items():
        found = [replace(config, **{name: value}) for config in found for value in values]
    found = [replace(config, num_warps=warps) for config in found for warps in WARPS]
    if kernel in HELD:
        found = [_filled(config) for config in found]
    return [
        config
        for config in dict.fromkeys(found)
        if config != heuristic and _is_sensible(config, kernel)
    ]


def _filled(config: Any) -> Any:
    """Return the parameters with a tile as high as its threads fill, each with one piece."""
    pixels = 32 * config.num_warps * config.rows * config.pixels
    return replace(config, block_h=pixels // config.block_w)


def _is_sensible(config: Any, kernel: str) -> bool:
    if kernel in HELD:
        return config.rows <= config.block_h <= HIGHEST
    threads = 32 * config.num_warps
    if kernel.startswith("gather"):
        elements = config.block_p * config.block_n
    elif kernel.startswith("band"):
        # A warp or two for each 16 channels, the rows of a tile of the tensor cores.
        return config.block_c // 32 <= config.num_warps <= config.block_c // 8
    elif kernel == "fused":
        elements = config.block_h * config.block_w
    else:  # its rows are walked by every thread
        elements = config.block_w
    return LEAST_PER_THREAD <= elements / threads <= MOST_PER_THREAD


def bounds(config: Any) -> list[Any]:
    """Return launch parameters with other bounds of registers than these."""
    return [
        replace(config, max_registers=bound) for bound in REGISTERS if bound != config.max_registers
    ]


@dataclass
class Recorder:
    """Stands in for the lookup: forces parameters, and takes down what it was asked."""

    kernel: str
    forced: Any = None
    heuristic: Any = None
    key: str = ""

    def __call__(self, heuristic: Any, kernel: str, call: Call) -> Any:
        """As `launch_table.tuned`."""
        if kernel != self.kernel:
            return heuristic
        self.heuristic, self.key = heuristic, f"{kernel} {class_of(call)}"
        return heuristic if self.forced is None else self.forced


def modules() -> list[ModuleType]:
    """Return the modules whose launchers look into the table."""
    from kpnops._decoupled_filter import launch_band, launch_gather, launch_tile

    return [
        module for module in (launch_tile, launch_band, launch_gather) if hasattr(module, "tuned")
    ]


def outputs_of(problem: Problem, tensors: Tensors) -> tuple[Tensor, ...]:
    """Return memory for what the problem's pass writes: the result, or three gradients."""
    if problem.pass_name == FORWARD:
        return (torch.empty_like(tensors.cotangent),)
    return tuple(torch.empty_like(argument) for argument in tensors.arguments)


def planned(
    problem: Problem,
    tensors: Tensors,
    forced: Any = None,
    outputs: tuple[Tensor, ...] | None = None,
) -> tuple[Any, Recorder]:
    """Return the problem's launch with forced parameters, or with the heuristic's.

    Args:
        problem: names the kernel.
        tensors: of its case; meta tensors will do.
        forced: launch parameters, or None.
        outputs: of `outputs_of`; None makes new ones.

    Returns:
        The launch, and who took down the heuristic and the key of the table.

    Raises:
        ValueError: the call does not launch the kernel, or looks nothing up for it.
    """
    from kpnops._decoupled_filter.triton_backend import plan_backward, plan_forward

    case = problem.case
    outputs = outputs or outputs_of(problem, tensors)
    arguments = tensors.arguments
    call = Call(*arguments, Window((case.kernel_size, case.kernel_size)), "mul")
    recorder = Recorder(problem.kernel, forced)
    patches = [mock.patch.object(module, "tuned", recorder) for module in modules()]
    for patch in patches:
        patch.start()
    try:
        if problem.pass_name == FORWARD:
            launches = plan_forward(call, *outputs).launches
        else:
            launches = plan_backward(call, tensors.cotangent, Gradients(*outputs)).launches
    finally:
        for patch in patches:
            patch.stop()
    name, constants = KERNELS[problem.kernel]
    for launch in launches:
        here = {key: launch.constants.get(key) for key in constants}
        if launch.kernel.__name__ == name and here == constants and recorder.key:
            return launch, recorder
    names = [launch.kernel.__name__ for launch in launches]
    raise ValueError(f"{problem.name}: launches {names}, looked up {recorder.key!r}")


def meta_tensors(case: Case, width: int | None = None) -> Tensors:
    """Return tensors of a case, or of one of another width, that have no memory."""
    from bench.cases import as_dtype

    size = (case.batch, case.channels, case.height, width or case.width)
    memory_format = (
        torch.channels_last if case.layout == "channels_last" else torch.contiguous_format
    )

    def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        layout = memory_format if len(shape) == 4 else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)

    filters = as_dtype(case.filter_dtype)
    per_image = (case.batch, case.channels, case.taps)
    return Tensors(
        input=empty(size, as_dtype(case.input_dtype)),
        spatial_filter=empty((case.batch, case.taps, *size[2:]), filters),
        channel_filter=empty(size if case.channel_filter == "pixel" else per_image, filters),
        cotangent=empty(size, case.result_dtype),
    )
