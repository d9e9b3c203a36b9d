"""Counts from the compiled kernel of a launch: registers, instructions, numbers loaded."""

import math
from dataclasses import dataclass

from torch import Tensor

from bench.compiled import compile_cold, compile_launch, specialise
from bench.sass import TENSOR_PRODUCTS, Instruction, Kernel, read_kernel
from bench.sass_path import HotPath, hot_path
from bench.static_problems import SIZES, Problem, row_name
from kpnops._decoupled_filter.plan import Launch


@dataclass(frozen=True)
class Row:
    """What one launch compiles to. Thread instructions and loads are of a program without masks."""

    name: str  # problem, pass and kernel
    problem: Problem
    pass_name: str  # FORWARD or BACKWARD
    kernel: str
    warps: int
    registers: int
    stack_bytes: int
    instructions: int  # of the whole kernel
    compile_seconds: float | None  # of the processor, nothing in Triton's cache
    outputs: int  # of a program: pixels times channels
    loop_instructions: int | None  # of one trip through the loop with most products
    loop_outputs: int | None  # that a program makes in a trip
    # None where there is no loop over channels or rows; both are thread instructions per output
    loop_per_output: float | None
    path_per_output: float  # from the program's first instruction to its last
    input_numbers_per_output: float  # loaded from x_ptr
    input_bytes_per_output: float
    pixels_per_spatial_load: float | None  # of one load instruction
    counts: dict[str, int]  # instructions of the loop, or of the path where there is none


COUNTED = ("LDG", "STG", "LDS", "STS", "HMMA", "HGMMA", "FFMA", "MUFU", "SHFL", "BAR")
# Their loop is one over taps: what they do for an output lies in all trips together.
_LOOP_OVER_TAPS = ("_fused_bwd_kernel",)


def count(problem: Problem, pass_name: str, launch: Launch, target: str, cold: bool) -> Row:
    """Compile a launch and count.

    Args:
        problem: what the launch is of.
        pass_name: FORWARD or BACKWARD.
        launch: the launch.
        target: "sm_90" or another NVIDIA key of TARGETS.
        cold: compile with an empty cache, and say how long it took.
    """
    kernel, seconds = compiled_kernel(launch, target, cold)
    hot = hot_path(kernel)
    threads = 32 * launch.num_warps
    outputs = _of_a_program(launch, launch.arguments["x_ptr"])
    trip, trips = _trip(launch, hot, threads)
    loop = () if hot.loop is None else hot.loop.everything
    by_loop = trip > 0 and launch.kernel.__name__ not in _LOOP_OVER_TAPS
    numbers, size = _loaded(launch, hot, trips, by_loop)
    scale = threads / (trip if by_loop else outputs)
    return Row(
        name=row_name(problem, pass_name, launch),
        problem=problem,
        pass_name=pass_name,
        kernel=launch.kernel.__name__,
        warps=launch.num_warps,
        registers=kernel.registers,
        stack_bytes=kernel.stack_bytes,
        instructions=len(kernel.instructions),
        compile_seconds=seconds,
        outputs=round(outputs),
        loop_instructions=len(loop) if by_loop else None,
        loop_outputs=round(trip) if by_loop else None,
        loop_per_output=round(len(loop) * scale, 2) if by_loop else None,
        path_per_output=round((len(hot.straight) + trips * len(loop)) * threads / outputs, 2),
        input_numbers_per_output=round(numbers * scale, 2),
        input_bytes_per_output=round(numbers * size * scale, 2),
        pixels_per_spatial_load=_pixels_per_load(launch, hot),
        counts=_counts(loop if by_loop else hot.path.everything),
    )


def compiled_kernel(launch: Launch, target: str, cold: bool) -> tuple[Kernel, float | None]:
    """Compile a launch and read its instructions.

    Args:
        launch: the launch.
        target: "sm_90" or another NVIDIA key of TARGETS.
        cold: compile with an empty cache.

    Returns:
        The kernel, and the seconds that it took, to tenths, if ``cold``.
    """
    if cold:
        compiled, seconds = compile_cold(launch, target)
    else:
        compiled, seconds = compile_launch(launch, target), None
    kernel = read_kernel(compiled.asm["cubin"], pointers(launch))
    return kernel, None if seconds is None else round(seconds, 1)


def pointers(launch: Launch) -> list[str]:
    """Return the names of the compiled kernel's parameters that point to tensors; the others are
    empty."""
    return [
        name if isinstance(launch.arguments.get(name), Tensor) else ""
        for name in specialise(launch).parameters
    ]


def _of_a_program(launch: Launch, tensor: Tensor) -> float:
    """How many numbers of a tensor a program stands for, if no tile reaches over the edge."""
    numbers = tensor.numel() / launch.programs
    if tensor.shape[-2:] == SIZES["Wodd"]:  # the last tiles lack one row and column
        return numbers / math.prod(SIZES["Wodd"]) * math.prod(SIZES["W16"])
    return numbers


def _trip(launch: Launch, hot: HotPath, threads: int) -> tuple[float, int]:
    """How many numbers a program makes in a trip through the loop, and how many trips it makes;
    zeros without a loop, and no numbers in one over taps.

    They follow from what is stored in the loop or, of a sum over all trips, from the gradient that
    is read. Compilers take the first trip out of some loops.
    """
    if hot.loop is None:
        return 0.0, 0
    stored = [item for item in hot.loop.everything if item.name == "STG"]
    read = [item for item in hot.loop.everything if _reads(item, "grad_ptr")]
    known = [item for item in stored or read if len(item.parameters) == 1]
    if not stored and not read and any(i.name in TENSOR_PRODUCTS for i in hot.loop.everything):
        return 0.0, launch.constants["KH"]  # over rows of taps; never unrolled, for its barriers
    if not known:
        raise ValueError(f"{launch.kernel.__name__}: nothing tells how often its loop is run")
    kind = known[0]
    (name,) = kind.parameters
    tensor = launch.arguments[name]
    inside, outside = (
        sum(item.width for item in items if item.name == kind.name and name in item.parameters)
        * threads
        / tensor.element_size()
        for items in (hot.loop.everything, hot.straight)
    )
    everything = _of_a_program(launch, tensor)
    return inside, max(1, round((everything - outside) / inside))


def _loaded(launch: Launch, hot: HotPath, trips: int, by_loop: bool) -> tuple[float, int]:
    """Numbers of the input that a thread loads - in a trip, or on the path - and bytes of one."""
    size = launch.arguments["x_ptr"].element_size()

    def numbers(items: tuple[Instruction, ...]) -> float:
        return sum(item.width for item in items if _reads(item, "x_ptr")) / size

    inside = numbers(hot.loop.everything) if hot.loop else 0
    return inside if by_loop else numbers(hot.straight) + trips * inside, size


def _reads(item: Instruction, name: str) -> bool:
    return item.name in ("LDG", "LDGSTS") and name in item.parameters


def _pixels_per_load(launch: Launch, hot: HotPath) -> float | None:
    loads = [item.width for item in hot.path.everything if _reads(item, "spatial_ptr")]
    if not loads:
        return None
    return round(sum(loads) / len(loads) / launch.arguments["spatial_ptr"].element_size(), 2)


def _counts(items: tuple[Instruction, ...]) -> dict[str, int]:
    names = [item.name for item in items]
    return {name: names.count(name) for name in COUNTED if name in names}
