"""Which launches of the fused head are counted, and what they compile to."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from bench.cases import as_dtype
from bench.head_cases import BF16, FEATURES, IEEE, MODES, TF32
from bench.sass import Kernel, leaders
from bench.sass_path import hot_path, loops
from bench.static_count import COUNTED, compiled_kernel
from bench.static_problems import BACKWARD, BATCH, FORWARD, SIZES
from kpnops._decoupled_filter.geometry import Window
from kpnops._decoupled_filter.plan import Launch
from kpnops._predict_filter import launch_patch
from kpnops._predict_filter.call import Call
from kpnops._predict_filter.launch_head import head_forward
from kpnops._predict_filter.patches import patches

INTERIOR, BORDER = "interior", "border"


@dataclass(frozen=True)
class HeadProblem:
    """One call: a softmax, zero padding, no channel filter."""

    channels: int
    kernel_size: int
    features: int
    mode: str  # a key of MODES

    @property
    def name(self) -> str:
        """Unique name of the problem."""
        return f"C{self.channels} K{self.kernel_size} F{self.features} {self.mode}"


@dataclass(frozen=True)
class HeadRow:
    """What one launch compiles to."""

    name: str  # problem, pass, kernel, and which tiles it is for
    problem: HeadProblem
    pass_name: str  # FORWARD or BACKWARD
    kernel: str
    warps: int
    registers: int
    stack_bytes: int
    instructions: int  # of the whole kernel
    compile_seconds: float | None  # of the processor, nothing in Triton's cache
    # of one trip through the longest loop, and one through each within; None without a loop
    loop_instructions: int | None
    # Thread instructions for a pixel and tap; of kernels that form logits, where a loop over blocks
    # of taps is all they do. None for the others.
    per_tap: float | None
    counts: dict[str, int]  # instructions of that loop, or of the path where there is none


def head_problems() -> list[HeadProblem]:
    """Return the problems of the table."""
    return [
        HeadProblem(3, kernel_size, FEATURES, mode)
        for kernel_size, mode in itertools.product((5, 11, 21), (TF32, BF16, IEEE))
    ]


def head_launches(problem: HeadProblem) -> Iterator[tuple[str, str, Launch]]:
    """Yield pass, name and launch of the forward, and of a patch of the backward."""
    call = _call(problem)
    output = torch.empty(call.output_shape, dtype=call.result_dtype, device="meta")
    sums = torch.empty(call.statistics_shape, dtype=call.sum_dtype, device="meta")
    for launch in head_forward(call, output, sums):
        tiles = BORDER if launch.constants["MASKED"] else INTERIOR
        yield FORWARD, _name(problem, FORWARD, launch, tiles), launch
    cut = patches(call)
    assert cut is not None
    patch, filters = cut[0], torch.empty(1, dtype=call.sum_dtype, device="meta")
    partial = filters.new_empty(launch_patch.chunks_of(cut), *call.weight.shape)
    for launch in (
        launch_patch.patch_filters(call, patch, sums, filters),
        launch_patch.grad_input(call, patch, output, filters, call.input),
        launch_patch.grad_logits(call, patch, output, filters),
        launch_patch.grad_features(call, patch, filters, call.features),
        launch_patch.grad_weight(call, patch, filters, partial),
    ):
        yield BACKWARD, _name(problem, BACKWARD, launch), launch


def _name(problem: HeadProblem, pass_name: str, launch: Launch, tiles: str = "") -> str:
    kernel = launch.kernel.__name__.strip("_")
    return f"{problem.name} {pass_name} {kernel} {tiles}".strip()


def _call(problem: HeadProblem) -> Call:
    dtype, precision = MODES[problem.mode]
    size, taps = SIZES["W16"], problem.kernel_size**2

    def meta(*sizes: int) -> torch.Tensor:
        return torch.empty(sizes, dtype=as_dtype(dtype), device="meta")

    window = Window((problem.kernel_size, problem.kernel_size), (1, 1), (1, 1), "zeros")
    features, image = (
        meta(BATCH, channels, *size) for channels in (problem.features, problem.channels)
    )
    weight, bias = meta(taps, problem.features), meta(taps)
    return Call(features, weight, bias, image, None, window, "mul", True, precision)


def count_head(
    problem: HeadProblem, pass_name: str, name: str, launch: Launch, target: str, cold: bool
) -> HeadRow:
    """Compile a launch and count.

    Args:
        problem: what the launch is of.
        pass_name: FORWARD or BACKWARD.
        name: of the row.
        launch: the launch.
        target: "sm_90" or another NVIDIA key of TARGETS.
        cold: compile with an empty cache, and say how long it took.
    """
    kernel, seconds = compiled_kernel(launch, target, cold)
    path = hot_path(kernel).path
    longest = max(path.loops, key=lambda loop: len(loop.everything), default=None)
    names = [item.name for item in (longest or path).everything]
    return HeadRow(
        name=name,
        problem=problem,
        pass_name=pass_name,
        kernel=launch.kernel.__name__,
        warps=launch.num_warps,
        registers=kernel.registers,
        stack_bytes=kernel.stack_bytes,
        instructions=len(kernel.instructions),
        compile_seconds=seconds,
        loop_instructions=None if longest is None else len(longest.everything),
        per_tap=_per_tap(problem, launch, len((longest or path).everything), kernel),
        counts={name: names.count(name) for name in COUNTED if name in names},
    )


def _per_tap(problem: HeadProblem, launch: Launch, trip: int, kernel: Kernel) -> float | None:
    """Thread instructions for a pixel and tap, of kernels that form logits block after block.

    Where no matrix unit does, a loop over features comes on top of a trip; the path to the end,
    which may go past it, has it not.
    """
    constants = launch.constants
    if "TAPS" not in constants:
        return None
    block = constants["ROWS"] * constants["COLUMNS"]
    pixels = constants.get("PIXELS") or constants["TILE_H"] * constants["TILE_W"]
    a_thread = pixels / (32 * launch.num_warps)
    instructions = trip
    if not constants["MATRIX"]:
        products, length = _products_loop(kernel)
        instructions += round(problem.features * block * a_thread / products * length)
    K = problem.kernel_size
    blocks = -(-K // constants["ROWS"]) * -(-K // constants["COLUMNS"])
    return round(instructions * blocks / (a_thread * K**2), 1)


def _products_loop(kernel: Kernel) -> tuple[int, int]:
    """Products and instructions of the loop that takes fewest instructions for a product."""
    starts = leaders(kernel.instructions, kernel.labels)
    ends = dict(zip(starts, [*starts[1:], len(kernel.instructions)], strict=True))
    found = []
    for body in loops(kernel).values():
        items = [item for start in body for item in kernel.instructions[start : ends[start]]]
        found.append((sum(item.name == "FFMA" for item in items), len(items)))
    return min((pair for pair in found if pair[0]), key=lambda pair: pair[1] / pair[0])
