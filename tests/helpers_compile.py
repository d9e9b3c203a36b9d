"""What the binary of a planned launch says of registers and spills."""

import re
from dataclasses import dataclass

from bench.compiled import TARGETS
from bench.compiled import compile_launch as compile_binary
from bench.sass import resource_usage
from kpnops._decoupled_filter.plan import Launch

__all__ = ["TARGETS", "Compiled", "compile_launch"]


@dataclass(frozen=True)
class Compiled:
    """Registers of a thread and bytes that spill to memory."""

    registers: int
    spilled_bytes: int


def compile_launch(launch: Launch, target: str) -> Compiled:
    """Compile as the launch would on a GPU whose pointers and strides are multiples of 16, as
    Triton specialises."""
    compiled = compile_binary(launch, target)
    if target.startswith("gfx"):
        return _amd(compiled.asm["amdgcn"])
    return Compiled(*resource_usage(compiled.asm["cubin"]))


def _amd(text: str) -> Compiled:
    # scalar registers may spill (into vector registers); vector registers and private memory may
    # not
    numbers = {
        key: int(re.findall(rf"\.{key}:\s+(\d+)", text)[0])
        for key in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
    }
    spilled = 4 * numbers["vgpr_spill_count"] + numbers["private_segment_fixed_size"]
    return Compiled(numbers["vgpr_count"], spilled)
