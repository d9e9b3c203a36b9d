"""What the launchers make of a call: launches as data, and how they are run."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import triton.language as tl
from torch import Tensor

from .strips import Strip

__all__ = ["Cut", "Launch", "Plan", "channel_strides", "in_strips", "run", "strides", "sum_type"]

# Programs that a launch has for a strip, and what arguments differ; None for no launch.
Cut = Callable[[Strip], tuple[int, dict[str, Any]] | None]


@dataclass(frozen=True)
class Launch:
    """One kernel launch on a one-dimensional grid: arguments by name, constants apart.

    One that has a ``cut`` is a pattern for launches of strips: it lacks what they take of a strip.
    """

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int
    max_registers: int | None = None  # of a thread; a hint for NVIDIA's assembler only
    cut: Cut | None = None

    def options(self, nvidia: bool) -> dict[str, int]:
        """Compile options of the launch on an NVIDIA or another GPU."""
        if not nvidia or self.max_registers is None:
            return {"num_warps": self.num_warps}
        return {"num_warps": self.num_warps, "maxnreg": self.max_registers}


def in_strips(patterns: list[Launch], strips: list[Strip]) -> list[Launch]:
    """The launches of all patterns, strip after strip: the workspace serves one at a time."""
    launches = []
    for strip in strips:
        taken = strip.arguments
        for item in patterns:
            cut = None if item.cut is None else item.cut(strip)
            if cut is not None and cut[0] > 0:
                arguments = {**item.arguments, **taken, **cut[1]}
                launches.append(
                    Launch(
                        item.kernel,
                        cut[0],
                        arguments,
                        item.constants,
                        item.num_warps,
                        item.max_registers,
                    )
                )
    return launches


@dataclass
class Plan:
    """Launches in their order, and what is done with their workspace afterwards."""

    launches: list[Launch] = field(default_factory=list)
    finish: list[Callable[[], object]] = field(default_factory=list)


def run(plan: Plan, device: torch.device) -> None:
    """Launch what is planned on ``device``, in its order."""
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        for item in plan.launches:
            options = item.options(nvidia=torch.version.hip is None)
            item.kernel[(item.programs,)](**item.arguments, **item.constants, **options)
        for step in plan.finish:
            step()


class _Call(Protocol):
    """What the calls of all operators have."""

    @property
    def channel_filter(self) -> Tensor | None: ...
    @property
    def channel_shared(self) -> bool: ...
    @property
    def sum_dtype(self) -> torch.dtype: ...


def sum_type(call: _Call) -> Any:
    """Triton's name of the dtype of sums."""
    return tl.float64 if call.sum_dtype == torch.float64 else tl.float32


def strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides of a tensor as the kernels take them."""
    return tuple(tensor.stride())


def channel_strides(call: _Call) -> tuple[int, ...]:
    """Strides of the channel filter; 0 along a batch of one that all images share."""
    if call.channel_filter is None:
        return (0, 0, 0, 0)
    first, *rest = call.channel_filter.stride()
    return (0 if call.channel_shared else first, *rest)
